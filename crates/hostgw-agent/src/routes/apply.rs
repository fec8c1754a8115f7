//! Makes the kernel's routes the desired ones.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ipnetwork::IpNetwork;
use kernel::{Protocol, Route, RouteChange, Rtnl};
use tokio::time::Instant;
use tracing::warn;

use super::peers::Peer;
use super::plan::{Change, is_flannel_route, plan, record};
use crate::node::{Node, Uplink};

/// With more IPv4 routes than this, next hops are kernel objects of their own: otherwise the kernel
/// compares each new route with all others.
const MAX_PLAIN_ROUTES: usize = 500;

/// How the user wants routes to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteOptions {
    /// Accept next hops that are not on the uplink's link according to its addresses.
    pub(crate) onlink: bool,
    /// Drop packets to addresses of the network that no node has, instead of sending them by the
    /// default route.
    pub(crate) blackholes: bool,
}

/// The changes that were made.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The changes that were made.
    pub(crate) changes: Vec<Change>,
    /// The routes of the main table afterwards.
    pub(crate) present: Vec<Route>,
    /// The routes that the kernel refused to add, by destination.
    pub(crate) refused: HashMap<IpNetwork, kernel::Error>,
    /// Why routes could not be deleted.
    pub(crate) errors: Vec<kernel::Error>,
    /// How long the kernel took.
    pub(crate) duration: Duration,
}

impl Applied {
    /// The number of routes that were written, and that were deleted.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let is_write = |change: &&Change| matches!(change, Change::Replace { .. });
        let written = self.changes.iter().filter(is_write).count();
        let deleted = self.changes.len() - written;
        (written as u64, deleted as u64)
    }
}

/// Compares the desired routes with the `present` ones, and changes what differs in one batch.
pub(crate) fn apply(
    kernel: &Rtnl,
    node: &Node,
    options: RouteOptions,
    peers: &[Peer],
    mut present: Vec<Route>,
) -> Result<Applied, kernel::Error> {
    let desired = desired_routes(node, options, peers);
    let own: Vec<_> = node.own.subnets().collect();
    let mut changes = plan(&desired, &present, &own);
    if node.from_saved_state {
        // Nodes that joined since then are missing in the saved state.
        changes.retain(|change| !change.is_stale());
    }
    let requests: Vec<_> = changes.iter().map(request).collect();
    let started = Instant::now();
    let outcomes = kernel.change_routes(&requests)?;
    let duration = started.elapsed();
    let mut made = Vec::with_capacity(changes.len());
    let mut refused = HashMap::new();
    let mut errors = Vec::new();
    for (outcome, change) in outcomes.into_iter().zip(changes) {
        match (outcome, &change) {
            (Ok(()), _) => made.push(change),
            (Err(error), Change::Replace { route, .. }) => {
                refused.insert(route.to, error);
            }
            (Err(error), Change::Delete { .. }) => errors.push(error),
        }
    }
    record(&made, &mut present);
    Ok(Applied {
        changes: made,
        present,
        refused,
        errors,
        duration,
    })
}

/// A route to each peer, and the blackholes if the user wants them.
fn desired_routes(node: &Node, options: RouteOptions, peers: &[Peer]) -> Vec<Route> {
    let uplink = &node.uplink;
    let hops = peers.iter().filter_map(Peer::wanted);
    let mut desired: Vec<_> = hops
        .map(|hop| {
            let onlink = options.onlink && !uplink.reaches(hop.via);
            uplink.route(hop.subnet, hop.via, onlink)
        })
        .collect();
    let ipv4_count = desired.iter().filter(|route| route.to.is_ipv4()).count();
    if ipv4_count > MAX_PLAIN_ROUTES && kernel::has_nexthop_objects() {
        desired = desired
            .into_iter()
            .map(Route::with_nexthop_object)
            .collect();
    }
    if options.blackholes {
        let networks = node.snapshot.network.networks();
        let blackholes = node.own.subnets().chain(networks);
        desired.extend(blackholes.map(Uplink::blackhole));
    }
    desired
}

/// Deletes our next hop objects that no route uses any more.
pub(crate) fn delete_unused_nexthops(kernel: &Rtnl) -> Result<(), kernel::Error> {
    let ours = kernel.nexthops(Protocol::HOSTGW)?;
    if ours.is_empty() {
        return Ok(());
    }
    let routes = kernel.routes()?;
    let used: HashSet<_> = routes.iter().filter_map(|route| route.nexthop).collect();
    let unused: Vec<_> = ours.into_iter().filter(|id| !used.contains(id)).collect();
    kernel.delete_nexthops(&unused)
}

/// Deletes flannel's routes to nodes that are gone. Its routes to other nodes were replaced by ours.
pub(crate) fn take_over_flannel_routes(
    kernel: &Rtnl,
    node: &Node,
    peers: &[Peer],
) -> Result<(), kernel::Error> {
    if node.from_saved_state {
        return Ok(());
    }
    let networks: Vec<_> = node.snapshot.network.networks().collect();
    let hops = || peers.iter().filter_map(|peer| peer.hop);
    let stale = kernel.routes()?.into_iter().filter(|route| {
        is_flannel_route(route, &networks)
            && (route.dev == node.uplink.link.index || !route.is_unicast)
            && !hops().any(|hop| hop.subnet == route.to)
    });
    let changes: Vec<_> = stale.map(RouteChange::Delete).collect();
    let outcomes = kernel.change_routes(&changes)?;
    for (outcome, change) in outcomes.into_iter().zip(&changes) {
        outcome?;
        if let RouteChange::Delete(route) = change {
            warn!("deleted flannel's route {route}: no node has this subnet any more");
        }
    }
    Ok(())
}

fn request(change: &Change) -> RouteChange {
    match change {
        Change::Replace { route, .. } => RouteChange::Replace(route.clone()),
        Change::Delete { route, .. } => RouteChange::Delete(route.clone()),
    }
}
