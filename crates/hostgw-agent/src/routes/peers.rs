//! Decides which subnets of the other nodes can be routed, and why the others cannot. No I/O.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use subnet::Subnet;

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
    /// The next hop is in this subnet of this node: it is a pod.
    IsPod(IpAddr, IpNetwork, String),
    /// A route to the subnet would cut this node off from what the text names.
    CutsOff(String),
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

/// A subnet of another node, and why it can never be routed, whatever the other leases are.
struct Candidate<'a> {
    lease: &'a Arc<Lease>,
    hop: Hop,
    refused: Option<Refusal>,
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
/// leave leases behind. A lease that is refused displaces no other one.
pub(crate) fn evaluate(snapshot: &Snapshot, own: ThisNode<'_>) -> Vec<Peer> {
    /// More rounds than honest leases need, and few enough for any number of others.
    const ROUNDS: usize = 8;
    let mut candidates = Vec::with_capacity(snapshot.leases.len());
    let mut without_subnet = Vec::new();
    // The whole lease is compared: another node that took over ours has its name, but another
    // address.
    let others = snapshot.leases.iter();
    for lease in others.filter(|lease| lease.as_ref() != own.lease) {
        if lease.hops.is_empty() {
            let reason = lease.invalid_reason.clone();
            let reason = reason.unwrap_or_else(|| "it has no subnet".to_owned());
            without_subnet.push(Peer::new(lease, None, Some(Refusal::Invalid(reason))));
        }
        candidates.extend(lease.hops.iter().map(|hop| Candidate {
            lease,
            hop: *hop,
            refused: refusal(lease, *hop, snapshot, own),
        }));
    }
    // Whether a lease is refused may depend on whether another one displaces a third one. So those that
    // are refused for another reason are left out, and the rest is decided again.
    let mut refused: HashSet<usize> = HashSet::new();
    let mut peers = Vec::new();
    for _ in 0..ROUNDS {
        peers = decide(&candidates, own, &refused);
        let is_other_reason = |peer: &Peer| {
            let reason = peer.refused.as_ref();
            reason.is_some_and(|reason| !matches!(reason, Refusal::SameAddress(..)))
        };
        let all = peers.iter().enumerate();
        let now = all.filter(|(_, peer)| is_other_reason(peer));
        let before = refused.len();
        refused.extend(now.map(|(index, _)| index));
        if refused.len() == before {
            break;
        }
    }
    peers.extend(without_subnet);
    peers
}

