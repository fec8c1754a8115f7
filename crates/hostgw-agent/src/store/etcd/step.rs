//! Decides the next step for this node's lease. No I/O.

mod acquire;

use ipnetwork::IpNetwork;

use super::blocked::Blocked;
use super::contents::{Contents, LeaseEntry};
use super::error::Error;
use super::format::{Subnets, Value};
use crate::network::{Addresses, EtcdLease, NetConf};
use acquire::is_full_beside;

/// The facts about this node's lease that decide about the next step.
#[derive(Clone, Debug, Default)]
pub(super) struct LeaseClaim {
    /// The present addresses of its uplink.
    pub(super) addresses: Addresses,
    /// The lease that the node holds.
    pub(super) held: Option<EtcdLease>,
    /// True if the lease was confirmed after the agent started.
    pub(super) is_confirmed: bool,
    /// The ID of the etcd lease that was granted last. A key with it is this node's own, even if no
    /// answer said that it was written.
    pub(super) granted: Option<i64>,
    /// True if the lease has to be renewed.
    pub(super) is_due: bool,
    /// The ID of an etcd lease that has expired.
    pub(super) expired: Option<i64>,
    /// The ID of an etcd lease that replaced ours again after we had restored it: another node with
    /// this node's address is alive.
    pub(super) contested: Option<i64>,
    /// Subnets that this node had before, the most recent first.
    pub(super) previous: Vec<Subnets>,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: the lease is as it should be.
    Keep,
    /// Nothing can be done.
    Blocked(Error),
    /// Keep the lease alive as it is.
    Renew(Renewal),
    /// Write the lease.
    Write(Write),
}

/// A lease that has the right value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Renewal {
    /// Its key, without the prefix.
    pub(super) name: String,
    pub(super) addresses: Addresses,
    /// The ID of etcd's own lease; 0 for a reservation, which needs no renewal.
    pub(super) lease_id: i64,
}

/// A lease to be written, unless someone else changes it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// Its key, without the prefix.
    pub(super) name: String,
    pub(super) value: Value,
    /// The revision of its last change. `None` if the key must not exist.
    pub(super) revision: Option<i64>,
    pub(super) is_reservation: bool,
    /// Another key of ours to delete in the same transaction, with the revision of its last change.
    pub(super) replaces: Option<(String, i64)>,
}

impl From<Blocked> for Step {
    fn from(blocked: Blocked) -> Self {
        Self::Blocked(blocked.into())
    }
}

impl LeaseClaim {
    /// The next step.
    pub(super) fn step(&self, contents: &Contents) -> Step {
        // Even if the configuration does not allow it any more: pods use it.
        if let Some(step) = self.renew_due(contents) {
            return step;
        }
        let network = match contents.network() {
            Ok(network) => network,
            Err(error) => return Step::Blocked(error),
        };
        match self.held.as_ref().filter(|_| self.is_confirmed) {
            Some(held) => self.keep(held, contents, network),
            None => self.acquire(contents, network),
        }
    }

    /// Renews the held lease as it is, if it is due.
    fn renew_due(&self, contents: &Contents) -> Option<Step> {
        let held = self
            .held
            .as_ref()
            .filter(|_| self.is_confirmed && self.is_due)?;
        let entry = contents.get(&held.name)?;
        let value = entry.value.as_ref().ok()?;
        if !self.has_own_address(held, entry) || self.is_foreign(held, entry) {
            return None;
        }
        Some(if self.expired == Some(entry.meta.lease_id) {
            overwrite(&held.name, entry, value.clone())
        } else {
            renew(&held.name, entry, value)
        })
    }

