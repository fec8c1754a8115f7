//! The interface by which this node reaches the others, and its addresses there.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::{Address, Kind, Link, Protocol, Route, Rtnl};
use regex::Regex;

use crate::error::chain;
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

/// What decides beside flags and kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Knowledge<'a> {
    /// The network, where it is known already.
    pub(crate) network: Option<&'a NetConf>,
    /// The addresses that Kubernetes has of this node (`InternalIP`).
    pub(crate) internal: Addresses,
    /// Those that the others were told last.
    pub(crate) announced: Addresses,
    /// The interface so far.
    pub(crate) before: Option<&'a Uplink>,
}

/// The interface, and what the kernel says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) link: Link,
    /// Its addresses, the one to be told first of each family.
    addresses: Vec<IpAddr>,
    /// The networks that it reaches without a next hop.
    on_link: Vec<IpNetwork>,
    /// Why it is this interface and this address, in words that follow "because".
    pub(crate) because: String,
    /// What was asked for and cannot be.
    pub(crate) warning: Option<String>,
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
    #[error(
        "the default route has several interfaces ({0}); name the one to the other nodes with --iface"
    )]
    SeveralDefaultRoutes(String),
    #[error("{0} is not an address of interface {1}, and host-gw needs one that is (--public-ip)")]
    NotItsAddress(IpAddr, String),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

/// The node's interfaces with their addresses, and its routes.
pub(crate) struct Interfaces<'a> {
    kernel: &'a Rtnl,
    /// Addresses in the order in which they are chosen.
    all: Vec<(Link, Vec<Address>)>,
    routes: &'a [Route],
}

/// Why an interface is chosen that nobody asked for.
const DEFAULT: &str = "it has the default route";

/// An interface that somebody asked for.
struct Candidate<'a> {
    link: &'a Link,
    /// Those of its addresses that were asked for.
    addresses: Vec<IpAddr>,
    because: String,
}

impl<'a> Interfaces<'a> {
    /// Asks the kernel; `routes` are those of the main table.
    pub(crate) fn list(kernel: &'a Rtnl, routes: &'a [Route]) -> Result<Self, kernel::Error> {
        let mut addresses: HashMap<u32, Vec<Address>> = HashMap::new();
        for address in kernel.all_addresses()? {
            addresses.entry(address.link).or_default().push(address);
        }
        let with_its = |link: Link| {
            let mut its = addresses.remove(&link.index).unwrap_or_default();
            let all = its.clone();
            its.sort_by_key(|address| rank(address, &all));
            (link, its)
        };
        let all = kernel.links()?.into_iter().map(with_its).collect();
        Ok(Self {
            kernel,
            all,
            routes,
        })
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        self.all.iter().map(|(link, _)| link)
    }

    fn by_index(&self, index: u32) -> Option<&Link> {
        self.links().find(|link| link.index == index)
    }

    /// The addresses of a link, the best first.
    fn addresses(&self, link: &Link) -> impl Iterator<Item = IpAddr> {
        let interface = self.all.iter().find(|(other, _)| other.index == link.index);
        let addresses = interface.into_iter().flat_map(|(_, addresses)| addresses);
        addresses.map(|address| address.network.ip())
    }

    /// Whether a link has one of this family that others can be told.
    fn serves(&self, link: &Link, ipv4: bool) -> bool {
        let mut addresses = self.addresses(link);
        addresses.any(|address| address.is_ipv4() == ipv4 && !is_link_local(address))
    }

    /// The links that have `address`: the one by which it works before those that are a part of
    /// another, or that lead nowhere.
    fn holders(&self, address: IpAddr) -> Vec<&Link> {
        let has = |link: &&Link| self.addresses(link).any(|its| its == address);
        let mut holders: Vec<_> = self.links().filter(has).collect();
        holders.sort_by_key(|link| (is_dead_end(link), link.controller.is_some(), !link.is_up));
        holders
    }

