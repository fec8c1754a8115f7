//! Neighbour entries: which hardware address an IP address has on a link.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::link::ignore_gone;
use crate::{Error, Link, Mac, Rtnl};

impl Rtnl {
    /// Deletes the neighbour entries for `ips` on `link`, so that the next packet causes a new
    /// resolution. Succeeds for addresses without an entry.
    pub fn delete_neighbours(&self, link: &Link, ips: &[IpAddr]) -> Result<(), Error> {
        let forget = |ip: &IpAddr| {
            let message = message(link.index, *ip);
            (RouteNetlinkMessage::DelNeighbour(message), 0)
        };
        let doing = || format!("delete neighbour entries on {}", link.name);
        let outcomes = self.changes(ips.iter().map(forget));
        for outcome in outcomes.map_err(|error| Error::new(doing(), error))? {
            let outcome = outcome.map_err(|error| Error::new(doing(), error));
            outcome.map(drop).or_else(ignore_gone)?;
        }
        Ok(())
    }

    /// Returns the hardware address in the neighbour entry for `ip` on `link`, or `None` if there
    /// is no valid entry.
    pub fn neighbour(&self, link: &Link, ip: IpAddr) -> Result<Option<Mac>, Error> {
        let request = RouteNetlinkMessage::GetNeighbour(message(link.index, ip));
        let doing = || format!("look up neighbour {ip} on {}", link.name);
        let Some(answer) = self.get(request, doing)? else {
            return Ok(None);
        };
        // Family, index, state, flags, type, from the kernel's linux/neighbour.h.
        let Some((head, mut attributes)) = answer.parts::<12>() else {
            return Ok(None);
        };
        let state = NeighbourState::from(u16::from_ne_bytes([head[8], head[9]]));
        let is_known = [
            NeighbourState::Reachable,
            NeighbourState::Stale,
            NeighbourState::Delay,
            NeighbourState::Probe,
            NeighbourState::Permanent,
        ]
        .contains(&state);
        let mac = attributes.find(|(kind, _)| *kind == LLADDR);
        Ok(mac
            .filter(|_| is_known)
            .and_then(|(_, mac)| Mac::from_slice(mac)))
    }
}

/// The attribute with the hardware address (`NDA_LLADDR`).
const LLADDR: u16 = 2;

fn message(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    // The kernel requires that a look-up sets only the link and the address.
    message.header.state = NeighbourState::None;
    message.header.kind = RouteType::Unspec;
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
}
