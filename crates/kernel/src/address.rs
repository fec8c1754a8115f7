//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};

use crate::link::set_up;
use crate::route::new_route;
use crate::rtnl::Change;
use crate::{Error, Link, Route, Rtnl};

impl Rtnl {
    /// The addresses of `link` that are valid beyond it, with their prefix lengths.
    pub async fn addresses(&self, link: &Link) -> Result<Vec<IpNetwork>, Error> {
        let addresses = self.dump_addresses(link.index).await?;
        Ok(addresses.into_iter().map(|(_, address)| address).collect())
    }

    /// The same of every link, each with its link's number.
    pub async fn all_addresses(&self) -> Result<Vec<(u32, IpNetwork)>, Error> {
        self.dump_addresses(0).await
    }

    async fn dump_addresses(&self, index: u32) -> Result<Vec<(u32, IpNetwork)>, Error> {
        let mut request = AddressMessage::default();
        request.header.index = index;
        let message = RouteNetlinkMessage::GetAddress(request);
        let addresses = self.dump(message, "list addresses").await?;
        let address = |message| match message {
            RouteNetlinkMessage::NewAddress(message) => {
                address(&message).map(|address| (message.header.index, address))
            }
            _ => None,
        };
        Ok(addresses.into_iter().filter_map(address).collect())
    }

    /// Adds `address` to `link`. IPv6 is not held back until no duplicate is found. An address
    /// that is there already is fine.
    pub async fn ensure_address(&self, link: &Link, address: IpNetwork) -> Result<(), Error> {
        let doing = || format!("add address {address} to {}", link.name);
        match self.change(new_address(link.index, address), doing).await {
            Err(error) if error.is_exists() => Ok(()),
            other => other,
        }
    }

    /// Takes `address` from `link`.
    pub async fn delete_address(&self, link: &Link, address: IpNetwork) -> Result<(), Error> {
        let (message, _) = new_address(link.index, address);
        let RouteNetlinkMessage::NewAddress(message) = message else {
            unreachable!("new_address makes this message");
        };
        let message = RouteNetlinkMessage::DelAddress(message);
        let doing = || format!("delete address {address} from {}", link.name);
        self.change((message, 0), doing).await
    }

    /// Gives a link that is down its addresses, sets it up and adds its routes: in this order,
    /// in one send. A route to where another one leads already comes after that one, or, in IPv6,
    /// not at all.
    pub async fn bring_up(
        &self,
        link: &Link,
        addresses: &[IpNetwork],
        routes: &[Route],
    ) -> Result<(), Error> {
        let changes = addresses
            .iter()
            .map(|address| new_address(link.index, *address));
        let changes = changes.chain([set_up(link.index)]);
        // IPv6 would join an appended route with the one before, and use both.
        let behind = |route: &Route| {
            if route.to.is_ipv4() {
                NLM_F_APPEND
            } else {
                NLM_F_EXCL
            }
        };
        let changes = changes.chain(routes.iter().map(|route| new_route(route, behind(route))));
        let outcomes = self.changes(changes).await;
        for (i, outcome) in outcomes.into_iter().enumerate() {
            if let Err(error) = outcome {
                let doing = if let Some(address) = addresses.get(i) {
                    format!("add address {address} to {}", link.name)
                } else if i == addresses.len() {
                    format!("set {} up", link.name)
                } else {
                    format!("add route {}", routes[i - addresses.len() - 1])
                };
                let error = Error::new(doing, error);
                if !(i > addresses.len() && error.is_exists()) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

fn new_address(index: u32, address: IpNetwork) -> Change {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.header.family = match address {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    message
        .attributes
        .push(AddressAttribute::Address(address.ip()));
    message
        .attributes
        .push(AddressAttribute::Local(address.ip()));
    match address {
        // A network of two addresses or one has no broadcast address.
        IpNetwork::V4(v4) if v4.prefix() < 31 => {
            message
                .attributes
                .push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNetwork::V4(_) => {}
        IpNetwork::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    (
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn address(message: &AddressMessage) -> Option<IpNetwork> {
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    // On links with a peer address, the local one is ours; IPv6 often has only the other.
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
    let any = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
    let ip = local.or(any)?;
    debug_assert_ne!(ip, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    IpNetwork::new(ip, message.header.prefix_len).ok()
}
