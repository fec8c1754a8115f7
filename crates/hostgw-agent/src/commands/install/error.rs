//! Why something cannot be installed.

use std::io;
use std::path::PathBuf;

use serde_json::Value;

use crate::commands::invalid::Invalid;

/// Why something cannot be installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("find the path of this program")]
    OwnPath(#[source] io::Error),
    #[error("the plugin to install: read {path} (--cni-plugin)")]
    Plugin { path: PathBuf, source: io::Error },
    #[error("{path} (--cni-conf)")]
    ReadList { path: PathBuf, source: io::Error },
    #[error("{path} (--cni-conf)")]
    List { path: PathBuf, source: Invalid },
    #[error("{path}")]
    FlannelList { path: PathBuf, source: Invalid },
    #[error(
        "{path} (--cni-conf): name is {name}, but pods of this node were attached to {flannel_name} of {flannel_path}"
    )]
    OtherNetwork {
        path: PathBuf,
        name: Value,
        flannel_path: PathBuf,
        flannel_name: Value,
    },
    #[error(
        "the CNI configuration list is not installed before there is a subnet file: is the agent running?"
    )]
    NoSubnetFile(#[source] subnet_env::Error),
}
