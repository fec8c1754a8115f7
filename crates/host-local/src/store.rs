//! Who holds which address: the store of one network.

mod locked;
mod overlap;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use overlap::Overlap;

use self::locked::Locked;
use crate::attachment::{Attachment, Boot, Holder};
use crate::error::StoreError;
use crate::files::{Files, Indexed, unless_absent};
use crate::lock::FileLock;
use crate::range::{Range, RangeSet, RangeSets};

/// The reservations of one network.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    boot: Boot,
}

impl Store {
    /// The mark of a network in which host-local reserved addresses, too.
    pub const FOREIGN: &str = "host-local";

    /// What begins the line of the settings that lists the network's subnets.
    pub const SUBNETS: &str = "subnets ";

    /// The store of network `name` under `data_dir`. Touches nothing yet.
    #[must_use]
    pub fn new(data_dir: &Path, name: &str, boot: Boot) -> Self {
        Self {
            dir: data_dir.join(name),
            boot,
        }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reserves one address of each range set for `attachment`: the requested one where the
    /// set contains it, else the next one that is free.
    ///
    /// Addresses that the attachment holds already are taken up again, so that an ADD can be
    /// retried after a crash; they are not given back when that ADD fails. Those that fit no more are
    /// given back when it succeeds.
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
        for (i, (set, request)) in sets.iter().zip(place(sets, requested)?).enumerate() {
            let of_set = |address: &IpAddr| set.range_of(*address).is_some();
            let mut held = held.iter().map(|held| held.address).filter(of_set);
            // The requested one, if it is among them.
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

    /// Gives back every address that `attachment` holds. Holding none is fine, and so is a
    /// store that was never made. Creates nothing: it works on a full disk, and on a read-only one
    /// where nothing is held.
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
            // A note for later ADDs, which do without it where it cannot be written.
            drop(locked.mark(Self::FOREIGN));
        }
        Ok(Released {
            is_foreign,
            addresses,
            vacant: locked.into_vacant()?,
        })
    }

