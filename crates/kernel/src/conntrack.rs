//! Connection tracking: the flows that the kernel knows, in the namespace of the calling thread.
//!
//! The messages are encoded and decoded here by hand, as those of [`nftables`](crate::nftables).
//! Source: the kernel's `linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use crate::Error;
use crate::nfnetlink::{
    ACK, DUMP, attribute, attributes, connect, exchange_each, message, messages, nest, number,
    read_u32, request, was_interrupted,
};
use crate::rtnl::ip;

/// Numbers of the messages and attributes, by the names of the kernel.
mod uapi {
    const SUBSYSTEM: u16 = 1;
    pub(super) const NEW: u16 = SUBSYSTEM << 8;
    pub(super) const GET: u16 = SUBSYSTEM << 8 | 1;
    pub(super) const DELETE: u16 = SUBSYSTEM << 8 | 2;
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const FILTER: u16 = 25;
    pub(super) const STATUS_MASK: u16 = 26;
    /// `IPS_OFFLOAD`, a bit of the status: the flow is in a flowtable.
    pub(super) const STATUS_OFFLOAD: u32 = 1 << 14;
    pub(super) const FILTER_ORIG_FLAGS: u16 = 1;
    /// A bit of `FILTER_ORIG_FLAGS`: compare the protocol.
    pub(super) const FILTER_PROTO_NUM: u32 = 1 << 3;
    /// A bit of `FILTER_ORIG_FLAGS`: compare the destination port.
    pub(super) const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTO: u16 = 2;
    pub(super) const IP_V4_SRC: u16 = 1;
    pub(super) const IP_V4_DST: u16 = 2;
    pub(super) const IP_V6_SRC: u16 = 3;
    pub(super) const IP_V6_DST: u16 = 4;
    pub(super) const PROTO_NUM: u16 = 1;
    pub(super) const PROTO_SRC_PORT: u16 = 2;
    pub(super) const PROTO_DST_PORT: u16 = 3;
}

/// Number of attempts at a dump if the flows change while they are read.
const MAX_TRIES: usize = 8;

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where the first packet was sent to, before its destination was translated.
    pub destination: SocketAddr,
    /// Where replies come from: the destination after its translation.
    pub reply_source: SocketAddr,
    /// Family, and the attributes that identify the flow.
    identity: Vec<u8>,
}

