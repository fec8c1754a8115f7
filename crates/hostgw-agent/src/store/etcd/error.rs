//! Why etcd, or this node's lease in it, cannot be used.

use std::path::{Path, PathBuf};

use super::blocked::Blocked;
use crate::network;
use cni::causes;

/// etcd's message if authentication is disabled.
const AUTH_DISABLED: &str = "authentication is not enabled";

/// etcd's messages about a login that a new one may replace: its token has expired or is invalid,
/// or there is none.
const LOGIN_ERRORS: [&str; 5] = [
    "invalid auth token",
    "revision of auth store is old",
    "user name is empty",
    "authentication failed",
    AUTH_DISABLED,
];

/// An error of the `etcd` store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// etcd refuses the request, and would refuse it again.
    #[error("{0}")]
    Refused(String),
    /// etcd does not accept the login. A new one may help.
    #[error("{0}")]
    Login(String),
    /// There is no answer, or none that can be used.
    #[error("{0}")]
    Unavailable(String),
    #[error("no answer within {0} s")]
    Timeout(u64),
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("read {path}: {reason}")]
    ReadFile { path: PathBuf, reason: String },
    /// No endpoint could be used; with the reason for each.
    #[error("etcd cannot be reached: {0}")]
    Unreachable(String),
    /// No endpoint accepts the login.
    #[error("etcd does not accept the login: {0}")]
    RefusesLogin(String),
    #[error("etcd has no {0}")]
    NoConfig(String),
    #[error("etcd has no {0} any more")]
    ConfigDeleted(String),
    #[error("{key}: {source}")]
    InvalidConfig { key: String, source: network::Error },
    #[error(transparent)]
    Blocked(#[from] Blocked),
    #[error("write this node's lease to etcd: {0}")]
    Write(Box<Error>),
    #[error("other nodes changed leases during every attempt; trying again later")]
    Contention,
    #[error("this node's lease has expired, and was not acquired again yet")]
    Expired,
    #[error("the lease of {0} changed before it was deleted; run the command again")]
    Changed(String),
    #[error("release the lease in etcd: {0}")]
    Release(String),
}

impl Error {
    pub(super) fn file(path: &Path, reason: &str) -> Self {
        Self::File {
            path: path.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// True if etcd needs no login.
    pub(super) fn is_auth_disabled(&self) -> bool {
        matches!(self, Self::Login(reason) if reason.contains(AUTH_DISABLED))
    }
}

impl From<etcd_client::Error> for Error {
    fn from(error: etcd_client::Error) -> Self {
        // gRPC's invalid argument, permission denied, resource exhausted, failed precondition.
        const REFUSALS: [i32; 4] = [3, 7, 8, 9];
        let (code, reason) = match &error {
            etcd_client::Error::GRpcStatus(status) => {
                let source = std::error::Error::source(status);
                let causes = source.map(causes).unwrap_or_default();
                let message = status.message();
                // A status repeats its cause.
                let reason = if causes.is_empty() || message.contains(&causes) {
                    message.to_owned()
                } else {
                    format!("{message}: {causes}")
                };
                (status.code() as i32, reason)
            }
            other => (0, causes(other)),
        };
        if LOGIN_ERRORS.iter().any(|text| reason.contains(text)) {
            Self::Login(reason)
        } else if REFUSALS.contains(&code) {
            Self::Refused(reason)
        } else {
            Self::Unavailable(reason)
        }
    }
}
