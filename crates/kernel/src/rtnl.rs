//! An rtnetlink socket in one namespace.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::libc::MSG_DONTWAIT;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkMessage,
    NlasIterator,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use util::retry_on_eintr;

use crate::error::{IncompleteExchange, KernelError};
use crate::{Error, HostNetns, Netns};

/// Number of attempts at a dump that the kernel reports as interrupted by a change.
const DUMP_TRIES: usize = 8;

/// Number of changes in one send: all their replies must fit into the socket buffer.
const BATCH: usize = 64;

/// Maximum size of one part of a dump, in bytes, as the kernel fills it.
const PART: usize = 32 << 10;

/// A netlink socket in one namespace: that of the thread that opened it. It can then be used from
/// any namespace.
///
/// Nothing here is async: the kernel executes a request before `send(2)` returns, so there is never
/// anything to wait for.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
    sequence: Cell<u32>,
    buffer: RefCell<Vec<u8>>,
}

/// A message that changes something, with its netlink flags.
pub(crate) type Change = (RouteNetlinkMessage, u16);

/// A netlink request that can be serialized.
pub(crate) trait Request {
    /// Appends the message to `buffer`.
    fn write(self, flags: u16, sequence: u32, buffer: &mut Vec<u8>);
}

impl Request for RouteNetlinkMessage {
    fn write(self, flags: u16, sequence: u32, buffer: &mut Vec<u8>) {
        let mut message = NetlinkMessage::from(self);
        message.header.flags = flags;
        message.header.sequence_number = sequence;
        message.finalize();
        let begin = buffer.len();
        buffer.resize(begin + message.buffer_len(), 0);
        message.serialize(&mut buffer[begin..]);
    }
}

/// A netlink message that netlink-packet-route does not support: its kind and its body.
#[derive(Clone, Debug)]
pub(crate) struct RawRequest {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

impl Request for RawRequest {
    fn write(self, flags: u16, sequence: u32, buffer: &mut Vec<u8>) {
        let length = u32::try_from(HEADER + self.body.len()).expect("a short message");
        buffer.extend(length.to_ne_bytes());
        buffer.extend(self.kind.to_ne_bytes());
        buffer.extend(flags.to_ne_bytes());
        buffer.extend(sequence.to_ne_bytes());
        buffer.extend([0; 4]);
        buffer.extend(self.body);
    }
}

/// One netlink message from the kernel. The caller parses only the attributes that it needs: a link
/// has about forty, and we use ten of them.
#[derive(Debug)]
pub(crate) struct Answer {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

/// The outcome of one change. Contains the message that the kernel echoed, if an echo was
/// requested.
type Outcome = Result<Option<Answer>, KernelError>;

impl Answer {
    /// Splits the message into its fixed header of `N` bytes and the attributes after it. Returns
    /// `None` if the message is too short.
    pub(crate) fn parts<const N: usize>(&self) -> Option<(&[u8; N], Attributes<'_>)> {
        let (head, rest) = self.body.split_first_chunk()?;
        Some((head, attributes(rest)))
    }

    /// Returns the result that ends an exchange: an error or an acknowledgement. Returns `None` for
    /// any other message.
    fn end(&self) -> Option<Result<(), KernelError>> {
        if !matches!(self.kind, NLMSG_ERROR | NLMSG_DONE) {
            return None;
        }
        let (code, rest) = self.body.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let code = i32::from_ne_bytes(*code);
        if code == 0 {
            return Some(Ok(()));
        }
        // The error code is followed by the header of our message, and then by the kernel's
        // attributes.
        let words = attributes(rest.get(HEADER..).unwrap_or_default())
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, words)| text(words));
        Some(Err(KernelError {
            errno: Errno::from_raw(code.wrapping_abs()),
            words: words.unwrap_or_default(),
        }))
    }
}

/// An iterator over the kind and value of each attribute.
pub(crate) struct Attributes<'a>(NlasIterator<&'a [u8]>);

pub(crate) fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(NlasIterator::new(bytes))
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let attribute = self.0.next()?.ok()?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        // The inner slice extends to the end of the buffer, and starts with the length and the
        // kind.
        Some((kind, attribute.into_inner().get(4..length)?))
    }
}

/// Reads a string, without its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

/// Reads a u32 in native byte order; 0 if the value is too short.
pub(crate) fn number(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Reads an IP address. Its length determines the family.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(*value.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
        _ => None,
    }
}

