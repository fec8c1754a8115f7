//! The agent's errors. They stay values until they are logged, shown by `status`, or written to the
//! Node's condition.

use std::path::PathBuf;
use std::sync::Arc;

use ipnetwork::IpNetwork;

pub(crate) use cni::causes;

use crate::commands::install::error::Error as InstallError;
use crate::fast_path;
use crate::files;
use crate::network::Hop;
use crate::node::{forwarding, uplink};
use crate::store;

/// The result of most functions of the agent.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the agent, or one of its commands, failed. [`text`](Error::text) has the causes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    SubnetFile(#[from] subnet_env::Error),
    #[error(transparent)]
    File(#[from] files::Error),
    #[error(transparent)]
    Program(#[from] programs::iptables::Error),
    #[error(transparent)]
    Uplink(#[from] uplink::Error),
    #[error(transparent)]
    Forwarding(#[from] forwarding::Error),
    #[error(transparent)]
    HostPorts(#[from] host_ports::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(transparent)]
    FastPath(#[from] fast_path::CheckError),
    /// An error of an earlier check, shown until the check runs again.
    #[error(transparent)]
    Persisting(#[from] Arc<Error>),
    /// Pods of this node cannot reach others.
    #[error("interface {0} is down")]
    InterfaceDown(String),
    /// A bridge with the subnet that the store gives this node would divert the node's own packets.
    #[error(
        "this node's subnet {} contains its own address {}: a bridge with this subnet would cut the node off; give the node another subnet, or the cluster another network", .0.subnet, .0.via
    )]
    AroundNode(Hop),
    /// A store gave a new state that cannot be used.
    #[error("{}; the last known state stays in use", .0.text())]
    LastStateStays(Box<Error>),
    /// `iptables` refuses all packets of one direction.
    #[error(
        "{program} refuses packets from {from} to {to}: a rule for these addresses comes before ours (`{program} -S FORWARD` shows it)"
    )]
    ForwardRefused {
        program: &'static str,
        from: IpNetwork,
        to: IpNetwork,
    },
    #[error("set up handlers for SIGTERM, SIGINT and SIGHUP")]
    Signal(#[source] std::io::Error),
    /// Another agent answers on the socket.
    #[error(
        "an agent is already running on this node (it answers at {0}): two agents would undo each other's work"
    )]
    AlreadyRunning(PathBuf),
    #[error(
        "an agent is running on this node (it answers at {socket}) and would {consequence}; stop it first"
    )]
    StopAgentFirst {
        socket: PathBuf,
        consequence: &'static str,
    },
    #[error("no agent answers at {socket} (is hostgw-agent running?)")]
    NoAgent {
        socket: PathBuf,
        source: std::io::Error,
    },
    #[error("listen on {address} (--healthz-port)")]
    Listen {
        address: std::net::SocketAddr,
        source: std::io::Error,
    },
    /// A command did a part of its work: what was done, and what failed.
    #[error("{done}{failed}")]
    Incomplete { done: String, failed: String },
    /// A flag, a file or a combination of them that the user has to change.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// The exit code of a command that fails with this error.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::FastPath(error) if error.is_unknown() => fast_path::CANNOT_RUN,
            _ => 1,
        }
    }

    /// The error with its causes, on one line.
    pub(crate) fn text(&self) -> String {
        causes(self)
    }
}
