//! Scenarios: a verb, a kind of network, and whether another pod is attached to the network.

use serde_json::{Value, json};

/// A kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Ipv4,
    DualStack,
    Masquerade,
    Flannel,
    Delegated,
    Layer2,
}

/// A request of one verb in one kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    pub(crate) verb: &'static str,
    pub(crate) network: Network,
    /// True if the network has another pod, which must not be affected.
    pub(crate) has_other: bool,
}

impl Scenario {
    pub(crate) fn all() -> Vec<Self> {
        let networks = [
            Network::Ipv4,
            Network::DualStack,
            Network::Masquerade,
            Network::Flannel,
            Network::Delegated,
            Network::Layer2,
        ];
        let mut all = Vec::new();
        for verb in ["ADD", "DEL", "CHECK", "GC"] {
            for network in networks {
                for has_other in [false, true] {
                    all.push(Self {
                        verb,
                        network,
                        has_other,
                    });
                }
            }
        }
        all
    }

    pub(crate) fn name(&self) -> String {
        let other = if self.has_other {
            "later pod"
        } else {
            "first pod"
        };
        format!("{} {:?} {other}", self.verb, self.network)
    }

    /// The network configuration.
    pub(crate) fn conf(&self) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "cni-hostgw", "isDefaultGateway": true,
        });
        let (v4, v6) = ("10.10.1.0/24", "fd00:10:10:1::/64");
        match self.network {
            Network::Ipv4 => conf["ipam"] = json!({"ranges": [[{"subnet": v4}]]}),
            Network::DualStack => {
                conf["ipam"] = json!({"ranges": [[{"subnet": v4}], [{"subnet": v6}]]});
            }
            Network::Masquerade => {
                conf["ipam"] = json!({"ranges": [[{"subnet": v4}]]});
                conf["ipMasq"] = json!(true);
            }
            Network::Flannel => {
                conf["delegate"] = json!({"isDefaultGateway": true, "hairpinMode": true});
            }
            Network::Delegated => {
                conf["ipam"] = json!({
                    "type": "other-ipam", "dataDir": "/var/lib/cni/other", "ranges": [[{"subnet": v4}]],
                });
            }
            Network::Layer2 => conf["ipam"] = json!({}),
        }
        conf
    }

    /// The network configuration for GC, with the list of valid attachments.
    pub(crate) fn conf_with_valid(&self) -> Value {
        let mut conf = self.conf();
        let valid = if self.has_other {
            json!([{"containerID": "other", "ifname": "eth0"}])
        } else {
            json!([])
        };
        conf["cni.dev/valid-attachments"] = valid;
        conf
    }

    /// True if the plugin adds `nf_tables` rules for the network.
    pub(crate) fn has_rules(&self) -> bool {
        matches!(self.network, Network::Masquerade | Network::Flannel)
    }
}
