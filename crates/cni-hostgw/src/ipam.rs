//! Address management: our own, another plugin's, or none.

mod delegate;
mod host_local;

use std::net::IpAddr;

use cni::{Attached, Dns, RouteConf};
use ipnetwork::IpNetwork;
use kernel::Rtnl;

pub(crate) use delegate::Delegate;
pub(crate) use host_local::{Pool, has_ranges, open_store, reclaim, store_of};

use crate::error::Error;
use crate::source::Source;

/// Who gives the container its addresses.
#[derive(Debug)]
pub(crate) enum Ipam {
    /// We do, in host-local's files.
    HostLocal(Pool),
    /// Another program does, as the SPEC says (section "Delegation").
    Delegate(Delegate),
    /// Nobody: the bridge and the pair are all there is.
    None,
}

/// What a container gets. Dropped without [`Allocation::keep`], it is given back.
#[derive(Debug)]
pub(crate) struct Allocation<'a> {
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<RouteConf>,
    pub(crate) dns: Dns,
    undo: Undo<'a>,
}

/// An address of the container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    /// With its subnet's prefix length.
    pub(crate) address: IpNetwork,
    /// The subnet's gateway.
    pub(crate) gateway: Option<IpAddr>,
}

#[derive(Debug)]
enum Undo<'a> {
    Nothing,
    GiveBack(::host_local::Reservation<'a>),
    Delegate(&'a Delegate),
}

impl Ipam {
    /// Which of the three the configuration means.
    pub(crate) fn read(source: &Source<'_>) -> Result<Self, Error> {
        if !source.has_addresses {
            return Ok(Self::None);
        }
        if let Some(delegate) = Delegate::of(source) {
            return Ok(Self::Delegate(delegate));
        }
        Pool::read(source).map(Self::HostLocal)
    }

    /// Addresses for the attachment. `host` tells which attachments are no more.
    pub(crate) fn allocate<'a>(
        &'a self,
        host: &Rtnl,
        store: &'a ::host_local::Store,
        attached: &Attached,
    ) -> Result<Allocation<'a>, Error> {
        match self {
            Self::HostLocal(pool) => pool.reserve(host, store, attached),
            Self::Delegate(delegate) => delegate.add(),
            Self::None => Ok(Allocation {
                addresses: Vec::new(),
                routes: Vec::new(),
                dns: Dns::default(),
                undo: Undo::Nothing,
            }),
        }
    }

    /// The gateways that the ranges have, as far as they are known before an address is.
    pub(crate) fn gateways(&self) -> Vec<IpNetwork> {
        match self {
            Self::HostLocal(pool) => pool.gateways(),
            Self::Delegate(_) | Self::None => Vec::new(),
        }
    }
}

impl Address {
    /// What the bridge has, where it is the gateway: an IPAM plugin that names none leaves it to
    /// us, and it is the subnet's first address.
    pub(crate) fn bridges(&self) -> IpAddr {
        self.gateway.unwrap_or_else(|| first_of(self.address))
    }
}

impl Allocation<'_> {
    /// Makes it outlive this process.
    pub(crate) fn keep(mut self) {
        if let Undo::GiveBack(reservation) = std::mem::replace(&mut self.undo, Undo::Nothing) {
            reservation.keep();
        }
    }

    /// The gateways, each with its subnet's prefix length, as the bridge gets them.
    pub(crate) fn gateways(&self) -> Vec<IpNetwork> {
        let gateway = |a: &Address| {
            let prefix = a.address.prefix();
            IpNetwork::new(a.bridges(), prefix).expect("the address has that prefix length")
        };
        let mut all: Vec<_> = self.addresses.iter().map(gateway).collect();
        all.dedup();
        all
    }
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        // SPEC: who delegated an ADD and fails afterwards, delegates the DEL. Why ADD failed is
        // what the runtime wants to hear.
        if let Undo::Delegate(delegate) = self.undo {
            drop(delegate.run("DEL"));
        }
    }
}

/// The address behind the network's own.
fn first_of(network: IpNetwork) -> IpAddr {
    match network {
        IpNetwork::V4(v4) => std::net::Ipv4Addr::from(u32::from(v4.network()) + 1).into(),
        IpNetwork::V6(v6) => std::net::Ipv6Addr::from(u128::from(v6.network()) + 1).into(),
    }
}
