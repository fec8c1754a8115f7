//! Notices that something changed in the network of a namespace.

use std::io;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use crate::rtnl::number;
use crate::{Error, Rtnl};

/// Sockets on which the kernel tells of changes to links, their settings, addresses, routes, rules and
/// `nf_tables`.
///
/// They say that something changed and not what: whoever listens compares with the kernel
/// anyway, and a notice that got lost in a full socket is a notice too.
pub struct Monitor {
    network: TokioSocket,
    firewall: TokioSocket,
    ours: u32,
}

/// What changed, of what we did not change ourselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// A link, an address, a route, a rule that chooses routes, or whether a link forwards.
    pub network: bool,
    /// A table, a chain or a rule of `nf_tables`, by whomever.
    pub firewall: bool,
}

impl Monitor {
    /// Listens in the namespace of this thread. Routes that `ours` changes make no notice. Needs
    /// a tokio runtime.
    pub fn open(ours: &Rtnl) -> Result<Self, Error> {
        /// The kernel's `NFNLGRP_NFTABLES`, `RTNLGRP_NEXTHOP`, and those for settings of links.
        const NFTABLES: u32 = 7;
        const NEXTHOP: u32 = 32;
        const IPV4_SETTINGS: u32 = 24;
        const IPV6_SETTINGS: u32 = 25;
        let failed = |error| Error::new("listen for network changes", error);
        // A conversation has its number from the first request on.
        ours.link("lo")?;
        let groups = [
            MulticastGroup::Link as u32,
            MulticastGroup::Ipv4Ifaddr as u32,
            MulticastGroup::Ipv6Ifaddr as u32,
            MulticastGroup::Ipv4Route as u32,
            MulticastGroup::Ipv6Route as u32,
            MulticastGroup::Ipv4Rule as u32,
            MulticastGroup::Ipv6Rule as u32,
            IPV4_SETTINGS,
            IPV6_SETTINGS,
            NEXTHOP,
        ];
        Ok(Self {
            network: listen(NETLINK_ROUTE, &groups).map_err(failed)?,
            firewall: listen(NETLINK_NETFILTER, &[NFTABLES]).map_err(failed)?,
            ours: ours.port().map_err(failed)?,
        })
    }

    /// Waits until something changes.
    pub async fn changed(&mut self) -> Result<Notice, Error> {
        loop {
            return Ok(tokio::select! {
                message = receive(&mut self.network) => match message? {
                    Some(message) if self.is_ours(&message) => continue,
                    _ => Notice { network: true, ..Notice::default() },
                },
                message = receive(&mut self.firewall) => {
                    message?;
                    Notice { firewall: true, ..Notice::default() }
                }
            });
        }
    }

    /// Whether we caused this ourselves. A route's notice says who did.
    fn is_ours(&self, message: &[u8]) -> bool {
        // Length, kind, flags, sequence, port.
        let port = message.get(12..16).map(number);
        port == Some(self.ours)
    }
}

fn listen(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let bits = groups
        .iter()
        .fold(0, |bits, group| bits | (1 << (group - 1)));
    socket.socket_mut().bind(&SocketAddr::new(0, bits))?;
    Ok(socket)
}

/// The next notice; nothing where some were lost because the socket was full.
async fn receive(socket: &mut TokioSocket) -> Result<Option<Vec<u8>>, Error> {
    /// ENOBUFS
    const NO_BUFFER_SPACE: i32 = 105;
    match socket.recv_from_full().await {
        Ok((message, _)) => Ok(Some(message)),
        Err(error) if error.raw_os_error() == Some(NO_BUFFER_SPACE) => Ok(None),
        Err(error) => Err(Error::new("wait for network changes", error)),
    }
}

impl std::ops::BitOrAssign for Notice {
    fn bitor_assign(&mut self, other: Self) {
        self.network |= other.network;
        self.firewall |= other.firewall;
    }
}