    /// The network, where it is marked and holds no address.
    pub fn vacant(&self) -> Result<Option<Vacant<'_>>, StoreError> {
        let locked = self.lock_existing()?;
        locked.map_or(Ok(None), Locked::into_vacant)
    }

    /// Notes that the network has something on the node beside its attachments, to be taken
    /// away with the last of them: a word, to be found by [`Vacant::marks`]. To be noted while
    /// an address is reserved, before the thing is made.
    pub fn mark(&self, mark: &str) -> Result<(), StoreError> {
        if self.marks()?.iter().any(|known| known == mark) {
            return Ok(());
        }
        self.lock()?.mark(mark)
    }

    /// What was noted by [`Store::mark`].
    pub fn marks(&self) -> Result<Vec<String>, StoreError> {
        self.files().marks().map_err(self.io("read the marks"))
    }

    /// What [`Store::set_settings`] said last; nothing where it never did.
    pub fn settings(&self) -> Result<String, StoreError> {
        self.files()
            .settings()
            .map_err(self.io("read the settings"))
    }

    /// Notes what the network's attachments are made with from now on.
    pub fn set_settings(&self, settings: &str) -> Result<(), StoreError> {
        let locked = self.lock()?;
        let set = locked.files.set_settings(settings);
        set.map_err(self.io("write the settings"))
    }

    /// Waits until nobody holds the lock, or for as long as any lock is waited for.
    pub fn wait_for_lock(&self) -> Result<(), StoreError> {
        let file = self.files().existing_lock_file();
        let file = file.map_err(self.io("open the lock"))?;
        file.map_or(Ok(()), |file| self.lock_by(file).map(drop))
    }

    /// Keeps every other process from the store while the value lives, for what must not be done
    /// twice at once.
    pub fn exclusive(&self) -> Result<impl Sized + use<'_>, StoreError> {
        self.lock()
    }

    /// Gives back what attachments hold that are not valid, and what files hold that name
    /// nobody. `make_free` takes an address that host-local reserved from whoever has it, and says
    /// whether nobody has it now. Goes on after a
    /// failure, and tells of all.
    pub fn collect(
        &self,
        is_valid: impl Fn(&Holder) -> bool,
        make_free: impl Fn(IpAddr) -> bool,
    ) -> Result<Collected<'_>, StoreError> {
        let mut collected = Collected::default();
        let Some(locked) = self.lock_existing()? else {
            return Ok(collected);
        };
        let files = &locked.files;
        let errors = &mut collected.errors;
        let incomplete = files.remove_incomplete();
        errors.extend(
            incomplete
                .map_err(self.io("remove an incomplete file"))
                .err(),
        );
        let addresses = files.addresses().map_err(self.io("list reservations"))?;
        for address in addresses {
            let holder = match files.holder(address) {
                Ok(holder) => holder,
                // It is not known to be free.
                Err(error) => {
                    errors.push(self.io("read a reservation")(error));
                    collected.held.push(address);
                    continue;
                }
            };
            let outcome = match &holder {
                Some(holder) if is_valid(holder) => Ok(None),
                Some(holder) => locked
                    .is_own(address, holder)
                    .map(|is_own| (is_own || make_free(address)).then_some(!is_own)),
                None => Ok(Some(false)),
            };
            let outcome = outcome.and_then(|freed| {
                if freed.is_some() {
                    let removed = files.free(address);
                    removed.map_err(self.io("remove a reservation"))?;
                }
                Ok(freed)
            });
            match outcome {
                Ok(Some(is_foreign)) => collected.freed.push(Freed {
                    address,
                    holder,
                    is_foreign,
                }),
                Ok(None) => collected.held.push(address),
                Err(error) => {
                    errors.push(error);
                    collected.held.push(address);
                }
            }
        }
        for (attachment, _) in files.attachments().map_err(self.io("read the index"))? {
            if !is_valid(&Holder::Attachment(attachment.clone()))
                && let Err(error) = files.index(&attachment, &[])
            {
                errors.push(self.io("write the index")(error));
            }
        }
        if collected.held.is_empty() && collected.errors.is_empty() {
            collected.vacant = locked.into_vacant()?;
        }
        Ok(collected)
    }

    /// Whether the store could be written. Writes nothing.
    ///
    /// Errors when the directory, or the one that it would be made in, is not a directory or
    /// lies on a file system that is full or takes no writing.
    pub fn is_usable(&self) -> Result<(), StoreError> {
        let mut dir = self.dir.as_path();
        let failed = |error| self.io("look at the store")(error);
        loop {
            match unless_absent(fs::metadata(dir)).map_err(failed)? {
                Some(metadata) if metadata.is_dir() => break,
                Some(_) => return Err(failed(io::ErrorKind::NotADirectory.into())),
                None => dir = dir.parent().unwrap_or(Path::new("/")),
            }
        }
        let access = rustix::fs::access(dir, rustix::fs::Access::WRITE_OK);
        access.map_err(|errno| failed(errno.into()))?;
        let space = rustix::fs::statvfs(dir).map_err(|errno| failed(errno.into()))?;
        // A file system without a limit says that it has no blocks, or no files, at all.
        let is_full = space.f_blocks > 0 && space.f_bfree == 0;
        let is_out_of_files = space.f_files > 0 && space.f_ffree == 0;
        if is_full || is_out_of_files {
            return Err(failed(io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    /// The addresses that `attachment` holds.
    pub fn held(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let vacant = self.files().is_vacant();
        if vacant.map_err(self.io("list reservations"))? {
            return Ok(Vec::new());
        }
        let held = self.lock()?.held(attachment)?;
        Ok(held.into_iter().map(|held| held.address).collect())
    }

    /// Gives back what attachments hold that `is_gone` says are no more, and says how many
    /// addresses that were. Only reservations of ours that are older than `age` are asked
    /// about: an ADD in flight has no interface yet. What host-local reserved for an attachment
    /// of the same name is not ours.
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
                let is_own = locked.files.is_of_entry(&indexed);
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

    /// Takes the lock, makes the directory where it is missing, empties the store if the machine
    /// was booted since, and looks at what somebody else changed.
    fn lock(&self) -> Result<Locked<'_>, StoreError> {
        let file = self.files().lock_file().map_err(self.io("open the lock"))?;
        let mut locked = self.lock_by(file)?;
        locked.forget_other_boots()?;
        if !locked.is_known {
            if locked.is_any_foreign()? {
                locked.mark(Self::FOREIGN)?;
            }
            locked.is_known = true;
        }
        Ok(locked)
    }

    /// Takes the lock of a store that is there; nothing where there is none, or nothing in it.
    fn lock_existing(&self) -> Result<Option<Locked<'_>>, StoreError> {
        let files = self.files();
        let file = files.existing_lock_file();
        let file = match file.map_err(self.io("open the lock"))? {
            Some(file) => file,
            None if files.is_vacant().map_err(self.io("list reservations"))? => return Ok(None),
            // Whoever removed the lock left reservations.
            None => files.lock_file().map_err(self.io("open the lock"))?,
        };
        self.lock_by(file).map(Some)
    }

    fn lock_by(&self, file: fs::File) -> Result<Locked<'_>, StoreError> {
        let files = self.files();
        let lock = FileLock::take(file).map_err(self.io("lock"))?;
        let lock = lock.map_err(|source| StoreError::Locked {
            path: files.lock_path(),
            source,
        })?;
        let is_changed = files.is_changed().map_err(self.io("look at the store"))?;
        Ok(Locked {
            store: self,
            files,
            is_known: !is_changed,
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

/// One requested address, or none, for each set.
fn place(sets: &RangeSets, requested: &[IpAddr]) -> Result<Vec<Option<IpAddr>>, StoreError> {
    let mut left = requested.to_vec();
    let mut take = |set: &RangeSet| {
        let wanted = |a: &IpAddr| set.range_of(*a).is_some() || set.is_gateway(*a);
        left.iter().position(wanted).map(|i| left.remove(i))
    };
    let placed = sets.iter().map(&mut take).collect();
    if left.is_empty() {
        Ok(placed)
    } else {
        Err(StoreError::Unplaced(left))
    }
}

/// Addresses reserved for an attachment. Dropped without [`Reservation::keep`], it gives back
/// what it took, and only that.
#[derive(Debug)]
#[must_use = "a reservation that is dropped is given back"]
pub struct Reservation<'a> {
    store: &'a Store,
    attachment: Attachment,
    addresses: Vec<(IpAddr, Range)>,
    fresh: Vec<IpAddr>,
    held: Vec<Indexed>,
}

impl Reservation<'_> {
    /// Each address with the range that it was taken from, one for each range set.
    #[must_use]
    pub fn addresses(&self) -> &[(IpAddr, Range)] {
        &self.addresses
    }

    /// Those of its addresses that the attachment held before.
    #[must_use]
    pub fn taken_up(&self) -> Vec<IpAddr> {
        let addresses = self.addresses.iter().map(|(address, _)| *address);
        addresses
            .filter(|address| !self.fresh.contains(address))
            .collect()
    }

    /// Makes the reservation outlive this process.
    pub fn keep(mut self) {
        self.fresh.clear();
        let is_taken_up = |held: &IpAddr| self.addresses.iter().any(|(address, _)| address == held);
        let held = self.held.iter().map(|held| held.address);
        let stale: Vec<_> = held.filter(|held| !is_taken_up(held)).collect();
        // What cannot be given back now, DEL gives back.
        if !stale.is_empty()
            && let Ok(Some(locked)) = self.store.lock_existing()
        {
            drop(locked.give_up(&self.attachment, &stale));
        }
    }
}

impl<'a> Reservation<'a> {
    /// Gives back what was taken, and gives the network when those were its last addresses.
    pub fn give_back(mut self) -> Result<Option<Vacant<'a>>, StoreError> {
        self.take_back()
    }

    fn take_back(&mut self) -> Result<Option<Vacant<'a>>, StoreError> {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() {
            return Ok(None);
        }
        let Some(locked) = self.store.lock_existing()? else {
            return Ok(None);
        };
        locked.give_back(&self.attachment, &fresh, &self.held)?;
        locked.into_vacant()
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        drop(self.take_back());
    }
}