    /// Keeps the held lease.
    fn keep(&self, held: &EtcdLease, contents: &Contents, network: &NetConf) -> Step {
        let name = &held.name;
        let subnets = name.parse::<Subnets>().ok();
        let Some(subnets) = subnets.filter(|subnets| subnets.fit(network)) else {
            return Blocked::NotAllowed(name.clone()).into();
        };
        let Some(entry) = contents.get(name) else {
            return self.recover(held, subnets, contents);
        };
        if let Some(conflict) = self.conflict(held, entry, subnets, contents) {
            return conflict.into();
        }
        // An address of another family may appear after the lease was acquired.
        if self.lacks_family(subnets, network)
            && entry.meta.lease_id != 0
            && !is_full_beside(contents, network, subnets)
        {
            let replaces = Some((name.clone(), entry.meta.modified));
            return self.acquire_new(contents, network, &[subnets], replaces);
        }
        let value = self.value(subnets, entry);
        let is_ours = entry.meta.lease_id == held.id || self.granted == Some(entry.meta.lease_id);
        if is_ours && entry.value.as_ref() == Ok(&value) && self.expired != Some(held.id) {
            return Step::Keep;
        }
        update(name, entry, &value)
    }

    /// Acquires the held subnets again after their key has disappeared.
    fn recover(&self, held: &EtcdLease, subnets: Subnets, contents: &Contents) -> Step {
        match contents.overlapping(subnets, Some(&held.name)) {
            None => {
                let addresses = self.addresses.or(held.addresses);
                create(subnets, Value::new(subnets, addresses), None)
            }
            Some((other, entry)) => Blocked::Lost {
                name: held.name.clone(),
                other: other.to_owned(),
                holder: holder(entry),
            }
            .into(),
        }
    }

    /// Another node that holds the same subnet.
    fn conflict(
        &self,
        held: &EtcdLease,
        entry: &LeaseEntry,
        subnets: Subnets,
        contents: &Contents,
    ) -> Option<Blocked> {
        let name = || held.name.clone();
        if !self.has_own_address(held, entry) {
            return Some(Blocked::TakenOver {
                name: name(),
                holder: holder(entry),
            });
        }
        if self.is_foreign(held, entry) && self.contested == Some(entry.meta.lease_id) {
            return Some(Blocked::SameAddress {
                name: name(),
                address: held.addresses,
            });
        }
        let (other, older) = contents
            .overlapping(subnets, Some(&held.name))
            .filter(|(_, other)| other.meta.created < entry.meta.created)?;
        Some(Blocked::OlderLease {
            name: name(),
            other: other.to_owned(),
            holder: holder(older),
        })
    }

    /// A warning about a family that this node has no subnet of, although the network has it.
    pub(super) fn warning(&self, contents: &Contents) -> Option<String> {
        let network = contents.network().ok()?;
        let missing = self.missing_families(network);
        if !missing.is_empty() {
            return Some(Blocked::NoAddress(missing).to_string());
        }
        let subnets = self.held.as_ref()?.name.parse::<Subnets>().ok()?;
        self.lacks_family(subnets, network).then(|| {
            format!(
                "this node holds only {subnets}: no subnet of the other family is free, or this one is a reservation"
            )
        })
    }

