//! This node: the subnet that it holds, its interface to the other nodes, and its sysctls.

pub(crate) mod forwarding;
mod neighbours;
pub(crate) mod uplink;

use std::collections::BTreeSet;
use std::path::Path;

use ipnetwork::IpNetwork;
use kernel::{Kind, Link};
use subnet_env::SubnetEnv;
use tracing::info;

pub(crate) use forwarding::{Forwarding, disable_ra};
pub(crate) use neighbours::NeighbourStatus;
pub(crate) use uplink::{Interfaces, Selection, Uplink, UplinkHints};

use crate::network::{EtcdLease, Hop, Lease, Snapshot};

/// A snapshot of the cluster, and this node in it.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) snapshot: Snapshot,
    /// This node's lease.
    pub(crate) own: Lease,
    pub(crate) uplink: Uplink,
    /// The lease as etcd has it. `None` with another store.
    pub(crate) etcd_lease: Option<EtcdLease>,
    /// The revision up to which the store was read, if it is worth saving.
    pub(crate) version: Option<String>,
    /// True if this is the saved state of an earlier run, which may be out of date.
    pub(crate) from_saved_state: bool,
}

/// The bridge that the plugin creates unless its configuration names another.
pub(crate) const DEFAULT_BRIDGE: &str = "cni0";

/// Finds the bridges that have pods of the plugin, and the default bridge if it exists.
pub(crate) fn pod_bridges(links: &[Link]) -> Vec<Link> {
    let with_pods: BTreeSet<_> = links.iter().filter_map(bridge_of_pod).collect();
    let is_pod_bridge = |link: &&Link| {
        let is_default = link.kind == Kind::Bridge && link.name == DEFAULT_BRIDGE;
        is_default || with_pods.contains(&link.index)
    };
    links.iter().filter(is_pod_bridge).cloned().collect()
}

/// The index of the bridge that a host veth of the plugin is a port of.
fn bridge_of_pod(link: &Link) -> Option<u32> {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.bridge
        .filter(|_| alias.starts_with(cni::HOST_VETH_ALIAS))
}

impl Node {
    /// True if this node's own lease and uplink are those in `other`, even if the cluster changed.
    pub(crate) fn has_same_identity(&self, other: &Self) -> bool {
        self.own == other.own && self.uplink.is_same(&other.uplink)
    }

    /// The number of other nodes.
    pub(crate) fn other_nodes(&self) -> usize {
        let leases = self.snapshot.leases.iter();
        leases.filter(|lease| lease.node != self.own.node).count()
    }

    /// Returns a subnet of this node that contains the node's own address. A bridge with this subnet would cut
    /// the node off.
    pub(crate) fn subnet_around_node(&self) -> Option<Hop> {
        let mut hops = self.own.hops.iter();
        hops.find(|hop| hop.subnet.contains(hop.via)).copied()
    }

    /// Returns the families and interfaces that this node has to forward.
    pub(crate) fn forwarding<'a>(&'a self, bridges: &'a [Link]) -> Forwarding<'a> {
        Forwarding {
            uplink: &self.uplink.link,
            bridges,
            ipv4: self.own.subnets().any(|subnet| subnet.is_ipv4()),
            ipv6: self.own.subnets().any(|subnet| subnet.is_ipv6()),
        }
    }

    /// Writes the node's subnet file, unless it has the right content already.
    pub(crate) fn write_subnet_file(
        &self,
        path: &Path,
        masquerades: bool,
    ) -> Result<(), subnet_env::Error> {
        let subnets: Vec<_> = self.own.subnets().collect();
        // Pods get no addresses of a family that this node has no subnet of.
        let has_family = |network: &IpNetwork| {
            let mut subnets = subnets.iter();
            subnets.any(|subnet| subnet.is_ipv4() == network.is_ipv4())
        };
        let networks = self.snapshot.network.networks();
        let networks: Vec<_> = networks.filter(has_family).collect();
        let wanted = SubnetEnv::new(&networks, &subnets, self.uplink.link.mtu, masquerades)?;
        if SubnetEnv::read(path).is_ok_and(|present| present == wanted) {
            return Ok(());
        }
        wanted.write(path)?;
        info!("wrote {}", path.display());
        Ok(())
    }
}
