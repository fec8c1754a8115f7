//! Messages of the kernel's `nfnetlink`: encoding, sending and decoding.

use std::io;

use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use util::retry_on_eintr;

pub(crate) const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

/// Sends a request on a socket of its own and collects the replies.
pub(crate) fn request(request: &[u8]) -> io::Result<Answer> {
    request_on(&connect()?, request)
}

/// Opens a socket in the namespace of this thread.
pub(crate) fn connect() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    // Error replies contain no copy of our request, which may be long.
    socket.set_cap_ack(true)?;
    Ok(socket)
}

/// The same on a socket that stays open.
pub(crate) fn request_on(socket: &Socket, request: &[u8]) -> io::Result<Answer> {
    if request.len() > SEND_BUFFER {
        // Counts the memory of a packet, too.
        setsockopt(socket, sockopt::SndBufForce, &(2 * request.len()))?;
    }
    exchange(socket, request)
}

/// Size of a request that fits into the send buffer of every socket, in bytes.
const SEND_BUFFER: usize = 64 << 10;

pub(crate) fn nest(body: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    const NESTED: u16 = 1 << 15;
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(body, kind | NESTED, &inner);
}

pub(crate) fn number(body: &mut Vec<u8>, kind: u16, value: u32) {
    attribute(body, kind, &value.to_be_bytes());
}

pub(crate) fn text(body: &mut Vec<u8>, kind: u16, value: &str) {
    attribute(body, kind, &[value.as_bytes(), b"\0"].concat());
}

pub(crate) fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a short attribute");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("a short message");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | REQUEST).to_ne_bytes());
    // The sequence number and the port are 0: every reply on this socket belongs to this request.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// The kernel's replies to one send: the first error, if any, and the messages as they were
/// received.
pub(crate) struct Answer {
    pub(crate) error: Option<Errno>,
    pub(crate) text: Vec<u8>,
}

/// Sends messages and collects the replies: the first error, if any, and all received messages.
///
/// Fails if the kernel does not acknowledge every message that requests it.
pub(crate) fn exchange(socket: &Socket, send: &[u8]) -> io::Result<Answer> {
    let mut text = Vec::new();
    let error = exchange_each(socket, send, |part| text.extend(part))?;
    Ok(Answer { error, text })
}

/// The same without keeping the messages: calls `each` with every part of the replies, as it arrives. Returns
/// the first error.
pub(crate) fn exchange_each(
    socket: &Socket,
    send: &[u8],
    mut each: impl FnMut(&[u8]),
) -> io::Result<Option<Errno>> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    retry_on_eintr(|| socket.send_to(send, &SocketAddr::new(0, 0), 0))?;
    let mut error = None;
    let asks = |flags: u16| flags & ACK != 0 || flags & DUMP == DUMP;
    let mut missing = messages(send).filter(|(_, flags, _)| asks(*flags)).count();
    while missing > 0 {
        let text = match receive(socket) {
            Ok(text) => text,
            // If a transaction is rejected, the messages after the rejected one get no reply.
            Err(_) if error.is_some() => break,
            Err(failure) => return Err(failure),
        };
        for (kind, _, body) in messages(&text) {
            let code = body
                .first_chunk()
                .map_or(0, |code| i32::from_ne_bytes(*code));
            if kind == ERROR && code != 0 {
                error = error.or(Some(Errno::from_raw(-code)));
            }
            missing = missing.saturating_sub(usize::from(matches!(kind, ERROR | DONE)));
        }
        each(&text);
    }
    Ok(error)
}

/// Receives the next datagram without blocking: the kernel replies before `send(2)` returns, so an
/// empty socket means that a reply was lost. One failure is not enough to conclude that: the kernel
/// reports once that some messages did not fit into the buffer (ENOBUFS), and those that did fit
/// can still be read.
fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    let receive = || {
        retry_on_eintr(|| {
            let mut text = Vec::with_capacity(PART);
            socket.recv(&mut text, MSG_DONTWAIT)?;
            Ok(text)
        })
    };
    receive().or_else(|first| receive().map_err(|_| first))
}

/// Maximum size of one part of a dump, in bytes, as the kernel fills it.
const PART: usize = 32 << 10;

/// Returns the kind, the flags and the body of each message.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
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

/// Returns the kind and the value of each attribute.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    crate::rtnl::attributes(bytes)
}

/// Reads a u32 in network byte order; 0 if the value is too short.
pub(crate) fn read_u32(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// Reads a text, with or without the zero byte at its end.
pub(crate) fn text_in(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

/// True if a dump was interrupted by a change, and has to be repeated.
pub(crate) fn was_interrupted(answer: &Answer) -> bool {
    const INTERRUPTED: u16 = 0x10;
    messages(&answer.text).any(|(_, flags, _)| flags & INTERRUPTED != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls every decoder of netfilter's answers with damaged ones.
    #[test]
    fn damaged_answers_never_panic() {
        let mut rule = vec![2, 0, 0, 0];
        text(&mut rule, 1, "filter");
        text(&mut rule, 2, "FORWARD");
        attribute(&mut rule, 3, &7_u64.to_be_bytes());
        nest(&mut rule, 4, |list| {
            for name in ["meta", "cmp", "immediate", "lookup", "bitwise", "match"] {
                nest(list, 1, |expression| {
                    text(expression, 1, name);
                    nest(expression, 2, |data| {
                        for key in 1..8 {
                            nest(data, key, |value| number(value, 1, u32::from(key)));
                        }
                    });
                });
            }
        });
        attribute(&mut rule, 7, b"\0\x05note\0");
        let mut flow = vec![2, 0, 0, 0];
        for kind in [1, 2] {
            nest(&mut flow, kind, |tuple| {
                nest(tuple, 1, |ip| {
                    attribute(ip, 1, &[10, 10, 1, 2]);
                    attribute(ip, 2, &[10, 10, 2, 3]);
                });
                nest(tuple, 2, |ports| {
                    attribute(ports, 1, &[17]);
                    attribute(ports, 2, &80_u16.to_be_bytes());
                    attribute(ports, 3, &81_u16.to_be_bytes());
                });
            });
        }
        let mut elements = vec![1, 0, 0, 0];
        text(&mut elements, 1, "cni-hostgw");
        nest(&mut elements, 3, |list| {
            nest(list, 1, |element| {
                nest(element, 1, |key| attribute(key, 1, &[0, 6, 0, 80]));
                nest(element, 2, |data| attribute(data, 1, &[10, 10, 1, 2]));
                attribute(element, 6, b"\0\x05note\0");
            });
        });
        let valid = [rule, flow, elements].map(|body| message(0xa06, 0, &body));
        let valid: Vec<_> = valid.iter().map(Vec::as_slice).collect();
        random_input::never_panics(&valid, |bytes| {
            for (_, _, body) in messages(bytes) {
                crate::conntrack::decode(body);
                crate::nftables::decode(body);
            }
        });
    }
}
