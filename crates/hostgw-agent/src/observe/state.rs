//! The findings of the last reconcile, for status, metrics and systemd.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::report::{
    FirewallReport, ForwardingReport, NodeReport, PeerReport, PeerState, ReconcileReport,
    RoutesReport, StatusReport, StoreReport,
};
use crate::fast_path;
use crate::network::NetConf;
use crate::node::{NeighbourStatus, Node};
use crate::routes::{Applied, Peer};

/// The state that the loop writes and the HTTP server reads.
pub(crate) type SharedState = Arc<Mutex<State>>;

/// Locks the state, even if a thread panicked while it had the lock.
pub(crate) fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that `status`, `/readyz` and `/metrics` show.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) node: Option<NodeState>,
    /// Reasons why pods of this node do not have their network. With one, the node is not ready.
    pub(crate) problems: Vec<String>,
    /// Facts that should be corrected, although pods have their network.
    pub(crate) warnings: Vec<String>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) store: StoreState,
    /// The name of the firewall's backend.
    pub(crate) firewall: &'static str,
    pub(crate) firewall_restored: u64,
    pub(crate) forwarding_restored: u64,
    /// `None` until this node has a subnet.
    pub(crate) fast_path: Option<fast_path::Status>,
    pub(crate) fast_path_flushes: u64,
    /// The kernel's limits on neighbour entries.
    pub(crate) neighbours: NeighbourStatus,
    pub(crate) reconciles: u64,
    pub(crate) last_reconcile: Option<SystemTime>,
    pub(crate) duration: Duration,
    pub(crate) routes_written: u64,
    pub(crate) routes_deleted: u64,
    pub(crate) routes_restored: u64,
    /// How long the kernel took for the longest batch of route changes.
    pub(crate) longest_batch: Duration,
}

/// This node, as far as it is shown.
pub(crate) struct NodeState {
    network: NetConf,
    name: String,
    subnets: Vec<IpNetwork>,
    interface: String,
    because: String,
    index: u32,
    mtu: u32,
    public_ip: Option<Ipv4Addr>,
    public_ipv6: Option<Ipv6Addr>,
}

/// The connection to the store.
#[derive(Default)]
pub(crate) struct StoreState {
    pub(crate) name: String,
    pub(crate) is_reached: bool,
    /// A warning about it, if this node can work without it.
    pub(crate) warning: Option<String>,
    /// The revision up to which it was read.
    pub(crate) revision: i64,
    /// When the store last answered or sent something.
    pub(crate) last_heard: Option<Instant>,
    /// When this node's lease expires.
    pub(crate) expires: Option<Instant>,
}

impl State {
    /// True if pods of this node have their network.
    pub(crate) fn is_ready(&self) -> bool {
        self.node.is_some() && self.problems.is_empty()
    }

    /// Counts a reconcile.
    pub(crate) fn reconciled(&mut self, duration: Duration, now: SystemTime) {
        self.reconciles += 1;
        self.duration = duration;
        self.last_reconcile = Some(now);
    }

    /// Counts route changes. With `is_repair`, someone else had changed the routes.
    pub(crate) fn count_routes(&mut self, applied: &Applied, is_repair: bool) {
        let (written, deleted) = applied.counts();
        self.longest_batch = self.longest_batch.max(applied.duration);
        self.routes_written += written;
        self.routes_deleted += deleted;
        if is_repair {
            self.routes_restored += written + deleted;
        }
    }

    pub(crate) fn set_node(&mut self, node: &Node) {
        let uplink = &node.uplink;
        let public = uplink.public(Some(&node.snapshot.network));
        self.node = Some(NodeState {
            network: node.snapshot.network,
            name: node.own.node.clone(),
            subnets: node.own.subnets().collect(),
            interface: uplink.link.name.clone(),
            because: uplink.because.clone(),
            index: uplink.link.index,
            mtu: uplink.link.mtu,
            public_ip: public.ipv4,
            public_ipv6: public.ipv6,
        });
    }

    /// The number of subnets of other nodes, and how many of them are routed.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let routed = self.peers.iter().filter(|peer| peer.wanted().is_some());
        (self.peers.len(), routed.count())
    }

    /// The answer to `/status`.
    pub(crate) fn report(&self) -> StatusReport {
        let device = self.node.as_ref().map(|node| node.interface.as_str());
        StatusReport {
            ready: self.is_ready(),
            reasons: self.problems.clone(),
            warnings: self.warnings.clone(),
            node: self.node.as_ref().map(NodeState::report),
            store: self.store.report(),
            firewall: FirewallReport {
                backend: self.firewall.to_owned(),
                restored: self.firewall_restored,
            },
            forwarding: ForwardingReport {
                restored: self.forwarding_restored,
            },
            neighbours: self.neighbours.describe(),
            fast_path: self
                .fast_path
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            reconcile: ReconcileReport {
                count: self.reconciles,
                last: self.last_reconcile.map(unix_seconds),
                seconds: self.duration.as_secs_f64(),
            },
            routes: RoutesReport {
                written: self.routes_written,
                deleted: self.routes_deleted,
                restored: self.routes_restored,
                longest_batch_seconds: self.longest_batch.as_secs_f64(),
            },
            peers: self
                .peers
                .iter()
                .map(|peer| peer_report(peer, device))
                .collect(),
        }
    }
}

fn peer_report(peer: &Peer, device: Option<&str>) -> PeerReport {
    let state = match (&peer.refused, &peer.diverted) {
        (Some(_), _) => PeerState::Refused,
        (None, Some(_)) => PeerState::Diverted,
        (None, None) => PeerState::Installed,
    };
    let device = device.filter(|_| state != PeerState::Refused);
    let refused = peer.refused.as_ref().map(ToString::to_string);
    PeerReport {
        node: peer.lease.node.clone(),
        subnet: peer.hop.map(|hop| hop.subnet),
        next_hop: peer.hop.map(|hop| hop.via),
        device: device.map(str::to_owned),
        state,
        reason: refused.or_else(|| peer.diverted.clone()),
    }
}

impl NodeState {
    fn report(&self) -> NodeReport {
        NodeReport {
            name: self.name.clone(),
            network: serde_json::to_value(self.network).expect("texts and numbers"),
            subnets: self.subnets.clone(),
            interface: self.interface.clone(),
            because: self.because.clone(),
            index: self.index,
            mtu: self.mtu,
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
        }
    }
}

impl StoreState {
    /// Seconds since the store last answered or sent something.
    pub(crate) fn silence(&self) -> Option<f64> {
        self.last_heard.map(|heard| heard.elapsed().as_secs_f64())
    }

    /// Seconds until this node's lease expires; 0 if it has expired.
    pub(crate) fn lease_left(&self) -> Option<f64> {
        let left = |end: Instant| end.saturating_duration_since(Instant::now());
        self.expires.map(|end| left(end).as_secs_f64())
    }

    fn report(&self) -> StoreReport {
        StoreReport {
            name: self.name.clone(),
            reached: self.is_reached,
            warning: self.warning.clone(),
            revision: self.revision,
            heard_seconds_ago: self.silence(),
            lease_seconds_left: self.lease_left(),
        }
    }
}

/// Returns the seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
