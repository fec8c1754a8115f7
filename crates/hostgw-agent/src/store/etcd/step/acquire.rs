//! Acquires subnets for a node that holds none.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use ipnetwork::IpNetwork;

use super::{LeaseClaim, Step, create, family, update};
use crate::network::{NetConf, SubnetPool};
use crate::store::etcd::blocked::Blocked;
use crate::store::etcd::contents::{Contents, LeaseEntry};
use crate::store::etcd::format::{Subnets, Value};

impl LeaseClaim {
    /// Acquires a lease: one that is this node's already, or else a free one.
    pub(super) fn acquire(&self, contents: &Contents, network: &NetConf) -> Step {
        let own = self.own_entries(contents);
        let usable_subnets = |entry: &LeaseEntry| {
            let subnets = entry.subnets.filter(|subnets| subnets.fit(network))?;
            // The agent never changes a reservation.
            let is_complete = entry.meta.lease_id == 0
                || !self.lacks_family(subnets, network)
                || is_full_beside(contents, network, subnets);
            is_complete.then_some(subnets)
        };
        let mut usable = own
            .iter()
            .filter_map(|(name, entry)| Some((name, entry, usable_subnets(entry)?)));
        if let Some((name, entry, subnets)) = usable.next() {
            return update(name, entry, &self.value(subnets, entry));
        }
        // We must not delete a reservation.
        let old = own.iter().find(|(_, entry)| entry.meta.lease_id != 0);
        let replaces = old.map(|(name, entry)| ((*name).to_owned(), entry.meta.modified));
        let mut previous = self.previous.clone();
        previous.extend(old.and_then(|(_, entry)| entry.subnets));
        self.acquire_new(contents, network, &previous, replaces)
    }

    /// Acquires a free subnet of each family that both the network and this node have. If one family
    /// is missing, the other is acquired alone.
    pub(super) fn acquire_new(
        &self,
        contents: &Contents,
        network: &NetConf,
        previous: &[Subnets],
        replaces: Option<(String, i64)>,
    ) -> Step {
        let missing = self.missing_families(network);
        if missing.len() == network.pools().count() {
            return Blocked::NoAddress(missing).into();
        }
        let own = replaces.as_ref().map(|(name, _)| name.as_str());
        match self.choose(contents, network, previous, own) {
            Ok(subnets) => create(subnets, Value::new(subnets, self.addresses), replaces),
            Err(pool) => Blocked::NoFreeSubnet(pool).into(),
        }
    }

    /// A free subnet of each family: one that the node had before, or else one that depends on its
    /// address. Fails with the pool that is full.
    fn choose(
        &self,
        contents: &Contents,
        network: &NetConf,
        previous: &[Subnets],
        own: Option<&str>,
    ) -> Result<Subnets, SubnetPool> {
        let mut subnets = Subnets::default();
        let missing = self.missing_families(network);
        for pool in network.pools() {
            if missing.contains(&family(pool.network)) {
                continue;
            }
            let is_unused = contents.free(pool, own);
            let around: Vec<_> = self
                .addresses
                .all()
                .filter_map(|ip| pool.around(ip))
                .collect();
            let is_free = |subnet| is_unused(subnet) && !around.contains(&subnet);
            let previous = previous.iter().flat_map(|subnets| subnets.all());
            let mut previous = previous.filter(|subnet| pool.fits(*subnet) && is_free(*subnet));
            let count = pool.count();
            // The same index in each family, if it is free.
            let start = self.start_index() % count;
            let mut others = (0..count).map(|i| pool.subnet((start + i) % count));
            let subnet = previous
                .next()
                .or_else(|| others.find(|subnet| is_free(*subnet)));
            match subnet.ok_or(pool)? {
                IpNetwork::V4(v4) => subnets.ipv4 = Some(v4),
                IpNetwork::V6(v6) => subnets.ipv6 = Some(v6),
            }
        }
        Ok(subnets)
    }

    /// Where this node starts to look for a free subnet. It depends on the addresses, so that many
    /// new nodes do not all want the same.
    fn start_index(&self) -> u128 {
        let mut hasher = DefaultHasher::new();
        self.addresses.hash(&mut hasher);
        hasher.finish().into()
    }
}

/// True if no subnet is free of a family that is not among `subnets`.
pub(super) fn is_full_beside(contents: &Contents, network: &NetConf, subnets: Subnets) -> bool {
    let mut others = network.pools().filter(|pool| {
        let is_of_family = |subnet: IpNetwork| subnet.is_ipv4() == pool.network.is_ipv4();
        !subnets.all().any(is_of_family)
    });
    others.any(|pool| {
        let is_free = contents.free(pool, None);
        !(0..pool.count()).any(|i| is_free(pool.subnet(i)))
    })
}
