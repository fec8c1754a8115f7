//! The messages of `nf_tables`: how they are written, sent and read.

use std::io;

use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;
use rtnetlink::sys::{Socket, SocketAddr};

use crate::error::uninterrupted;

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 16;
pub(super) const BATCH_END: u16 = 17;
pub(super) const NEW_TABLE: u16 = SUBSYSTEM << 8;
pub(super) const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
pub(super) const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
pub(super) const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
pub(super) const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
pub(super) const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
pub(super) const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
pub(super) const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 0x0c;
pub(super) const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 0x0d;
pub(super) const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;

/// What a chain says of itself.
pub(super) const USER_DATA: u16 = 12;

pub(super) const REQUEST: u16 = 1;
pub(super) const ACK: u16 = 4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const EXCL: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

/// Changes of which all are made, or none.
pub(super) fn transaction(changes: &[u8]) -> Vec<u8> {
    let subsystem = [0, 0, 0, SUBSYSTEM.to_be_bytes()[1]];
    let begin = message(BATCH_BEGIN, 0, &subsystem);
    [&begin, changes, &message(BATCH_END, 0, &subsystem)].concat()
}

pub(super) fn nest(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    const NESTED: u16 = 1 << 15;
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(body, kind | NESTED, &inner);
}

pub(super) fn number(body: &mut Vec<u8>, kind: u16, value: u32) {
    attribute(body, kind, &value.to_be_bytes());
}

pub(super) fn text(body: &mut Vec<u8>, kind: u16, value: &str) {
    attribute(body, kind, &[value.as_bytes(), b"\0"].concat());
}

pub(super) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a short attribute");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
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
pub(super) struct Answer {
    pub(super) refusal: Option<Errno>,
    pub(super) text: Vec<u8>,
}

/// Sends messages and reads what the kernel says: the first refusal, if any, and all its words.
///
/// Errors when the kernel does not acknowledge every message that asks for it.
pub(super) fn exchange(socket: &Socket, send: &[u8]) -> io::Result<Answer> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    uninterrupted(|| socket.send_to(send, &SocketAddr::new(0, 0), 0))?;
    let mut answer = Answer {
        refusal: None,
        text: Vec::new(),
    };
    let asks = |flags: u16| flags & ACK != 0 || flags & DUMP == DUMP;
    let mut missing = messages(send).filter(|(_, flags, _)| asks(*flags)).count();
    while missing > 0 {
        let text = match receive(socket) {
            Ok(text) => text,
            // Of a transaction that is refused, the messages behind the refused one have no answer.
            Err(_) if answer.refusal.is_some() => break,
            Err(error) => return Err(error),
        };
        for (kind, _, body) in messages(&text) {
            let code = body
                .first_chunk()
                .map_or(0, |code| i32::from_ne_bytes(*code));
            if kind == ERROR && code != 0 {
                answer.refusal = answer.refusal.or(Some(Errno::from_raw(-code)));
            }
            missing = missing.saturating_sub(usize::from(matches!(kind, ERROR | DONE)));
        }
        answer.text.extend(text);
    }
    Ok(answer)
}

/// Reads the next datagram. The kernel answers before `send(2)` returns, so an empty socket means
/// that an answer is lost. The first failure does not say so yet: what found no room is reported
/// once (ENOBUFS), and what did find room is still there.
fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let receive = || {
        uninterrupted(|| {
            let mut text = Vec::with_capacity(PART);
            socket.recv(&mut text, MSG_DONTWAIT)?;
            Ok(text)
        })
    };
    receive().or_else(|first| receive().map_err(|_| first))
}

/// The kernel fills no more than this with one part of a dump.
const PART: usize = 32 << 10;

/// The kind, the flags and the body of each message.
pub(super) fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
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

/// Each attribute's kind and value.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    crate::rtnl::attributes(bytes)
}

/// A number, in the network's order of bytes.
pub(super) fn word(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// User data that are a comment: its number (0), its length, its text, of less than 120 bytes.
pub(super) fn comment(words: &str) -> Vec<u8> {
    let words = words.to_owned() + "\0";
    let length = u8::try_from(words.len()).expect("kept short");
    [&[0, length], words.as_bytes()].concat()
}
