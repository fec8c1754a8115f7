//! Changes of routes.

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use crate::nexthop::nexthop_of;
use crate::route::set_table;
use crate::rtnl::{Change, RawRequest, Request};
use crate::{Error, Route, Rtnl};

/// Optional settings of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteOptions {
    /// Path MTU, in bytes.
    pub mtu: Option<u32>,
    /// Advertised maximum segment size, in bytes.
    pub advmss: Option<u32>,
    /// Routing table; the main one by default.
    pub table: Option<u32>,
    /// Scope, as the kernel numbers it.
    pub scope: Option<u8>,
}

/// A change to the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteChange {
    /// Adds the route, or atomically replaces the one with the same destination and metric.
    Replace(Route),
    /// Deletes the route that matches in all fields.
    Delete(Route),
}

impl Rtnl {
    /// Makes the changes, in order, and returns the outcome of each. Deleting a route that does not
    /// exist succeeds.
    pub fn change_routes(&self, changes: &[RouteChange]) -> Result<Vec<Result<(), Error>>, Error> {
        let requests = changes.iter().flat_map(|change| match change {
            RouteChange::Replace(route) => {
                let options = RouteOptions::default();
                let (message, flags) = new_route(route, &options, NLM_F_REPLACE);
                let nexthop = nexthop_of(route);
                let nexthop = nexthop.map(|(message, flags)| (Message::NextHop(message), flags));
                nexthop
                    .into_iter()
                    .chain([(Message::Route(message), flags)])
            }
            RouteChange::Delete(route) => {
                let (message, flags) = route_deletion(route);
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

/// A message of a route change: for the route itself, or for its next hop object.
enum Message {
    Route(RouteNetlinkMessage),
    NextHop(RawRequest),
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

fn route_deletion(route: &Route) -> Change {
    let mut message = route_message(route);
    // Matches every scope: routes that are not unicast have a different one.
    message.header.scope = RouteScope::NoWhere;
    (RouteNetlinkMessage::DelRoute(message), 0)
}
