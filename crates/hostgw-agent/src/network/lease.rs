//! Leases: which node holds which subnet, in the form that all stores share.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{NetConf, excerpt, excerpt_of_sentence};

/// The complete content of a store at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The network configuration.
    pub(crate) network: NetConf,
    /// Every node's lease, the oldest first.
    pub(crate) leases: Vec<Arc<Lease>>,
}

/// The subnets that one node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// The node's name. etcd has no names: there it is the lease's key.
    pub(crate) node: String,
    /// Its subnets with their next hops, at most one for each family.
    pub(crate) hops: Vec<Hop>,
    /// Why nothing can be routed to this node, whatever the hops are.
    #[serde(rename = "flaw")]
    pub(crate) invalid_reason: Option<String>,
}

/// A subnet, and the address of the node that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hop {
    pub(crate) subnet: IpNetwork,
    pub(crate) via: IpAddr,
}

/// The addresses by which a node is reached, at most one for each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) ipv4: Option<Ipv4Addr>,
    pub(crate) ipv6: Option<Ipv6Addr>,
}

/// This node's lease as it is stored in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EtcdLease {
    /// Its key, without the prefix.
    pub(crate) name: String,
    /// The addresses in its value.
    pub(crate) addresses: Addresses,
    /// The ID of etcd's own lease. 0 for a reservation, which never expires.
    #[serde(rename = "etcd_lease")]
    pub(crate) id: i64,
    /// When it expires, in seconds since 1970. `None` for a reservation.
    #[serde(default)]
    pub(crate) expires: Option<u64>,
    /// When it expires, as a time since the boot. Within the same boot, this one counts, because the
    /// wall clock may have been changed.
    #[serde(default)]
    pub(crate) expires_in_boot: Option<BootTime>,
}

/// A number of seconds since a certain boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BootTime {
    /// The kernel's ID of the boot.
    pub(crate) boot: String,
    /// Seconds since then.
    pub(crate) seconds: u64,
}

impl BootTime {
    /// The present time. `None` if `/proc` is not readable.
    pub(crate) fn now() -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        Some(Self {
            boot: boot.trim().to_owned(),
            seconds: uptime.split('.').next()?.parse().ok()?,
        })
    }
}

impl Addresses {
    /// The address of each family, IPv4 first.
    pub(crate) fn all(self) -> impl Iterator<Item = IpAddr> {
        let ipv4 = self.ipv4.map(IpAddr::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }

    /// True if they belong to the node with the addresses `node`. As in flannel, the IPv4 address
    /// decides if there is one.
    pub(crate) fn are_of(self, node: Self) -> bool {
        match self.ipv4 {
            Some(_) => self.ipv4 == node.ipv4,
            None => self.ipv6.is_some() && self.ipv6 == node.ipv6,
        }
    }

    /// These addresses, and those of `other` for families that these lack.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            ipv4: self.ipv4.or(other.ipv4),
            ipv6: self.ipv6.or(other.ipv6),
        }
    }
}

impl fmt::Display for Addresses {
    /// Shows the IPv4 address, or else the IPv6 address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ipv4, self.ipv6) {
            (Some(v4), _) => write!(f, "{v4}"),
            (None, Some(v6)) => write!(f, "{v6}"),
            (None, None) => f.write_str("no address"),
        }
    }
}

impl Lease {
    /// Creates a lease from what a store says. Texts are made fit to be shown.
    pub(crate) fn new(node: &str, hops: Vec<Hop>, invalid_reason: Option<String>) -> Self {
        Self {
            node: excerpt(node),
            hops,
            invalid_reason: invalid_reason.map(|reason| excerpt_of_sentence(&reason)),
        }
    }

    /// The node's subnets.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        self.hops.iter().map(|hop| hop.subnet)
    }

    /// The addresses by which the node is reached.
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
