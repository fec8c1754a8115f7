//! Whether what is sent to another node's subnet gets there by our route: something more specific, or a rule
//! that chooses another table, may lead it elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::{Link, Protocol, Route, Rtnl};

use crate::error::chain;
use crate::lease::{Hop, address};
use crate::peers::Peer;
use crate::uplink::Uplink;

/// The tables that every node has rules for: local, main, default.
const USUAL: [u32; 3] = [253, 254, 255];

/// So many peers are asked for where no rule names another table.
const SOME: usize = 64;

/// What leads where, as of the last look.
#[derive(Default)]
pub(crate) struct Diversions(HashMap<IpNetwork, String>);

impl Diversions {
    /// Asks the kernel for each peer once, where there is a rule that could make a difference, and else for
    /// some: what the node itself sends, and what pods of `own` do by `bridge`.
    pub(crate) fn look(
        &mut self,
        kernel: &Rtnl,
        peers: &[Peer],
        uplink: &Uplink,
        own: &[IpNetwork],
        bridge: Option<&Link>,
    ) -> Result<(), String> {
        self.0.clear();
        let tables = kernel.tables_of_rules().map_err(|error| chain(&error))?;
        let are_usual = tables.iter().all(|table| USUAL.contains(table));
        // A usual table may be led to in an unusual way, or not at all: that shows with some.
        let most = if are_usual { SOME } else { usize::MAX };
        for hop in peers.iter().filter_map(Peer::wanted).take(most) {
            let said = divert(kernel, hop, uplink, own, bridge).map_err(|error| chain(&error))?;
            self.0.extend(said.map(|said| (hop.subnet, said)));
        }
        Ok(())
    }

    /// Says of each peer what leads its packets elsewhere. `present` are the routes of the main table.
    pub(crate) fn tell(&self, peers: &mut [Peer], present: &[Route], uplink: &Uplink) {
        let mut places = BTreeMap::new();
        for (i, peer) in peers.iter_mut().enumerate() {
            let wanted = peer.wanted();
            peer.diverted = wanted.and_then(|hop| self.0.get(&hop.subnet).cloned());
            places.extend(wanted.map(|hop| (hop.subnet.network(), (hop.subnet, i))));
        }
        let foreign = present
            .iter()
            .filter(|route| route.protocol != Protocol::HOSTGW);
        for route in foreign {
            let address = route.to.network();
            let Some((_, (subnet, i))) = places.range(..=address).next_back() else {
                continue;
            };
            let is_within = subnet.contains(address) && subnet.prefix() < route.to.prefix();
            // What leads the same way leads nothing elsewhere.
            let via = peers[*i].wanted().map(|hop| hop.via);
            if is_within && !(route.via == via && route.dev == uplink.link.index) {
                peers[*i].diverted = Some(format!("a part of it goes elsewhere: route {route}"));
            }
        }
    }
}

/// What becomes of packets to a peer, where they do not go to it.
fn divert(
    kernel: &Rtnl,
    hop: Hop,
    uplink: &Uplink,
    own: &[IpNetwork],
    bridge: Option<&Link>,
) -> Result<Option<String>, kernel::Error> {
    let to = first_pod(hop.subnet);
    let is_right = |path: kernel::Path| {
        path.is_open && path.dev == uplink.link.index && path.via == Some(hop.via)
    };
    let told = |who: String, path: Option<kernel::Path>| match path {
        Some(path) if is_right(path) => None,
        Some(path) => {
            let via = path
                .via
                .map(|via| format!(" via {via}"))
                .unwrap_or_default();
            Some(format!(
                "what {who} sends goes elsewhere{via} by table {} (ip rule)",
                path.table
            ))
        }
        None => Some(format!("what {who} sends goes nowhere (ip rule)")),
    };
    let said = told("the node".to_owned(), kernel.path(to, None)?);
    if said.is_some() {
        return Ok(said);
    }
    for address in uplink.addresses_of(to.is_ipv4()) {
        let said = told(
            format!("the node from {address}"),
            kernel.path(to, Some(address))?,
        );
        if said.is_some() {
            return Ok(said);
        }
    }
    let mut subnets = own.iter().filter(|subnet| subnet.is_ipv4() == to.is_ipv4());
    let (Some(bridge), Some(subnet)) = (bridge, subnets.next()) else {
        return Ok(None);
    };
    let pod = first_pod(*subnet);
    // Before its first pod, the kernel takes nothing from there.
    let is_there = |path: kernel::Path| path.dev == bridge.index;
    if !kernel.path(pod, None)?.is_some_and(is_there) {
        return Ok(None);
    }
    Ok(told(
        "a pod".to_owned(),
        kernel.path_of_guest(to, pod, bridge)?,
    ))
}

/// The address behind the gateway's.
fn first_pod(subnet: IpNetwork) -> IpAddr {
    address(subnet, 2)
}
