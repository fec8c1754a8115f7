//! Notices that something changed in the network of a namespace.

use std::io;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};

use crate::Error;

/// A socket on which the kernel tells of changes to links, addresses and routes.
///
/// It says that something changed and not what: whoever listens compares with the kernel
/// anyway, and a notice that got lost in a full socket is a notice too.
pub struct Monitor {
    socket: TokioSocket,
}

impl Monitor {
    /// Listens in the namespace of this thread. Needs a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            let groups = [
                MulticastGroup::Link,
                MulticastGroup::Ipv4Ifaddr,
                MulticastGroup::Ipv6Ifaddr,
                MulticastGroup::Ipv4Route,
                MulticastGroup::Ipv6Route,
            ];
            let bits = groups
                .into_iter()
                .fold(0, |bits, group| bits | 1 << (group as u32 - 1));
            socket.socket_mut().bind(&SocketAddr::new(0, bits))?;
            Ok(socket)
        };
        let socket = open().map_err(|error| Error::new("listen for network changes", error))?;
        Ok(Self { socket })
    }

    /// Waits until something changes.
    pub async fn changed(&mut self) -> Result<(), Error> {
        /// ENOBUFS: the socket was full and notices are lost, which is a change all the same.
        const NO_BUFFER_SPACE: i32 = 105;
        match self.socket.recv_from_full().await {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(NO_BUFFER_SPACE) => Ok(()),
            Err(error) => Err(Error::new("wait for network changes", error)),
        }
    }
}
