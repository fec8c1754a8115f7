//! The plugin's errors, and their codes for the runtime.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use cni::Code;
use host_local::{Overlap, RangeError, StoreError};
use host_ports::{InvalidRequest, Unresolvable};
use ipnetwork::IpNetwork;
use util::LockTimeout;

/// The kernel refused a request.
const KERNEL: Code = Code(100);
/// A range set has no free address.
const EXHAUSTED: Code = Code(101);
/// CHECK found a difference.
const CHECK_FAILED: Code = Code(102);

/// Why a request failed: what we were doing, to what, and the cause.
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
    #[error("runtimeConfig.portMappings[{index}].{}: {}", .source.key, .source.value)]
    PortMapping {
        index: usize,
        source: InvalidRequest,
    },
    #[error("runtimeConfig.portMappings")]
    PortMappings(#[from] Unresolvable),
    #[error(
        "{list} has the capability {capability} twice: in the entry of this plugin, and in that of \
         {plugin} behind it; remove one of them"
    )]
    HandledTwice {
        list: String,
        plugin: &'static str,
        capability: &'static str,
    },
    #[error(transparent)]
    HostPorts(#[from] host_ports::Error),
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
    InterfaceExists(String),
    #[error(
        "attachment already exists in another network namespace: its host veth is {0}; DEL it first"
    )]
    Exists(String),
    #[error(
        "{bridge:?} already has an IP address different from {gateway}: {address}, and these pods \
         use it: {}; delete them (or drain the node), and the next ADD gives the bridge its \
         address; or restore subnet {}",
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
    #[error("masquerade with {0}")]
    Iptables(&'static str, #[source] programs::iptables::Error),
    #[error("GC could not remove {} resource(s)", .0.len())]
    GcIncomplete(Vec<String>),
    #[error("{0} already exists but is not a bridge")]
    NotABridge(String),
    #[error("{bridge} cannot get the gateway address {gateway}: {other} already has it")]
    GatewayOnOtherInterface {
        bridge: String,
        gateway: IpNetwork,
        other: String,
    },
    #[error(
        "network {network:?} has subnet {}, but network {:?} of this node holds {} ({}), in {}: \
         a subnet belongs to one network. Give network {network:?} another subnet, or the name {:?}; \
         or delete the pods of network {:?} (if that container is gone, delete the file {}/{})",
        list(.subnets), .other.network, .other.address, .other.holder, .other.dir.display(),
        .other.network, .other.network, .other.dir.display(), .other.address
    )]
    SharedSubnet {
        network: String,
        subnets: Vec<IpNetwork>,
        other: Box<Overlap>,
    },
    #[error("record this network's dataDir in /run/cni-hostgw/data-dirs")]
    DataDirs(#[source] io::Error),
    #[error("wait for other requests to release the lock of the node's bridges")]
    BridgesLocked(#[source] LockTimeout),
    #[error("lock the node's bridges")]
    LockBridges(#[source] io::Error),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("CHECK: {0}")]
    CheckFailed(String),
    #[error("read the boot id")]
    Boot(#[source] io::Error),
    #[error("choose a random hardware address")]
    Random(#[source] rand::rngs::SysError),
    #[error("write the result")]
    Answer(#[source] io::Error),
    #[error("remove flannel's scratch file {path}", path = .0.display())]
    Scratch(PathBuf, #[source] io::Error),
}

/// An error of the protocol itself, with its code.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.msg)]
pub(crate) struct Protocol(cni::Error);

impl From<cni::Error> for Error {
    fn from(error: cni::Error) -> Self {
        Self::Protocol(Protocol(error))
    }
}

impl Error {
    /// The only place where an error gets its code.
    fn code(&self) -> Code {
        match self {
            Self::Protocol(Protocol(error)) => error.code,
            Self::Unsupported(..) => Code::UNSUPPORTED_FIELD,
            // The agent may be about to write it.
            Self::Subnet { .. }
            | Self::BridgesLocked(_)
            | Self::Store(StoreError::Locked { .. }) => Code::TRY_AGAIN_LATER,
            Self::Netns(_) | Self::InterfaceExists(_) | Self::Exists(_) => {
                Code::INVALID_ENVIRONMENT
            }
            Self::OwnNetns => Code::OWN_NETNS,
            Self::BridgeAddress { .. }
            | Self::NotABridge(_)
            | Self::GatewayOnOtherInterface { .. }
            | Self::Kernel(_)
            | Self::Iptables(..)
            | Self::Delegate { .. }
            | Self::GcIncomplete(_) => KERNEL,
            Self::HostPorts(error) => match error {
                host_ports::Error::InUse { .. } => Code::INVALID_CONFIG,
                host_ports::Error::Locked(_) => Code::TRY_AGAIN_LATER,
                host_ports::Error::Files { .. } => Code::IO,
                host_ports::Error::Kernel(..) | host_ports::Error::Iptables(..) => KERNEL,
            },
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
            | Self::PortMapping { .. }
            | Self::PortMappings(_)
            | Self::HandledTwice { .. }
            | Self::Ranges(_)
            | Self::SharedSubnet { .. }
            | Self::Store(_) => Code::INVALID_CONFIG,
            Self::CheckFailed(_) => CHECK_FAILED,
        }
    }

    /// Converts the error into the error object for the runtime.
    pub(crate) fn into_cni(self) -> cni::Error {
        let causes = match &self {
            Self::GcIncomplete(errors) => errors.join("; "),
            other => std::error::Error::source(other)
                .map(cni::causes)
                .unwrap_or_default(),
        };
        match self {
            Self::Protocol(Protocol(error)) => error,
            other => cni::Error::new(other.code(), other.to_string()).with_details(causes),
        }
    }

    /// The error in one line, for a list of several.
    pub(crate) fn into_single_line(self) -> String {
        let cni::Error { msg, details, .. } = self.into_cni();
        if details.is_empty() {
            msg
        } else {
            format!("{msg}: {details}")
        }
    }
}

fn list(networks: &[IpNetwork]) -> String {
    let texts: Vec<_> = networks.iter().map(ToString::to_string).collect();
    texts.join(" and ")
}

fn network(address: &IpNetwork) -> String {
    format!("{}/{}", address.network(), address.prefix())
}