impl Rtnl {
    /// Opens the socket in the namespace of this thread.
    pub fn connect() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(NETLINK_ROUTE)?;
            // The kernel filters dumps, and its error replies contain a message but not a copy of
            // our request.
            socket.set_netlink_get_strict_chk(true)?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|error| Error::new("open an rtnetlink socket", error))?;
        Ok(Self {
            socket,
            sequence: Cell::new(0),
            buffer: RefCell::new(Vec::with_capacity(PART)),
        })
    }

    /// Opens the socket in `netns`, from `home`.
    pub fn connect_in(home: &HostNetns, netns: &Netns) -> Result<Self, Error> {
        home.enter(netns, Self::connect)?
    }

    /// Returns the port number of the socket. Events about a change carry the port number of the
    /// socket that made it. The kernel assigns the number at the first request.
    #[cfg(feature = "monitor")]
    pub(crate) fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Requests one object. Returns `None` if it does not exist.
    pub(crate) fn get(
        &self,
        message: impl Request,
        doing: impl Fn() -> String,
    ) -> Result<Option<Answer>, Error> {
        // Without NLM_F_ACK, the reply itself ends the exchange.
        let answers = self
            .send([(message, NLM_F_REQUEST)])
            .and_then(|_| self.receive())
            .map_err(|error| Error::new(doing(), error))?;
        let first = answers.into_iter().next();
        let answer = first.expect("an exchange gives one answer at least");
        match answer.end() {
            None => Ok(Some(answer)),
            Some(Ok(())) => Ok(None),
            Some(Err(error)) if matches!(error.errno, Errno::ENODEV | Errno::ENOENT) => Ok(None),
            Some(Err(error)) => Err(Error::new(doing(), error)),
        }
    }

    /// Requests all objects that match `message`. Repeats the dump if the list changed while it was
    /// read.
    pub(crate) fn dump(
        &self,
        message: &(impl Request + Clone),
        doing: &str,
    ) -> Result<Vec<Answer>, Error> {
        for _ in 0..DUMP_TRIES {
            let request = (message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            self.send([request])
                .map_err(|error| Error::new(doing, error))?;
            if let Some(all) = self.all_parts(doing)? {
                return Ok(all);
            }
        }
        Err(Error::new(doing, Errno::EINTR))
    }

    /// Reads all parts of a dump. Returns `None` if the list changed while it was read.
    fn all_parts(&self, doing: &str) -> Result<Option<Vec<Answer>>, Error> {
        let mut all = Vec::new();
        let mut interrupted = false;
        loop {
            let part = self.receive().map_err(|error| Error::new(doing, error))?;
            for answer in part {
                interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.end() {
                    None => all.push(answer),
                    Some(Ok(())) => return Ok((!interrupted).then_some(all)),
                    Some(Err(error)) => return Err(Error::new(doing, error)),
                }
            }
        }
    }

    /// Sends one change.
    pub(crate) fn change(&self, change: Change, doing: impl Fn() -> String) -> Result<(), Error> {
        self.change_echoed(change, doing).map(|_| ())
    }

    /// Sends one change, and returns the message that the kernel echoed.
    pub(crate) fn change_echoed(
        &self,
        change: Change,
        doing: impl Fn() -> String,
    ) -> Result<Option<Answer>, Error> {
        let mut outcomes = self
            .changes([change])
            .map_err(|error| Error::new(doing(), error))?;
        let outcome = outcomes.pop().expect("one for each change");
        outcome.map_err(|error| Error::new(doing(), error))
    }

    /// Sends several changes, in order, and returns the outcome of each. They are sent together: if
    /// one fails, the kernel still executes the ones after it.
    pub(crate) fn changes(
        &self,
        changes: impl IntoIterator<Item = (impl Request, u16)>,
    ) -> Result<Vec<Outcome>, IncompleteExchange> {
        let changes = changes.into_iter();
        let mut changes =
            changes.map(|(message, flags)| (message, flags | NLM_F_REQUEST | NLM_F_ACK));
        let mut outcomes = Vec::new();
        loop {
            let sent = self.send(changes.by_ref().take(BATCH))?;
            if sent == 0 {
                return Ok(outcomes);
            }
            let count = outcomes.len() + sent;
            let mut echo = None;
            while outcomes.len() < count {
                for answer in self.receive()? {
                    match answer.end() {
                        None => echo = Some(answer),
                        Some(end) => outcomes.push(end.map(|()| echo.take())),
                    }
                }
            }
        }
    }

    /// Sends messages in one datagram, and returns their number.
    fn send(
        &self,
        messages: impl IntoIterator<Item = (impl Request, u16)>,
    ) -> Result<usize, IncompleteExchange> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        let mut count = 0;
        for (message, flags) in messages {
            message.write(flags, sequence, &mut buffer);
            count += 1;
        }
        if count > 0 {
            retry_on_eintr(|| self.socket.send_to(&buffer, &SocketAddr::new(0, 0), 0))
                .map_err(IncompleteExchange::NotSent)?;
        }
        Ok(count)
    }

    /// Receives the messages of the next datagram, at least one. Skips messages of an earlier
    /// exchange.
    fn receive(&self) -> Result<Vec<Answer>, IncompleteExchange> {
        let mut buffer = self.buffer.borrow_mut();
        loop {
            self.read(&mut buffer)
                .map_err(IncompleteExchange::ReplyLost)?;
            let mut answers = Vec::new();
            let mut rest = &buffer[..];
            while let Some(head) = rest.first_chunk::<HEADER>() {
                let length = usize::try_from(number(head)).unwrap_or(usize::MAX);
                let body = rest.get(HEADER..length).unwrap_or_default();
                if number(&head[8..]) == self.sequence.get() {
                    answers.push(Answer {
                        kind: u16::from_ne_bytes([head[4], head[5]]),
                        flags: u16::from_ne_bytes([head[6], head[7]]),
                        body: body.to_vec(),
                    });
                }
                let next = length.max(HEADER).saturating_add(3) & !3;
                rest = rest.get(next..).unwrap_or_default();
            }
            if !answers.is_empty() {
                return Ok(answers);
            }
        }
    }

    /// Receives the next datagram without blocking: the kernel has replied before `send(2)`
    /// returns, so an empty socket means that the reply was lost. One failure is not enough to
    /// conclude that: the kernel reports once that some messages did not fit into the buffer
    /// (ENOBUFS), and those that did fit can still be read.
    fn read(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let mut receive = || {
            retry_on_eintr(|| {
                buffer.clear();
                self.socket.recv(buffer, MSG_DONTWAIT).map(drop)
            })
        };
        receive().or_else(|first| receive().map_err(|_| first))
    }
}

