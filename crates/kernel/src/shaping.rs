//! Traffic shaping: queueing disciplines that limit the rate of what a link sends, and links of kind
//! `ifb`, which let the same be done with what a link receives.
//!
//! The messages are encoded and decoded here by hand: netlink-packet-route lacks the disciplines.
//! Source: the kernel's `linux/pkt_sched.h` and `linux/pkt_cls.h`.

mod uapi;

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use crate::link::{INCOMPLETE_GROUP, change_of, link_message, set_flag};
use crate::nfnetlink::{attribute, nest};
use crate::rtnl::{Answer, RawRequest, attributes, number, text};
use crate::{Error, Link, Rtnl};
use uapi::{KIND, OPTIONS};

/// Maximum wait of a packet in the queue of a shaped link, in microseconds.
const LATENCY: u64 = 25_000;

/// Handle of the root discipline, and its two classes if only some packets are shaped.
const ROOT_HANDLE: u32 = 0x1_0000;
const SHAPED_CLASS: u32 = 0x1_0001;
const UNSHAPED_CLASS: u32 = 0x1_0002;

/// A rate, and how much may be sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second; not 0.
    pub bytes_per_second: u64,
    /// Bytes that may be sent at once after a pause; at least a packet of the link's MTU.
    pub burst: u32,
}

/// The packets that are shaped, by the address of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShapedSubnets {
    /// All packets.
    All,
    /// Only packets from or to these subnets.
    Only(Vec<IpNetwork>),
    /// All packets except those from or to these subnets.
    Except(Vec<IpNetwork>),
}

/// Which address of a packet is that of the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAddress {
    /// The source: packets that a container receives.
    Source,
    /// The destination: packets that a container sends.
    Destination,
}

/// Limits for the packets that a link sends.
#[derive(Clone, Copy, Debug)]
pub struct Shaping<'a> {
    /// Limit of the shaped packets.
    pub rate: Rate,
    /// The shaped packets.
    pub subnets: &'a ShapedSubnets,
    /// Which address is compared with the subnets.
    pub remote: RemoteAddress,
}

