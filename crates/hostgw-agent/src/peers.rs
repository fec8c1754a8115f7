//! Which of the other nodes' subnets can be routed, and why the others cannot. Pure.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::lease::{Ground, Hop, Lease, Snapshot};
use crate::uplink::Uplink;

/// A subnet of another node, and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) lease: Arc<Lease>,
    /// Nothing where the lease says too little.
    pub(crate) hop: Option<Hop>,
    /// Why it is not routed.
    pub(crate) refused: Option<Refusal>,
    /// What leads packets elsewhere although it is routed.
    pub(crate) diverted: Option<String>,
}

/// Why a subnet is not routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The lease itself says so.
    Flaw(String),
    /// It is no subnet of the network.
    Outside(String),
    /// It has an address in common with another's, which was there before.
    Overlaps(IpNetwork, String),
    /// Another lease, made later, has the same next hop.
    SameAddress(IpAddr, String),
    /// The next hop is this node, or no node at all.
    NoPeer(IpAddr),
    /// The next hop is not on the interface's link.
    NotOnLink(IpAddr, String),
    /// The kernel says no.
    Kernel(String),
}

/// What this node is, as far as others matter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own<'a> {
    pub(crate) lease: &'a Lease,
    pub(crate) uplink: &'a Uplink,
    /// Whether a next hop counts as on the link whatever addresses say.
    pub(crate) is_onlink: bool,
}

/// Judges every other node's subnets. An older lease is in the right where two have one subnet;
/// where two have one address, the newer is, because nodes leave leases behind.
pub(crate) fn judge(snapshot: &Snapshot, own: Own<'_>) -> Vec<Peer> {
    let mut newest: HashMap<IpAddr, &str> = HashMap::new();
    for lease in others(snapshot, own).filter(|lease| lease.flaw.is_none()) {
        for hop in &lease.hops {
            newest.insert(hop.via, &lease.node);
        }
    }
    let mut ground = Ground::new();
    for hop in &own.lease.hops {
        ground.take(hop.subnet, "this node");
    }
    let mut peers = Vec::with_capacity(snapshot.leases.len());
    for lease in others(snapshot, own) {
        let refuse = |hop, refused| Peer {
            lease: Arc::clone(lease),
            hop,
            refused,
            diverted: None,
        };
        if lease.hops.is_empty() {
            let reason = lease
                .flaw
                .clone()
                .unwrap_or_else(|| "it has no subnet".to_owned());
            peers.push(refuse(None, Some(Refusal::Flaw(reason))));
        }
        for hop in &lease.hops {
            let refused = refusal(lease, *hop, snapshot, own, &newest).or_else(|| {
                let (taken, node) = ground.taken(hop.subnet)?;
                Some(Refusal::Overlaps(taken, node.to_owned()))
            });
            if refused.is_none() {
                ground.take(hop.subnet, &lease.node);
            }
            peers.push(refuse(Some(*hop), refused));
        }
    }
    peers
}

fn others<'a>(snapshot: &'a Snapshot, own: Own<'a>) -> impl Iterator<Item = &'a Arc<Lease>> {
    // Who has taken our lease over has its name, and another address.
    snapshot
        .leases
        .iter()
        .filter(move |lease| lease.as_ref() != own.lease)
}

fn refusal(
    lease: &Lease,
    hop: Hop,
    snapshot: &Snapshot,
    own: Own<'_>,
    newest: &HashMap<IpAddr, &str>,
) -> Option<Refusal> {
    let Hop { subnet, via } = hop;
    if let Some(reason) = &lease.flaw {
        return Some(Refusal::Flaw(reason.clone()));
    }
    let space = snapshot.network.space(subnet);
    if !space.is_some_and(|space| {
        space.network.prefix() <= subnet.prefix() && space.network.contains(subnet.ip())
    }) {
        let networks: Vec<_> = snapshot.network.networks().map(|n| n.to_string()).collect();
        return Some(Refusal::Outside(networks.join(" and ")));
    }
    if own.uplink.has(via) || via.is_unspecified() || via.is_loopback() || via.is_multicast() {
        return Some(Refusal::NoPeer(via));
    }
    if let Some(newer) = newest.get(&via).filter(|node| **node != lease.node) {
        return Some(Refusal::SameAddress(via, (*newer).to_owned()));
    }
    if !own.is_onlink && !own.uplink.reaches(via) {
        return Some(Refusal::NotOnLink(via, own.uplink.link.name.clone()));
    }
    None
}

impl Peer {
    /// What is to be routed; nothing where it is refused.
    pub(crate) fn wanted(&self) -> Option<Hop> {
        self.hop.filter(|_| self.refused.is_none())
    }
}

