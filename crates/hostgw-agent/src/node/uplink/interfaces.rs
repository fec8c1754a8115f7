//! The node's interfaces, as the uplink is chosen from them.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::{Address, Kind, Link, Path, Route, Rtnl};
use subnet::Subnet;

use super::{Error, Surroundings, Uplink, is_link_local};
use crate::network::{Lease, NetConf, Snapshot};

/// The node's interfaces with their addresses, and the routes of the main table.
pub(crate) struct Interfaces<'a> {
    kernel: &'a Rtnl,
    /// Each with its addresses in order of preference.
    all: Vec<(Link, Vec<Address>)>,
    routes: &'a [Route],
}

/// An interface that could be the uplink.
pub(super) struct Candidate<'a> {
    pub(super) link: &'a Link,
    /// Its addresses that the user asked for.
    pub(super) addresses: Vec<IpAddr>,
    /// Why it is a candidate, in words that follow "because".
    pub(super) because: String,
}

impl<'a> Candidate<'a> {
    pub(super) fn new(link: &'a Link, because: impl Into<String>) -> Self {
        Self {
            link,
            addresses: Vec::new(),
            because: because.into(),
        }
    }
}

/// Why the interface of the default route is chosen.
pub(super) const HAS_DEFAULT_ROUTE: &str = "it has the default route";

impl<'a> Interfaces<'a> {
    /// Asks the kernel. `routes` are those of the main table.
    pub(crate) fn list(kernel: &'a Rtnl, routes: &'a [Route]) -> Result<Self, kernel::Error> {
        let mut addresses: HashMap<u32, Vec<Address>> = HashMap::new();
        for address in kernel.all_addresses()? {
            addresses.entry(address.link).or_default().push(address);
        }
        let with_addresses = |link: Link| {
            let all = addresses.remove(&link.index).unwrap_or_default();
            let mut ordered = all.clone();
            ordered.sort_by_key(|address| preference(address, &all));
            (link, ordered)
        };
        let all = kernel.links()?.into_iter().map(with_addresses).collect();
        Ok(Self {
            kernel,
            all,
            routes,
        })
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        self.all.iter().map(|(link, _)| link)
    }

    pub(super) fn by_index(&self, index: u32) -> Option<&Link> {
        self.links().find(|link| link.index == index)
    }

    /// Returns the addresses of a link, the preferred one first.
    pub(super) fn addresses(&self, link: &Link) -> impl Iterator<Item = IpAddr> {
        let interface = self.all.iter().find(|(other, _)| other.index == link.index);
        let addresses = interface.into_iter().flat_map(|(_, addresses)| addresses);
        addresses.map(|address| address.network.ip())
    }

    /// The kernel's route to `address`, by all its rules. `None` if there is none.
    pub(super) fn path(&self, address: IpAddr) -> Result<Option<Path>, kernel::Error> {
        self.kernel.path(address, None)
    }

    /// True if a link has an address of this family that other nodes could use.
    pub(super) fn serves(&self, link: &Link, ipv4: bool) -> bool {
        let mut addresses = self.addresses(link);
        addresses.any(|address| address.is_ipv4() == ipv4 && !is_link_local(address))
    }

    /// The links that have `address`. Ports of a bridge or bond, and dead ends, come last.
    pub(super) fn holders(&self, address: IpAddr) -> Vec<&Link> {
        let has_it = |link: &&Link| self.addresses(link).any(|other| other == address);
        let mut holders: Vec<_> = self.links().filter(has_it).collect();
        holders.sort_by_key(|link| (is_dead_end(link), link.controller.is_some(), !link.is_up));
        holders
    }

    /// The bridge or bond whose address a port uses; the link itself if it has an address.
    pub(super) fn controller<'b>(&'b self, link: &'b Link, ipv4: bool) -> &'b Link {
        let mut link = link;
        // Controllers are never nested this deep.
        for _ in 0..8 {
            if self.serves(link, ipv4) {
                break;
            }
            match link.controller.and_then(|index| self.by_index(index)) {
                Some(controller) => link = controller,
                None => break,
            }
        }
        link
    }

