//! Which node this is, and by which interface it reaches the others.

use std::collections::HashMap;
use std::net::IpAddr;

use kernel::{Link, Rtnl};

use crate::lease::{Lease, Snapshot};

/// How this node is found among the leases.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Its name in the store.
    pub(crate) name: Option<String>,
    /// Its interface to the other nodes, by name or address.
    pub(crate) iface: Option<String>,
}

/// This node: its lease, and its interface to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) lease: Lease,
    pub(crate) link: Link,
}

/// Why this node cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no node is named {0:?} (--node-name)")]
    NoSuchName(String),
    #[error(
        "no node has one of this node's addresses ({0}) as its public address; name the node with --node-name"
    )]
    NoSuchAddress(String),
    #[error("no interface is named {0:?} or has that address (--iface)")]
    NoSuchInterface(String),
    #[error(
        "no interface has an address of node {0}, and there is no default route; name one with --iface"
    )]
    NoInterface(String),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

impl Identity {
    /// Finds this node in `snapshot`, by the interfaces as they are now: by the default route's
    /// first, then by any, because a link that goes down takes the default route with it.
    pub(crate) fn find(&self, kernel: &Rtnl, snapshot: &Snapshot) -> Result<Node, Error> {
        let interfaces = Interfaces::list(kernel)?;
        let named = self
            .iface
            .as_deref()
            .map(|iface| interfaces.named(iface))
            .transpose()?;
        let default = interfaces.of_default_route(kernel)?;
        let (lease, link) = if let Some(name) = &self.name {
            let lease = snapshot.leases.iter().find(|lease| lease.node == *name);
            let lease = lease.ok_or_else(|| Error::NoSuchName(name.clone()))?;
            let link = named.or_else(|| interfaces.of_lease(lease)).or(default);
            (lease, link.ok_or_else(|| Error::NoInterface(name.clone()))?)
        } else {
            match named {
                Some(link) => interfaces.find_lease(snapshot, [link])?,
                None => interfaces
                    .find_lease(snapshot, default.into_iter().chain(interfaces.links()))?,
            }
        };
        Ok(Node {
            lease: lease.clone(),
            link: link.clone(),
        })
    }
}

/// The node's interfaces with their addresses.
struct Interfaces(Vec<(Link, Vec<IpAddr>)>);

impl Interfaces {
    fn list(kernel: &Rtnl) -> Result<Self, Error> {
        let mut addresses: HashMap<u32, Vec<IpAddr>> = HashMap::new();
        for (index, address) in kernel.all_addresses()? {
            addresses.entry(index).or_default().push(address.ip());
        }
        let links = kernel.links()?.into_iter();
        let with_its = |link: Link| {
            let its = addresses.remove(&link.index).unwrap_or_default();
            (link, its)
        };
        Ok(Self(links.map(with_its).collect()))
    }

    fn named(&self, iface: &str) -> Result<&Link, Error> {
        let address: Option<IpAddr> = iface.parse().ok();
        let mut interfaces = self.0.iter();
        let found = interfaces.find(|(link, addresses)| {
            link.name == iface || address.is_some_and(|address| addresses.contains(&address))
        });
        found
            .map(|(link, _)| link)
            .ok_or_else(|| Error::NoSuchInterface(iface.to_owned()))
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.0.iter().map(|(link, _)| link)
    }

    /// The first of `candidates` that has a lease's address, and that lease.
    fn find_lease<'a, 'b>(
        &self,
        snapshot: &'a Snapshot,
        candidates: impl IntoIterator<Item = &'b Link>,
    ) -> Result<(&'a Lease, &'b Link), Error> {
        let mut seen = Vec::new();
        for link in candidates {
            let addresses = self.addresses_of(link);
            let ours = |lease: &&Lease| lease.hops.iter().any(|hop| addresses.contains(&hop.via));
            if let Some(lease) = snapshot.leases.iter().find(ours) {
                return Ok((lease, link));
            }
            seen.extend(addresses.iter().map(ToString::to_string));
        }
        seen.sort();
        seen.dedup();
        let seen = if seen.is_empty() {
            "none".to_owned()
        } else {
            seen.join(", ")
        };
        Err(Error::NoSuchAddress(seen))
    }

    fn of_lease(&self, lease: &Lease) -> Option<&Link> {
        let has = |addresses: &[IpAddr]| lease.hops.iter().any(|hop| addresses.contains(&hop.via));
        self.0
            .iter()
            .find(|(_, addresses)| has(addresses))
            .map(|(link, _)| link)
    }

    fn of_default_route(&self, kernel: &Rtnl) -> Result<Option<&Link>, Error> {
        let routes = kernel.routes()?;
        let defaults = routes
            .iter()
            .filter(|route| route.to.prefix() == 0 && route.dev != 0);
        // IPv4 before IPv6, and the one that counts.
        let best = defaults.min_by_key(|route| (route.to.is_ipv6(), route.metric));
        let index = best.map(|route| route.dev);
        Ok(self.links().find(|link| Some(link.index) == index))
    }

    fn addresses_of(&self, link: &Link) -> &[IpAddr] {
        let interface = self.0.iter().find(|(other, _)| other.index == link.index);
        interface
            .map(|(_, addresses)| addresses.as_slice())
            .unwrap_or_default()
    }
}
