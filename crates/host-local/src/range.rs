//! Address ranges, validated when they are created.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use subnet::{Subnet, to_number};

/// A range as configured. Only the subnet is required.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeSpec {
    /// The subnet of the addresses, without host bits.
    pub subnet: IpNetwork,
    /// First address to allocate; by default the one after the network address.
    pub start: Option<IpAddr>,
    /// Last address to allocate; by default the last one before the broadcast address (IPv4), or
    /// the last one of the subnet (IPv6).
    pub end: Option<IpAddr>,
    /// Gateway, which is never allocated; by default the first address after the network address.
    pub gateway: Option<IpAddr>,
}

impl From<IpNetwork> for RangeSpec {
    fn from(subnet: IpNetwork) -> Self {
        Self {
            subnet,
            start: None,
            end: None,
            gateway: None,
        }
    }
}

/// Consecutive addresses of one subnet, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNetwork,
    start: u128,
    end: u128,
    gateway: IpAddr,
}

/// Ranges of one address family that do not overlap. An attachment gets one address from the whole
/// set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

/// Range sets that do not overlap. An attachment gets one address from each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSets(Vec<RangeSet>);

/// The reason why a range, a range set or a list of range sets is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum RangeError {
    #[error("network {0} has host bits set, the network address is {network}", network = .0.network())]
    HostBits(IpNetwork),
    #[error("network {0} too small to allocate from")]
    TooSmall(IpNetwork),
    #[error("{name} {address} not in network {subnet}")]
    Outside {
        name: &'static str,
        address: IpAddr,
        subnet: IpNetwork,
    },
    #[error("gateway {0} is not of the family of network {1}")]
    GatewayFamily(IpAddr, IpNetwork),
    #[error("rangeEnd {end} is before rangeStart {start}")]
    EndBeforeStart { start: IpAddr, end: IpAddr },
    #[error("no IP ranges specified")]
    NoSets,
    #[error("empty range set")]
    EmptySet,
    #[error("mixed address families in one range set: {0} and {1}")]
    MixedFamilies(IpNetwork, IpNetwork),
    #[error("ranges {0} and {1} overlap")]
    Overlap(Range, Range),
    #[error("invalid range set {0}: {1}")]
    InSet(usize, Box<RangeError>),
}

impl Range {
    /// Validates a range: the subnet has no host bits and at least four addresses, and contains the
    /// start and the end.
    pub fn new(spec: &RangeSpec) -> Result<Self, RangeError> {
        let subnet = spec.subnet;
        if subnet.ip() != subnet.network() {
            return Err(RangeError::HostBits(subnet));
        }
        if Subnet::of(subnet).is_too_small() {
            return Err(RangeError::TooSmall(subnet));
        }
        let (first, last) = (to_number(subnet.network()), to_number(subnet.broadcast()));
        let inside = |name, address: Option<IpAddr>, default| match address {
            None => Ok(default),
            Some(address) if subnet.contains(address) => Ok(to_number(address)),
            Some(address) => Err(RangeError::Outside {
                name,
                address,
                subnet,
            }),
        };
        let start = inside("rangeStart", spec.start, first + 1)?;
        // IPv6 has no broadcast address to exclude.
        let end = inside("rangeEnd", spec.end, last - u128::from(subnet.is_ipv4()))?;
        if end < start {
            let (start, end) = (address(subnet, start), address(subnet, end));
            return Err(RangeError::EndBeforeStart { start, end });
        }
        let gateway = spec.gateway.unwrap_or_else(|| address(subnet, first + 1));
        if gateway.is_ipv4() != subnet.is_ipv4() {
            return Err(RangeError::GatewayFamily(gateway, subnet));
        }
        // The gateway of an IPv6 subnet may have a link-local address, which is outside the subnet.
        let is_link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !is_link_local && !subnet.contains(gateway) {
            return Err(RangeError::Outside {
                name: "gateway",
                address: gateway,
                subnet,
            });
        }
        Ok(Self {
            subnet,
            start,
            end,
            gateway,
        })
    }

    /// Returns the subnet of the addresses.
    #[must_use]
    pub fn subnet(&self) -> IpNetwork {
        self.subnet
    }

    /// Returns the address of the gateway.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Returns `address` with the prefix length of the subnet, as it is configured in the
    /// container.
    #[must_use]
    pub fn with_prefix(&self, address: IpAddr) -> IpNetwork {
        IpNetwork::new(address, self.subnet.prefix()).expect("the subnet has that prefix length")
    }

