//! Routes of the main table.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use crate::nexthop::NextHop;
use crate::rtnl::{Answer, Change, Request, ip, number};
use crate::{Error, Link, Rtnl, sysctl};

/// Who put a route there: the kernel's `rtm_protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// The kernel itself, for the subnet of an address.
    pub const KERNEL: Self = Self(2);
    /// What `ip route add` writes: nobody in particular.
    pub const BOOT: Self = Self(3);
    /// The kernel, by what a router advertised (RFC 4861).
    pub const ROUTER: Self = Self(9);
    /// `hostgw-agent`: a number that nobody else has claimed in iproute2's list.
    pub const HOSTGW: Self = Self(104);
}

/// A route of the main table. Two are equal where they lead packets the same way, however the
/// kernel was told.
#[derive(Clone, Debug)]
pub struct Route {
    /// Destination.
    pub to: IpNetwork,
    /// Next hop; nothing where the destination is on the link, or where there are several.
    pub via: Option<IpAddr>,
    /// The number of the link; 0 where there is none, or several.
    pub dev: u32,
    /// The number of the link of each next hop, where there are several.
    pub legs: Vec<u32>,
    /// Who put it there.
    pub protocol: Protocol,
    /// Of two routes with one destination, the one with the smaller metric counts.
    pub metric: u32,
    /// Whether it leads somewhere: not so for `blackhole` and its like. One that is made and does not is a
    /// `blackhole`.
    pub is_unicast: bool,
    /// Whether the next hop counts as on the link although no address of ours says so.
    pub is_onlink: bool,
    /// The number of the kernel's object that is its next hop, where it names one.
    pub nexthop: Option<u32>,
}

impl Route {
    /// The same, its next hop an object of its own; IPv4 only. Its number is its address, so nobody
    /// needs to remember it.
    #[must_use]
    pub fn by_nexthop(mut self) -> Self {
        if let Some(IpAddr::V4(via)) = self.via {
            self.nexthop = Some(via.into());
        }
        self
    }

    /// What makes it the route that it is.
    fn identity(&self) -> impl PartialEq + Hash + '_ {
        let Self {
            to,
            via,
            dev,
            legs,
            protocol,
            metric,
            is_unicast,
            is_onlink,
            nexthop: _,
        } = self;
        let way = (*via, *dev, legs);
        (*to, way, *protocol, *metric, *is_unicast, *is_onlink)
    }

    /// A route to `to` by next hop `via` on link `dev`, or to the link itself, with the
    /// metric that the kernel gives where none is named.
    #[must_use]
    pub fn new(to: IpNetwork, via: Option<IpAddr>, dev: u32, protocol: Protocol) -> Self {
        let metric = if to.is_ipv4() { 0 } else { 1024 };
        Self {
            to,
            via,
            dev,
            legs: Vec::new(),
            protocol,
            metric,
            is_unicast: true,
            is_onlink: false,
            nexthop: None,
        }
    }
}

impl PartialEq for Route {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Route {}

impl Hash for Route {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if !self.legs.is_empty() {
            write!(f, " ({} next hops)", self.legs.len())?;
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

/// What else a route may be given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteOptions {
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Advertised maximum segment size in bytes.
    pub advmss: Option<u32>,
    /// Routing table, by default the main one.
    pub table: Option<u32>,
    /// Scope, in the kernel's numbers.
    pub scope: Option<u8>,
}

/// A change to the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// Adds the route, or puts it in the place of the one with its destination and metric:
    /// there is no moment without either.
    Replace(Route),
    /// Deletes exactly this route.
    Delete(Route),
}

impl Rtnl {
    /// Has the node forward IPv6. The kernel then forgets the default routes that routers gave it,
    /// and hears no router any more, but on interfaces that insist (`accept_ra` 2): those of
    /// `is_uplink`, told each of them and all links, that have such a route are made to. Where the node forwards already, nothing is
    /// touched.
    pub fn forward_ipv6(&self, is_uplink: impl Fn(&Link, &[Link]) -> bool) -> Result<(), Error> {
        const FORWARDING: &str = "net/ipv6/conf/all/forwarding";
        if sysctl::get(FORWARDING)? == "1" {
            return Ok(());
        }
        let routes = self.routes()?;
        let by_routers = routes
            .iter()
            .filter(|route| route.protocol == Protocol::ROUTER && route.to.prefix() == 0);
        let devices: Vec<_> = by_routers.map(|route| route.dev).collect();
        if !devices.is_empty() {
            let links = self.links()?;
            let has_route = |link: &&Link| devices.contains(&link.index);
            for link in links
                .iter()
                .filter(has_route)
                .filter(|link| is_uplink(link, &links))
            {
                let accept_ra = format!("net/ipv6/conf/{}/accept_ra", link.name);
                if sysctl::get(&accept_ra)? == "1" {
                    sysctl::set(&accept_ra, "2")?;
                }
            }
        }
        sysctl::set(FORWARDING, "1")
    }

