//! How the user, or else the node's own addresses and its default route, select the uplink.

use std::net::IpAddr;

use kernel::Link;
use regex::Regex;

use super::interfaces::{Candidate, HAS_DEFAULT_ROUTE, Interfaces, is_dead_end, prefers_ipv4};
use super::{Error, Uplink, UplinkHints};
use crate::network::{Lease, NetConf, Snapshot};

/// How the user selects the uplink. The first way that is given counts, as in flannel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    /// `--iface`: names or addresses.
    pub(crate) names: Vec<String>,
    /// `--iface-regex`: patterns for addresses, and then for names.
    pub(crate) patterns: Vec<Regex>,
    /// `--iface-can-reach`: the interface by which the kernel sends packets to this address.
    pub(crate) can_reach: Option<IpAddr>,
    /// `--public-ip`, `--public-ipv6`: the addresses for other nodes. Without the flags above, the
    /// interface that has the first of them is the uplink.
    pub(crate) public: Vec<IpAddr>,
}

/// A selected interface, and what the user has to know about the selection.
struct Selected<'a> {
    candidate: Option<Candidate<'a>>,
    warning: Option<String>,
}

impl Selection {
    /// Selects the uplink, as interfaces and routes are now. If the user selects none, an interface
    /// with an address of this node, as Kubernetes or the other nodes know it, comes before the one
    /// of the default route: another default route, such as a VPN's, does not move the node.
    pub(crate) fn uplink(
        &self,
        interfaces: &Interfaces<'_>,
        hints: UplinkHints<'_>,
    ) -> Result<Uplink, Error> {
        let mut selected = self.requested_or_renamed(interfaces, hints)?;
        let candidate = match selected.candidate {
            Some(candidate) => candidate,
            None => by_hints(interfaces, hints, &mut selected.warning)?,
        };
        let link = candidate.link;
        let mut preferred = Vec::new();
        for public in &self.public {
            let mut holders = interfaces.holders(*public).into_iter();
            if holders.clone().any(|holder| holder.index == link.index) {
                preferred.push(*public);
            } else if let Some(dead) = holders.find(|holder| is_dead_end(holder)) {
                let reason = format!("it has {public} (--public-ip)");
                selected.warning = Some(dead_end_warning(dead, &reason));
            } else {
                return Err(Error::NotItsAddress(*public, link.name.clone()));
            }
        }
        // Of the requested addresses, or of all, the one that this node has been using.
        let known = || hints.internal.all().chain(hints.announced.all());
        let requested = &candidate.addresses;
        preferred.extend(known().filter(|address| requested.contains(address)));
        preferred.extend(requested);
        preferred.extend(known());
        let mut uplink = interfaces.uplink(link, &preferred, candidate.because);
        uplink.warning = selected.warning;
        Ok(uplink)
    }

    /// Finds this node in `snapshot`, by its name or by its addresses: by those of the default
    /// route's interface first, then by those of any, because the default route disappears with its
    /// link.
    pub(crate) fn find(
        &self,
        name: Option<&str>,
        interfaces: &Interfaces<'_>,
        snapshot: &Snapshot,
        hints: UplinkHints<'_>,
    ) -> Result<(Lease, Uplink), Error> {
        let network = Some(&snapshot.network);
        let hints = UplinkHints { network, ..hints };
        let Selected {
            candidate: requested,
            mut warning,
        } = self.requested_or_renamed(interfaces, hints)?;
        let default = interfaces.of_default_route(prefers_ipv4(network)).ok();
        let default = default.map(|link| Candidate::new(link, HAS_DEFAULT_ROUTE));
        let (lease, mut candidate) = if let Some(name) = name {
            let (lease, holder) = by_name(name, interfaces, snapshot, &mut warning)?;
            let candidate = requested.or(holder).or(default);
            let candidate = candidate.ok_or_else(|| Error::NoInterface(name.to_owned()))?;
            (lease, candidate)
        } else if let Some(requested) = requested {
            interfaces.find_lease(snapshot, [requested])?
        } else {
            let mut links: Vec<_> = interfaces.links().collect();
            links.retain(|link| !is_dead_end(link));
            links.sort_by_key(|link| link.controller.is_some());
            let others = links
                .into_iter()
                .map(|link| Candidate::new(link, HAS_NODE_ADDRESS));
            interfaces.find_lease(snapshot, default.into_iter().chain(others))?
        };
        candidate.addresses.extend(lease.addresses().all());
        let mut uplink = interfaces.uplink(candidate.link, &candidate.addresses, candidate.because);
        uplink.warning = warning;
        Ok((lease.clone(), uplink))
    }