    /// The interface of the default route, of the preferred family first. Routes to the two halves
    /// of all addresses count as a default route, and several next hops on one interface as one.
    pub(super) fn of_default_route(&self, prefers_ipv4: bool) -> Result<&Link, Error> {
        const IPV4: [&[&str]; 2] = [&["0.0.0.0/0"], &["0.0.0.0/1", "128.0.0.0/1"]];
        const IPV6: [&[&str]; 3] = [&["::/0"], &["::/1", "8000::/1"], &["2000::/3"]];
        let (first, second) = if prefers_ipv4 {
            (&IPV4[..], &IPV6[..])
        } else {
            (&IPV6[..], &IPV4[..])
        };
        for parts in first.iter().chain(second) {
            let Some(devices) = self.devices(parts) else {
                continue;
            };
            let links: Vec<_> = devices
                .iter()
                .filter_map(|dev| self.by_index(*dev))
                .collect();
            match links[..] {
                [] => {}
                [link] if is_dead_end(link) => {}
                [link] => return Ok(link),
                _ => {
                    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
                    return Err(Error::SeveralDefaultRoutes(names.join(", ")));
                }
            }
        }
        Err(Error::NoDefaultRoute)
    }

    /// The indexes of the links that the routes to all of `parts` use, each once. `None` if one of
    /// the parts has no route. The route with the smallest metric counts.
    fn devices(&self, parts: &[&str]) -> Option<Vec<u32>> {
        let mut devices = Vec::new();
        for part in parts {
            let part: IpNetwork = part.parse().expect("a network");
            let routes = self.routes.iter().filter(|route| route.to == part);
            let best = routes.min_by_key(|route| route.metric)?;
            devices.push(best.dev);
            devices.extend(&best.multipath_links);
        }
        devices.retain(|dev| *dev != 0);
        devices.sort_unstable();
        devices.dedup();
        Some(devices)
    }

    /// `link` as the uplink. Of its addresses, those in `preferred` come first, in that order.
    pub(super) fn uplink(&self, link: &Link, preferred: &[IpAddr], because: String) -> Uplink {
        let connected = self.routes.iter().filter(|route| {
            route.dev == link.index
                && route.via.is_none()
                && route.is_unicast
                && route.to.prefix() > 0
        });
        let mut on_link: Vec<_> = connected.map(|route| route.to).collect();
        on_link.sort();
        on_link.dedup();
        let mut addresses: Vec<_> = self.addresses(link).collect();
        let rank = |address: &IpAddr| preferred.iter().position(|other| other == address);
        addresses.sort_by_key(|address| rank(address).unwrap_or(preferred.len()));
        Uplink {
            surroundings: self.surroundings(link, &addresses),
            link: link.clone(),
            addresses,
            on_link,
            because,
            warning: None,
        }
    }

    /// Collects the addresses and networks of all interfaces, and the routers. `own` are the addresses of
    /// `uplink`. Of each family, the address that other nodes use comes first.
    fn surroundings(&self, uplink: &Link, own: &[IpAddr]) -> Surroundings {
        let mut surroundings = Surroundings::default();
        let ipv6 = own.iter().find(|ip| ip.is_ipv6());
        for (link, addresses) in &self.all {
            let is_uplink = link.index == uplink.index;
            // kube-proxy puts addresses of services here, and these may be those of other nodes.
            if link.name == "kube-ipvs0" {
                continue;
            }
            let leads_out = is_uplink || !matches!(link.kind, Kind::Bridge | Kind::LocalOnly);
            for address in addresses {
                let ip = address.network.ip();
                // Each link may have the same link-local addresses.
                if is_link_local(ip) && !is_uplink {
                    continue;
                }
                surroundings.addresses.insert(ip);
                // Anyone on the link can announce an IPv6 network.
                let is_announced = ip.is_ipv6() && !address.is_permanent && ipv6 != Some(&ip);
                if leads_out && !is_link_local(ip) && !is_announced {
                    let network = Subnet::of(address.network).network();
                    surroundings.networks.push(network);
                }
            }
        }
        let is_bridge = |dev: u32| {
            let link = self.by_index(dev);
            link.is_some_and(|link| link.kind == Kind::Bridge && link.index != uplink.index)
        };
        let is_default = |route: &&Route| route.to.prefix() <= 3 && !is_bridge(route.dev);
        let defaults = self.routes.iter().filter(is_default);
        surroundings.gateways = defaults.filter_map(|route| route.via).collect();
        surroundings
    }

