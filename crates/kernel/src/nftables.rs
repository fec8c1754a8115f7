//! `nf_tables`: masquerading, by netlink and without any program.
//!
//! Messages are written and read here by hand, because the crates for it want a C library, an
//! `nft` program or another licence. Source: the kernel's `linux/netfilter/nf_tables.h`.

use std::io;

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::packet_core::NlasIterator;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::Error;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;

const USER_DATA: u16 = 12;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// How often others may get in between.
const TRIES: usize = 8;

/// The families of tables that addresses of pods are in: `ip` and `ip6`.
const FAMILIES: [u8; 2] = [IPV4, IPV6];
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// Has what leaves `subnet` masqueraded, but for what goes to one of `except` or to many.
///
/// The rules of one subnet are one chain of `table`, whose comment says what it excepts. The
/// namespace of the calling thread is meant.
#[derive(Clone, Copy, Debug)]
pub struct Masquerade<'a> {
    /// The table's name, in the family of the subnet.
    pub table: &'a str,
    /// Whose packets are masqueraded.
    pub subnet: IpNetwork,
    /// Where they keep their source address; networks of the other family do not matter.
    pub except: &'a [IpNetwork],
}

/// Whether the kernel has `nf_tables`.
pub fn is_available() -> Result<(), Error> {
    let failed = |error: io::Error| Error::new("talk to nf_tables", error);
    let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
    let answer = exchange(&socket, &message(GET_GENERATION, ACK, &[0; 4])).map_err(failed)?;
    match answer.refusal {
        None => Ok(()),
        Some(errno) => Err(Error::new("talk to nf_tables", errno)),
    }
}

