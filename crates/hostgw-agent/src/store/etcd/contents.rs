//! What etcd holds of the network, as of one revision.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use etcd_client::{Event, EventType, KeyValue};
use ipnetwork::IpNetwork;

use super::format::{self, Subnets, Value};
use crate::lease::{Lease, Snapshot, overlap};
use crate::net_conf::{NetConf, Space};

/// The configuration and the leases below one prefix.
pub(super) struct Contents {
    /// `/coreos.com/network/`
    prefix: String,
    config: Result<NetConf, String>,
    entries: BTreeMap<String, Entry>,
    /// How far etcd is, as it said last.
    pub(super) revision: i64,
    /// Up to which revision nothing was missed.
    pub(super) seen: i64,
}

/// One lease.
pub(super) struct Entry {
    /// Nothing where the key is none of flannel's.
    pub(super) subnets: Option<Subnets>,
    pub(super) value: Result<Value, String>,
    pub(super) lease: Arc<Lease>,
    pub(super) stamp: Stamp,
}

/// What etcd says of a key beside its value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stamp {
    /// At which revision it was made.
    pub(super) created: i64,
    /// At which it was last written.
    pub(super) modified: i64,
    /// The number of etcd's own lease; 0 where it stays until somebody deletes it, which makes
    /// it a reservation.
    pub(super) etcd_lease: i64,
}

impl Contents {
    /// An empty one.
    pub(super) fn new(prefix: &str) -> Self {
        let config = format!("etcd has no {prefix}config");
        Self {
            prefix: prefix.to_owned(),
            config: Err(config),
            entries: BTreeMap::new(),
            revision: 0,
            seen: 0,
        }
    }

    /// Where everything lies.
    pub(super) fn folder(&self) -> String {
        self.prefix.clone()
    }

    /// The key in etcd of a lease.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}subnets/{name}", self.prefix)
    }

    /// The network's configuration, or what is wrong with it.
    pub(super) fn network(&self) -> Result<&NetConf, String> {
        self.config.as_ref().map_err(Clone::clone)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry))
    }

    /// The lease that has an address in common with one of `subnets`, if any, but for `own`.
    pub(super) fn overlapping(
        &self,
        subnets: Subnets,
        own: Option<&str>,
    ) -> Option<(&str, &Entry)> {
        self.entries().find(|(name, entry)| {
            let theirs = entry.subnets.into_iter().flat_map(Subnets::all);
            let mut theirs =
                theirs.filter(|theirs| subnets.all().any(|ours| overlap(ours, *theirs)));
            own != Some(*name) && theirs.next().is_some()
        })
    }

    /// Which subnets of a space are free, looking at `own` as if it were not there.
    pub(super) fn free<'a>(
        &'a self,
        space: Space,
        own: Option<&str>,
    ) -> impl Fn(IpNetwork) -> bool + 'a {
        let mut taken = HashSet::new();
        let mut odd = Vec::new();
        for (name, entry) in self.entries() {
            let subnets = entry.subnets.filter(|_| own != Some(name)).into_iter();
            for subnet in subnets.flat_map(Subnets::all) {
                if subnet.prefix() == space.length {
                    taken.insert(subnet);
                } else {
                    odd.push(subnet);
                }
            }
        }
        move |subnet| !taken.contains(&subnet) && !odd.iter().any(|other| overlap(subnet, *other))
    }

    /// Everything, for the agent; what is wrong with the configuration otherwise.
    pub(super) fn snapshot(&self) -> Result<Snapshot, String> {
        let mut entries: Vec<_> = self.entries.values().collect();
        entries.sort_by_key(|entry| entry.stamp.created);
        Ok(Snapshot {
            network: *self.network()?,
            leases: entries
                .iter()
                .map(|entry| Arc::clone(&entry.lease))
                .collect(),
        })
    }

    /// Takes in one key with its value.
    pub(super) fn put(&mut self, pair: &KeyValue) {
        let stamp = Stamp {
            created: pair.create_revision(),
            modified: pair.mod_revision(),
            etcd_lease: pair.lease(),
        };
        self.insert(&String::from_utf8_lossy(pair.key()), pair.value(), stamp);
    }

    /// The same, in parts.
    pub(super) fn insert(&mut self, key: &str, value: &[u8], stamp: Stamp) {
        let folder = self.folder();
        let Some(path) = key.strip_prefix(&folder) else {
            return;
        };
        if path == "config" {
            let config = serde_json::from_slice(value);
            self.config = config.map_err(|error| format!("{key}: {error}"));
        } else if let Some(name) = path.strip_prefix("subnets/") {
            let subnets = name.parse().ok();
            let value = serde_json::from_slice(value)
                .map_err(|error| format!("its value is not a lease's: {error}"));
            let entry = Entry {
                subnets,
                lease: Arc::new(format::lease(name, subnets, &value)),
                value,
                stamp,
            };
            self.entries.insert(name.to_owned(), entry);
        }
    }

    /// Takes in that a key is gone.
    pub(super) fn delete(&mut self, key: &[u8]) {
        let key = String::from_utf8_lossy(key);
        let path = key.strip_prefix(&self.folder()).unwrap_or_default();
        if path == "config" {
            self.config = Err(format!("etcd has no {key} any more"));
        } else if let Some(name) = path.strip_prefix("subnets/") {
            self.entries.remove(name);
        }
    }

    /// Takes in what a watch tells.
    pub(super) fn apply(&mut self, event: &Event) {
        let Some(pair) = event.kv() else {
            return;
        };
        self.seen = self.seen.max(pair.mod_revision());
        // What we wrote ourselves is known, and may be newer than what is told of it.
        let key = String::from_utf8_lossy(pair.key());
        let path = self.path("");
        let known = key.strip_prefix(&path).and_then(|name| self.get(name));
        if known.is_some_and(|entry| entry.stamp.modified >= pair.mod_revision()) {
            return;
        }
        match event.event_type() {
            EventType::Put => self.put(pair),
            EventType::Delete => self.delete(pair.key()),
        }
    }
}
