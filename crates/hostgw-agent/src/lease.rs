//! Leases: which node holds which subnet, as every store tells it.

use std::net::IpAddr;
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

impl Lease {
    /// Its subnets.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        self.hops.iter().map(|hop| hop.subnet)
    }
}

/// Whether two networks have an address in common.
pub(crate) fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}
