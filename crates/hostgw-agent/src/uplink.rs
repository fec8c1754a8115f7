//! The interface by which this node reaches the others, and its addresses there.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::{Address, Link, Protocol, Route, Rtnl};
use regex::Regex;

use crate::lease::{Addresses, Lease, Snapshot};
use crate::net_conf::NetConf;

/// How the interface is told from the others: what is said first counts, as in flannel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// By name or by address.
    pub(crate) names: Vec<String>,
    /// By a pattern, of its addresses first and then of its name.
    pub(crate) patterns: Vec<Regex>,
    /// By where the kernel sends packets to this address.
    pub(crate) can_reach: Option<IpAddr>,
    /// The address that others are told: without the above, the interface is the one that has
    /// it.
    pub(crate) public: Vec<IpAddr>,
}

/// The interface, and what the kernel says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) link: Link,
    /// Its addresses, the one to be told first of each family.
    addresses: Vec<IpAddr>,
    /// The networks that it reaches without a next hop.
    on_link: Vec<IpNetwork>,
}

/// Why there is no such interface, or no such node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no node is named {0:?} (--node-name)")]
    NoSuchName(String),
    #[error(
        "no node has one of this node's addresses ({0}) as its public address; name the node with --node-name"
    )]
    NoSuchAddress(String),
    #[error("no interface {0}")]
    NoSuchInterface(String),
    #[error(
        "no interface has an address of node {0}, and there is no default route; name one with --iface"
    )]
    NoInterface(String),
    #[error("there is no default route; name the interface to the other nodes with --iface")]
    NoDefaultRoute,
    #[error("{0} is not an address of interface {1}, and host-gw needs one that is (--public-ip)")]
    NotItsAddress(IpAddr, String),
}

/// The node's interfaces with their addresses, and its routes.
pub(crate) struct Interfaces<'a> {
    all: Vec<(Link, Vec<Address>)>,
    routes: &'a [Route],
}

impl<'a> Interfaces<'a> {
    /// Asks the kernel; `routes` are those of the main table.
    pub(crate) fn list(kernel: &Rtnl, routes: &'a [Route]) -> Result<Self, kernel::Error> {
        let mut addresses: HashMap<u32, Vec<Address>> = HashMap::new();
        for address in kernel.all_addresses()? {
            addresses.entry(address.link).or_default().push(address);
        }
        let with_its = |link: Link| {
            let mut its = addresses.remove(&link.index).unwrap_or_default();
            // flannel's order: valid everywhere, permanent, not temporary; else the kernel's.
            its.sort_by_key(|address| {
                (
                    !address.is_global,
                    !address.is_permanent,
                    address.is_temporary,
                )
            });
            (link, its)
        };
        let all = kernel.links()?.into_iter().map(with_its).collect();
        Ok(Self { all, routes })
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.all.iter().map(|(link, _)| link)
    }

    /// The addresses of a link, valid everywhere or only there.
    fn addresses(&self, link: &Link) -> impl Iterator<Item = IpAddr> {
        let interface = self.all.iter().find(|(other, _)| other.index == link.index);
        let addresses = interface.into_iter().flat_map(|(_, addresses)| addresses);
        addresses.map(|address| address.network.ip())
    }

    /// The interface of the default route, IPv4 before IPv6, and of the route that counts.
    fn of_default_route(&self) -> Option<&Link> {
        let defaults = self
            .routes
            .iter()
            .filter(|route| route.to.prefix() == 0 && route.dev != 0);
        let best = defaults.min_by_key(|route| (route.to.is_ipv6(), route.metric))?;
        self.links().find(|link| link.index == best.dev)
    }

    /// The interface by which the kernel's main table sends packets to `address`.
    fn towards(&self, address: IpAddr) -> Option<&Link> {
        let reaches = self
            .routes
            .iter()
            .filter(|route| route.to.contains(address) && route.dev != 0);
        let best =
            reaches.max_by_key(|route| (route.to.prefix(), std::cmp::Reverse(route.metric)))?;
        self.links().find(|link| link.index == best.dev)
    }

    fn named(&self, text: &str) -> Option<&Link> {
        let address: Option<IpAddr> = text.parse().ok();
        self.links()
            .find(|link| link.name == text || self.addresses(link).any(|its| Some(its) == address))
    }

