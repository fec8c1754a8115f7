//! Parsers for the addresses and networks in network configurations.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

/// Parses an IP address. An IPv4-mapped IPv6 address (`::ffff:10.1.0.78`) becomes an IPv4 address,
/// as in Go.
#[must_use]
pub fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    Some(address.to_canonical())
}

/// Reads an address with its prefix length, such as `10.10.1.0/24`. Neither an address alone nor a netmask
/// is accepted. An IPv4 network that is written as IPv6 (`::ffff:10.1.0.0/112`) is one of IPv4, as in Go.
#[must_use]
pub fn network(text: &str) -> Option<IpNetwork> {
    let network = subnet::parse(text)?;
    match network.ip() {
        IpAddr::V6(v6) if is_ipv4_mapped(v6) && network.prefix() >= MAPPED_PREFIX_LEN => {
            IpNetwork::new(v6.to_canonical(), network.prefix() - MAPPED_PREFIX_LEN).ok()
        }
        _ => Some(network),
    }
}

/// Number of bits before the IPv4 address in an IPv4-mapped IPv6 address.
const MAPPED_PREFIX_LEN: u8 = 96;

fn is_ipv4_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// Reads a network from a string, for `deserialize_with`.
pub fn deserialize_network<'de, D: Deserializer<'de>>(from: D) -> Result<IpNetwork, D::Error> {
    let text = String::deserialize(from)?;
    network(&text)
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not a network such as 10.10.1.0/24")))
}

/// Reads a network from a string, for `deserialize_with` of an optional field.
pub fn deserialize_optional_network<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<IpNetwork>, D::Error> {
    deserialize_network(from).map(Some)
}

/// Reads an address from a string, for `deserialize_with` of an optional field. An empty string
/// counts as missing, as in Go.
pub fn deserialize_optional_address<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    match address(&text) {
        Some(address) => Ok(Some(address)),
        None => Err(D::Error::custom(format!("{text:?} is not an IP address"))),
    }
}

/// Writes a value as a string, for `serialize_with`.
pub(crate) fn serialize_as_text<T: ToString, S: Serializer>(
    value: &T,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
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
    fn an_ipv4_mapped_address_is_read_as_ipv4() {
        assert_eq!(address("::ffff:10.1.0.78"), "10.1.0.78".parse().ok());
        assert_eq!(address("::ffff:a01:4e"), "10.1.0.78".parse().ok());
        assert_eq!(address("fd00::1"), "fd00::1".parse().ok());
        assert_eq!(address("10.1"), None);
    }
}
