//! Neighbours: which hardware address an address has.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use crate::rtnl::Change;
use crate::{Error, Link, Mac, Rtnl};

impl Rtnl {
    /// Says that `neighbours` are reachable on `link` at `mac`, whatever was believed before.
    ///
    /// The entries age like learned ones, so nothing is left behind that could become wrong.
    pub async fn replace_neighbours(
        &self,
        link: &Link,
        mac: Mac,
        neighbours: &[IpAddr],
    ) -> Result<(), Error> {
        let changes = neighbours.iter().map(|ip| new_neighbour(link, mac, *ip));
        for (outcome, ip) in self.changes(changes).await.into_iter().zip(neighbours) {
            outcome.map_err(|error| {
                Error::new(
                    format!("set neighbour {ip} on {} to {mac}", link.name),
                    error,
                )
            })?;
        }
        Ok(())
    }
}

fn new_neighbour(link: &Link, mac: Mac, ip: IpAddr) -> Change {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = link.index;
    message.header.state = NeighbourState::Reachable;
    message.header.kind = RouteType::Unicast;
    let destination = match ip {
        IpAddr::V4(v4) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(v4)
        }
        IpAddr::V6(v6) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(v6)
        }
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    (
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}
