//! The files of one network's directory, in host-local's format, and our index beside them.
//!
//! ```text
//! <dataDir>/<network>/
//!     10.10.1.6               "<container id>\r\n<ifname>": the address is reserved
//!     last_reserved_ip.0      where the round robin of the first range set stands
//!     lock                    flock(2): whoever changes anything holds it
//!     .attachments/
//!         <container id>:<ifname>     that attachment's addresses, a line each, and when it got them
//!         boot_id                     the boot in which the index was last used
//!         marks                       what the network has on the node beside its attachments
//!         settings                    what its attachments were last made with
//!         .new                        a file that is not complete yet
//! ```
//!
//! The index only says where to look: an address is held when its own file names the
//! attachment. The time beside an address in the index is that of the address's file when this
//! program wrote it: a file of another time is of a later reservation, made by `host-local`.
//! `host-local` walks into `.attachments` and finds nothing there that it takes for a reservation.
//!
//! A file appears with its whole content, by rename(2): a process that is killed, or a full disk,
//! leaves the old file or the new one. `boot_id` has the directory's own time, so that a change by
//! somebody else shows.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use crate::attachment::{Attachment, Boot, Holder};

const INDEX: &str = ".attachments";
const NEW: &str = ".new";
const BOOT_ID: &str = "boot_id";
const MARKS: &str = "marks";
const SETTINGS: &str = "settings";

/// The directory of one network. Every method expects the lock to be held.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    dir: &'a Path,
}

impl<'a> Files<'a> {
    pub(crate) fn new(dir: &'a Path) -> Self {
        Self { dir }
    }

    /// Makes the directory and the index where they are missing.
    pub(crate) fn create(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(self.dir.join(INDEX))
    }

    /// The lock file, if it is there. Nothing is written to it, so it may be on a full disk or a
    /// read-only one.
    pub(crate) fn existing_lock_file(&self) -> io::Result<Option<File>> {
        unless_absent(File::open(self.lock_path()))
    }

