//! The node's subnet file, which flannel calls `subnet.env`.
//!
//! ```text
//! FLANNEL_NETWORK=10.10.0.0/16
//! FLANNEL_SUBNET=10.10.1.1/24
//! FLANNEL_MTU=1500
//! FLANNEL_IPMASQ=true
//! ```
//!
//! The agent writes the file once it knows the node's subnet, the plugin reads it at each ADD, and
//! shell scripts source it. So it is written without quotes or spaces, with the keys in flannel's
//! order, and replaced atomically. It is read as tolerantly as flannel's own readers do.

mod error;
mod parse;

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::path::Path;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use subnet::Subnet;

pub use error::Error;

/// Path of the file for flannel and its users.
pub const DEFAULT_PATH: &str = "/run/flannel/subnet.env";

/// The content of a subnet file, with at least one network and at least one subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`: the cluster's IPv4 networks, usually one.
    pub network: Vec<Ipv4Network>,
    /// `FLANNEL_SUBNET`: the node's IPv4 subnet, with its first address, which is the address of
    /// the bridge.
    pub subnet: Option<Ipv4Network>,
    /// `FLANNEL_IPV6_NETWORK`: the cluster's IPv6 networks, usually one.
    pub ipv6_network: Vec<Ipv6Network>,
    /// `FLANNEL_IPV6_SUBNET`: the node's IPv6 subnet, with its first address, which is the address
    /// of the bridge.
    pub ipv6_subnet: Option<Ipv6Network>,
    /// `FLANNEL_MTU`: MTU of the pods, in bytes; 0 means the kernel's default.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: true if the agent masquerades the traffic that leaves the cluster's
    /// network.
    pub ip_masq: bool,
}

const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

const MTU_EXPECTED: &str = "a number of bytes from 68 to 65535";
/// Valid MTUs of pods, in bytes: the kernel accepts no smaller one for IPv4, and no larger one for
/// a veth.
pub const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

impl SubnetEnv {
    /// Returns the content for a node that has `subnets`, at most one for each family, in the
    /// cluster's `networks`. The bridge gets the first address of each subnet. Errors contain the
    /// subnet.
    pub fn new(
        networks: &[IpNetwork],
        subnets: &[IpNetwork],
        mtu: u32,
        ip_masq: bool,
    ) -> Result<Self, Error> {
        if !MTU_RANGE.contains(&mtu) {
            return Err(invalid(MTU, &mtu.to_string(), MTU_EXPECTED));
        }
        let mut env = Self {
            network: Vec::new(),
            subnet: None,
            ipv6_network: Vec::new(),
            ipv6_subnet: None,
            mtu,
            ip_masq,
        };
        for network in networks {
            match network {
                IpNetwork::V4(v4) => env.network.push(*v4),
                IpNetwork::V6(v6) => env.ipv6_network.push(*v6),
            }
        }
        for subnet in subnets {
            check_subnet(*subnet, networks)?;
            let first = Subnet::of(*subnet).first_host();
            let with_gateway = IpNetwork::new(first, subnet.prefix());
            let is_second = match with_gateway.expect("the same prefix length") {
                IpNetwork::V4(v4) => env.subnet.replace(v4).is_some(),
                IpNetwork::V6(v6) => env.ipv6_subnet.replace(v6).is_some(),
            };
            if is_second {
                return Err(Error::Subnet {
                    subnet: *subnet,
                    reason: "is the second of its family, and a node has one",
                });
            }
        }
        for network in networks {
            if !subnets
                .iter()
                .any(|subnet| subnet.is_ipv4() == network.is_ipv4())
            {
                return Err(Error::Subnet {
                    subnet: *network,
                    reason: "is a network for which the node has no subnet",
                });
            }
        }
        Ok(env)
    }

    /// Parses the text of a subnet file. Like godotenv and a shell, it accepts `export`, quotes,
    /// surrounding spaces, comments, unknown keys, carriage returns and a byte order mark, and uses
    /// the last value of a repeated key. Like flannel, it accepts IPv6 networks in
    /// `FLANNEL_NETWORK`, and an MTU of 0, which means the kernel's default.
    ///
    /// Errors contain the key with its invalid value, all missing keys, or the subnet that is in
    /// none of the networks.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let env = parse::Values::read(text)?.into_env()?;
        for subnet in env.subnets() {
            let networks: Vec<_> = env.networks().collect();
            check_subnet(subnet, &networks)?;
        }
        Ok(env)
    }

    /// Reads the file at `path`. Errors contain the path.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read(path).map_err(io("read", path))?;
        Self::parse(&String::from_utf8_lossy(&text)).map_err(|source| Error::Content {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Writes the file at `path` atomically: a reader always sees either the old or the new
    /// content. Creates the directory if it is missing. The mode is 0644 for every umask.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        util::replace(path, self.to_string().as_bytes(), 0o644).map_err(io("write", path))
    }

    /// Returns the cluster's networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        let ipv4 = self.network.iter().copied().map(IpNetwork::V4);
        ipv4.chain(self.ipv6_network.iter().copied().map(IpNetwork::V6))
    }

    /// Returns the node's subnets, IPv4 first, each with the address of the bridge.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let ipv4 = self.subnet.map(IpNetwork::V4);
        ipv4.into_iter().chain(self.ipv6_subnet.map(IpNetwork::V6))
    }
}

/// Formats the text of the file, with the keys in flannel's order.
impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.network.is_empty() {
            writeln!(f, "{NETWORK}={}", join(&self.network))?;
        }
        if let Some(subnet) = self.subnet {
            writeln!(f, "{SUBNET}={subnet}")?;
        }
        if !self.ipv6_network.is_empty() {
            writeln!(f, "{IPV6_NETWORK}={}", join(&self.ipv6_network))?;
        }
        if let Some(subnet) = self.ipv6_subnet {
            writeln!(f, "{IPV6_SUBNET}={subnet}")?;
        }
        writeln!(f, "{MTU}={}", self.mtu)?;
        writeln!(f, "{IPMASQ}={}", self.ip_masq)
    }
}

fn join<T: fmt::Display>(list: &[T]) -> String {
    let mut text = String::new();
    for (i, item) in list.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(text, "{comma}{item}").expect("writing to a string never fails");
    }
    text
}

/// Checks that a node can have this subnet in these networks of the cluster.
fn check_subnet(subnet: IpNetwork, networks: &[IpNetwork]) -> Result<(), Error> {
    let invalid = |reason| Err(Error::Subnet { subnet, reason });
    let subnet = Subnet::of(subnet);
    if subnet.is_too_small() {
        return invalid("is too small for a gateway and a pod");
    }
    let mut networks = networks.iter().map(|network| Subnet::of(*network));
    if !networks.any(|network| network.contains(subnet)) {
        return invalid("is not in any of the networks");
    }
    Ok(())
}

fn invalid(key: &'static str, value: &str, expected: &'static str) -> Error {
    Error::Invalid {
        key,
        value: value.to_owned(),
        expected,
    }
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
