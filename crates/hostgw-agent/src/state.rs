//! What the agent knows of itself, for who asks.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::lease::Lease;
use crate::net_conf::NetConf;
use crate::peers::Peer;
use crate::uplink::Uplink;

/// The state, as the loop last left it.
pub(crate) type Shared = Arc<Mutex<State>>;

/// The state, for a moment.
pub(crate) fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that `status`, `/readyz` and `/metrics` tell.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) node: Option<Node>,
    /// What is wrong with this node; one of them is enough not to be ready.
    pub(crate) troubles: Vec<String>,
    /// What is to be put right, and does not keep pods from having their network.
    pub(crate) warnings: Vec<String>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) store: StoreState,
    pub(crate) firewall: &'static str,
    pub(crate) firewall_mended: u64,
    pub(crate) forwarding_mended: u64,
    pub(crate) reconciles: u64,
    pub(crate) reconciled: Option<SystemTime>,
    pub(crate) duration: Duration,
    pub(crate) routes_written: u64,
    pub(crate) routes_deleted: u64,
    pub(crate) routes_mended: u64,
}

/// This node.
pub(crate) struct Node {
    pub(crate) network: NetConf,
    pub(crate) name: String,
    pub(crate) subnets: Vec<IpNetwork>,
    pub(crate) interface: String,
    /// Why it is that one, in words that follow "because".
    pub(crate) because: String,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    pub(crate) public_ip: Option<Ipv4Addr>,
    pub(crate) public_ipv6: Option<Ipv6Addr>,
}

/// How it stands with the store.
#[derive(Default)]
pub(crate) struct StoreState {
    pub(crate) name: String,
    pub(crate) is_reached: bool,
    /// What is wrong with it that does not keep this node from working.
    pub(crate) warning: Option<String>,
    /// How far it was read.
    pub(crate) revision: i64,
    /// When something was last heard of it.
    pub(crate) heard: Option<Instant>,
    /// When this node's lease ends.
    pub(crate) expires: Option<Instant>,
}

impl State {
    /// Whether pods of this node have their network.
    pub(crate) fn is_ready(&self) -> bool {
        self.node.is_some() && self.troubles.is_empty()
    }

    /// One comparison took this long.
    pub(crate) fn took(&mut self, duration: Duration, now: SystemTime) {
        self.reconciles += 1;
        self.duration = duration;
        self.reconciled = Some(now);
    }

    /// Routes were written and deleted, because of the store or because somebody touched them.
    pub(crate) fn count_routes(&mut self, written: u64, deleted: u64, is_mending: bool) {
        self.routes_written += written;
        self.routes_deleted += deleted;
        if is_mending {
            self.routes_mended += written + deleted;
        }
    }

    pub(crate) fn set_node(&mut self, network: &NetConf, own: &Lease, uplink: &Uplink) {
        let public = uplink.public(Some(network));
        self.node = Some(Node {
            network: *network,
            name: own.node.clone(),
            subnets: own.subnets().collect(),
            interface: uplink.link.name.clone(),
            because: uplink.because.clone(),
            index: uplink.link.index,
            mtu: uplink.link.mtu,
            public_ip: public.ipv4,
            public_ipv6: public.ipv6,
        });
    }

    /// How many subnets of other nodes there are, and how many are routed.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let routed = self.peers.iter().filter(|peer| peer.wanted().is_some());
        (self.peers.len(), routed.count())
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let device = self.node.as_ref().map(|node| node.interface.as_str());
        let peer = |peer: &Peer| {
            let is_installed = peer.refused.is_none();
            json!({
                "node": peer.lease.node,
                "subnet": peer.hop.map(|hop| hop.subnet),
                "nextHop": peer.hop.map(|hop| hop.via),
                "device": device.filter(|_| is_installed),
                "state": match (is_installed, &peer.diverted) {
                    (false, _) => "refused",
                    (true, Some(_)) => "diverted",
                    (true, None) => "installed",
                },
                "reason": peer.refused.as_ref().map(ToString::to_string).or(peer.diverted.clone()),
            })
        };
        json!({
            "ready": self.is_ready(),
            "reasons": self.troubles,
            "warnings": self.warnings,
            "node": self.node.as_ref().map(Node::json),
            "store": self.store.json(),
            "firewall": {"backend": self.firewall, "mended": self.firewall_mended},
            "forwarding": {"mended": self.forwarding_mended},
            "reconcile": {
                "count": self.reconciles,
                "last": self.reconciled.map(seconds),
                "seconds": self.duration.as_secs_f64(),
            },
            "routes": {
                "written": self.routes_written,
                "deleted": self.routes_deleted,
                "mended": self.routes_mended,
            },
            "peers": self.peers.iter().map(peer).collect::<Vec<_>>(),
        })
    }
}

impl Node {
    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "network": self.network,
            "subnets": self.subnets,
            "interface": self.interface,
            "because": self.because,
            "index": self.index,
            "mtu": self.mtu,
            "publicIP": self.public_ip,
            "publicIPv6": self.public_ipv6,
        })
    }
}

impl StoreState {
    /// Seconds since something was heard.
    pub(crate) fn lag(&self) -> Option<f64> {
        self.heard.map(|heard| heard.elapsed().as_secs_f64())
    }

    /// Seconds until the lease ends, 0 when it has.
    pub(crate) fn left(&self) -> Option<f64> {
        let left = |end: Instant| end.saturating_duration_since(Instant::now());
        self.expires.map(|end| left(end).as_secs_f64())
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "reached": self.is_reached,
            "warning": self.warning,
            "revision": self.revision,
            "heardSecondsAgo": self.lag(),
            "leaseSecondsLeft": self.left(),
        })
    }
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