    /// The requested interface. If none has that name or address any more, the interface that has
    /// this node's address is taken, with a warning: it was renamed.
    fn requested_or_renamed<'b>(
        &self,
        interfaces: &'b Interfaces<'_>,
        hints: UplinkHints<'_>,
    ) -> Result<Selected<'b>, Error> {
        let error = match self.requested(interfaces, hints.network) {
            Err(error @ Error::NoSuchInterface(_)) if !self.is_empty() => error,
            other => return other,
        };
        let Some(link) = still_there(interfaces, hints) else {
            return Err(error);
        };
        let because = "it was the interface before, and has this node's address";
        Ok(Selected {
            candidate: Some(Candidate::new(link, because)),
            warning: Some(format!("{error}; staying with {}", link.name)),
        })
    }

    /// The requested interface. There is none if no flag was given, or if the flags select only
    /// dead ends, which the warning names. An interface without an address of the network's family
    /// counts if there is no other. Instead of a port, its bridge or bond is taken.
    fn requested<'b>(
        &self,
        interfaces: &'b Interfaces<'_>,
        network: Option<&NetConf>,
    ) -> Result<Selected<'b>, Error> {
        let ipv4 = prefers_ipv4(network);
        let mut all = self.candidates(interfaces, network)?;
        if all.is_empty() {
            return match self.description() {
                Some(description) => Err(Error::NoSuchInterface(description)),
                None => Ok(Selected {
                    candidate: None,
                    warning: None,
                }),
            };
        }
        let dead = all.iter().find(|candidate| is_dead_end(candidate.link));
        let warning = dead.map(|dead| dead_end_warning(dead.link, &dead.because));
        all.retain(|candidate| !is_dead_end(candidate.link));
        for candidate in &mut all {
            let controller = interfaces.controller(candidate.link, ipv4);
            if controller.index != candidate.link.index {
                let port = &candidate.link.name;
                candidate.because = format!("{port} is a port of it: {}", candidate.because);
                candidate.link = controller;
            }
        }
        let serves = |candidate: &Candidate<'_>| interfaces.serves(candidate.link, ipv4);
        let best = all.iter().position(serves).unwrap_or_default();
        if best >= all.len() {
            return Ok(Selected {
                candidate: None,
                warning,
            });
        }
        Ok(Selected {
            candidate: Some(all.swap_remove(best)),
            warning: None,
        })
    }

    /// All interfaces that match the flags, in the order of the flags.
    fn candidates<'b>(
        &self,
        interfaces: &'b Interfaces<'_>,
        network: Option<&NetConf>,
    ) -> Result<Vec<Candidate<'b>>, Error> {
        let default = interfaces.of_default_route(prefers_ipv4(network)).ok();
        let mut found = Vec::new();
        for name in &self.names {
            found.extend(by_name_or_address(interfaces, name, default));
        }
        for pattern in &self.patterns {
            found.extend(by_pattern(interfaces, pattern, default));
        }
        if let Some(to) = self.can_reach {
            found.extend(by_path(interfaces, to)?);
        }
        if self.is_empty()
            && let Some(public) = self.public.first()
        {
            let holders = interfaces.holders(*public).into_iter();
            let because = format!("it has {public} (--public-ip)");
            found.extend(holders.map(|link| Candidate::new(link, because.clone())));
        }
        Ok(found)
    }

    /// True if no flag but `--public-ip` selects an interface.
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty() && self.can_reach.is_none()
    }

    /// The interface that the flags ask for, in words that follow "no interface". `None` without flags.
    fn description(&self) -> Option<String> {
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
}

const HAS_NODE_ADDRESS: &str = "it has the node's address";

/// The interfaces that have an address or a name. As in flannel, an empty name is the default
/// route's interface.
fn by_name_or_address<'a>(
    interfaces: &'a Interfaces<'_>,
    name: &str,
    default: Option<&'a Link>,
) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    if name.is_empty() {
        found.extend(default.map(|link| Candidate::new(link, HAS_DEFAULT_ROUTE)));
    }
    if let Ok(address) = name.parse() {
        let holders = interfaces.holders(address).into_iter();
        found.extend(holders.map(|link| Candidate {
            link,
            addresses: vec![address],
            because: format!("it has {address} (--iface)"),
        }));
    }
    let named = interfaces.links().find(|link| link.name == name);
    let because = format!("it is named {name:?} (--iface)");
    found.extend(named.map(|link| Candidate::new(link, because)));
    found
}

