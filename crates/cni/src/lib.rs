//! The Container Network Interface protocol, versions 0.1.0 to 1.1.0, without I/O.
//!
//! A plugin reads a [`Request`] from its environment and standard input, and answers with an
//! [`AddResult`] or an [`Error`], each in the shape of the configuration's [`Version`]. [`Json`] is the
//! configuration as the runtime sent it.
//!
//! Source: the CNI SPEC at its tags v0.1.0 to v1.1.0, and what libcni and its callers do.

mod args;
mod error;
mod id;
mod json;
mod network;
mod request;
mod result;
mod route;
mod strict;
mod valid;
mod version;

pub use args::CniArgs;
pub use error::{Code, Error, causes};
pub use id::{ContainerId, IfName, NetworkName};
pub use json::Json;
pub use network::{
    address, deserialize_network, deserialize_optional_address, deserialize_optional_network,
    network,
};
pub use request::{Call, Parameters, Refused, Request, Verb};
pub use result::{AddResult, Dns, Interface, Ip};
pub use route::Route;
pub use valid::ValidAttachment;
pub use version::Version;

mod attachment_hash;

pub use attachment_hash::AttachmentHash;

/// The start of the alias of every host veth of the plugin. It shows which ports of a bridge belong to
/// pods of the plugin.
pub const HOST_VETH_ALIAS: &str = "cni-hostgw ";
