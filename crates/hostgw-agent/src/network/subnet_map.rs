//! Which subnets are taken, and by whom.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use subnet::Subnet;

/// Subnets that do not overlap, each with its owner.
pub(crate) struct SubnetMap<T>(BTreeMap<IpAddr, (IpNetwork, T)>);

impl<T: Copy> SubnetMap<T> {
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds a subnet that overlaps none of the others.
    pub(crate) fn insert(&mut self, subnet: IpNetwork, owner: T) {
        self.0.insert(subnet.network(), (subnet, owner));
    }

    /// The subnet in the map that overlaps `subnet`, with its owner.
    pub(crate) fn overlapping(&self, subnet: IpNetwork) -> Option<(IpNetwork, T)> {
        // It starts before the subnet or within it.
        let before = self.0.range(..=subnet.network()).next_back();
        let after = self.0.range(subnet.network()..).next();
        let mut near = before.into_iter().chain(after).map(|(_, entry)| *entry);
        near.find(|(other, _)| Subnet::of(subnet).overlaps(Subnet::of(*other)))
    }
}
