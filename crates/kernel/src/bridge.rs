//! Bridges and their ports.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use crate::link::{Kind, Link, Port, change_of, ignore_gone, link_message, set_flag};
use crate::rtnl::Change;
use crate::{Error, Mac, Rtnl};

/// A bridge to create or to use, for [`Rtnl::ensure_bridge`].
#[derive(Clone, Copy, Debug)]
pub struct Bridge<'a> {
    /// Name of the bridge.
    pub name: &'a str,
    /// Hardware address, set when the bridge is created. After that, neither new ports nor udev
    /// change it.
    pub mac: Option<Mac>,
    /// MTU, in bytes. By default that of an existing bridge, or the kernel's default.
    pub mtu: Option<u32>,
    /// True if the bridge is set to promiscuous mode. The mode is never switched off again.
    pub promiscuous: bool,
}

impl Rtnl {
    /// Makes sure that the bridge exists and is up, with a single request if it does. The second
    /// value is true if the bridge was created here, and so has the requested hardware address and
    /// MTU.
    ///
    /// Fails if a link with this name exists but is not a bridge.
    pub fn ensure_bridge(&self, bridge: Bridge<'_>) -> Result<(Link, bool), Error> {
        let Bridge { name, .. } = bridge;
        if let Some(link) = self.link(name)? {
            return Ok((self.adopt_bridge(link, bridge)?, false));
        }
        let created = self.change(new_bridge(bridge), || format!("create bridge {name}"));
        // If this failed, another process may have created it first, or the reply may have been
        // lost.
        let is_new = created.is_ok();
        match self.link(name)? {
            Some(link) => Ok((self.adopt_bridge(link, bridge)?, is_new)),
            None => Err(created.err().unwrap_or_else(|| {
                Error::new(
                    format!("create bridge {name}"),
                    "it was deleted immediately after its creation",
                )
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

    /// Applies these settings to all given bridge ports. Skips ports that no longer exist.
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
        for outcome in outcomes.map_err(|error| Error::new("set bridge port options", error))? {
            let outcome =
                outcome.map_err(|error| Error::new("set the options of a bridge port", error));
            outcome.map(drop).or_else(ignore_gone)?;
        }
        Ok(())
    }
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

pub(crate) fn port_data(port: Port) -> LinkAttribute {
    let data = vec![
        InfoBridgePort::HairpinMode(port.hairpin),
        InfoBridgePort::Isolated(port.isolated),
    ];
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(data)),
    ])
}
