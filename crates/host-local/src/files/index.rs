//! The index: which addresses an attachment has.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use util::{hex_128, none_if_not_found};

use super::{Files, INDEX, names, read, remove};
use crate::attachment::{Attachment, Holder};

/// Maximum length of a file name, in bytes.
const NAME_MAX: usize = 255;

/// Prefix of the index entries whose name would be too long, and is hashed. No container ID starts
/// with it.
const HASHED_PREFIX: char = '_';

fn index_key(who: &Attachment) -> String {
    format!("{}:{}", who.container_id(), who.ifname())
}

/// An address in an index entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexedAddress {
    pub(crate) address: IpAddr,
    /// The modification time of the file of the address when this program wrote it. `None` in
    /// entries of versions before 0.2.
    pub(crate) time: Option<SystemTime>,
}

impl IndexedAddress {
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

impl Files<'_> {
    /// Returns whether the reservation of the address is the one that the index entry describes.
    pub(crate) fn matches_entry(&self, indexed: &IndexedAddress) -> io::Result<bool> {
        let Some(time) = indexed.time else {
            return Ok(true);
        };
        let metadata = none_if_not_found(fs::metadata(self.address_path(indexed.address)))?;
        let modified = metadata.map(|metadata| metadata.modified()).transpose()?;
        // File systems with a coarse time resolution round down.
        Ok(modified.is_some_and(|its| its <= time && its + Duration::from_secs(1) > time))
    }

    /// Returns the addresses of `attachment` in the index, or `None` if it has no entry.
    pub(crate) fn indexed(&self, who: &Attachment) -> io::Result<Option<Vec<IndexedAddress>>> {
        let entry = read(&self.index_path(who))?;
        Ok(entry.map(|text| text.lines().filter_map(IndexedAddress::parse).collect()))
    }

    /// Writes the index entry of `attachment`, or removes it if `addresses` is empty.
    pub(crate) fn index(&self, who: &Attachment, addresses: &[IndexedAddress]) -> io::Result<()> {
        let path = self.index_path(who);
        if addresses.is_empty() {
            return remove(&path);
        }
        let key = index_key(who);
        // A name that is too long for a file name is stored in the file.
        let head = if key.len() > NAME_MAX {
            key + "\n"
        } else {
            String::new()
        };
        let lines: String = addresses.iter().map(IndexedAddress::line).collect();
        self.replace(&path, &(head + &lines), None)
    }

    /// Returns all attachments in the index, with the modification times of their entries.
    pub(crate) fn attachments(&self) -> io::Result<Vec<(Attachment, SystemTime)>> {
        let mut all = Vec::new();
        let index = self.dir.join(INDEX);
        for name in names(&index)? {
            let path = index.join(&name);
            let key = if name.starts_with(HASHED_PREFIX) {
                let content = read(&path)?.unwrap_or_default();
                content.lines().next().unwrap_or_default().to_owned()
            } else {
                name
            };
            // Neither an interface name nor a container ID contains a colon.
            let Some((id, ifname)) = key.split_once(':') else {
                continue;
            };
            if let Some(metadata) = none_if_not_found(fs::metadata(&path))? {
                all.push((Attachment::new(id, ifname), metadata.modified()?));
            }
        }
        Ok(all)
    }

    /// Returns whether the index contains the reservation of `address` by `holder`.
    pub(crate) fn is_indexed(&self, address: IpAddr, holder: &Holder) -> io::Result<bool> {
        let Holder::Attachment(attachment) = holder else {
            return Ok(false);
        };
        for indexed in self.indexed(attachment)?.unwrap_or_default() {
            if indexed.address == address {
                return self.matches_entry(&indexed);
            }
        }
        Ok(false)
    }

    fn index_path(&self, who: &Attachment) -> PathBuf {
        let key = index_key(who);
        if key.len() > NAME_MAX {
            let hash = hex_128(&Sha256::digest(&key));
            return self.index_file(&format!("{HASHED_PREFIX}{hash}"));
        }
        self.index_file(&key)
    }
}
