//! IP addresses of links.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use crate::link::set_up;
use crate::route_change::new_route;
use crate::rtnl::{Answer, Change, Request, ip, number};
use crate::watch::Watch;
use crate::{Error, Link, Route, RouteOptions, Rtnl};

/// The configuration of a container's interface, applied by [`Rtnl::bring_up`].
#[derive(Clone, Copy, Debug)]
pub struct InterfaceSetup<'a> {
    /// The addresses of the interface, with their prefix lengths.
    pub addresses: &'a [IpNetwork],
    /// True if duplicate address detection runs for IPv6 addresses: an address is not used until
    /// the kernel has found no duplicate.
    pub detect_duplicates: bool,
    /// True if the kernel announces the IPv4 addresses when the link goes up (gratuitous ARP), and
    /// not only when the hardware address changes later. The bridge floods the announcement to its
    /// ports, which costs 4 µs for each port.
    pub announce: bool,
    /// The routes of the interface.
    pub routes: &'a [(Route, RouteOptions)],
    /// Routes of an address family in which the interface has no address. Those that the kernel
    /// rejects are skipped.
    pub optional_routes: &'a [(Route, RouteOptions)],
}

/// An address of this namespace that may be published to other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    /// The address with its prefix length.
    pub network: IpNetwork,
    /// True if the address has no lifetime: it stays until it is deleted.
    pub is_permanent: bool,
    /// True for a temporary IPv6 address (privacy extensions, RFC 8981).
    pub is_temporary: bool,
    /// True if the address is deprecated: new connections must not use it as their source.
    pub is_deprecated: bool,
}

/// One step of [`Rtnl::bring_up`].
enum Step<'a> {
    Announce,
    Address(IpNetwork),
    Up,
    Route(&'a Route, &'a RouteOptions),
    OptionalRoute(&'a Route, &'a RouteOptions),
}

impl Rtnl {
    /// Returns the addresses of `link`, with their prefix lengths.
    pub fn addresses(&self, link: &Link) -> Result<Vec<IpNetwork>, Error> {
        let found = self.dump_addresses(link.index)?.into_iter();
        Ok(found.map(|found| found.address).collect())
    }

    /// Returns the addresses of all links that may be published, of every scope, in the kernel's
    /// order. Loopback addresses are left out, and so are IPv6 addresses for which duplicate
    /// address detection failed.
    pub fn all_addresses(&self) -> Result<Vec<Address>, Error> {
        let found = self.dump_addresses(0)?.into_iter();
        let usable = found.filter(|found| {
            let is_elsewhere = found.flags.contains(AddressFlags::Dadfailed);
            !found.address.ip().is_loopback() && !is_elsewhere
        });
        let address = |found: AddressEntry| Address {
            link: found.index,
            network: found.address,
            is_permanent: found.flags.contains(AddressFlags::Permanent),
            is_temporary: found.address.is_ipv6() && found.flags.contains(AddressFlags::Secondary),
            is_deprecated: found.flags.contains(AddressFlags::Deprecated),
        };
        Ok(usable.map(address).collect())
    }

