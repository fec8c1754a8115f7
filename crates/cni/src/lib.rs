//! The Container Network Interface protocol, versions 0.1.0 to 1.1.0, without I/O.
//!
//! A plugin reads a [`Request`] from its environment and standard input, takes the
//! [`NetConf`] out of it, and answers with an [`AddResult`] or an [`Error`], each in the
//! shape of the configuration's [`Version`].
//!
//! Source: the CNI SPEC at its tags v0.1.0 to v1.1.0, and what libcni and its callers do.

mod args;
mod error;
mod id;
mod json;
mod netconf;
mod network;
mod request;
mod result;
mod strict;
mod version;

pub use args::CniArgs;
pub use error::{Code, Error};
pub use id::{ContainerId, IfName, NetworkName};
pub use json::Json;
pub use netconf::{
    BridgeKeys, Capabilities, CniKeys, Dns, HOST_LOCAL, Ipam, NetConf, RangeConf, RouteConf,
    RuntimeConfig, ValidAttachment,
};
pub use network::{address, network};
pub use request::{Attached, Call, Refused, Request, Verb};
pub use result::{AddResult, Interface, Ip, Route};
pub use version::Version;

/// What the alias of every host veth of the plugin begins with: whoever looks at a bridge knows
/// by it which ports are the plugin's.
pub const HOST_VETH_ALIAS: &str = "cni-hostgw ";