/// Decides between the candidates, the oldest first. Those with the indexes `refused` displace no older
/// lease with their address.
fn decide(candidates: &[Candidate<'_>], own: ThisNode<'_>, refused: &HashSet<usize>) -> Vec<Peer> {
    let mut newest: HashMap<IpAddr, &str> = HashMap::new();
    for (index, Candidate { lease, hop, .. }) in candidates.iter().enumerate() {
        if !refused.contains(&index) && candidates[index].refused.is_none() {
            newest.insert(hop.via, &lease.node);
        }
    }
    let mut taken = SubnetMap::new();
    for hop in &own.lease.hops {
        taken.insert(hop.subnet, "this node");
    }
    let mut next_hops: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let mut peers = Vec::with_capacity(candidates.len());
    for (index, candidate) in candidates.iter().enumerate() {
        let Candidate { lease, hop, .. } = *candidate;
        let is_displaced = || {
            let newer = newest.get(&hop.via).filter(|node| **node != lease.node)?;
            let counts = !refused.contains(&index);
            counts.then(|| Refusal::SameAddress(hop.via, (*newer).to_owned()))
        };
        let overlaps = || {
            let (other, node) = taken.overlapping(hop.subnet)?;
            Some(Refusal::Overlaps(other, node.to_owned()))
        };
        // Next hops are nodes, which are never in the subnet of another node.
        let contains_next_hop = || {
            let last = Subnet::of(hop.subnet).address_at(u128::MAX);
            let mut within = next_hops.range(hop.subnet.network()..=last);
            let (via, node) = within.find(|(_, node)| **node != lease.node)?;
            Some(Refusal::CutsOff(format!("{via}, the address of {node}")))
        };
        let is_pod = || {
            let (subnet, node) = taken.overlapping(hop.via.into())?;
            Some(Refusal::IsPod(hop.via, subnet, node.to_owned()))
        };
        let refusal = candidate.refused.clone();
        let refusal = refusal.or_else(is_displaced).or_else(overlaps);
        let refusal = refusal.or_else(contains_next_hop).or_else(is_pod);
        if refusal.is_none() {
            taken.insert(hop.subnet, &lease.node);
            next_hops.insert(hop.via, &lease.node);
        }
        peers.push(Peer::new(lease, Some(hop), refusal));
    }
    peers
}

/// Returns why a hop cannot be routed, whatever the leases of other peers are.
fn refusal(lease: &Lease, hop: Hop, snapshot: &Snapshot, own: ThisNode<'_>) -> Option<Refusal> {
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
    // If this node's address is in the network of pods, those of others may be, too. An address that is
    // on the link is never a pod's.
    let is_pod = snapshot.network.networks().any(|network| {
        let mut addresses = own.uplink.addresses_of(via.is_ipv4());
        network.contains(via) && !addresses.any(|address| network.contains(address))
    });
    let is_reached = own.uplink.reaches(via);
    let is_own = own.uplink.surroundings.addresses.contains(&via);
    if is_own || !is_host(via) || is_pod && !is_reached {
        return Some(Refusal::NotAPeer(via));
    }
    if !own.onlink && !is_reached {
        return Some(Refusal::NotOnLink(via, own.uplink.link.name.clone()));
    }
    let subnets: Vec<_> = own.lease.subnets().collect();
    let needed = own.uplink.needed_within(subnet, &subnets);
    needed.map(Refusal::CutsOff)
}

/// True if one machine can have this address.
fn is_host(address: IpAddr) -> bool {
    match address {
        // RFC 1122, 3.2.1.3: no host is in 0.0.0.0/8. Some clouds have nodes in 240.0.0.0/4.
        IpAddr::V4(v4) => {
            let is_special = v4.is_loopback() || v4.is_multicast() || v4.is_broadcast();
            v4.octets()[0] != 0 && !is_special
        }
        IpAddr::V6(v6) => {
            let is_special = v6.is_unspecified() || v6.is_loopback() || v6.is_multicast();
            !is_special && v6.to_ipv4_mapped().is_none()
        }
    }
}

impl Peer {
    fn new(lease: &Arc<Lease>, hop: Option<Hop>, refused: Option<Refusal>) -> Self {
        Self {
            lease: Arc::clone(lease),
            hop,
            refused,
            diverted: None,
        }
    }

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
            Self::NotAPeer(_) | Self::IsPod(..) => "no-peer",
            Self::CutsOff(_) => "cuts-off",
            Self::NotOnLink(..) => "not-on-link",
            Self::Kernel(_) => "kernel",
        }
    }

    /// All labels.
    pub(crate) const LABELS: [&'static str; 8] = [
        "flaw",
        "outside-network",
        "overlap",
        "same-address",
        "no-peer",
        "cuts-off",
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
            Self::IsPod(via, subnet, node) => write!(
                f,
                "{via} is not the address of a node: it is in {subnet} of {node}"
            ),
            Self::CutsOff(needed) => write!(f, "it would cut this node off: it contains {needed}"),
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
        evaluated_in(network, leases, onlink)
    }

    /// Returns the outcome in a network with this configuration.
    fn evaluated_in(network: &str, leases: &[Arc<Lease>], onlink: bool) -> Vec<String> {
        let own = [
            "10.10.1.0/24 via 192.168.2.16",
            "fd00:10:0:1::/64 via fd00::16",
        ];
        evaluated_beside(&own, network, leases, onlink)
    }

    /// Returns the outcome on a node with this lease.
    fn evaluated_beside(
        own: &[&str],
        network: &str,
        leases: &[Arc<Lease>],
        onlink: bool,
    ) -> Vec<String> {
        let own = lease("own", own);
        let snapshot = Snapshot {
            network: serde_json::from_str(network).expect("valid"),
            leases: [&[Arc::clone(&own)], leases].concat(),
        };
        let mut uplink = Uplink::on(
            &["192.168.2.16", "fd00::16"],
            &["192.168.2.0/24", "fd00::/64"],
        );
        for address in ["192.168.2.116", "10.9.9.9"] {
            let address = address.parse().expect("an address");
            uplink.surroundings.addresses.insert(address);
        }
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
            ("10.10.2.0/24 via 192.168.2.116", "no-peer"),
            ("10.10.2.0/24 via 10.9.9.9", "no-peer"),
            ("10.10.2.0/24 via 0.0.0.7", "no-peer"),
            ("10.10.2.0/24 via 255.255.255.255", "no-peer"),
            ("10.10.2.0/24 via 10.10.3.7", "no-peer"),
            ("fd00:10:0:2::/64 via ff02::1", "no-peer"),
            ("fd00:10:0:2::/64 via ::ffff:192.168.2.15", "no-peer"),
        ] {
            assert_eq!(evaluated(&[lease("a", &[hop])], false), [label], "{hop}");
        }
        let refused_anyway = [
            "10.10.2.0/24 via 10.9.9.9",
            "10.10.2.0/24 via 10.10.1.7",
            "fd00:10:0:2::/64 via fd00:10:0:1::7",
        ];
        for hop in refused_anyway {
            assert_eq!(evaluated(&[lease("a", &[hop])], true), ["no-peer"], "{hop}");
        }
        assert_eq!(
            evaluated(&[lease("a", &["10.10.2.0/24 via 10.0.0.1"])], true),
            ["routed"]
        );
    }

    #[test]
    fn a_refused_lease_displaces_no_other_lease_with_its_address() {
        let leases = [
            lease("a", &["10.10.2.0/24 via 192.168.2.15"]),
            lease("b", &["10.10.3.0/24 via 192.168.2.14"]),
        ];
        for (claim, label) in [
            ("172.30.0.0/24 via 192.168.2.15", "outside-network"),
            ("10.10.1.128/25 via 192.168.2.15", "overlap"),
            ("10.10.3.128/25 via 192.168.2.15", "overlap"),
        ] {
            let claim = lease("c", &[claim]);
            let all = [Arc::clone(&leases[0]), Arc::clone(&leases[1]), claim];
            assert_eq!(evaluated(&all, false), ["routed", "routed", label]);
        }
        // The claim is refused because of an address, or because of another claim.
        let claims = [
            lease("a", &["10.10.2.0/24 via 192.168.2.15"]),
            lease("b", &["10.10.5.0/24 via 192.168.2.14"]),
            lease("d", &["10.10.2.128/25 via 192.168.2.14"]),
            lease("c", &["10.10.1.128/25 via 192.168.2.15"]),
        ];
        assert_eq!(
            evaluated(&claims, false),
            ["routed", "routed", "overlap", "overlap"]
        );
        // A node that moved to a part of its own old subnet.
        let moved = lease("c", &["10.10.2.128/25 via 192.168.2.15"]);
        let all = [Arc::clone(&leases[0]), moved];
        assert_eq!(evaluated(&all, false), ["same-address", "routed"]);
    }

    /// A network that contains the nodes' own.
    const AROUND: &str =
        r#"{"Network": "192.168.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/16"}"#;

    #[test]
    fn a_subnet_must_not_contain_addresses_that_this_node_needs() {
        for (subnet, label) in [
            ("192.168.2.0/24 via 192.168.2.15", "cuts-off"),
            ("192.168.2.128/25 via 192.168.2.15", "cuts-off"),
            ("192.168.2.64/26 via 192.168.2.15", "cuts-off"),
            ("192.168.0.0/18 via 192.168.2.15", "cuts-off"),
            ("192.168.3.0/24 via 192.168.2.15", "routed"),
            ("fd00::/64 via fd00::15", "cuts-off"),
            ("fd00:0:0:7::/64 via fd00::15", "routed"),
        ] {
            assert_eq!(
                evaluated_in(AROUND, &[lease("a", &[subnet])], false),
                [label],
                "{subnet}"
            );
        }
        // The nodes' network contains the network of pods: only addresses of nodes count.
        let within = r#"{"Network": "192.168.2.128/25", "SubnetLen": 28}"#;
        let leases = [
            lease("a", &["192.168.2.160/28 via 192.168.2.15"]),
            lease("b", &["192.168.2.144/28 via 192.168.2.179"]),
            lease("c", &["192.168.2.176/28 via 192.168.2.14"]),
            lease("d", &["192.168.2.192/28 via 192.168.2.161"]),
        ];
        let own = ["192.168.2.224/28 via 192.168.2.16"];
        assert_eq!(
            evaluated_beside(&own, within, &leases, false),
            ["routed", "routed", "cuts-off", "no-peer"]
        );
        // A refused one displaces no other lease with its address.
        let claim = lease("c", &["192.168.2.176/28 via 192.168.2.15"]);
        let all = [Arc::clone(&leases[0]), Arc::clone(&leases[1]), claim];
        assert_eq!(
            evaluated_beside(&own, within, &all, false),
            ["routed", "routed", "cuts-off"]
        );
    }
}
