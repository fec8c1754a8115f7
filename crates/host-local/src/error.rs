//! Why the store did not do what was asked of it.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::lock::StillLocked;

/// Why the store did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the lock and does not let go.
    #[error("lock {path}: {source}")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it.
        source: StillLocked,
    },
    /// Every address of a range set is held.
    #[error(
        "no IP addresses available in range set {set}: all {size} are held, in {dir}; \
         {reclaimed} were abandoned and taken back before"
    )]
    Exhausted {
        /// The range set.
        set: String,
        /// The store's directory.
        dir: PathBuf,
        /// How many addresses the set has.
        size: usize,
        /// How many addresses were taken back from attachments that are no more.
        reclaimed: usize,
    },
    /// A requested address is somebody else's, or a gateway.
    #[error("requested IP address {address} is {reason}")]
    Unavailable {
        /// The address.
        address: IpAddr,
        /// Why it cannot be had.
        reason: String,
    },
    /// Requested addresses that no range set contains, or more than one for a set.
    #[error("failed to allocate all requested IPs: {}", join(.0))]
    Unplaced(Vec<IpAddr>),
    /// The directory cannot be read or written.
    #[error("{doing} in {dir}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// The store's directory.
        dir: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl StoreError {
    /// The same after so many addresses were taken back from attachments that are no more.
    #[must_use]
    pub fn after_reclaiming(mut self, count: usize) -> Self {
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
