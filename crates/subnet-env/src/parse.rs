//! Parsing of the subnet file.

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use subnet::Subnet;

use crate::{
    Error, IPMASQ, IPV6_NETWORK, IPV6_SUBNET, MTU, MTU_EXPECTED, MTU_RANGE, NETWORK, SUBNET,
    SubnetEnv, invalid,
};

/// The values of the keys that the text contains.
#[derive(Default)]
pub(crate) struct Values {
    /// Networks of both families.
    network: Vec<IpNetwork>,
    subnet: Option<Ipv4Network>,
    ipv6_network: Vec<IpNetwork>,
    ipv6_subnet: Option<Ipv6Network>,
    mtu: Option<u32>,
    ip_masq: Option<bool>,
}

impl Values {
    /// Reads the known keys. Errors contain the key and its invalid value.
    pub(crate) fn read(text: &str) -> Result<Self, Error> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut values = Self::default();
        for (key, value) in text.lines().filter_map(assignment) {
            match key {
                NETWORK => values.network = list(NETWORK, value, "a list of networks", |_| true)?,
                SUBNET => {
                    values.subnet = one(SUBNET, value, "an IPv4 subnet", |n| match n {
                        IpNetwork::V4(v4) => Some(v4),
                        IpNetwork::V6(_) => None,
                    })?;
                }
                IPV6_NETWORK => {
                    let expected = "a list of IPv6 networks";
                    values.ipv6_network = list(IPV6_NETWORK, value, expected, IpNetwork::is_ipv6)?;
                }
                IPV6_SUBNET => {
                    values.ipv6_subnet = one(IPV6_SUBNET, value, "an IPv6 subnet", |n| match n {
                        IpNetwork::V6(v6) => Some(v6),
                        IpNetwork::V4(_) => None,
                    })?;
                }
                MTU => values.mtu = Some(mtu(value)?),
                // Like flannel's readers, accept only `true` as true.
                IPMASQ => values.ip_masq = Some(value == "true"),
                _ => {}
            }
        }
        Ok(values)
    }

    /// Returns the content of the file. Fails with all keys that are missing.
    pub(crate) fn into_env(self) -> Result<SubnetEnv, Error> {
        let (mut network, mut ipv6_network) = (Vec::new(), Vec::new());
        for listed in self.network.into_iter().chain(self.ipv6_network) {
            match listed {
                IpNetwork::V4(v4) if !network.contains(&v4) => network.push(v4),
                IpNetwork::V6(v6) if !ipv6_network.contains(&v6) => ipv6_network.push(v6),
                _ => {}
            }
        }
        let mut missing = Vec::new();
        if network.is_empty() && ipv6_network.is_empty() {
            missing.extend([NETWORK, IPV6_NETWORK]);
        }
        if self.subnet.is_none() && self.ipv6_subnet.is_none() {
            missing.extend([SUBNET, IPV6_SUBNET]);
        }
        missing.extend(self.mtu.is_none().then_some(MTU));
        missing.extend(self.ip_masq.is_none().then_some(IPMASQ));
        match (self.mtu, self.ip_masq) {
            (Some(mtu), Some(ip_masq)) if missing.is_empty() => Ok(SubnetEnv {
                network,
                subnet: self.subnet,
                ipv6_network,
                ipv6_subnet: self.ipv6_subnet,
                mtu,
                ip_masq,
            }),
            _ => Err(Error::Missing(missing)),
        }
    }
}

fn mtu(value: &str) -> Result<u32, Error> {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|_| is_number);
    let is_mtu = |mtu: &u32| *mtu == 0 || MTU_RANGE.contains(mtu);
    number
        .filter(is_mtu)
        .ok_or_else(|| invalid(MTU, value, MTU_EXPECTED))
}

/// Splits a line of the form `KEY=VALUE`. Returns `None` for other lines.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (key, value) = line.split_once('=')?;
    let value = value.trim();
    let quoted = |quote| {
        value
            .strip_prefix(quote)
            .and_then(|rest: &str| rest.split_once(quote))
    };
    let value = match quoted('"').or_else(|| quoted('\'')) {
        Some((inner, _)) => inner,
        None => value
            .split_once(" #")
            .map_or(value, |(value, _)| value.trim_end()),
    };
    Some((key.trim(), value))
}

fn one<T>(
    key: &'static str,
    value: &str,
    expected: &'static str,
    match_family: impl Fn(IpNetwork) -> Option<T>,
) -> Result<Option<T>, Error> {
    if value.is_empty() {
        return Ok(None);
    }
    let network = subnet::parse(value).and_then(match_family);
    network
        .map(Some)
        .ok_or_else(|| invalid(key, value, expected))
}

/// Parses a list of networks, and clears their host bits.
fn list(
    key: &'static str,
    value: &str,
    expected: &'static str,
    is_of_family: impl Fn(&IpNetwork) -> bool,
) -> Result<Vec<IpNetwork>, Error> {
    let mut networks = Vec::new();
    for part in value.split(',').map(str::trim) {
        let match_family = |network| Some(network).filter(&is_of_family);
        if let Some(network) = one(key, part, expected, match_family)? {
            networks.push(Subnet::of(network).network());
        }
    }
    Ok(networks)
}
