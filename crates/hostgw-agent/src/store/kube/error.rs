//! Why the API server, or this node's Node object, cannot be used.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kube::core::Status;

use cni::causes;

/// The API server wants us to wait; longer than this, we do not.
const MAX_RETRY_AFTER: u64 = 60;

/// An error of the `kube` store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The API server does not accept our token or certificate. There may be another one by now.
    #[error("{0}")]
    Unauthorized(String),
    /// The revision to watch from is too old: everything has to be listed again.
    #[error("the requested revision has expired")]
    Expired,
    /// The answer is older than what was known: everything has to be listed again, from etcd itself.
    #[error("{0}")]
    Stale(String),
    /// The API server refuses the request.
    #[error("{0}")]
    Refused(String),
    /// The API server refuses the request for now, and wants us to wait for this long.
    #[error("{0}")]
    Throttled(String, Duration),
    /// There is no answer, or none that can be used.
    #[error("{0}")]
    Unavailable(String),
    /// The session failed, and starts again after a pause.
    #[error("the API server cannot be reached: {0}")]
    Unreachable(Box<Error>),
    #[error("the API server refused the request: {0}")]
    Refuses(Box<Error>),
    #[error("the API server does not accept our credentials: {0}")]
    RefusesLogin(Box<Error>),
    #[error("{path}: {reason}")]
    Kubeconfig { path: PathBuf, reason: String },
    #[error("{0}; outside of a pod, use --kubeconfig-file to say where the API server is")]
    NotInCluster(String),
    #[error("{setting}: {reason}")]
    Proxy {
        /// `proxy-url` or an environment variable.
        setting: &'static str,
        reason: String,
    },
    #[error("there is no Node {0:?} (--node-name, NODE_NAME)")]
    NoNode(String),
    #[error(
        "Node {0} has no podCIDR yet: the control plane assigns it (kube-controller-manager --allocate-node-cidrs, kubeadm --pod-network-cidr)"
    )]
    NoPodCidr(String),
    #[error("Node {node} has more than two podCIDRs: {cidrs}")]
    TooManyPodCidrs { node: String, cidrs: String },
    #[error("podCIDR {cidr:?} of Node {node} is not of the form 10.10.1.0/24")]
    InvalidPodCidr { node: String, cidr: String },
    #[error("Node {node} has no {family} podCIDR ({cidrs}), but {key} in {file} is {network}")]
    NoPodCidrOfFamily {
        node: String,
        family: &'static str,
        cidrs: String,
        key: &'static str,
        file: String,
        network: IpNetwork,
    },
    #[error("podCIDR {cidr} of Node {node} is not within {key} {network} in {file}")]
    PodCidrOutside {
        node: String,
        cidr: IpNetwork,
        key: &'static str,
        file: String,
        network: IpNetwork,
    },
    #[error(
        "the interface to the other nodes has no {family} address, but {key} in {file} is {network}"
    )]
    NoAddressOfFamily {
        family: &'static str,
        key: &'static str,
        file: String,
        network: IpNetwork,
    },
    /// Neither family of this node can be used; with the reason for each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoFamily(Vec<Error>),
    #[error(
        "annotation {name} of Node {node} is {value:?}, which is not a valid address of its family"
    )]
    InvalidAnnotation {
        node: String,
        name: &'static str,
        value: String,
    },
}

impl Error {
    /// Adds what the request was for.
    pub(super) fn during(self, action: &str) -> Self {
        match self {
            Self::Refused(reason) => Self::Refused(format!("{action}: {reason}")),
            Self::Throttled(reason, after) => Self::Throttled(format!("{action}: {reason}"), after),
            Self::Unavailable(reason) => Self::Unavailable(format!("{action}: {reason}")),
            Self::Unauthorized(reason) => Self::Unauthorized(format!("{action}: {reason}")),
            other => other,
        }
    }

    /// The error for an HTTP status code. `message` is the server's; `after` in seconds.
    pub(super) fn from_status(code: u16, message: &str, after: u64) -> Self {
        let reason = format!("{message} ({code})");
        let after = Duration::from_secs(after.min(MAX_RETRY_AFTER));
        match code {
            410 => Self::Expired,
            401 => Self::Unauthorized(reason),
            429 | 500..=503 => Self::Throttled(reason, after),
            _ => Self::Refused(reason),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.details.as_ref();
        let after = details.map_or(0, |details| details.retry_after_seconds.into());
        let message = if status.message.is_empty() {
            &status.reason
        } else {
            &status.message
        };
        Self::from_status(status.code, message, after)
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Unavailable(causes(&error))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Unavailable(causes(&error))
    }
}

impl From<kube::core::request::Error> for Error {
    fn from(error: kube::core::request::Error) -> Self {
        Self::Unavailable(causes(&error))
    }
}
