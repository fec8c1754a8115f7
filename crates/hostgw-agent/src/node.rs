//! This node: what it holds, by which interface it reaches the others, and what follows for it.

use std::collections::BTreeSet;
use std::path::Path;

use kernel::{Link, Rtnl, sysctl};
use subnet_env::SubnetEnv;
use tracing::info;

use crate::error::chain;
use crate::lease::{Held, Lease, Snapshot};
use crate::peers::{Own, Peer, judge};
use crate::uplink::Uplink;

/// A snapshot in which this node was found, and this node.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) snapshot: Snapshot,
    pub(crate) own: Lease,
    pub(crate) uplink: Uplink,
    /// The lease as etcd has it.
    pub(crate) held: Option<Held>,
    /// Whether this is what was kept of an earlier run: it may be outdated.
    pub(crate) is_kept: bool,
}

/// Has bridges with pods hear no router: a pod could be the node's. In a container, which may not say
/// so, the plugin does at each ADD.
pub(crate) fn protect_from_routers(kernel: &Rtnl) -> Result<(), String> {
    for bridge in bridges_of_pods(kernel).map_err(|error| chain(&error))? {
        if !kernel
            .hears_routers(&bridge)
            .map_err(|error| chain(&error))?
        {
            continue;
        }
        match kernel.ignore_routers(&bridge) {
            Err(error) if error.is_read_only() => continue,
            other => other.map_err(|error| chain(&error))?,
        }
        info!("set accept_ra of {} to 0: pods are on it", bridge.name);
        // Where the node itself has a port on it, what a router said is left to age.
        let ports = kernel.ports(&bridge).map_err(|error| chain(&error))?;
        if ports.iter().all(Link::leads_elsewhere) {
            let forgotten = kernel.forget_routers(&bridge);
            forgotten.map_err(|error| chain(&error))?;
        }
    }
    Ok(())
}

/// The bridges with pods of the plugin's.
fn bridges_of_pods(kernel: &Rtnl) -> Result<Vec<Link>, kernel::Error> {
    let mut links = kernel.links()?;
    let bridges: BTreeSet<_> = links.iter().filter_map(bridge_of_pod).collect();
    links.retain(|link| bridges.contains(&link.index));
    Ok(links)
}

/// The number of the bridge that a host veth of the plugin's is a port of.
fn bridge_of_pod(link: &Link) -> Option<u32> {
    let alias = link.alias.as_deref().unwrap_or_default();
    link.bridge
        .filter(|_| alias.starts_with(cni::HOST_VETH_ALIAS))
}

impl Node {
    /// Whether this node itself is as in `other`, whatever happened to the cluster.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        self.own == other.own && self.uplink == other.uplink
    }

    /// Which of the other nodes' subnets can be routed.
    pub(crate) fn peers(&self, is_onlink: bool) -> Vec<Peer> {
        let own = Own {
            lease: &self.own,
            uplink: &self.uplink,
            is_onlink,
        };
        judge(&self.snapshot, own)
    }

    /// A node that routes for its pods forwards. Where we run in a container, which may not say so, the
    /// plugin does when the first pod comes: the runtime starts it on the node itself.
    pub(crate) fn forward(&self, kernel: &Rtnl) -> Result<(), String> {
        let done = |result: Result<(), kernel::Error>| match result {
            Err(error) if !error.is_read_only() => Err(chain(&error)),
            _ => Ok(()),
        };
        let network = &self.snapshot.network;
        if network.ipv4.is_some() {
            done(sysctl::set("net/ipv4/ip_forward", "1"))?;
        }
        if network.ipv6.is_some() {
            // The interface to the others may hear of its router only later.
            let accept_ra = format!("net/ipv6/conf/{}/accept_ra", self.uplink.link.name);
            if sysctl::get(&accept_ra).is_ok_and(|value| value == "1") {
                done(sysctl::set(&accept_ra, "2"))?;
            }
            done(kernel.forward_ipv6(Link::may_be_uplink))?;
        }
        Ok(())
    }

    /// Says in the node's subnet file which subnet is its own, unless it says so already.
    pub(crate) fn write_subnet_file(&self, path: &Path, masquerades: bool) -> Result<(), String> {
        let networks: Vec<_> = self.snapshot.network.networks().collect();
        let subnets: Vec<_> = self.own.subnets().collect();
        let wanted = SubnetEnv::new(&networks, &subnets, self.uplink.link.mtu, masquerades);
        let wanted = wanted.map_err(|error| chain(&error))?;
        if SubnetEnv::read(path).is_ok_and(|present| present == wanted) {
            return Ok(());
        }
        wanted.write(path).map_err(|error| chain(&error))?;
        info!("wrote {}", path.display());
        Ok(())
    }
}
