//! Who holds which address: the store of one network.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::attachment::{Attachment, Boot, Holder};
use crate::error::StoreError;
use crate::files::Files;
use crate::lock;
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
    /// The mark of a network in which host-local reserved addresses, too.
    pub const FOREIGN: &str = "host-local";

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

    /// Gives back every address that `attachment` holds. Holding none is fine, and so is a
    /// store that was never made.
    pub fn release(&self, attachment: &Attachment) -> Result<Released<'_>, StoreError> {
        if !self.dir.exists() {
            return Ok(Released::default());
        }
        let locked = self.lock()?;
        let indexed = locked.held(attachment)?;
        let is_foreign = indexed.is_empty();
        let addresses = if is_foreign {
            locked.search(attachment)?
        } else {
            indexed
        };
        locked.give_back(attachment, &addresses, &[])?;
        let is_foreign = is_foreign && !addresses.is_empty();
        if is_foreign {
            locked.mark(Self::FOREIGN)?;
        }
        Ok(Released {
            is_foreign,
            addresses,
            vacant: locked.into_vacant()?,
        })
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

    /// Keeps every other process from the store while the value lives, for what must not be done
    /// twice at once.
    pub fn exclusive(&self) -> Result<impl Sized + use<'_>, StoreError> {
        self.lock()
    }

    /// Gives back what attachments hold that are not valid, and what files hold that name
    /// nobody. Goes on after a failure, and tells of all.
    pub fn collect(&self, is_valid: impl Fn(&Holder) -> bool) -> Result<Collected<'_>, StoreError> {
        let mut collected = Collected::default();
        if !self.dir.exists() {
            return Ok(collected);
        }
        let locked = self.lock()?;
        let files = &locked.files;
        let addresses = files.addresses().map_err(self.io("list reservations"))?;
        for (address, _) in addresses {
            let holder = match files.holder(address) {
                Ok(Some(holder)) if is_valid(&holder) => {
                    collected.held.push(address);
                    continue;
                }
                Ok(holder) => holder,
                Err(error) => {
                    collected.errors.push(self.io("read a reservation")(error));
                    continue;
                }
            };
            match files.free(address) {
                Ok(()) => collected.freed.push((address, holder)),
                Err(error) => collected
                    .errors
                    .push(self.io("remove a reservation")(error)),
            }
        }
        for (attachment, _) in files.attachments().map_err(self.io("read the index"))? {
            if !is_valid(&Holder::Attachment(attachment.clone()))
                && let Err(error) = files.index(&attachment, &[])
            {
                collected.errors.push(self.io("write the index")(error));
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
    /// lies on a file system that takes no writing.
    pub fn is_usable(&self) -> Result<(), StoreError> {
        let mut dir = self.dir.as_path();
        let failed = |error| self.io("look at the store")(error);
        loop {
            match fs::metadata(dir) {
                Ok(metadata) if metadata.is_dir() => break,
                Ok(_) => return Err(failed(io::ErrorKind::NotADirectory.into())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
            dir = dir.parent().unwrap_or(Path::new("/"));
        }
        let access = rustix::fs::access(dir, rustix::fs::Access::WRITE_OK);
        access.map_err(|errno| failed(errno.into()))
    }

    /// The addresses that `attachment` holds.
    pub fn held(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let locked = self.lock()?;
        let held = locked.held(attachment)?;
        if held.is_empty() {
            return locked.search(attachment);
        }
        Ok(held)
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
        let metadata = file.metadata().map_err(self.io("open the lock"))?;
        let file = lock::lock(file, LOCK_WAIT).map_err(self.io("lock"))?;
        let file = file.ok_or_else(|| StoreError::Locked {
            path: files.lock_path(),
            waited: LOCK_WAIT,
            holder: lock::holder(&metadata),
        })?;
        let locked = Locked {
            store: self,
            files,
            file,
        };
        locked.forget_other_boots()?;
        Ok(locked)
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
    file: File,
}

impl<'a> Locked<'a> {
    fn forget_other_boots(&self) -> Result<(), StoreError> {
        let Store { boot, .. } = self.store;
        let then = self
            .files
            .boot_id()
            .map_err(self.store.io("read the boot id"))?;
        if then.as_deref() == Some(boot.id.as_str()) {
            return Ok(());
        }
        let io = || self.store.io("empty the store of an earlier boot");
        if then.is_some() {
            self.forget_all().map_err(io())?;
        }
        // Whoever holds an address here before us has it from host-local.
        if !self.files.is_vacant().map_err(io())? {
            self.files.create().map_err(io())?;
            self.mark(Store::FOREIGN)?;
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
        self.files.set_marks(&[])?;
        let started = Boot::started()?;
        for (address, since) in self.files.addresses()? {
            if since < started {
                self.files.free(address)?;
            }
        }
        Ok(())
    }

    fn mark(&self, mark: &str) -> Result<(), StoreError> {
        let mut marks = self.store.marks()?;
        if !marks.iter().any(|known| known == mark) {
            marks.push(mark.to_owned());
        }
        let marked = self.files.set_marks(&marks);
        marked.map_err(self.store.io("write the marks"))
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

    /// What the search of all address files finds: host-local knows no index.
    fn search(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        let found = self.files.search(attachment);
        let found = found.map_err(self.store.io("search for reservations"))?;
        Ok(found.into_iter().collect())
    }

    /// The network without attachments, where it was marked; the lock stays taken.
    fn into_vacant(self) -> Result<Option<Vacant<'a>>, StoreError> {
        let marks = self.files.marks();
        let marks = marks.map_err(self.store.io("read the marks"))?;
        let is_vacant = || self.files.is_vacant();
        if marks.is_empty() || !is_vacant().map_err(self.store.io("list reservations"))? {
            return Ok(None);
        }
        Ok(Some(Vacant {
            store: self.store,
            marks,
            _lock: self.file,
        }))
    }

    fn request(&self, set: &RangeSet, address: IpAddr) -> Result<IpAddr, StoreError> {
        let refuse = |reason| StoreError::Unavailable { address, reason };
        if set.is_gateway(address) {
            return Err(refuse("the subnet's gateway".to_owned()));
        }
        let holder = self.files.holder(address);
        let holder = holder.map_err(self.store.io("look for an address"))?;
        if holder.is_none() {
            Ok(address)
        } else {
            let reason = format!("not available in range set {set}: already reserved");
            Err(refuse(reason))
        }
    }

    fn next(&self, i: usize, set: &RangeSet) -> Result<IpAddr, StoreError> {
        let mut size = 0;
        for address in set.round_robin(self.files.last_reserved(i)) {
            let holder = self.files.holder(address);
            let holder = holder.map_err(self.store.io("look for an address"))?;
            if holder.is_none() {
                return Ok(address);
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
        // Half an entry is none: as far as it can be, what was there before is put back.
        let indexed = indexed.inspect_err(|_| drop(self.files.index(attachment, held)));
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

/// What [`Store::collect`] gave back.
#[derive(Debug, Default)]
pub struct Collected<'a> {
    /// The addresses, each with who held it; nobody where the file named nobody.
    pub freed: Vec<(IpAddr, Option<Holder>)>,
    /// The addresses that are held still.
    pub held: Vec<IpAddr>,
    /// What could not be done.
    pub errors: Vec<StoreError>,
    /// The network, when it holds nothing any more.
    pub vacant: Option<Vacant<'a>>,
}

/// A network of which nobody holds an address, and nobody gets one while this value lives.
#[derive(Debug)]
pub struct Vacant<'a> {
    store: &'a Store,
    marks: Vec<String>,
    _lock: File,
}

impl Vacant<'_> {
    /// What the network has on the node still.
    #[must_use]
    pub fn marks(&self) -> &[String] {
        &self.marks
    }

    /// Notes that all of it is gone.
    pub fn unmark(self) -> Result<(), StoreError> {
        let unmarked = self.store.files().set_marks(&[]);
        unmarked.map_err(self.store.io("write the marks"))
    }
}

#[cfg(test)]
mod tests;
