//! Address management: our own, another plugin's, or none.

mod delegate;
mod host_local;

use std::net::IpAddr;

use ::host_local::{Store, Vacant};
use cni::{Attached, Dns, NetworkName, RouteConf};
use ipnetwork::IpNetwork;
use kernel::Rtnl;

pub(crate) use self::host_local::{Pool, open_store, reclaim, store_of};
use self::host_local::{note_data_dir, refuse_shared_addresses};
pub(crate) use delegate::Delegate;

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

/// What a container gets: to be kept, or given back.
#[derive(Debug)]
#[must_use = "what is neither kept nor given back may stay"]
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

    /// Our own addresses for the attachment; none where another plugin gives them, or nobody.
    /// `host` tells which attachments are no more.
    ///
    /// Errors when another network of the node holds addresses of ours. To be called under the lock of
    /// the node's bridges.
    pub(crate) fn reserve<'a>(
        &'a self,
        host: &Rtnl,
        store: &'a Store,
        network: &NetworkName,
        attached: &Attached,
    ) -> Result<Allocation<'a>, Error> {
        match self {
            Self::HostLocal(pool) => {
                pool.refuse_shared_subnet(host, store, network)?;
                note_data_dir(store)?;
                pool.reserve(host, store, attached)
            }
            Self::Delegate(_) | Self::None => Ok(Allocation::nothing()),
        }
    }

    /// Another plugin's addresses for the attachment, whose interface is there; nothing where
    /// addresses are not another plugin's.
    pub(crate) fn delegate(&self) -> Option<Result<Allocation<'_>, Error>> {
        match self {
            Self::Delegate(delegate) => Some(delegate.add()),
            Self::HostLocal(_) | Self::None => None,
        }
    }

    /// Our own pool of addresses, where it is ours.
    pub(crate) fn pool(&self) -> Option<&Pool> {
        match self {
            Self::HostLocal(pool) => Some(pool),
            Self::Delegate(_) | Self::None => None,
        }
    }

    /// The gateways that the ranges have, as far as they are known before an address is.
    pub(crate) fn gateways(&self) -> Vec<IpNetwork> {
        self.pool().map(Pool::gateways).unwrap_or_default()
    }
}

impl Address {
    /// What the bridge has, where it is the gateway: an IPAM plugin that names none leaves it to
    /// us, and it is the subnet's first address.
    pub(crate) fn bridges(&self) -> IpAddr {
        self.gateway.unwrap_or_else(|| first_of(self.address))
    }
}

impl<'a> Allocation<'a> {
    fn nothing() -> Self {
        Self {
            addresses: Vec::new(),
            routes: Vec::new(),
            dns: Dns::default(),
            undo: Undo::Nothing,
        }
    }

    /// Makes it outlive this process.
    pub(crate) fn keep(self) {
        if let Undo::GiveBack(reservation) = self.undo {
            reservation.keep();
        }
    }

    /// Gives everything back, and gives the network when those were its last addresses.
    pub(crate) fn give_back(self) -> Result<Option<Vacant<'a>>, Error> {
        match self.undo {
            Undo::Nothing => Ok(None),
            Undo::GiveBack(reservation) => Ok(reservation.give_back()?),
            // SPEC: who delegated an ADD and fails afterwards, delegates the DEL.
            Undo::Delegate(delegate) => delegate.run("DEL").map(|_| None),
        }
    }

    /// Errors when another network of the node holds one of the addresses.
    pub(crate) fn refuse_shared(
        &self,
        host: &Rtnl,
        store: &Store,
        network: &NetworkName,
    ) -> Result<(), Error> {
        refuse_shared_addresses(host, store, network, &self.addresses)
    }

    /// Whether another plugin gave it.
    pub(crate) fn is_delegated(&self) -> bool {
        matches!(self.undo, Undo::Delegate(_))
    }

    /// The addresses without their prefix lengths.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|a| a.address.ip()).collect()
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

/// The address behind the network's own.
fn first_of(network: IpNetwork) -> IpAddr {
    match network {
        IpNetwork::V4(v4) => std::net::Ipv4Addr::from(u32::from(v4.network()) + 1).into(),
        IpNetwork::V6(v6) => std::net::Ipv6Addr::from(u128::from(v6.network()) + 1).into(),
    }
}
