//! Addresses of links.

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
use crate::route::{RouteOptions, new_route};
use crate::rtnl::{Answer, Change, Request, ip, number};
use crate::watch::Watch;
use crate::{Error, Link, Route, Rtnl};

/// What a container's interface is given when it goes up.
#[derive(Clone, Copy, Debug)]
pub struct Furnishing<'a> {
    /// Its addresses, with their prefix lengths.
    pub addresses: &'a [IpNetwork],
    /// Whether an IPv6 address is held back until no duplicate of it is found.
    pub detect_duplicates: bool,
    /// Whether the neighbours are told of the IPv4 addresses, and not only when they change. The
    /// kernel floods the bridge with it, at 4 µs for each port.
    pub announce: bool,
    /// Its routes.
    pub routes: &'a [(Route, RouteOptions)],
    /// Routes of a family that it has no address in: those that the kernel does not take are
    /// left out.
    pub optional_routes: &'a [(Route, RouteOptions)],
}

/// An address of this namespace that others may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The number of its link.
    pub link: u32,
    /// The address, with its prefix length.
    pub network: IpNetwork,
    /// Whether it stays until somebody takes it away.
    pub is_permanent: bool,
    /// Whether it is one of those that IPv6 changes for privacy.
    pub is_temporary: bool,
    /// Whether new connections are not to come from it any more.
    pub is_deprecated: bool,
}

/// One change of a furnishing.
enum Step<'a> {
    Announce,
    Address(IpNetwork),
    Up,
    Route(&'a Route, &'a RouteOptions),
    OptionalRoute(&'a Route, &'a RouteOptions),
}

impl Rtnl {
    /// The addresses of `link`, with their prefix lengths.
    pub fn addresses(&self, link: &Link) -> Result<Vec<IpNetwork>, Error> {
        let found = self.dump_addresses(link.index)?.into_iter();
        Ok(found.map(|found| found.address).collect())
    }

    /// Those of every link that others may be told, whatever scope somebody gave them, and that nobody
    /// else was found to have; in the kernel's order.
    pub fn all_addresses(&self) -> Result<Vec<Address>, Error> {
        let found = self.dump_addresses(0)?.into_iter();
        let usable = found.filter(|found| {
            let is_elsewhere = found.flags.contains(AddressFlags::Dadfailed);
            !found.address.ip().is_loopback() && !is_elsewhere
        });
        let address = |found: Found| Address {
            link: found.index,
            network: found.address,
            is_permanent: found.flags.contains(AddressFlags::Permanent),
            is_temporary: found.address.is_ipv6() && found.flags.contains(AddressFlags::Secondary),
            is_deprecated: found.flags.contains(AddressFlags::Deprecated),
        };
        Ok(usable.map(address).collect())
    }

    /// The IPv6 addresses of `link` that somebody gave it for a time: routers do, and kernels keep them
    /// for a while after that.
    pub(crate) fn temporary_addresses(&self, link: &Link) -> Result<Vec<IpNetwork>, Error> {
        let found = self.dump_addresses(link.index)?.into_iter();
        let is_temporary = |found: &Found| {
            found.address.is_ipv6() && !found.flags.contains(AddressFlags::Permanent)
        };
        Ok(found.filter(is_temporary).map(|f| f.address).collect())
    }

