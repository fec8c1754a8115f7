//! Mappings as they are requested, and as they are carried out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say everything")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Returns the protocol number of IP.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// True if a client does not notice when its peer is replaced: the kernel keeps sending its
    /// packets along the old flow.
    pub(crate) fn is_silent(self) -> bool {
        self != Self::Tcp
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The node's addresses on which a port is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HostAddresses {
    /// All addresses of both families.
    All,
    /// All addresses of IPv4, or of IPv6.
    Family { is_ipv6: bool },
    /// One address.
    One(IpAddr),
}

/// A requested mapping: a port of the node that leads to a port of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRequest {
    protocol: Protocol,
    host: HostAddresses,
    host_port: u16,
    container_port: u16,
}

/// Why a requested mapping is invalid: the key of the capability `portMappings`, its value, and the
/// rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}")]
pub struct InvalidRequest {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    rule: &'static str,
}

/// Why the requested mappings cannot be carried out together, or for this pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolvable {
    /// The pod has no address of the family.
    #[error("{request} leads nowhere: the pod has no {} address", family_name(*.is_ipv6))]
    NoAddress {
        /// The mapping.
        request: PortRequest,
        /// The family.
        is_ipv6: bool,
    },
    /// One port was requested twice.
    #[error("{first} and {second} use the same port of the node")]
    Twice {
        /// A mapping.
        first: PortRequest,
        /// Another mapping.
        second: PortRequest,
    },
}

impl PortRequest {
    /// Checks the values of one mapping. `host_ip` may be empty.
    pub fn new(
        protocol: &str,
        host_ip: &str,
        host_port: i64,
        container_port: i64,
    ) -> Result<Self, InvalidRequest> {
        const PORTS: &str = "must be from 1 to 65535";
        let invalid = |key, value: String, rule| Err(InvalidRequest { key, value, rule });
        let port = |value: i64| u16::try_from(value).ok().filter(|port| *port != 0);
        let Some(host_port) = port(host_port) else {
            return invalid("hostPort", host_port.to_string(), PORTS);
        };
        let Some(container_port) = port(container_port) else {
            return invalid("containerPort", container_port.to_string(), PORTS);
        };
        let mut all = Protocol::ALL.into_iter();
        let Some(protocol) = all.find(|known| known.name().eq_ignore_ascii_case(protocol)) else {
            let rule = "must be tcp, udp or sctp";
            return invalid("protocol", format!("{protocol:?}"), rule);
        };
        // An IPv4 address in the notation of IPv6 is that address.
        let host = match host_ip.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) if ip.is_unspecified() => HostAddresses::Family {
                is_ipv6: ip.is_ipv6(),
            },
            Ok(ip) => HostAddresses::One(ip),
            Err(_) if host_ip.is_empty() => HostAddresses::All,
            Err(_) => return invalid("hostIP", format!("{host_ip:?}"), "must be an IP address"),
        };
        Ok(Self {
            protocol,
            host,
            host_port,
            container_port,
        })
    }

    /// True if the mapping is for this family.
    fn is_for(&self, is_ipv6: bool) -> bool {
        match self.host {
            HostAddresses::All => true,
            HostAddresses::Family { is_ipv6: own } => own == is_ipv6,
            HostAddresses::One(ip) => ip.is_ipv6() == is_ipv6,
        }
    }

    /// The one address of the node. `None` for all.
    fn host_ip(&self) -> Option<IpAddr> {
        match self.host {
            HostAddresses::One(ip) => Some(ip),
            HostAddresses::All | HostAddresses::Family { .. } => None,
        }
    }
}

impl fmt::Display for PortRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = match self.host {
            HostAddresses::All => None,
            HostAddresses::Family { is_ipv6: false } => Some(Ipv4Addr::UNSPECIFIED.into()),
            HostAddresses::Family { is_ipv6: true } => Some(Ipv6Addr::UNSPECIFIED.into()),
            HostAddresses::One(ip) => Some(ip),
        };
        let (protocol, container_port) = (self.protocol, self.container_port);
        match ip {
            Some(ip) => write!(f, "{}", SocketAddr::new(ip, self.host_port))?,
            None => write!(f, "port {}", self.host_port)?,
        }
        write!(f, "/{protocol} (to container port {container_port})")
    }
}

