//! This node: what it holds, by which interface it reaches the others, and what follows for it.

use std::collections::BTreeSet;
use std::path::Path;

use ipnetwork::IpNetwork;
use kernel::{Kind, Link, Rtnl, sysctl};
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
    /// How far the store was read, where that is worth keeping.
    pub(crate) version: Option<String>,
    /// Whether this is what was kept of an earlier run: it may be outdated.
    pub(crate) is_kept: bool,
}

/// What became of the settings that this node is to have.
#[derive(Default)]
pub(crate) struct Settled {
    /// What was not as it should be, and is now.
    pub(crate) mended: Vec<String>,
    /// What cannot be put right.
    pub(crate) troubles: Vec<String>,
}

/// The bridge that the plugin makes unless it is told otherwise.
pub(crate) const BRIDGE: &str = "cni0";

/// Has bridges with pods hear no router: a pod could be the node's. In a container, which may not say
/// so, the plugin does at each ADD.
pub(crate) fn protect_from_routers(kernel: &Rtnl, bridges: &[Link]) -> Result<(), String> {
    for bridge in bridges {
        if !kernel
            .hears_routers(bridge)
            .map_err(|error| chain(&error))?
        {
            continue;
        }
        match kernel.ignore_routers(bridge) {
            Err(error) if error.is_read_only() => continue,
            other => other.map_err(|error| chain(&error))?,
        }
        info!("set accept_ra of {} to 0: pods are on it", bridge.name);
        // Where the node itself has a port on it, what a router said is left to age.
        let ports = kernel.ports(bridge).map_err(|error| chain(&error))?;
        if ports.iter().all(Link::leads_elsewhere) {
            let forgotten = kernel.forget_routers(bridge);
            forgotten.map_err(|error| chain(&error))?;
        }
    }
    Ok(())
}

/// The bridges with pods of the plugin's, and the one that it makes, where that is there.
pub(crate) fn bridges_of_pods(kernel: &Rtnl) -> Result<Vec<Link>, String> {
    let mut links = kernel.links().map_err(|error| chain(&error))?;
    let bridges: BTreeSet<_> = links.iter().filter_map(bridge_of_pod).collect();
    links.retain(|link| {
        let is_its = link.kind == Kind::Bridge && link.name == BRIDGE;
        is_its || bridges.contains(&link.index)
    });
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

    /// A node that routes for its pods forwards: what comes by the interface to the others, by the
    /// bridges of its pods, and by those that are still to be made. Where we run in a container that
    /// may not say so, it is told.
    pub(crate) fn forward(&self, kernel: &Rtnl, bridges: &[Link]) -> Settled {
        let mut settled = Settled::default();
        let uplink = &self.uplink.link.name;
        let interfaces = || {
            let bridges = bridges.iter().map(|bridge| bridge.name.as_str());
            ["default", uplink].into_iter().chain(bridges)
        };
        if self.own.subnets().any(|subnet| subnet.is_ipv4()) {
            settled.turn_on("net/ipv4/ip_forward", |name| sysctl::set(name, "1"));
            for interface in interfaces() {
                let name = format!("net/ipv4/conf/{interface}/forwarding");
                settled.turn_on(&name, |name| sysctl::set(name, "1"));
            }
        }
        if self.own.subnets().any(|subnet| subnet.is_ipv6()) {
            // The interface to the others may hear of its router only later. Where this cannot be said,
            // the plugin says so with the first pod.
            let accept_ra = format!("net/ipv6/conf/{uplink}/accept_ra");
            if sysctl::get(&accept_ra).is_ok_and(|value| value == "1") {
                match sysctl::set(&accept_ra, "2") {
                    Err(error) if !error.is_read_only() => settled.troubles.push(chain(&error)),
                    _ => {}
                }
            }
            settled.turn_on("net/ipv6/conf/all/forwarding", |_| {
                kernel.forward_ipv6(Link::may_be_uplink)
            });
            for interface in interfaces() {
                let name = format!("net/ipv6/conf/{interface}/forwarding");
                settled.turn_on(&name, |name| sysctl::set(name, "1"));
            }
        }
        if !bridges.is_empty() {
            // A bridge that is still to be made would take over what stands there, and there is one.
            settled
                .troubles
                .retain(|trouble| !trouble.contains(".conf.default."));
        }
        settled
    }

    /// Says in the node's subnet file which subnet is its own, unless it says so already.
    pub(crate) fn write_subnet_file(&self, path: &Path, masquerades: bool) -> Result<(), String> {
        let subnets: Vec<_> = self.own.subnets().collect();
        // A family that this node has no subnet of is none of its pods'.
        let is_had = |network: &IpNetwork| {
            let mut subnets = subnets.iter();
            subnets.any(|subnet| subnet.is_ipv4() == network.is_ipv4())
        };
        let networks: Vec<_> = self.snapshot.network.networks().filter(is_had).collect();
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

impl Settled {
    /// Sees to it that a setting is on. One that this kernel does not have, or of an interface that is
    /// just gone, is none.
    fn turn_on(&mut self, name: &str, set: impl Fn(&str) -> Result<(), kernel::Error>) {
        let value = match sysctl::get(name) {
            Err(error) if error.is_gone() => return,
            other => other,
        };
        // As people say it: a dot in an interface's name is a slash there.
        let swap = |c| match c {
            '/' => '.',
            '.' => '/',
            c => c,
        };
        let dotted: String = name.chars().map(swap).collect();
        match value.and_then(|value| set(name).map(|()| value)) {
            Ok(value) if value == "1" => {}
            Ok(value) => self.mended.push(format!("{dotted} was {value}; set it to 1")),
            Err(error) if error.is_gone() => {}
            Err(error) if error.is_read_only() => self.troubles.push(format!(
                "{dotted} is not 1, so that what pods send or get is not forwarded, and /proc/sys is read-only here; run `sysctl -w {dotted}=1` on the node"
            )),
            Err(error) => self.troubles.push(chain(&error)),
        }
    }
}
