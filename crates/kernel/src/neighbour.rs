//! Neighbours: which hardware address an address has.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::link::unless_gone;
use crate::{Error, Link, Mac, Rtnl};

impl Rtnl {
    /// Forgets what is believed of `ips` on `link`, so that the next packet asks. What nobody
    /// believed anything of is fine.
    pub fn forget_neighbours(&self, link: &Link, ips: &[IpAddr]) -> Result<(), Error> {
        let forget = |ip: &IpAddr| {
            let message = message(link.index, *ip);
            (RouteNetlinkMessage::DelNeighbour(message), 0)
        };
        let doing = || format!("forget neighbours on {}", link.name);
        let outcomes = self.changes(ips.iter().map(forget));
        for outcome in outcomes.map_err(|error| Error::new(doing(), error))? {
            let outcome = outcome.map_err(|refusal| Error::new(doing(), refusal));
            outcome.map(drop).or_else(unless_gone)?;
        }
        Ok(())
    }

    /// The hardware address that `ip` is believed to have on `link`; nothing where none is known.
    pub fn neighbour(&self, link: &Link, ip: IpAddr) -> Result<Option<Mac>, Error> {
        let request = RouteNetlinkMessage::GetNeighbour(message(link.index, ip));
        let doing = || format!("look up neighbour {ip} on {}", link.name);
        let Some(answer) = self.get(request, doing)? else {
            return Ok(None);
        };
        // Family, index, state, flags, type; the kernel's linux/neighbour.h.
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

/// The attribute that holds the hardware address.
const LLADDR: u16 = 2;

fn message(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    // The kernel's rule: who is meant, and no more.
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