    /// The link that has the addresses of one that is a part of another: of a bridge, of a bond.
    fn in_charge<'b>(&'b self, link: &'b Link, ipv4: bool) -> &'b Link {
        let mut link = link;
        // No link is a part of so many, one in the other.
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

    /// The interface of the default route: of the family that the network has (IPv4 where it has
    /// both, or is not known), else of the other; and of the route that counts. Two halves are a
    /// default route, too, and several next hops by one interface are one.
    fn of_default_route(&self, prefers_ipv4: bool) -> Result<&Link, Error> {
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

    /// The links of the routes to all of `parts`, each once, where there is one to each. The smallest
    /// metric counts.
    fn devices(&self, parts: &[&str]) -> Option<Vec<u32>> {
        let mut devices = Vec::new();
        for part in parts {
            let part: IpNetwork = part.parse().expect("a network");
            let routes = self.routes.iter().filter(|route| route.to == part);
            let best = routes.min_by_key(|route| route.metric)?;
            devices.push(best.dev);
            devices.extend(&best.legs);
        }
        devices.retain(|dev| *dev != 0);
        devices.sort_unstable();
        devices.dedup();
        Some(devices)
    }

    /// `link` as the interface to the other nodes: of its addresses those of `wanted` first, the first
    /// of them before the others.
    fn uplink(&self, link: &Link, wanted: &[IpAddr], because: String) -> Uplink {
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
        let place = |address: &IpAddr| wanted.iter().position(|other| other == address);
        addresses.sort_by_key(|address| place(address).unwrap_or(wanted.len()));
        Uplink {
            link: link.clone(),
            addresses,
            on_link,
            because,
            warning: None,
        }
    }

    /// The first of `candidates` that has a lease's address, that lease and that address.
    fn find_lease<'b, 'c>(
        &'c self,
        snapshot: &'b Snapshot,
        candidates: impl IntoIterator<Item = Candidate<'c>>,
    ) -> Result<(&'b Lease, Candidate<'c>), Error> {
        let mut seen = Vec::new();
        for mut candidate in candidates {
            let named = candidate.addresses.iter().copied();
            let addresses: Vec<_> = named.chain(self.addresses(candidate.link)).collect();
            for address in &addresses {
                let has = |lease: &&Lease| lease.hops.iter().any(|hop| hop.via == *address);
                let mut leases = snapshot.leases.iter().map(AsRef::as_ref);
                if let Some(lease) = leases.find(has) {
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

/// In which order addresses are chosen, where nothing else decides: flannel's, permanent ones first, but
/// behind all others one for a host alone beside one of a subnet (a virtual address that moves), one
/// of many nodes (anycast), one that changes (privacy), one that is about to go, one of the link.
fn rank(address: &Address, all: &[Address]) -> (u8, bool) {
    let is_host = |address: &Address| {
        let bits = if address.network.is_ipv4() { 32 } else { 128 };
        address.network.prefix() == bits
    };
    let is_usual = |other: &Address| {
        let is_same_family = other.network.is_ipv4() == address.network.is_ipv4();
        is_same_family && !is_host(other) && rank_by_itself(other) == 0
    };
    let by_host = is_host(address) && all.iter().any(is_usual);
    let rank = rank_by_itself(address).max(u8::from(by_host));
    (rank, !address.is_permanent)
}

fn rank_by_itself(address: &Address) -> u8 {
    let ip = address.network.ip();
    let is_of_link = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match address {
        _ if is_of_link => 5,
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

/// Whether an address is one that any router of its subnet has (RFC 4291, 2.6.1), or one of those that
/// are reserved for several nodes at once (RFC 2526).
fn is_anycast(network: IpNetwork) -> bool {
    let IpNetwork::V6(v6) = network else {
        return false;
    };
    let interface = v6.ip().to_bits() & u128::from(u64::MAX);
    let is_router = v6.prefix() < 127 && v6.ip() == v6.network();
    is_router || v6.prefix() == 64 && interface & !0x7f == 0xfdff_ffff_ffff_ff80
}

impl Selection {
    /// What was asked for and is there, in the order that counts; nothing where nothing was.
    fn candidates<'b>(
        &self,
        interfaces: &'b Interfaces<'_>,
        network: Option<&NetConf>,
    ) -> Result<Vec<Candidate<'b>>, Error> {
        let mut found = Vec::new();
        let default = || {
            let link = interfaces.of_default_route(wants_ipv4(network)).ok()?;
            Some(Candidate {
                link,
                addresses: Vec::new(),
                because: DEFAULT.to_owned(),
            })
        };
        for name in &self.names {
            // As in flannel, nothing is the default route's.
            found.extend(
                Some(())
                    .filter(|()| name.is_empty())
                    .and_then(|()| default()),
            );
            if let Ok(address) = name.parse() {
                found.extend(
                    interfaces
                        .holders(address)
                        .into_iter()
                        .map(|link| Candidate {
                            link,
                            addresses: vec![address],
                            because: format!("it has {address} (--iface)"),
                        }),
                );
            }
            let mut links = interfaces.links();
            found.extend(links.find(|link| link.name == *name).map(|link| Candidate {
                link,
                addresses: Vec::new(),
                because: format!("it is named {name:?} (--iface)"),
            }));
        }
        for pattern in &self.patterns {
            let text = pattern.as_str();
            if text.is_empty() {
                found.extend(default());
                continue;
            }
            let mut named = Vec::new();
            for link in interfaces.links() {
                let addresses = interfaces.addresses(link);
                let matches = |address: &IpAddr| pattern.is_match(&address.to_string());
                let addresses: Vec<_> = addresses.filter(matches).collect();
                if let Some(address) = addresses.first() {
                    found.push(Candidate {
                        link,
                        because: format!("{address} matches {text:?} (--iface-regex)"),
                        addresses,
                    });
                } else if pattern.is_match(&link.name) {
                    named.push(Candidate {
                        link,
                        addresses,
                        because: format!("its name matches {text:?} (--iface-regex)"),
                    });
                }
            }
            found.extend(named);
        }
        if let Some(to) = self.can_reach
            && let Some(path) = interfaces.kernel.path(to, None)?
        {
            let because = format!("packets to {to} leave by it (--iface-can-reach)");
            let links = if path.is_local {
                interfaces.holders(to)
            } else {
                interfaces.by_index(path.dev).into_iter().collect()
            };
            found.extend(links.into_iter().map(|link| Candidate {
                link,
                addresses: path.source.into_iter().collect(),
                because: because.clone(),
            }));
        }
        if !self.is_empty() {
            return Ok(found);
        }
        if let Some(public) = self.public.first() {
            found.extend(
                interfaces
                    .holders(*public)
                    .into_iter()
                    .map(|link| Candidate {
                        link,
                        addresses: Vec::new(),
                        because: format!("it has {public} (--public-ip)"),
                    }),
            );
        }
        Ok(found)
    }

    /// Whether no interface is asked for, but by its public address.
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty() && self.can_reach.is_none()
    }

    /// The interface that was asked for; nothing where none was, or only one that leads nowhere, which
    /// `warning` then says. One without an address of the network's family counts where there is no
    /// other, and of one that is a part of another, that other one.
    fn asked<'b>(
        &self,
        interfaces: &'b Interfaces<'_>,
        network: Option<&NetConf>,
        warning: &mut Option<String>,
    ) -> Result<Option<Candidate<'b>>, Error> {
        let ipv4 = wants_ipv4(network);
        let mut all = self.candidates(interfaces, network)?;
        if all.is_empty() {
            return match self.wanted() {
                Some(wanted) => Err(Error::NoSuchInterface(wanted)),
                None => Ok(None),
            };
        }
        if let Some(dead) = all.iter().find(|candidate| is_dead_end(candidate.link)) {
            *warning = Some(leads_nowhere(dead.link, &dead.because));
        }
        all.retain(|candidate| !is_dead_end(candidate.link));
        for candidate in &mut all {
            let link = interfaces.in_charge(candidate.link, ipv4);
            if link.index != candidate.link.index {
                let part = &candidate.link.name;
                candidate.because = format!("{part} is a part of it: {}", candidate.because);
                candidate.link = link;
            }
        }
        let serves = |candidate: &Candidate<'_>| interfaces.serves(candidate.link, ipv4);
        let best = all.iter().position(serves).unwrap_or_default();
        if best < all.len() {
            // What was found is what counts.
            *warning = None;
            return Ok(Some(all.swap_remove(best)));
        }
        Ok(None)
    }

    /// The same; and where there is none of that name, the interface that has this node's address: it was
    /// renamed, and is the same.
    fn asked_or_same<'b>(
        &self,
        interfaces: &'b Interfaces<'_>,
        known: Knowledge<'_>,
        warning: &mut Option<String>,
    ) -> Result<Option<Candidate<'b>>, Error> {
        let error = match self.asked(interfaces, known.network, warning) {
            Err(error @ Error::NoSuchInterface(_)) if !self.is_empty() => error,
            other => return other,
        };
        let Some(link) = still_there(interfaces, known) else {
            return Err(error);
        };
        *warning = Some(format!("{}; going on with {}", chain(&error), link.name));
        Ok(Some(Candidate {
            link,
            addresses: Vec::new(),
            because: "it is the interface so far, and has this node's address".to_owned(),
        }))
    }

    /// What is asked for, in words that follow "no interface"; nothing where nothing is.
    fn wanted(&self) -> Option<String> {
        let mut wanted = Vec::new();
        let list = |texts: Vec<String>| texts.join(" or ");
        if !self.names.is_empty() {
            let names = self.names.iter().map(|name| format!("{name:?}")).collect();
            wanted.push(format!(
                "is named {} or has that address (--iface)",
                list(names)
            ));
        }
        if !self.patterns.is_empty() {
            let patterns = self.patterns.iter().map(|p| format!("{:?}", p.as_str()));
            let patterns = list(patterns.collect());
            wanted.push(format!("matches {patterns} (--iface-regex)"));
        }
        wanted.extend(
            self.can_reach
                .map(|to| format!("reaches {to} (--iface-can-reach)")),
        );
        if wanted.is_empty() {
            let public = self.public.first()?;
            return Some(format!("has the address {public} (--public-ip)"));
        }
        Some(wanted.join(", and none "))
    }

    /// The interface to the other nodes, as interfaces and routes are now. Where none was asked
    /// for, one that has an address of this node's, as Kubernetes has it or as the others were told
    /// last, goes before the default route's: another default route, such as a VPN brings, does not
    /// move the node.
    pub(crate) fn uplink(
        &self,
        interfaces: &Interfaces<'_>,
        known: Knowledge<'_>,
    ) -> Result<Uplink, Error> {
        let mut warning = None;
        let asked = self.asked_or_same(interfaces, known, &mut warning)?;
        let candidate = match asked {
            Some(candidate) => candidate,
            None => unasked(interfaces, known, &mut warning)?,
        };
        let link = candidate.link;
        let mut wanted = Vec::new();
        for public in &self.public {
            let mut holders = interfaces.holders(*public).into_iter();
            if holders.clone().any(|holder| holder.index == link.index) {
                wanted.push(*public);
            } else if let Some(dead) = holders.find(|holder| is_dead_end(holder)) {
                let reason = format!("it has {public} (--public-ip)");
                warning = Some(leads_nowhere(dead, &reason));
            } else {
                return Err(Error::NotItsAddress(*public, link.name.clone()));
            }
        }
        // Of those that were asked for, or of all, the one that the node goes by already.
        let ours = || known.internal.all().chain(known.announced.all());
        let named = &candidate.addresses;
        wanted.extend(ours().filter(|address| named.contains(address)));
        wanted.extend(named);
        wanted.extend(ours());
        let mut uplink = interfaces.uplink(link, &wanted, candidate.because);
        uplink.warning = warning;
        Ok(uplink)
    }

    /// Finds this node in `snapshot`, by its name or by its addresses: by the default route's
    /// interface first, then by any, because a link that goes down takes the default route with
    /// it.
    pub(crate) fn find(
        &self,
        name: Option<&str>,
        interfaces: &Interfaces<'_>,
        snapshot: &Snapshot,
        known: Knowledge<'_>,
    ) -> Result<(Lease, Uplink), Error> {
        let network = Some(&snapshot.network);
        let known = Knowledge { network, ..known };
        let mut warning = None;
        let asked = self.asked_or_same(interfaces, known, &mut warning)?;
        let default = interfaces.of_default_route(wants_ipv4(network));
        let of = |link, because: &str| Candidate {
            link,
            addresses: Vec::new(),
            because: because.to_owned(),
        };
        let (lease, mut candidate) = if let Some(name) = name {
            let mut leases = snapshot.leases.iter().map(AsRef::as_ref);
            let lease = leases.find(|lease: &&Lease| lease.node == name);
            let lease = lease.ok_or_else(|| Error::NoSuchName(name.to_owned()))?;
            let mut holders = Vec::new();
            for hop in &lease.hops {
                holders.extend(interfaces.holders(hop.via));
            }
            if let Some(dead) = holders.iter().find(|link| is_dead_end(link)) {
                let reason = format!("it has the address of node {name}");
                warning = Some(leads_nowhere(dead, &reason));
            }
            let mut holders = holders.into_iter().filter(|link| !is_dead_end(link));
            let its = holders
                .next()
                .map(|link| of(link, "it has the node's address"));
            let default = || default.ok().map(|link| of(link, DEFAULT));
            let candidate = asked.or(its).or_else(default);
            let candidate = candidate.ok_or_else(|| Error::NoInterface(name.to_owned()))?;
            (lease, candidate)
        } else if let Some(asked) = asked {
            interfaces.find_lease(snapshot, [asked])?
        } else {
            let default = default.ok().map(|link| of(link, DEFAULT));
            let mut links: Vec<_> = interfaces.links().collect();
            links.retain(|link| !is_dead_end(link));
            links.sort_by_key(|link| link.controller.is_some());
            let others = links
                .into_iter()
                .map(|link| of(link, "it has the node's address"));
            interfaces.find_lease(snapshot, default.into_iter().chain(others))?
        };
        candidate.addresses.extend(lease.addresses().all());
        let mut uplink = interfaces.uplink(candidate.link, &candidate.addresses, candidate.because);
        uplink.warning = warning;
        Ok((lease.clone(), uplink))
    }
}

/// The interface that has an address by which the others know this node: the one so far before others.
fn still_there<'a>(interfaces: &'a Interfaces<'_>, known: Knowledge<'_>) -> Option<&'a Link> {
    let is_before = |link: &&Link| {
        known
            .before
            .is_some_and(|before| before.link.index == link.index)
    };
    let mut links: Vec<_> = known
        .announced
        .all()
        .flat_map(|address| interfaces.holders(address))
        .filter(|link| !is_dead_end(link))
        .collect();
    links.sort_by_key(|link| !is_before(link));
    links.first().copied()
}

