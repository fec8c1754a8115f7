//! A conversation with the kernel about the network of one namespace.

use std::io;

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use rtnetlink::proto::{Connection, ConnectionHandle};
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use crate::error::Refusal;
use crate::{Error, Netns};

/// How often a dump is begun anew when the kernel says that it changed meanwhile.
const DUMP_TRIES: usize = 8;

/// How many changes go in one send: their answers must all fit into the socket's buffer.
const BATCH: usize = 64;

/// A netlink socket in one namespace. The namespace is that of the thread which opened it, for
/// good: afterwards nobody needs to go there.
#[derive(Clone, Debug)]
pub struct Rtnl {
    handle: ConnectionHandle<RouteNetlinkMessage>,
}

/// A message that changes something, and the flags that say how.
pub(crate) type Change = (RouteNetlinkMessage, u16);

impl Rtnl {
    /// Connects to the namespace of this thread. Needs a tokio runtime.
    pub fn connect() -> Result<Self, Error> {
        open().map_err(|error| Error::new("connect to the kernel's routing socket", error))
    }

    /// Connects to `netns`. Needs a tokio runtime.
    pub fn connect_in(netns: &Netns) -> Result<Self, Error> {
        netns.enter(Self::connect)?
    }

    /// Asks for one thing; nothing where there is none.
    pub(crate) async fn get(
        &self,
        message: RouteNetlinkMessage,
        doing: impl Fn() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        // Without NLM_F_ACK the answer itself ends the exchange.
        match self.exchange([(message, NLM_F_REQUEST)]).next().await {
            Some(NetlinkMessage {
                payload: NetlinkPayload::InnerMessage(inner),
                ..
            }) => Ok(Some(inner)),
            Some(NetlinkMessage {
                payload: NetlinkPayload::Error(error),
                ..
            }) => match refusal(error.raw_code(), &error.header) {
                Some(Refusal {
                    errno: Errno::ENODEV,
                    ..
                })
                | None => Ok(None),
                Some(refusal) => Err(Error::new(doing(), refusal)),
            },
            _ => Err(Error::new(doing(), closed())),
        }
    }

    /// Asks for everything that `message` describes. A list that changed while it was read is
    /// read again.
    pub(crate) async fn dump(
        &self,
        message: RouteNetlinkMessage,
        doing: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_TRIES {
            let mut all = Vec::new();
            let mut interrupted = false;
            let request = (message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
            let mut answers = self.exchange([request]);
            while let Some(answer) = answers.next().await {
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => all.push(inner),
                    NetlinkPayload::Error(error) => {
                        if let Some(refusal) = refusal(error.raw_code(), &error.header) {
                            return Err(Error::new(doing, refusal));
                        }
                    }
                    NetlinkPayload::Done(done) => {
                        if let Some(refusal) = refusal(done.code, &[]) {
                            return Err(Error::new(doing, refusal));
                        }
                    }
                    _ => {}
                }
            }
            if !interrupted {
                return Ok(all);
            }
        }
        Err(Error::new(doing, Errno::EINTR))
    }

    /// Makes one change.
    pub(crate) async fn change(
        &self,
        (message, flags): Change,
        doing: impl Fn() -> String,
    ) -> Result<(), Error> {
        let mut outcomes = self.changes([(message, flags)]).await;
        outcomes
            .pop()
            .unwrap_or_else(|| Err(closed()))
            .map_err(|error| Error::new(doing(), error))
    }

    /// Makes several changes, in order, and says of each how it went. They are sent together,
    /// and one that fails does not keep the kernel from those behind it.
    pub(crate) async fn changes(
        &self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Vec<Result<(), Box<dyn std::error::Error + Send + Sync>>> {
        let changes = changes.into_iter();
        let mut changes =
            changes.map(|(message, flags)| (message, flags | NLM_F_REQUEST | NLM_F_ACK));
        let mut outcomes = Vec::new();
        loop {
            let batch: Vec<_> = changes.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return outcomes;
            }
            let count = outcomes.len() + batch.len();
            let mut answers = self.exchange(batch);
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::Error(error) = answer.payload {
                    outcomes.push(match refusal(error.raw_code(), &error.header) {
                        None => Ok(()),
                        Some(refusal) => Err(refusal.into()),
                    });
                }
            }
            outcomes.resize_with(count, || Err(closed()));
        }
    }

    fn exchange(
        &self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> futures::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>> {
        let messages: Vec<_> = messages
            .into_iter()
            .map(|(message, flags)| {
                let mut message = NetlinkMessage::from(message);
                message.header.flags = flags;
                message
            })
            .collect();
        match self.handle.request_batch(messages, SocketAddr::new(0, 0)) {
            Ok(answers) => answers.boxed(),
            Err(_) => futures::stream::empty().boxed(),
        }
    }
}

fn open() -> io::Result<Rtnl> {
    let (mut connection, handle, _): (Connection<_, TokioSocket>, _, _) =
        rtnetlink::proto::new_connection(NETLINK_ROUTE)?;
    // Every change is answered, failed or not, so answers count off against changes.
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    let socket = connection.socket_mut().socket_mut();
    // Dumps are filtered by the kernel; errors come with its own words and without our message.
    socket.set_netlink_get_strict_chk(true)?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    tokio::spawn(connection);
    Ok(Rtnl { handle })
}

/// The refusal in an answer of `code`; nothing where it is an acknowledgement. `rest` is the
/// header of our message and, with extended acknowledgements, the kernel's attributes.
fn refusal(code: i32, rest: &[u8]) -> Option<Refusal> {
    const HEADER: usize = 16;
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

fn closed() -> Box<dyn std::error::Error + Send + Sync> {
    "the kernel's routing socket closed".into()
}
