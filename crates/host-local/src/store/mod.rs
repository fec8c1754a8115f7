//! The store of one network: which attachment holds which address.

mod collect;
mod locked;
mod overlap;
mod reservation;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use util::none_if_not_found;

pub use collect::{Collected, Freed};
pub use overlap::Overlap;
pub use reservation::{EmptyNetwork, Released, Reservation};

use self::locked::Locked;
use crate::attachment::{Attachment, Boot};
use crate::error::StoreError;
use crate::files::Files;
use crate::range::{RangeSet, RangeSets};
use util::FileLock;

/// The reservations of one network.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    boot: Boot,
}

impl Store {
    /// The feature of a network in which host-local has reserved addresses, too.
    pub const HOST_LOCAL_FEATURE: &str = "host-local";

    /// Prefix of the line in the settings that lists the network's subnets.
    pub const SUBNETS: &str = "subnets ";

    /// Returns the store of network `name` under `data_dir`. Does not access the disk.
    #[must_use]
    pub fn new(data_dir: &Path, name: &str, boot: Boot) -> Self {
        Self {
            dir: data_dir.join(name),
            boot,
        }
    }

    /// Returns the directory of the store.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reserves one address of each range set for `attachment`: the requested one if the set
    /// contains it, otherwise the next free one.
    ///
    /// Addresses that the attachment already holds are reused, so that an ADD can be retried after
    /// a crash. They are not released if this ADD fails. Those that no longer fit the range sets
    /// are released when it succeeds.
    pub fn reserve(
        &self,
        attachment: &Attachment,
        sets: &RangeSets,
        requested: &[IpAddr],
    ) -> Result<Reservation<'_>, StoreError> {
        let locked = self.lock()?;
        let held = locked.held(attachment)?;
        let mut addresses = Vec::new();
        let mut fresh = Vec::new();
        for (i, (set, request)) in sets
            .iter()
            .zip(assign_requests(sets, requested)?)
            .enumerate()
        {
            let of_set = |address: &IpAddr| set.range_of(*address).is_some();
            let mut held = held.iter().map(|held| held.address).filter(of_set);
            // Prefer the requested address if the attachment already holds it.
            let held = held
                .clone()
                .find(|held| request == Some(*held))
                .or(held.next());
            let address = match (held, request) {
                (Some(held), None) => held,
                (Some(held), Some(request)) if held == request => request,
                (_, Some(request)) => locked.request(set, request)?,
                (None, None) => locked.next(i, set)?,
            };
            if held != Some(address) {
                fresh.push((i, address));
            }
            let range = set.range_of(address).expect("chosen from the set");
            addresses.push((address, range.clone()));
        }
        locked.write(attachment, &fresh, &held)?;
        Ok(Reservation {
            store: self,
            attachment: attachment.clone(),
            addresses,
            fresh: fresh.into_iter().map(|(_, address)| address).collect(),
            held,
        })
    }

    /// Releases all addresses of `attachment`. Succeeds if it holds none, or if the store does not
    /// exist. Creates no files, so this works on a full disk, and also on a read-only one if there
    /// is nothing to release.
    pub fn release(&self, attachment: &Attachment) -> Result<Released<'_>, StoreError> {
        let Some(locked) = self.lock_existing()? else {
            return Ok(Released::default());
        };
        let incomplete = locked.files.remove_incomplete();
        incomplete.map_err(self.io("remove an incomplete file"))?;
        let indexed = locked.indexed(attachment)?;
        let own = locked.confirmed(attachment, indexed.as_deref().unwrap_or_default())?;
        let mut addresses: Vec<_> = own.iter().map(|own| own.address).collect();
        let mut is_foreign = false;
        if own.is_empty() || locked.has_foreign()? {
            let found = locked.search(attachment)?;
            is_foreign = found.iter().any(|address| !addresses.contains(address));
            addresses = found;
        }
        locked.free(attachment, &addresses)?;
        if indexed.is_some() {
            let removed = locked.files.index(attachment, &[]);
            removed.map_err(self.io("remove an index entry"))?;
        }
        if is_foreign {
            // A hint for later ADDs, which work without it if it cannot be written.
            drop(locked.add_feature(Self::HOST_LOCAL_FEATURE));
        }
        Ok(Released {
            is_foreign,
            addresses,
            empty_network: locked.into_empty_network()?,
        })
    }

    /// Returns the network if it has features but no reserved addresses.
    pub fn empty_network(&self) -> Result<Option<EmptyNetwork<'_>>, StoreError> {
        let locked = self.lock_existing()?;
        locked.map_or(Ok(None), Locked::into_empty_network)
    }

    /// Records a feature: something that the network has on the node besides its attachments, and
    /// that is removed after its last attachment. `feature` is one word, which
    /// [`EmptyNetwork::features`] returns. Call this while an address is reserved, and before the
    /// feature is set up.
    pub fn add_feature(&self, feature: &str) -> Result<(), StoreError> {
        if self.features()?.iter().any(|known| known == feature) {
            return Ok(());
        }
        self.lock()?.add_feature(feature)
    }

    /// Returns the features that were recorded with [`Store::add_feature`].
    pub fn features(&self) -> Result<Vec<String>, StoreError> {
        self.files()
            .features()
            .map_err(self.io("read the features"))
    }

    /// Returns the settings that were recorded last with [`Store::set_settings`], or an empty
    /// string if there are none.
    pub fn settings(&self) -> Result<String, StoreError> {
        self.files()
            .settings()
            .map_err(self.io("read the settings"))
    }

    /// Records the settings with which the network's attachments are configured from now on.
    pub fn set_settings(&self, settings: &str) -> Result<(), StoreError> {
        let locked = self.lock()?;
        let set = locked.files.set_settings(settings);
        set.map_err(self.io("write the settings"))
    }

    /// Waits until no other process holds the lock, at most for the lock timeout.
    pub fn wait_for_lock(&self) -> Result<(), StoreError> {
        let file = self.files().existing_lock_file();
        let file = file.map_err(self.io("open the lock"))?;
        file.map_or(Ok(()), |file| self.lock_file_of(file).map(drop))
    }

    /// Locks the store until the returned value is dropped, for an operation that must not run
    /// twice at the same time.
    pub fn exclusive(&self) -> Result<impl Sized + use<'_>, StoreError> {
        self.lock()
    }

    /// Checks whether the store can be written. Writes nothing.
    ///
    /// Fails if the directory, or the existing parent in which it would be created, is not a
    /// directory or not writable, or if its file system is full.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        let mut dir = self.dir.as_path();
        let failed = |error| self.io("access the store")(error);
        loop {
            match none_if_not_found(fs::metadata(dir)).map_err(failed)? {
                Some(metadata) if metadata.is_dir() => break,
                Some(_) => return Err(failed(io::ErrorKind::NotADirectory.into())),
                None => dir = dir.parent().unwrap_or(Path::new("/")),
            }
        }
        let access = rustix::fs::access(dir, rustix::fs::Access::WRITE_OK);
        access.map_err(|errno| failed(errno.into()))?;
        let space = rustix::fs::statvfs(dir).map_err(|errno| failed(errno.into()))?;
        // A file system without a limit reports a total of 0 blocks or files.
        let is_full = space.f_blocks > 0 && space.f_bfree == 0;
        let is_out_of_files = space.f_files > 0 && space.f_ffree == 0;
        if is_full || is_out_of_files {
            return Err(failed(io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    /// Returns the addresses that `attachment` holds.
    pub fn held(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let empty_network = self.files().has_no_reservations();
        if empty_network.map_err(self.io("list reservations"))? {
            return Ok(Vec::new());
        }
        let held = self.lock()?.held(attachment)?;
        Ok(held.into_iter().map(|held| held.address).collect())
    }

    /// Releases the addresses of attachments that are gone according to `is_gone`, and returns
    /// their number. Checks only our own reservations that are older than `age`: the interface of
    /// an ADD in progress does not exist yet. Reservations that host-local made for an attachment
    /// of the same name are not ours.
    pub fn reclaim(
        &self,
        age: Duration,
        is_gone: impl Fn(&Attachment) -> bool,
    ) -> Result<usize, StoreError> {
        let Some(locked) = self.lock_existing()? else {
            return Ok(0);
        };
        let mut reclaimed = 0;
        let attachments = locked
            .files
            .attachments()
            .map_err(self.io("read the index"))?;
        for (attachment, since) in attachments {
            if !(is_older(since, age) && is_gone(&attachment)) {
                continue;
            }
            for indexed in locked.indexed(&attachment)?.unwrap_or_default() {
                let is_own = locked.files.matches_entry(&indexed);
                if is_own.map_err(self.io("read a reservation"))? {
                    reclaimed += locked.free(&attachment, &[indexed.address])?;
                }
            }
            let removed = locked.files.index(&attachment, &[]);
            removed.map_err(self.io("remove an index entry"))?;
        }
        Ok(reclaimed)
    }

    fn files(&self) -> Files<'_> {
        Files::new(&self.dir)
    }

    /// Takes the lock, creates the directory if it is missing, removes the reservations of an
    /// earlier boot, and examines what other programs changed.
    fn lock(&self) -> Result<Locked<'_>, StoreError> {
        let file = self.files().lock_file().map_err(self.io("open the lock"))?;
        let mut locked = self.lock_file_of(file)?;
        locked.remove_earlier_boots()?;
        if !locked.is_examined {
            if locked.has_unindexed()? {
                locked.add_feature(Self::HOST_LOCAL_FEATURE)?;
            }
            locked.is_examined = true;
        }
        Ok(locked)
    }

    /// Takes the lock of an existing store. Returns `None` if there is no store, or no reservation
    /// in it.
    fn lock_existing(&self) -> Result<Option<Locked<'_>>, StoreError> {
        let files = self.files();
        let file = files.existing_lock_file();
        let file = match file.map_err(self.io("open the lock"))? {
            Some(file) => file,
            None if files
                .has_no_reservations()
                .map_err(self.io("list reservations"))? =>
            {
                return Ok(None);
            }
            // Another program removed the lock file, but not the reservations.
            None => files.lock_file().map_err(self.io("open the lock"))?,
        };
        self.lock_file_of(file).map(Some)
    }

    fn lock_file_of(&self, file: fs::File) -> Result<Locked<'_>, StoreError> {
        let files = self.files();
        let lock = FileLock::take(file).map_err(self.io("lock"))?;
        let lock = lock.map_err(|source| StoreError::Locked {
            path: files.lock_path(),
            source,
        })?;
        let is_changed = files.is_changed().map_err(self.io("access the store"))?;
        Ok(Locked {
            store: self,
            files,
            is_examined: !is_changed,
            _lock: lock,
        })
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        let dir = self.dir.clone();
        move |source| StoreError::Io { doing, dir, source }
    }
}

fn is_older(since: SystemTime, age: Duration) -> bool {
    since.elapsed().is_ok_and(|elapsed| elapsed > age)
}

/// Assigns each requested address to its range set. Sets without a request get `None`.
fn assign_requests(
    sets: &RangeSets,
    requested: &[IpAddr],
) -> Result<Vec<Option<IpAddr>>, StoreError> {
    let mut left = requested.to_vec();
    let mut take = |set: &RangeSet| {
        let wanted = |a: &IpAddr| set.range_of(*a).is_some() || set.is_gateway(*a);
        left.iter().position(wanted).map(|i| left.remove(i))
    };
    let placed = sets.iter().map(&mut take).collect();
    if left.is_empty() {
        Ok(placed)
    } else {
        Err(StoreError::NotInRanges(left))
    }
}

#[cfg(test)]
mod tests;
