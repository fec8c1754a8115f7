//! Where the kernel sends a packet, whatever rules and tables decide on it.

use std::net::IpAddr;

use crate::rtnl::{Request, ip, number};
use crate::{Error, Link, Rtnl};

/// How packets to an address leave this namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The number of the link.
    pub dev: u32,
    /// The next hop; nothing where the address is on the link.
    pub via: Option<IpAddr>,
    /// The address that they come from, unless their sender chooses another.
    pub source: Option<IpAddr>,
    /// The routing table that decided.
    pub table: u32,
    /// Whether they reach anybody: not so where a `blackhole` or its like decided.
    pub is_open: bool,
    /// Whether the address is one of this namespace's own.
    pub is_local: bool,
}

/// `rtm_type`, as the kernel numbers it.
const UNICAST: u8 = 1;
const LOCAL: u8 = 2;

impl Rtnl {
    /// How packets to `to` leave, those that come from `source` where one is named. Nothing where there is
    /// no route.
    pub fn path(&self, to: IpAddr, source: Option<IpAddr>) -> Result<Option<Path>, Error> {
        self.ask(Question {
            to,
            source,
            from: 0,
        })
    }

    /// How packets to `to` leave that come from `source` by the link `from`. Nothing where they do not, or
    /// where the kernel takes none from there.
    pub fn path_of_guest(
        &self,
        to: IpAddr,
        source: IpAddr,
        from: &Link,
    ) -> Result<Option<Path>, Error> {
        self.ask(Question {
            to,
            source: Some(source),
            from: from.index,
        })
    }

    fn ask(&self, question: Question) -> Result<Option<Path>, Error> {
        // The kernel's linux/rtnetlink.h.
        const OIF: u16 = 4;
        const GATEWAY: u16 = 5;
        const PREFSRC: u16 = 7;
        const TABLE: u16 = 15;
        let doing = || format!("ask for the way to {}", question.to);
        let answer = match self.get(question, doing) {
            // What a blackhole and its like answer in IPv4.
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
            is_open: kind == UNICAST,
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

/// Asks for one route.
#[derive(Clone, Copy)]
struct Question {
    to: IpAddr,
    source: Option<IpAddr>,
    /// The number of the link that the packet comes by; 0 where it is this node's own.
    from: u32,
}

impl Request for Question {
    fn write(self, flags: u16, sequence: u32, buffer: &mut Vec<u8>) {
        /// The kernel's `RTM_GETROUTE`, `RTM_F_LOOKUP_TABLE`, `RTA_DST` and `RTA_SRC`.
        const GET_ROUTE: u16 = 26;
        const LOOKUP_TABLE: u32 = 0x1000;
        const DST: u16 = 1;
        const SRC: u16 = 2;
        const IIF: u16 = 3;
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        // In IPv6 the kernel names the table unasked, and takes no such flag.
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
