//! The node's subnet file: what flannel calls `subnet.env`.
//!
//! ```text
//! FLANNEL_NETWORK=10.10.0.0/16
//! FLANNEL_SUBNET=10.10.1.1/24
//! FLANNEL_MTU=1500
//! FLANNEL_IPMASQ=true
//! ```
//!
//! The agent writes it once it knows the node's subnet; the plugin reads it at each ADD;
//! shell scripts source it. So it is written without quotes or spaces, in flannel's order of
//! keys, and replaced in one step; and it is read as tolerantly as flannel's readers do.

use std::fmt::{self, Write as _};
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// Where flannel and its users keep the file.
pub const DEFAULT_PATH: &str = "/run/flannel/subnet.env";

/// The content of a subnet file: at least one network and at least one subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`: the cluster's IPv4 networks, usually one.
    pub network: Vec<Ipv4Network>,
    /// `FLANNEL_SUBNET`: the node's IPv4 subnet, written with its first address, which is the
    /// bridge's.
    pub subnet: Option<Ipv4Network>,
    /// `FLANNEL_IPV6_NETWORK`: the cluster's IPv6 networks, usually one.
    pub ipv6_network: Vec<Ipv6Network>,
    /// `FLANNEL_IPV6_SUBNET`: the same in IPv6.
    pub ipv6_subnet: Option<Ipv6Network>,
    /// `FLANNEL_MTU`: the pods' MTU in bytes; 0 is the kernel's default.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: whether the agent masquerades what leaves the cluster's network.
    pub ip_masq: bool,
}

/// Why a text is not a subnet file, or a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key's value is not what it should be.
    #[error("{key} is {value:?}, which is not {expected}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A node's subnet that is none.
    #[error("subnet {subnet} {reason}")]
    Subnet {
        /// The subnet.
        subnet: IpNetwork,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Keys that must be there and are not.
    #[error("is missing {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// The file's content is wrong.
    #[error("{path}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// The file cannot be read or written.
    #[error("{doing} {path}")]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

const MTU_EXPECTED: &str = "a number of bytes from 68 to 65535";
const OUTSIDE: &str = "lies in none of the networks";
/// MTUs in bytes that pods can have: the kernel takes nothing less for IPv4, and nothing more
/// for a veth.
pub const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

impl Error {
    /// Whether there is a file and it could not be read: neither that it is missing nor what is in it
    /// is known.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        !matches!(
            source.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    }
}

