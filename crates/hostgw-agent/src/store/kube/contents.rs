//! In-memory copy of all Nodes, reduced to what the agent needs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::KubeStoreConfig;
use super::format::{Node, Prefix};
use super::object::Object;
use crate::network::Lease;

/// Every node's lease, and this node's own Node.
pub(super) struct Contents {
    prefix: Prefix,
    uses_internal_ip: bool,
    own_name: String,
    own: Option<Arc<Node>>,
    /// Sorted by the creation time and the name of the Node: of two nodes in conflict, the older
    /// wins.
    leases: BTreeMap<(i64, String), Arc<Lease>>,
    /// Creation time of each Node.
    created: HashMap<String, i64>,
}

impl Contents {
    pub(super) fn new(config: &KubeStoreConfig, own_name: &str) -> Self {
        Self {
            prefix: config.prefix.clone(),
            uses_internal_ip: config.peers_without_annotations,
            own_name: own_name.to_owned(),
            own: None,
            leases: BTreeMap::new(),
            created: HashMap::new(),
        }
    }

    /// Stores a Node. Returns true if this changes anything.
    pub(super) fn put(&mut self, object: Object) -> bool {
        let node = object.node(&self.prefix);
        let lease = node.lease(&self.prefix, self.uses_internal_ip);
        let mut has_changed = false;
        if node.name == self.own_name {
            let own = self.own.as_deref();
            // Our own write is stored before its event arrives.
            if own.is_some_and(|own| own.uid == node.uid && node.version < own.version) {
                return false;
            }
            has_changed = own.is_none_or(|own| !own.differs_only_in_version(&node));
            self.own = Some(Arc::new(node.clone()));
        }
        let old = self.created.insert(node.name.clone(), node.created);
        if let Some(old) = old.filter(|old| *old != node.created) {
            self.leases.remove(&(old, node.name.clone()));
        }
        let key = (node.created, node.name);
        if self.leases.get(&key).is_none_or(|old| **old != lease) {
            self.leases.insert(key, Arc::new(lease));
            has_changed = true;
        }
        has_changed
    }

    /// Removes a Node.
    pub(super) fn delete(&mut self, object: Object) {
        let node = object.node(&self.prefix);
        if node.name == self.own_name {
            self.own = None;
        }
        if let Some(created) = self.created.remove(&node.name) {
            self.leases.remove(&(created, node.name));
        }
    }

    /// Returns this node's own Node, if it exists.
    pub(super) fn own(&self) -> Option<Arc<Node>> {
        self.own.clone()
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.values()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::format::tests::prefix;
    use super::*;

    fn object(name: &str, created: &str, version: u32, ip: &str) -> Object {
        let value = json!({
            "metadata": {
                "name": name, "uid": created, "creationTimestamp": created,
                "resourceVersion": version.to_string(),
                "annotations": {
                    prefix().key("kube-subnet-manager"): "true",
                    prefix().key("backend-type"): "host-gw",
                    prefix().key("public-ip"): ip,
                },
            },
            "spec": {"podCIDR": "10.10.1.0/24"},
        });
        serde_json::from_value(value).expect("a Node")
    }

    fn contents() -> Contents {
        Contents {
            prefix: prefix(),
            uses_internal_ip: false,
            own_name: "worker1".to_owned(),
            own: None,
            leases: BTreeMap::new(),
            created: HashMap::new(),
        }
    }

    fn names(contents: &Contents) -> Vec<&str> {
        contents.leases().map(|lease| lease.node.as_str()).collect()
    }

    #[test]
    fn the_oldest_node_comes_first_and_a_recreated_one_last() {
        let mut contents = contents();
        assert!(contents.put(object("b", "2026-01-01T00:00:00Z", 1, "192.168.2.2")));
        assert!(contents.put(object("a", "2026-01-02T00:00:00Z", 2, "192.168.2.1")));
        assert_eq!(names(&contents), ["b", "a"]);
        assert!(contents.put(object("b", "2026-01-03T00:00:00Z", 3, "192.168.2.2")));
        assert_eq!(names(&contents), ["a", "b"]);
        contents.delete(object("a", "2026-01-02T00:00:00Z", 4, "192.168.2.1"));
        assert_eq!(names(&contents), ["b"]);
    }

    #[test]
    fn a_heartbeat_is_not_a_change() {
        let mut contents = contents();
        assert!(contents.put(object("a", "2026-01-01T00:00:00Z", 1, "192.168.2.1")));
        assert!(!contents.put(object("a", "2026-01-01T00:00:00Z", 2, "192.168.2.1")));
        assert!(contents.put(object("a", "2026-01-01T00:00:00Z", 3, "192.168.2.9")));
        assert!(contents.put(object("worker1", "2026-01-01T00:00:00Z", 4, "192.168.2.1")));
        assert!(!contents.put(object("worker1", "2026-01-01T00:00:00Z", 5, "192.168.2.1")));
    }

    #[test]
    fn an_older_event_does_not_undo_our_own_write() {
        let mut contents = contents();
        contents.put(object("worker1", "2026-01-01T00:00:00Z", 7, "192.168.2.16"));
        assert!(!contents.put(object("worker1", "2026-01-01T00:00:00Z", 6, "192.168.2.1")));
        let lease = contents.leases().next().expect("its lease");
        assert_eq!(lease.hops[0].via.to_string(), "192.168.2.16");
        // A Node that was deleted and created again starts from scratch.
        assert!(contents.put(object("worker1", "2026-01-02T00:00:00Z", 8, "192.168.2.1")));
    }
}
