//! Garbage collection: releases the addresses of attachments that are no longer valid.

use std::net::IpAddr;

use super::locked::Locked;
use super::{EmptyNetwork, Store};
use crate::attachment::Holder;
use crate::error::StoreError;

/// An address that [`Store::collect`] released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// The released address.
    pub address: IpAddr,
    /// The holder of the address, or `None` if its file named none.
    pub holder: Option<Holder>,
    /// True if host-local reserved it, and not this library.
    pub is_foreign: bool,
}

/// The result of [`Store::collect`].
#[derive(Debug, Default)]
pub struct Collected<'a> {
    /// The released addresses.
    pub freed: Vec<Freed>,
    /// The addresses that are still reserved, or may be.
    pub held: Vec<IpAddr>,
    /// The failures.
    pub errors: Vec<StoreError>,
    /// The network, if it has no reserved addresses any more but features to remove.
    pub empty_network: Option<EmptyNetwork<'a>>,
}

impl Store {
    /// Releases the addresses of holders for which `is_valid` returns false, and those whose files
    /// name no holder. Before an address that host-local reserved is released, `try_free` must take
    /// it from its interface, and return whether no interface uses it any more. Continues after
    /// failures, and returns all of them.
    pub fn collect(
        &self,
        is_valid: impl Fn(&Holder) -> bool,
        try_free: impl Fn(IpAddr) -> bool,
    ) -> Result<Collected<'_>, StoreError> {
        let mut collected = Collected::default();
        let Some(locked) = self.lock_existing()? else {
            return Ok(collected);
        };
        let files = &locked.files;
        let incomplete = files.remove_incomplete();
        let incomplete = incomplete.map_err(self.io("remove an incomplete file"));
        collected.errors.extend(incomplete.err());
        for address in files.addresses().map_err(self.io("list reservations"))? {
            match locked.free_unless_valid(address, &is_valid, &try_free) {
                Ok(Some(freed)) => collected.freed.push(freed),
                Ok(None) => collected.held.push(address),
                // The address may still be in use.
                Err(error) => {
                    collected.errors.push(error);
                    collected.held.push(address);
                }
            }
        }
        for (attachment, _) in files.attachments().map_err(self.io("read the index"))? {
            if !is_valid(&Holder::Attachment(attachment.clone())) {
                let removed = files.index(&attachment, &[]);
                let removed = removed.map_err(self.io("write the index"));
                collected.errors.extend(removed.err());
            }
        }
        if collected.held.is_empty() && collected.errors.is_empty() {
            collected.empty_network = locked.into_empty_network()?;
        }
        Ok(collected)
    }
}

impl Locked<'_> {
    /// Releases `address` if its holder is not valid. Returns `None` if it stays reserved.
    fn free_unless_valid(
        &self,
        address: IpAddr,
        is_valid: impl Fn(&Holder) -> bool,
        try_free: impl Fn(IpAddr) -> bool,
    ) -> Result<Option<Freed>, StoreError> {
        let holder = self.files.holder(address);
        let holder = holder.map_err(self.store.io("read a reservation"))?;
        let is_foreign = match &holder {
            Some(holder) if is_valid(holder) => return Ok(None),
            Some(holder) => !self.is_own(address, holder)?,
            None => false,
        };
        if is_foreign && !try_free(address) {
            return Ok(None);
        }
        let removed = self.files.free(address);
        removed.map_err(self.store.io("remove a reservation"))?;
        Ok(Some(Freed {
            address,
            holder,
            is_foreign,
        }))
    }
}
