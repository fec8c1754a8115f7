//! The parts from which the configuration is made.

use cni::{Call, CniArgs};
use ipnetwork::IpNetwork;
use netconf::NetConf;

/// The parsed configuration, and what the node's subnet file adds to it.
#[derive(Debug)]
pub(crate) struct ConfigInput<'a> {
    pub(crate) call: &'a Call,
    pub(crate) conf: NetConf,
    pub(crate) args: CniArgs,
    /// True if containers get addresses.
    pub(crate) has_addresses: bool,
    /// The node's subnets. Empty if the subnet file is not needed.
    pub(crate) subnets: Vec<IpNetwork>,
    /// Networks of the cluster, as far as they are known.
    pub(crate) networks: Vec<IpNetwork>,
}