/// Returns the flows of one family and protocol, and if `port` is given, only those whose first
/// packet was sent to this port.
pub fn flows(is_ipv6: bool, protocol: u8, port: Option<u16>) -> Result<Vec<Flow>, Error> {
    let failed = |error: io::Error| Error::new("list the flows of connection tracking", error);
    let mut body = vec![family(is_ipv6), 0, 0, 0];
    nest(&mut body, uapi::TUPLE_ORIG, |tuple| {
        nest(tuple, uapi::TUPLE_PROTO, |proto| {
            attribute(proto, uapi::PROTO_NUM, &[protocol]);
            if let Some(port) = port {
                attribute(proto, uapi::PROTO_DST_PORT, &port.to_be_bytes());
            }
        });
    });
    let flags = match port {
        Some(_) => uapi::FILTER_PROTO_NUM | uapi::FILTER_PROTO_DST_PORT,
        None => uapi::FILTER_PROTO_NUM,
    };
    nest(&mut body, uapi::FILTER, |filter| {
        attribute(filter, uapi::FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    });
    let dump = message(uapi::GET, DUMP, &body);
    for _ in 0..MAX_TRIES {
        let answer = request(&dump).map_err(failed)?;
        match answer.error {
            None if was_interrupted(&answer) => {}
            None => {
                let flows = messages(&answer.text).filter(|(kind, ..)| *kind == uapi::NEW);
                // Kernels before 5.8 know no filter, and list all flows.
                let is_wanted = |(found, flow): &(u8, Flow)| {
                    *found == protocol && port.is_none_or(|port| flow.destination.port() == port)
                };
                let flows = flows.filter_map(|(_, _, body)| Flow::read(body));
                return Ok(flows.filter(is_wanted).map(|(_, flow)| flow).collect());
            }
            // A kernel without this interface (`nf_conntrack_netlink`) cannot forget a flow.
            Some(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            Some(errno) => return Err(failed(errno.into())),
        }
    }
    Err(failed(Errno::EINTR.into()))
}

/// Calls `each` with the body of the message about every flow that is in a flowtable. Fails if the kernel does
/// not list flows (`nf_conntrack_netlink`).
fn each_offloaded(mut each: impl FnMut(&[u8])) -> Result<(), Error> {
    let failed = |error: io::Error| Error::new("list the flows in flowtables", error);
    let mut body = vec![0; 4];
    number(&mut body, uapi::STATUS, uapi::STATUS_OFFLOAD);
    number(&mut body, uapi::STATUS_MASK, uapi::STATUS_OFFLOAD);
    // Kernels before 5.15 know no such filter, and list all flows.
    let is_offloaded = |body: &[u8]| {
        let mut all = attributes(body.get(4..).unwrap_or_default());
        let status = all.find(|(kind, _)| *kind == uapi::STATUS);
        status.is_some_and(|(_, value)| read_u32(value) & uapi::STATUS_OFFLOAD != 0)
    };
    let socket = connect().map_err(failed)?;
    let error = exchange_each(&socket, &message(uapi::GET, DUMP, &body), |part| {
        let flows = messages(part).filter(|(kind, ..)| *kind == uapi::NEW);
        for (_, _, body) in flows.filter(|(_, _, body)| is_offloaded(body)) {
            each(body);
        }
    });
    error
        .map_err(failed)?
        .map_or(Ok(()), |errno| Err(failed(errno.into())))
}

/// Counts the flows that are in a flowtable. A flow that is added or deleted meanwhile may be missed.
pub fn count_offloaded() -> Result<usize, Error> {
    let mut count = 0;
    each_offloaded(|_| count += 1)?;
    Ok(count)
}

/// True if a flow of this protocol to this address is in a flowtable.
pub fn is_offloaded(protocol: u8, destination: SocketAddr) -> Result<bool, Error> {
    let mut is_found = false;
    each_offloaded(|body| {
        is_found |= Flow::read(body)
            .is_some_and(|(found, flow)| found == protocol && flow.destination == destination);
    })?;
    Ok(is_found)
}

impl Flow {
    /// Deletes the flow: the next packet starts a new one. Succeeds if it does not exist any more.
    pub fn delete(&self) -> Result<(), Error> {
        let doing = "delete a flow of connection tracking";
        let answer = request(&message(uapi::DELETE, ACK, &self.identity));
        match answer.map_err(|error| Error::new(doing, error))?.error {
            None | Some(Errno::ENOENT) => Ok(()),
            Some(errno) => Err(Error::new(doing, errno)),
        }
    }

    /// Decodes a message: the protocol, and the flow.
    fn read(body: &[u8]) -> Option<(u8, Self)> {
        let (header, rest) = body.split_at_checked(4)?;
        let mut identity = header.to_vec();
        let (mut original, mut reply) = (None, None);
        for (kind, value) in attributes(rest) {
            match kind {
                uapi::TUPLE_ORIG => {
                    original = Tuple::read(value);
                    nest(&mut identity, kind, |nest| nest.extend(value));
                }
                uapi::TUPLE_REPLY => reply = Tuple::read(value),
                uapi::ID | uapi::ZONE => attribute(&mut identity, kind, value),
                _ => {}
            }
        }
        let (original, reply) = (original?, reply?);
        let flow = Self {
            destination: original.destination,
            reply_source: reply.source,
            identity,
        };
        Some((original.protocol, flow))
    }
}

/// Decodes a message of any kind, for tests.
#[cfg(test)]
pub(crate) fn decode(body: &[u8]) {
    drop(Flow::read(body));
}

/// One direction of a flow.
struct Tuple {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Tuple {
    /// Decodes a tuple. `None` if its protocol has no ports.
    fn read(value: &[u8]) -> Option<Self> {
        let (mut addresses, mut ports, mut protocol) = ([None; 2], [None; 2], None);
        let port = |value: &[u8]| Some(u16::from_be_bytes(*value.first_chunk()?));
        for (kind, value) in attributes(value) {
            for (inner, value) in attributes(value) {
                match (kind, inner) {
                    (uapi::TUPLE_IP, uapi::IP_V4_SRC | uapi::IP_V6_SRC) => addresses[0] = ip(value),
                    (uapi::TUPLE_IP, uapi::IP_V4_DST | uapi::IP_V6_DST) => addresses[1] = ip(value),
                    (uapi::TUPLE_PROTO, uapi::PROTO_NUM) => protocol = value.first().copied(),
                    (uapi::TUPLE_PROTO, uapi::PROTO_SRC_PORT) => ports[0] = port(value),
                    (uapi::TUPLE_PROTO, uapi::PROTO_DST_PORT) => ports[1] = port(value),
                    _ => {}
                }
            }
        }
        let socket = |ip: Option<IpAddr>, port: Option<u16>| Some(SocketAddr::new(ip?, port?));
        Some(Self {
            protocol: protocol?,
            source: socket(addresses[0], ports[0])?,
            destination: socket(addresses[1], ports[1])?,
        })
    }
}

/// The number of an address family.
fn family(is_ipv6: bool) -> u8 {
    if is_ipv6 { 10 } else { 2 }
}
