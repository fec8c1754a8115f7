//! The error object that a plugin prints on standard output.

use serde_json::{Value, json};

use crate::Version;

/// Numeric error code of the CNI protocol (SPEC, section "Error"). Codes 1 to 99 are defined by the
/// SPEC, 100 and above by the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// The plugin does not support the `cniVersion`.
    pub const INCOMPATIBLE_VERSION: Self = Self(1);
    /// The plugin does not support a key or its value. The message contains both.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown. The runtime does not need to clean up.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// An environment variable is missing or invalid. The message names it.
    pub const INVALID_ENVIRONMENT: Self = Self(4);
    /// Reading or writing failed.
    pub const IO: Self = Self(5);
    /// A JSON text could not be decoded: a syntax error, or a value of the wrong type.
    pub const DECODE: Self = Self(6);
    /// The network configuration is contradictory or incomplete.
    pub const INVALID_CONFIG: Self = Self(7);
    /// `CNI_NETNS` is the plugin's own network namespace (libcni's number, not in the SPEC).
    pub const OWN_NETNS: Self = Self(8);
    /// A temporary condition: the same request may succeed later.
    pub const TRY_AGAIN_LATER: Self = Self(11);
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: Self = Self(50);
    /// An unexpected failure without a code of its own: a bug in the plugin.
    pub const INTERNAL: Self = Self(999);
}

/// An error, for the runtime and for readers of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Code of the error.
    pub code: Code,
    /// Which operation failed, and on which object.
    pub msg: String,
    /// Chain of causes, outermost first. Empty if the message is complete.
    pub details: String,
}

impl Error {
    /// Creates an error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// Adds the chain of causes.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Returns the JSON object that the runtime reads: `cniVersion`, `code`, `msg`, and `details`
    /// if not empty.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code.0,
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        object
    }
}

/// An error with its causes, on one line. A cause that the text has already is left out: wrappers
/// often repeat what they wrap.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