    /// Whether `link` would take routes and addresses from routers (`accept_ra` is not 0).
    pub fn hears_routers(&self, link: &Link) -> Result<bool, Error> {
        match sysctl::get(&format!("net/ipv6/conf/{}/accept_ra", link.name)) {
            // A kernel without IPv6.
            Err(error) if error.is_gone() => Ok(false),
            other => Ok(other? != "0"),
        }
    }

    /// Has `link` hear no router any more.
    pub fn ignore_routers(&self, link: &Link) -> Result<(), Error> {
        sysctl::write(&format!("net/ipv6/conf/{}/accept_ra", link.name), "0")
    }

    /// Takes back what routers gave `link` before it heard them no more: routes and addresses.
    pub fn forget_routers(&self, link: &Link) -> Result<(), Error> {
        let by_router =
            |route: &Route| route.dev == link.index && route.protocol == Protocol::ROUTER;
        let routes: Vec<_> = self.routes()?.into_iter().filter(by_router).collect();
        let changes: Vec<_> = routes.into_iter().map(RouteChange::Delete).collect();
        for outcome in self.change_routes(&changes)? {
            outcome?;
        }
        for address in self.temporary_addresses(link)? {
            self.delete_address(link, address)?;
        }
        Ok(())
    }

    /// The tables that rules lead packets to (`ip rule`), each once.
    pub fn tables_of_rules(&self) -> Result<Vec<u32>, Error> {
        /// The kernel's `FRA_TABLE`.
        const TABLE: u16 = 15;
        let mut tables = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RuleMessage::default();
            request.header.family = family;
            let rules = match self.dump(&RouteNetlinkMessage::GetRule(request), "list rules") {
                // A kernel without IPv6.
                Err(error) if error.is_unroutable() => continue,
                other => other?,
            };
            for rule in &rules {
                // Family, lengths, tos, table, two in reserve, action, flags.
                let Some((head, attributes)) = rule.parts::<12>() else {
                    continue;
                };
                let named = attributes.filter(|(kind, _)| *kind == TABLE).last();
                tables.push(named.map_or(u32::from(head[4]), |(_, value)| number(value)));
            }
        }
        tables.sort_unstable();
        tables.dedup();
        Ok(tables)
    }

    /// Every route of the main table, of both families.
    pub fn routes(&self) -> Result<Vec<Route>, Error> {
        self.routes_in(RouteHeader::RT_TABLE_MAIN.into())
    }

    /// Every route of `table`, of both families.
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
                // Before its first address, a namespace has no main table.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// Makes the changes, in order, and says of each how it went. A route to delete that is
    /// gone already is fine.
    pub fn change_routes(&self, changes: &[RouteChange]) -> Result<Vec<Result<(), Error>>, Error> {
        let requests = changes.iter().flat_map(|change| match change {
            RouteChange::Replace(route) => {
                let options = RouteOptions::default();
                let (message, flags) = new_route(route, &options, NLM_F_REPLACE);
                let nexthop = NextHop::of(route);
                let nexthop = nexthop.map(|(message, flags)| (Message::NextHop(message), flags));
                nexthop
                    .into_iter()
                    .chain([(Message::Route(message), flags)])
            }
            RouteChange::Delete(route) => {
                let (message, flags) = old_route(route);
                None.into_iter().chain([(Message::Route(message), flags)])
            }
        });
        let outcomes = self
            .changes(requests)
            .map_err(|error| Error::new("change routes", error))?;
        let mut outcomes = outcomes.into_iter();
        let one = |change: &RouteChange| {
            let mut next = || outcomes.next().expect("one for each request").map(drop);
            match change {
                RouteChange::Replace(route) => {
                    let nexthop = route.nexthop.map_or(Ok(()), |_| next());
                    let outcome = nexthop.and(next());
                    outcome.map_err(|error| Error::new(format!("add route {route}"), error))
                }
                RouteChange::Delete(route) => match next() {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        let error = Error::new(format!("delete route {route}"), error);
                        if error.is_gone() { Ok(()) } else { Err(error) }
                    }
                },
            }
        };
        Ok(changes.iter().map(one).collect())
    }
}

