//! Makes the kernel's routes the wanted ones.

use std::collections::{HashMap, HashSet};

use kernel::{Protocol, Route, RouteChange, Rtnl};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::error::chain;
use crate::node::Node;
use crate::peers::{Peer, Refusal};
use crate::plan::{Change, is_of_flannel, plan, record};
use crate::uplink::Uplink;

/// More changes than this at once are told as a number.
const TOLD: usize = 20;

/// With more IPv4 routes than this, next hops are objects of their own: there the kernel would
/// compare each new route with all others.
const PLAIN: usize = 500;

/// What routes are to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Whether a next hop counts as on the link whatever addresses say.
    pub(crate) is_onlink: bool,
    /// Whether what is for the network and for no node goes nowhere, instead of by the default route.
    pub(crate) blackholes: bool,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) written: u64,
    pub(crate) deleted: u64,
    /// What could not be deleted, and why.
    pub(crate) troubles: Vec<String>,
}

/// Compares wanted routes with the `present` ones and changes what differs, in one batch; `present` is
/// then what there is. A route that the kernel refuses is its peer's trouble. `tell` is told of each
/// change, and whether there are many.
pub(crate) fn apply(
    kernel: &Rtnl,
    node: &Node,
    how: How,
    peers: &mut [Peer],
    present: &mut Vec<Route>,
    tell: &mut impl FnMut(&Change, bool),
) -> Result<Done, String> {
    let uplink = &node.uplink;
    let hops = peers.iter().filter_map(Peer::wanted);
    let mut wanted: Vec<_> = hops
        .map(|hop| {
            uplink.route(
                hop.subnet,
                hop.via,
                how.is_onlink && !uplink.reaches(hop.via),
            )
        })
        .collect();
    let count = wanted.iter().filter(|route| route.to.is_ipv4()).count();
    if count > PLAIN && kernel::has_nexthops() {
        wanted = wanted.into_iter().map(Route::by_nexthop).collect();
    }
    let own: Vec<_> = node.own.subnets().collect();
    if how.blackholes {
        let networks = node.snapshot.network.networks();
        wanted.extend(own.iter().copied().chain(networks).map(Uplink::blackhole));
    }
    let mut changes = plan(&wanted, present, &own);
    if node.is_kept {
        // Who joined since then is missing there.
        changes.retain(|change| !change.is_stale());
    }
    let requests: Vec<_> = changes.iter().map(request).collect();
    let begin = Instant::now();
    let outcomes = kernel
        .change_routes(&requests)
        .map_err(|error| chain(&error))?;
    let millis = begin.elapsed().as_secs_f64() * 1e3;
    let mut done = Done::default();
    let mut refused = HashMap::new();
    let mut made = Vec::with_capacity(changes.len());
    for (outcome, change) in outcomes.into_iter().zip(&changes) {
        match (outcome, change) {
            (Ok(()), change) => {
                tell(change, changes.len() > TOLD);
                made.push(change);
                match change {
                    Change::Replace { .. } => done.written += 1,
                    Change::Delete { .. } => done.deleted += 1,
                }
            }
            (Err(error), Change::Replace { route, .. }) => {
                refused.insert(route.to, chain(&error));
            }
            (Err(error), Change::Delete { .. }) => done.troubles.push(chain(&error)),
        }
    }
    record(&made, present);
    for peer in peers {
        if let Some(hop) = peer.wanted()
            && let Some(reason) = refused.remove(&hop.subnet)
        {
            peer.refused = Some(Refusal::Kernel(reason));
        }
    }
    // What is for no peer is this node's.
    done.troubles.extend(refused.into_values());
    if changes.len() > TOLD {
        let Done {
            written, deleted, ..
        } = done;
        info!(
            "added or replaced {written} routes, deleted {deleted}; the kernel took {millis:.1} ms"
        );
    }
    Ok(done)
}

/// Deletes our next hops that nobody's route names any more.
pub(crate) fn sweep(kernel: &Rtnl) -> Result<(), String> {
    let unused = || -> Result<Vec<u32>, kernel::Error> {
        let ours = kernel.nexthops(Protocol::HOSTGW)?;
        if ours.is_empty() {
            return Ok(ours);
        }
        let routes = kernel.routes()?;
        let used: HashSet<_> = routes.iter().filter_map(|route| route.nexthop).collect();
        Ok(ours.into_iter().filter(|id| !used.contains(id)).collect())
    };
    let swept = unused().and_then(|unused| kernel.delete_nexthops(&unused));
    swept.map_err(|error| chain(&error))
}

/// Deletes what flanneld left of routes to nodes that are gone: those to others are ours by now.
pub(crate) fn take_over(kernel: &Rtnl, node: &Node, peers: &[Peer]) -> Result<(), String> {
    if node.is_kept {
        return Ok(());
    }
    let networks: Vec<_> = node.snapshot.network.networks().collect();
    let routes = kernel.routes().map_err(|error| chain(&error))?;
    let hops = || peers.iter().filter_map(|peer| peer.hop);
    let gone = routes.into_iter().filter(|route| {
        is_of_flannel(route, &networks)
            && (route.dev == node.uplink.link.index || !route.is_unicast)
            && !hops().any(|hop| hop.subnet == route.to)
    });
    let changes: Vec<_> = gone.map(RouteChange::Delete).collect();
    let outcomes = kernel
        .change_routes(&changes)
        .map_err(|error| chain(&error))?;
    for (outcome, change) in outcomes.into_iter().zip(&changes) {
        outcome.map_err(|error| chain(&error))?;
        if let RouteChange::Delete(route) = change {
            warn!("deleted flannel's route {route}: none of ours is in its place");
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
