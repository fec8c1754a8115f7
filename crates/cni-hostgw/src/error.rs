//! What can go wrong, and the number that the runtime is told.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use cni::Code;
use host_local::{RangeError, StoreError};
use ipnetwork::IpNetwork;

/// The kernel refused.
const KERNEL: Code = Code(100);
/// A range has no free address.
const EXHAUSTED: Code = Code(101);
/// CHECK found a difference.
const DIFFERENT: Code = Code(102);

/// A request that failed: what we were doing, to what, and why.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Protocol(#[from] Protocol),
    #[error("{0}: {1} is not supported")]
    Unsupported(&'static str, String),
    #[error("{key}: {value}")]
    Config {
        key: &'static str,
        value: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{0}")]
    Conflict(&'static str),
    #[error("ipam.ranges")]
    Ranges(#[from] RangeError),
    #[error("read the node's subnet from {path}; is hostgw-agent or flanneld running on this node?", path = .path.display())]
    Subnet {
        path: PathBuf,
        source: subnet_env::Error,
    },
    #[error("open CNI_NETNS")]
    Netns(#[source] kernel::Error),
    #[error("plugin's netns and netns from CNI_NETNS should not be the same")]
    OwnNetns,
    #[error("CNI_IFNAME: {0:?} already exists in the container's network namespace")]
    NameTaken(String),
    #[error(
        "the attachment lives in another network namespace: its host veth {0} exists; DEL it first"
    )]
    Live(String),
    #[error("{0:?} already has an IP address different from {1}: {2}")]
    BridgeAddress(String, IpNetwork, IpNetwork),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("CHECK: {0}")]
    Different(String),
    #[error("tell this boot of the machine from others")]
    Boot(#[source] io::Error),
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
}

/// An error of the protocol itself, with its number.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.msg)]
pub(crate) struct Protocol(cni::Error);

impl From<cni::Error> for Error {
    fn from(error: cni::Error) -> Self {
        Self::Protocol(Protocol(error))
    }
}

impl Error {
    /// The one place where a failure gets its number.
    fn code(&self) -> Code {
        match self {
            Self::Protocol(Protocol(error)) => error.code,
            Self::Unsupported(..) => Code::UNSUPPORTED_FIELD,
            // The agent has not written it yet, or is about to write it anew.
            Self::Subnet { .. } | Self::Store(StoreError::Locked { .. }) => Code::TRY_AGAIN_LATER,
            Self::Netns(_) | Self::NameTaken(_) | Self::Live(_) => Code::INVALID_ENVIRONMENT,
            Self::OwnNetns => Code::OWN_NETNS,
            Self::BridgeAddress(..) | Self::Kernel(_) => KERNEL,
            Self::Store(StoreError::Exhausted { .. }) => EXHAUSTED,
            Self::Store(StoreError::Io { .. }) | Self::Boot(_) => Code::IO,
            Self::Config { .. } | Self::Conflict(_) | Self::Ranges(_) | Self::Store(_) => {
                Code::INVALID_CONFIG
            }
            Self::Different(_) => DIFFERENT,
            Self::Runtime(_) => Code::INTERNAL,
        }
    }

    /// The error object for the runtime.
    pub(crate) fn into_cni(self) -> cni::Error {
        if let Self::Protocol(Protocol(error)) = self {
            return error;
        }
        let mut causes = Vec::new();
        let mut cause = self.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        cni::Error::new(self.code(), self.to_string()).with_details(causes.join(": "))
    }
}
