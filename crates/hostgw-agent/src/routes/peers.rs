//! Decides which subnets of the other nodes can be routed, and why the others cannot. No I/O.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::network::{Hop, Lease, Snapshot, SubnetMap};
use crate::node::{Node, Uplink};

/// A subnet of another node, and whether it is routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) lease: Arc<Lease>,
    /// Its subnet and next hop; none if the lease lacks them.
    pub(crate) hop: Option<Hop>,
    /// Why it is not routed; none if it is routed.
    pub(crate) refused: Option<Refusal>,
    /// How its packets are diverted although it is routed.
    pub(crate) diverted: Option<String>,
}

/// Why a subnet is not routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The lease itself is invalid.
    Invalid(String),
    /// The subnet is outside the network.
    Outside(String),
    /// The subnet overlaps this subnet of this node, which was there before.
    Overlaps(IpNetwork, String),
    /// This other lease, which is newer, has the same next hop.
    SameAddress(IpAddr, String),
    /// The next hop is an address of this node, or not the address of a node at all.
    NotAPeer(IpAddr),
    /// The next hop is not on the link of this interface.
    NotOnLink(IpAddr, String),
    /// The kernel refused the route.
    Kernel(String),
}

/// The facts about this node that decide which peers are routed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThisNode<'a> {
    pub(crate) lease: &'a Lease,
    pub(crate) uplink: &'a Uplink,
    /// Accept next hops that are not on the uplink's link according to its addresses.
    pub(crate) onlink: bool,
}

/// Returns every other node's subnets, and which of them can be routed.
pub(crate) fn peers(node: &Node, onlink: bool) -> Vec<Peer> {
    let own = ThisNode {
        lease: &node.own,
        uplink: &node.uplink,
        onlink,
    };
    evaluate(&node.snapshot, own)
}

/// Lists every other node's subnets, and finds those that cannot be routed. If two nodes have the
/// same subnet, the older lease counts; if two have the same address, the newer one, because nodes
/// leave leases behind.
pub(crate) fn evaluate(snapshot: &Snapshot, own: ThisNode<'_>) -> Vec<Peer> {
    let mut newest: HashMap<IpAddr, &str> = HashMap::new();
    for lease in others(snapshot, own).filter(|lease| lease.invalid_reason.is_none()) {
        for hop in &lease.hops {
            newest.insert(hop.via, &lease.node);
        }
    }
    let mut taken = SubnetMap::new();
    for hop in &own.lease.hops {
        taken.insert(hop.subnet, "this node");
    }
    let mut peers = Vec::with_capacity(snapshot.leases.len());
    for lease in others(snapshot, own) {
        let peer = |hop, refused| Peer {
            lease: Arc::clone(lease),
            hop,
            refused,
            diverted: None,
        };
        if lease.hops.is_empty() {
            let reason = lease.invalid_reason.clone();
            let reason = reason.unwrap_or_else(|| "it has no subnet".to_owned());
            peers.push(peer(None, Some(Refusal::Invalid(reason))));
        }
        for hop in &lease.hops {
            let refused = refusal(lease, *hop, snapshot, own, &newest).or_else(|| {
                let (other, node) = taken.overlapping(hop.subnet)?;
                Some(Refusal::Overlaps(other, node.to_owned()))
            });
            if refused.is_none() {
                taken.insert(hop.subnet, &lease.node);
            }
            peers.push(peer(Some(*hop), refused));
        }
    }
    peers
}

fn others<'a>(snapshot: &'a Snapshot, own: ThisNode<'a>) -> impl Iterator<Item = &'a Arc<Lease>> {
    // The whole lease is compared: another node that took over ours has its name, but another
    // address.
    snapshot
        .leases
        .iter()
        .filter(move |lease| lease.as_ref() != own.lease)
}

fn refusal(
    lease: &Lease,
    hop: Hop,
    snapshot: &Snapshot,
    own: ThisNode<'_>,
    newest: &HashMap<IpAddr, &str>,
) -> Option<Refusal> {
    let Hop { subnet, via } = hop;
    if let Some(reason) = &lease.invalid_reason {
        return Some(Refusal::Invalid(reason.clone()));
    }
    let pool = snapshot.network.pool(subnet);
    if !pool.is_some_and(|pool| {
        pool.network.prefix() <= subnet.prefix() && pool.network.contains(subnet.ip())
    }) {
        let networks: Vec<_> = snapshot.network.networks().map(|n| n.to_string()).collect();
        return Some(Refusal::Outside(networks.join(" and ")));
    }
    if own.uplink.has(via) || via.is_unspecified() || via.is_loopback() || via.is_multicast() {
        return Some(Refusal::NotAPeer(via));
    }
    if let Some(newer) = newest.get(&via).filter(|node| **node != lease.node) {
        return Some(Refusal::SameAddress(via, (*newer).to_owned()));
    }
    if !own.onlink && !own.uplink.reaches(via) {
        return Some(Refusal::NotOnLink(via, own.uplink.link.name.clone()));
    }
    None
}

impl Peer {
    /// Returns the hop to route; none if the subnet is not routed.
    pub(crate) fn wanted(&self) -> Option<Hop> {
        self.hop.filter(|_| self.refused.is_none())
    }
}

