//! The files in the directory of one network: those in host-local's format, and our index.
//!
//! ```text
//! <dataDir>/<network>/
//!     10.10.1.6               "<container id>\r\n<ifname>": reservation of the address
//!     last_reserved_ip.0      address that was reserved last from the first range set
//!     lock                    flock(2): held for every change
//!     .attachments/
//!         <container id>:<ifname>     addresses of the attachment, one per line, and their times
//!         boot_id                     boot ID of the boot in which the index was last used
//!         marks                       features that the network uses beside its attachments
//!         settings                    settings with which its attachments were last configured
//!         .new                        a file that is being written
//! ```
//!
//! The index is only a hint: an attachment holds an address if the file of the address names it.
//! The index stores the modification time that this program gave to the file of each address. A
//! file with another time is a later reservation, made by `host-local`. `host-local` also walks
//! through `.attachments`, but no file there looks like a reservation to it.
//!
//! Files are replaced with rename(2), so a killed process or a full disk leaves either the old or
//! the new file. `boot_id` gets the modification time of the directory, which reveals later changes
//! by other programs.

mod index;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;
use util::{none_if_not_found, retry_on_eintr};

use crate::attachment::{Attachment, Boot, Holder};

pub(crate) use index::IndexedAddress;

const INDEX: &str = ".attachments";
const NEW: &str = ".new";
const BOOT_ID: &str = "boot_id";
const MARKS: &str = "marks";
const SETTINGS: &str = "settings";

/// The directory of one network. The lock must be held for every method.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    dir: &'a Path,
}

impl<'a> Files<'a> {
    pub(crate) fn new(dir: &'a Path) -> Self {
        Self { dir }
    }

    /// Creates the directory and the index if they are missing.
    pub(crate) fn create(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(self.dir.join(INDEX))
    }

    /// Opens the lock file if it exists. Nothing is written, so this works on a full or read-only
    /// disk.
    pub(crate) fn existing_lock_file(&self) -> io::Result<Option<File>> {
        none_if_not_found(File::open(self.lock_path()))
    }

    /// Opens the lock file. Creates it with host-local's mode if it is missing, and the directory,
    /// too.
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

    /// Returns the ID of the boot in which the index was last used, or `None` if it was never used.
    pub(crate) fn boot_id(&self) -> io::Result<Option<String>> {
        read(&self.index_file(BOOT_ID))
    }

    pub(crate) fn set_boot_id(&self, id: &str) -> io::Result<()> {
        // If host-local created the directory, there is no index yet.
        self.create()?;
        self.replace(&self.index_file(BOOT_ID), id, None)
    }

    /// True if another program changed the directory since [`Files::mark_examined`], or if that was
    /// never called.
    pub(crate) fn is_changed(&self) -> io::Result<bool> {
        let examined = none_if_not_found(fs::metadata(self.index_file(BOOT_ID)))?;
        let examined = examined.map(|metadata| metadata.modified()).transpose()?;
        Ok(examined != Some(fs::metadata(self.dir)?.modified()?))
    }

    /// Records that the current content of the directory has been examined.
    pub(crate) fn mark_examined(&self) -> io::Result<()> {
        let time = fs::metadata(self.dir)?.modified()?;
        File::open(self.index_file(BOOT_ID))?.set_modified(time)
    }

    /// Removes an incomplete file of a killed process.
    pub(crate) fn remove_incomplete(&self) -> io::Result<()> {
        let path = self.index_file(NEW);
        // Check first: on a read-only disk, removing a file fails even if it does not exist.
        match none_if_not_found(fs::symlink_metadata(&path))? {
            Some(_) => remove(&path),
            None => Ok(()),
        }
    }

    /// Returns the features that the network uses on the node beside its attachments, one word
    /// each.
    pub(crate) fn features(&self) -> io::Result<Vec<String>> {
        let features = read(&self.index_file(MARKS))?.unwrap_or_default();
        Ok(features.lines().map(str::to_owned).collect())
    }

    pub(crate) fn set_features(&self, features: &[String]) -> io::Result<()> {
        let path = self.index_file(MARKS);
        if features.is_empty() {
            return remove(&path);
        }
        self.replace(&path, &(features.join("\n") + "\n"), None)
    }

    /// Returns the settings with which the network's attachments were last configured, or an empty
    /// string if none were recorded.
    pub(crate) fn settings(&self) -> io::Result<String> {
        let settings = read(&self.index_file(SETTINGS))?;
        Ok(settings.unwrap_or_default())
    }

    pub(crate) fn set_settings(&self, settings: &str) -> io::Result<()> {
        self.replace(&self.index_file(SETTINGS), settings, None)
    }