    /// True if `address` is between the start and the end of this range. It may still be a gateway.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.subnet.is_ipv4()
            && (self.start..=self.end).contains(&to_number(address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4()
            && self.start <= other.end
            && other.start <= self.end
    }

    fn addresses(&self, from: u128) -> impl Iterator<Item = IpAddr> + use<> {
        let subnet = self.subnet;
        (from..=self.end).map(move |n| address(subnet, n))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{}",
            address(self.subnet, self.start),
            address(self.subnet, self.end)
        )
    }
}

impl RangeSet {
    fn new(specs: &[RangeSpec]) -> Result<Self, RangeError> {
        let ranges: Vec<_> = specs.iter().map(Range::new).collect::<Result<_, _>>()?;
        let first = ranges.first().ok_or(RangeError::EmptySet)?;
        if let Some(other) = ranges
            .iter()
            .find(|r| r.subnet.is_ipv4() != first.subnet.is_ipv4())
        {
            return Err(RangeError::MixedFamilies(first.subnet, other.subnet));
        }
        for (i, a) in ranges.iter().enumerate() {
            if let Some(b) = ranges[i + 1..].iter().find(|b| a.overlaps(b)) {
                return Err(RangeError::Overlap(a.clone(), b.clone()));
            }
        }
        Ok(Self(ranges))
    }

