//! Why the store did not do what was asked of it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use util::LockTimeout;

/// The error of an operation on the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the lock for longer than the timeout.
    #[error("lock {path}: {source}")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The process that holds it.
        source: LockTimeout,
    },
    /// Every address of a range set is reserved.
    #[error(
        "no IP addresses available in range set {set}: all {size} are reserved in {dir}; \
         reclaimed {reclaimed} stale reservations"
    )]
    Exhausted {
        /// The range set.
        set: String,
        /// The store's directory.
        dir: PathBuf,
        /// Number of addresses in the set.
        size: usize,
        /// Number of stale reservations that were reclaimed in the attempt: those of attachments
        /// that no longer exist.
        reclaimed: usize,
    },
    /// A requested address is reserved by another attachment, or is a gateway.
    #[error("requested IP address {address} is {reason}")]
    Unavailable {
        /// The address.
        address: IpAddr,
        /// Why the address is not available.
        reason: String,
    },
    /// Requested addresses that are in no range set, or more than one address for a set.
    #[error("failed to allocate all requested IPs: {}", join(.0))]
    NotInRanges(Vec<IpAddr>),
    /// The directory of the store cannot be read or written.
    #[error("{doing} in {dir}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The store's directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl StoreError {
    /// Adds the number of stale reservations that were reclaimed before this attempt.
    #[must_use]
    pub fn with_reclaimed(mut self, count: usize) -> Self {
        if let Self::Exhausted { reclaimed, .. } = &mut self {
            *reclaimed = count;
        }
        self
    }
}

fn join(addresses: &[IpAddr]) -> String {
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}
