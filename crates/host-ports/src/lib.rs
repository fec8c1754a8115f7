//! Ports of the node that lead to pods.
//!
//! All mappings are in one table of `nf_tables`, in hash maps: the work for an ADD and for a packet
//! does not depend on how many there are. A [`Record`] of each attachment's mappings is kept in `/run`.
//! It is written before the kernel gets the mappings and removed after the kernel lost them, so that
//! a mapping never outlives its record. The agent writes the table again from the records if somebody
//! deletes it.
//!
//! All changes are made under one lock, [`HostPorts`].

mod elements;
mod error;
mod flows;
mod layout;
mod mapping;
pub mod portmap;
mod record;
mod restore;
mod table;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use kernel::nftables::{self, Attempt, Pending};
use kernel::{Link, Rtnl};
use util::FileLock;

use elements::Elements;
pub use error::Error;
use error::{files, refused};
pub use mapping::{InvalidRequest, Mapping, PortRequest, Protocol, Unresolvable, resolve};
use record::Written;
pub use record::{Masquerade, Record};
pub use restore::{Restored, has_unused_table};
pub use table::TABLE;

/// Number of attempts if the table changes at the same time.
const MAX_TRIES: usize = 8;

/// The host ports of the node, locked against other requests.
pub struct HostPorts<'a> {
    host: &'a Rtnl,
    #[expect(dead_code, reason = "dropping it releases the lock")]
    lock: FileLock,
}

/// Removes the mappings that lead to these addresses, unless they are those of `veth`. Whoever gets
/// an address calls this before the address is in use: no port must lead to the wrong pod, whatever
/// happened to the pod that had the address before.
pub fn free_addresses(
    host: &Rtnl,
    addresses: impl IntoIterator<Item = IpAddr>,
    veth: &str,
) -> Result<(), Error> {
    for address in addresses {
        let owner = record::veth_of(address).map_err(files("read the link of an address"))?;
        if let Some(owner) = owner.filter(|owner| owner != veth) {
            HostPorts::lock(host)?.free_address(address, &owner)?;
        }
    }
    Ok(())
}

/// The sysctl that lets a bridge route loopback addresses: answers to `127.0.0.1` come in by it.
#[must_use]
pub fn route_localnet(bridge: &str) -> String {
    format!("net/ipv4/conf/{bridge}/route_localnet")
}

/// Returns whether a port was mapped since the boot.
pub fn has_records() -> Result<bool, Error> {
    Ok(record::veths()
        .map_err(files("list the records"))?
        .is_some())
}

/// Removes the mappings of a host veth. Returns `None` if it has none.
pub fn remove(host: &Rtnl, veth: &str) -> Result<Option<Removed>, Error> {
    if !record::exists(veth).map_err(files("look up a record"))? {
        return Ok(None);
    }
    HostPorts::lock(host)?.remove(veth).map(Some)
}

/// Mappings that no new connection uses any more. [`finish`](Removed::finish) waits for the kernel, so
/// that links are best deleted before.
#[derive(Default)]
#[must_use = "without `finish`, flows to the pod stay"]
pub struct Removed {
    pending: Option<Pending>,
    /// The record, if flows to its ports have to be deleted.
    record: Option<Record>,
    /// True if the `portmap` plugin opened the ports, and rules of it may be left.
    was_moved: bool,
}

impl Removed {
    /// True if the `portmap` plugin opened the ports, and rules of it may be left.
    #[must_use]
    pub fn was_moved(&self) -> bool {
        self.was_moved
    }

    /// Deletes the flows to the ports. Until then, the pod's addresses must not be used again.
    pub fn finish(self) -> Result<(), Error> {
        drop(self.pending);
        let Some(record) = self.record else {
            return Ok(());
        };
        let deleted = flows::delete_current(&record.mappings);
        deleted.map_err(refused("delete the flows of a host port"))?;
        record.remove().map_err(files("remove a record"))
    }
}

/// Removes the mappings of a host veth that has no record, which is only the case if somebody deleted
/// it. This reads all mappings of the node.
pub fn remove_without_record(host: &Rtnl, veth: &str) -> Result<(), Error> {
    if nftables::is_available().is_err() {
        return Ok(());
    }
    if !table::exists().map_err(refused("look up the table of host ports"))? {
        return Ok(());
    }
    let _ports = HostPorts::lock(host)?;
    remove_elements(|owner| owner == veth)
}

impl<'a> HostPorts<'a> {
    /// Waits for the lock.
    pub fn lock(host: &'a Rtnl) -> Result<Self, Error> {
        let lock = FileLock::open(Path::new(record::LOCK)).map_err(files("open the lock"))?;
        let lock = lock.map_err(Error::Locked)?;
        Ok(Self { host, lock })
    }

    /// The same for a caller that creates nothing. `None` if no port was mapped since the boot.
    pub fn lock_existing(host: &'a Rtnl) -> Result<Option<Self>, Error> {
        let lock = FileLock::open_existing(Path::new(record::LOCK));
        let lock = lock.map_err(files("open the lock"))?.transpose();
        let lock = lock.map_err(Error::Locked)?;
        Ok(lock.map(|lock| Self { host, lock }))
    }

