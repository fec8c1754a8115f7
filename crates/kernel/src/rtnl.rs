//! A conversation with the kernel about the network of one namespace.

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

use crate::error::{Refusal, Unfinished, uninterrupted};
use crate::{Error, Home, Netns};

/// How often a dump is begun anew when the kernel says that it changed meanwhile.
const DUMP_TRIES: usize = 8;

/// How many changes go in one send: their answers must all fit into the socket's buffer.
const BATCH: usize = 64;

/// The kernel fills no more than this with one part of a dump.
const PART: usize = 32 << 10;

/// A netlink socket in one namespace. The namespace is that of the thread which opened it, for
/// good: afterwards nobody needs to go there.
///
/// Nothing here is async: the kernel carries a request out before `send(2)` returns, so there
/// is never anything to wait for.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
    sequence: Cell<u32>,
    buffer: RefCell<Vec<u8>>,
}

/// A message that changes something, and the flags that say how.
pub(crate) type Change = (RouteNetlinkMessage, u16);

/// What can be sent.
pub(crate) trait Request {
    /// Writes the message behind what is in `buffer`.
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

/// What the kernel says of one thing. It is read attribute by attribute, by whoever asked: of
/// the forty that a link has, we want ten.
#[derive(Debug)]
pub(crate) struct Answer {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

/// The answer to one change: what the kernel echoed, where it was asked to.
type Outcome = Result<Option<Answer>, Refusal>;

impl Answer {
    /// The fixed part, of `N` bytes, and the attributes behind it. Nothing where it is shorter.
    pub(crate) fn parts<const N: usize>(&self) -> Option<(&[u8; N], Attributes<'_>)> {
        let (head, rest) = self.body.split_first_chunk()?;
        Some((head, attributes(rest)))
    }

    /// What ends an exchange: a refusal, or an acknowledgement. Nothing where more is to come.
    fn end(&self) -> Option<Result<(), Refusal>> {
        if !matches!(self.kind, NLMSG_ERROR | NLMSG_DONE) {
            return None;
        }
        let (code, rest) = self.body.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let code = i32::from_ne_bytes(*code);
        if code == 0 {
            return Some(Ok(()));
        }
        // Behind the code stands the header of our message, and then the kernel's attributes.
        let words = attributes(rest.get(HEADER..).unwrap_or_default())
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, words)| text(words));
        Some(Err(Refusal {
            errno: Errno::from_raw(code.abs()),
            words: words.unwrap_or_default(),
        }))
    }
}

/// Each attribute's kind and value.
pub(crate) struct Attributes<'a>(NlasIterator<&'a [u8]>);

pub(crate) fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(NlasIterator::new(bytes))
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let attribute = self.0.next()?.ok()?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        // What it holds is all that is left, and begins with the kind and the length.
        Some((kind, attribute.into_inner().get(4..length)?))
    }
}

/// A text without the zero behind it.
pub(crate) fn text(value: &[u8]) -> String {
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    String::from_utf8_lossy(value).into_owned()
}

/// A number; 0 where there is none.
pub(crate) fn number(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// An address in an attribute: its length tells the family.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(*value.first_chunk::<4>()?)),
        16 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
        _ => None,
    }
}

impl Rtnl {
    /// Connects to the namespace of this thread.
    pub fn connect() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let socket = Socket::new(NETLINK_ROUTE)?;
            // Dumps are filtered by the kernel; errors come with its own words and without our
            // message.
            socket.set_netlink_get_strict_chk(true)?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        let socket =
            open().map_err(|error| Error::new("connect to the kernel's routing socket", error))?;
        Ok(Self {
            socket,
            sequence: Cell::new(0),
            buffer: RefCell::new(Vec::with_capacity(PART)),
        })
    }

    /// Connects to `netns`, from `home`.
    pub fn connect_in(home: &Home, netns: &Netns) -> Result<Self, Error> {
        home.visit(netns, Self::connect)?
    }

    /// The number by which the kernel knows this conversation: its notices of a change say whose
    /// it was. There is one from the first request on.
    #[cfg(feature = "monitor")]
    pub(crate) fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Asks for one thing; nothing where there is none.
    pub(crate) fn get(
        &self,
        message: impl Request,
        doing: impl Fn() -> String,
    ) -> Result<Option<Answer>, Error> {
        // Without NLM_F_ACK the answer itself ends the exchange.
        let answers = self
            .send([(message, NLM_F_REQUEST)])
            .and_then(|_| self.receive())
            .map_err(|error| Error::new(doing(), error))?;
        let first = answers.into_iter().next();
        let answer = first.expect("an exchange gives one answer at least");
        match answer.end() {
            None => Ok(Some(answer)),
            Some(Ok(())) => Ok(None),
            Some(Err(refusal)) if matches!(refusal.errno, Errno::ENODEV | Errno::ENOENT) => {
                Ok(None)
            }
            Some(Err(refusal)) => Err(Error::new(doing(), refusal)),
        }
    }

    /// Asks for everything that `message` describes. A list that changed while it was read is
    /// read again.
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

    /// All parts of a dump; nothing when it changed meanwhile.
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
                    Some(Err(refusal)) => return Err(Error::new(doing, refusal)),
                }
            }
        }
    }

    /// Makes one change.
    pub(crate) fn change(&self, change: Change, doing: impl Fn() -> String) -> Result<(), Error> {
        self.change_echoed(change, doing).map(|_| ())
    }

    /// Makes one change, and gives what the kernel echoed of it.
    pub(crate) fn change_echoed(
        &self,
        change: Change,
        doing: impl Fn() -> String,
    ) -> Result<Option<Answer>, Error> {
        let mut outcomes = self
            .changes([change])
            .map_err(|error| Error::new(doing(), error))?;
        let outcome = outcomes.pop().expect("one for each change");
        outcome.map_err(|refusal| Error::new(doing(), refusal))
    }

    /// Makes several changes, in order, and says of each how it went. They are sent together,
    /// and one that fails does not keep the kernel from those behind it.
    pub(crate) fn changes(
        &self,
        changes: impl IntoIterator<Item = (impl Request, u16)>,
    ) -> Result<Vec<Outcome>, Unfinished> {
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

    /// Sends messages together, and says how many.
    fn send(
        &self,
        messages: impl IntoIterator<Item = (impl Request, u16)>,
    ) -> Result<usize, Unfinished> {
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
            uninterrupted(|| self.socket.send_to(&buffer, &SocketAddr::new(0, 0), 0))
                .map_err(Unfinished::NotSent)?;
        }
        Ok(count)
    }

    /// The next datagram's messages, one at least. What is left of an earlier exchange is passed
    /// over.
    fn receive(&self) -> Result<Vec<Answer>, Unfinished> {
        let mut buffer = self.buffer.borrow_mut();
        loop {
            self.read(&mut buffer).map_err(Unfinished::NoAnswer)?;
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

    /// Reads the next datagram. The kernel has answered when `send(2)` returns, so an empty socket
    /// means that the answer is lost, and is not waited for. The first failure does not yet say
    /// so: the kernel reports once what found no room (ENOBUFS), and what did find room is there.
    fn read(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        let mut receive = || {
            uninterrupted(|| {
                buffer.clear();
                self.socket.recv(buffer, MSG_DONTWAIT).map(drop)
            })
        };
        receive().or_else(|first| receive().map_err(|_| first))
    }
}

/// The length of a netlink message's header: length, kind, flags, sequence, port.
const HEADER: usize = 16;
/// With extended acknowledgements, the kernel's own words.
const NLMSGERR_ATTR_MSG: u16 = 1;
