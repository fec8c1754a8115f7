//! The files of one network's directory, in host-local's format, and our index beside them.
//!
//! ```text
//! <dataDir>/<network>/
//!     10.10.1.6               "<container id>\r\n<ifname>": the address is reserved
//!     last_reserved_ip.0      where the round robin of the first range set stands
//!     lock                    flock(2): whoever changes anything holds it
//!     .attachments/
//!         <container id>:<ifname>     that attachment's addresses, a line each
//!         boot_id                     the boot in which the index was last used
//!         marks                       what the network has on the node beside its attachments
//!         settings                    what its attachments were last made with
//! ```
//!
//! The index only says where to look: an address is held when its own file names the
//! attachment. `host-local` walks into `.attachments` and finds nothing there that it takes
//! for a reservation.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::attachment::{Attachment, Holder};

const INDEX: &str = ".attachments";
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
        read(&self.dir.join(INDEX).join(BOOT_ID))
    }

    pub(crate) fn set_boot_id(&self, id: &str) -> io::Result<()> {
        // host-local makes the directory without an index.
        self.create()?;
        fs::write(self.dir.join(INDEX).join(BOOT_ID), id)
    }

    /// What the network has on the node beside its attachments: a word each.
    pub(crate) fn marks(&self) -> io::Result<Vec<String>> {
        let marks = read(&self.dir.join(INDEX).join(MARKS))?.unwrap_or_default();
        Ok(marks.lines().map(str::to_owned).collect())
    }

    pub(crate) fn set_marks(&self, marks: &[String]) -> io::Result<()> {
        let path = self.dir.join(INDEX).join(MARKS);
        if marks.is_empty() {
            return remove(&path);
        }
        fs::write(path, lines(marks))
    }

    /// What the network's attachments were last made with; nothing where nobody said.
    pub(crate) fn settings(&self) -> io::Result<String> {
        let settings = read(&self.dir.join(INDEX).join(SETTINGS))?;
        Ok(settings.unwrap_or_default())
    }

    pub(crate) fn set_settings(&self, settings: &str) -> io::Result<()> {
        fs::write(self.dir.join(INDEX).join(SETTINGS), settings)
    }

    /// Whose `address` is. Under the lock nobody is between making a file and writing it, so a
    /// file that names nobody is what a crash left, and its address free.
    pub(crate) fn holder(&self, address: IpAddr) -> io::Result<Option<Holder>> {
        let content = read_bytes(&self.address_path(address))?;
        Ok(content.and_then(|content| Holder::parse(&content)))
    }

    /// Whether the file of `address` names `attachment`.
    pub(crate) fn is_held_by(&self, address: IpAddr, who: &Attachment) -> io::Result<bool> {
        let holder = self.holder(address)?;
        Ok(holder.is_some_and(|holder| holder.is(who)))
    }

    /// Whether any address is held. Looks no further than the first.
    pub(crate) fn is_vacant(&self) -> io::Result<bool> {
        let entries = match fs::read_dir(self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            other => other?,
        };
        for entry in entries {
            if let Some(address) = address_of(&entry?)
                && self.holder(address)?.is_some()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn reserve(&self, address: IpAddr, who: &Attachment) -> io::Result<()> {
        let path = self.address_path(address);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path)?;
        let content = format!("{}\r\n{}", who.container_id(), who.ifname());
        // Half a file would name nobody and stay for ever.
        file.write_all(content.as_bytes())
            .inspect_err(|_| drop(fs::remove_file(&path)))
    }

    pub(crate) fn free(&self, address: IpAddr) -> io::Result<()> {
        remove(&self.address_path(address))
    }

    /// The addresses that the index gives for `attachment`; nothing without an entry.
    pub(crate) fn indexed(&self, who: &Attachment) -> io::Result<Option<Vec<IpAddr>>> {
        let entry = read(&self.index_path(who))?;
        Ok(entry.map(|text| text.lines().filter_map(|line| line.parse().ok()).collect()))
    }

    /// Writes the index entry of `attachment`; without addresses, removes it.
    pub(crate) fn index(&self, who: &Attachment, addresses: &[IpAddr]) -> io::Result<()> {
        let path = self.index_path(who);
        if addresses.is_empty() {
            return remove(&path);
        }
        fs::write(path, lines(addresses))
    }

    /// Every attachment in the index, with the time of its entry.
    pub(crate) fn attachments(&self) -> io::Result<Vec<(Attachment, SystemTime)>> {
        let mut all = Vec::new();
        for entry in entries(&self.dir.join(INDEX))? {
            let name = entry.file_name();
            // An interface's name has no colon, a container's id neither.
            let Some((id, ifname)) = name.to_str().and_then(|name| name.split_once(':')) else {
                continue;
            };
            all.push((Attachment::new(id, ifname), entry.metadata()?.modified()?));
        }
        Ok(all)
    }

    /// Every address that has a file, with the time of that file.
    pub(crate) fn addresses(&self) -> io::Result<Vec<(IpAddr, SystemTime)>> {
        let mut all = Vec::new();
        for entry in entries(self.dir)? {
            if let Some(address) = address_of(&entry) {
                all.push((address, entry.metadata()?.modified()?));
            }
        }
        Ok(all)
    }

    /// The addresses held by `attachment` according to every address file: the slow way,
    /// for reservations that `host-local` made.
    pub(crate) fn search(&self, who: &Attachment) -> io::Result<BTreeSet<IpAddr>> {
        let mut held = BTreeSet::new();
        for (address, _) in self.addresses()? {
            if self.is_held_by(address, who)? {
                held.insert(address);
            }
        }
        Ok(held)
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
        // One write: a formatted one would be seven.
        options
            .open(self.last_reserved_path(set))?
            .write_all(address.to_string().as_bytes())
    }

    fn last_reserved_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }

    fn address_path(&self, address: IpAddr) -> PathBuf {
        self.dir.join(address.to_string())
    }

    fn index_path(&self, who: &Attachment) -> PathBuf {
        self.dir
            .join(INDEX)
            .join(format!("{}:{}", who.container_id(), who.ifname()))
    }
}

/// The address whose file that is.
fn address_of(entry: &fs::DirEntry) -> Option<IpAddr> {
    entry.file_name().to_str()?.parse().ok()
}

fn lines(items: &[impl ToString]) -> String {
    items.iter().map(|item| item.to_string() + "\n").collect()
}

/// The content of a file; nothing where it is not there.
fn read(path: &Path) -> io::Result<Option<String>> {
    Ok(read_bytes(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The same as it is. Most of these files are read with one call, which is why the length is
/// not asked for first.
fn read_bytes(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; 512];
    let length = file.read(&mut bytes)?;
    bytes.truncate(length);
    if length == 512 {
        file.read_to_end(&mut bytes)?;
    }
    Ok(Some(bytes))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn entries(dir: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
