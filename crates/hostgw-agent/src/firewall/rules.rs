//! The networks that the rules are about, and the packets with which chains of others are evaluated.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::Link;
use kernel::nftables::Packet;
use subnet::Subnet;

use crate::network::{Lease, NetConf};
use crate::node::DEFAULT_BRIDGE;

/// In each family, the cluster's network and this node's subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FirewallRules(pub(super) Vec<(IpNetwork, IpNetwork)>);

/// The interfaces and nodes between which pods' packets are forwarded.
#[derive(Clone, Copy)]
pub(crate) struct PodPath<'a> {
    pub(crate) uplink: &'a Link,
    /// The bridge of this node's pods. `None` before the first pod.
    pub(crate) bridge: Option<&'a Link>,
    /// The subnets of other nodes.
    pub(crate) peers: &'a [IpNetwork],
}

/// Packets in one direction between two subnets: the first packets of some pods to some others. A
/// rule that forbids something to one pod only does not refuse all of them.
pub(super) struct Flow {
    pub(super) from: IpNetwork,
    pub(super) to: IpNetwork,
    /// True if it comes from pods of this node.
    pub(super) is_outgoing: bool,
    pub(super) packets: Vec<Packet>,
}

impl FirewallRules {
    pub(crate) fn new(network: &NetConf, own: &Lease) -> Self {
        let pair = |subnet: IpNetwork| Some((network.pool(subnet)?.network, subnet));
        Self(own.subnets().filter_map(pair).collect())
    }

    /// Returns, in each family, the cluster's network and this node's subnet.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (IpNetwork, IpNetwork)> {
        self.0.iter().copied()
    }

    /// Returns the cluster's networks.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        self.0.iter().map(|(cluster, _)| *cluster)
    }

    /// Flows between pods of this node and of others, in both directions. Some of the peers are
    /// enough, because a rule about all of them refuses those, too. Without peers, another part of
    /// the network takes their place.
    pub(super) fn flows(&self, path: PodPath<'_>) -> Vec<Flow> {
        const SAMPLE: usize = 8;
        let mut flows = Vec::new();
        for (cluster, own) in &self.0 {
            let is_of_family = |peer: &&IpNetwork| peer.is_ipv4() == own.is_ipv4();
            let peers = path.peers.iter().filter(is_of_family).take(SAMPLE);
            let mut others: Vec<_> = peers.copied().collect();
            if others.is_empty() {
                let cluster = Subnet::of(*cluster);
                let ends = [cluster.address_at(2), cluster.address_at(u128::MAX)];
                let end = ends.into_iter().find(|end| !own.contains(*end));
                others.extend(end.map(IpNetwork::from));
            }
            for other in others {
                flows.push(flow(path, *own, other, true));
                flows.push(flow(path, other, *own, false));
            }
        }
        flows
    }
}

fn flow(path: PodPath<'_>, from: IpNetwork, to: IpNetwork, is_outgoing: bool) -> Flow {
    let uplink = (path.uplink.name.clone(), path.uplink.index);
    let bridge = path
        .bridge
        .map_or((DEFAULT_BRIDGE.to_owned(), 0), |bridge| {
            (bridge.name.clone(), bridge.index)
        });
    let (input, output) = if is_outgoing {
        (bridge, uplink)
    } else {
        (uplink, bridge)
    };
    let packet = |source, destination| Packet {
        from: input.0.clone(),
        to: output.0.clone(),
        links: [input.1, output.1],
        source,
        destination,
    };
    let pairs = pods(from)
        .into_iter()
        .flat_map(|source| pods(to).map(|destination| (source, destination)));
    Flow {
        from,
        to,
        is_outgoing,
        packets: pairs
            .map(|(source, destination)| packet(source, destination))
            .collect(),
    }
}

/// Two addresses that pods of a subnet may have: one in each half.
fn pods(subnet: IpNetwork) -> [IpAddr; 2] {
    let bits = if subnet.is_ipv4() { 32 } else { 128 };
    let half = 1u128.checked_shl(u32::from(bits - subnet.prefix()).saturating_sub(1));
    let half = half.filter(|_| subnet.prefix() < bits).unwrap_or_default();
    let subnet = Subnet::of(subnet);
    [subnet.address_at(2), subnet.address_at(half + 1)]
}
