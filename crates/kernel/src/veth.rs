//! Veth pairs.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};

use crate::bridge::port_data;
use crate::link::{INCOMPLETE_GROUP, Link, Port, change_of, link_message, set_flag};
use crate::rtnl::Change;
use crate::{Error, Mac, Netns, Rtnl};

/// A veth pair to create, for [`Rtnl::add_veth`].
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// Name of the host end.
    pub host: &'a str,
    /// Hardware address of the host end.
    pub host_mac: Mac,
    /// Name of the container end.
    pub container: &'a str,
    /// Hardware address of the container end.
    pub container_mac: Mac,
    /// Namespace in which the container end is created.
    pub netns: &'a Netns,
    /// MTU of both ends, in bytes; the kernel's default if `None`.
    pub mtu: Option<u32>,
    /// Bridge that the host end becomes a port of.
    pub bridge: &'a Link,
    /// Bridge port settings of the host end.
    pub port: Port,
    /// Alias of the host end.
    pub alias: &'a str,
}

impl Rtnl {
    /// Creates a veth pair with its names, hardware addresses and MTU: the host end up and attached
    /// to its bridge, the container end in its namespace. Returns the container end. Kernels before
    /// 6.2 do not report it, so it is then looked up in `container`.
    ///
    /// On failure, nothing is left behind, or the error [says so](Error::may_have_leftovers). Until
    /// the pair is complete, its host end is [marked](Link::is_incomplete).
    pub fn add_veth(&self, veth: &Veth<'_>, container: &Self) -> Result<Link, Error> {
        let Veth { host, .. } = veth;
        let doing = || format!("create veth {host} with peer {}", veth.container);
        let made = match self.change_echoed(new_veth(veth), doing) {
            // The container had no link with this name before, so a matching pair is ours.
            Err(error) if error.may_have_leftovers() => match self.is_pair(veth, container) {
                Ok(true) => None,
                Ok(false) => return Err(Error::new(doing(), "the kernel did not create the pair")),
                Err(_) => return Err(error),
            },
            other => other?,
        };
        let rest = || -> Result<Link, Error> {
            let deleted = |what: &str| {
                let doing = format!("look up the {what} end of veth {host}");
                Error::new(doing, "it was deleted during the setup")
            };
            let host = match made.as_ref().and_then(Link::read) {
                Some(host) => host,
                None => self.link(host)?.ok_or_else(|| deleted("host"))?,
            };
            // The kernel ignores port settings in the creating message without an error, so they
            // are set in a second one. It refers to the link by index: if the name no longer
            // exists, kernels before 5.19 would change every link of the group.
            let doing = || {
                format!(
                    "set up veth {} as a port of {}",
                    host.name, veth.bridge.name
                )
            };
            self.change(set_port(&host, veth), doing)?;
            match container_end(&host, veth) {
                Some(link) => Ok(link),
                None => container
                    .link(veth.container)?
                    .ok_or_else(|| deleted("container")),
            }
        };
        rest().map_err(|error| match self.delete_link(host) {
            Ok(_) => error,
            Err(_) => error.with_leftovers(),
        })
    }

    /// Creates a veth pair that is not a port of a bridge: `name` here and up, `peer` in `netns` and down.
    pub fn add_veth_pair(&self, name: &str, peer: &str, netns: &Netns) -> Result<(), Error> {
        let peer = link_message(vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::NetNsFd(netns.raw_fd()),
        ]);
        let mut message = link_message(vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        set_flag(&mut message, LinkFlags::Up);
        let change = (
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
        self.change(change, || format!("create veth {name}"))
    }

    /// True if both ends of `veth` exist and are each other's peer.
    fn is_pair(&self, veth: &Veth<'_>, container: &Self) -> Result<bool, Error> {
        let (host, inside) = (self.link(veth.host)?, container.link(veth.container)?);
        Ok(host.zip(inside).is_some_and(|(host, inside)| {
            host.peer == Some(inside.index) && inside.peer == Some(host.index)
        }))
    }
}

/// Returns the container end, if the kernel reported its index with the host end.
fn container_end(host: &Link, veth: &Veth<'_>) -> Option<Link> {
    Some(Link {
        index: host.peer?,
        name: veth.container.to_owned(),
        mac: Some(veth.container_mac),
        is_up: false,
        is_oper_up: false,
        bridge: None,
        port: None,
        peer: Some(host.index),
        peer_netns: None,
        group: 0,
        alias: None,
        ..host.clone()
    })
}

fn new_veth(veth: &Veth<'_>) -> Change {
    // The kernel refuses to create the peer in the up state, because its other end does not exist
    // yet.
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
    message
        .attributes
        .push(LinkAttribute::Group(INCOMPLETE_GROUP));
    message.attributes.extend(one_queue());
    message.attributes.extend(veth.mtu.map(LinkAttribute::Mtu));
    set_flag(&mut message, LinkFlags::Up);
    (
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO,
    )
}

/// Attributes for a single queue each way, which is all that a veth uses. By default, the kernel
/// creates one queue for each processor, each with a sysfs directory, and then removes all but the
/// first: 0.13 ms of 0.47 ms on two processors.
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
