//! Finds peers whose packets do not follow our route: a more specific route, or a rule that selects
//! another table, may send them elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::{Link, Path, Protocol, Route, Rtnl};
use subnet::Subnet;

use crate::network::Hop;
use crate::node::Uplink;
use crate::routes::Peer;

/// The tables that every node has rules for: default, main, local.
const USUAL_TABLES: [u32; 3] = [253, 254, 255];

/// How many peers are checked if no rule names another table.
const SAMPLE: usize = 64;

/// Where packets to a subnet go instead, as of the last check.
#[derive(Default)]
pub(crate) struct Diversions(HashMap<IpNetwork, String>);

impl Diversions {
    /// Asks the kernel for its path to each peer if a rule names an unusual table, and else to a
    /// sample of them: for packets of this node, and for packets of a pod of `own` on `bridge`.
    pub(crate) fn find(
        &mut self,
        kernel: &Rtnl,
        peers: &[Peer],
        uplink: &Uplink,
        own: &[IpNetwork],
        bridge: Option<&Link>,
    ) -> Result<(), kernel::Error> {
        self.0.clear();
        let tables = kernel.rule_tables()?;
        let are_usual = tables.iter().all(|table| USUAL_TABLES.contains(table));
        // A rule may also use one of the usual tables differently. The sample finds that.
        let count = if are_usual { SAMPLE } else { usize::MAX };
        for hop in peers.iter().filter_map(Peer::wanted).take(count) {
            let probe = Probe {
                kernel,
                hop,
                uplink,
                own,
                bridge,
            };
            let diverted = probe.diversion()?;
            self.0.extend(diverted.map(|reason| (hop.subnet, reason)));
        }
        Ok(())
    }

    /// Marks the peers whose packets go elsewhere. `present` are the routes of the main table.
    pub(crate) fn mark(&self, peers: &mut [Peer], present: &[Route], uplink: &Uplink) {
        let mut by_subnet = BTreeMap::new();
        for (i, peer) in peers.iter_mut().enumerate() {
            let wanted = peer.wanted();
            peer.diverted = wanted.and_then(|hop| self.0.get(&hop.subnet).cloned());
            by_subnet.extend(wanted.map(|hop| (hop.subnet.network(), (hop.subnet, i))));
        }
        let foreign = present
            .iter()
            .filter(|route| route.protocol != Protocol::HOSTGW);
        for route in foreign {
            let address = route.to.network();
            let Some((_, (subnet, i))) = by_subnet.range(..=address).next_back() else {
                continue;
            };
            let is_part = subnet.contains(address) && subnet.prefix() < route.to.prefix();
            // A route with the same next hop diverts nothing.
            let via = peers[*i].wanted().map(|hop| hop.via);
            if is_part && !(route.via == via && route.dev == uplink.link.index) {
                peers[*i].diverted =
                    Some(format!("a part of the subnet is diverted: route {route}"));
            }
        }
    }
}

/// One peer, and what the kernel is asked about it.
struct Probe<'a> {
    kernel: &'a Rtnl,
    hop: Hop,
    uplink: &'a Uplink,
    /// This node's subnets.
    own: &'a [IpNetwork],
    /// The bridge of its pods. `None` if pods cannot be asked for.
    bridge: Option<&'a Link>,
}

impl Probe<'_> {
    /// Where packets to the peer go, if they do not go to its next hop.
    fn diversion(&self) -> Result<Option<String>, kernel::Error> {
        let to = first_pod(self.hop.subnet);
        let path = self.kernel.path(to, None)?;
        if let Some(diversion) = self.compare("the node", path) {
            return Ok(Some(diversion));
        }
        for address in self.uplink.addresses_of(to.is_ipv4()) {
            let path = self.kernel.path(to, Some(address))?;
            if let Some(diversion) =
                self.compare(&format!("the node with source address {address}"), path)
            {
                return Ok(Some(diversion));
            }
        }
        self.diversion_of_pods(to)
    }

    fn diversion_of_pods(&self, to: IpAddr) -> Result<Option<String>, kernel::Error> {
        let is_of_family = |subnet: &&IpNetwork| subnet.is_ipv4() == to.is_ipv4();
        let subnet = self.own.iter().find(is_of_family);
        let (Some(bridge), Some(subnet)) = (self.bridge, subnet) else {
            return Ok(None);
        };
        let pod = first_pod(*subnet);
        // Before the first pod, the kernel accepts no packets from there.
        let is_on_bridge = |path: Path| path.dev == bridge.index;
        if !self.kernel.path(pod, None)?.is_some_and(is_on_bridge) {
            return Ok(None);
        }
        let path = self.kernel.forwarding_path(to, pod, bridge)?;
        Ok(self.compare("a pod", path))
    }

    /// Compares the kernel's path with our route.
    fn compare(&self, sender: &str, path: Option<Path>) -> Option<String> {
        let Some(path) = path else {
            return Some(format!("packets of {sender} are dropped (ip rule)"));
        };
        if path.is_unicast && path.dev == self.uplink.link.index && path.via == Some(self.hop.via) {
            return None;
        }
        let via = path.via.map(|via| format!(" via {via}"));
        Some(format!(
            "packets of {sender} go elsewhere{} by table {} (ip rule)",
            via.unwrap_or_default(),
            path.table
        ))
    }
}

/// The address after the gateway's.
fn first_pod(subnet: IpNetwork) -> IpAddr {
    Subnet::of(subnet).address_at(2)
}
