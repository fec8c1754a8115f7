//! The packet whose way through chains is evaluated.

use std::net::IpAddr;

use super::expression::Expression;
use super::uapi::{
    NFPROTO_IPV4, NFPROTO_IPV6, PAYLOAD_BASE, PAYLOAD_LEN, PAYLOAD_NETWORK_HEADER, PAYLOAD_OFFSET,
    meta,
};

/// `IPPROTO_TCP`
const TCP: u8 = 6;

/// How the matches of a rule are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchMode {
    /// Evaluates all matches that can be interpreted.
    Full,
    /// Treats matches on addresses as unknown: a rule that denies certain addresses is there on
    /// purpose.
    WithoutAddresses,
}

/// The first packet of a TCP connection that this node forwards.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Name of the incoming interface.
    pub from: String,
    /// Name of the outgoing interface.
    pub to: String,
    /// Indexes of both interfaces; 0 if one does not exist yet.
    pub links: [u32; 2],
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
}

impl Packet {
    /// Returns bytes from the packet's network header.
    pub(super) fn header(&self, expression: &Expression<'_>, mode: MatchMode) -> Option<Vec<u8>> {
        let mut header = Vec::new();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.extend([0x60, 0, 0, 0, 0, 20, TCP, 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
            }
            _ => return None,
        }
        let begin = usize::try_from(expression.number(PAYLOAD_OFFSET)).ok()?;
        let length = usize::try_from(expression.number(PAYLOAD_LEN)).ok()?;
        let addresses = if self.source.is_ipv4() { 12 } else { 8 };
        if mode == MatchMode::WithoutAddresses && begin >= addresses {
            return None;
        }
        let value = header.get(begin..begin.checked_add(length)?)?;
        (expression.number(PAYLOAD_BASE) == PAYLOAD_NETWORK_HEADER).then(|| value.to_vec())
    }

    /// Returns a value of the packet's metadata (meta expression).
    pub(super) fn meta(&self, key: u32) -> Option<Vec<u8>> {
        let name = |name: &str| {
            let mut name = name.as_bytes().to_vec();
            name.resize(16, 0);
            name
        };
        Some(match key {
            meta::MARK => vec![0; 4],
            meta::IIF | meta::OIF => {
                let [from, to] = self.links;
                let link = if key == meta::IIF { from } else { to };
                return (link != 0).then(|| link.to_ne_bytes().to_vec());
            }
            meta::IIFNAME => name(&self.from),
            meta::OIFNAME => name(&self.to),
            meta::NFPROTO if self.source.is_ipv4() => vec![NFPROTO_IPV4],
            meta::NFPROTO => vec![NFPROTO_IPV6],
            meta::L4PROTO => vec![TCP],
            _ => return None,
        })
    }
}