/// What a change of a route takes.
enum Message {
    Route(RouteNetlinkMessage),
    NextHop(NextHop),
}

impl Request for Message {
    fn write(self, flags: u16, sequence: u32, buffer: &mut Vec<u8>) {
        match self {
            Self::Route(message) => message.write(flags, sequence, buffer),
            Self::NextHop(message) => message.write(flags, sequence, buffer),
        }
    }
}

pub(crate) fn new_route(route: &Route, options: &RouteOptions, flags: u16) -> Change {
    let mut message = route_message(route);
    if !route.is_unicast {
        message.header.kind = RouteType::BlackHole;
        message.header.scope = RouteScope::Universe;
    }
    if let Some(table) = options.table {
        set_table(&mut message, table);
    }
    if let Some(scope) = options.scope {
        message.header.scope = scope.into();
    }
    let mtu = options.mtu.map(RouteMetric::Mtu);
    let metrics: Vec<_> = mtu
        .into_iter()
        .chain(options.advmss.map(RouteMetric::Advmss))
        .collect();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    (RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | flags)
}

/// The header has room for the first 255 tables.
fn set_table(message: &mut RouteMessage, table: u32) {
    if let Ok(table) = u8::try_from(table) {
        message.header.table = table;
    } else {
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = match route.to {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    header.destination_prefix_length = route.to.prefix();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = route.protocol.0.into();
    header.kind = if route.is_unicast {
        RouteType::Unicast
    } else {
        RouteType::Unspec
    };
    header.scope = match route.via {
        None if route.to.is_ipv4() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    if route.is_onlink && route.nexthop.is_none() {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.to.prefix() > 0 {
        attributes.push(RouteAttribute::Destination(route.to.network().into()));
    }
    if let Some(id) = route.nexthop {
        attributes.push(RouteAttribute::NhId(id));
    } else {
        attributes.extend(route.via.map(|via| RouteAttribute::Gateway(via.into())));
        if route.dev > 0 {
            attributes.push(RouteAttribute::Oif(route.dev));
        }
    }
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

fn old_route(route: &Route) -> Change {
    let mut message = route_message(route);
    // Whatever its scope: what is not unicast has another one.
    message.header.scope = RouteScope::NoWhere;
    (RouteNetlinkMessage::DelRoute(message), 0)
}

impl Route {
    /// Reads what the kernel says of a route; nothing where it is not of `table`, or is for some
    /// type of service only, and so takes nothing from one for all.
    fn read(answer: &Answer, table: u32) -> Option<Self> {
        // The kernel's linux/rtnetlink.h.
        const DST: u16 = 1;
        const OIF: u16 = 4;
        const GATEWAY: u16 = 5;
        const PRIORITY: u16 = 6;
        const MULTIPATH: u16 = 9;
        const TABLE: u16 = 15;
        const NH_ID: u16 = 30;
        // Family, lengths of destination and source, tos, table, protocol, scope, type, flags.
        let (head, attributes) = answer.parts::<12>()?;
        let [family, length, _, tos, its, protocol, _, kind, flags @ ..] = head;
        let (family, length, tos) = (*family, *length, *tos);
        let unspecified: IpAddr = match AddressFamily::from(family) {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let (mut to, mut via, mut dev, mut metric) = (unspecified, None, 0, 0);
        let (mut nexthop, mut legs) = (None, Vec::new());
        let mut its = u32::from(*its);
        for (kind, value) in attributes {
            match kind {
                DST => to = ip(value)?,
                GATEWAY => via = ip(value),
                OIF => dev = number(value),
                PRIORITY => metric = number(value),
                TABLE => its = number(value),
                NH_ID => nexthop = Some(number(value)),
                MULTIPATH => legs.extend(legs_in(value)),
                _ => {}
            }
        }
        let is_unicast = RouteType::from(*kind) == RouteType::Unicast;
        if !is_unicast {
            // IPv6 names `lo` there.
            dev = 0;
        }
        // Asked for one table, the kernel may still give others where it cannot filter.
        (its == table && tos == 0).then_some(Self {
            to: IpNetwork::new(to, length).ok()?,
            via,
            dev,
            legs,
            protocol: Protocol(*protocol),
            metric,
            is_unicast,
            is_onlink: RouteFlags::from_bits_retain(number(flags)).contains(RouteFlags::Onlink),
            nexthop,
        })
    }
}

/// The link of each of several next hops.
fn legs_in(mut rest: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        // Length, flags, weight, link.
        let head: &[u8; 8] = rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]])).max(head.len());
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(number(&head[4..]))
    })
}
