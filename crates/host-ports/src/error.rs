//! Errors of this crate.

use std::io;

use util::LockTimeout;

use crate::mapping::Mapping;
use crate::record;

/// Why mappings could not be added, removed or compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another pod has the port.
    #[error(
        "host port {mapping} is in use by pod {owner} (container {container_id}, host veth {veth}); \
         choose another host port, or delete that pod"
    )]
    InUse {
        /// The requested mapping.
        mapping: Mapping,
        /// The other pod's name, or its container id.
        owner: String,
        /// The other pod's container id.
        container_id: String,
        /// The other pod's host veth.
        veth: String,
    },
    /// A file of a record could not be read or written.
    #[error("{doing} in {}", record::DIRECTORY)]
    Files {
        /// The operation that failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Other requests hold the lock for too long.
    #[error("wait for other requests to release the lock of the host ports")]
    Locked(#[source] LockTimeout),
    /// A program of iptables failed.
    #[error("remove what the portmap plugin left with {0}")]
    Iptables(&'static str, #[source] programs::iptables::Error),
    /// The kernel refused a request.
    #[error("{0}")]
    Kernel(&'static str, #[source] kernel::Error),
}

pub(crate) fn files(doing: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Files { doing, source }
}

pub(crate) fn refused(doing: &'static str) -> impl Fn(kernel::Error) -> Error {
    move |error| Error::Kernel(doing, error)
}
