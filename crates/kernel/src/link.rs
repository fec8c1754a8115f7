//! Links: bridges, veth pairs, and what else there is.

use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};

use crate::rtnl::{Answer, Change, attributes, number, text};
use crate::{Error, Mac, Netns, Rtnl};

/// A link as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number within the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its hardware address, if it has an Ethernet one.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub is_up: bool,
    /// Whether frames pass it: its operational state is up.
    pub is_passing: bool,
    /// Whether it was told to take every frame.
    pub is_promiscuous: bool,
    /// The number of the bridge that it is a port of.
    pub bridge: Option<u32>,
    /// The number of the link that it is a part of, and that has the addresses for both: a bridge,
    /// a bond, a team.
    pub controller: Option<u32>,
    /// How the bridge treats it, where it is a port of one.
    pub port: Option<Port>,
    /// The number of its peer, in the peer's namespace.
    pub peer: Option<u32>,
    /// The number that this namespace has for the one that the peer is in, where that is another.
    pub peer_netns: Option<u32>,
    /// The group that it is in: 0 unless somebody says otherwise.
    pub group: u32,
    /// What its maker wrote on it.
    pub alias: Option<String>,
}

/// What a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bridge.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// What leads nowhere but to this namespace itself: `lo`, or a dummy.
    DeadEnd,
    /// Anything else.
    Other,
}

/// How a bridge treats a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Whether the bridge sends a frame back through the port that it came from.
    pub hairpin: bool,
    /// Whether the port is kept from talking to other isolated ports.
    pub isolated: bool,
}

/// A bridge to be there.
#[derive(Clone, Copy, Debug)]
pub struct Bridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address, given at creation: from then on neither its ports nor udev move it.
    pub mac: Option<Mac>,
    /// Its MTU in bytes; by default what it has, or the kernel's.
    pub mtu: Option<u32>,
    /// Whether it is told to take every frame. Never taken back.
    pub promiscuous: bool,
}

/// A veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// The host end's name.
    pub host: &'a str,
    /// The host end's hardware address.
    pub host_mac: Mac,
    /// The container end's name.
    pub container: &'a str,
    /// The container end's hardware address.
    pub container_mac: Mac,
    /// The namespace in which the container end is made.
    pub netns: &'a Netns,
    /// MTU of both ends in bytes; by default the kernel's.
    pub mtu: Option<u32>,
    /// The bridge that the host end becomes a port of.
    pub bridge: &'a Link,
    /// How the bridge treats it.
    pub port: Port,
    /// What to write on the host end.
    pub alias: &'a str,
}

/// The longest alias that the kernel takes, in bytes.
pub const ALIAS_MAX: usize = 254;