impl Rtnl {
    /// Creates a link of kind `ifb` that is up. Until its alias is set, it is
    /// [marked](Link::is_incomplete). Fails if a link with this name exists.
    pub fn add_ifb(&self, name: &str, mtu: u32, alias: &str) -> Result<Link, Error> {
        let doing = || format!("create link {name} of kind ifb");
        let mut message = link_message(vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Group(INCOMPLETE_GROUP),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Ifb)]),
        ]);
        set_flag(&mut message, LinkFlags::Up);
        let created = RouteNetlinkMessage::NewLink(message);
        self.change((created, NLM_F_CREATE | NLM_F_EXCL), doing)?;
        let rest = || {
            let link = self.link(name)?;
            let link = link.ok_or_else(|| Error::new(doing(), "it was deleted at once"))?;
            let mut message = change_of(&link);
            message.attributes.extend([
                LinkAttribute::IfAlias(alias.to_owned()),
                LinkAttribute::Group(0),
            ]);
            self.change((RouteNetlinkMessage::NewLink(message), 0), doing)?;
            Ok(link)
        };
        rest().inspect_err(|_| drop(self.delete_link(name)))
    }

    /// Shapes the packets that a link sends. The link must have no discipline of its own yet.
    pub fn shape(&self, link: &Link, shaping: &Shaping<'_>) -> Result<(), Error> {
        let requests = match shaping.subnets {
            ShapedSubnets::All => vec![token_bucket(link, shaping.rate)],
            ShapedSubnets::Only(subnets) => {
                classes(link, shaping, subnets, UNSHAPED_CLASS, SHAPED_CLASS)
            }
            ShapedSubnets::Except(subnets) => {
                classes(link, shaping, subnets, SHAPED_CLASS, UNSHAPED_CLASS)
            }
        };
        self.create_all(
            requests,
            &format!("shape the packets that {} sends", link.name),
        )
    }

    /// Sends every packet that `from` receives out of `to` first. An `ifb` link hands it back after
    /// its own discipline.
    pub fn redirect(&self, from: &Link, to: &Link) -> Result<(), Error> {
        let discipline = message(
            uapi::NEW_QDISC,
            from,
            (uapi::INGRESS_HANDLE, uapi::INGRESS, 0),
            |body| {
                attribute(body, KIND, b"ingress\0");
                nest(body, OPTIONS, |_| {});
            },
        );
        let parent = (0, uapi::INGRESS_HANDLE, filter_info(1, uapi::ETH_P_ALL));
        let filter = message(uapi::NEW_FILTER, from, parent, |body| {
            attribute(body, KIND, b"u32\0");
            nest(body, OPTIONS, |options| {
                attribute(options, uapi::U32_CLASSID, &SHAPED_CLASS.to_ne_bytes());
                attribute(options, uapi::U32_SEL, &selector(&[(0, 0, 0)]));
                nest(options, uapi::U32_ACT, |actions| {
                    nest(actions, 1, |action| write_redirection(action, to));
                });
            });
        });
        let doing = format!("redirect packets of {} to {}", from.name, to.name);
        self.create_all(vec![discipline, filter], &doing)
    }

    fn create_all(&self, requests: Vec<RawRequest>, doing: &str) -> Result<(), Error> {
        let requests = requests
            .into_iter()
            .map(|request| (request, NLM_F_CREATE | NLM_F_EXCL));
        let outcomes = self
            .changes(requests)
            .map_err(|error| Error::new(doing, error))?;
        for outcome in outcomes {
            outcome.map_err(|error| Error::new(doing, error))?;
        }
        Ok(())
    }

    /// Returns the rate to which a link is shaped, and the time that its burst takes, in nanoseconds.
    /// `None` if it is not shaped by [`shape`](Rtnl::shape).
    pub fn shaped_rate(&self, link: &Link) -> Result<Option<(u64, u64)>, Error> {
        let doing = format!("read how {} is shaped", link.name);
        let all = |kind| RawRequest {
            kind,
            body: header(link, (0, 0, 0)),
        };
        for discipline in self.dump(&all(uapi::GET_QDISC), &doing)? {
            if let Some(found) = read_rate(&discipline, link, ROOT_HANDLE, "tbf", uapi::TBF) {
                return Ok(Some(found));
            }
        }
        for class in self.dump(&all(uapi::GET_CLASS), &doing)? {
            if let Some(found) = read_rate(&class, link, SHAPED_CLASS, "htb", uapi::HTB_CLASS) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Returns the index of the link to which every packet is [redirected](Rtnl::redirect) that a
    /// link receives.
    pub fn redirection(&self, from: &Link) -> Result<Option<u32>, Error> {
        let doing = format!("read where packets of {} are redirected", from.name);
        let request = RawRequest {
            kind: uapi::GET_FILTER,
            body: header(from, (0, uapi::INGRESS_HANDLE, 0)),
        };
        let filters = self.dump(&request, &doing)?;
        Ok(filters.iter().find_map(read_redirection))
    }
}

impl Rate {
    /// The time that the burst takes, in nanoseconds.
    #[must_use]
    pub fn burst_time(&self) -> u64 {
        let nanoseconds =
            u128::from(self.burst) * 1_000_000_000 / u128::from(self.bytes_per_second.max(1));
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    /// The length of the queue, in bytes. The kernel's limit has 32 bits.
    fn queue(&self) -> u32 {
        let waiting = u128::from(self.bytes_per_second) * u128::from(LATENCY) / 1_000_000;
        u32::try_from(waiting + u128::from(self.burst)).unwrap_or(u32::MAX)
    }

    /// `struct tc_ratespec`. A higher rate than 32 bits can hold is in an attribute of its own.
    fn specification(&self) -> [u8; 12] {
        const ETHERNET: u8 = 1;
        let rate = u32::try_from(self.bytes_per_second).unwrap_or(u32::MAX);
        let mut specification = [0; 12];
        specification[1] = ETHERNET;
        specification[8..].copy_from_slice(&rate.to_ne_bytes());
        specification
    }
}

/// The discipline `tbf`: all packets within one rate.
fn token_bucket(link: &Link, rate: Rate) -> RawRequest {
    message(
        uapi::NEW_QDISC,
        link,
        (ROOT_HANDLE, uapi::ROOT, 0),
        |body| {
            attribute(body, KIND, b"tbf\0");
            nest(body, OPTIONS, |options| {
                // `struct tc_tbf_qopt`: rate, peak rate, limit, buffer, MTU.
                let mut parameters = rate.specification().to_vec();
                parameters.extend([0; 12]);
                parameters.extend(rate.queue().to_ne_bytes());
                parameters.extend([0; 8]);
                attribute(options, uapi::TBF.parameters, &parameters);
                attribute(options, uapi::TBF_BURST, &rate.burst.to_ne_bytes());
                attribute(
                    options,
                    uapi::TBF.rate64,
                    &rate.bytes_per_second.to_ne_bytes(),
                );
            });
        },
    )
}

/// The discipline `htb` with a class for shaped packets and one for others. Packets from or to
/// `subnets` belong to the class `chosen`, and others to `default`.
fn classes(
    link: &Link,
    shaping: &Shaping<'_>,
    subnets: &[IpNetwork],
    default: u32,
    chosen: u32,
) -> Vec<RawRequest> {
    /// More than any link has, in bytes per second.
    const UNLIMITED: Rate = Rate {
        bytes_per_second: 1 << 37,
        burst: 1 << 27,
    };
    let root = message(
        uapi::NEW_QDISC,
        link,
        (ROOT_HANDLE, uapi::ROOT, 0),
        |body| {
            attribute(body, KIND, b"htb\0");
            nest(body, OPTIONS, |options| {
                // `struct tc_htb_glob`: version, rate2quantum, default class, debug, direct packets.
                let global = [3, 10, default & 0xffff, 0, 0]
                    .map(u32::to_ne_bytes)
                    .concat();
                attribute(options, uapi::HTB_INIT, &global);
            });
        },
    );
    let mut requests = vec![
        root,
        class(link, SHAPED_CLASS, shaping.rate),
        class(link, UNSHAPED_CLASS, UNLIMITED),
        queue(link, SHAPED_CLASS, shaping.rate),
    ];
    requests.extend(subnets.iter().map(|subnet| {
        // Filters for different protocols need different priorities.
        let (priority, protocol) = match subnet {
            IpNetwork::V4(_) => (1, uapi::ETH_P_IP),
            IpNetwork::V6(_) => (2, uapi::ETH_P_IPV6),
        };
        let parent = (0, ROOT_HANDLE, filter_info(priority, protocol));
        message(uapi::NEW_FILTER, link, parent, |body| {
            attribute(body, KIND, b"u32\0");
            nest(body, OPTIONS, |options| {
                attribute(options, uapi::U32_CLASSID, &chosen.to_ne_bytes());
                attribute(
                    options,
                    uapi::U32_SEL,
                    &selector(&keys(*subnet, shaping.remote)),
                );
            });
        })
    }));
    requests
}

/// A class of `htb`.
fn class(link: &Link, handle: u32, rate: Rate) -> RawRequest {
    /// Bytes that one class sends before it is the turn of the other.
    const QUANTUM: u32 = 60_000;
    message(uapi::NEW_CLASS, link, (handle, ROOT_HANDLE, 0), |body| {
        attribute(body, KIND, b"htb\0");
        nest(body, OPTIONS, |options| {
            // `struct tc_htb_opt`: rate, ceiling, buffer, buffer of the ceiling, quantum, level,
            // priority. Buffers are times, in units of 64 nanoseconds.
            let buffer = u32::try_from(rate.burst_time() / uapi::TICK).unwrap_or(u32::MAX);
            let mut parameters = [rate.specification(); 2].concat();
            for value in [buffer, buffer, QUANTUM, 0, 0] {
                parameters.extend(value.to_ne_bytes());
            }
            attribute(options, uapi::HTB_CLASS.parameters, &parameters);
            let rate = rate.bytes_per_second.to_ne_bytes();
            attribute(options, uapi::HTB_CLASS.rate64, &rate);
            attribute(options, uapi::HTB_CEIL64, &rate);
        });
    })
}

/// The queue of the shaped class. By default it would have a thousand packets, whatever the rate.
fn queue(link: &Link, class: u32, rate: Rate) -> RawRequest {
    /// The kernel hands over packets of up to 64 kB.
    const LEAST: u32 = 128 << 10;
    let parent = (0x2_0000, class, 0);
    message(uapi::NEW_QDISC, link, parent, |body| {
        attribute(body, KIND, b"bfifo\0");
        attribute(body, OPTIONS, &rate.queue().max(LEAST).to_ne_bytes());
    })
}

/// The comparisons of a packet with a subnet: mask, value and offset in the network header.
fn keys(subnet: IpNetwork, remote: RemoteAddress) -> Vec<(u32, u32, i32)> {
    let words = |address: &[u8]| -> Vec<u32> {
        let words = address.chunks_exact(4);
        words
            .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
            .collect()
    };
    let (address, mask) = match subnet {
        IpNetwork::V4(v4) => (words(&v4.network().octets()), words(&v4.mask().octets())),
        IpNetwork::V6(v6) => (words(&v6.network().octets()), words(&v6.mask().octets())),
    };
    let start = match (remote, subnet) {
        (RemoteAddress::Source, IpNetwork::V4(_)) => 12,
        (RemoteAddress::Destination, IpNetwork::V4(_)) => 16,
        (RemoteAddress::Source, IpNetwork::V6(_)) => 8,
        (RemoteAddress::Destination, IpNetwork::V6(_)) => 24,
    };
    let offsets = (start..).step_by(4);
    let keys = mask.into_iter().zip(address).zip(offsets);
    keys.map(|((mask, value), offset)| (mask, value, offset))
        .collect()
}

/// `struct tc_u32_sel` with its keys.
fn selector(keys: &[(u32, u32, i32)]) -> Vec<u8> {
    /// `TC_U32_TERMINAL`
    const TERMINAL: u8 = 1;
    let count = u8::try_from(keys.len()).expect("at most four words");
    let mut selector = vec![TERMINAL, 0, count, 0];
    selector.extend([0; 12]);
    for (mask, value, offset) in keys {
        selector.extend(mask.to_ne_bytes());
        selector.extend(value.to_ne_bytes());
        selector.extend(offset.to_ne_bytes());
        selector.extend([0; 4]);
    }
    selector
}

/// Writes the action `mirred`: redirects a packet.
fn write_redirection(action: &mut Vec<u8>, to: &Link) {
    attribute(action, uapi::ACT_KIND, b"mirred\0");
    nest(action, uapi::ACT_OPTIONS, |options| {
        // `struct tc_mirred`: index, capabilities, action, two counts, what to do, link.
        let values = [0, 0, uapi::ACT_STOLEN, 0, 0, uapi::EGRESS_REDIR, to.index];
        let values = values.map(u32::to_ne_bytes).concat();
        attribute(options, uapi::MIRRED_PARMS, &values);
    });
}

/// Priority and protocol of a filter.
fn filter_info(priority: u32, protocol: u16) -> u32 {
    priority << 16 | u32::from(protocol.to_be())
}

/// A message about a discipline, class or filter. `place` has its handle, its parent and, for a
/// filter, priority and protocol.
fn message(
    kind: u16,
    link: &Link,
    place: (u32, u32, u32),
    fill: impl FnOnce(&mut Vec<u8>),
) -> RawRequest {
    let mut body = header(link, place);
    fill(&mut body);
    RawRequest { kind, body }
}

/// `struct tcmsg`: family, index of the link, handle, parent, information.
fn header(link: &Link, (handle, parent, info): (u32, u32, u32)) -> Vec<u8> {
    [0, link.index, handle, parent, info]
        .map(u32::to_ne_bytes)
        .concat()
}

/// Reads the rate of a discipline or class with this handle and kind.
fn read_rate(
    answer: &Answer,
    link: &Link,
    handle: u32,
    kind: &str,
    layout: uapi::RateLayout,
) -> Option<(u64, u64)> {
    let (head, all) = answer.parts::<{ uapi::HEADER }>()?;
    if number(&head[4..]) != link.index || number(&head[8..]) != handle {
        return None;
    }
    let (mut is_kind, mut found) = (false, None);
    for (key, value) in all {
        match key {
            KIND => is_kind = text(value) == kind,
            OPTIONS => {
                let (mut rate, mut buffer, mut rate64) = (0, 0, None);
                for (key, value) in attributes(value) {
                    if key == layout.parameters {
                        rate = u64::from(number(value.get(8..)?));
                        buffer = number(value.get(layout.buffer..)?);
                    } else if key == layout.rate64 {
                        rate64 = value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
                    }
                }
                found = Some((rate64.unwrap_or(rate), u64::from(buffer) * uapi::TICK));
            }
            _ => {}
        }
    }
    found.filter(|_| is_kind)
}

/// Reads the link to which a filter redirects.
fn read_redirection(answer: &Answer) -> Option<u32> {
    let (_, mut all) = answer.parts::<{ uapi::HEADER }>()?;
    let inner = |bytes, key| {
        attributes(bytes)
            .find(|(kind, _)| *kind == key)
            .map(|(_, v)| v)
    };
    let (_, options) = all.find(|(key, _)| *key == OPTIONS)?;
    let action = inner(inner(options, uapi::U32_ACT)?, 1)?;
    let parameters = inner(inner(action, uapi::ACT_OPTIONS)?, uapi::MIRRED_PARMS)?;
    (number(parameters.get(20..)?) == uapi::EGRESS_REDIR).then(|| number(&parameters[24..]))
}

/// Decodes an answer, for a test with damaged ones.
#[cfg(test)]
pub(crate) fn decode(answer: &Answer) {
    read_redirection(answer);
}
