//! The agent's status as JSON: the answer to `/status`, read by `hostgw-agent status`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything that `status` shows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StatusReport {
    /// True if pods of this node have their network.
    pub(crate) ready: bool,
    /// Why the node is not ready.
    pub(crate) reasons: Vec<String>,
    /// Facts that should be corrected, although pods have their network.
    pub(crate) warnings: Vec<String>,
    /// This node. `None` until it has a subnet.
    pub(crate) node: Option<NodeReport>,
    pub(crate) store: StoreReport,
    pub(crate) firewall: FirewallReport,
    pub(crate) forwarding: ForwardingReport,
    /// The kernel's limits on neighbour entries (`gc_thresh1` to `gc_thresh3`); empty if this network namespace
    /// has none.
    #[serde(default)]
    pub(crate) neighbours: String,
    /// The fast path: `on` with its numbers of devices and flows, or `off` with the reason.
    #[serde(rename = "fastPath", default)]
    pub(crate) fast_path: String,
    pub(crate) reconcile: ReconcileReport,
    pub(crate) routes: RoutesReport,
    /// Every other node's subnets.
    pub(crate) peers: Vec<PeerReport>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) name: String,
    /// The network's configuration, with the keys of `net-conf.json`.
    pub(crate) network: Value,
    pub(crate) subnets: Vec<IpNetwork>,
    pub(crate) interface: String,
    /// Why it is this interface.
    pub(crate) because: String,
    /// The interface's index.
    pub(crate) index: u32,
    /// In bytes.
    pub(crate) mtu: u32,
    #[serde(rename = "publicIP")]
    pub(crate) public_ip: Option<Ipv4Addr>,
    #[serde(rename = "publicIPv6")]
    pub(crate) public_ipv6: Option<Ipv6Addr>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoreReport {
    pub(crate) name: String,
    pub(crate) reached: bool,
    pub(crate) warning: Option<String>,
    pub(crate) revision: i64,
    pub(crate) heard_seconds_ago: Option<f64>,
    pub(crate) lease_seconds_left: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FirewallReport {
    pub(crate) backend: String,
    /// How often changed rules were restored.
    #[serde(rename = "mended")]
    pub(crate) restored: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ForwardingReport {
    /// How many changed sysctls were restored.
    #[serde(rename = "mended")]
    pub(crate) restored: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReconcileReport {
    pub(crate) count: u64,
    /// When the last one ended, in seconds since 1970.
    pub(crate) last: Option<f64>,
    /// How long the last one took.
    pub(crate) seconds: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RoutesReport {
    pub(crate) written: u64,
    pub(crate) deleted: u64,
    /// How many of these were restored after someone else changed them.
    #[serde(rename = "mended")]
    pub(crate) restored: u64,
    /// How long the kernel took for the longest batch of changes.
    #[serde(rename = "longestBatchSeconds", default)]
    pub(crate) longest_batch_seconds: f64,
}

/// One subnet of another node.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PeerReport {
    pub(crate) node: String,
    pub(crate) subnet: Option<IpNetwork>,
    pub(crate) next_hop: Option<IpAddr>,
    /// The interface of the route. `None` if it is refused.
    pub(crate) device: Option<String>,
    pub(crate) state: PeerState,
    /// Why it is refused or diverted.
    pub(crate) reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PeerState {
    /// Routed.
    Installed,
    /// Not routed.
    Refused,
    /// Routed, but packets go elsewhere.
    Diverted,
}

impl PeerState {
    /// The word for it, as in the JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Refused => "refused",
            Self::Diverted => "diverted",
        }
    }
}
