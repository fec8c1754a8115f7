//! Leases: which node holds which subnet, as every store tells it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::net_conf::NetConf;

/// Everything that a store knows at one moment. Always whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The network's configuration.
    pub(crate) network: NetConf,
    /// Every node's lease.
    pub(crate) leases: Vec<Lease>,
}

/// What one node holds: one hop of each enabled family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The node's name.
    pub(crate) node: String,
    /// Its subnets and how to get there.
    pub(crate) hops: Vec<Hop>,
}

/// A subnet and the address of the node that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) subnet: IpNetwork,
    pub(crate) via: IpAddr,
}