impl Refusal {
    /// One word for it, for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Flaw(_) => "flaw",
            Self::Outside(_) => "outside-network",
            Self::Overlaps(..) => "overlap",
            Self::SameAddress(..) => "same-address",
            Self::NoPeer(_) => "no-peer",
            Self::NotOnLink(..) => "not-on-link",
            Self::Kernel(_) => "kernel",
        }
    }

    /// All of them.
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
            Self::Flaw(reason) | Self::Kernel(reason) => f.write_str(reason),
            Self::Outside(networks) => write!(f, "it lies outside the network {networks}"),
            Self::Overlaps(subnet, node) if *node == subnet.to_string() => {
                write!(f, "it overlaps {subnet}")
            }
            Self::Overlaps(subnet, node) => write!(f, "it overlaps {subnet} of {node}"),
            Self::SameAddress(via, newer) => {
                write!(f, "{via} is also the address of {newer}, which is newer")
            }
            Self::NoPeer(via) => write!(f, "{via} is not the address of another node"),
            Self::NotOnLink(via, link) => write!(
                f,
                "{via} is not on the link of {link} (--onlink takes it all the same)"
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

    /// "10.10.2.0/24 via 192.168.2.15", one for each family, of a node.
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
            flaw: None,
        })
    }

    /// What becomes of these leases, the oldest first, beside our own.
    fn judged(leases: &[Arc<Lease>], is_onlink: bool) -> Vec<String> {
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
        let own = Own {
            lease: &own,
            uplink: &uplink,
            is_onlink,
        };
        let word = |peer: &Peer| match &peer.refused {
            None => "routed".to_owned(),
            Some(reason) => reason.label().to_owned(),
        };
        judge(&snapshot, own).iter().map(word).collect()
    }

    #[test]
    fn every_family_is_judged_for_itself() {
        let other = lease(
            "a",
            &[
                "10.10.2.0/24 via 192.168.2.15",
                "fd00:10:0:2::/64 via fd99::15",
            ],
        );
        assert_eq!(judged(&[other], false), ["routed", "not-on-link"]);
        let local = lease("a", &["fd00:10:0:2::/64 via fe80::15"]);
        assert_eq!(
            judged(&[local], false),
            ["routed"],
            "a link-local address always is on the link"
        );
    }

    #[test]
    fn of_two_that_overlap_the_older_is_in_the_right() {
        let leases = [
            lease("a", &["10.10.2.0/24 via 192.168.2.15"]),
            lease("b", &["10.10.2.64/26 via 192.168.2.14"]),
            lease("c", &["10.10.0.0/22 via 192.168.2.13"]),
            lease("d", &["10.10.1.0/24 via 192.168.2.12"]),
            lease("e", &["10.10.3.0/24 via 192.168.2.11"]),
        ];
        assert_eq!(
            judged(&leases, false),
            ["routed", "overlap", "overlap", "overlap", "routed"]
        );
    }

    #[test]
    fn of_two_at_one_address_the_newer_is() {
        let leases = [
            lease("a", &["10.10.2.0/24 via 192.168.2.15"]),
            lease("b", &["10.10.3.0/24 via 192.168.2.15"]),
        ];
        assert_eq!(judged(&leases, false), ["same-address", "routed"]);
        // One that is of no use takes nothing from another.
        let mut broken = (*leases[1]).clone();
        broken.flaw = Some("its backend is \"vxlan\"".to_owned());
        assert_eq!(
            judged(&[Arc::clone(&leases[0]), Arc::new(broken)], false),
            ["routed", "flaw"]
        );
    }

    #[test]
    fn a_next_hop_is_another_node_on_the_link() {
        for (hop, word) in [
            ("10.10.2.0/24 via 192.168.2.16", "no-peer"),
            ("10.10.2.0/24 via 127.0.0.1", "no-peer"),
            ("10.10.2.0/24 via 0.0.0.0", "no-peer"),
            ("10.10.2.0/24 via 224.0.0.1", "no-peer"),
            ("10.20.2.0/24 via 192.168.2.15", "outside-network"),
            ("10.0.0.0/8 via 192.168.2.15", "outside-network"),
            ("10.10.2.0/24 via 10.0.0.1", "not-on-link"),
        ] {
            assert_eq!(judged(&[lease("a", &[hop])], false), [word], "{hop}");
        }
        assert_eq!(
            judged(&[lease("a", &["10.10.2.0/24 via 10.0.0.1"])], true),
            ["routed"]
        );
    }
}
