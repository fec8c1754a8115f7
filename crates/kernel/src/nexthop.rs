//! Next hop objects, for nodes with many routes.
//!
//! The kernel compares each new IPv4 route that carries its own next hop with every other one on
//! the same link: 5,000 routes take 0.3 s, and 50,000 more than a minute. Routes that refer to a
//! next hop object by its id are not compared: 0.04 s, and 0.4 s.

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use crate::route::Route;
use crate::rtnl::{Answer, RawRequest, number};
use crate::{Error, Protocol, Rtnl, sysctl};

/// Values from the kernel's linux/rtnetlink.h and linux/nexthop.h.
const NEW: u16 = 104;
const DELETE: u16 = 105;
const GET: u16 = 106;
const ID: u16 = 1;
const OIF: u16 = 5;
const GATEWAY: u16 = 6;
const INET: u8 = 2;
const ONLINK: u32 = 4;

/// True if the kernel has next hop objects, and lists the next hop and the link of a route that
/// uses one, as other programs expect (`nexthop_compat_mode`).
#[must_use]
pub fn has_nexthop_objects() -> bool {
    sysctl::get("net/ipv4/nexthop_compat_mode").is_ok_and(|value| value == "1")
}

impl Rtnl {
    /// Returns the ids of the next hop objects that `protocol` created.
    pub fn nexthops(&self, protocol: Protocol) -> Result<Vec<u32>, Error> {
        let request = RawRequest {
            kind: GET,
            body: vec![0; 8],
        };
        let all = self.dump(&request, "list next hops")?;
        Ok(all
            .iter()
            .filter_map(|answer| read(answer, protocol))
            .collect())
    }

    /// Deletes next hop objects, and the routes that use them. Succeeds for objects that do not
    /// exist.
    pub fn delete_nexthops(&self, ids: &[u32]) -> Result<(), Error> {
        let requests = ids.iter().map(|id| {
            let mut body = vec![0; 8];
            attribute(&mut body, ID, id.to_ne_bytes());
            (RawRequest { kind: DELETE, body }, 0)
        });
        let failed = |error| Error::new("delete next hops", error);
        let outcomes = self
            .changes(requests)
            .map_err(|error| Error::new("delete next hops", error))?;
        for outcome in outcomes {
            match outcome.map_err(failed) {
                Err(error) if !error.is_gone() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns the id of a next hop object if `protocol` created it.
fn read(answer: &Answer, protocol: Protocol) -> Option<u32> {
    // Family, scope, protocol, a reserved byte, flags.
    let (head, mut attributes) = answer.parts::<8>()?;
    if head[2] != protocol.0 {
        return None;
    }
    let id = attributes.find(|(kind, _)| *kind == ID);
    id.map(|(_, value)| number(value))
}

/// Returns the message that creates or replaces the next hop object of a route, with its flags.
/// Returns `None` if the route uses no object.
pub(crate) fn nexthop_of(route: &Route) -> Option<(RawRequest, u16)> {
    let (Some(id), Some(IpAddr::V4(via))) = (route.nexthop, route.via) else {
        return None;
    };
    let flags = if route.is_onlink { ONLINK } else { 0 };
    let mut body = vec![INET, 0, route.protocol.0, 0];
    body.extend(flags.to_ne_bytes());
    attribute(&mut body, ID, id.to_ne_bytes());
    attribute(&mut body, OIF, route.dev.to_ne_bytes());
    attribute(&mut body, GATEWAY, via.octets());
    Some((RawRequest { kind: NEW, body }, NLM_F_CREATE | NLM_F_REPLACE))
}

/// Appends an attribute with a value of four bytes, which needs no padding.
fn attribute(body: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    body.extend(8_u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// Decodes an answer, for a test with damaged ones.
#[cfg(test)]
pub(crate) fn decode(answer: &Answer) {
    read(answer, Protocol::HOSTGW);
}