    /// Returns all addresses of this namespace, loopback addresses included.
    pub fn local_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let found = self.dump_addresses(0)?.into_iter();
        Ok(found.map(|found| found.address.ip()).collect())
    }

    /// Returns the IPv6 addresses of `link` that have a lifetime. Routers assign such addresses,
    /// and the kernel keeps them for a while after the router is gone.
    pub(crate) fn addresses_with_lifetime(&self, link: &Link) -> Result<Vec<IpNetwork>, Error> {
        let found = self.dump_addresses(link.index)?.into_iter();
        let is_temporary = |found: &AddressEntry| {
            found.address.is_ipv6() && !found.flags.contains(AddressFlags::Permanent)
        };
        Ok(found.filter(is_temporary).map(|f| f.address).collect())
    }

    /// Returns the addresses of a veth's peer in another namespace, or none if that namespace is
    /// gone.
    pub fn addresses_of_peer(&self, veth: &Link) -> Result<Vec<IpAddr>, Error> {
        let (Some(peer), Some(netns)) = (veth.peer, veth.peer_netns) else {
            return Ok(Vec::new());
        };
        let doing = format!("list the addresses of the peer of {}", veth.name);
        match self.dump(&PeerAddresses { peer, netns }, &doing) {
            Ok(answers) => {
                let found = answers.iter().filter_map(AddressEntry::read);
                Ok(found
                    .filter(|found| found.index == peer)
                    .map(|found| found.address.ip())
                    .collect())
            }
            Err(error) if error.is_namespace_missing() || error.is_gone() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn dump_addresses(&self, index: u32) -> Result<Vec<AddressEntry>, Error> {
        let mut request = AddressMessage::default();
        request.header.index = index;
        let message = RouteNetlinkMessage::GetAddress(request);
        let addresses = self.dump(&message, "list addresses")?;
        Ok(addresses.iter().filter_map(AddressEntry::read).collect())
    }

    /// Adds `address` to `link`, without duplicate address detection for IPv6. Succeeds if the link
    /// already has the address.
    pub fn ensure_address(&self, link: &Link, address: IpNetwork) -> Result<(), Error> {
        let doing = || format!("add address {address} to {}", link.name);
        match self.change(new_address(link, address, false), doing) {
            Err(error) if error.already_exists() => Ok(()),
            other => other,
        }
    }

    /// Removes `address` from `link`. Succeeds if the link does not have it.
    pub fn delete_address(&self, link: &Link, address: IpNetwork) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(address_message(link, address));
        let doing = || format!("delete address {address} from {}", link.name);
        match self.change((message, 0), doing) {
            // Another process has already removed it.
            Err(error) if error.is_gone() => Ok(()),
            other => other,
        }
    }

    /// Adds the addresses to a link that is down, sets it up and adds its routes, in this order and
    /// in one send. An IPv4 route takes precedence over an existing route to the same destination;
    /// for IPv6, the kernel uses both.
    pub fn bring_up(&self, link: &Link, setup: InterfaceSetup<'_>) -> Result<(), Error> {
        let InterfaceSetup {
            addresses, routes, ..
        } = setup;
        let mut steps = Vec::new();
        let has_ipv4 = addresses.iter().any(IpNetwork::is_ipv4);
        if setup.announce && has_ipv4 {
            steps.push(Step::Announce);
        }
        steps.extend(addresses.iter().map(|address| Step::Address(*address)));
        steps.push(Step::Up);
        // The link is up already, so this takes effect only when the hardware address changes
        // later.
        if !setup.announce && has_ipv4 {
            steps.push(Step::Announce);
        }
        steps.extend(
            routes
                .iter()
                .map(|(route, options)| Step::Route(route, options)),
        );
        let optional = setup.optional_routes.iter();
        steps.extend(optional.map(|(route, options)| Step::OptionalRoute(route, options)));
        let change = |step: &Step<'_>| match step {
            Step::Announce => announce(link),
            Step::Address(address) => new_address(link, *address, setup.detect_duplicates),
            Step::Up => set_up(link),
            // Without NLM_F_APPEND and NLM_F_EXCL, as in the `bridge` plugin since 1.6.0: an IPv4
            // route is placed before those to the same destination, an IPv6 route beside them.
            Step::Route(route, options) | Step::OptionalRoute(route, options) => {
                new_route(route, options, 0)
            }
        };
        let outcomes = self
            .changes(steps.iter().map(change))
            .map_err(|error| Error::new(format!("set up {}", link.name), error))?;
        for (step, outcome) in steps.iter().zip(outcomes) {
            if let Err(error) = outcome {
                let error = Error::new(format!("{step} on {}", link.name), error);
                let is_harmless = match step {
                    Step::OptionalRoute(..) => error.already_exists() || error.is_unroutable(),
                    Step::Route(..) => error.already_exists(),
                    _ => false,
                };
                if !is_harmless {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Waits until duplicate address detection has finished for every IPv6 address of `link`, woken
    /// by the kernel's address events.
    ///
    /// Fails if a duplicate is found, or if detection takes longer than `timeout`.
    pub fn wait_for_detection(
        &self,
        watch: &Watch,
        link: &Link,
        timeout: Duration,
    ) -> Result<(), Error> {
        let doing = || format!("wait for duplicate address detection on {}", link.name);
        let until = std::time::Instant::now() + timeout;
        loop {
            let mut pending = None;
            for found in self.dump_addresses(link.index)? {
                let ip = found.address.ip();
                if found.flags.contains(AddressFlags::Dadfailed) {
                    return Err(Error::new(doing(), format!("{ip} is in use elsewhere")));
                }
                let is_tentative = found.flags.contains(AddressFlags::Tentative);
                if is_tentative && found.scope == AddressScope::Universe {
                    pending = Some(ip);
                }
            }
            let Some(pending) = pending else {
                return Ok(());
            };
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                let reason = format!("{pending} is still tentative after {timeout:?}");
                return Err(Error::new(doing(), reason));
            }
            watch.wait(left)?;
        }
    }
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Announce => f.write_str("set arp_notify"),
            Self::Address(address) => write!(f, "add address {address}"),
            Self::Up => f.write_str("set the link up"),
            Self::Route(route, _) | Self::OptionalRoute(route, _) => write!(f, "add route {route}"),
        }
    }
}

