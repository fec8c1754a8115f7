//! Links: bridges, veth pairs and others.

use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};

use crate::rtnl::{Answer, Change, attributes, number, text};
use crate::{Error, Mac, Rtnl};

/// A link as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index within the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Type of the link.
    pub kind: Kind,
    /// Hardware address, if the link has an Ethernet one.
    pub mac: Option<Mac>,
    /// MTU, in bytes.
    pub mtu: u32,
    /// True if the link is set up (`IFF_UP`).
    pub is_up: bool,
    /// True if the operational state is up, so the link passes frames.
    pub is_oper_up: bool,
    /// True if the link was set to promiscuous mode.
    pub is_promiscuous: bool,
    /// Index of the link's controller (`IFLA_MASTER`), whatever its type: usually the bridge that
    /// the link is a port of.
    pub bridge: Option<u32>,
    /// Index of the bridge, bond or team that the link belongs to and that has the IP addresses in
    /// its place. `None` for a member of a VRF, which has its own addresses.
    pub controller: Option<u32>,
    /// Bridge port settings, if the link is a port of a bridge.
    pub port: Option<Port>,
    /// Index of the veth peer, in the peer's namespace.
    pub peer: Option<u32>,
    /// Id, in this namespace, of the namespace that the peer is in, if that is another one.
    pub peer_netns: Option<u32>,
    /// Link group; 0 by default.
    pub group: u32,
    /// Alias, set by the program that created the link.
    pub alias: Option<String>,
}

/// The type of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A link that leads only to its own namespace: `lo` or a dummy link.
    LocalOnly,
    /// Any other type.
    Other,
}

/// Settings of a bridge port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// True if the bridge may send a frame back through the port that it came from.
    pub hairpin: bool,
    /// True if the port is isolated from other isolated ports.
    pub isolated: bool,
}

/// Maximum length of an alias, in bytes.
pub const ALIAS_MAX: usize = 254;

