//! A conversation with the kernel about the network of one namespace.

use std::cell::{Cell, RefCell};
use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::Refusal;
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

/// The answer to one change: what the kernel echoed, where it was asked to.
type Outcome = Result<Option<RouteNetlinkMessage>, Refusal>;

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

    /// Asks for one thing; nothing where there is none.
    pub(crate) fn get(
        &self,
        message: RouteNetlinkMessage,
        doing: impl Fn() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        // Without NLM_F_ACK the answer itself ends the exchange.
        let answer = self
            .send([(message, NLM_F_REQUEST)])
            .and_then(|_| self.receive())
            .map_err(|error| Error::new(doing(), error))?;
        for message in answer {
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => return Ok(Some(inner)),
                NetlinkPayload::Error(error) => match refusal(error.raw_code(), &error.header) {
                    None => return Ok(None),
                    Some(refusal) if matches!(refusal.errno, Errno::ENODEV | Errno::ENOENT) => {
                        return Ok(None);
                    }
                    Some(refusal) => return Err(Error::new(doing(), refusal)),
                },
                _ => {}
            }
        }
        Err(Error::new(doing(), unanswered()))
    }

    /// Asks for everything that `message` describes. A list that changed while it was read is
    /// read again.
    pub(crate) fn dump(
        &self,
        message: &RouteNetlinkMessage,
        doing: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_TRIES {
            let request = (message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            self.send([request])
                .map_err(|error| Error::new(doing, error))?;
            if let Some(all) = self.parts(doing)? {
                return Ok(all);
            }
        }
        Err(Error::new(doing, Errno::EINTR))
    }

    /// All parts of a dump; nothing when it changed meanwhile.
    fn parts(&self, doing: &str) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let mut all = Vec::new();
        let mut interrupted = false;
        loop {
            let part = self.receive().map_err(|error| Error::new(doing, error))?;
            for answer in part {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                let refused = match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        all.push(inner);
                        continue;
                    }
                    NetlinkPayload::Error(error) => refusal(error.raw_code(), &error.header),
                    NetlinkPayload::Done(done) => refusal(done.code, &[]),
                    _ => continue,
                };
                return match refused {
                    Some(refusal) => Err(Error::new(doing, refusal)),
                    None => Ok((!interrupted).then_some(all)),
                };
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
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
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
        changes: impl IntoIterator<Item = Change>,
    ) -> io::Result<Vec<Outcome>> {
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
                    match answer.payload {
                        NetlinkPayload::InnerMessage(inner) => echo = Some(inner),
                        NetlinkPayload::Error(error) => {
                            let refusal = refusal(error.raw_code(), &error.header);
                            outcomes.push(refusal.map_or_else(|| Ok(echo.take()), Err));
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Sends messages together, and says how many.
    fn send(
        &self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> io::Result<usize> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        let mut count = 0;
        for (message, flags) in messages {
            let mut message = NetlinkMessage::from(message);
            message.header.flags = flags;
            message.header.sequence_number = sequence;
            message.finalize();
            let begin = buffer.len();
            buffer.resize(begin + message.buffer_len(), 0);
            message.serialize(&mut buffer[begin..]);
            count += 1;
        }
        if count > 0 {
            self.socket
                .send_to(&buffer, &SocketAddr::new(0, 0), 0)
                .map(drop)?;
        }
        Ok(count)
    }

    /// The next datagram's messages. What is left of an earlier exchange is passed over.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        self.socket.recv(&mut *buffer, 0)?;
        let mut messages = Vec::new();
        let mut rest = &buffer[..];
        while rest.len() >= HEADER {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if message.header.sequence_number == self.sequence.get() {
                messages.push(message);
            }
        }
        Ok(messages)
    }
}

/// The length of a netlink message's header.
const HEADER: usize = 16;

/// The refusal in an answer of `code`; nothing where it is an acknowledgement. `rest` is the
/// header of our message and, with extended acknowledgements, the kernel's attributes.
fn refusal(code: i32, rest: &[u8]) -> Option<Refusal> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    if code == 0 {
        return None;
    }
    let attributes = rest.get(HEADER..).unwrap_or_default();
    let words = NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).into_owned());
    let words = words.unwrap_or_default().trim_end_matches('\0').to_owned();
    Some(Refusal {
        errno: Errno::from_raw(code.abs()),
        words,
    })
}

fn unanswered() -> Box<dyn std::error::Error + Send + Sync> {
    "the kernel gave no answer".into()
}