/// The interfaces with a matching address, and then those with a matching name. As in flannel, an
/// empty pattern is the default route's interface.
fn by_pattern<'a>(
    interfaces: &'a Interfaces<'_>,
    pattern: &Regex,
    default: Option<&'a Link>,
) -> Vec<Candidate<'a>> {
    let text = pattern.as_str();
    if text.is_empty() {
        let default = default.map(|link| Candidate::new(link, HAS_DEFAULT_ROUTE));
        return default.into_iter().collect();
    }
    let mut by_address = Vec::new();
    let mut by_name = Vec::new();
    for link in interfaces.links() {
        let matches = |address: &IpAddr| pattern.is_match(&address.to_string());
        let addresses: Vec<_> = interfaces.addresses(link).filter(matches).collect();
        if let Some(address) = addresses.first() {
            by_address.push(Candidate {
                link,
                because: format!("{address} matches {text:?} (--iface-regex)"),
                addresses,
            });
        } else if pattern.is_match(&link.name) {
            let because = format!("its name matches {text:?} (--iface-regex)");
            by_name.push(Candidate::new(link, because));
        }
    }
    by_address.append(&mut by_name);
    by_address
}

/// The interface by which packets to `to` leave; if `to` is an address of this node, those that
/// have it.
fn by_path<'a>(interfaces: &'a Interfaces<'_>, to: IpAddr) -> Result<Vec<Candidate<'a>>, Error> {
    let Some(path) = interfaces.path(to)? else {
        return Ok(Vec::new());
    };
    let links = if path.is_local {
        interfaces.holders(to)
    } else {
        interfaces.by_index(path.dev).into_iter().collect()
    };
    let because = format!("packets to {to} leave through it (--iface-can-reach)");
    let candidate = |link| Candidate {
        link,
        addresses: path.source.into_iter().collect(),
        because: because.clone(),
    };
    Ok(links.into_iter().map(candidate).collect())
}

/// The lease of the node `name`, and the interface that has its address, if there is one.
fn by_name<'a, 'b>(
    name: &str,
    interfaces: &'a Interfaces<'_>,
    snapshot: &'b Snapshot,
    warning: &mut Option<String>,
) -> Result<(&'b Lease, Option<Candidate<'a>>), Error> {
    let mut leases = snapshot.leases.iter().map(AsRef::as_ref);
    let lease = leases.find(|lease: &&Lease| lease.node == name);
    let lease = lease.ok_or_else(|| Error::NoSuchName(name.to_owned()))?;
    let mut holders = Vec::new();
    for hop in &lease.hops {
        holders.extend(interfaces.holders(hop.via));
    }
    if let Some(dead) = holders.iter().find(|link| is_dead_end(link)) {
        let reason = format!("it has the address of node {name}");
        *warning = Some(dead_end_warning(dead, &reason));
    }
    let holder = holders.into_iter().find(|link| !is_dead_end(link));
    let candidate = holder.map(|link| Candidate::new(link, HAS_NODE_ADDRESS));
    Ok((lease, candidate))
}

/// The interface that has an address by which other nodes know this one; the current uplink first.
fn still_there<'a>(interfaces: &'a Interfaces<'_>, hints: UplinkHints<'_>) -> Option<&'a Link> {
    let is_current = |link: &&Link| {
        let current = hints.current;
        current.is_some_and(|current| current.link.index == link.index)
    };
    let mut links: Vec<_> = hints
        .announced
        .all()
        .flat_map(|address| interfaces.holders(address))
        .filter(|link| !is_dead_end(link))
        .collect();
    links.sort_by_key(|link| !is_current(link));
    links.first().copied()
}

/// The interface with an address of this node, or else the default route's.
fn by_hints<'a>(
    interfaces: &'a Interfaces<'_>,
    hints: UplinkHints<'_>,
    warning: &mut Option<String>,
) -> Result<Candidate<'a>, Error> {
    let internal = hints.internal.all();
    let internal = internal.map(|address| (address, "the Node's InternalIP"));
    let announced = hints.announced.all();
    let announced = announced.map(|address| (address, "this node's announced address"));
    for (address, what) in internal.chain(announced) {
        let because = format!("it has {what}, {address}");
        match interfaces.holders(address).first() {
            Some(link) if is_dead_end(link) => {
                *warning = warning.take().or(Some(dead_end_warning(link, &because)));
            }
            Some(link) => return Ok(Candidate::new(link, because)),
            None => {}
        }
    }
    let link = interfaces.of_default_route(prefers_ipv4(hints.network))?;
    Ok(Candidate::new(link, HAS_DEFAULT_ROUTE))
}

fn dead_end_warning(link: &Link, because: &str) -> String {
    format!(
        "{} is not used as the interface to the other nodes, although {because}: it is a loopback or dummy interface",
        link.name
    )
}
