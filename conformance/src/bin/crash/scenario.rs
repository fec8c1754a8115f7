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
    /// With host ports and limits of the traffic.
    Ports,
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
            Network::Ports,
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
            Network::Ports => {
                conf["ipam"] = json!({"ranges": [[{"subnet": v4}], [{"subnet": v6}]]});
                add_ports(&mut conf, 8000);
            }
        }
        conf
    }

    /// The network configuration for the other pod, which has other host ports.
    pub(crate) fn conf_of_other(&self) -> Value {
        let mut conf = self.conf();
        if self.network == Network::Ports {
            add_ports(&mut conf, 9000);
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

/// Adds host ports from `first` on, and limits of the traffic.
fn add_ports(conf: &mut Value, first: u16) {
    conf["capabilities"] = json!({"portMappings": true, "bandwidth": true});
    conf["runtimeConfig"] = json!({
        "portMappings": [
            {"hostPort": first, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": first + 1, "containerPort": 53, "protocol": "udp"},
            {"hostPort": first + 2, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
        ],
        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000,
            "egressRate": 8_000_000, "egressBurst": 800_000},
    });
}