impl Rtnl {
    /// The link called `name`, if there is one.
    pub fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let attributes = vec![LinkAttribute::IfName(name.to_owned()), no_statistics()];
        let message = RouteNetlinkMessage::GetLink(link_message(attributes));
        let answer = self.get(message, || format!("look up link {name}"))?;
        Ok(answer.as_ref().and_then(Link::read))
    }

    /// Every link.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        self.dump_links(vec![no_statistics()], "list links")
    }

    /// The ports of a bridge.
    pub fn ports(&self, bridge: &Link) -> Result<Vec<Link>, Error> {
        let attributes = vec![LinkAttribute::Controller(bridge.index), no_statistics()];
        let doing = format!("list the ports of {}", bridge.name);
        let ports = self.dump_links(attributes, &doing)?.into_iter();
        // The kernel's filter is a recent one.
        Ok(ports
            .filter(|link| link.bridge == Some(bridge.index))
            .collect())
    }

    fn dump_links(&self, filter: Vec<LinkAttribute>, doing: &str) -> Result<Vec<Link>, Error> {
        let message = RouteNetlinkMessage::GetLink(link_message(filter));
        let links = self.dump(&message, doing)?;
        Ok(links.iter().filter_map(Link::read).collect())
    }

    /// Makes sure that the bridge is there and up: one request when it is. Also says whether it
    /// is new, and so has the hardware address and the MTU that were asked for.
    ///
    /// Errors when something else has its name.
    pub fn ensure_bridge(&self, bridge: Bridge<'_>) -> Result<(Link, bool), Error> {
        let Bridge { name, .. } = bridge;
        if let Some(link) = self.link(name)? {
            return Ok((self.adopt_bridge(link, bridge)?, false));
        }
        let created = self.change(new_bridge(bridge), || format!("create bridge {name}"));
        // Where it failed, another process may have been faster, or the answer may be lost.
        let is_new = created.is_ok();
        match self.link(name)? {
            Some(link) => Ok((self.adopt_bridge(link, bridge)?, is_new)),
            None => Err(created.err().unwrap_or_else(|| {
                Error::new(format!("create bridge {name}"), "it was deleted at once")
            })),
        }
    }

    fn adopt_bridge(&self, link: Link, bridge: Bridge<'_>) -> Result<Link, Error> {
        let name = &link.name;
        if link.kind != Kind::Bridge {
            let reason = format!("{name} already exists but is not a bridge");
            return Err(Error::new(format!("use {name} as the bridge"), reason));
        }
        let mut message = change_of(&link);
        if !link.is_up {
            set_flag(&mut message, LinkFlags::Up);
        }
        if bridge.promiscuous && !link.is_promiscuous {
            set_flag(&mut message, LinkFlags::Promisc);
        }
        if message != change_of(&link) {
            let change = (RouteNetlinkMessage::SetLink(message), 0);
            self.change(change, || format!("set bridge {name} up"))?;
        }
        Ok(link)
    }

    /// Sets a link's MTU, in bytes.
    pub fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), Error> {
        let mut message = change_of(link);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        let change = (RouteNetlinkMessage::SetLink(message), 0);
        self.change(change, || format!("set the MTU of {} to {mtu}", link.name))
    }

    /// Sets a link's hardware address. A bridge keeps one that was set, even the one that it had:
    /// one that nobody set changes with its ports. What is known of neighbours on it is forgotten.
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

    /// Has the bridge treat its ports like this. One that is gone meanwhile is fine.
    pub fn set_ports<'a>(
        &self,
        ports: impl Iterator<Item = &'a Link>,
        port: Port,
    ) -> Result<(), Error> {
        let change = |link: &Link| {
            let mut message = change_of(link);
            message.attributes.push(port_data(port));
            (RouteNetlinkMessage::NewLink(message), 0)
        };
        let outcomes = self.changes(ports.map(change));
        for outcome in outcomes.map_err(|error| Error::new("set ports up", error))? {
            let outcome = outcome.map_err(|refusal| Error::new("set a port up", refusal));
            outcome.map(drop).or_else(unless_gone)?;
        }
        Ok(())
    }

    /// Makes a veth pair where it belongs: both names, hardware addresses, MTU, the host end
    /// up and on its bridge, the container end in its namespace. Gives the container's end, which
    /// `container` is asked for where the kernel does not tell (before 6.2).
    ///
    /// On failure nothing is left, or the error says that something [may remain](Error::may_remain).
    /// Until the pair is complete, its host end is [marked](Link::is_half_made).
    pub fn add_veth(&self, veth: &Veth<'_>, container: &Self) -> Result<Link, Error> {
        let Veth { host, .. } = veth;
        let doing = || format!("create veth {host} with peer {}", veth.container);
        let made = match self.change_echoed(new_veth(veth), doing) {
            // Before, there was no such link in the container.
            Err(error) if error.may_remain() => match self.is_pair(veth, container) {
                Ok(true) => None,
                Ok(false) => return Err(Error::new(doing(), "the kernel did not do it")),
                Err(_) => return Err(error),
            },
            other => other?,
        };
        let rest = || -> Result<Link, Error> {
            let vanished = |what: &str| {
                let doing = format!("look up the {what} end of veth {host}");
                Error::new(doing, "it vanished while it was set up")
            };
            let host = match made.as_ref().and_then(Link::read) {
                Some(host) => host,
                None => self.link(host)?.ok_or_else(|| vanished("host"))?,
            };
            // The creating message ignores a port's settings without a word. They follow by the
            // link's number: by a name that is gone, kernels before 5.19 would change every link
            // of the group.
            let doing = || {
                format!(
                    "set up veth {} as a port of {}",
                    host.name, veth.bridge.name
                )
            };
            self.change(set_port(&host, veth), doing)?;
            match peer_of(&host, veth) {
                Some(link) => Ok(link),
                None => container
                    .link(veth.container)?
                    .ok_or_else(|| vanished("container")),
            }
        };
        rest().map_err(|error| match self.delete_link(host) {
            Ok(_) => error,
            Err(_) => error.remaining(),
        })
    }

    /// Whether the two ends of `veth` are there, and each other's.
    fn is_pair(&self, veth: &Veth<'_>, container: &Self) -> Result<bool, Error> {
        let (host, inside) = (self.link(veth.host)?, container.link(veth.container)?);
        Ok(host.zip(inside).is_some_and(|(host, inside)| {
            host.peer == Some(inside.index) && inside.peer == Some(host.index)
        }))
    }

    /// Waits until frames pass a link, no longer than `patience`, and says whether they do. A port
    /// of a bridge passes none until the kernel has taken notice that its other end went up.
    pub fn wait_until_passing(&self, name: &str, patience: Duration) -> Result<bool, Error> {
        let until = Instant::now() + patience;
        loop {
            if self.link(name)?.is_some_and(|link| link.is_passing) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Deletes the link called `name`, and the other end where it is one of a pair. Says
    /// whether there was one for certain.
    pub fn delete_link(&self, name: &str) -> Result<bool, Error> {
        let attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let delete = || {
            let message = RouteNetlinkMessage::DelLink(link_message(attributes.clone()));
            self.change((message, 0), || format!("delete link {name}"))
        };
        let mut outcome = delete();
        if outcome.as_ref().is_err_and(Error::may_remain) {
            outcome = delete();
        }
        match outcome {
            Ok(()) => Ok(true),
            // Where an answer is lost, nobody knows whether there was one.
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes many links, and the other ends of pairs, in one step: each one on its own would
    /// cost a grace period of the kernel's, some 16 ms.
    pub fn delete_links(&self, links: &[Link]) -> Result<(), Error> {
        /// The links' group while they are being deleted; no other link is in it.
        const DOOMED: u32 = 0x0a58_dead;
        if links.is_empty() {
            return Ok(());
        }
        let doing = || {
            let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
            format!("delete links {}", names.join(", "))
        };
        let doom = |link: &Link| {
            let mut message = change_of(link);
            message.attributes.push(LinkAttribute::Group(DOOMED));
            (RouteNetlinkMessage::SetLink(message), 0)
        };
        let outcomes = self.changes(links.iter().map(doom));
        for outcome in outcomes.map_err(|error| Error::new(doing(), error))? {
            let outcome = outcome.map_err(|refusal| Error::new(doing(), refusal));
            outcome.map(drop).or_else(unless_gone)?;
        }
        let message =
            RouteNetlinkMessage::DelLink(link_message(vec![LinkAttribute::Group(DOOMED)]));
        // Without any in the group, they all were gone already.
        let mut outcome = self.change((message.clone(), 0), doing);
        if outcome.as_ref().is_err_and(Error::may_remain) {
            outcome = self.change((message, 0), doing);
        }
        outcome.or_else(unless_gone)
    }
}

pub(crate) fn unless_gone(error: Error) -> Result<(), Error> {
    if error.is_gone() { Ok(()) } else { Err(error) }
}

fn no_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// A message that changes nothing of `link` yet.
fn change_of(link: &Link) -> LinkMessage {
    let mut message = link_message(Vec::new());
    message.header.index = link.index;
    message
}

fn set_flag(message: &mut LinkMessage, flag: LinkFlags) {
    message.header.flags |= flag;
    message.header.change_mask |= flag;
}

/// The group of a host veth that has no alias yet: the creating message cannot carry one.
const HALF_MADE: u32 = 0x0a58_0001;

/// The container's end, where the kernel says of the host's which number it has.
fn peer_of(host: &Link, veth: &Veth<'_>) -> Option<Link> {
    Some(Link {
        index: host.peer?,
        name: veth.container.to_owned(),
        mac: Some(veth.container_mac),
        is_up: false,
        is_passing: false,
        bridge: None,
        port: None,
        peer: Some(host.index),
        peer_netns: None,
        group: 0,
        alias: None,
        ..host.clone()
    })
}

fn link_message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

pub(crate) fn set_up(link: &Link) -> Change {
    let mut message = change_of(link);
    set_flag(&mut message, LinkFlags::Up);
    (RouteNetlinkMessage::SetLink(message), 0)
}

fn new_bridge(bridge: Bridge<'_>) -> Change {
    let mut message = link_message(vec![
        LinkAttribute::IfName(bridge.name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ]);
    let attributes = &mut message.attributes;
    attributes.extend(bridge.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes.extend(bridge.mtu.map(LinkAttribute::Mtu));
    set_flag(&mut message, LinkFlags::Up);
    if bridge.promiscuous {
        set_flag(&mut message, LinkFlags::Promisc);
    }
    (
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn new_veth(veth: &Veth<'_>) -> Change {
    // A peer that is created up is refused: it has no other end yet.
    let mut peer = link_message(vec![
        LinkAttribute::IfName(veth.container.to_owned()),
        LinkAttribute::Address(veth.container_mac.to_vec()),
        LinkAttribute::NetNsFd(veth.netns.raw_fd()),
    ]);
    peer.attributes.extend(one_queue());
    peer.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    let mut message = link_message(vec![
        LinkAttribute::IfName(veth.host.to_owned()),
        LinkAttribute::Address(veth.host_mac.to_vec()),
        LinkAttribute::Controller(veth.bridge.index),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]);
    message.attributes.push(LinkAttribute::Group(HALF_MADE));
    message.attributes.extend(one_queue());
    message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    set_flag(&mut message, LinkFlags::Up);
    (
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO,
    )
}

/// One queue is what a veth uses. Unless it is told so, the kernel makes one for each processor,
/// with a folder in sysfs, and takes all but the first away again: 0.13 ms of 0.47 with two
/// processors.
fn one_queue() -> [LinkAttribute; 2] {
    [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)]
}

fn set_port(host: &Link, veth: &Veth<'_>) -> Change {
    let mut message = change_of(host);
    message.attributes.extend([
        LinkAttribute::IfAlias(veth.alias.to_owned()),
        LinkAttribute::Group(0),
        port_data(veth.port),
    ]);
    (RouteNetlinkMessage::NewLink(message), 0)
}

fn port_data(port: Port) -> LinkAttribute {
    let data = vec![
        InfoBridgePort::HairpinMode(port.hairpin),
        InfoBridgePort::Isolated(port.isolated),
    ];
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(data)),
    ])
}

/// The kernel's `IF_OPER_UP`.
const OPERATIONALLY_UP: u8 = 6;

impl Link {
    /// Whether [`Rtnl::add_veth`] was ended before it completed the pair, or has not completed it
    /// yet.
    #[must_use]
    pub fn is_half_made(&self) -> bool {
        self.group == HALF_MADE
    }

    /// Whether it is one end of a pair whose other end is in another namespace, as that of a pod is.
    #[must_use]
    pub fn leads_elsewhere(&self) -> bool {
        self.kind == Kind::Veth && self.peer_netns.is_some()
    }

    /// Whether it may lead to other nodes: a bridge among `links` whose ports all lead to namespaces of
    /// this one does not.
    #[must_use]
    pub fn may_be_uplink(&self, links: &[Self]) -> bool {
        let is_port = |link: &&Self| link.bridge == Some(self.index);
        self.kind != Kind::Bridge
            || links
                .iter()
                .filter(is_port)
                .any(|port| !port.leads_elsewhere())
    }

    /// Reads what the kernel says of a link.
    fn read(answer: &Answer) -> Option<Self> {
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
                Kind::DeadEnd
            } else {
                Kind::Other
            },
            mac: None,
            mtu: 0,
            is_up: flags.contains(LinkFlags::Up),
            is_passing: false,
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
                OPERSTATE => link.is_passing = value == [OPERATIONALLY_UP],
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
                        "dummy" => Kind::DeadEnd,
                        _ => Kind::Other,
                    };
                }
                SLAVE_KIND => {
                    let kind = text(value);
                    is_port = kind == "bridge";
                    // What is in a VRF keeps its addresses.
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