    /// The lock file, made with host-local's mode, and the directory with it where it is
    /// missing.
    pub(crate) fn lock_file(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o750);
        match options.open(self.lock_path()) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.create()?;
                options.open(self.lock_path())
            }
            other => other,
        }
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The boot in which the index was last used; nothing if it never was.
    pub(crate) fn boot_id(&self) -> io::Result<Option<String>> {
        read(&self.index_file(BOOT_ID))
    }

    pub(crate) fn set_boot_id(&self, id: &str) -> io::Result<()> {
        // host-local makes the directory without an index.
        self.create()?;
        self.replace(&self.index_file(BOOT_ID), id, None)
    }

    /// Whether somebody else changed the directory since [`Files::note_changes`], or nobody noted.
    pub(crate) fn is_changed(&self) -> io::Result<bool> {
        let noted = unless_absent(fs::metadata(self.index_file(BOOT_ID)))?;
        let noted = noted.map(|metadata| metadata.modified()).transpose()?;
        Ok(noted != Some(fs::metadata(self.dir)?.modified()?))
    }

    /// Notes that what the directory holds now is known.
    pub(crate) fn note_changes(&self) -> io::Result<()> {
        let time = fs::metadata(self.dir)?.modified()?;
        File::open(self.index_file(BOOT_ID))?.set_modified(time)
    }

    /// Removes what a killed process did not complete.
    pub(crate) fn remove_incomplete(&self) -> io::Result<()> {
        let path = self.index_file(NEW);
        // Asked for first: on a read-only disk, what is not there cannot be removed either.
        match unless_absent(fs::symlink_metadata(&path))? {
            Some(_) => remove(&path),
            None => Ok(()),
        }
    }

    /// What the network has on the node beside its attachments: a word each.
    pub(crate) fn marks(&self) -> io::Result<Vec<String>> {
        let marks = read(&self.index_file(MARKS))?.unwrap_or_default();
        Ok(marks.lines().map(str::to_owned).collect())
    }

    pub(crate) fn set_marks(&self, marks: &[String]) -> io::Result<()> {
        let path = self.index_file(MARKS);
        if marks.is_empty() {
            return remove(&path);
        }
        self.replace(&path, &(marks.join("\n") + "\n"), None)
    }

    /// What the network's attachments were last made with; nothing where nobody said.
    pub(crate) fn settings(&self) -> io::Result<String> {
        let settings = read(&self.index_file(SETTINGS))?;
        Ok(settings.unwrap_or_default())
    }

    pub(crate) fn set_settings(&self, settings: &str) -> io::Result<()> {
        self.replace(&self.index_file(SETTINGS), settings, None)
    }

    /// Whose `address` is. Under the lock nobody is between making a file and writing it, so a
    /// file that names nobody is what a crash left, and its address free.
    ///
    /// Errors with [`ErrorKind::IsADirectory`] when a directory has the address's name: nobody's,
    /// and not to be had.
    pub(crate) fn holder(&self, address: IpAddr) -> io::Result<Option<Holder>> {
        let content = read_bytes(&self.address_path(address))?;
        Ok(content.and_then(|content| Holder::parse(&content)))
    }

    /// Whether the file of `address` names `attachment`.
    pub(crate) fn is_held_by(&self, address: IpAddr, who: &Attachment) -> io::Result<bool> {
        Ok(self.holding(address)?.is_some_and(|holder| holder.is(who)))
    }

    /// Who holds `address`: nobody holds a directory.
    pub(crate) fn holding(&self, address: IpAddr) -> io::Result<Option<Holder>> {
        match self.holder(address) {
            Err(error) if error.kind() == ErrorKind::IsADirectory => Ok(None),
            other => other,
        }
    }

    /// Whether the reservation of `address` is the one that the index entry `indexed` is of.
    pub(crate) fn is_of_entry(&self, indexed: &Indexed) -> io::Result<bool> {
        let Some(time) = indexed.time else {
            return Ok(true);
        };
        let metadata = unless_absent(fs::metadata(self.address_path(indexed.address)))?;
        let modified = metadata.map(|metadata| metadata.modified()).transpose()?;
        // File systems with coarse times round down.
        Ok(modified.is_some_and(|its| its <= time && its + Duration::from_secs(1) > time))
    }

    /// When the file of `address` was written last; nothing where there is none.
    pub(crate) fn written(&self, address: IpAddr) -> io::Result<Option<SystemTime>> {
        let metadata = unless_absent(fs::metadata(self.address_path(address)))?;
        metadata.map(|metadata| metadata.modified()).transpose()
    }

    /// Whether any address is held. Looks no further than the first.
    pub(crate) fn is_vacant(&self) -> io::Result<bool> {
        for address in self.addresses()? {
            if self.holding(address)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the reservation of `address`, as of `time`.
    pub(crate) fn reserve(
        &self,
        address: IpAddr,
        who: &Attachment,
        time: SystemTime,
    ) -> io::Result<()> {
        let content = format!("{}\r\n{}", who.container_id(), who.ifname());
        self.replace(&self.address_path(address), &content, Some(time))
    }

    pub(crate) fn free(&self, address: IpAddr) -> io::Result<()> {
        remove(&self.address_path(address))
    }

    /// The addresses that the index gives for `attachment`; nothing without an entry.
    pub(crate) fn indexed(&self, who: &Attachment) -> io::Result<Option<Vec<Indexed>>> {
        let entry = read(&self.index_path(who))?;
        Ok(entry.map(|text| text.lines().filter_map(Indexed::parse).collect()))
    }

    /// Writes the index entry of `attachment`; without addresses, removes it.
    pub(crate) fn index(&self, who: &Attachment, addresses: &[Indexed]) -> io::Result<()> {
        let path = self.index_path(who);
        if addresses.is_empty() {
            return remove(&path);
        }
        let key = index_key(who);
        // A name that is too long for a file stands inside.
        let head = if key.len() > LONGEST_NAME {
            key + "\n"
        } else {
            String::new()
        };
        let lines: String = addresses.iter().map(Indexed::line).collect();
        self.replace(&path, &(head + &lines), None)
    }

    /// Every attachment in the index, with the time of its entry.
    pub(crate) fn attachments(&self) -> io::Result<Vec<(Attachment, SystemTime)>> {
        let mut all = Vec::new();
        let index = self.dir.join(INDEX);
        for name in names(&index)? {
            let path = index.join(&name);
            let key = if name.starts_with(HASHED) {
                let content = read(&path)?.unwrap_or_default();
                content.lines().next().unwrap_or_default().to_owned()
            } else {
                name
            };
            // An interface's name has no colon, a container's id neither.
            let Some((id, ifname)) = key.split_once(':') else {
                continue;
            };
            if let Some(metadata) = unless_absent(fs::metadata(&path))? {
                all.push((Attachment::new(id, ifname), metadata.modified()?));
            }
        }
        Ok(all)
    }

    /// Every address that has a file.
    pub(crate) fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let names = names(self.dir)?.into_iter();
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// The addresses held by `attachment` according to every address file: the slow way,
    /// for reservations that `host-local` made.
    pub(crate) fn search(&self, who: &Attachment) -> io::Result<BTreeSet<IpAddr>> {
        let mut held = BTreeSet::new();
        for address in self.addresses()? {
            if self.is_held_by(address, who)? {
                held.insert(address);
            }
        }
        Ok(held)
    }

    /// Who holds `address` for certain: not an attachment of an earlier boot than `boot`, nor one in
    /// the index for longer than `age` that `is_gone` says is no more.
    pub(crate) fn held_for_certain(
        &self,
        address: IpAddr,
        boot: &Boot,
        age: Duration,
        is_gone: impl Fn(&Attachment) -> bool,
    ) -> io::Result<Option<Holder>> {
        let Some(holder) = self.holding(address)? else {
            return Ok(None);
        };
        let since = self.written(address)?.unwrap_or(UNIX_EPOCH);
        let is_old = since.elapsed().is_ok_and(|elapsed| elapsed > age);
        let is_certain = match &holder {
            Holder::Attachment(attachment) if self.is_indexed(address, &holder)? => {
                let is_of_boot = self.boot_id()?.as_ref() == Some(&boot.id);
                is_of_boot && !(is_old && is_gone(attachment))
            }
            // A boot is told from others by the clock, where nobody noted which one it was.
            _ => since >= Boot::started()?,
        };
        Ok(is_certain.then_some(holder))
    }

    /// Whether the index has the reservation of `address` by `holder`.
    pub(crate) fn is_indexed(&self, address: IpAddr, holder: &Holder) -> io::Result<bool> {
        let Holder::Attachment(attachment) = holder else {
            return Ok(false);
        };
        for indexed in self.indexed(attachment)?.unwrap_or_default() {
            if indexed.address == address {
                return self.is_of_entry(&indexed);
            }
        }
        Ok(false)
    }

    /// Where the round robin of range set `set` stands. What cannot be read only loses its turn.
    pub(crate) fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        read(&self.last_reserved_path(set))
            .ok()
            .flatten()?
            .trim()
            .parse()
            .ok()
    }

    pub(crate) fn set_last_reserved(&self, set: usize, address: IpAddr) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = match options.open(self.last_reserved_path(set)) {
            // A directory of that name only costs the round robin its turn.
            Err(error) if error.kind() == ErrorKind::IsADirectory => return Ok(()),
            other => other?,
        };
        // One write: a formatted one would be seven.
        file.write_all(address.to_string().as_bytes())
    }

    fn last_reserved_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }

    fn address_path(&self, address: IpAddr) -> PathBuf {
        self.dir.join(address.to_string())
    }

    fn index_file(&self, name: &str) -> PathBuf {
        self.dir.join(INDEX).join(name)
    }

    fn index_path(&self, who: &Attachment) -> PathBuf {
        let key = index_key(who);
        if key.len() > LONGEST_NAME {
            let hash: [u8; 32] = Sha256::digest(&key).into();
            let first = hash.first_chunk().expect("it has 32 bytes");
            return self.index_file(&format!("{HASHED}{:032x}", u128::from_be_bytes(*first)));
        }
        self.index_file(&key)
    }

    /// Gives the file at `path` this content, and this time where one is named, in one step.
    fn replace(&self, path: &Path, content: &str, time: Option<SystemTime>) -> io::Result<()> {
        let new = self.index_file(NEW);
        let write = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(content.as_bytes())?;
            if let Some(time) = time {
                file.set_modified(time)?;
            }
            fs::rename(&new, path)
        };
        write().inspect_err(|_| drop(fs::remove_file(&new)))
    }
}