fn family_name(is_ipv6: bool) -> &'static str {
    if is_ipv6 { "IPv6" } else { "IPv4" }
}

/// A mapping that is carried out: a port of the node, on all addresses of one family or on one
/// address, leads to an address and port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    /// The protocol of both ports.
    pub protocol: Protocol,
    /// The one address of the node. `None` for all addresses of the target's family.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The port of the node.
    pub host_port: u16,
    /// The pod's address and port.
    pub target: SocketAddr,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = if self.target.is_ipv6() {
            IpAddr::from(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::from(Ipv4Addr::UNSPECIFIED)
        };
        let host = SocketAddr::new(self.host_ip.unwrap_or(any), self.host_port);
        write!(f, "{host}/{}", self.protocol)
    }
}

/// Finds the addresses of the pod to which the requests lead: its first IPv4 address and its first
/// IPv6 address.
///
/// A request for a family without an address is an error, unless the same port is requested for the
/// other family, too: runtimes send pairs with `0.0.0.0` and `::`.
pub fn resolve(
    requests: &[PortRequest],
    addresses: &[IpAddr],
) -> Result<Vec<Mapping>, Unresolvable> {
    let mut found = Found::new();
    for request in requests {
        for is_ipv6 in [false, true] {
            let mut all = addresses.iter().filter(|ip| ip.is_ipv6() == is_ipv6);
            let Some(address) = all.next().filter(|_| request.is_for(is_ipv6)) else {
                continue;
            };
            let mapping = Mapping {
                protocol: request.protocol,
                host_ip: request.host_ip(),
                host_port: request.host_port,
                target: SocketAddr::new(*address, request.container_port),
            };
            let key = (
                is_ipv6,
                request.protocol,
                request.host_port,
                mapping.host_ip,
            );
            match found.get(&key) {
                Some((known, first)) if known.target != mapping.target => {
                    let (first, second) = (*first, *request);
                    return Err(Unresolvable::Twice { first, second });
                }
                _ => drop(found.insert(key, (mapping, *request))),
            }
        }
    }
    for request in requests {
        let is_same_port = |(mapping, _): &(Mapping, _)| {
            (mapping.protocol, mapping.host_port) == (request.protocol, request.host_port)
        };
        if !found.values().any(is_same_port) {
            let is_ipv6 = !request.is_for(false);
            let request = *request;
            return Err(Unresolvable::NoAddress { request, is_ipv6 });
        }
        if let (Some(ip), None) = (
            request.host_ip(),
            addresses.iter().find(|ip| request.is_for(ip.is_ipv6())),
        ) {
            let (request, is_ipv6) = (*request, ip.is_ipv6());
            return Err(Unresolvable::NoAddress { request, is_ipv6 });
        }
    }
    without_covered(&found)
}

/// Mappings with their requests, by family, protocol, port and address of the node.
type Found = BTreeMap<(bool, Protocol, u16, Option<IpAddr>), (Mapping, PortRequest)>;

/// Leaves out mappings for one address of the node that a mapping for all its addresses includes.
fn without_covered(found: &Found) -> Result<Vec<Mapping>, Unresolvable> {
    let mut mappings = Vec::new();
    for ((is_ipv6, protocol, port, host_ip), (mapping, request)) in found {
        let for_all = host_ip.and_then(|_| found.get(&(*is_ipv6, *protocol, *port, None)));
        match for_all {
            None => mappings.push(mapping.clone()),
            Some((all, _)) if all.target == mapping.target => {}
            Some((_, first)) => {
                let (first, second) = (*first, *request);
                return Err(Unresolvable::Twice { first, second });
            }
        }
    }
    Ok(mappings)
}

#[cfg(test)]
mod tests;
