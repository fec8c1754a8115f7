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
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const USER_DATA: u16 = 12;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// How often others may get in between.
const TRIES: usize = 8;

/// Has what leaves `subnet` masqueraded, but for what goes to one of `except` or to many.
///
/// The rules of one subnet are one chain of `table`, whose comment says what it excepts. Where
/// it is there with as many rules as it should have, this is one request, and where it is not
/// it is made anew, in one transaction. The thread's namespace is meant.
pub fn ensure_masquerade(
    table: &str,
    subnet: IpNetwork,
    except: &[IpNetwork],
) -> Result<(), Error> {
    let doing = || format!("masquerade {subnet} in nf_tables table {table}");
    let failed = |error: io::Error| Error::new(doing(), error);
    let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
    let rules = Masquerade {
        table,
        subnet,
        except,
    };
    for _ in 0..TRIES {
        let chain = exchange(&socket, &rules.get_chain()).map_err(failed)?;
        let is_there = match chain.refusal {
            None if rules.are_in(&chain.text) => return Ok(()),
            None => true,
            Some(Errno::ENOENT) => false,
            Some(errno) => return Err(Error::new(doing(), errno)),
        };
        match exchange(&socket, &rules.batch(is_there))
            .map_err(failed)?
            .refusal
        {
            None => return Ok(()),
            // Another process made it, or took it away, in between: look again. Of one batch
            // all or nothing is done.
            Some(Errno::EEXIST) if !is_there => {}
            Some(Errno::ENOENT) if is_there => {}
            Some(errno) => return Err(Error::new(doing(), errno)),
        }
    }
    Err(Error::new(
        doing(),
        "other processes change it all the time",
    ))
}

struct Masquerade<'a> {
    table: &'a str,
    subnet: IpNetwork,
    except: &'a [IpNetwork],
}

impl Masquerade<'_> {
    fn chain(&self) -> String {
        // nft prints a name as it is, and would not read these back.
        format!("masquerade {}", self.subnet).replace([' ', '/', ':'], "-")
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
        let mut batch = message(BATCH_BEGIN, 0, &[0, 0, 0, SUBSYSTEM.to_be_bytes()[1]]);
        batch.extend(message(NEW_TABLE, CREATE | ACK, &table));
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
        batch.extend(message(
            BATCH_END,
            0,
            &[0, 0, 0, SUBSYSTEM.to_be_bytes()[1]],
        ));
        batch
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
        vec![if self.subnet.is_ipv4() { 2 } else { 10 }, 0, 0, 0]
    }
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
    let mut rest = &answer.text[..];
    while let (Some(head), Some(code)) = (rest.get(..16), rest.get(16..20)) {
        let length = u32::from_ne_bytes(head[..4].try_into().expect("four bytes"));
        let code = i32::from_ne_bytes(code.try_into().expect("four bytes"));
        if u16::from_ne_bytes([head[4], head[5]]) == ERROR && code != 0 {
            answer.refusal = answer.refusal.or(Some(Errno::from_raw(-code)));
        }
        let length = usize::try_from(length)
            .expect("fits")
            .next_multiple_of(4)
            .max(16);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(answer)
}