impl Refusal {
    /// Returns the label for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "flaw",
            Self::Outside(_) => "outside-network",
            Self::Overlaps(..) => "overlap",
            Self::SameAddress(..) => "same-address",
            Self::NotAPeer(_) => "no-peer",
            Self::NotOnLink(..) => "not-on-link",
            Self::Kernel(_) => "kernel",
        }
    }

    /// All labels.
    pub(crate) const LABELS: [&'static str; 7] = [
        "flaw",
        "outside-network",
        "overlap",
        "same-address",
        "no-peer",
        "not-on-link",
        "kernel",
    ];
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(reason) | Self::Kernel(reason) => f.write_str(reason),
            Self::Outside(networks) => write!(f, "it lies outside the network {networks}"),
            Self::Overlaps(subnet, node) if *node == subnet.to_string() => {
                write!(f, "it overlaps {subnet}")
            }
            Self::Overlaps(subnet, node) => write!(f, "it overlaps {subnet} of {node}"),
            Self::SameAddress(via, newer) => {
                write!(f, "{via} is also the address of {newer}, which is newer")
            }
            Self::NotAPeer(via) => write!(f, "{via} is not the address of another node"),
            Self::NotOnLink(via, link) => write!(
                f,
                "{via} is not on the link of {link} (--onlink accepts it)"
            ),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hop {
            Some(hop) => write!(f, "{} of {}", hop.subnet, self.lease.node),
            None => write!(f, "the lease {}", self.lease.node),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a lease of a node. Hops are written as "10.10.2.0/24 via 192.168.2.15", one for each
    /// family.
    fn lease(node: &str, hops: &[&str]) -> Arc<Lease> {
        let hop = |text: &&str| {
            let (subnet, via) = text.split_once(" via ").expect("a hop");
            Hop {
                subnet: subnet.parse().expect("a network"),
                via: via.parse().expect("an address"),
            }
        };
        Arc::new(Lease {
            node: node.to_owned(),
            hops: hops.iter().map(hop).collect(),
            invalid_reason: None,
        })
    }

    /// Returns the outcome for each of these leases, the oldest first, beside our own.
    fn evaluated(leases: &[Arc<Lease>], onlink: bool) -> Vec<String> {
        let network =
            r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10::/48"}"#;
        let own = lease(
            "own",
            &[
                "10.10.1.0/24 via 192.168.2.16",
                "fd00:10:0:1::/64 via fd00::16",
            ],
        );
        let snapshot = Snapshot {
            network: serde_json::from_str(network).expect("valid"),
            leases: [&[Arc::clone(&own)], leases].concat(),
        };
        let uplink = Uplink::on(
            &["192.168.2.16", "fd00::16"],
            &["192.168.2.0/24", "fd00::/64"],
        );
        let own = ThisNode {
            lease: &own,
            uplink: &uplink,
            onlink,
        };
        let label = |peer: &Peer| match &peer.refused {
            None => "routed".to_owned(),
            Some(reason) => reason.label().to_owned(),
        };
        evaluate(&snapshot, own).iter().map(label).collect()
    }

    #[test]
    fn each_family_is_checked_on_its_own() {
        let other = lease(
            "a",
            &[
                "10.10.2.0/24 via 192.168.2.15",
                "fd00:10:0:2::/64 via fd99::15",
            ],
        );
        assert_eq!(evaluated(&[other], false), ["routed", "not-on-link"]);
        let local = lease("a", &["fd00:10:0:2::/64 via fe80::15"]);
        assert_eq!(
            evaluated(&[local], false),
            ["routed"],
            "a link-local address always is on the link"
        );
    }

    #[test]
    fn of_two_overlapping_subnets_the_older_is_routed() {
        let leases = [
            lease("a", &["10.10.2.0/24 via 192.168.2.15"]),
            lease("b", &["10.10.2.64/26 via 192.168.2.14"]),
            lease("c", &["10.10.0.0/22 via 192.168.2.13"]),
            lease("d", &["10.10.1.0/24 via 192.168.2.12"]),
            lease("e", &["10.10.3.0/24 via 192.168.2.11"]),
        ];
        assert_eq!(
            evaluated(&leases, false),
            ["routed", "overlap", "overlap", "overlap", "routed"]
        );
    }

    #[test]
    fn of_two_leases_with_one_address_the_newer_is_routed() {
        let leases = [
            lease("a", &["10.10.2.0/24 via 192.168.2.15"]),
            lease("b", &["10.10.3.0/24 via 192.168.2.15"]),
        ];
        assert_eq!(evaluated(&leases, false), ["same-address", "routed"]);
        // An invalid lease does not displace another one.
        let mut broken = (*leases[1]).clone();
        broken.invalid_reason = Some("its backend is \"vxlan\"".to_owned());
        assert_eq!(
            evaluated(&[Arc::clone(&leases[0]), Arc::new(broken)], false),
            ["routed", "flaw"]
        );
    }

    #[test]
    fn a_next_hop_must_be_another_node_on_the_link() {
        for (hop, label) in [
            ("10.10.2.0/24 via 192.168.2.16", "no-peer"),
            ("10.10.2.0/24 via 127.0.0.1", "no-peer"),
            ("10.10.2.0/24 via 0.0.0.0", "no-peer"),
            ("10.10.2.0/24 via 224.0.0.1", "no-peer"),
            ("10.20.2.0/24 via 192.168.2.15", "outside-network"),
            ("10.0.0.0/8 via 192.168.2.15", "outside-network"),
            ("10.10.2.0/24 via 10.0.0.1", "not-on-link"),
        ] {
            assert_eq!(evaluated(&[lease("a", &[hop])], false), [label], "{hop}");
        }
        assert_eq!(
            evaluated(&[lease("a", &["10.10.2.0/24 via 10.0.0.1"])], true),
            ["routed"]
        );
    }
}