impl SubnetEnv {
    /// The content for a node that holds `subnets`, one of a family, in the cluster's
    /// `networks`. The subnet's first address is the bridge's. Errors name the subnet.
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
            let wrong = |reason| {
                Err(Error::Subnet {
                    subnet: *subnet,
                    reason,
                })
            };
            if !networks.iter().any(|network| is_inside(*subnet, *network)) {
                return wrong(OUTSIDE);
            }
            if is_too_small(*subnet) {
                return wrong("is too small for a gateway and a pod");
            }
            let twice = match subnet {
                IpNetwork::V4(v4) => {
                    let first = (u32::from(v4.network()) + 1).into();
                    let subnet = Ipv4Network::new(first, v4.prefix());
                    env.subnet
                        .replace(subnet.expect("the same prefix length"))
                        .is_some()
                }
                IpNetwork::V6(v6) => {
                    let first = (u128::from(v6.network()) + 1).into();
                    let subnet = Ipv6Network::new(first, v6.prefix());
                    env.ipv6_subnet
                        .replace(subnet.expect("the same prefix length"))
                        .is_some()
                }
            };
            if twice {
                return wrong("is the second of its family, and a node has one");
            }
        }
        for network in networks {
            if !subnets
                .iter()
                .any(|subnet| subnet.is_ipv4() == network.is_ipv4())
            {
                return Err(Error::Subnet {
                    subnet: *network,
                    reason: "is a network without a subnet",
                });
            }
        }
        Ok(env)
    }

    /// Reads the text of a file. `export`, quotes, spaces around, comments, unknown keys,
    /// carriage returns and a byte order mark are tolerated, as godotenv and a shell tolerate them;
    /// the last of two equal keys counts. As in flannel, `FLANNEL_NETWORK` may list IPv6 networks,
    /// too, and an MTU of 0 is the kernel's default.
    ///
    /// Errors name the key and its value, every missing key, or a subnet that is in no network.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (mut both, mut ipv6) = (Vec::new(), Vec::new());
        let (mut subnet, mut ipv6_subnet, mut mtu, mut ip_masq) = (None, None, None, None);
        for (key, value) in text.lines().filter_map(assignment) {
            match key {
                NETWORK => both = list(NETWORK, value, "a list of networks", |_| true)?,
                SUBNET => {
                    subnet = one(SUBNET, value, "an IPv4 subnet", |n| match n {
                        IpNetwork::V4(v4) => Some(v4),
                        IpNetwork::V6(_) => None,
                    })?;
                }
                IPV6_NETWORK => {
                    let expected = "a list of IPv6 networks";
                    ipv6 = list(IPV6_NETWORK, value, expected, IpNetwork::is_ipv6)?;
                }
                IPV6_SUBNET => {
                    ipv6_subnet = one(IPV6_SUBNET, value, "an IPv6 subnet", |n| match n {
                        IpNetwork::V6(v6) => Some(v6),
                        IpNetwork::V4(_) => None,
                    })?;
                }
                MTU => {
                    let is_mtu = |mtu: &u32| *mtu == 0 || MTU_RANGE.contains(mtu);
                    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
                    let number = value.parse().ok().filter(|mtu| is_number && is_mtu(mtu));
                    mtu = Some(number.ok_or_else(|| invalid(MTU, value, MTU_EXPECTED))?);
                }
                // Only `true` is true to flannel's readers.
                IPMASQ => ip_masq = Some(value == "true"),
                _ => {}
            }
        }
        let subnets = [subnet.map(IpNetwork::V4), ipv6_subnet.map(IpNetwork::V6)];
        if let Some(subnet) = subnets
            .into_iter()
            .flatten()
            .find(|subnet| is_too_small(*subnet))
        {
            let reason = "is too small for a gateway and a pod";
            return Err(Error::Subnet { subnet, reason });
        }
        let (mut network, mut ipv6_network) = (Vec::new(), Vec::new());
        for listed in both.into_iter().chain(ipv6) {
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
        if subnet.is_none() && ipv6_subnet.is_none() {
            missing.extend([SUBNET, IPV6_SUBNET]);
        }
        missing.extend(mtu.is_none().then_some(MTU));
        missing.extend(ip_masq.is_none().then_some(IPMASQ));
        let env = match (mtu, ip_masq) {
            (Some(mtu), Some(ip_masq)) if missing.is_empty() => Self {
                network,
                subnet,
                ipv6_network,
                ipv6_subnet,
                mtu,
                ip_masq,
            },
            _ => return Err(Error::Missing(missing)),
        };
        let is_outside = |subnet: &IpNetwork| {
            let mut networks = env.networks();
            !networks.any(|network| is_inside(*subnet, network))
        };
        if let Some(subnet) = env.subnets().find(is_outside) {
            let reason = OUTSIDE;
            return Err(Error::Subnet { subnet, reason });
        }
        Ok(env)
    }

    /// Reads the file at `path`. Errors name the file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read(path).map_err(io("read", path))?;
        Self::parse(&String::from_utf8_lossy(&text)).map_err(|source| Error::Content {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Writes the file at `path` in one step: a reader sees the old content or the new one,
    /// whatever happens. Makes the folder where it is missing. Mode 0644 whatever the umask.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(io("make the folder of", path))?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io("write", path))?;
        write!(file, "{self}").map_err(io("write", path))?;
        let permissions = Permissions::from_mode(0o644);
        file.as_file()
            .set_permissions(permissions)
            .map_err(io("set the mode of", path))?;
        file.as_file().sync_all().map_err(io("write", path))?;
        file.persist(path)
            .map_err(|error| io("replace", path)(error.error))?;
        Ok(())
    }

    /// The cluster's networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        let ipv4 = self.network.iter().copied().map(IpNetwork::V4);
        ipv4.chain(self.ipv6_network.iter().copied().map(IpNetwork::V6))
    }

    /// The node's subnets, IPv4 first, each with the bridge's address in it.
    pub fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let ipv4 = self.subnet.map(IpNetwork::V4);
        ipv4.into_iter().chain(self.ipv6_subnet.map(IpNetwork::V6))
    }
}

/// The file's text, keys in flannel's order.
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

/// Whether a subnet lacks room for the network, the gateway, one pod and, in IPv4, broadcast.
#[must_use]
pub fn is_too_small(subnet: IpNetwork) -> bool {
    subnet.prefix() > if subnet.is_ipv4() { 30 } else { 126 }
}

fn is_inside(subnet: IpNetwork, network: IpNetwork) -> bool {
    network.contains(subnet.ip()) && network.prefix() <= subnet.prefix()
}

/// An address with its prefix length, such as `10.10.1.0/24`: neither an address alone nor a
/// netmask will do.
#[must_use]
pub fn cidr(text: &str) -> Option<IpNetwork> {
    let (address, prefix) = text.split_once('/')?;
    let is_number = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let (address, prefix) = (address.parse().ok()?, prefix.parse().ok()?);
    is_number
        .then(|| IpNetwork::new(address, prefix).ok())
        .flatten()
}

fn join<T: fmt::Display>(list: &[T]) -> String {
    let mut text = String::new();
    for (i, item) in list.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(text, "{comma}{item}").expect("a string takes any text");
    }
    text
}

/// `KEY=VALUE` of one line, if it is one.
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
    of_family: impl Fn(IpNetwork) -> Option<T>,
) -> Result<Option<T>, Error> {
    if value.is_empty() {
        return Ok(None);
    }
    let network = cidr(value).and_then(of_family);
    network
        .map(Some)
        .ok_or_else(|| invalid(key, value, expected))
}

/// The networks of a list, each once and without host bits.
fn list(
    key: &'static str,
    value: &str,
    expected: &'static str,
    is_of_family: impl Fn(&IpNetwork) -> bool,
) -> Result<Vec<IpNetwork>, Error> {
    let mut networks = Vec::new();
    for part in value.split(',').map(str::trim) {
        let of_family = |network| Some(network).filter(&is_of_family);
        if let Some(network) = one(key, part, expected, of_family)? {
            let whole = IpNetwork::new(network.network(), network.prefix());
            networks.push(whole.expect("it has that prefix length already"));
        }
    }
    Ok(networks)
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