    /// Returns the range that contains `address`.
    #[must_use]
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.contains(address))
    }

    /// True if `address` is the gateway of one of the ranges.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.gateway == address)
    }

    /// Returns the ranges of the set.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// Returns every address once, except gateways, starting after `last` and ending with it.
    pub(crate) fn round_robin(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let current = last.and_then(|last| self.0.iter().position(|range| range.contains(last)));
        let last = current.and(last).map(to_number);
        let current = current.unwrap_or(0);
        let range = &self.0[current];
        let rest = range.addresses(last.unwrap_or(range.start));
        let rest = rest.filter(move |address| Some(to_number(*address)) != last);
        let others = self.0[current + 1..].iter().chain(&self.0[..current]);
        let others = others.flat_map(|range| range.addresses(range.start));
        let before = range.addresses(range.start);
        let before =
            before.take_while(move |address| last.is_some_and(|l| to_number(*address) <= l));
        let all = rest.chain(others).chain(before);
        all.filter(|address| !self.is_gateway(*address))
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl RangeSets {
    /// Validates the range sets. Errors contain the index of the set.
    pub fn new(specs: &[Vec<RangeSpec>]) -> Result<Self, RangeError> {
        if specs.is_empty() {
            return Err(RangeError::NoSets);
        }
        let mut sets: Vec<RangeSet> = Vec::new();
        for (i, specs) in specs.iter().enumerate() {
            let set = RangeSet::new(specs).map_err(|e| RangeError::InSet(i, Box::new(e)))?;
            for range in &set.0 {
                let mut earlier = sets.iter().flat_map(|set| &set.0);
                if let Some(other) = earlier.find(|other| other.overlaps(range)) {
                    let overlap = RangeError::Overlap(other.clone(), range.clone());
                    return Err(RangeError::InSet(i, Box::new(overlap)));
                }
            }
            sets.push(set);
        }
        Ok(Self(sets))
    }

    /// Returns the sets, in order.
    pub fn iter(&self) -> impl Iterator<Item = &RangeSet> {
        self.0.iter()
    }
}

fn address(subnet: IpNetwork, number: u128) -> IpAddr {
    Subnet::of(subnet).from_number(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(subnet: &str, start: &str, end: &str) -> RangeSpec {
        RangeSpec {
            subnet: subnet.parse().expect("a network"),
            start: start.parse().ok(),
            end: end.parse().ok(),
            gateway: None,
        }
    }

    fn sets(specs: &[&[RangeSpec]]) -> Result<RangeSets, RangeError> {
        RangeSets::new(&specs.iter().map(|set| set.to_vec()).collect::<Vec<_>>())
    }

    fn walk(set: &RangeSet, last: &str) -> Vec<String> {
        set.round_robin(last.parse().ok())
            .map(|address| address.to_string())
            .collect()
    }

    #[test]
    fn a_range_excludes_network_gateway_and_broadcast() {
        let set = RangeSet::new(&[spec("10.1.1.0/29", "", "")]).expect("valid");
        assert_eq!(
            walk(&set, ""),
            ["10.1.1.2", "10.1.1.3", "10.1.1.4", "10.1.1.5", "10.1.1.6"]
        );
        let set = RangeSet::new(&[spec("fd00::/126", "", "")]).expect("valid");
        assert_eq!(walk(&set, ""), ["fd00::2", "fd00::3"]);
    }

    #[test]
    fn the_last_reserved_address_is_tried_last() {
        let ranges = [
            spec("10.1.1.0/29", "10.1.1.5", ""),
            spec("10.1.2.0/29", "", "10.1.2.3"),
        ];
        let set = RangeSet::new(&ranges).expect("valid");
        assert_eq!(
            walk(&set, "10.1.1.6"),
            ["10.1.2.2", "10.1.2.3", "10.1.1.5", "10.1.1.6"]
        );
        assert_eq!(
            walk(&set, "10.1.2.2"),
            ["10.1.2.3", "10.1.1.5", "10.1.1.6", "10.1.2.2"]
        );
        assert_eq!(
            walk(&set, "10.9.9.9"),
            ["10.1.1.5", "10.1.1.6", "10.1.2.2", "10.1.2.3"]
        );
    }

    #[test]
    fn the_gateway_of_one_range_is_not_allocated_from_another() {
        let second = RangeSpec {
            gateway: "10.1.1.2".parse().ok(),
            ..spec("10.1.1.0/29", "10.1.1.4", "10.1.1.5")
        };
        let set = RangeSet::new(&[spec("10.1.1.0/29", "", "10.1.1.3"), second]).expect("valid");
        assert_eq!(walk(&set, ""), ["10.1.1.3", "10.1.1.4", "10.1.1.5"]);
    }

    #[test]
    fn the_last_ipv6_addresses_do_not_overflow() {
        let set = RangeSet::new(&[spec("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", "", "")]);
        let set = set.expect("valid");
        assert_eq!(
            set.round_robin("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe".parse().ok())
                .count(),
            14
        );
        assert_eq!(
            set.round_robin("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().ok())
                .count(),
            14
        );
    }

    #[test]
    fn errors_name_the_invalid_value() {
        let of = |specs: &[RangeSpec]| sets(&[specs]).expect_err("invalid").to_string();
        assert_eq!(
            of(&[spec("10.1.1.5/24", "", "")]),
            "invalid range set 0: network 10.1.1.5/24 has host bits set, the network address is 10.1.1.0"
        );
        assert_eq!(
            of(&[spec("10.1.1.0/31", "", "")]),
            "invalid range set 0: network 10.1.1.0/31 too small to allocate from"
        );
        assert_eq!(
            of(&[spec("10.1.1.0/24", "10.1.2.1", "")]),
            "invalid range set 0: rangeStart 10.1.2.1 not in network 10.1.1.0/24"
        );
        assert_eq!(
            of(&[spec("10.1.1.0/24", "10.1.1.9", "10.1.1.8")]),
            "invalid range set 0: rangeEnd 10.1.1.8 is before rangeStart 10.1.1.9"
        );
        let outside = RangeSpec {
            gateway: "10.1.2.1".parse().ok(),
            ..spec("10.1.1.0/24", "", "")
        };
        assert_eq!(
            of(&[outside]),
            "invalid range set 0: gateway 10.1.2.1 not in network 10.1.1.0/24"
        );
        assert_eq!(of(&[]), "invalid range set 0: empty range set");
        assert_eq!(
            of(&[spec("10.1.1.0/24", "", ""), spec("fd00::/64", "", "")]),
            "invalid range set 0: mixed address families in one range set: 10.1.1.0/24 and fd00::/64"
        );
        let (a, b) = (spec("10.1.0.0/16", "", ""), spec("10.1.1.0/24", "", ""));
        assert!(of(&[a.clone(), b.clone()]).ends_with("overlap"));
        for (subnet, gateway) in [("fd00::/64", "10.0.0.1"), ("10.1.1.0/24", "fd00::1")] {
            let gateway = gateway.parse().ok();
            let wrong = RangeSpec {
                gateway,
                ..spec(subnet, "", "")
            };
            assert!(of(&[wrong]).contains("is not of the family of network"));
        }
        assert_eq!(
            sets(&[&[a], &[b]]).expect_err("overlap").to_string(),
            "invalid range set 1: ranges 10.1.0.1-10.1.255.254 and 10.1.1.1-10.1.1.254 overlap"
        );
        assert_eq!(sets(&[]).expect_err("nothing"), RangeError::NoSets);
    }
}