    /// Returns the holder of `address`. A file that names no holder is left from a crash, and its
    /// address is free: under the lock, no other process is between creating a file and writing it.
    ///
    /// Fails with [`ErrorKind::IsADirectory`] if a directory has the name of the address. The
    /// address then has no holder, but cannot be reserved either.
    pub(crate) fn holder(&self, address: IpAddr) -> io::Result<Option<Holder>> {
        let content = read_bytes(&self.address_path(address))?;
        Ok(content.and_then(|content| Holder::parse(&content)))
    }

    /// Returns whether the file of `address` names `attachment`.
    pub(crate) fn is_held_by(&self, address: IpAddr, who: &Attachment) -> io::Result<bool> {
        Ok(self
            .holder_if_file(address)?
            .is_some_and(|holder| holder.is(who)))
    }

    /// Returns the holder of `address`, or `None` if a directory has its name.
    pub(crate) fn holder_if_file(&self, address: IpAddr) -> io::Result<Option<Holder>> {
        match self.holder(address) {
            Err(error) if error.kind() == ErrorKind::IsADirectory => Ok(None),
            other => other,
        }
    }

    /// Returns the modification time of the file of `address`, or `None` if there is no file.
    pub(crate) fn written(&self, address: IpAddr) -> io::Result<Option<SystemTime>> {
        let metadata = none_if_not_found(fs::metadata(self.address_path(address)))?;
        metadata.map(|metadata| metadata.modified()).transpose()
    }

    /// Returns whether no address is reserved. Stops at the first one that is.
    pub(crate) fn has_no_reservations(&self) -> io::Result<bool> {
        for address in self.addresses()? {
            if self.holder_if_file(address)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the reservation of `address`, with `time` as the modification time.
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

    /// Returns all addresses that have a file.
    pub(crate) fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let names = names(self.dir)?.into_iter();
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Returns the addresses held by `attachment` according to the files of all addresses. This is
    /// slow, but also finds the reservations that `host-local` made.
    pub(crate) fn search(&self, who: &Attachment) -> io::Result<BTreeSet<IpAddr>> {
        let mut held = BTreeSet::new();
        for address in self.addresses()? {
            if self.is_held_by(address, who)? {
                held.insert(address);
            }
        }
        Ok(held)
    }

    /// Returns the holder of `address` if the reservation is certainly in use: not one of an
    /// earlier boot than `boot`, and not one in our index that is older than `age` and whose
    /// attachment is gone according to `is_gone`.
    pub(crate) fn confirmed_holder(
        &self,
        address: IpAddr,
        boot: &Boot,
        age: Duration,
        is_gone: impl Fn(&Attachment) -> bool,
    ) -> io::Result<Option<Holder>> {
        let Some(holder) = self.holder_if_file(address)? else {
            return Ok(None);
        };
        let since = self.written(address)?.unwrap_or(UNIX_EPOCH);
        let is_old = since.elapsed().is_ok_and(|elapsed| elapsed > age);
        let is_certain = match &holder {
            Holder::Attachment(attachment) if self.is_indexed(address, &holder)? => {
                let is_of_boot = self.boot_id()?.as_ref() == Some(&boot.id);
                is_of_boot && !(is_old && is_gone(attachment))
            }
            // If no boot ID is recorded, compare with the time of the boot.
            _ => since >= Boot::started()?,
        };
        Ok(is_certain.then_some(holder))
    }

    /// Returns the address that was reserved last from range set `set`, where the round robin
    /// continues. A file that cannot be read only means that the round robin starts over.
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
            // If a directory has this name, the round robin only starts over next time.
            Err(error) if error.kind() == ErrorKind::IsADirectory => return Ok(()),
            other => other?,
        };
        // A single write(2); formatting directly into the file would take seven.
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

    /// Atomically replaces the file at `path`, and sets its modification time if one is given.
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

/// Returns the content of a file as text, or `None` if it does not exist.
fn read(path: &Path) -> io::Result<Option<String>> {
    Ok(read_bytes(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Returns the content of a file, or `None` if it does not exist. Does not query the length first:
/// most of these files are read with a single call.
fn read_bytes(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut options = OpenOptions::new();
    // Opening must never block, whatever kind of file it is.
    options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let Some(mut file) = none_if_not_found(options.open(path))? else {
        return Ok(None);
    };
    let mut bytes = vec![0; 512];
    let length = retry_on_eintr(|| file.read(&mut bytes))?;
    bytes.truncate(length);
    if length == 512 {
        file.read_to_end(&mut bytes)?;
    }
    Ok(Some(bytes))
}

fn remove(path: &Path) -> io::Result<()> {
    none_if_not_found(fs::remove_file(path)).map(drop)
}

/// Returns the names in a directory that are valid UTF-8, or none if it does not exist.
pub(crate) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        let Some(entries) = none_if_not_found(fs::read_dir(dir))? else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    retry_on_eintr(list)
}
