//! Links: bridges, veth pairs, and what else there is.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use crate::neighbour::new_neighbour;
use crate::rtnl::Change;
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
    /// The number of the bridge that it is a port of.
    pub bridge: Option<u32>,
    /// The number of its peer, in the peer's namespace.
    pub peer: Option<u32>,
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
    /// Anything else.
    Other,
}

/// A bridge to be there.
#[derive(Clone, Copy, Debug)]
pub struct Bridge<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address, given at creation: from then on neither its ports nor udev move it.
    pub mac: Mac,
    /// Its MTU in bytes, given at creation; by default the kernel's.
    pub mtu: Option<u32>,
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
    /// Whether the bridge sends a frame back through the port that it came from.
    pub hairpin: bool,
    /// Whether the port is kept from talking to other isolated ports.
    pub isolated: bool,
    /// What to write on the host end.
    pub alias: &'a str,
    /// The container's addresses.
    pub addresses: &'a [IpAddr],
}

impl Rtnl {
    /// The link called `name`, if there is one.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        ];
        let message = RouteNetlinkMessage::GetLink(link_message(attributes));
        match self.get(message, || format!("look up link {name}")).await? {
            Some(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::from(message))),
            _ => Ok(None),
        }
    }

    /// Every link.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let message = RouteNetlinkMessage::GetLink(link_message(attributes));
        let links = self.dump(message, "list links").await?;
        let link = |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
            _ => None,
        };
        Ok(links.into_iter().filter_map(link).collect())
    }

    /// Makes sure that the bridge is there and up: one request when it is.
    ///
    /// Errors when something else has its name.
    pub async fn ensure_bridge(&self, bridge: Bridge<'_>) -> Result<Link, Error> {
        let Bridge { name, .. } = bridge;
        if let Some(link) = self.link(name).await? {
            return self.adopt_bridge(link).await;
        }
        match self
            .change(new_bridge(bridge), || format!("create bridge {name}"))
            .await
        {
            Ok(()) => {}
            // Another process was faster.
            Err(error) if error.is_exists() => {}
            Err(error) => return Err(error),
        }
        let link = self.link(name).await?.ok_or_else(|| {
            Error::new(
                format!("create bridge {name}"),
                "it was deleted at the same moment",
            )
        })?;
        self.adopt_bridge(link).await
    }

    async fn adopt_bridge(&self, link: Link) -> Result<Link, Error> {
        let name = &link.name;
        if link.kind != Kind::Bridge {
            let reason = format!("{name} already exists but is not a bridge");
            return Err(Error::new(format!("use {name} as the bridge"), reason));
        }
        if !link.is_up {
            let up = set_up(link.index);
            self.change(up, || format!("set bridge {name} up")).await?;
        }
        Ok(link)
    }

    /// Makes a veth pair where it belongs: both names, hardware addresses, MTU, the host end
    /// up and on its bridge, the container end in its namespace, and the bridge's neighbours
    /// told of the container. On failure nothing is left.
    pub async fn add_veth(&self, veth: &Veth<'_>) -> Result<(), Error> {
        let Veth {
            host, container, ..
        } = veth;
        let doing = || format!("create veth {host} with peer {container}");
        self.change(new_veth(veth), doing).await?;
        // The creating message ignores a port's settings without a word, so they follow by name:
        // in a send of their own, for a name that was taken is not ours to set up.
        let neighbour = |ip: &IpAddr| new_neighbour(veth.bridge.index, veth.container_mac, *ip);
        let changes = [set_port(veth)]
            .into_iter()
            .chain(veth.addresses.iter().map(neighbour));
        for (i, outcome) in self.changes(changes).await.into_iter().enumerate() {
            if let Err(error) = outcome {
                let doing = match i {
                    0 => format!("set up bridge port {host}"),
                    _ => format!("set neighbour {}", veth.addresses[i - 1]),
                };
                self.delete_link(host).await?;
                return Err(Error::new(doing, error));
            }
        }
        Ok(())
    }

    /// Deletes the link called `name`, and the other end where it is one of a pair. Says
    /// whether there was one.
    pub async fn delete_link(&self, name: &str) -> Result<bool, Error> {
        let attributes = vec![LinkAttribute::IfName(name.to_owned())];
        let message = RouteNetlinkMessage::DelLink(link_message(attributes));
        match self
            .change((message, 0), || format!("delete link {name}"))
            .await
        {
            Ok(()) => Ok(true),
            Err(error) if error.is_gone() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn link_message(attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    message
}

pub(crate) fn set_up(index: u32) -> Change {
    let mut message = link_message(Vec::new());
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(message), 0)
}

fn new_bridge(bridge: Bridge<'_>) -> Change {
    let mut message = link_message(vec![
        LinkAttribute::IfName(bridge.name.to_owned()),
        LinkAttribute::Address(bridge.mac.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ]);
    message
        .attributes
        .extend(bridge.mtu.map(LinkAttribute::Mtu));
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
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
    message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    (
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn set_port(veth: &Veth<'_>) -> Change {
    let port = vec![
        InfoBridgePort::HairpinMode(veth.hairpin),
        InfoBridgePort::Isolated(veth.isolated),
    ];
    let message = link_message(vec![
        LinkAttribute::IfName(veth.host.to_owned()),
        LinkAttribute::IfAlias(veth.alias.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ]),
    ]);
    (RouteNetlinkMessage::NewLink(message), 0)
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            kind: Kind::Other,
            mac: None,
            mtu: 0,
            is_up: message.header.flags.contains(LinkFlags::Up),
            bridge: None,
            peer: None,
            alias: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = Mac::from_slice(&bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Controller(index) => link.bridge = Some(index),
                LinkAttribute::Link(index) => link.peer = Some(index),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(InfoKind::Bridge) => link.kind = Kind::Bridge,
                            LinkInfo::Kind(InfoKind::Veth) => link.kind = Kind::Veth,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}
