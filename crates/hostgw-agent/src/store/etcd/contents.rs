//! In-memory copy of the network's keys in etcd, as of one revision.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use etcd_client::{Event, EventType, KeyValue};
use ipnetwork::IpNetwork;
use subnet::Subnet;

use super::error::Error;
use super::format::{self, Subnets, Value};
use crate::network::{Lease, NetConf, Snapshot, SubnetPool, excerpt, net_conf};

/// The network configuration and the leases below one prefix.
pub(super) struct Contents {
    /// Key prefix with a slash at its end, such as `/coreos.com/network/`.
    prefix: String,
    config: Result<NetConf, Error>,
    entries: BTreeMap<String, LeaseEntry>,
    /// Newest revision that etcd has reported.
    pub(super) revision: i64,
    /// Revision up to which every event below the prefix was seen.
    pub(super) seen: i64,
}

/// A lease: one key below `subnets/`, and its value.
pub(super) struct LeaseEntry {
    /// Subnets that the key names; `None` if flannel would not accept the key.
    pub(super) subnets: Option<Subnets>,
    pub(super) value: Result<Value, String>,
    pub(super) lease: Arc<Lease>,
    pub(super) meta: KeyMeta,
}

/// Metadata that etcd stores with a key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyMeta {
    /// Revision at which the key was created.
    pub(super) created: i64,
    /// Revision of the last write to the key.
    pub(super) modified: i64,
    /// ID of the etcd lease that the key is attached to; 0 if there is none. Such a key stays until
    /// someone deletes it, which makes it a reservation.
    pub(super) lease_id: i64,
}

impl Contents {
    /// Returns empty contents for `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            config: Err(Error::NoConfig(format!("{prefix}config"))),
            entries: BTreeMap::new(),
            revision: 0,
            seen: 0,
        }
    }

    /// Returns the prefix that all keys of the network have.
    pub(super) fn folder(&self) -> String {
        self.prefix.clone()
    }

    /// Returns the etcd key of the lease with this name.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}subnets/{name}", self.prefix)
    }

    /// Returns the network configuration, or why it is not usable.
    pub(super) fn network(&self) -> Result<&NetConf, Error> {
        self.config.as_ref().map_err(Clone::clone)
    }

    pub(super) fn get(&self, name: &str) -> Option<&LeaseEntry> {
        self.entries.get(name)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &LeaseEntry)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// Returns a lease other than `own` that has an address in common with one of `subnets`, if
    /// there is one.
    pub(super) fn overlapping(
        &self,
        subnets: Subnets,
        own: Option<&str>,
    ) -> Option<(&str, &LeaseEntry)> {
        self.entries().find(|(name, entry)| {
            let mut theirs = self
                .claims(entry)
                .filter(|theirs| subnets.all().any(|ours| overlap(ours, *theirs)));
            own != Some(*name) && theirs.next().is_some()
        })
    }

    /// Returns the subnets of a lease, without those that no node can hold: one lease of the whole
    /// network, or two of its halves, would leave none for any node.
    fn claims(&self, entry: &LeaseEntry) -> impl Iterator<Item = IpNetwork> {
        let subnets = entry.subnets.into_iter().flat_map(Subnets::all);
        subnets.filter(|subnet| {
            let network = self.network().ok();
            let pool = network.and_then(|network| network.pool(*subnet));
            // A subnet is at least two bits longer than the network.
            pool.is_none_or(|pool| subnet.prefix() >= pool.network.prefix() + 2)
        })
    }

    /// Returns a check whether a subnet of the pool is free. The lease `own` is ignored.
    pub(super) fn free<'a>(
        &'a self,
        pool: SubnetPool,
        own: Option<&str>,
    ) -> impl Fn(IpNetwork) -> bool + 'a {
        let mut taken = HashSet::new();
        let mut other_lengths = Vec::new();
        for (name, entry) in self.entries() {
            for subnet in self.claims(entry).filter(|_| own != Some(name)) {
                if subnet.prefix() == pool.length {
                    taken.insert(subnet);
                } else {
                    other_lengths.push(subnet);
                }
            }
            // A subnet around a node's address would cut others off from that node.
            let addresses = entry.value.iter().flat_map(|value| value.addresses().all());
            let around = addresses.filter_map(|address| pool.around(address));
            taken.extend(around);
        }
        move |subnet| {
            !taken.contains(&subnet) && !other_lengths.iter().any(|other| overlap(subnet, *other))
        }
    }

    /// Returns the configuration and all leases, the oldest first, or why the configuration is not
    /// usable.
    pub(super) fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut entries: Vec<_> = self.entries.values().collect();
        entries.sort_by_key(|entry| entry.meta.created);
        Ok(Snapshot {
            network: *self.network()?,
            leases: entries
                .iter()
                .map(|entry| Arc::clone(&entry.lease))
                .collect(),
        })
    }

    /// Stores a key with its value.
    pub(super) fn put(&mut self, pair: &KeyValue) {
        let meta = KeyMeta {
            created: pair.create_revision(),
            modified: pair.mod_revision(),
            lease_id: pair.lease(),
        };
        self.insert(&String::from_utf8_lossy(pair.key()), pair.value(), meta);
    }

    /// Stores a value under its full etcd key. Other keys than `config` and leases are ignored.
    pub(super) fn insert(&mut self, key: &str, value: &[u8], meta: KeyMeta) {
        let folder = self.folder();
        let Some(path) = key.strip_prefix(&folder) else {
            return;
        };
        if path == "config" {
            self.config = net_conf::parse(value).map_err(|source| Error::InvalidConfig {
                key: key.to_owned(),
                source,
            });
        } else if let Some(name) = path.strip_prefix("subnets/") {
            let subnets = name.parse().ok();
            let value = serde_json::from_slice(value)
                .map(|value: Value| Value {
                    backend_type: excerpt(&value.backend_type),
                    ..value
                })
                .map_err(|error| {
                    let error = excerpt(&error.to_string());
                    format!("the value is not a lease: {error}")
                });
            let entry = LeaseEntry {
                subnets,
                lease: Arc::new(format::lease(name, subnets, &value)),
                value,
                meta,
            };
            self.entries.insert(name.to_owned(), entry);
        }
    }

    /// Removes a key.
    pub(super) fn delete(&mut self, key: &[u8]) {
        let key = String::from_utf8_lossy(key);
        let path = key.strip_prefix(&self.folder()).unwrap_or_default();
        if path == "config" {
            self.config = Err(Error::ConfigDeleted(key.into_owned()));
        } else if let Some(name) = path.strip_prefix("subnets/") {
            self.entries.remove(name);
        }
    }

    /// Applies a watch event.
    pub(super) fn apply(&mut self, event: &Event) {
        let Some(pair) = event.kv() else {
            return;
        };
        self.seen = self.seen.max(pair.mod_revision());
        // Our own writes are already stored, and may be newer than the event.
        let key = String::from_utf8_lossy(pair.key());
        let path = self.path("");
        let known = key.strip_prefix(&path).and_then(|name| self.get(name));
        if known.is_some_and(|entry| entry.meta.modified >= pair.mod_revision()) {
            return;
        }
        match event.event_type() {
            EventType::Put => self.put(pair),
            EventType::Delete => self.delete(pair.key()),
        }
    }
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    Subnet::of(a).overlaps(Subnet::of(b))
}
