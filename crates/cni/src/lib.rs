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
mod request;
mod result;
mod version;

pub use args::CniArgs;
pub use error::{Code, Error};
pub use id::{ContainerId, IfName, NetworkName};
pub use json::Json;
pub use netconf::{
    BridgeKeys, Capabilities, CniKeys, Dns, HOST_LOCAL, Ipam, NetConf, RangeConf, RouteConf,
    RuntimeConfig, ValidAttachment,
};
pub use request::{Attached, Call, Refused, Request, Verb};
pub use result::{AddResult, Interface, Ip, Route};
pub use version::Version;
