//! Leases: which node holds which subnet, as every store tells it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::net_conf::NetConf;

/// Everything that a store knows at one moment. Always whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The network's configuration.
    pub(crate) network: NetConf,
    /// Every node's lease, the oldest first.
    pub(crate) leases: Vec<Arc<Lease>>,
}

/// What one node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// The node's name; in etcd, which has none, the lease's.
    pub(crate) node: String,
    /// Its subnets and how to get there: one hop of each family that it has.
    pub(crate) hops: Vec<Hop>,
    /// Why nothing can be routed there, whatever the hops say.
    pub(crate) flaw: Option<String>,
}

/// A subnet and the address of the node that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hop {
    pub(crate) subnet: IpNetwork,
    pub(crate) via: IpAddr,
}

/// The addresses by which a node is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// This node's lease as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Its key, without the prefix.
    pub(crate) name: String,
    /// What it says.
    pub(crate) addresses: Addresses,
    /// The number of etcd's own lease; 0 for a reservation.
    pub(crate) etcd_lease: i64,
    /// When it ends, in seconds since 1970; nothing for a reservation.
    #[serde(default)]
    pub(crate) expires: Option<u64>,
}

impl Addresses {
    /// Those there are.
    pub(crate) fn all(self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.ipv4.map(IpAddr::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }

    /// Whether they are those of a node with these. As in flannel, the IPv4 address decides where
    /// there is one.
    pub(crate) fn are_of(self, node: Self) -> bool {
        match self.ipv4 {
            Some(_) => self.ipv4 == node.ipv4,
            None => self.ipv6.is_some() && self.ipv6 == node.ipv6,
        }
    }
}

impl fmt::Display for Addresses {
    /// The address that the node goes by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ipv4, self.ipv6) {
            (Some(v4), _) => write!(f, "{v4}"),
            (None, Some(v6)) => write!(f, "{v6}"),
            (None, None) => f.write_str("nowhere"),
        }
    }
}

impl Lease {
    /// Its subnets.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        self.hops.iter().map(|hop| hop.subnet)
    }

    /// The addresses by which its node is reached.
    pub(crate) fn addresses(&self) -> Addresses {
        let mut addresses = Addresses::default();
        for hop in &self.hops {
            match hop.via {
                IpAddr::V4(v4) => addresses.ipv4 = Some(v4),
                IpAddr::V6(v6) => addresses.ipv6 = Some(v6),
            }
        }
        addresses
    }
}

/// An address of a network, counted from its first one, at most to its last.
pub(crate) fn address(network: IpNetwork, place: u128) -> IpAddr {
    match network {
        IpNetwork::V4(v4) => {
            let last = u128::from(u32::from(v4.broadcast()));
            let address = (u128::from(u32::from(v4.network())).saturating_add(place)).min(last);
            u32::try_from(address)
                .map_or(v4.network(), Into::into)
                .into()
        }
        IpNetwork::V6(v6) => {
            let last = u128::from(v6.broadcast());
            let address = u128::from(v6.network()).saturating_add(place).min(last);
            Ipv6Addr::from(address).into()
        }
    }
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// Subnets that are taken, none of which overlap, each with who has it, by where they begin.
pub(crate) struct Ground<T>(BTreeMap<IpAddr, (IpNetwork, T)>);

impl<T: Copy> Ground<T> {
    /// Nothing is taken.
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Takes a subnet that is free.
    pub(crate) fn take(&mut self, subnet: IpNetwork, whose: T) {
        self.0.insert(subnet.network(), (subnet, whose));
    }

    /// What is taken already and has an address in common with `subnet`.
    pub(crate) fn taken(&self, subnet: IpNetwork) -> Option<(IpNetwork, T)> {
        // It begins before the subnet or within it.
        let before = self.0.range(..=subnet.network()).next_back();
        let after = self.0.range(subnet.network()..).next();
        let mut near = before.into_iter().chain(after).map(|(_, taken)| *taken);
        near.find(|(taken, _)| overlap(subnet, *taken))
    }
}
