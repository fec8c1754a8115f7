//! Address management: by this plugin, by another IPAM plugin, or none.

mod data_dirs;
mod delegate;
mod pool;

use std::net::IpAddr;

use cni::{Dns, NetworkName, Route};
use host_local::{Attachment, EmptyNetwork, Reservation, Store};
use ipnetwork::IpNetwork;
use kernel::Rtnl;
use subnet::Subnet;

pub(crate) use delegate::Delegate;
pub(crate) use pool::{Pool, open_store, reclaim, store_from_config};

use crate::config_input::ConfigInput;
use crate::error::Error;
use pool::refuse_shared_addresses;

/// Where a container's addresses come from.
#[derive(Debug)]
pub(crate) enum Ipam {
    /// From our own pool, in host-local's files.
    HostLocal(Pool),
    /// From another IPAM plugin (SPEC, section "Delegation").
    Delegate(Delegate),
    /// There are none: the container gets only an interface.
    None,
}

/// The addresses, routes and DNS settings of a container, until they are kept or released.
#[derive(Debug)]
#[must_use = "without `keep` or `release`, the addresses may stay reserved"]
pub(crate) struct Allocation<'a> {
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
    undo: Undo<'a>,
}

/// An address of the container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    /// The address with its subnet's prefix length.
    pub(crate) address: IpNetwork,
    /// Gateway of the subnet.
    pub(crate) gateway: Option<IpAddr>,
}

#[derive(Debug)]
enum Undo<'a> {
    Nothing,
    Release(Reservation<'a>),
    Delegate(&'a Delegate),
}

impl Ipam {
    /// Reads the configuration.
    pub(crate) fn read(input: &ConfigInput<'_>) -> Result<Self, Error> {
        if !input.has_addresses {
            return Ok(Self::None);
        }
        if let Some(delegate) = Delegate::with_subnets_of(input) {
            return Ok(Self::Delegate(delegate));
        }
        Pool::read(input).map(Self::HostLocal)
    }

    /// Reserves addresses from our own pool. With another IPAM plugin, or without addresses, there are
    /// none. `host` shows which attachments are gone.
    ///
    /// Fails if another network of the node has reserved addresses of our subnets. Must be called under
    /// the lock of the node's bridges.
    pub(crate) fn reserve<'a>(
        &'a self,
        host: &Rtnl,
        store: &'a Store,
        network: &NetworkName,
        attachment: &Attachment,
    ) -> Result<Allocation<'a>, Error> {
        match self {
            Self::HostLocal(pool) => {
                pool.refuse_shared_subnet(host, store, network)?;
                data_dirs::note(store)?;
                pool.reserve(host, store, attachment)
            }
            Self::Delegate(_) | Self::None => Ok(Allocation::empty()),
        }
    }

    /// Asks another IPAM plugin for addresses. `None` if there is no such plugin. The interface must
    /// exist.
    pub(crate) fn delegate(&self) -> Option<Result<Allocation<'_>, Error>> {
        match self {
            Self::Delegate(delegate) => Some(delegate.add()),
            Self::HostLocal(_) | Self::None => None,
        }
    }

    /// Our own pool of addresses.
    pub(crate) fn pool(&self) -> Option<&Pool> {
        match self {
            Self::HostLocal(pool) => Some(pool),
            Self::Delegate(_) | Self::None => None,
        }
    }

    /// The gateways of the pool's ranges.
    pub(crate) fn gateways(&self) -> Vec<IpNetwork> {
        self.pool().map(Pool::gateways).unwrap_or_default()
    }
}

impl Address {
    /// The bridge's address if the bridge is the gateway. If an IPAM plugin names no gateway, it is the
    /// subnet's first address.
    pub(crate) fn bridges(&self) -> IpAddr {
        let first = || Subnet::of(self.address).first_host();
        self.gateway.unwrap_or_else(first)
    }
}

impl<'a> Allocation<'a> {
    fn empty() -> Self {
        Self {
            addresses: Vec::new(),
            routes: Vec::new(),
            dns: Dns::default(),
            undo: Undo::Nothing,
        }
    }

    /// Keeps the addresses reserved.
    pub(crate) fn keep(self) {
        if let Undo::Release(reservation) = self.undo {
            reservation.keep();
        }
    }

    /// Releases everything. Returns the network if those were its last addresses.
    pub(crate) fn release(self) -> Result<Option<EmptyNetwork<'a>>, Error> {
        match self.undo {
            Undo::Nothing => Ok(None),
            Undo::Release(reservation) => Ok(reservation.release()?),
            // SPEC: a plugin that delegated an ADD and then fails must delegate the DEL.
            Undo::Delegate(delegate) => delegate.run("DEL").map(|_| None),
        }
    }

    /// Fails if another network of the node has reserved one of the addresses.
    pub(crate) fn refuse_shared(
        &self,
        host: &Rtnl,
        store: &Store,
        network: &NetworkName,
    ) -> Result<(), Error> {
        refuse_shared_addresses(host, store, network, &self.addresses)
    }

    /// True if the addresses are from another IPAM plugin.
    pub(crate) fn is_delegated(&self) -> bool {
        matches!(self.undo, Undo::Delegate(_))
    }

    /// The addresses without prefix lengths.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|a| a.address.ip()).collect()
    }

    /// The gateways with their subnets' prefix lengths, as the bridge gets them.
    pub(crate) fn gateways(&self) -> Vec<IpNetwork> {
        let gateway = |a: &Address| {
            let prefix = a.address.prefix();
            IpNetwork::new(a.bridges(), prefix).expect("the prefix length is valid for the family")
        };
        let mut all: Vec<_> = self.addresses.iter().map(gateway).collect();
        all.dedup();
        all
    }
}
