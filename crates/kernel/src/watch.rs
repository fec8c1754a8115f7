//! Waits for what the kernel tells about addresses of one namespace.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::error::uninterrupted;
use crate::{Error, Home, Netns};

/// A socket on which the kernel tells of changes to IPv6 addresses. It says that something
/// changed and not what: whoever waits looks for itself.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Listens in `netns`, from `home`. To be opened before the change that is waited for.
    pub fn addresses_in(home: &Home, netns: &Netns) -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            let group = 1 << (MulticastGroup::Ipv6Ifaddr as u32 - 1);
            socket.bind(&SocketAddr::new(0, group))?;
            Ok(socket)
        };
        let socket = home.visit(netns, open)?;
        let socket = socket.map_err(|error| Error::new("listen for address changes", error))?;
        Ok(Self { socket })
    }

    /// Waits for the next notice, no longer than `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> Result<(), Error> {
        let failed = |error: io::Error| Error::new("wait for address changes", error);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        let ready = uninterrupted(|| Ok(poll(&mut fds, timeout)?)).map_err(failed)?;
        if ready > 0 {
            // A notice that got lost in a full socket is a notice too.
            drop(self.socket.recv_from_full());
        }
        Ok(())
    }
}