impl Rtnl {
    /// Returns the link with this name, if it exists.
    pub fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let attributes = vec![LinkAttribute::IfName(name.to_owned()), no_statistics()];
        let message = RouteNetlinkMessage::GetLink(link_message(attributes));
        let answer = self.get(message, || format!("look up link {name}"))?;
        Ok(answer.as_ref().and_then(Link::read))
    }

    /// Returns all links.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        self.dump_links(vec![no_statistics()], "list links")
    }

    /// Returns the ports of a bridge.
    pub fn ports(&self, bridge: &Link) -> Result<Vec<Link>, Error> {
        let attributes = vec![LinkAttribute::Controller(bridge.index), no_statistics()];
        let doing = format!("list the ports of {}", bridge.name);
        let ports = self.dump_links(attributes, &doing)?.into_iter();
        // Older kernels do not filter the dump.
        Ok(ports
            .filter(|link| link.bridge == Some(bridge.index))
            .collect())
    }

    fn dump_links(&self, filter: Vec<LinkAttribute>, doing: &str) -> Result<Vec<Link>, Error> {
        let message = RouteNetlinkMessage::GetLink(link_message(filter));
        let links = self.dump(&message, doing)?;
        Ok(links.iter().filter_map(Link::read).collect())
    }

    /// Sets a link's MTU, in bytes.
    pub fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), Error> {
        let mut message = change_of(link);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let change = (RouteNetlinkMessage::SetLink(message), 0);
        self.change(change, || format!("set the MTU of {} to {mtu}", link.name))
    }

    /// Sets a link's hardware address. A bridge keeps an address that was set, even if that is the
    /// one it already had; an address that was not set changes with its ports. The kernel then
    /// deletes the link's neighbour entries.
    pub fn set_mac(&self, link: &Link, mac: Mac) -> Result<(), Error> {
        let mut message = change_of(link);
        message
            .attributes
            .push(LinkAttribute::Address(mac.to_vec()));
        let change = (RouteNetlinkMessage::SetLink(message), 0);
        self.change(change, || {
            format!("set the hardware address of {} to {mac}", link.name)
        })
    }

    /// Waits until the link's operational state is up, for at most `timeout`, and returns whether
    /// it is. A bridge port passes no frames until the kernel has processed that its peer went up.
    pub fn wait_until_oper_up(&self, name: &str, timeout: Duration) -> Result<bool, Error> {
        let until = Instant::now() + timeout;
        loop {
            if self.link(name)?.is_some_and(|link| link.is_oper_up) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Deletes the link with this name, and its peer if it is a veth. Returns true if the link
    /// certainly existed.
    pub fn delete_link(&self, name: &str) -> Result<bool, Error> {
        let attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let delete = || {
            let message = RouteNetlinkMessage::DelLink(link_message(attributes.clone()));
            self.change((message, 0), || format!("delete link {name}"))
        };
        let mut outcome = delete();
        if outcome.as_ref().is_err_and(Error::may_have_leftovers) {
            outcome = delete();
        }
        match outcome {
            Ok(()) => Ok(true),
            // If the reply of the first attempt was lost, it is unknown whether the link existed.
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes several links, and the peers of veths, in one step. Deleting them one by one would
    /// cost a kernel grace period each, about 16 ms.
    pub fn delete_links(&self, links: &[Link]) -> Result<(), Error> {
        /// Group of the links that are being deleted. No other link is in it.
        const DELETE_GROUP: u32 = 0x0a58_dead;
        if links.is_empty() {
            return Ok(());
        }
        let doing = || {
            let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
            format!("delete links {}", names.join(", "))
        };
        let mark_for_deletion = |link: &Link| {
            let mut message = change_of(link);
            message.attributes.push(LinkAttribute::Group(DELETE_GROUP));
            (RouteNetlinkMessage::SetLink(message), 0)
        };
        let outcomes = self.changes(links.iter().map(mark_for_deletion));
        for outcome in outcomes.map_err(|error| Error::new(doing(), error))? {
            let outcome = outcome.map_err(|error| Error::new(doing(), error));
            outcome.map(drop).or_else(ignore_gone)?;
        }
        let message =
            RouteNetlinkMessage::DelLink(link_message(vec![LinkAttribute::Group(DELETE_GROUP)]));
        // If the group is empty, all links were already gone.
        let mut outcome = self.change((message.clone(), 0), doing);
        if outcome.as_ref().is_err_and(Error::may_have_leftovers) {
            outcome = self.change((message, 0), doing);
        }
        outcome.or_else(ignore_gone)
    }
}

pub(crate) fn ignore_gone(error: Error) -> Result<(), Error> {
    if error.is_gone() { Ok(()) } else { Err(error) }
}

pub(crate) fn no_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// Returns a message for `link` that does not change anything yet.
pub(crate) fn change_of(link: &Link) -> LinkMessage {
    let mut message = link_message(Vec::new());
    message.header.index = link.index;
    message
}

pub(crate) fn set_flag(message: &mut LinkMessage, flag: LinkFlags) {
    message.header.flags |= flag;
    message.header.change_mask |= flag;
}

/// Group of a host veth that has no alias yet: the creating message cannot set the alias.
pub(crate) const INCOMPLETE_GROUP: u32 = 0x0a58_0001;

pub(crate) fn link_message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

pub(crate) fn set_up(link: &Link) -> Change {
    let mut message = change_of(link);
    set_flag(&mut message, LinkFlags::Up);
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// The kernel's `IF_OPER_UP`.
const OPERATIONALLY_UP: u8 = 6;

impl Link {
    /// True if [`Rtnl::add_veth`] was interrupted before it completed the pair, or is still working
    /// on it.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.group == INCOMPLETE_GROUP
    }

    /// True for one end of a veth pair whose other end is in another namespace, as for a pod.
    #[must_use]
    pub fn has_peer_in_other_netns(&self) -> bool {
        self.kind == Kind::Veth && self.peer_netns.is_some()
    }

    /// True if the link may lead to other nodes. A bridge does not if all its ports among `links`
    /// lead to other namespaces on this node.
    #[must_use]
    pub fn may_be_uplink(&self, links: &[Self]) -> bool {
        let is_port = |link: &&Self| link.bridge == Some(self.index);
        self.kind != Kind::Bridge
            || links
                .iter()
                .filter(is_port)
                .any(|port| !port.has_peer_in_other_netns())
    }

    /// Parses a link.
    pub(crate) fn read(answer: &Answer) -> Option<Self> {
        // The kernel's linux/if_link.h.
        const ADDRESS: u16 = 1;
        const IFNAME: u16 = 3;
        const MTU: u16 = 4;
        const LINK: u16 = 5;
        const MASTER: u16 = 10;
        const OPERSTATE: u16 = 16;
        const LINKINFO: u16 = 18;
        const IFALIAS: u16 = 20;
        const GROUP: u16 = 27;
        const LINK_NETNSID: u16 = 37;
        // Family, type, index, flags, mask.
        let (head, attributes) = answer.parts::<16>()?;
        let flags = LinkFlags::from_bits_retain(number(&head[8..]));
        let mut link = Self {
            index: number(&head[4..]),
            name: String::new(),
            kind: if flags.contains(LinkFlags::Loopback) {
                Kind::LocalOnly
            } else {
                Kind::Other
            },
            mac: None,
            mtu: 0,
            is_up: flags.contains(LinkFlags::Up),
            is_oper_up: false,
            is_promiscuous: flags.contains(LinkFlags::Promisc),
            bridge: None,
            controller: None,
            port: None,
            peer: None,
            peer_netns: None,
            group: 0,
            alias: None,
        };
        for (kind, value) in attributes {
            match kind {
                IFNAME => link.name = text(value),
                ADDRESS => link.mac = Mac::from_slice(value),
                MTU => link.mtu = number(value),
                MASTER => link.bridge = Some(number(value)),
                LINK => link.peer = Some(number(value)),
                OPERSTATE => link.is_oper_up = value == [OPERATIONALLY_UP],
                IFALIAS => link.alias = Some(text(value)),
                GROUP => link.group = number(value),
                LINK_NETNSID => link.peer_netns = Some(number(value)),
                LINKINFO => link.read_info(value),
                _ => {}
            }
        }
        Some(link)
    }

    fn read_info(&mut self, info: &[u8]) {
        const KIND: u16 = 1;
        const SLAVE_KIND: u16 = 4;
        const SLAVE_DATA: u16 = 5;
        let mut is_port = false;
        for (kind, value) in attributes(info) {
            match kind {
                KIND => {
                    self.kind = match &*text(value) {
                        "bridge" => Kind::Bridge,
                        "veth" => Kind::Veth,
                        "dummy" => Kind::LocalOnly,
                        _ => Kind::Other,
                    };
                }
                SLAVE_KIND => {
                    let kind = text(value);
                    is_port = kind == "bridge";
                    // A member of a VRF has its own addresses.
                    self.controller = self.bridge.filter(|_| kind != "vrf");
                }
                SLAVE_DATA if is_port => self.port = Some(Port::read(value)),
                _ => {}
            }
        }
    }
}

impl Port {
    fn read(data: &[u8]) -> Self {
        const HAIRPIN: u16 = 4;
        const ISOLATED: u16 = 33;
        let mut port = Self::default();
        for (kind, value) in attributes(data) {
            let is_on = value.first() == Some(&1);
            match kind {
                HAIRPIN => port.hairpin = is_on,
                ISOLATED => port.isolated = is_on,
                _ => {}
            }
        }
        port
    }
}
