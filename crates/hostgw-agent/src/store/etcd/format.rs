//! Keys and values of leases in etcd, byte for byte as flannel writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::network::{Addresses, Hop, Lease, NetConf, SubnetPool};

/// The subnets of a lease, at most one per family.
///
/// They are the lease's key: `10.10.1.0-24`, or with IPv6 after an ampersand,
/// `10.10.1.0-24&fd00:10:10:1::-64`. Without IPv4, flannel writes `0.0.0.0-0` in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Subnets {
    pub(crate) ipv4: Option<Ipv4Network>,
    pub(crate) ipv6: Option<Ipv6Network>,
}

/// The value of a lease: the addresses and the backend of its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Value {
    #[serde(rename = "PublicIP", default = "nowhere")]
    pub(crate) public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6", default)]
    pub(crate) public_ipv6: Option<Ipv6Addr>,
    #[serde(default)]
    pub(crate) backend_type: String,
}

/// Backend type in every lease that we write.
pub(crate) const HOST_GW: &str = "host-gw";

fn nowhere() -> Ipv4Addr {
    Ipv4Addr::UNSPECIFIED
}

impl Subnets {
    /// Returns the subnets, IPv4 first.
    pub(crate) fn all(self) -> impl Iterator<Item = IpNetwork> {
        let ipv4 = self.ipv4.map(IpNetwork::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpNetwork::V6))
    }

    /// Returns true if a node can hold these subnets in this network: there is at least one, and
    /// the network configuration enables the family of each and can assign it.
    pub(crate) fn fit(self, network: &NetConf) -> bool {
        let fits = |subnet: Option<IpNetwork>, pool: Option<_>| match (subnet, pool) {
            (None, _) => true,
            (Some(subnet), Some(pool)) => SubnetPool::fits(&pool, subnet),
            (Some(_), None) => false,
        };
        self.all().next().is_some()
            && fits(self.ipv4.map(Into::into), network.ipv4)
            && fits(self.ipv6.map(Into::into), network.ipv6)
    }

    /// Returns the subnets that a subnet file names.
    pub(crate) fn from_subnet_file(file: &subnet_env::SubnetEnv) -> Self {
        let ipv4 = file
            .subnet
            .map(|v4| Ipv4Network::new(v4.network(), v4.prefix()));
        let ipv6 = file
            .ipv6_subnet
            .map(|v6| Ipv6Network::new(v6.network(), v6.prefix()));
        let whole = "a network's own prefix length";
        Self {
            ipv4: ipv4.map(|v4| v4.expect(whole)),
            ipv6: ipv6.map(|v6| v6.expect(whole)),
        }
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ipv4 {
            Some(v4) => write!(f, "{}-{}", v4.network(), v4.prefix())?,
            None => write!(f, "0.0.0.0-0")?,
        }
        match self.ipv6 {
            Some(v6) => write!(f, "&{}-{}", v6.network(), v6.prefix()),
            None => Ok(()),
        }
    }
}

impl FromStr for Subnets {
    type Err = ();

    fn from_str(key: &str) -> Result<Self, ()> {
        let (ipv4, ipv6) = match key.split_once('&') {
            Some((ipv4, ipv6)) => (ipv4, Some(ipv6)),
            None => (key, None),
        };
        // A key with host bits set stands for the network without them.
        let v4 = |text| {
            let (ip, prefix) = network(text, 32)?;
            let v4 = Ipv4Network::new(ip, prefix).ok()?;
            Ipv4Network::new(v4.network(), prefix).ok()
        };
        let v6 = |text| {
            let (ip, prefix) = network(text, 128)?;
            let v6 = Ipv6Network::new(ip, prefix).ok()?;
            Ipv6Network::new(v6.network(), prefix).ok()
        };
        let ipv6 = ipv6.map(v6);
        let ipv4 = match ipv4 {
            "0.0.0.0-0" if ipv6.is_some() => None,
            text => Some(v4(text)),
        };
        // A family that the key names must be readable.
        let subnets = Self {
            ipv4: ipv4.map(|network| network.ok_or(())).transpose()?,
            ipv6: ipv6.map(|network| network.ok_or(())).transpose()?,
        };
        Ok(subnets)
    }
}

/// Parses `ADDRESS-LENGTH` as strictly as flannel does: it ignores keys with other characters, and
/// keys with the prefix length of a single address. A whole family is no subnet, either.
fn network<A: FromStr>(text: &str, bits: u8) -> Option<(A, u8)> {
    let (address, prefix) = text.rsplit_once('-')?;
    // IPv6 must be in lower case and must not end with an IPv4 address.
    let is_mixed = address.contains(':') && address.contains('.');
    let is_lower = !is_mixed && !address.bytes().any(|byte| byte.is_ascii_uppercase());
    let is_number = prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix = prefix.parse().ok()?;
    (is_lower && is_number && (1..bits).contains(&prefix))
        .then_some((address.parse().ok()?, prefix))
}

impl Value {
    /// Returns the value that we write: our backend, and the addresses of the families of
    /// `subnets`.
    pub(crate) fn new(subnets: Subnets, addresses: Addresses) -> Self {
        let ipv4 = addresses.ipv4.filter(|_| subnets.ipv4.is_some());
        Self {
            public_ip: ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: addresses.ipv6.filter(|_| subnets.ipv6.is_some()),
            backend_type: HOST_GW.to_owned(),
        }
    }

