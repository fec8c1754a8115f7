//! Operations on a store under its lock.

use std::io;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{EmptyNetwork, Store};
use crate::attachment::{Attachment, Boot, Holder};
use crate::error::StoreError;
use crate::files::{Files, IndexedAddress};
use crate::range::RangeSet;
use util::FileLock;

/// The store while its lock is held.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    pub(super) store: &'a Store,
    pub(super) files: Files<'a>,
    /// True if no other program changed the directory, or if its changes have been examined.
    pub(super) is_examined: bool,
    pub(super) _lock: FileLock,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // If this fails, the directory is examined again next time.
        if self.is_examined && self.files.is_changed().unwrap_or_default() {
            drop(self.files.mark_examined());
        }
    }
}

impl<'a> Locked<'a> {
    pub(super) fn remove_earlier_boots(&self) -> Result<(), StoreError> {
        let Store { boot, .. } = self.store;
        let recorded = self
            .files
            .boot_id()
            .map_err(self.store.io("read the boot id"))?;
        if recorded.as_deref() == Some(boot.id.as_str()) {
            return Ok(());
        }
        if recorded.is_some() {
            let io = self.store.io("empty the store of an earlier boot");
            self.remove_earlier_reservations().map_err(io)?;
        }
        self.files
            .set_boot_id(&boot.id)
            .map_err(self.store.io("write the boot id"))
    }

