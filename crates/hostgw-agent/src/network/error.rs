//! Why a text is not a network's configuration.

use super::excerpt;

/// Why a text is not a network's configuration. It names the key, its value and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{key} is {value}, and must {rule}")]
    Invalid {
        key: &'static str,
        value: String,
        rule: String,
    },
    #[error("EnableIPv4 and EnableIPv6 are both false")]
    NoFamily,
    /// It is not JSON, or not an object.
    #[error("{0}")]
    Json(String),
}

impl Error {
    pub(super) fn invalid(
        key: &'static str,
        value: &(impl ToString + ?Sized),
        rule: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            key,
            value: excerpt(&value.to_string()),
            rule: rule.into(),
        }
    }
}
