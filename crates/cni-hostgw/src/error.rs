//! What can go wrong, and the number that the runtime is told.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use cni::Code;
use host_local::{Overlap, RangeError, StillLocked, StoreError};
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
    #[error(
        "read the node's subnet from {path}, waited {waited:?}; is the service hostgw-agent \
         (or flanneld) running on this node?",
        path = .path.display()
    )]
    Subnet {
        path: PathBuf,
        waited: Duration,
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
    #[error(
        "{bridge:?} already has an IP address different from {gateway}: {address}, and these pods \
         use it: {}; delete them (or drain the node), and the next ADD gives the bridge its \
         address; or put subnet {} back",
        .pods.join(", "), network(.address)
    )]
    BridgeAddress {
        bridge: String,
        gateway: IpNetwork,
        address: IpNetwork,
        pods: Vec<String>,
    },
    #[error("{program}: {verb}")]
    Delegate {
        program: String,
        verb: String,
        source: io::Error,
    },
    #[error("masquerade by {0}")]
    Iptables(String, #[source] io::Error),
    #[error("{} of the things to be collected could not be", .0.len())]
    Collect(Vec<String>),
    #[error("{0} already exists but is not a bridge")]
    NoBridge(String),
    #[error("{bridge} cannot have the gateway's address {gateway}: {other} has it already")]
    GatewayElsewhere {
        bridge: String,
        gateway: IpNetwork,
        other: String,
    },
    #[error(
        "network {network:?} has subnet {}, in which network {:?} of this node holds {} ({}), in {}: \
         a subnet belongs to one network. Give network {network:?} another subnet, or the name {:?}; \
         or delete the pods of network {:?} (where that container is no more, its file {}/{})",
        list(.subnets), .other.network, .other.address, .other.holder, .other.dir.display(),
        .other.network, .other.network, .other.dir.display(), .other.address
    )]
    SharedSubnet {
        network: String,
        subnets: Vec<IpNetwork>,
        other: Box<Overlap>,
    },
    #[error("note this network's dataDir in /run/cni-hostgw/data-dirs")]
    DataDirs(#[source] io::Error),
    #[error("wait for other requests to finish with the node's bridges")]
    BridgesLocked(#[source] StillLocked),
    #[error("lock the node's bridges")]
    LockBridges(#[source] io::Error),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("CHECK: {0}")]
    Different(String),
    #[error("tell this boot of the machine from others")]
    Boot(#[source] io::Error),
    #[error("choose a hardware address by chance")]
    Random(#[source] rand::rngs::SysError),
    #[error("write the answer")]
    Answer(#[source] io::Error),
    #[error("remove flannel's scratch file {path}", path = .0.display())]
    Scratch(PathBuf, #[source] io::Error),
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
            Self::Subnet { .. }
            | Self::BridgesLocked(_)
            | Self::Store(StoreError::Locked { .. }) => Code::TRY_AGAIN_LATER,
            Self::Netns(_) | Self::NameTaken(_) | Self::Live(_) => Code::INVALID_ENVIRONMENT,
            Self::OwnNetns => Code::OWN_NETNS,
            Self::BridgeAddress { .. }
            | Self::NoBridge(_)
            | Self::GatewayElsewhere { .. }
            | Self::Kernel(_)
            | Self::Iptables(..)
            | Self::Delegate { .. }
            | Self::Collect(_) => KERNEL,
            Self::Store(StoreError::Exhausted { .. }) => EXHAUSTED,
            Self::Store(StoreError::Io { .. })
            | Self::Boot(_)
            | Self::DataDirs(_)
            | Self::LockBridges(_)
            | Self::Answer(_)
            | Self::Random(_)
            | Self::Scratch(..) => Code::IO,
            Self::Config { .. }
            | Self::Conflict(_)
            | Self::Ranges(_)
            | Self::SharedSubnet { .. }
            | Self::Store(_) => Code::INVALID_CONFIG,
            Self::Different(_) => DIFFERENT,
        }
    }

    /// The error object for the runtime.
    pub(crate) fn into_cni(self) -> cni::Error {
        let causes = match &self {
            Self::Collect(errors) => errors.join("; "),
            other => causes(other),
        };
        match self {
            Self::Protocol(Protocol(error)) => error,
            other => cni::Error::new(other.code(), other.to_string()).with_details(causes),
        }
    }

    /// The same in one line, for a list of several.
    pub(crate) fn into_line(self) -> String {
        let cni::Error { msg, details, .. } = self.into_cni();
        if details.is_empty() {
            msg
        } else {
            format!("{msg}: {details}")
        }
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes.join(": ")
}

fn list(networks: &[IpNetwork]) -> String {
    let texts: Vec<_> = networks.iter().map(ToString::to_string).collect();
    texts.join(" and ")
}

fn network(address: &IpNetwork) -> String {
    format!("{}/{}", address.network(), address.prefix())
}
