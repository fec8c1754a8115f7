//! Who holds which address: the store of one network.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use crate::attachment::{Attachment, Boot};
use crate::error::StoreError;
use crate::files::Files;
use crate::range::{Range, RangeSet, RangeSets};

/// How long to wait for whoever holds the lock. Everything under it takes milliseconds, so a
/// holder this slow is stuck, and the runtime had better hear of it.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The reservations of one network.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    boot: Boot,
}

impl Store {
    /// The store of network `name` under `data_dir`. Touches nothing yet.
    #[must_use]
    pub fn new(data_dir: &Path, name: &str, boot: Boot) -> Self {
        Self {
            dir: data_dir.join(name),
            boot,
        }
    }

    /// Reserves one address of each range set for `attachment`: the requested one where the
    /// set contains it, else the next one that is free.
    ///
    /// Addresses that the attachment holds already are taken up again, so that an ADD can be
    /// retried after a crash; they are not given back when that ADD fails.
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
            let held = held
                .iter()
                .find(|address| set.range_of(**address).is_some());
            let address = match (held, request) {
                (Some(held), None) => *held,
                (Some(held), Some(request)) if *held == request => request,
                (_, Some(request)) => locked.request(set, request)?,
                (None, None) => locked.next(i, set)?,
            };
            if held != Some(&address) {
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

    /// Gives back every address that `attachment` holds, and says which. Holding none is
    /// fine, and so is a store that was never made.
    pub fn release(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let locked = self.lock()?;
        let held = locked.held_or_found(attachment)?;
        locked.give_back(attachment, &held, &[])?;
        Ok(held)
    }

    /// The addresses that `attachment` holds.
    pub fn held(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        self.lock()?.held_or_found(attachment)
    }

    /// Gives back what attachments hold that `is_gone` says are no more, and says how many
    /// addresses that were. Only reservations of ours that are older than `age` are asked
    /// about: an ADD in flight has no interface yet.
    pub fn reclaim(
        &self,
        age: Duration,
        is_gone: impl Fn(&Attachment) -> bool,
    ) -> Result<usize, StoreError> {
        let locked = self.lock()?;
        let mut reclaimed = 0;
        let attachments = locked
            .files
            .attachments()
            .map_err(self.io("read the index"))?;
        for (attachment, since) in attachments {
            let old = since.elapsed().is_ok_and(|elapsed| elapsed > age);
            if old && is_gone(&attachment) {
                let held = locked.held(&attachment)?;
                locked.give_back(&attachment, &held, &[])?;
                reclaimed += held.len();
            }
        }
        Ok(reclaimed)
    }

    fn files(&self) -> Files<'_> {
        Files::new(&self.dir)
    }

    /// Takes the lock, waiting for it no longer than [`LOCK_WAIT`], and empties the store if
    /// the machine was booted since.
    fn lock(&self) -> Result<Locked<'_>, StoreError> {
        let files = self.files();
        let file = files.lock_file().map_err(self.io("open the lock"))?;
        let file = match file.try_lock() {
            Ok(()) => file,
            Err(fs::TryLockError::WouldBlock) => self.wait_for(file)?,
            Err(fs::TryLockError::Error(error)) => return Err(self.io("lock")(error)),
        };
        let locked = Locked {
            store: self,
            files,
            _file: file,
        };
        locked.forget_other_boots()?;
        Ok(locked)
    }

    /// flock(2) has no time limit, and asking again and again would come last in a queue of
    /// many; so a thread waits in the kernel's queue, and we wait for the thread. If it does
    /// not come back in time, the process is about to end, and the thread with it.
    fn wait_for(&self, file: File) -> Result<File, StoreError> {
        let (locked, result) = mpsc::channel();
        std::thread::spawn(move || {
            let outcome = file.lock().map(|()| file);
            drop(locked.send(outcome));
        });
        match result.recv_timeout(LOCK_WAIT) {
            Ok(outcome) => outcome.map_err(self.io("lock")),
            Err(_) => Err(StoreError::Locked {
                path: self.files().lock_path(),
                waited: LOCK_WAIT,
            }),
        }
    }

    fn io(&self, doing: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        let dir = self.dir.clone();
        move |source| StoreError::Io { doing, dir, source }
    }
}

/// The store while we hold its lock.
struct Locked<'a> {
    store: &'a Store,
    files: Files<'a>,
    _file: File,
}

