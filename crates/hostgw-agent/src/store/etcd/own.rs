//! What to do so that this node holds a lease. Pure.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::contents::{Contents, Entry};
use super::format::{Addresses, Subnets, Value};
use crate::net_conf::{NetConf, Space};

/// What this node wants, and what it knows of what it has.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// Its addresses, as its interface has them now.
    pub(super) addresses: Addresses,
    /// The lease that it holds.
    pub(super) held: Option<Held>,
    /// Whether it was seen to hold it since it started.
    pub(super) is_confirmed: bool,
    /// Whether the lease is to be renewed.
    pub(super) is_due: bool,
    /// Subnets that it had before, the best known first.
    pub(super) previous: Vec<Subnets>,
}

/// A lease as this node wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Its key, without the prefix.
    pub(crate) name: String,
    pub(crate) value: Value,
    /// The number of etcd's own lease; 0 for a reservation.
    pub(crate) etcd_lease: i64,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: the lease is held as it should be.
    Hold,
    /// Nothing can be done, and why.
    Stuck(String),
    /// Make the key, which must not be there, in the place of another of ours.
    Take {
        subnets: Subnets,
        value: Value,
        instead_of: Option<(String, i64)>,
    },
    /// Write the key, which must not have changed since this revision.
    Write {
        name: String,
        value: Value,
        revision: i64,
        is_reservation: bool,
    },
}

impl Claim {
    /// What to do next.
    pub(super) fn step(&self, contents: &Contents) -> Step {
        let network = match contents.network() {
            Ok(network) => network,
            Err(reason) => return Step::Stuck(reason),
        };
        let value = match Value::new(self.addresses, network) {
            Ok(value) => value,
            Err(family) => {
                return Step::Stuck(format!(
                    "the interface has no {family} address, and the network needs one"
                ));
            }
        };
        if let Some(step) = self.keep(contents, network, &value) {
            return step;
        }
        let mut ours: Vec<_> = contents
            .entries()
            .filter(|(name, entry)| self.is_ours(name, entry, &value))
            .collect();
        // Of several, the one that we had last.
        ours.sort_by_key(|(_, entry)| {
            let at = |subnets| self.previous.iter().position(|other| *other == subnets);
            entry.subnets.and_then(at).unwrap_or(usize::MAX)
        });
        let fits = |entry: &Entry| entry.subnets.is_some_and(|subnets| subnets.fit(network));
        if let Some((name, entry)) = ours.iter().find(|(_, entry)| fits(entry)) {
            return write(name, entry, value);
        }
        // A reservation is not ours to delete.
        let old = ours.iter().find(|(_, entry)| entry.etcd_lease != 0);
        let instead_of = old.map(|(name, entry)| ((*name).to_owned(), entry.modified));
        let own = instead_of.as_ref().map(|(name, _)| name.as_str());
        let mut previous = self.previous.clone();
        previous.extend(old.and_then(|(_, entry)| entry.subnets));
        match self.choose(contents, network, &previous, own) {
            Ok(subnets) => Step::Take {
                subnets,
                value,
                instead_of,
            },
            Err(space) => Step::Stuck(format!(
                "no subnet is free: all {} from {space} are leased",
                space.count()
            )),
        }
    }

    /// Keeps the lease that is held. Nothing where another is to be looked for.
    fn keep(&self, contents: &Contents, network: &NetConf, value: &Value) -> Option<Step> {
        let held = self.held.as_ref()?;
        let subnets: Subnets = held.name.parse().ok()?;
        if !subnets.fit(network) {
            // Pods use it: it is for people to say when that ends.
            let reason = format!(
                "this node holds {}, which the configuration does not allow any more; drain the node and restart the agent",
                held.name
            );
            return self.is_confirmed.then_some(Step::Stuck(reason));
        }
        let Some(entry) = contents.get(&held.name) else {
            let Some((name, entry)) = contents.overlapping(subnets, None) else {
                return Some(Step::Take {
                    subnets,
                    value: value.clone(),
                    instead_of: None,
                });
            };
            let reason = format!(
                "the lease of {} is lost, and cannot be taken again: {name} is held by {}",
                held.name,
                holder(entry)
            );
            return self.is_confirmed.then_some(Step::Stuck(reason));
        };
        if !self.is_ours(&held.name, entry, value) {
            let reason = format!(
                "the lease of {} was taken over by {}: two nodes have one subnet",
                held.name,
                holder(entry)
            );
            return self.is_confirmed.then_some(Step::Stuck(reason));
        }
        let is_as_written = entry.value.as_ref() == Ok(value);
        if self.is_confirmed && is_as_written && !self.is_due {
            return Some(Step::Hold);
        }
        Some(write(&held.name, entry, value.clone()))
    }

    /// Whether a lease is this node's: it has its address, or is word for word what it wrote
    /// when it had another one.
    fn is_ours(&self, name: &str, entry: &Entry, value: &Value) -> bool {
        let Ok(theirs) = &entry.value else {
            return false;
        };
        let as_written = self.held.as_ref().is_some_and(|held| {
            held.name == name && held.value == *theirs && held.etcd_lease == entry.etcd_lease
        });
        as_written || theirs.is_of(value)
    }

    /// A free subnet of each family: one that the node had before, else one that its address
    /// leads to. Fails with the space that is full.
    fn choose(
        &self,
        contents: &Contents,
        network: &NetConf,
        previous: &[Subnets],
        own: Option<&str>,
    ) -> Result<Subnets, Space> {
        let mut subnets = Subnets {
            ipv4: None,
            ipv6: None,
        };
        for space in network.spaces() {
            let is_free = contents.free(space, own);
            let before = previous.iter().flat_map(|subnets| subnets.all());
            let mut before = before.filter(|subnet| space.fits(*subnet) && is_free(*subnet));
            let count = space.count();
            let begin = self.seed() % count;
            let mut others = (0..count).map(|i| space.subnet((begin + i) % count));
            let subnet = before
                .next()
                .or_else(|| others.find(|subnet| is_free(*subnet)));
            match subnet.ok_or(space)? {
                IpNetwork::V4(v4) => subnets.ipv4 = Some(v4),
                IpNetwork::V6(v6) => subnets.ipv6 = Some(v6),
            }
        }
        Ok(subnets)
    }

    /// Where nodes begin to look. Each somewhere else, so that many new ones at once do not all
    /// want the same.
    fn seed(&self) -> u128 {
        let mut hasher = DefaultHasher::new();
        (self.addresses.ipv4, self.addresses.ipv6).hash(&mut hasher);
        hasher.finish().into()
    }
}

fn write(name: &str, entry: &Entry, value: Value) -> Step {
    Step::Write {
        name: name.to_owned(),
        value,
        revision: entry.modified,
        is_reservation: entry.etcd_lease == 0,
    }
}

fn holder(entry: &Entry) -> String {
    match &entry.value {
        Ok(value) => value.to_string(),
        Err(reason) => format!("somebody unknown ({reason})"),
    }
}
