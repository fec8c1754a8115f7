//! Reservations, and what their release leaves.

use std::net::IpAddr;

use super::Store;
use super::locked::Locked;
use crate::attachment::Attachment;
use crate::error::StoreError;
use crate::files::IndexedAddress;
use crate::range::Range;

/// Addresses reserved for an attachment. If it is dropped without [`Reservation::keep`], it
/// releases the addresses that it newly reserved, and only those.
#[derive(Debug)]
#[must_use = "dropping the reservation releases its addresses"]
pub struct Reservation<'a> {
    pub(super) store: &'a Store,
    pub(super) attachment: Attachment,
    pub(super) addresses: Vec<(IpAddr, Range)>,
    pub(super) fresh: Vec<IpAddr>,
    pub(super) held: Vec<IndexedAddress>,
}

impl Reservation<'_> {
    /// Returns one address for each range set, with the range that contains it.
    #[must_use]
    pub fn addresses(&self) -> &[(IpAddr, Range)] {
        &self.addresses
    }

    /// Returns those addresses that the attachment already held before.
    #[must_use]
    pub fn reused_addresses(&self) -> Vec<IpAddr> {
        let addresses = self.addresses.iter().map(|(address, _)| *address);
        addresses
            .filter(|address| !self.fresh.contains(address))
            .collect()
    }

    /// Makes the reservation permanent, and releases the attachment's old addresses that no longer
    /// fit.
    pub fn keep(mut self) {
        self.fresh.clear();
        let is_reused = |held: &IpAddr| self.addresses.iter().any(|(address, _)| address == held);
        let held = self.held.iter().map(|held| held.address);
        let stale: Vec<_> = held.filter(|held| !is_reused(held)).collect();
        // If this fails, DEL releases them.
        if !stale.is_empty()
            && let Ok(Some(locked)) = self.store.lock_existing()
        {
            drop(locked.release_stale(&self.attachment, &stale));
        }
    }
}

impl<'a> Reservation<'a> {
    /// Releases the newly reserved addresses. Returns the network if it has no reserved addresses
    /// any more but features to remove.
    pub fn release(mut self) -> Result<Option<EmptyNetwork<'a>>, StoreError> {
        self.release_fresh()
    }

    fn release_fresh(&mut self) -> Result<Option<EmptyNetwork<'a>>, StoreError> {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() {
            return Ok(None);
        }
        let Some(locked) = self.store.lock_existing()? else {
            return Ok(None);
        };
        locked.release_addresses(&self.attachment, &fresh, &self.held)?;
        locked.into_empty_network()
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        drop(self.release_fresh());
    }
}

/// The result of [`Store::release`].
#[derive(Debug, Default)]
pub struct Released<'a> {
    /// The released addresses.
    pub addresses: Vec<IpAddr>,
    /// True if host-local reserved them, and not this library.
    pub is_foreign: bool,
    /// The network, if it has no reserved addresses any more but features to remove.
    pub empty_network: Option<EmptyNetwork<'a>>,
}

/// A network without reserved addresses. It is locked: no address can be reserved while this value
/// exists.
#[derive(Debug)]
pub struct EmptyNetwork<'a> {
    pub(super) locked: Locked<'a>,
    pub(super) features: Vec<String>,
}

impl EmptyNetwork<'_> {
    /// Returns the features of the network that are still set up on the node.
    #[must_use]
    pub fn features(&self) -> &[String] {
        &self.features
    }

    /// Records that all features have been removed.
    pub fn clear_features(self) -> Result<(), StoreError> {
        let written = self.locked.files.set_features(&[]);
        written.map_err(self.locked.store.io("write the features"))
    }
}
