//! The uplink: the interface by which this node reaches the others, and its addresses there.

mod interfaces;
mod selection;

use std::collections::HashSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::{Link, Protocol, Route};
use subnet::Subnet;

pub(crate) use interfaces::Interfaces;
pub(crate) use selection::Selection;

use crate::network::{Addresses, NetConf};

/// The interface to the other nodes, and what the kernel says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uplink {
    pub(crate) link: Link,
    /// Its addresses; of each family, the one that other nodes use comes first.
    addresses: Vec<IpAddr>,
    /// The networks that are reachable on the link, without a next hop.
    on_link: Vec<IpNetwork>,
    /// The addresses and networks that no route to a peer may divert.
    pub(crate) surroundings: Surroundings,
    /// Why this interface and this address were chosen, in words that follow "because".
    pub(crate) because: String,
    /// A warning that the interface which the user selected does not exist.
    pub(crate) warning: Option<String>,
}

/// The addresses and networks of a node, and the routers that it uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// The addresses of all interfaces.
    pub(crate) addresses: HashSet<IpAddr>,
    /// The networks of the interfaces that lead to other machines.
    networks: Vec<IpNetwork>,
    /// The next hops of default routes.
    gateways: Vec<IpAddr>,
}

/// Facts that help to choose the uplink, besides flags and the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UplinkHints<'a> {
    /// The network's configuration, if it is known already.
    pub(crate) network: Option<&'a NetConf>,
    /// The addresses of the Kubernetes Node (`InternalIP`).
    pub(crate) internal: Addresses,
    /// The addresses that the other nodes used last.
    pub(crate) announced: Addresses,
    /// The uplink so far.
    pub(crate) current: Option<&'a Uplink>,
}

/// Why there is no uplink, or why this node is not in the cluster file.
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
    #[error(
        "{0} is not an address of interface {1}, but host-gw needs one of its addresses (--public-ip)"
    )]
    NotItsAddress(IpAddr, String),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

impl Uplink {
    /// The addresses for other nodes, of the families that the network has. Link-local IPv6
    /// addresses do not count.
    pub(crate) fn public(&self, network: Option<&NetConf>) -> Addresses {
        let has_ipv4 = network.is_none_or(|network| network.ipv4.is_some());
        let has_ipv6 = network.is_none_or(|network| network.ipv6.is_some());
        let mut addresses = Addresses::default();
        for address in self.addresses.iter().filter(|ip| !is_link_local(**ip)) {
            match address {
                IpAddr::V4(v4) if has_ipv4 => {
                    addresses.ipv4.get_or_insert(*v4);
                }
                IpAddr::V6(v6) if has_ipv6 => {
                    addresses.ipv6.get_or_insert(*v6);
                }
                _ => {}
            }
        }
        addresses
    }

    /// Its addresses of one family, without link-local ones.
    pub(crate) fn addresses_of(&self, ipv4: bool) -> impl Iterator<Item = IpAddr> {
        let matches =
            move |address: &&IpAddr| address.is_ipv4() == ipv4 && !is_link_local(**address);
        self.addresses.iter().filter(matches).copied()
    }

    /// True if the kernel can send to `address` without a next hop.
    pub(crate) fn reaches(&self, address: IpAddr) -> bool {
        is_link_local(address) || self.on_link.iter().any(|network| network.contains(address))
    }

    /// Returns, in words, what a route to `subnet` would cut this node off from: a network that one of
    /// its interfaces is connected to, one of its addresses, or the next hop of a default route.
    ///
    /// A network that contains this node's own subnets `own` was divided by its administrator, and other
    /// parts of it may be subnets of peers.
    pub(crate) fn needed_within(&self, subnet: IpNetwork, own: &[IpNetwork]) -> Option<String> {
        let Surroundings {
            networks, gateways, ..
        } = &self.surroundings;
        let subnet = Subnet::of(subnet);
        let is_cut_off = |network: &&IpNetwork| {
            let network = Subnet::of(**network);
            let mut own = own.iter().map(|own| Subnet::of(*own));
            subnet.overlaps(network) && !own.any(|own| network.contains(own))
        };
        if let Some(network) = networks.iter().find(is_cut_off) {
            let words = format!("addresses of {network}, a network that this node is connected to");
            return Some(words);
        }
        let subnet = subnet.network();
        if let Some(own) = self
            .addresses
            .iter()
            .find(|address| subnet.contains(**address))
        {
            return Some(format!("{own}, an address of {}", self.link.name));
        }
        let gateway = gateways.iter().find(|address| subnet.contains(**address))?;
        Some(format!("{gateway}, the next hop of a default route"))
    }

    /// True if it is the same interface with the same addresses, whatever else changed on the node.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let of = |uplink: &Self| Self {
            surroundings: Surroundings::default(),
            ..uplink.clone()
        };
        of(self) == of(other)
    }

    /// A route that drops packets to `to`. Its metric is the highest, so that any other route to
    /// the same destination comes first.
    pub(crate) fn blackhole(to: IpNetwork) -> Route {
        Route {
            is_unicast: false,
            metric: u32::MAX,
            ..Route::new(to, None, 0, Protocol::HOSTGW)
        }
    }

    /// A route to `to` with the next hop `via`, marked as ours. With `onlink`, the kernel does not
    /// check that the next hop is on the link.
    pub(crate) fn route(&self, to: IpNetwork, via: IpAddr, onlink: bool) -> Route {
        Route {
            is_onlink: onlink,
            ..Route::new(to, Some(via), self.link.index, Protocol::HOSTGW)
        }
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
impl Uplink {
    /// An uplink for unit tests: index 2, with these addresses, connected networks, and the next hop
    /// 192.168.2.1 of the default route.
    pub(crate) fn on(addresses: &[&str], on_link: &[&str]) -> Self {
        let parse_all = |texts: &[&str]| {
            texts
                .iter()
                .map(|ip| ip.parse().expect("an address"))
                .collect()
        };
        let link = Link {
            index: 2,
            name: "enp0s5".to_owned(),
            kind: kernel::Kind::Other,
            mac: None,
            mtu: 1500,
            is_up: true,
            is_oper_up: true,
            is_promiscuous: false,
            bridge: None,
            controller: None,
            port: None,
            peer: None,
            peer_netns: None,
            group: 0,
            alias: None,
        };
        let networks: Vec<IpNetwork> = on_link
            .iter()
            .map(|text| text.parse().expect("a network"))
            .collect();
        Self {
            link,
            addresses: parse_all(addresses),
            on_link: networks.clone(),
            surroundings: Surroundings {
                addresses: parse_all(addresses).into_iter().collect(),
                networks,
                gateways: parse_all(&["192.168.2.1"]),
            },
            because: String::new(),
            warning: None,
        }
    }
}
