//! Detection of subnets that two networks of a node share.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use util::none_if_not_found;

use super::Store;
use crate::attachment::{Attachment, Holder};
use crate::error::StoreError;
use crate::files::{Files, names};
use crate::range::{RangeSet, RangeSets};

/// A reservation by another network in one of our subnets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The other network.
    pub network: String,
    /// The directory of its store.
    pub dir: PathBuf,
    /// The reserved address.
    pub address: IpAddr,
    /// The holder of the address.
    pub holder: Holder,
}

impl Store {
    /// Returns a reservation of `address` in the store of another network, under the same
    /// conditions as [`Store::overlap`].
    pub fn held_by_other_network(
        &self,
        data_dirs: &[PathBuf],
        address: IpAddr,
        age: Duration,
        is_gone: impl Fn(&str, &Attachment) -> bool,
    ) -> Result<Option<Overlap>, StoreError> {
        for (network, dir) in self.other_networks(data_dirs)? {
            let found = self.first_held_in(&network, &dir, &[address], age, &is_gone)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Returns a reservation by another network in a subnet of `sets`: both networks would allocate
    /// the same addresses. Searches the stores under `data_dirs`.
    ///
    /// Ignores reservations of an earlier boot, and our own reservations that are older than `age`
    /// and whose attachment is gone according to `is_gone`.
    pub fn overlap(
        &self,
        data_dirs: &[PathBuf],
        sets: &RangeSets,
        age: Duration,
        is_gone: impl Fn(&str, &Attachment) -> bool,
    ) -> Result<Option<Overlap>, StoreError> {
        let failed = || self.io("access the stores of other networks");
        let ours: Vec<_> = sets.iter().flat_map(RangeSet::ranges).collect();
        for (network, dir) in self.other_networks(data_dirs)? {
            let files = Files::new(&dir);
            let mut addresses = files.addresses().map_err(failed())?;
            if addresses.is_empty() {
                continue;
            }
            let settings = files.settings().map_err(failed())?;
            let shares = subnets(&settings)
                .any(|theirs| ours.iter().any(|range| do_overlap(range.subnet(), theirs)));
            addresses.retain(|address| {
                shares || ours.iter().any(|range| range.subnet().contains(*address))
            });
            let found = self.first_held_in(&network, &dir, &addresses, age, &is_gone)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Returns the other networks under `data_dirs`, each with its directory. Leaves out our own,
    /// even if another path leads to it.
    fn other_networks(&self, data_dirs: &[PathBuf]) -> Result<Vec<(String, PathBuf)>, StoreError> {
        let failed = || self.io("access the stores of other networks");
        let own = identity(&self.dir).map_err(failed())?;
        let mut other_networks = Vec::new();
        for data_dir in data_dirs {
            for network in names(data_dir).map_err(failed())? {
                let dir = data_dir.join(&network);
                if dir != self.dir && identity(&dir).map_err(failed())? != own {
                    other_networks.push((network, dir));
                }
            }
        }
        Ok(other_networks)
    }

    /// Returns the first of `addresses` that the store of another network certainly holds.
    fn first_held_in(
        &self,
        network: &str,
        dir: &Path,
        addresses: &[IpAddr],
        age: Duration,
        is_gone: impl Fn(&str, &Attachment) -> bool,
    ) -> Result<Option<Overlap>, StoreError> {
        let is_gone = |attachment: &Attachment| is_gone(network, attachment);
        for address in addresses {
            let held = Files::new(dir).confirmed_holder(*address, &self.boot, age, is_gone);
            let held = held.map_err(self.io("access the stores of other networks"))?;
            if let Some(holder) = held {
                return Ok(Some(Overlap {
                    network: network.to_owned(),
                    dir: dir.to_owned(),
                    address: *address,
                    holder,
                }));
            }
        }
        Ok(None)
    }
}

/// Returns what identifies a directory whatever path leads to it (device and inode), or `None` if
/// it does not exist.
fn identity(dir: &Path) -> io::Result<Option<(u64, u64)>> {
    let metadata = none_if_not_found(fs::metadata(dir))?;
    Ok(metadata.map(|metadata| (metadata.dev(), metadata.ino())))
}

/// Returns the subnets that a store's settings list.
fn subnets(settings: &str) -> impl Iterator<Item = IpNetwork> {
    let line = settings
        .lines()
        .find_map(|line| line.strip_prefix(Store::SUBNETS));
    let words = line.into_iter().flat_map(|line| line.split(' '));
    words.filter_map(|subnet| subnet.parse().ok())
}

/// True if two networks have an address in common.
fn do_overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}
