//! Routes, by default of the main table.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::rtnl::{Answer, ip, number};
use crate::{Error, Rtnl};

/// The origin of a route: the kernel's `rtm_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Set by the kernel, for the subnet of an address.
    pub const KERNEL: Self = Self(2);
    /// The default of `ip route add`: no particular program.
    pub const BOOT: Self = Self(3);
    /// Set by the kernel from a router advertisement (RFC 4861).
    pub const ROUTER: Self = Self(9);
    /// Set by `hostgw-agent`. No other program uses this number in iproute2's list.
    pub const HOSTGW: Self = Self(104);
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Destination.
    pub to: IpNetwork,
    /// The next hop, or `None` if the destination is directly on the link or if there are several
    /// next hops.
    pub via: Option<IpAddr>,
    /// Index of the link; 0 if there is none, or several.
    pub dev: u32,
    /// Index of the link of each next hop of a multipath route; otherwise empty.
    pub multipath_links: Vec<u32>,
    /// The origin of the route.
    pub protocol: Protocol,
    /// Priority: of several routes to one destination, the one with the smallest metric is used.
    pub metric: u32,
    /// True for a unicast route. False for a `blackhole` route and similar ones, which lead
    /// nowhere. A route that is added with false becomes a `blackhole`.
    pub is_unicast: bool,
    /// True if the next hop is treated as on the link although none of our addresses covers it.
    pub is_onlink: bool,
    /// Id of the next hop object, if the route uses one.
    pub nexthop: Option<u32>,
}

/// The fields that decide where packets go: a [`Route`] without its next hop object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteIdentity<'a> {
    to: IpNetwork,
    via: Option<IpAddr>,
    dev: u32,
    multipath_links: &'a [u32],
    protocol: Protocol,
    metric: u32,
    is_unicast: bool,
    is_onlink: bool,
}

impl Route {
    /// Returns this route with a next hop object, for IPv4 only. The id of the object is the next
    /// hop's address, so it can be computed and does not need to be stored.
    #[must_use]
    pub fn with_nexthop_object(mut self) -> Self {
        if let Some(IpAddr::V4(via)) = self.via {
            self.nexthop = Some(via.into());
        }
        self
    }

    /// Returns what decides where packets go. A route with a next hop object and one without it
    /// have the same identity.
    #[must_use]
    pub fn identity(&self) -> RouteIdentity<'_> {
        RouteIdentity {
            to: self.to,
            via: self.via,
            dev: self.dev,
            multipath_links: &self.multipath_links,
            protocol: self.protocol,
            metric: self.metric,
            is_unicast: self.is_unicast,
            is_onlink: self.is_onlink,
        }
    }

    /// Returns a route to `to` by next hop `via` on link `dev`, or directly to the link, with the
    /// kernel's default metric.
    #[must_use]
    pub fn new(to: IpNetwork, via: Option<IpAddr>, dev: u32, protocol: Protocol) -> Self {
        let metric = if to.is_ipv4() { 0 } else { 1024 };
        Self {
            to,
            via,
            dev,
            multipath_links: Vec::new(),
            protocol,
            metric,
            is_unicast: true,
            is_onlink: false,
            nexthop: None,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if !self.multipath_links.is_empty() {
            write!(f, " ({} next hops)", self.multipath_links.len())?;
        }
        if !self.is_unicast {
            write!(f, " (not unicast)")?;
        }
        if self.is_onlink {
            write!(f, " onlink")?;
        }
        write!(f, " proto {}", self.protocol.0)
    }
}

impl Rtnl {
    /// Returns all routes of the main table, of both families.
    pub fn routes(&self) -> Result<Vec<Route>, Error> {
        self.routes_in(RouteHeader::RT_TABLE_MAIN.into())
    }

    /// Returns all routes of `table`, of both families.
    pub fn routes_in(&self, table: u32) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            set_table(&mut request, table);
            let message = RouteNetlinkMessage::GetRoute(request);
            match self.dump(&message, "list routes") {
                Ok(list) => {
                    routes.extend(list.iter().filter_map(|answer| Route::read(answer, table)));
                }
                // A namespace has no main table before it gets its first address.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }
}

/// Sets the table: in the header if the number fits into a byte, else as an attribute.
pub(crate) fn set_table(message: &mut RouteMessage, table: u32) {
    if let Ok(table) = u8::try_from(table) {
        message.header.table = table;
    } else {
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
    }
}

// Attributes of a route, from the kernel's linux/rtnetlink.h.
const DST: u16 = 1;
const OIF: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const MULTIPATH: u16 = 9;
const TABLE: u16 = 15;
const NH_ID: u16 = 30;

impl Route {
    /// Parses a route. Returns `None` if it is not in `table`, or if it applies to one type of
    /// service only, and so does not compete with a route for all of them.
    pub(crate) fn read(answer: &Answer, table: u32) -> Option<Self> {
        // Family, lengths of destination and source, tos, table, protocol, scope, type, flags.
        let (head, attributes) = answer.parts::<12>()?;
        let [
            family,
            length,
            _,
            tos,
            route_table,
            protocol,
            _,
            kind,
            flags @ ..,
        ] = head;
        let (family, length, tos) = (*family, *length, *tos);
        let unspecified: IpAddr = match AddressFamily::from(family) {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let (mut to, mut via, mut dev, mut metric) = (unspecified, None, 0, 0);
        let (mut nexthop, mut multipath_links) = (None, Vec::new());
        let mut route_table = u32::from(*route_table);
        for (kind, value) in attributes {
            match kind {
                DST => to = ip(value)?,
                GATEWAY => via = ip(value),
                OIF => dev = number(value),
                PRIORITY => metric = number(value),
                TABLE => route_table = number(value),
                NH_ID => nexthop = Some(number(value)),
                MULTIPATH => multipath_links.extend(read_multipath_links(value)),
                _ => {}
            }
        }
        let is_unicast = RouteType::from(*kind) == RouteType::Unicast;
        if !is_unicast {
            // For IPv6, the kernel reports `lo` here.
            dev = 0;
        }
        // The dump asks for one table, but a kernel that cannot filter also returns others.
        (route_table == table && tos == 0).then_some(Self {
            to: IpNetwork::new(to, length).ok()?,
            via,
            dev,
            multipath_links,
            protocol: Protocol(*protocol),
            metric,
            is_unicast,
            is_onlink: RouteFlags::from_bits_retain(number(flags)).contains(RouteFlags::Onlink),
            nexthop,
        })
    }
}

/// Returns the index of the link of each next hop of a multipath route.
fn read_multipath_links(mut rest: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        // Length, flags, weight, link index.
        let head: &[u8; 8] = rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]])).max(head.len());
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(number(&head[4..]))
    })
}