/// Deletes the chains of `table` whose subnet nobody wants any more, and with the last of them
/// the table. Says how many went. What is not there is fine.
pub fn retain_masquerade(
    table: &str,
    is_wanted: impl Fn(IpNetwork) -> bool,
) -> Result<usize, Error> {
    let failed = |error: io::Error| Error::new(format!("clean up nf_tables table {table}"), error);
    let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
    let mut deleted = 0;
    for family in FAMILIES {
        let chains = chains(&socket, family, table).map_err(failed)?;
        let unwanted: Vec<_> = chains
            .iter()
            .filter(|chain| subnet_of(chain).is_some_and(|subnet| !is_wanted(subnet)))
            .collect();
        if unwanted.is_empty() {
            continue;
        }
        let name = |chain: Option<&str>| {
            let mut body = vec![family, 0, 0, 0];
            text(&mut body, 1, table);
            if let Some(chain) = chain {
                text(&mut body, 3, chain);
            }
            body
        };
        let mut changes = Vec::new();
        if unwanted.len() == chains.len() {
            changes.extend(message(DELETE_TABLE, ACK, &name(None)));
        } else {
            for chain in &unwanted {
                changes.extend(message(DELETE_CHAIN, ACK, &name(Some(chain))));
            }
        }
        let answer = exchange(&socket, &transaction(&changes)).map_err(failed)?;
        match answer.refusal {
            None => deleted += unwanted.len(),
            Some(Errno::ENOENT) => {}
            Some(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(deleted)
}

/// The names of the chains of `table`.
fn chains(socket: &Socket, family: u8, table: &str) -> io::Result<Vec<String>> {
    const INTERRUPTED: u16 = 0x10;
    for _ in 0..TRIES {
        let answer = exchange(socket, &message(GET_CHAIN, DUMP, &[family, 0, 0, 0]))?;
        if let Some(errno) = answer.refusal {
            return Err(errno.into());
        }
        // A list that changed while it was read is read again.
        if messages(&answer.text).all(|(_, flags, _)| flags & INTERRUPTED == 0) {
            return Ok(names_in(&answer.text, table));
        }
    }
    Err(Errno::EINTR.into())
}

fn names_in(answer: &[u8], table: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (kind, _, body) in messages(answer) {
        if kind != NEW_CHAIN {
            continue;
        }
        let (mut its_table, mut name) = (None, None);
        for attribute in NlasIterator::new(body.get(4..).unwrap_or_default()).flatten() {
            let text = || {
                String::from_utf8_lossy(attribute.value())
                    .trim_end_matches('\0')
                    .to_owned()
            };
            match attribute.kind() {
                1 => its_table = Some(text()),
                3 => name = Some(text()),
                _ => {}
            }
        }
        if its_table.as_deref() == Some(table) {
            names.extend(name);
        }
    }
    names
}

/// What a chain's name says. nft prints a name as it is and would not read back the slash and
/// the colons of a network, so they are dashes.
fn subnet_of(chain: &str) -> Option<IpNetwork> {
    let (address, prefix) = chain.strip_prefix(CHAIN)?.rsplit_once('-')?;
    let network = |address: &str| format!("{address}/{prefix}").parse().ok();
    network(address).or_else(|| network(&address.replace('-', ":")))
}

const CHAIN: &str = "masquerade-";

impl Masquerade<'_> {
    /// Puts the rules there. Where they are there with as many rules as there should be, this
    /// is one request; where they are not, they are made anew, in one transaction.
    pub fn ensure(&self) -> Result<(), Error> {
        let failed = |error: io::Error| Error::new(self.doing(), error);
        let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        for _ in 0..TRIES {
            let is_there = match self.look(&socket).map_err(failed)? {
                Found::Right => return Ok(()),
                Found::Wrong => true,
                Found::Nothing => false,
            };
            let made = exchange(&socket, &self.batch(is_there)).map_err(failed)?;
            match made.refusal {
                None => return Ok(()),
                // Another process made it, or took it away, in between: look again. Of one
                // batch all or nothing is done.
                Some(Errno::EEXIST) if !is_there => {}
                Some(Errno::ENOENT) if is_there => {}
                Some(errno) => return Err(failed(errno.into())),
            }
        }
        Err(Error::new(
            self.doing(),
            "other processes change it all the time",
        ))
    }

    /// Whether the rules are there as they should be.
    pub fn is_there(&self) -> Result<bool, Error> {
        let look = || self.look(&Socket::new(NETLINK_NETFILTER)?);
        let found = look().map_err(|error| Error::new(self.doing(), error))?;
        Ok(matches!(found, Found::Right))
    }

    fn look(&self, socket: &Socket) -> io::Result<Found> {
        let chain = exchange(socket, &self.get_chain())?;
        match chain.refusal {
            None if self.are_in(&chain.text) => Ok(Found::Right),
            None => Ok(Found::Wrong),
            Some(Errno::ENOENT) => Ok(Found::Nothing),
            Some(errno) => Err(errno.into()),
        }
    }

    fn doing(&self) -> String {
        let Self { table, subnet, .. } = self;
        format!("masquerade {subnet} in nf_tables table {table}")
    }

    fn chain(&self) -> String {
        format!("{CHAIN}{}", self.subnet).replace(['/', ':'], "-")
    }

    /// What the chain excepts, in the 128 bytes that nft gives a comment.
    fn comment(&self) -> String {
        let list: Vec<_> = self
            .exceptions()
            .map(|network| network.to_string())
            .collect();
        let text = format!("but for {}", list.join(", "));
        if text.len() < 120 {
            return text;
        }
        // FNV-1a: what counts is that other networks give another text.
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        format!("but for {} networks ({hash:016x})", list.len())
    }

    /// Whether the kernel's `answer` about the chain is what it should be.
    fn are_in(&self, answer: &[u8]) -> bool {
        const USE: u16 = 6;
        const HEADERS: usize = 20;
        let rules = self.exceptions().count() + 2;
        let rules = u32::try_from(rules).expect("fewer").to_be_bytes();
        let attributes = NlasIterator::new(answer.get(HEADERS..).unwrap_or_default());
        // Behind the chain comes the acknowledgement, which is no list of attributes.
        let (mut has_rules, mut has_comment) = (false, false);
        for attribute in attributes.map_while(Result::ok) {
            has_rules |= attribute.kind() == USE && attribute.value() == rules;
            has_comment |= attribute.kind() == USER_DATA && attribute.value() == self.user_data();
        }
        has_rules && has_comment
    }

    /// A comment (0), its length, its text.
    fn user_data(&self) -> Vec<u8> {
        let comment = self.comment() + "\0";
        let length = u8::try_from(comment.len()).expect("kept short");
        [&[0, length], comment.as_bytes()].concat()
    }

    fn exceptions(&self) -> impl Iterator<Item = IpNetwork> {
        let of_family = |other: &&IpNetwork| other.is_ipv4() == self.subnet.is_ipv4();
        self.except.iter().filter(of_family).copied()
    }

    fn get_chain(&self) -> Vec<u8> {
        let mut body = self.header();
        text(&mut body, 1, self.table);
        text(&mut body, 3, &self.chain());
        message(GET_CHAIN, ACK, &body)
    }

    /// Table, chain and rules in one transaction. The chain must be new: appended to one that
    /// is there, the rules would stand twice.
    fn batch(&self, is_there: bool) -> Vec<u8> {
        let mut table = self.header();
        text(&mut table, 1, self.table);
        let mut chain = self.header();
        text(&mut chain, 1, self.table);
        text(&mut chain, 3, &self.chain());
        // At postrouting (4), where source addresses are translated (100).
        nest(&mut chain, 4, |hook| {
            number(hook, 1, 4);
            number(hook, 2, 100);
        });
        text(&mut chain, 7, "nat");
        attribute(&mut chain, USER_DATA, &self.user_data());
        let mut batch = message(NEW_TABLE, CREATE | ACK, &table);
        if is_there {
            let mut old = self.header();
            text(&mut old, 1, self.table);
            text(&mut old, 3, &self.chain());
            batch.extend(message(DELETE_CHAIN, ACK, &old));
        }
        batch.extend(message(NEW_CHAIN, CREATE | EXCL | ACK, &chain));
        let multicast = if self.subnet.is_ipv4() {
            "224.0.0.0/4"
        } else {
            "ff00::/8"
        };
        let multicast: IpNetwork = multicast.parse().expect("the multicast network");
        for network in self.exceptions().chain([multicast]) {
            batch.extend(self.rule(|rule| {
                to(rule, network);
                leave(rule);
            }));
        }
        batch.extend(self.rule(|rule| {
            from(rule, self.subnet);
            expression(rule, "masq", |_| {});
        }));
        transaction(&batch)
    }

    fn rule(&self, expressions: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut body = self.header();
        text(&mut body, 1, self.table);
        text(&mut body, 2, &self.chain());
        nest(&mut body, 4, expressions);
        message(NEW_RULE, CREATE | APPEND | ACK, &body)
    }

    /// The family, which is that of the table.
    fn header(&self) -> Vec<u8> {
        let family = if self.subnet.is_ipv4() { IPV4 } else { IPV6 };
        vec![family, 0, 0, 0]
    }
}

/// What is there of the rules.
enum Found {
    Nothing,
    Wrong,
    Right,
}

/// Changes of which all are made, or none.
fn transaction(changes: &[u8]) -> Vec<u8> {
    let subsystem = [0, 0, 0, SUBSYSTEM.to_be_bytes()[1]];
    let begin = message(BATCH_BEGIN, 0, &subsystem);
    [&begin, changes, &message(BATCH_END, 0, &subsystem)].concat()
}

/// Matches packets from `network`.
fn from(rule: &mut Vec<u8>, network: IpNetwork) {
    matches(rule, if network.is_ipv4() { 12 } else { 8 }, network);
}

/// Matches packets to `network`.
fn to(rule: &mut Vec<u8>, network: IpNetwork) {
    matches(rule, if network.is_ipv4() { 16 } else { 24 }, network);
}

/// Compares the masked address at `offset` of the network header with the network's.
fn matches(rule: &mut Vec<u8>, offset: u32, network: IpNetwork) {
    let (address, mask) = match network {
        IpNetwork::V4(v4) => (v4.network().octets().to_vec(), v4.mask().octets().to_vec()),
        IpNetwork::V6(v6) => (v6.network().octets().to_vec(), v6.mask().octets().to_vec()),
    };
    let length = u32::try_from(address.len()).expect("4 or 16");
    expression(rule, "payload", |data| {
        // Into register 1, from the network header (1).
        for (kind, value) in [(1, 1), (2, 1), (3, offset), (4, length)] {
            number(data, kind, value);
        }
    });
    expression(rule, "bitwise", |data| {
        for (kind, value) in [(1, 1), (2, 1), (3, length)] {
            number(data, kind, value);
        }
        nest(data, 4, |value| attribute(value, 1, &mask));
        nest(data, 5, |value| attribute(value, 1, &vec![0; mask.len()]));
    });
    expression(rule, "cmp", |data| {
        // Register 1 is equal (0).
        number(data, 1, 1);
        number(data, 2, 0);
        nest(data, 3, |value| attribute(value, 1, &address));
    });
}

/// Leaves the chain: the verdict "return" is -5.
fn leave(rule: &mut Vec<u8>) {
    expression(rule, "immediate", |data| {
        number(data, 1, 0);
        nest(data, 2, |value| {
            nest(value, 2, |verdict| {
                attribute(verdict, 1, &(-5_i32).to_be_bytes());
            });
        });
    });
}

fn expression(rule: &mut Vec<u8>, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
    nest(rule, 1, |element| {
        text(element, 1, name);
        nest(element, 2, data);
    });
}

fn nest(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    const NESTED: u16 = 1 << 15;
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(body, kind | NESTED, &inner);
}

fn number(body: &mut Vec<u8>, kind: u16, value: u32) {
    attribute(body, kind, &value.to_be_bytes());
}

fn text(body: &mut Vec<u8>, kind: u16, value: &str) {
    attribute(body, kind, &[value.as_bytes(), b"\0"].concat());
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a short attribute");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("a short message");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | REQUEST).to_ne_bytes());
    // Neither sequence number nor port: every answer on this socket is to this.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// What the kernel says to one send.
struct Answer {
    refusal: Option<Errno>,
    text: Vec<u8>,
}

/// Sends messages and reads what the kernel says: the first refusal, if any, and all its words.
fn exchange(socket: &Socket, send: &[u8]) -> io::Result<Answer> {
    const ERROR: u16 = 2;
    socket.send_to(send, &SocketAddr::new(0, 0), 0)?;
    let mut answer = Answer {
        refusal: None,
        text: Vec::new(),
    };
    // The kernel answers before send(2) returns, so what is there is all there is.
    socket.set_non_blocking(true)?;
    loop {
        match socket.recv_from_full() {
            Ok((text, _)) => answer.text.extend(text),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    for (kind, _, body) in messages(&answer.text) {
        let code = body
            .first_chunk()
            .map_or(0, |code| i32::from_ne_bytes(*code));
        if kind == ERROR && code != 0 {
            answer.refusal = answer.refusal.or(Some(Errno::from_raw(-code)));
        }
    }
    Ok(answer)
}

/// The kind, the flags and the body of each message.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    const HEADER: usize = 16;
    std::iter::from_fn(move || {
        let head: &[u8; HEADER] = rest.first_chunk()?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
        let length = usize::try_from(length).expect("fits").max(HEADER);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let pair = |i: usize| u16::from_ne_bytes([head[i], head[i + 1]]);
        Some((pair(4), pair(6), body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chains_name_says_its_subnet() {
        for subnet in ["10.10.1.0/24", "fd00:10:10:1::/64", "::/0"] {
            let subnet: IpNetwork = subnet.parse().expect("a network");
            let masquerade = Masquerade {
                table: "t",
                subnet,
                except: &[],
            };
            assert_eq!(subnet_of(&masquerade.chain()), Some(subnet));
        }
        assert_eq!(subnet_of("forward"), None);
    }
}
