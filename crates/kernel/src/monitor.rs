//! Kernel events about network changes in a namespace.

use std::io;

use rtnetlink::MulticastGroup;
use rtnetlink::sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use crate::rtnl::number;
use crate::{Error, Rtnl};

/// Sockets that receive kernel events about changes to links, their settings, addresses, routes,
/// rules and `nf_tables`.
///
/// An event says only that something changed, not what: the caller compares its desired state with
/// the kernel anyway. Events lost because the socket buffer was full also count as a change.
pub struct Monitor {
    network: TokioSocket,
    firewall: TokioSocket,
    ours: u32,
}

/// The part of the network that changed. Our own route changes are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeEvent {
    /// True if a link, an address, a route, a policy rule or a link's forwarding setting changed.
    pub network: bool,
    /// True if an `nf_tables` table, chain or rule changed, including changes that we made.
    pub firewall: bool,
}

impl Monitor {
    /// Opens the sockets in the namespace of this thread. Route changes made through `ours` cause
    /// no event. Needs a tokio runtime.
    pub fn open(ours: &Rtnl) -> Result<Self, Error> {
        /// The kernel's `NFNLGRP_NFTABLES` and `RTNLGRP_NEXTHOP`, and the groups for settings of
        /// links (`RTNLGRP_IPV4_NETCONF`, `RTNLGRP_IPV6_NETCONF`).
        const NFTABLES: u32 = 7;
        const NEXTHOP: u32 = 32;
        const IPV4_SETTINGS: u32 = 24;
        const IPV6_SETTINGS: u32 = 25;
        let failed = |error| Error::new("listen for network changes", error);
        // The kernel assigns the port number of a socket at its first request.
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

    /// Waits for the next change.
    pub async fn changed(&mut self) -> Result<ChangeEvent, Error> {
        loop {
            return Ok(tokio::select! {
                message = receive(&mut self.network) => match message? {
                    Some(message) if self.is_own_change(&message) => continue,
                    _ => ChangeEvent { network: true, ..ChangeEvent::default() },
                },
                message = receive(&mut self.firewall) => {
                    message?;
                    ChangeEvent { firewall: true, ..ChangeEvent::default() }
                }
            });
        }
    }

    /// True if we caused this change ourselves. The event of a route change carries the port number
    /// of the socket that caused it.
    fn is_own_change(&self, message: &[u8]) -> bool {
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

/// Returns the next event, or `None` if events were lost because the socket buffer was full.
async fn receive(socket: &mut TokioSocket) -> Result<Option<Vec<u8>>, Error> {
    /// ENOBUFS
    const NO_BUFFER_SPACE: i32 = 105;
    match socket.recv_from_full().await {
        Ok((message, _)) => Ok(Some(message)),
        Err(error) if error.raw_os_error() == Some(NO_BUFFER_SPACE) => Ok(None),
        Err(error) => Err(Error::new("wait for network changes", error)),
    }
}

impl std::ops::BitOrAssign for ChangeEvent {
    fn bitor_assign(&mut self, other: Self) {
        self.network |= other.network;
        self.firewall |= other.firewall;
    }
}