/// What [`Store::release`] gave back.
#[derive(Debug, Default)]
pub struct Released<'a> {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether they were reserved by host-local and not by us.
    pub is_foreign: bool,
    /// The network, when those were its last.
    pub vacant: Option<Vacant<'a>>,
}

/// An address that [`Store::collect`] gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// The address.
    pub address: IpAddr,
    /// Who held it; nobody where the file named nobody.
    pub holder: Option<Holder>,
    /// Whether it was reserved by host-local and not by us.
    pub is_foreign: bool,
}

/// What [`Store::collect`] gave back.
#[derive(Debug, Default)]
pub struct Collected<'a> {
    /// What was given back.
    pub freed: Vec<Freed>,
    /// The addresses that are held still, or may be.
    pub held: Vec<IpAddr>,
    /// What could not be done.
    pub errors: Vec<StoreError>,
    /// The network, when it holds nothing any more.
    pub vacant: Option<Vacant<'a>>,
}

/// A network of which nobody holds an address, and nobody gets one while this value lives.
#[derive(Debug)]
pub struct Vacant<'a> {
    locked: Locked<'a>,
    marks: Vec<String>,
}

impl Vacant<'_> {
    /// What the network has on the node still.
    #[must_use]
    pub fn marks(&self) -> &[String] {
        &self.marks
    }

    /// Notes that all of it is gone.
    pub fn unmark(self) -> Result<(), StoreError> {
        let unmarked = self.locked.files.set_marks(&[]);
        unmarked.map_err(self.locked.store.io("write the marks"))
    }
}

#[cfg(test)]
mod tests;