    /// The first of `candidates` that has the address of a lease, with that lease.
    pub(super) fn find_lease<'b, 'c>(
        &'c self,
        snapshot: &'b Snapshot,
        candidates: impl IntoIterator<Item = Candidate<'c>>,
    ) -> Result<(&'b Lease, Candidate<'c>), Error> {
        let mut seen = Vec::new();
        for mut candidate in candidates {
            let named = candidate.addresses.iter().copied();
            let addresses: Vec<_> = named.chain(self.addresses(candidate.link)).collect();
            for address in &addresses {
                let has_it = |lease: &&Lease| lease.hops.iter().any(|hop| hop.via == *address);
                let mut leases = snapshot.leases.iter().map(AsRef::as_ref);
                if let Some(lease) = leases.find(has_it) {
                    candidate.addresses.insert(0, *address);
                    return Ok((lease, candidate));
                }
            }
            let others = addresses.iter().filter(|address| !is_link_local(**address));
            seen.extend(others.map(ToString::to_string));
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

/// The family that decides between interfaces.
pub(super) fn prefers_ipv4(network: Option<&NetConf>) -> bool {
    network.is_none_or(|network| network.ipv4.is_some())
}

/// True if no other node can be reached by this link: `lo`, or a dummy.
pub(super) fn is_dead_end(link: &Link) -> bool {
    link.kind == Kind::LocalOnly
}

/// Sort key for addresses where nothing else decides, the smallest first. As in flannel, permanent
/// addresses come first. Behind usual ones come, in this order: an address with the prefix length of
/// a single host beside one of a subnet (a virtual address that moves), anycast, temporary (privacy),
/// deprecated, and link-local addresses.
fn preference(address: &Address, all: &[Address]) -> (u8, bool) {
    let is_host = |address: &Address| {
        let bits = if address.network.is_ipv4() { 32 } else { 128 };
        address.network.prefix() == bits
    };
    let is_usual = |other: &Address| {
        let is_same_family = other.network.is_ipv4() == address.network.is_ipv4();
        is_same_family && !is_host(other) && rank_by_kind(other) == 0
    };
    let beside_subnet = is_host(address) && all.iter().any(is_usual);
    let rank = rank_by_kind(address).max(u8::from(beside_subnet));
    (rank, !address.is_permanent)
}

fn rank_by_kind(address: &Address) -> u8 {
    let is_link_local = match address.network.ip() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match address {
        _ if is_link_local => 5,
        Address {
            is_deprecated: true,
            ..
        } => 4,
        Address {
            is_temporary: true, ..
        } => 3,
        _ if is_anycast(address.network) => 2,
        _ => 0,
    }
}

/// True for the subnet-router anycast address (RFC 4291, 2.6.1) and the reserved subnet anycast
/// addresses (RFC 2526).
fn is_anycast(network: IpNetwork) -> bool {
    let IpNetwork::V6(v6) = network else {
        return false;
    };
    let interface_id = v6.ip().to_bits() & u128::from(u64::MAX);
    let is_router = v6.prefix() < 127 && v6.ip() == v6.network();
    is_router || v6.prefix() == 64 && interface_id & !0x7f == 0xfdff_ffff_ffff_ff80
}