impl Locked<'_> {
    fn forget_other_boots(&self) -> Result<(), StoreError> {
        let Store { boot, .. } = self.store;
        let then = self
            .files
            .boot_id()
            .map_err(self.store.io("read the boot id"))?;
        if then.as_deref() == Some(boot.id.as_str()) {
            return Ok(());
        }
        if then.is_some() {
            self.forget_all()
                .map_err(self.store.io("empty the store of an earlier boot"))?;
        }
        self.files
            .set_boot_id(&boot.id)
            .map_err(self.store.io("write the boot id"))
    }

    /// What is in the index is of the earlier boot. What is not was made by host-local, and
    /// may be of this one, where a node went back to it and came again: its time tells.
    fn forget_all(&self) -> io::Result<()> {
        for (attachment, _) in self.files.attachments()? {
            for address in self.files.indexed(&attachment)?.unwrap_or_default() {
                if self.files.is_held_by(address, &attachment)? {
                    self.files.free(address)?;
                }
            }
            self.files.index(&attachment, &[])?;
        }
        let started = Boot::started()?;
        for (address, since) in self.files.addresses()? {
            if since < started {
                self.files.free(address)?;
            }
        }
        Ok(())
    }

    /// What the index gives for `attachment` and the addresses' own files confirm.
    fn held(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let io = || self.store.io("read a reservation");
        let mut held = Vec::new();
        for address in self
            .files
            .indexed(attachment)
            .map_err(io())?
            .unwrap_or_default()
        {
            if self.files.is_held_by(address, attachment).map_err(io())? {
                held.push(address);
            }
        }
        Ok(held)
    }

    /// The same, or what the search of all address files finds: host-local knows no index.
    fn held_or_found(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let held = self.held(attachment)?;
        if !held.is_empty() {
            return Ok(held);
        }
        let found = self.files.search(attachment);
        let found = found.map_err(self.store.io("search for reservations"))?;
        Ok(found.into_iter().collect())
    }

    fn request(&self, set: &RangeSet, address: IpAddr) -> Result<IpAddr, StoreError> {
        let refuse = |reason| StoreError::Unavailable { address, reason };
        if set.is_gateway(address) {
            return Err(refuse("the subnet's gateway".to_owned()));
        }
        let free = self.files.is_free(address);
        if free.map_err(self.store.io("look for an address"))? {
            Ok(address)
        } else {
            let reason = format!("not available in range set {set}: already reserved");
            Err(refuse(reason))
        }
    }

    fn next(&self, i: usize, set: &RangeSet) -> Result<IpAddr, StoreError> {
        for address in set.round_robin(self.files.last_reserved(i)) {
            if self
                .files
                .is_free(address)
                .map_err(self.store.io("look for an address"))?
            {
                return Ok(address);
            }
        }
        let held = self
            .files
            .addresses()
            .map_err(self.store.io("count addresses"))?
            .len();
        Err(StoreError::Exhausted {
            set: set.to_string(),
            dir: self.store.dir.clone(),
            held,
        })
    }

    /// Writes down `fresh` addresses, each with its set's position, beside those `held`.
    fn write(
        &self,
        attachment: &Attachment,
        fresh: &[(usize, IpAddr)],
        held: &[IpAddr],
    ) -> Result<(), StoreError> {
        // The index first: a crash in between leaves an entry that names nothing. What is taken
        // up again is written again, because its entry's time says that an ADD is in flight.
        let addresses: Vec<_> = fresh.iter().map(|(_, address)| *address).collect();
        let indexed = self.files.index(attachment, &[held, &addresses].concat());
        indexed.map_err(self.store.io("write the index"))?;
        for (set, address) in fresh {
            let written = self.files.reserve(*address, attachment);
            let written = written.and_then(|()| self.files.set_last_reserved(*set, *address));
            if let Err(error) = written {
                drop(self.give_back(attachment, &addresses, held));
                return Err(self.store.io("write a reservation")(error));
            }
        }
        Ok(())
    }

    /// Frees those of `addresses` that are the attachment's, and leaves `rest` in its index
    /// entry.
    fn give_back(
        &self,
        attachment: &Attachment,
        addresses: &[IpAddr],
        rest: &[IpAddr],
    ) -> Result<(), StoreError> {
        let io = || self.store.io("remove a reservation");
        for address in addresses {
            if self.files.is_held_by(*address, attachment).map_err(io())? {
                self.files.free(*address).map_err(io())?;
            }
        }
        self.files.index(attachment, rest).map_err(io())
    }
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
    held: Vec<IpAddr>,
}

impl Reservation<'_> {
    /// Each address with the range that it was taken from, one for each range set.
    #[must_use]
    pub fn addresses(&self) -> &[(IpAddr, Range)] {
        &self.addresses
    }

    /// Makes the reservation outlive this process.
    pub fn keep(mut self) {
        self.fresh.clear();
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        if let Ok(locked) = self.store.lock() {
            drop(locked.give_back(&self.attachment, &self.fresh, &self.held));
        }
    }
}

#[cfg(test)]
mod tests;
