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
        let failed = || self.io("look at the stores of other networks");
        let own = identity(&self.dir).map_err(failed())?;
        for data_dir in data_dirs {
            for network in names(data_dir).map_err(failed())? {
                let dir = data_dir.join(&network);
                if dir == self.dir || identity(&dir).map_err(failed())? == own {
                    continue;
                }
                let is_gone = |attachment: &Attachment| is_gone(&network, attachment);
                let held = Files::new(&dir).held_for_certain(address, &self.boot, age, is_gone);
                if let Some(holder) = held.map_err(failed())? {
                    return Ok(Some(Overlap {
                        network,
                        dir,
                        address,
                        holder,
                    }));
                }
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
        let own = identity(&self.dir).map_err(failed())?;
        let ours: Vec<_> = sets.iter().flat_map(RangeSet::ranges).collect();
        for data_dir in data_dirs {
            for network in names(data_dir).map_err(failed())? {
                let dir = data_dir.join(&network);
                if dir == self.dir {
                    continue;
                }
                let files = Files::new(&dir);
                let addresses = files.addresses().map_err(failed())?;
                // Another path may lead to our own.
                if addresses.is_empty() || identity(&dir).map_err(failed())? == own {
                    continue;
                }
                let settings = files.settings().map_err(failed())?;
                let shares = subnets(&settings)
                    .any(|theirs| ours.iter().any(|range| meet(range.subnet(), theirs)));
                let is_ours = |address: &IpAddr| {
                    shares || ours.iter().any(|range| range.subnet().contains(*address))
                };
                for address in addresses.into_iter().filter(is_ours) {
                    let is_gone = |attachment: &Attachment| is_gone(&network, attachment);
                    let held = files.held_for_certain(address, &self.boot, age, is_gone);
                    if let Some(holder) = held.map_err(failed())? {
                        return Ok(Some(Overlap {
                            network,
                            dir,
                            address,
                            holder,
                        }));
                    }
                }
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