/// The interface where none was asked for.
fn unasked<'a>(
    interfaces: &'a Interfaces<'_>,
    known: Knowledge<'_>,
    warning: &mut Option<String>,
) -> Result<Candidate<'a>, Error> {
    let internal = known.internal.all().map(|a| (a, "the Node's InternalIP"));
    let announced = known.announced.all();
    let announced = announced.map(|a| (a, "this node's address so far"));
    for (address, what) in internal.chain(announced) {
        let because = format!("it has {what}, {address}");
        match interfaces.holders(address).first() {
            Some(link) if is_dead_end(link) => {
                *warning = warning.take().or(Some(leads_nowhere(link, &because)));
            }
            Some(link) => {
                return Ok(Candidate {
                    link,
                    addresses: Vec::new(),
                    because,
                });
            }
            None => {}
        }
    }
    Ok(Candidate {
        link: interfaces.of_default_route(wants_ipv4(known.network))?,
        addresses: Vec::new(),
        because: DEFAULT.to_owned(),
    })
}

/// Which family decides between interfaces.
fn wants_ipv4(network: Option<&NetConf>) -> bool {
    network.is_none_or(|network| network.ipv4.is_some())
}

fn is_dead_end(link: &Link) -> bool {
    link.kind == Kind::DeadEnd
}