    /// Adds the mappings of a record, in one transaction. Mappings that the attachment had before are
    /// replaced. On failure, nothing is left.
    ///
    /// Fails with [`Error::InUse`] if a pod whose host veth exists has one of the ports. Ports of pods
    /// that are gone are taken over. A port that leads to another interface of the same container
    /// stays there: Multus requests the pod's ports for each of its networks.
    pub fn add(&self, record: &Record) -> Result<(), Error> {
        self.remove(&record.veth)?.finish()?;
        record.write().map_err(files("write a record"))?;
        self.add_to_kernel(record).inspect_err(|_| {
            drop(self.remove(&record.veth).and_then(Removed::finish));
        })
    }

    fn add_to_kernel(&self, record: &Record) -> Result<(), Error> {
        let mut record = Cow::Borrowed(record);
        let failed = refused("add mappings to the table of host ports");
        let mut last = None;
        for _ in 0..MAX_TRIES {
            match table::addition(&record).try_commit("commit the transaction") {
                Attempt::Applied => {
                    let older = flows::delete_older(self.host, &record.mappings);
                    return older.map_err(refused("delete older flows to a host port"));
                }
                Attempt::Refused(error) if error.is_gone() => {
                    // The table, or the chain of this subnet, does not exist yet.
                    self.rebuild(&|other| other.veth != record.veth, Some(&record))?;
                    last = Some(error);
                }
                Attempt::Refused(error) if error.is_taken() => {
                    let kept = self.take_over(&record)?;
                    if !kept.is_empty() {
                        let mappings = &mut record.to_mut().mappings;
                        mappings.retain(|mapping| !kept.contains(mapping));
                        if mappings.is_empty() {
                            return record.remove().map_err(files("remove a record"));
                        }
                        record.write().map_err(files("write a record"))?;
                    }
                    last = Some(error);
                }
                Attempt::Refused(error) => return Err(failed(error)),
                // It may have been applied.
                Attempt::Unknown(error) => {
                    remove_elements(|owner| owner == record.veth)?;
                    last = Some(error);
                }
            }
        }
        Err(failed(last.expect("every attempt failed")))
    }

    /// Removes the mappings of pods that are gone and have a port of the record. Fails if such a pod
    /// exists. Returns the mappings whose ports lead to other interfaces of the same container.
    fn take_over(&self, record: &Record) -> Result<Vec<Mapping>, Error> {
        let links = self.links()?;
        let mut has_owner = false;
        let mut kept = Vec::new();
        for mapping in &record.mappings {
            let taken = table::taken_by(mapping).map_err(refused("find who has a host port"))?;
            let Some(element) = taken else {
                continue;
            };
            has_owner = true;
            let veth = table::owner_of(&element);
            let owner = read(&veth)?;
            if veth != record.veth && is_alive(&links, &veth, owner.as_ref()) {
                if owner
                    .as_ref()
                    .is_some_and(|owner| owner.container_id == record.container_id)
                {
                    kept.push(mapping.clone());
                    continue;
                }
                let pod = owner.as_ref().map(|owner| owner.owner().to_owned());
                let id = owner.map(|owner| owner.container_id);
                return Err(Error::InUse {
                    mapping: mapping.clone(),
                    owner: pod.unwrap_or_else(|| element.comment.clone()),
                    container_id: id.unwrap_or_else(|| "unknown".to_owned()),
                    veth,
                });
            }
            match owner {
                Some(owner) if veth != record.veth => self.remove(&owner.veth)?.finish()?,
                _ => remove_elements(|other| other == veth)?,
            }
        }
        // What is left is of pods without a record, or of nobody: it goes with a new table.
        if !has_owner {
            self.remove_unowned()?;
            self.rebuild(&|other| other.veth != record.veth, Some(record))?;
        }
        Ok(kept)
    }

    /// Removes the mappings of a host veth, and then its record. Succeeds if there are none.
    pub fn remove(&self, veth: &str) -> Result<Removed, Error> {
        if !record::exists(veth).map_err(files("look up a record"))? {
            return Ok(Removed::default());
        }
        let Some(record) = read(veth)? else {
            // It cannot be read. The comments in the table say what belongs to it.
            remove_elements(|owner| owner == veth)?;
            record::remove(veth).map_err(files("remove a record"))?;
            return Ok(Removed::default());
        };
        let mut removed = Removed {
            was_moved: record.host_link.is_some(),
            ..Removed::default()
        };
        if !record.is_closed {
            removed.pending = remove_from_kernel(&record)?;
        }
        if record
            .mappings
            .iter()
            .any(|mapping| mapping.protocol.is_silent())
        {
            let closed = record.close().map_err(files("write a record"))?;
            removed.record = Some(closed);
        } else {
            record.remove().map_err(files("remove a record"))?;
        }
        Ok(removed)
    }