/// The length of a netlink message's header: length, kind, flags, sequence, port.
const HEADER: usize = 16;
/// The attribute with the kernel's error message, in an extended acknowledgement.
const NLMSGERR_ATTR_MSG: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends an attribute, padded to four bytes.
    fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("short");
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }

    /// Calls every decoder of rtnetlink's answers with damaged ones.
    #[test]
    fn damaged_answers_never_panic() {
        // The kernel's linux/if_link.h: a port of a bridge.
        let mut link = vec![0; 16];
        let mut port = Vec::new();
        attribute(&mut port, 4, &[1]);
        attribute(&mut port, 33, &[1]);
        let mut info = Vec::new();
        attribute(&mut info, 1, b"veth\0");
        attribute(&mut info, 4, b"bridge\0");
        attribute(&mut info, 5, &port);
        attribute(&mut link, 3, b"veth0123\0");
        attribute(&mut link, 1, &[2, 0, 0, 0, 0, 7]);
        attribute(&mut link, 10, &3_u32.to_ne_bytes());
        attribute(&mut link, 18, &info);
        attribute(&mut link, 20, b"alias\0");
        // linux/if_addr.h
        let mut address = vec![2, 24, 0, 0, 2, 0, 0, 0];
        attribute(&mut address, 1, &[10, 10, 1, 1]);
        attribute(&mut address, 2, &[10, 10, 1, 1]);
        attribute(&mut address, 8, &128_u32.to_ne_bytes());
        // linux/rtnetlink.h: a route with two next hops.
        let mut route = vec![2, 24, 0, 0, 254, 104, 0, 1, 0, 0, 0, 0];
        attribute(&mut route, 1, &[10, 10, 2, 0]);
        attribute(&mut route, 5, &[192, 168, 2, 15]);
        attribute(
            &mut route,
            9,
            &[8, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0],
        );
        attribute(&mut route, 30, &7_u32.to_ne_bytes());
        // linux/nexthop.h
        let mut nexthop = vec![2, 0, 104, 0, 0, 0, 0, 0];
        attribute(&mut nexthop, 1, &7_u32.to_ne_bytes());
        // A filter of linux/pkt_cls.h, with an action.
        let mut parameters = Vec::new();
        attribute(&mut parameters, 2, &[1; 28]);
        let mut action = Vec::new();
        attribute(&mut action, 2, &parameters);
        let mut actions = Vec::new();
        attribute(&mut actions, 1, &action);
        let mut options = Vec::new();
        attribute(&mut options, 7, &actions);
        let mut filter = vec![0; 20];
        attribute(&mut filter, 2, &options);
        // An error with the kernel's words.
        let mut error = (-22_i32).to_ne_bytes().to_vec();
        error.extend([0; HEADER]);
        attribute(
            &mut error,
            NLMSGERR_ATTR_MSG,
            b"Nexthop has invalid gateway\0",
        );
        let valid = [link, address, route, nexthop, filter, error];
        let valid: Vec<_> = valid.iter().map(Vec::as_slice).collect();
        random_input::never_panics(&valid, |bytes| {
            let answer = Answer {
                kind: NLMSG_ERROR,
                flags: 0,
                body: bytes.to_vec(),
            };
            drop(answer.end());
            drop(crate::Link::read(&answer));
            drop(crate::Route::read(&answer, 254));
            crate::address::decode(&answer);
            crate::nexthop::decode(&answer);
            crate::shaping::decode(&answer);
        });
    }
}
