//! What is done to a store under its lock.

use std::io;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Store, Vacant};
use crate::attachment::{Attachment, Boot, Holder};
use crate::error::StoreError;
use crate::files::{Files, Indexed};
use crate::lock::FileLock;
use crate::range::RangeSet;

/// The store while we hold its lock.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    pub(super) store: &'a Store,
    pub(super) files: Files<'a>,
    /// Whether nobody else changed the directory, or what was changed is known.
    pub(super) is_known: bool,
    pub(super) _lock: FileLock,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // What cannot be noted is looked at the next time.
        if self.is_known && self.files.is_changed().unwrap_or_default() {
            drop(self.files.note_changes());
        }
    }
}

impl<'a> Locked<'a> {
    pub(super) fn forget_other_boots(&self) -> Result<(), StoreError> {
        let Store { boot, .. } = self.store;
        let then = self
            .files
            .boot_id()
            .map_err(self.store.io("read the boot id"))?;
        if then.as_deref() == Some(boot.id.as_str()) {
            return Ok(());
        }
        if then.is_some() {
            let io = self.store.io("empty the store of an earlier boot");
            self.forget_all().map_err(io)?;
        }
        self.files
            .set_boot_id(&boot.id)
            .map_err(self.store.io("write the boot id"))
    }

    /// What is in the index is of the earlier boot. What is not was made by host-local, and
    /// may be of this one, where a node went back to it and came again: its time tells.
    pub(super) fn forget_all(&self) -> io::Result<()> {
        for (attachment, _) in self.files.attachments()? {
            for indexed in self.files.indexed(&attachment)?.unwrap_or_default() {
                if self.files.is_held_by(indexed.address, &attachment)?
                    && self.files.is_of_entry(&indexed)?
                {
                    self.files.free(indexed.address)?;
                }
            }
            self.files.index(&attachment, &[])?;
        }
        self.files.set_marks(&[])?;
        // The bridge and the ports that they are of went with the boot.
        self.files.set_settings("")?;
        let started = Boot::started()?;
        for address in self.files.addresses()? {
            let since = self.files.written(address)?;
            if since.is_some_and(|since| since < started) {
                match self.files.free(address) {
                    // Nobody's, and in nobody's way.
                    Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Whether somebody else reserved any address.
    pub(super) fn is_any_foreign(&self) -> Result<bool, StoreError> {
        let io = || self.store.io("list reservations");
        for address in self.files.addresses().map_err(io())? {
            let holder = self.files.holding(address).map_err(io())?;
            if let Some(holder) = holder
                && !self.is_own(address, &holder)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there may be reservations that only a search finds.
    pub(super) fn has_foreign(&self) -> Result<bool, StoreError> {
        let marks = self.store.marks()?;
        Ok(!self.is_known || marks.iter().any(|mark| mark == Store::FOREIGN))
    }

    /// Whether the reservation of `address` by `holder` is in the index.
    pub(super) fn is_own(&self, address: IpAddr, holder: &Holder) -> Result<bool, StoreError> {
        let is_own = self.files.is_indexed(address, holder);
        is_own.map_err(self.store.io("read the index"))
    }

    pub(super) fn mark(&self, mark: &str) -> Result<(), StoreError> {
        let mut marks = self.store.marks()?;
        if marks.iter().any(|known| known == mark) {
            return Ok(());
        }
        marks.push(mark.to_owned());
        let marked = self.files.set_marks(&marks);
        marked.map_err(self.store.io("write the marks"))
    }

    /// What the index gives for `attachment`; nothing without an entry.
    pub(super) fn indexed(
        &self,
        attachment: &Attachment,
    ) -> Result<Option<Vec<Indexed>>, StoreError> {
        let indexed = self.files.indexed(attachment);
        indexed.map_err(self.store.io("read the index"))
    }

    /// Those of `indexed` whose own files name `attachment`.
    pub(super) fn confirmed(
        &self,
        attachment: &Attachment,
        indexed: &[Indexed],
    ) -> Result<Vec<Indexed>, StoreError> {
        let mut held = Vec::new();
        for indexed in indexed {
            let is_held = self.files.is_held_by(indexed.address, attachment);
            if is_held.map_err(self.store.io("read a reservation"))? {
                held.push(*indexed);
            }
        }
        Ok(held)
    }

    /// What `attachment` holds, by whomever it was reserved.
    pub(super) fn held(&self, attachment: &Attachment) -> Result<Vec<Indexed>, StoreError> {
        let indexed = self.indexed(attachment)?.unwrap_or_default();
        let mut held = self.confirmed(attachment, &indexed)?;
        if self.has_foreign()? {
            for address in self.search(attachment)? {
                if held.iter().all(|held| held.address != address) {
                    // Of no time of ours: it stays somebody else's reservation.
                    let time = Some(UNIX_EPOCH);
                    held.push(Indexed { address, time });
                }
            }
        }
        Ok(held)
    }

    /// What the search of all address files finds: host-local knows no index.
    pub(super) fn search(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let found = self.files.search(attachment);
        let found = found.map_err(self.store.io("search for reservations"))?;
        Ok(found.into_iter().collect())
    }

    /// The network without attachments, where it was marked; the lock stays taken.
    pub(super) fn into_vacant(self) -> Result<Option<Vacant<'a>>, StoreError> {
        let marks = self.files.marks();
        let marks = marks.map_err(self.store.io("read the marks"))?;
        let is_vacant = || self.files.is_vacant();
        if marks.is_empty() || !is_vacant().map_err(self.store.io("list reservations"))? {
            return Ok(None);
        }
        Ok(Some(Vacant {
            locked: self,
            marks,
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
            Err(error) => Err(self.store.io("look for an address")(error)),
        }
    }

    pub(super) fn next(&self, i: usize, set: &RangeSet) -> Result<IpAddr, StoreError> {
        let mut size = 0;
        for address in set.round_robin(self.files.last_reserved(i)) {
            match self.files.holder(address) {
                Ok(None) => return Ok(address),
                Ok(Some(_)) => {}
                Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
                Err(error) => return Err(self.store.io("look for an address")(error)),
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

    /// Writes down `fresh` addresses, each with its set's position, beside those `held`.
    pub(super) fn write(
        &self,
        attachment: &Attachment,
        fresh: &[(usize, IpAddr)],
        held: &[Indexed],
    ) -> Result<(), StoreError> {
        // The index first: a crash in between leaves an entry that names nothing. What is taken
        // up again is written again, because its entry's time says that an ADD is in flight.
        let now = SystemTime::now();
        let entry = |address: &IpAddr| Indexed {
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
                drop(self.give_back(attachment, &addresses, held));
                return Err(self.store.io("write a reservation")(error));
            }
        }
        Ok(())
    }

    /// Frees `stale` addresses of an attachment, and takes them out of its index entry.
    pub(super) fn give_up(
        &self,
        attachment: &Attachment,
        stale: &[IpAddr],
    ) -> Result<(), StoreError> {
        let mut rest = self.indexed(attachment)?.unwrap_or_default();
        rest.retain(|entry| !stale.contains(&entry.address));
        self.give_back(attachment, stale, &rest)
    }

    /// Frees those of `addresses` that are the attachment's, and leaves `rest` in its index
    /// entry.
    pub(super) fn give_back(
        &self,
        attachment: &Attachment,
        addresses: &[IpAddr],
        rest: &[Indexed],
    ) -> Result<(), StoreError> {
        self.free(attachment, addresses)?;
        let indexed = self.files.index(attachment, rest);
        indexed.map_err(self.store.io("write the index"))
    }

    /// Frees those of `addresses` that are the attachment's, and says how many.
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
