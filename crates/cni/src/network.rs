//! Addresses and networks as configurations write them.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// An address. One of IPv4 in the clothes of IPv6 (`::ffff:10.1.0.78`) is one of IPv4, as in Go.
#[must_use]
pub fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    Some(address.to_canonical())
}

/// An address with its prefix length, such as `10.10.1.0/24`: neither an address alone nor a
/// netmask will do.
#[must_use]
pub fn network(text: &str) -> Option<IpNetwork> {
    let (address, prefix) = text.split_once('/')?;
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (address, prefix) = (address.parse().ok()?, prefix.parse().ok()?);
    let network = IpNetwork::new(address, prefix).ok()?;
    Some(match address {
        IpAddr::V6(v6) if is_mapped(v6) && prefix >= MAPPED => {
            IpNetwork::new(address.to_canonical(), prefix - MAPPED).ok()?
        }
        _ => network,
    })
}

/// The bits before an IPv4 address that is written as one of IPv6.
const MAPPED: u8 = 96;

fn is_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_a_prefix_length() {
        for (text, read) in [
            ("10.10.1.0/24", "10.10.1.0/24"),
            ("fd00::5/64", "fd00::5/64"),
            ("::ffff:10.1.0.0/112", "10.1.0.0/16"),
        ] {
            assert_eq!(network(text).map(|n| n.to_string()).as_deref(), Some(read));
        }
        for bad in [
            "10.10.1.0",
            "10.10.1.0/",
            "10.10.1.0/255.255.255.0",
            "10.10.1.0/+24",
            "10.10.1.0/33",
            "10.10.1.0/24/1",
            "fd00::/129",
            "/24",
        ] {
            assert_eq!(network(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_mapped_address_is_one_of_ipv4() {
        assert_eq!(address("::ffff:10.1.0.78"), "10.1.0.78".parse().ok());
        assert_eq!(address("::ffff:a01:4e"), "10.1.0.78".parse().ok());
        assert_eq!(address("fd00::1"), "fd00::1".parse().ok());
        assert_eq!(address("10.1"), None);
    }
}