    /// The addresses of a veth's peer in another namespace; none where that namespace is gone.
    pub fn addresses_of_peer(&self, veth: &Link) -> Result<Vec<IpAddr>, Error> {
        let (Some(peer), Some(netns)) = (veth.peer, veth.peer_netns) else {
            return Ok(Vec::new());
        };
        let doing = format!("list the addresses of the peer of {}", veth.name);
        match self.dump(&PeerAddresses { peer, netns }, &doing) {
            Ok(answers) => {
                let found = answers.iter().filter_map(Found::read);
                Ok(found
                    .filter(|found| found.index == peer)
                    .map(|found| found.address.ip())
                    .collect())
            }
            Err(error) if error.is_no_namespace() || error.is_gone() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn dump_addresses(&self, index: u32) -> Result<Vec<Found>, Error> {
        let mut request = AddressMessage::default();
        request.header.index = index;
        let message = RouteNetlinkMessage::GetAddress(request);
        let addresses = self.dump(&message, "list addresses")?;
        Ok(addresses.iter().filter_map(Found::read).collect())
    }

    /// Adds `address` to `link`. IPv6 is not held back until no duplicate is found. An address
    /// that is there already is fine.
    pub fn ensure_address(&self, link: &Link, address: IpNetwork) -> Result<(), Error> {
        let doing = || format!("add address {address} to {}", link.name);
        match self.change(new_address(link, address, false), doing) {
            Err(error) if error.is_exists() => Ok(()),
            other => other,
        }
    }

    /// Takes `address` from `link`. One that is gone already is fine.
    pub fn delete_address(&self, link: &Link, address: IpNetwork) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(address_message(link, address));
        let doing = || format!("delete address {address} from {}", link.name);
        match self.change((message, 0), doing) {
            // Another process was faster.
            Err(error) if error.is_gone() => Ok(()),
            other => other,
        }
    }

    /// Gives a link that is down its addresses, sets it up and adds its routes: in this order,
    /// in one send. A route to where another one leads already comes before that one in IPv4; in
    /// IPv6 the kernel uses both.
    pub fn bring_up(&self, link: &Link, furnishing: Furnishing<'_>) -> Result<(), Error> {
        let Furnishing {
            addresses, routes, ..
        } = furnishing;
        let mut steps = Vec::new();
        let has_ipv4 = addresses.iter().any(IpNetwork::is_ipv4);
        if furnishing.announce && has_ipv4 {
            steps.push(Step::Announce);
        }
        steps.extend(addresses.iter().map(|address| Step::Address(*address)));
        steps.push(Step::Up);
        // For who changes the hardware address later.
        if !furnishing.announce && has_ipv4 {
            steps.push(Step::Announce);
        }
        steps.extend(
            routes
                .iter()
                .map(|(route, options)| Step::Route(route, options)),
        );
        let optional = furnishing.optional_routes.iter();
        steps.extend(optional.map(|(route, options)| Step::OptionalRoute(route, options)));
        let change = |step: &Step<'_>| match step {
            Step::Announce => announce(link),
            Step::Address(address) => new_address(link, *address, furnishing.detect_duplicates),
            Step::Up => set_up(link),
            // Neither appended nor exclusive, as the `bridge` plugin has it since 1.6.0: an IPv4
            // route comes before those to the same destination, an IPv6 one beside them.
            Step::Route(route, options) | Step::OptionalRoute(route, options) => {
                new_route(route, options, 0)
            }
        };
        let outcomes = self
            .changes(steps.iter().map(change))
            .map_err(|error| Error::new(format!("set up {}", link.name), error))?;
        for (step, outcome) in steps.iter().zip(outcomes) {
            if let Err(refusal) = outcome {
                let error = Error::new(format!("{step} on {}", link.name), refusal);
                let is_harmless = match step {
                    Step::OptionalRoute(..) => error.is_exists() || error.is_unroutable(),
                    Step::Route(..) => error.is_exists(),
                    _ => false,
                };
                if !is_harmless {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Waits until duplicate address detection is through with every IPv6 address of `link`,
    /// by the kernel's own notices.
    ///
    /// Errors when a duplicate was found, and when it takes longer than `patience`.
    pub fn wait_for_detection(
        &self,
        watch: &Watch,
        link: &Link,
        patience: Duration,
    ) -> Result<(), Error> {
        let doing = || format!("wait for duplicate address detection on {}", link.name);
        let until = std::time::Instant::now() + patience;
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
                let reason = format!("{pending} is still tentative after {patience:?}");
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

/// Has the kernel tell the neighbours when the link goes up: whoever had an address before may
/// have had another hardware address. The same as the setting `arp_notify`, without a visit to
/// the namespace.
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
    // A network of two addresses or one has no broadcast address.
    if let IpNetwork::V4(v4) = address
        && v4.prefix() < 31
    {
        attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
    }
    message
}

/// Asks for the addresses of a link in another namespace. netlink-packet-route knows no such
/// attribute.
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

/// An address as the kernel has it.
struct Found {
    index: u32,
    address: IpNetwork,
    flags: AddressFlags,
    scope: AddressScope,
}

impl Found {
    /// Reads what the kernel says of an address; nothing where it is none of the two families.
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
        // On links with a peer address, the local one is ours; IPv6 often has only the other.
        Some(Self {
            index: number(&head[4..]),
            address: IpNetwork::new(local.or(address)?, head[1]).ok()?,
            flags: AddressFlags::from_bits_retain(flags),
            scope: AddressScope::from(head[3]),
        })
    }
}
