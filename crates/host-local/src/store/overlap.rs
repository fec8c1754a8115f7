//! One subnet belongs to one network of a node.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::Store;
use crate::attachment::{Attachment, Holder};
use crate::error::StoreError;
use crate::files::{Files, names, unless_absent};
use crate::range::{RangeSet, RangeSets};

/// A reservation of another network in our subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The other network.
    pub network: String,
    /// Its store.
    pub dir: PathBuf,
    /// The address.
    pub address: IpAddr,
    /// Who holds it.
    pub holder: Holder,
}

impl Store {
    /// A reservation of `address` in the store of another network, under the same conditions as
    /// [`Store::overlap`].
    pub fn held_elsewhere(
        &self,
        data_dirs: &[PathBuf],
        address: IpAddr,
        age: Duration,
        is_gone: impl Fn(&str, &Attachment) -> bool,
    ) -> Result<Option<Overlap>, StoreError> {
        for (network, dir) in self.others(data_dirs)? {
            let found = self.held_in(&network, &dir, &[address], age, &is_gone)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// A reservation of another network in a subnet of `sets`: two networks would give out the
    /// same addresses. Looked for in the stores under `data_dirs`.
    ///
    /// What was reserved before this boot is none, and neither is what an attachment of ours holds
    /// for longer than `age` that `is_gone` says is no more.
    pub fn overlap(
        &self,
        data_dirs: &[PathBuf],
        sets: &RangeSets,
        age: Duration,
        is_gone: impl Fn(&str, &Attachment) -> bool,
    ) -> Result<Option<Overlap>, StoreError> {
        let failed = || self.io("look at the stores of other networks");
        let ours: Vec<_> = sets.iter().flat_map(RangeSet::ranges).collect();
        for (network, dir) in self.others(data_dirs)? {
            let files = Files::new(&dir);
            let mut addresses = files.addresses().map_err(failed())?;
            if addresses.is_empty() {
                continue;
            }
            let settings = files.settings().map_err(failed())?;
            let shares = subnets(&settings)
                .any(|theirs| ours.iter().any(|range| meet(range.subnet(), theirs)));
            addresses.retain(|address| {
                shares || ours.iter().any(|range| range.subnet().contains(*address))
            });
            let found = self.held_in(&network, &dir, &addresses, age, &is_gone)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The other networks under `data_dirs`, each with its directory. Our own is none of them,
    /// whatever path leads to it.
    fn others(&self, data_dirs: &[PathBuf]) -> Result<Vec<(String, PathBuf)>, StoreError> {
        let failed = || self.io("look at the stores of other networks");
        let own = identity(&self.dir).map_err(failed())?;
        let mut others = Vec::new();
        for data_dir in data_dirs {
            for network in names(data_dir).map_err(failed())? {
                let dir = data_dir.join(&network);
                if dir != self.dir && identity(&dir).map_err(failed())? != own {
                    others.push((network, dir));
                }
            }
        }
        Ok(others)
    }

    /// The first of `addresses` that another network's store holds for certain.
    fn held_in(
        &self,
        network: &str,
        dir: &Path,
        addresses: &[IpAddr],
        age: Duration,
        is_gone: impl Fn(&str, &Attachment) -> bool,
    ) -> Result<Option<Overlap>, StoreError> {
        let is_gone = |attachment: &Attachment| is_gone(network, attachment);
        for address in addresses {
            let held = Files::new(dir).held_for_certain(*address, &self.boot, age, is_gone);
            let held = held.map_err(self.io("look at the stores of other networks"))?;
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

/// What tells a directory from every other, whatever path leads to it; nothing where there is none.
fn identity(dir: &Path) -> io::Result<Option<(u64, u64)>> {
    let metadata = unless_absent(fs::metadata(dir))?;
    Ok(metadata.map(|metadata| (metadata.dev(), metadata.ino())))
}

/// The subnets that a store's settings list.
fn subnets(settings: &str) -> impl Iterator<Item = IpNetwork> {
    let line = settings
        .lines()
        .find_map(|line| line.strip_prefix(Store::SUBNETS));
    let words = line.into_iter().flat_map(|line| line.split(' '));
    words.filter_map(|subnet| subnet.parse().ok())
}

/// Whether two networks have an address in common.
fn meet(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}
