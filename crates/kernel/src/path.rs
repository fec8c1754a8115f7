//! Route look-ups: how the kernel sends a packet, with all policy rules and routing tables applied.

use std::net::IpAddr;

use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::rtnl::{Request, ip, number};
use crate::{Error, Link, Rtnl};

/// The result of a route look-up: how packets to an address leave this namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Index of the outgoing link.
    pub dev: u32,
    /// The next hop, or `None` if the address is directly on the link.
    pub via: Option<IpAddr>,
    /// The preferred source address, used unless the sender chooses another.
    pub source: Option<IpAddr>,
    /// The routing table that the matching route is in.
    pub table: u32,
    /// True for a unicast route. False for a `blackhole` route and similar ones, which drop the
    /// packet, and for local addresses.
    pub is_unicast: bool,
    /// True if the address belongs to this namespace.
    pub is_local: bool,
}

/// Values of `rtm_type`.
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;

impl Rtnl {
    /// Returns the tables that policy rules refer to (`ip rule`), without duplicates.
    pub fn rule_tables(&self) -> Result<Vec<u32>, Error> {
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
                // Family, lengths, tos, table, two reserved bytes, action, flags.
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

    /// Looks up the route to `to`, for packets from `source` if it is given. Returns `None` if
    /// there is no route.
    pub fn path(&self, to: IpAddr, source: Option<IpAddr>) -> Result<Option<Path>, Error> {
        self.ask(RouteQuery {
            to,
            source,
            from: 0,
        })
    }

    /// Looks up the route to `to` for packets from `source` that arrive on the link `from`. Returns
    /// `None` if there is no route, or if the kernel accepts no such packet from that link.
    pub fn forwarding_path(
        &self,
        to: IpAddr,
        source: IpAddr,
        from: &Link,
    ) -> Result<Option<Path>, Error> {
        self.ask(RouteQuery {
            to,
            source: Some(source),
            from: from.index,
        })
    }

    fn ask(&self, query: RouteQuery) -> Result<Option<Path>, Error> {
        // The kernel's linux/rtnetlink.h.
        const OIF: u16 = 4;
        const GATEWAY: u16 = 5;
        const PREFSRC: u16 = 7;
        const TABLE: u16 = 15;
        let doing = || format!("look up the route to {}", query.to);
        let answer = match self.get(query, doing) {
            // The answer for a blackhole route and similar ones in IPv4.
            Err(error) if error.is_unroutable() => return Ok(None),
            other => other?,
        };
        let Some((head, attributes)) = answer.as_ref().and_then(|answer| answer.parts::<12>())
        else {
            return Ok(None);
        };
        let [_, _, _, _, table, _, _, kind, ..] = *head;
        let mut path = Path {
            dev: 0,
            via: None,
            source: None,
            table: table.into(),
            is_unicast: kind == UNICAST,
            is_local: kind == LOCAL,
        };
        for (kind, value) in attributes {
            match kind {
                OIF => path.dev = number(value),
                GATEWAY => path.via = ip(value),
                PREFSRC => path.source = ip(value),
                TABLE => path.table = number(value),
                _ => {}
            }
        }
        Ok(Some(path))
    }
}

/// A request for a single route (`RTM_GETROUTE`).
#[derive(Clone, Copy)]
struct RouteQuery {
    to: IpAddr,
    source: Option<IpAddr>,
    /// Index of the link on which the packet arrives; 0 for packets that this node sends itself.
    from: u32,
}

impl Request for RouteQuery {
    fn write(self, flags: u16, sequence: u32, buffer: &mut Vec<u8>) {
        /// The kernel's `RTM_GETROUTE`, `RTM_F_LOOKUP_TABLE`, `RTA_DST`, `RTA_SRC` and `RTA_IIF`.
        const GET_ROUTE: u16 = 26;
        const LOOKUP_TABLE: u32 = 0x1000;
        const DST: u16 = 1;
        const SRC: u16 = 2;
        const IIF: u16 = 3;
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        // For IPv6, the kernel always reports the table, and rejects this flag.
        let (family, bits, asks) = if self.to.is_ipv4() {
            (2, 32, LOOKUP_TABLE)
        } else {
            (10, 128, 0)
        };
        let begin = buffer.len();
        buffer.extend([0; 4]);
        buffer.extend(GET_ROUTE.to_ne_bytes());
        buffer.extend(flags.to_ne_bytes());
        buffer.extend(sequence.to_ne_bytes());
        buffer.extend([0; 4]);
        let source_bits = self.source.map_or(0, |_| bits);
        buffer.extend([family, bits, source_bits, 0, 0, 0, 0, 0]);
        buffer.extend(asks.to_ne_bytes());
        let ends = [(DST, Some(self.to)), (SRC, self.source)];
        for (kind, address) in ends {
            let Some(address) = address.map(bytes) else {
                continue;
            };
            let length = u16::try_from(4 + address.len()).expect("8 or 20");
            buffer.extend(length.to_ne_bytes());
            buffer.extend(kind.to_ne_bytes());
            buffer.extend(address);
        }
        if self.from != 0 {
            buffer.extend(8u16.to_ne_bytes());
            buffer.extend(IIF.to_ne_bytes());
            buffer.extend(self.from.to_ne_bytes());
        }
        let length = u32::try_from(buffer.len() - begin).expect("short");
        buffer[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
    }
}