/// Makes the kernel announce the link's IPv4 addresses when the link goes up or its hardware
/// address changes: a previous user of an address may have had another hardware address. This sets
/// the sysctl `arp_notify` without entering the namespace.
fn announce(link: &Link) -> Change {
    let mut conf = InetDevConf::default();
    conf.arp_notify = 1;
    let mut message = LinkMessage::default();
    message.header.index = link.index;
    let inet = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]);
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![inet]));
    (RouteNetlinkMessage::SetLink(message), 0)
}

fn new_address(link: &Link, address: IpNetwork, detect_duplicates: bool) -> Change {
    let mut message = address_message(link, address);
    if address.is_ipv6() && !detect_duplicates {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    (
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn address_message(link: &Link, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = link.index;
    message.header.prefix_len = address.prefix();
    message.header.family = match address {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    let attributes = &mut message.attributes;
    attributes.push(AddressAttribute::Address(address.ip()));
    attributes.push(AddressAttribute::Local(address.ip()));
    // A network with only one or two addresses has no broadcast address.
    if let IpNetwork::V4(v4) = address
        && v4.prefix() < 31
    {
        attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
    }
    message
}

/// A dump request for the addresses of a link in another namespace. netlink-packet-route does not
/// have the attribute for it.
#[derive(Clone, Copy)]
struct PeerAddresses {
    peer: u32,
    netns: u32,
}

impl Request for PeerAddresses {
    fn write(self, flags: u16, sequence: u32, buffer: &mut Vec<u8>) {
        /// The kernel's `RTM_GETADDR` and `IFA_TARGET_NETNSID`.
        const GET_ADDRESS: u16 = 22;
        const TARGET_NETNSID: u16 = 10;
        // Header, `ifaddrmsg` with its index last, one attribute of four bytes.
        buffer.extend(32u32.to_ne_bytes());
        buffer.extend(GET_ADDRESS.to_ne_bytes());
        buffer.extend(flags.to_ne_bytes());
        buffer.extend(sequence.to_ne_bytes());
        buffer.extend([0; 8]);
        buffer.extend(self.peer.to_ne_bytes());
        buffer.extend(8u16.to_ne_bytes());
        buffer.extend(TARGET_NETNSID.to_ne_bytes());
        buffer.extend(self.netns.to_ne_bytes());
    }
}

/// An address as the kernel reports it.
struct AddressEntry {
    index: u32,
    address: IpNetwork,
    flags: AddressFlags,
    scope: AddressScope,
}

impl AddressEntry {
    /// Parses an address. Returns `None` if the family is neither IPv4 nor IPv6.
    fn read(answer: &Answer) -> Option<Self> {
        // The kernel's linux/if_addr.h.
        const ADDRESS: u16 = 1;
        const LOCAL: u16 = 2;
        const FLAGS: u16 = 8;
        // Family, prefix length, flags, scope, index.
        let (head, attributes) = answer.parts::<8>()?;
        let (mut address, mut local, mut flags) = (None, None, u32::from(head[2]));
        for (kind, value) in attributes {
            match kind {
                ADDRESS => address = ip(value),
                LOCAL => local = ip(value),
                FLAGS => flags = number(value),
                _ => {}
            }
        }
        // On links with a peer address, IFA_LOCAL is ours and IFA_ADDRESS is the peer's. IPv6 often
        // has only IFA_ADDRESS.
        Some(Self {
            index: number(&head[4..]),
            address: IpNetwork::new(local.or(address)?, head[1]).ok()?,
            flags: AddressFlags::from_bits_retain(flags),
            scope: AddressScope::from(head[3]),
        })
    }
}

/// Decodes an answer, for a test with damaged ones.
#[cfg(test)]
pub(crate) fn decode(answer: &Answer) {
    AddressEntry::read(answer);
}
