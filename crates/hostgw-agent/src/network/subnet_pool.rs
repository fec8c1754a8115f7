//! The subnets of one family that nodes can get.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};
use subnet::{Subnet, to_number};

use super::error::Error;

/// The subnet pool of one family: its network, and the subnets in it that nodes can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubnetPool {
    /// The network, without host bits.
    pub(crate) network: IpNetwork,
    /// The prefix length of a node's subnet.
    pub(crate) length: u8,
    /// The first address of the first and of the last subnet that a node can get.
    pub(super) first: IpAddr,
    pub(super) last: IpAddr,
}

/// The keys of one family, and its limits.
pub(super) struct FamilyKeys {
    pub(super) network: &'static str,
    pub(super) length: &'static str,
    pub(super) min: &'static str,
    pub(super) max: &'static str,
    family: &'static str,
    example: &'static str,
    default_length: u8,
    max_length: u8,
    is_ipv4: bool,
}

pub(super) const IPV4: FamilyKeys = FamilyKeys {
    network: "Network",
    length: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    family: "IPv4",
    example: "10.244.0.0/16",
    default_length: 24,
    max_length: 30,
    is_ipv4: true,
};

pub(super) const IPV6: FamilyKeys = FamilyKeys {
    network: "IPv6Network",
    length: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    family: "IPv6",
    example: "fd00:10:244::/48",
    default_length: 64,
    max_length: 126,
    is_ipv4: false,
};

impl SubnetPool {
    pub(super) fn check(object: &Map<String, Value>, keys: &FamilyKeys) -> Result<Self, Error> {
        let network = check_network(object, keys)?;
        let length = check_length(object, keys, network)?;
        let mut pool = Self {
            network,
            length,
            first: network.network(),
            last: network.network(),
        };
        let size = pool.size();
        let start = to_number(network.network());
        let count = 1_u128 << (length - network.prefix());
        // flannel leaves the first subnet out.
        pool.first = pool.address(start + size);
        pool.last = pool.address(start + count.wrapping_sub(1) * size);
        if let Some(first) = pool.check_bound(object, keys, keys.min)? {
            pool.first = first;
        }
        if let Some(last) = pool.check_bound(object, keys, keys.max)? {
            pool.last = last;
        }
        if pool.first > pool.last {
            let rule = format!("not be greater than {}, which is {}", keys.max, pool.last);
            return Err(Error::invalid(keys.min, &pool.first, rule));
        }
        Ok(pool)
    }

    fn check_bound(
        &self,
        object: &Map<String, Value>,
        keys: &FamilyKeys,
        key: &'static str,
    ) -> Result<Option<IpAddr>, Error> {
        let Some(value) = object.get(key) else {
            return Ok(None);
        };
        let invalid = |rule: String| Error::invalid(key, value, rule);
        let address: Option<IpAddr> = value.as_str().and_then(|text| text.parse().ok());
        let address = address.filter(|address| address.is_ipv4() == keys.is_ipv4);
        let address = address.ok_or_else(|| invalid(format!("be an {} address", keys.family)))?;
        if !self.network.contains(address) {
            let (network, name) = (self.network, keys.network);
            return Err(invalid(format!("be in {name}, which is {network}")));
        }
        if !to_number(address).is_multiple_of(self.size()) {
            let rule = format!(
                "be the first address of a subnet of {} (/{})",
                keys.length, self.length
            );
            return Err(invalid(rule));
        }
        Ok(Some(address))
    }

    /// The number of addresses in a subnet.
    fn size(&self) -> u128 {
        let bits = if self.network.is_ipv4() { 32 } else { 128 };
        1 << (bits - self.length)
    }

    fn address(&self, number: u128) -> IpAddr {
        Subnet::of(self.network).from_number(number)
    }

    /// True if a node can get `subnet`.
    pub(crate) fn fits(&self, subnet: IpNetwork) -> bool {
        subnet.prefix() == self.length
            && subnet.is_ipv4() == self.network.is_ipv4()
            && subnet.ip() == subnet.network()
            && (self.first..=self.last).contains(&subnet.ip())
    }

    /// The subnet with this address, if it is in the network.
    pub(crate) fn around(&self, address: IpAddr) -> Option<IpNetwork> {
        let subnet = IpNetwork::new(address, self.length).ok()?;
        let is_within = self.network.contains(address);
        is_within.then(|| Subnet::of(subnet).network())
    }

    /// The number of subnets for nodes.
    pub(crate) fn count(&self) -> u128 {
        (to_number(self.last) - to_number(self.first)) / self.size() + 1
    }

    /// The subnet with this index, which is less than [`count`](Self::count).
    pub(crate) fn subnet(&self, index: u128) -> IpNetwork {
        let address = self.address(to_number(self.first) + index * self.size());
        IpNetwork::new(address, self.length).expect("checked with the configuration")
    }
}

impl fmt::Display for SubnetPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            length,
            first,
            last,
            ..
        } = self;
        write!(f, "{first}/{length} to {last}/{length}")
    }
}

fn check_network(object: &Map<String, Value>, keys: &FamilyKeys) -> Result<IpNetwork, Error> {
    let key = keys.network;
    let value = object.get(key).ok_or(Error::Missing(key))?;
    let network = value.as_str().and_then(subnet::parse);
    let network = network.filter(|network| network.is_ipv4() == keys.is_ipv4);
    let network = network.ok_or_else(|| {
        let rule = format!("be an {} network such as \"{}\"", keys.family, keys.example);
        Error::invalid(key, value, rule)
    })?;
    if network.prefix() == 0 {
        return Err(Error::invalid(key, value, "not contain all addresses"));
    }
    let is_special = match network {
        IpNetwork::V4(v4) => {
            let ip = v4.network();
            ip.is_loopback() || ip.is_multicast() || ip.is_link_local()
        }
        IpNetwork::V6(v6) => {
            let ip = v6.network();
            ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local()
        }
    };
    if is_special {
        let rule = "not be a network of loopback, multicast or link-local addresses";
        return Err(Error::invalid(key, value, rule));
    }
    Ok(Subnet::of(network).network())
}

/// The prefix length of a node's subnet. At least four subnets must fit into the network.
fn check_length(
    object: &Map<String, Value>,
    keys: &FamilyKeys,
    network: IpNetwork,
) -> Result<u8, Error> {
    let (key, longest) = (keys.length, keys.max_length);
    let shortest = network.prefix() + 2;
    let value = object.get(key).unwrap_or(&Value::Null);
    let length = match value {
        Value::Null => 0,
        value => value
            .as_u64()
            .ok_or_else(|| Error::invalid(key, value, "be a number"))?,
    };
    if length == 0 {
        let length = keys.default_length.max(shortest);
        if length > longest {
            let rule = format!(
                "be a /{} or larger: four subnets must fit into it",
                longest - 2
            );
            return Err(Error::invalid(keys.network, &network, rule));
        }
        return Ok(length);
    }
    let length = u8::try_from(length).ok();
    let length = length.filter(|length| (shortest..=longest).contains(length));
    length.ok_or_else(|| {
        let rule = format!(
            "be from {shortest} (the prefix length of {} plus 2) to {longest}",
            keys.network
        );
        Error::invalid(key, value, rule)
    })
}
