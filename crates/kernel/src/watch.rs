//! Waiting for address changes in a namespace.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::{Error, HostNetns, Netns};
use util::retry_on_eintr;

/// A socket that receives kernel events about changes to IPv6 addresses. An event says only that
/// something changed; the caller then reads the addresses again.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Opens the socket in `netns`, from `home`. Must be called before the change to wait for is
    /// made.
    pub fn addresses_in(home: &HostNetns, netns: &Netns) -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            let group = 1 << (MulticastGroup::Ipv6Ifaddr as u32 - 1);
            socket.bind(&SocketAddr::new(0, group))?;
            Ok(socket)
        };
        let socket = home.enter(netns, open)?;
        let socket = socket.map_err(|error| Error::new("listen for address changes", error))?;
        Ok(Self { socket })
    }

    /// Waits for the next event, for at most `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Result<(), Error> {
        let failed = |error: io::Error| Error::new("wait for address changes", error);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let ready = retry_on_eintr(|| Ok(poll(&mut fds, timeout)?)).map_err(failed)?;
        if ready > 0 {
            // Events lost because the socket buffer was full also count as an event.
            drop(self.socket.recv_from_full());
        }
        Ok(())
    }
}
