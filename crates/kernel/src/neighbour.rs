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
    /// The hardware address that `ip` is believed to have on `link`; nothing where none is known.
    pub fn neighbour(&self, link: &Link, ip: IpAddr) -> Result<Option<Mac>, Error> {
        let mut request = message(link.index, ip);
        // The kernel's rule: a question names the interface and the address, and no more.
        request.header.state = NeighbourState::None;
        request.header.kind = RouteType::Unspec;
        let request = RouteNetlinkMessage::GetNeighbour(request);
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

/// Says that `ip` is reachable on link `index` at `mac`, whatever was believed before. The
/// entry ages like a learned one, so nothing is left behind that could become wrong.
pub(crate) fn new_neighbour(index: u32, mac: Mac, ip: IpAddr) -> Change {
    let mut message = message(index, ip);
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    (
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn message(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
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
}