    fn free_address(&self, address: IpAddr, owner: &str) -> Result<(), Error> {
        self.remove(owner)?.finish()?;
        record::remove_link(address).map_err(files("remove the link of an address"))
    }

    /// Compares the mappings of an attachment with its record and with the kernel. Returns the first
    /// difference.
    pub fn find_difference(&self, expected: &Record) -> Result<Option<String>, Error> {
        let failed = refused("compare the host ports");
        if expected.mappings.is_empty() {
            return Ok(None);
        }
        let record = read(&expected.veth)?.filter(|record| !record.is_closed);
        let own = record
            .as_ref()
            .map_or(&[][..], |record| &record.mappings[..]);
        for mapping in expected
            .mappings
            .iter()
            .filter(|mapping| !own.contains(mapping))
        {
            if !is_open_for(mapping, &expected.container_id)? {
                return Ok(Some(if record.is_some() {
                    format!("host port {mapping} is not mapped")
                } else {
                    "the record of its host ports is missing".to_owned()
                }));
            }
        }
        let Some(record) = record else {
            return Ok(None);
        };
        let Some(present) = Elements::present().map_err(&failed)? else {
            return Ok(Some(format!("nf_tables table inet {TABLE} is missing")));
        };
        for mapping in &record.mappings {
            let single = Record {
                mappings: vec![mapping.clone()],
                ..record.clone()
            };
            if !Elements::of(&single).are_in(&present) {
                return Ok(Some(format!("host port {mapping} is not in the table")));
            }
        }
        let what = format!("nf_tables table inet {TABLE} was changed");
        Ok((!is_intact()?).then_some(what))
    }

    /// Returns whether the host veth of a record exists.
    pub fn is_alive(&self, record: &Record) -> Result<bool, Error> {
        Ok(is_alive(&self.links()?, &record.veth, Some(record)))
    }

    fn links(&self) -> Result<Vec<Link>, Error> {
        self.host.links().map_err(refused("list links"))
    }
}

/// True if the port of a mapping leads to an interface of this container.
fn is_open_for(mapping: &Mapping, container_id: &str) -> Result<bool, Error> {
    let element = table::taken_by(mapping).map_err(refused("find who has a host port"))?;
    let Some(element) = element else {
        return Ok(false);
    };
    let owner = read(&table::owner_of(&element))?;
    Ok(owner.is_some_and(|owner| owner.container_id == container_id))
}

/// True if a host veth exists: under its name, or under another one with the alias of its record.
fn is_alive(links: &[Link], veth: &str, record: Option<&Record>) -> bool {
    links.iter().any(|link| {
        let alias = link.alias.as_deref().unwrap_or_default();
        let rest = record.and_then(|record| alias.strip_prefix(&record.alias));
        let name = record.and_then(|record| record.host_link.as_deref());
        link.name == name.unwrap_or(veth)
            || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    })
}

/// Removes the elements whose host veth is selected, whatever records there are.
fn remove_elements(is_selected: impl Fn(&str) -> bool) -> Result<(), Error> {
    let failed = refused("remove mappings");
    let mut last = None;
    for _ in 0..MAX_TRIES {
        let present = Elements::present().map_err(&failed)?;
        let Some(mut unwanted) = present else {
            return Ok(());
        };
        unwanted.retain(&is_selected);
        if unwanted.is_empty() {
            return Ok(());
        }
        let transaction = table::deletion(&unwanted).map_err(&failed)?;
        match transaction.commit("commit") {
            Err(error) if error.is_gone() => last = Some(error),
            other => return other.map_err(failed),
        }
    }
    Err(failed(last.expect("every attempt failed")))
}

/// True if nobody changed the table's chains since they were written.
fn is_intact() -> Result<bool, Error> {
    let saved = Written::saved().map_err(files("read the table's fingerprint"))?;
    let saved = saved.map(|written| written.fingerprint);
    let found = table::fingerprint().map_err(refused("read the table of host ports"))?;
    Ok(found.is_some() && found == saved)
}

/// Reads the record of a host veth. `None` if there is none, or if it is invalid.
fn read(veth: &str) -> Result<Option<Record>, Error> {
    match Record::read(veth) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        other => other.map_err(files("read a record")),
    }
}

/// All records that can be read, by the names of their host veths.
fn records() -> Result<BTreeMap<String, Record>, Error> {
    let veths = record::veths().map_err(files("list the records"))?;
    let mut records = BTreeMap::new();
    for veth in veths.into_iter().flatten() {
        let record = read(&veth)?;
        records.extend(record.map(|record| (veth, record)));
    }
    Ok(records)
}

fn remove_from_kernel(record: &Record) -> Result<Option<Pending>, Error> {
    let removed = table::removal(record).and_then(|removal| removal.commit_pending("commit"));
    match removed {
        Ok(pending) => Ok(Some(pending)),
        // Somebody changed or deleted the table, or the reply was lost.
        Err(error) if error.is_gone() || error.may_have_leftovers() => {
            remove_elements(|owner| owner == record.veth)?;
            Ok(None)
        }
        Err(error) => Err(refused("remove mappings of a pod")(error)),
    }
}