    /// Removes the reservations of an earlier boot. Those in the index are of that boot. Others
    /// were made by host-local, and may be of the current boot, if the node went back to host-local
    /// for a time: their modification time decides.
    pub(super) fn remove_earlier_reservations(&self) -> io::Result<()> {
        for (attachment, _) in self.files.attachments()? {
            for indexed in self.files.indexed(&attachment)?.unwrap_or_default() {
                if self.files.is_held_by(indexed.address, &attachment)?
                    && self.files.matches_entry(&indexed)?
                {
                    self.files.free(indexed.address)?;
                }
            }
            self.files.index(&attachment, &[])?;
        }
        self.files.set_features(&[])?;
        // The bridge and its ports did not survive the reboot.
        self.files.set_settings("")?;
        let started = Boot::started()?;
        for address in self.files.addresses()? {
            let since = self.files.written(address)?;
            if since.is_some_and(|since| since < started) {
                match self.files.free(address) {
                    // A directory has no holder and does no harm.
                    Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Returns whether another program reserved any address.
    pub(super) fn has_unindexed(&self) -> Result<bool, StoreError> {
        let io = || self.store.io("list reservations");
        for address in self.files.addresses().map_err(io())? {
            let holder = self.files.holder_if_file(address).map_err(io())?;
            if let Some(holder) = holder
                && !self.is_own(address, &holder)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether there may be reservations that are not in the index, so that only a search
    /// finds them.
    pub(super) fn has_foreign(&self) -> Result<bool, StoreError> {
        let features = self.store.features()?;
        Ok(!self.is_examined
            || features
                .iter()
                .any(|feature| feature == Store::HOST_LOCAL_FEATURE))
    }

    /// Returns whether the index contains the reservation of `address` by `holder`.
    pub(super) fn is_own(&self, address: IpAddr, holder: &Holder) -> Result<bool, StoreError> {
        let is_own = self.files.is_indexed(address, holder);
        is_own.map_err(self.store.io("read the index"))
    }

    pub(super) fn add_feature(&self, feature: &str) -> Result<(), StoreError> {
        let mut features = self.store.features()?;
        if features.iter().any(|known| known == feature) {
            return Ok(());
        }
        features.push(feature.to_owned());
        let written = self.files.set_features(&features);
        written.map_err(self.store.io("write the features"))
    }

    /// Returns the index entry of `attachment`, or `None` if there is none.
    pub(super) fn indexed(
        &self,
        attachment: &Attachment,
    ) -> Result<Option<Vec<IndexedAddress>>, StoreError> {
        let indexed = self.files.indexed(attachment);
        indexed.map_err(self.store.io("read the index"))
    }

    /// Returns those addresses of an index entry whose own files name `attachment`.
    pub(super) fn confirmed(
        &self,
        attachment: &Attachment,
        indexed: &[IndexedAddress],
    ) -> Result<Vec<IndexedAddress>, StoreError> {
        let mut held = Vec::new();
        for indexed in indexed {
            let is_held = self.files.is_held_by(indexed.address, attachment);
            if is_held.map_err(self.store.io("read a reservation"))? {
                held.push(*indexed);
            }
        }
        Ok(held)
    }

    /// Returns the addresses that `attachment` holds, including those that host-local reserved.
    pub(super) fn held(&self, attachment: &Attachment) -> Result<Vec<IndexedAddress>, StoreError> {
        let indexed = self.indexed(attachment)?.unwrap_or_default();
        let mut held = self.confirmed(attachment, &indexed)?;
        if self.has_foreign()? {
            for address in self.search(attachment)? {
                if held.iter().all(|held| held.address != address) {
                    // This time never matches, so the reservation stays one of host-local.
                    let time = Some(UNIX_EPOCH);
                    held.push(IndexedAddress { address, time });
                }
            }
        }
        Ok(held)
    }

    /// Returns the addresses of `attachment` according to the files of all addresses: host-local
    /// writes no index.
    pub(super) fn search(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let found = self.files.search(attachment);
        let found = found.map_err(self.store.io("search for reservations"))?;
        Ok(found.into_iter().collect())
    }

    /// Returns the network if it has features but no reserved addresses. The lock stays held.
    pub(super) fn into_empty_network(self) -> Result<Option<EmptyNetwork<'a>>, StoreError> {
        let features = self.files.features();
        let features = features.map_err(self.store.io("read the features"))?;
        let has_no_reservations = || self.files.has_no_reservations();
        if features.is_empty()
            || !has_no_reservations().map_err(self.store.io("list reservations"))?
        {
            return Ok(None);
        }
        Ok(Some(EmptyNetwork {
            locked: self,
            features,
        }))
    }

    pub(super) fn request(&self, set: &RangeSet, address: IpAddr) -> Result<IpAddr, StoreError> {
        let refuse = |reason| StoreError::Unavailable { address, reason };
        if set.is_gateway(address) {
            return Err(refuse("the subnet's gateway".to_owned()));
        }
        let reserved = |by: &str| {
            Err(refuse(format!(
                "not available in range set {set}: already reserved by {by}"
            )))
        };
        match self.files.holder(address) {
            Ok(None) => Ok(address),
            Ok(Some(holder)) => reserved(&holder.to_string()),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => reserved("a directory"),
            Err(error) => Err(self.store.io("check whether an address is free")(error)),
        }
    }

    pub(super) fn next(&self, i: usize, set: &RangeSet) -> Result<IpAddr, StoreError> {
        let mut size = 0;
        for address in set.round_robin(self.files.last_reserved(i)) {
            match self.files.holder(address) {
                Ok(None) => return Ok(address),
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
                Err(error) => return Err(self.store.io("check whether an address is free")(error)),
            }
            size += 1;
        }
        Err(StoreError::Exhausted {
            set: set.to_string(),
            dir: self.store.dir.clone(),
            size,
            reclaimed: 0,
        })
    }

    /// Writes the `fresh` reservations, each with the index of its range set, and an index entry
    /// with them and those already `held`.
    pub(super) fn write(
        &self,
        attachment: &Attachment,
        fresh: &[(usize, IpAddr)],
        held: &[IndexedAddress],
    ) -> Result<(), StoreError> {
        // The index is written first: a crash after that leaves an entry without a reservation,
        // which does no harm. The entry is also rewritten for reused addresses, because its
        // modification time shows that an ADD is in progress.
        let now = SystemTime::now();
        let entry = |address: &IpAddr| IndexedAddress {
            address: *address,
            time: Some(now),
        };
        let addresses: Vec<_> = fresh.iter().map(|(_, address)| *address).collect();
        let entries: Vec<_> = addresses.iter().map(entry).collect();
        let indexed = self.files.index(attachment, &[held, &entries].concat());
        indexed.map_err(self.store.io("write the index"))?;
        for (set, address) in fresh {
            let written = self.files.reserve(*address, attachment, now);
            let written = written.and_then(|()| self.files.set_last_reserved(*set, *address));
            if let Err(error) = written {
                drop(self.release_addresses(attachment, &addresses, held));
                return Err(self.store.io("write a reservation")(error));
            }
        }
        Ok(())
    }

    /// Releases the `stale` addresses of an attachment, and removes them from its index entry.
    pub(super) fn release_stale(
        &self,
        attachment: &Attachment,
        stale: &[IpAddr],
    ) -> Result<(), StoreError> {
        let mut rest = self.indexed(attachment)?.unwrap_or_default();
        rest.retain(|entry| !stale.contains(&entry.address));
        self.release_addresses(attachment, stale, &rest)
    }

    /// Releases those of `addresses` that the attachment holds, and writes `rest` as its index
    /// entry.
    pub(super) fn release_addresses(
        &self,
        attachment: &Attachment,
        addresses: &[IpAddr],
        rest: &[IndexedAddress],
    ) -> Result<(), StoreError> {
        self.free(attachment, addresses)?;
        let indexed = self.files.index(attachment, rest);
        indexed.map_err(self.store.io("write the index"))
    }

    /// Releases those of `addresses` that the attachment holds, and returns their number.
    pub(super) fn free(
        &self,
        attachment: &Attachment,
        addresses: &[IpAddr],
    ) -> Result<usize, StoreError> {
        let io = || self.store.io("remove a reservation");
        let mut freed = 0;
        for address in addresses {
            if self.files.is_held_by(*address, attachment).map_err(io())? {
                self.files.free(*address).map_err(io())?;
                freed += 1;
            }
        }
        Ok(freed)
    }
}