fn leads_nowhere(link: &Link, because: &str) -> String {
    format!(
        "{} is not the interface to the other nodes, although {because}: it leads to none",
        link.name
    )
}

impl Uplink {
    /// The addresses that others are told, of the families that the network has. An IPv6 address of the
    /// link alone is none.
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
        let told = self
            .addresses
            .iter()
            .filter(|address| !is_link_local(**address));
        for address in told {
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
            kind: Kind::Other,
            mac: None,
            mtu: 1500,
            is_up: true,
            is_passing: true,
            is_promiscuous: false,
            bridge: None,
            controller: None,
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
            because: String::new(),
            warning: None,
        }
    }

    /// Its addresses of one family, but for those of the link alone.
    pub(crate) fn addresses_of(&self, ipv4: bool) -> impl Iterator<Item = IpAddr> {
        let is_it = move |address: &&IpAddr| address.is_ipv4() == ipv4 && !is_link_local(**address);
        self.addresses.iter().filter(is_it).copied()
    }

    /// Whether `address` is this node's.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Whether the kernel can send to `address` without a next hop.
    pub(crate) fn reaches(&self, address: IpAddr) -> bool {
        is_link_local(address) || self.on_link.iter().any(|network| network.contains(address))
    }

    /// A route that has packets to `to` go nowhere, where no other leads them anywhere: not even one of
    /// somebody else's to the same destination.
    pub(crate) fn blackhole(to: IpNetwork) -> Route {
        Route {
            is_unicast: false,
            metric: u32::MAX,
            ..Route::new(to, None, 0, Protocol::HOSTGW)
        }
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