    /// The families that the network has, and this node has no address of.
    fn missing_families(&self, network: &NetConf) -> Vec<&'static str> {
        let has = |ipv4: bool| self.addresses.all().any(|ip| ip.is_ipv4() == ipv4);
        let networks = network.networks();
        let missing = networks.filter(|network| !has(network.is_ipv4()));
        missing.map(family).collect()
    }

    /// True if this node could have a subnet of a family that is not among `subnets`.
    fn lacks_family(&self, subnets: Subnets, network: &NetConf) -> bool {
        let ipv4 = network.ipv4.is_some() && self.addresses.ipv4.is_some();
        let ipv6 = network.ipv6.is_some() && self.addresses.ipv6.is_some();
        ipv4 && subnets.ipv4.is_none() || ipv6 && subnets.ipv6.is_none()
    }

    /// The value that a lease of these subnets should have. An address that this node lacks at the
    /// moment stays in it.
    fn value(&self, subnets: Subnets, entry: &LeaseEntry) -> Value {
        let written = entry.value.as_ref().map(Value::addresses);
        Value::new(subnets, self.addresses.or(written.unwrap_or_default()))
    }

    /// This node's keys, the best first: those with its address before one that it wrote with
    /// another address, reservations before others, and what it had last before others.
    pub(super) fn own_entries<'a>(&self, contents: &'a Contents) -> Vec<(&'a str, &'a LeaseEntry)> {
        let has_address = |entry: &LeaseEntry| {
            let written = entry.value.as_ref().ok().map(Value::addresses);
            written.is_some_and(|written| written.are_of(self.addresses))
        };
        let is_as_written = |name: &str, entry: &LeaseEntry| {
            // Someone may have made a reservation from what this node had.
            entry.meta.lease_id != 0 && self.wrote(name, entry)
        };
        let all = contents.entries();
        let own = all.filter(|(name, entry)| has_address(entry) || is_as_written(name, entry));
        let mut own: Vec<_> = own.collect();
        own.sort_by_key(|(_, entry)| {
            let age = |subnets| self.previous.iter().position(|other| *other == subnets);
            let age = entry.subnets.and_then(age).unwrap_or(usize::MAX);
            (!has_address(entry), entry.meta.lease_id != 0, age)
        });
        own
    }

    /// True if a key is exactly as this node wrote it.
    fn wrote(&self, name: &str, entry: &LeaseEntry) -> bool {
        let addresses = entry.value.as_ref().ok().map(Value::addresses);
        self.held.as_ref().is_some_and(|held| {
            held.name == name
                && addresses == Some(held.addresses)
                && (held.id == entry.meta.lease_id || self.granted == Some(entry.meta.lease_id))
        })
    }

    /// True if a key has this node's address, no matter which program wrote it.
    fn has_own_address(&self, held: &EtcdLease, entry: &LeaseEntry) -> bool {
        let written = entry.value.as_ref().ok().map(Value::addresses);
        written.is_some_and(|written| written == held.addresses || written.are_of(self.addresses))
    }

    /// True if a key with this node's address was written by someone else: another node with the
    /// same address, a restored backup, or people.
    pub(super) fn is_foreign(&self, held: &EtcdLease, entry: &LeaseEntry) -> bool {
        let lease_id = entry.meta.lease_id;
        let is_ours = lease_id == held.id || self.granted == Some(lease_id);
        lease_id != 0 && !is_ours && self.has_own_address(held, entry)
    }
}

fn family(network: IpNetwork) -> &'static str {
    if network.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Gives a key of ours the right value. A reservation stays one.
fn update(name: &str, entry: &LeaseEntry, value: &Value) -> Step {
    if entry.meta.lease_id == 0 && entry.value.as_ref() == Ok(value) {
        return renew(name, entry, value);
    }
    overwrite(name, entry, value.clone())
}

fn create(subnets: Subnets, value: Value, replaces: Option<(String, i64)>) -> Step {
    Step::Write(Write {
        name: subnets.to_string(),
        value,
        revision: None,
        is_reservation: false,
        replaces,
    })
}

fn overwrite(name: &str, entry: &LeaseEntry, value: Value) -> Step {
    Step::Write(Write {
        name: name.to_owned(),
        value,
        revision: Some(entry.meta.modified),
        is_reservation: entry.meta.lease_id == 0,
        replaces: None,
    })
}

fn renew(name: &str, entry: &LeaseEntry, value: &Value) -> Step {
    Step::Renew(Renewal {
        name: name.to_owned(),
        addresses: value.addresses(),
        lease_id: entry.meta.lease_id,
    })
}

/// The node that holds a lease, for messages.
fn holder(entry: &LeaseEntry) -> String {
    match &entry.value {
        Ok(value) => value.addresses().to_string(),
        Err(reason) => format!("an unknown node ({reason})"),
    }
}

#[cfg(test)]
mod tests;