/// An address in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub(crate) address: IpAddr,
    /// The time of the address's file, where this program wrote it; entries of versions before
    /// 0.2 have none.
    pub(crate) time: Option<SystemTime>,
}

impl Indexed {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let address = words.next()?.parse().ok()?;
        let time = words.next().and_then(|time| {
            let (seconds, nanoseconds) = time.split_once('.')?;
            let nanoseconds: u32 = nanoseconds.parse().ok().filter(|n| *n < 1_000_000_000)?;
            UNIX_EPOCH.checked_add(Duration::new(seconds.parse().ok()?, nanoseconds))
        });
        Some(Self { address, time })
    }

    fn line(&self) -> String {
        let Self { address, time } = self;
        match time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
            Some(time) => format!("{address} {}.{:09}\n", time.as_secs(), time.subsec_nanos()),
            None => format!("{address}\n"),
        }
    }
}

/// The longest name that file systems take, in bytes.
const LONGEST_NAME: usize = 255;

/// What the name of an index entry begins with that would be too long. No container's id does.
const HASHED: char = '_';

fn index_key(who: &Attachment) -> String {
    format!("{}:{}", who.container_id(), who.ifname())
}

/// The content of a file; nothing where it is not there.
fn read(path: &Path) -> io::Result<Option<String>> {
    Ok(read_bytes(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The same as it is. Most of these files are read with one call, which is why the length is
/// not asked for first.
fn read_bytes(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut options = OpenOptions::new();
    // Whatever stands there, opening it must not wait for anybody.
    options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let Some(mut file) = unless_absent(options.open(path))? else {
        return Ok(None);
    };
    let mut bytes = vec![0; 512];
    let length = uninterrupted(|| file.read(&mut bytes))?;
    bytes.truncate(length);
    if length == 512 {
        file.read_to_end(&mut bytes)?;
    }
    Ok(Some(bytes))
}

fn remove(path: &Path) -> io::Result<()> {
    unless_absent(fs::remove_file(path)).map(drop)
}

/// The names in a directory, as far as they are text; none where it is not there.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        let Some(entries) = unless_absent(fs::read_dir(dir))? else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    uninterrupted(list)
}

/// Nothing where there is no such file: no other error says so.
pub fn unless_absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the error says that there is no such file, nor could there be one of that name.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename
    )
}

/// Calls again while a signal interrupts. A call that is interrupted for ever fails.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const TRIES: usize = 1000;
    for _ in 1..TRIES {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    call()
}