    /// Returns the addresses in the value.
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses {
            ipv4: Some(self.public_ip).filter(|address| !address.is_unspecified()),
            ipv6: self.public_ipv6,
        }
    }
}

/// Returns the lease that a key and a value make. If they are not usable, the lease has the reason.
pub(crate) fn lease(key: &str, subnets: Option<Subnets>, value: &Result<Value, String>) -> Lease {
    let invalid = |reason: &str| Lease::new(key, Vec::new(), Some(reason.to_owned()));
    let Some(subnets) = subnets else {
        return invalid("its key is not a subnet");
    };
    let value = match value {
        Ok(value) => value,
        Err(reason) => return invalid(reason),
    };
    let Addresses { ipv4, ipv6 } = value.addresses();
    let hop = |subnet: Option<IpNetwork>, via: Option<IpAddr>| {
        let (subnet, via) = (subnet?, via?);
        Some(Hop { subnet, via })
    };
    let ipv4 = hop(subnets.ipv4.map(Into::into), ipv4.map(Into::into));
    let ipv6 = hop(subnets.ipv6.map(Into::into), ipv6.map(Into::into));
    let hops: Vec<_> = ipv4.into_iter().chain(ipv6).collect();
    let reason = if value.backend_type != HOST_GW {
        let other = &value.backend_type;
        Some(format!("its backend is {other:?}, not {HOST_GW:?}"))
    } else if hops.is_empty() {
        Some("it has no address of its subnet's family".to_owned())
    } else {
        None
    };
    Lease::new(key, hops, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_flannel_writes_them() {
        for key in [
            "10.10.1.0-24",
            "10.10.1.0-24&fd00:10:10:1::-64",
            "0.0.0.0-0&fd00:10:10:1::-64",
        ] {
            let subnets: Subnets = key.parse().expect(key);
            assert_eq!(subnets.to_string(), key);
        }
        // A key with host bits set stands for the same subnet.
        let with_host_bits: Subnets = "10.10.1.7-24&fd00:10:10:1::9-64"
            .parse()
            .expect("it names one");
        assert_eq!(with_host_bits.to_string(), "10.10.1.0-24&fd00:10:10:1::-64");
        for key in [
            "",
            "10.10.1.0",
            "10.10.1.0-33",
            "x-24",
            "10.10.1.0-24&",
            "10.10.1.0-32",
            "10.10.1.0-+24",
            "10.10.1.0-24&fc00::-128",
            "10.10.1.0-24&FD00::-64",
            "10.10.1.0-24&::ffff:10.0.0.0-64",
            "0.0.0.0-0&x-64",
        ] {
            assert!(key.parse::<Subnets>().is_err(), "{key}");
        }
    }

    #[test]
    fn values_are_written_as_flannel_writes_them() {
        for value in [
            r#"{"PublicIP":"192.168.2.15","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"192.168.2.15","PublicIPv6":"fd00::1","BackendType":"host-gw"}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendType":"host-gw"}"#,
        ] {
            let read: Value = serde_json::from_str(value).expect(value);
            assert_eq!(serde_json::to_string(&read).expect("written"), value);
        }
    }

    #[test]
    fn a_lease_that_cannot_be_routed_has_a_reason() {
        let invalid_reason = |key: &str, value: &str| {
            let value = serde_json::from_str(value).map_err(|error| error.to_string());
            lease(key, key.parse().ok(), &value)
                .invalid_reason
                .unwrap_or_default()
        };
        let good = r#"{"PublicIP":"192.168.2.15","PublicIPv6":null,"BackendType":"host-gw"}"#;
        assert_eq!(invalid_reason("10.10.1.0-24", good), "");
        assert_eq!(invalid_reason("lock", good), "its key is not a subnet");
        assert_eq!(
            invalid_reason(
                "10.10.1.0-24",
                r#"{"PublicIP":"192.168.2.15","BackendType":"vxlan","BackendData":{"VNI":1}}"#
            ),
            r#"its backend is "vxlan", not "host-gw""#
        );
        // A family without an address does not affect the other one.
        assert_eq!(invalid_reason("10.10.1.0-24&fd00::-64", good), "");
        assert_eq!(
            invalid_reason("0.0.0.0-0&fd00::-64", good),
            "it has no address of its subnet's family"
        );
        assert!(
            invalid_reason("10.10.1.0-24", r#"{"PublicIP":null}"#)
                .starts_with("invalid type: null")
        );
    }

    #[test]
    fn damaged_keys_and_values_never_panic() {
        let valid: [&[u8]; 2] = [
            br#"10.10.1.0-24&fd00:10:10:1::-64 {"PublicIP":"192.168.2.15","PublicIPv6":"fd00::1","BackendType":"host-gw"}"#,
            br#"0.0.0.0-0&fd00:10:10:1::-64 {"PublicIP":"192.168.2.15","BackendType":"vxlan","BackendData":{"VNI":1}}"#,
        ];
        random_input::never_panics(&valid, |input| {
            let text = String::from_utf8_lossy(input);
            let (key, value) = text.split_once(' ').unwrap_or((&text, ""));
            let subnets = key.parse::<Subnets>();
            if let Ok(subnets) = subnets {
                assert_eq!(subnets.to_string().parse(), Ok(subnets));
            }
            let value = serde_json::from_str(value).map_err(|error| error.to_string());
            drop(lease(key, subnets.ok(), &value));
        });
    }
}
