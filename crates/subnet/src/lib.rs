//! IP networks: strict parsing, and the arithmetic that address management and routing need.
//!
//! `ipnetwork` also accepts addresses alone and netmasks, and keeps host bits. [`parse`] accepts only an
//! address with a prefix length, and a [`Subnet`] has no host bits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// A network without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet(IpNetwork);

/// Reads an address with its prefix length, such as `10.10.1.5/24`. Neither an address alone nor a
/// netmask is accepted.
#[must_use]
pub fn parse(text: &str) -> Option<IpNetwork> {
    let (address, prefix) = text.split_once('/')?;
    let is_number = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let (address, prefix) = (address.parse().ok()?, prefix.parse().ok()?);
    IpNetwork::new(address, prefix).ok().filter(|_| is_number)
}

/// An address as a number.
#[must_use]
pub fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

impl Subnet {
    /// The network that an address with a prefix length belongs to.
    #[must_use]
    pub fn of(network: IpNetwork) -> Self {
        let whole = IpNetwork::new(network.network(), network.prefix());
        Self(whole.expect("its own prefix length"))
    }

    /// The network.
    #[must_use]
    pub fn network(self) -> IpNetwork {
        self.0
    }

    /// The address at `offset` from the first address, at most the last one.
    #[must_use]
    pub fn address_at(self, offset: u128) -> IpAddr {
        let first = to_number(self.0.network());
        self.from_number(first.saturating_add(offset))
    }

    /// The address with this number, at most the last one.
    #[must_use]
    pub fn from_number(self, number: u128) -> IpAddr {
        let number = number.min(to_number(self.0.broadcast()));
        if self.0.is_ipv4() {
            let number = u32::try_from(number).expect("at most the last address of IPv4");
            Ipv4Addr::from(number).into()
        } else {
            Ipv6Addr::from(number).into()
        }
    }

    /// The first address after the network's own: the usual gateway.
    #[must_use]
    pub fn first_host(self) -> IpAddr {
        self.address_at(1)
    }

    /// True if `other` is a part of this network, or the same.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0.prefix() <= other.0.prefix() && self.0.contains(other.0.ip())
    }

    /// True if the networks have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// True if there is no room for a gateway and a pod.
    #[must_use]
    pub fn is_too_small(self) -> bool {
        self.0.prefix() > if self.0.is_ipv4() { 30 } else { 126 }
    }

    /// The multicast network of this network's family.
    #[must_use]
    pub fn multicast(self) -> IpNetwork {
        let (address, prefix): (IpAddr, _) = if self.0.is_ipv4() {
            (Ipv4Addr::new(224, 0, 0, 0).into(), 4)
        } else {
            (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8)
        };
        IpNetwork::new(address, prefix).expect("a prefix length of its family")
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::of(parse(text).expect(text))
    }

    #[test]
    fn a_network_needs_a_prefix_length() {
        assert_eq!(
            parse("10.10.1.5/24").map(|n| n.to_string()).as_deref(),
            Some("10.10.1.5/24")
        );
        for text in [
            "10.10.1.0",
            "10.10.1.0/",
            "10.10.1.0/+24",
            "10.10.1.0/255.255.255.0",
            "10.10.1.0/33",
            "10.10.1.0/24/1",
            "x/24",
            "fd00::/129",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn addresses_are_counted_from_the_first_to_the_last() {
        for (network, offset, address) in [
            ("10.10.1.77/24", 0, "10.10.1.0"),
            ("10.10.1.0/24", 1, "10.10.1.1"),
            ("10.10.1.0/24", u128::MAX, "10.10.1.255"),
            ("0.0.0.0/0", u128::MAX, "255.255.255.255"),
            ("fd00::/64", 2, "fd00::2"),
            ("::/0", u128::MAX, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let found = subnet(network).address_at(offset).to_string();
            assert_eq!(found, address, "{network} {offset}");
        }
    }

    #[test]
    fn overlap_means_an_address_in_common() {
        let one = subnet("10.10.1.0/24");
        for (other, overlaps, contains) in [
            ("10.10.1.0/24", true, true),
            ("10.10.1.128/25", true, true),
            ("10.10.0.0/16", true, false),
            ("10.10.2.0/24", false, false),
            ("::/0", false, false),
        ] {
            let other = subnet(other);
            assert_eq!(one.overlaps(other), overlaps, "{other}");
            assert_eq!(other.overlaps(one), overlaps, "{other}");
            assert_eq!(one.contains(other), contains, "{other}");
        }
    }

    #[test]
    fn the_multicast_network_is_of_the_same_family() {
        assert_eq!(subnet("10.0.0.0/8").multicast().to_string(), "224.0.0.0/4");
        assert_eq!(subnet("fd00::/8").multicast().to_string(), "ff00::/8");
    }
}