    fn matching(&self, pattern: &Regex) -> Option<&Link> {
        let has = |link: &&Link| {
            self.addresses(link)
                .any(|its| pattern.is_match(&its.to_string()))
        };
        let is = |link: &&Link| pattern.is_match(&link.name);
        self.links().find(has).or_else(|| self.links().find(is))
    }

    fn uplink(&self, link: &Link, public: &[IpAddr]) -> Result<Uplink, Error> {
        let its: Vec<_> = self.addresses(link).collect();
        if let Some(other) = public.iter().find(|address| !its.contains(address)) {
            return Err(Error::NotItsAddress(*other, link.name.clone()));
        }
        let connected = self.routes.iter().filter(|route| {
            route.dev == link.index
                && route.via.is_none()
                && route.is_unicast
                && route.to.prefix() > 0
        });
        let mut on_link: Vec<_> = connected.map(|route| route.to).collect();
        on_link.sort();
        on_link.dedup();
        Ok(Uplink {
            link: link.clone(),
            addresses: public.iter().copied().chain(its).collect(),
            on_link,
        })
    }

    /// The first of `candidates` that has a lease's address, and that lease.
    fn find_lease<'b, 'c>(
        &'c self,
        snapshot: &'b Snapshot,
        candidates: impl IntoIterator<Item = &'c Link>,
    ) -> Result<(&'b Lease, &'c Link), Error> {
        let mut seen = Vec::new();
        for link in candidates {
            let addresses: Vec<_> = self.addresses(link).collect();
            let ours = |lease: &&Lease| lease.hops.iter().any(|hop| addresses.contains(&hop.via));
            let mut leases = snapshot.leases.iter().map(AsRef::as_ref);
            if let Some(lease) = leases.find(ours) {
                return Ok((lease, link));
            }
            let global = addresses.iter().filter(|address| !is_link_local(**address));
            seen.extend(global.map(ToString::to_string));
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
}

impl Selection {
    /// The interface that was asked for; nothing where none was. One without an address of the
    /// network's family counts where there is no other.
    fn asked<'b>(
        &self,
        interfaces: &'b Interfaces<'_>,
        network: Option<&NetConf>,
    ) -> Result<Option<&'b Link>, Error> {
        let by_name = self.names.iter().filter_map(|name| interfaces.named(name));
        let matching = self
            .patterns
            .iter()
            .filter_map(|pattern| interfaces.matching(pattern));
        let reaching = self
            .can_reach
            .iter()
            .filter_map(|to| interfaces.towards(*to));
        let all: Vec<_> = by_name.chain(matching).chain(reaching).collect();
        let wants_ipv4 = network.is_none_or(|network| network.ipv4.is_some());
        let serves = |link: &&&Link| {
            let mut addresses = interfaces.addresses(link);
            addresses.any(|address| address.is_ipv4() == wants_ipv4)
        };
        if let Some(link) = all.iter().find(serves).or(all.first()) {
            return Ok(Some(link));
        }
        let mut wanted = Vec::new();
        if !self.names.is_empty() {
            let names: Vec<_> = self.names.iter().map(|name| format!("{name:?}")).collect();
            wanted.push(format!(
                "is named {} or has that address (--iface)",
                names.join(" or ")
            ));
        }
        if !self.patterns.is_empty() {
            let patterns: Vec<_> = self
                .patterns
                .iter()
                .map(|p| format!("{:?}", p.as_str()))
                .collect();
            wanted.push(format!("matches {} (--iface-regex)", patterns.join(" or ")));
        }
        wanted.extend(
            self.can_reach
                .map(|to| format!("reaches {to} (--iface-can-reach)")),
        );
        if !wanted.is_empty() {
            return Err(Error::NoSuchInterface(wanted.join(", and none ")));
        }
        let Some(public) = self.public.first() else {
            return Ok(None);
        };
        match interfaces.named(&public.to_string()) {
            Some(link) => Ok(Some(link)),
            None => Err(Error::NoSuchInterface(format!(
                "has the address {public} (--public-ip)"
            ))),
        }
    }

