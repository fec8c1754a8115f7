//! What a configuration is read from.

use cni::{Call, CniArgs, NetConf};
use ipnetwork::IpNetwork;

/// What a configuration is read from.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) call: &'a Call,
    pub(crate) conf: NetConf,
    pub(crate) args: CniArgs,
    /// Whether containers get any.
    pub(crate) has_addresses: bool,
    /// The node's subnets, without host bits; nothing where the subnet file is not needed.
    pub(crate) subnets: Vec<IpNetwork>,
    /// The cluster's networks, as far as they are known.
    pub(crate) networks: Vec<IpNetwork>,
}