    /// The interface to the other nodes, as interfaces and routes are now. Where none was asked
    /// for, one that has the address of the lease that is held goes before the default route's:
    /// another default route, such as a VPN brings, does not move the node.
    pub(crate) fn uplink(
        &self,
        interfaces: &Interfaces<'_>,
        network: Option<&NetConf>,
        held: Option<Addresses>,
    ) -> Result<Uplink, Error> {
        if let Some(link) = self.asked(interfaces, network)? {
            return interfaces.uplink(link, &self.public);
        }
        let has = |link: &&Link| {
            let addresses = interfaces.addresses(link).collect::<Vec<_>>();
            held.is_some_and(|held| held.all().any(|address| addresses.contains(&address)))
        };
        let found = interfaces.links().find(has);
        let link = found.or_else(|| interfaces.of_default_route());
        interfaces.uplink(link.ok_or(Error::NoDefaultRoute)?, &self.public)
    }

    /// Finds this node in `snapshot`, by its name or by its addresses: by the default route's
    /// interface first, then by any, because a link that goes down takes the default route with
    /// it.
    pub(crate) fn find(
        &self,
        name: Option<&str>,
        interfaces: &Interfaces<'_>,
        snapshot: &Snapshot,
    ) -> Result<(Lease, Uplink), Error> {
        let asked = self.asked(interfaces, Some(&snapshot.network))?;
        let default = interfaces.of_default_route();
        let (lease, link) = if let Some(name) = name {
            let mut leases = snapshot.leases.iter().map(AsRef::as_ref);
            let lease = leases.find(|lease: &&Lease| lease.node == name);
            let lease = lease.ok_or_else(|| Error::NoSuchName(name.to_owned()))?;
            let has = |address| lease.hops.iter().any(|hop| hop.via == address);
            let of_lease = || {
                let mut links = interfaces.links();
                links.find(|link| interfaces.addresses(link).any(has))
            };
            let link = asked.or_else(of_lease).or(default);
            (
                lease,
                link.ok_or_else(|| Error::NoInterface(name.to_owned()))?,
            )
        } else if let Some(link) = asked {
            interfaces.find_lease(snapshot, [link])?
        } else {
            let candidates = default.into_iter().chain(interfaces.links());
            interfaces.find_lease(snapshot, candidates)?
        };
        Ok((lease.clone(), interfaces.uplink(link, &[])?))
    }
}

impl Uplink {
    /// The same, to be known by these of its addresses, where nobody asked for others.
    pub(crate) fn preferring(mut self, addresses: Addresses) -> Self {
        let preferred: Vec<_> = addresses.all().collect();
        self.addresses
            .sort_by_key(|address| !preferred.contains(address));
        self
    }

    /// The addresses that others are told, of the families that the network has.
    pub(crate) fn public(&self, network: Option<&NetConf>) -> Addresses {
        let wants = |ipv4: bool| {
            network.is_none_or(|n| {
                if ipv4 {
                    n.ipv4.is_some()
                } else {
                    n.ipv6.is_some()
                }
            })
        };
        let mut addresses = Addresses::default();
        for address in &self.addresses {
            match address {
                IpAddr::V4(v4) if wants(true) => {
                    addresses.ipv4.get_or_insert(*v4);
                }
                IpAddr::V6(v6) if wants(false) => {
                    addresses.ipv6.get_or_insert(*v6);
                }
                _ => {}
            }
        }
        addresses
    }

    /// The interface that unit tests are about: number 2, on the link of these networks.
    #[cfg(test)]
    pub(crate) fn on(addresses: &[&str], on_link: &[&str]) -> Self {
        let link = Link {
            index: 2,
            name: "enp0s5".to_owned(),
            kind: kernel::Kind::Other,
            mac: None,
            mtu: 1500,
            is_up: true,
            is_passing: true,
            is_promiscuous: false,
            bridge: None,
            port: None,
            peer: None,
            peer_netns: None,
            group: 0,
            alias: None,
        };
        Self {
            link,
            addresses: addresses
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
            on_link: on_link
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect(),
        }
    }

    /// Whether `address` is this node's.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Whether the kernel can send to `address` without a next hop.
    pub(crate) fn reaches(&self, address: IpAddr) -> bool {
        is_link_local(address) || self.on_link.iter().any(|network| network.contains(address))
    }

    /// A route to `to` by next hop `via`, marked as ours.
    pub(crate) fn route(&self, to: IpNetwork, via: IpAddr, is_onlink: bool) -> Route {
        Route {
            is_onlink,
            ..Route::new(to, Some(via), self.link.index, Protocol::HOSTGW)
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
