//! What this node's own Node object grants it, and what is to be written there. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::format::{BACKEND, Node, Prefix, name};
use crate::lease::{Addresses, Hop, Lease};
use crate::net_conf::NetConf;

/// Why this node has no network, or that it has one.
pub(crate) type Verdict = Result<(), String>;

/// What the API server takes as a condition's message; what is longer says nothing more.
const LONGEST: usize = 1000;

impl Node {
    /// This node's own lease, by its podCIDRs and by the addresses of its interface, and what is wrong
    /// with one family that leaves the other its network. Errors name both what the Node says and what
    /// the network's configuration, from `file`, says.
    pub(crate) fn own_lease(
        &self,
        network: &NetConf,
        file: &str,
        addresses: Addresses,
    ) -> Result<(Lease, Vec<String>), String> {
        let name = &self.name;
        let cidrs = self.pod_cidrs.join(", ");
        if self.pod_cidrs.is_empty() {
            return Err(format!(
                "Node {name} has no podCIDR yet: the control plane assigns it (kube-controller-manager --allocate-node-cidrs, kubeadm --pod-network-cidr)"
            ));
        }
        if self.pod_cidrs.len() > 2 {
            return Err(format!("Node {name} has more than two podCIDRs: {cidrs}"));
        }
        let mut subnets = Vec::new();
        for cidr in &self.pod_cidrs {
            let subnet = subnet_env::cidr(cidr).ok_or_else(|| {
                format!("podCIDR {cidr:?} of Node {name} is not such as 10.10.1.0/24")
            })?;
            subnets.push(subnet);
        }
        let mut hops = Vec::new();
        let mut missing = Vec::new();
        for space in network.spaces() {
            let whole = space.network;
            match self.own_hop(&subnets, whole, file, addresses) {
                Ok(hop) => hops.push(hop),
                Err(reason) => missing.push(reason),
            }
        }
        if hops.is_empty() {
            return Err(missing.join("; "));
        }
        let lease = Lease {
            node: name.clone(),
            hops,
            flaw: None,
        };
        Ok((lease, missing))
    }

    /// The same of one family.
    fn own_hop(
        &self,
        subnets: &[IpNetwork],
        whole: IpNetwork,
        file: &str,
        addresses: Addresses,
    ) -> Result<Hop, String> {
        let name = &self.name;
        let (family, key, via) = if whole.is_ipv4() {
            ("IPv4", "Network", addresses.ipv4.map(IpAddr::V4))
        } else {
            ("IPv6", "IPv6Network", addresses.ipv6.map(IpAddr::V6))
        };
        let mut its = subnets.iter();
        let subnet = its.find(|subnet| subnet.is_ipv4() == whole.is_ipv4());
        let subnet = *subnet.ok_or_else(|| {
            let cidrs = self.pod_cidrs.join(", ");
            format!("Node {name} has no {family} podCIDR ({cidrs}), but {key} in {file} is {whole}")
        })?;
        if !whole.contains(subnet.ip()) || whole.prefix() > subnet.prefix() {
            return Err(format!(
                "podCIDR {subnet} of Node {name} is not within {key} {whole} in {file}"
            ));
        }
        let via = via.ok_or_else(|| {
            format!("the interface to the other nodes has no {family} address, but {key} in {file} is {whole}")
        })?;
        Ok(Hop { subnet, via })
    }

    /// The annotations that are to be changed for others to find this node at `addresses`; nothing
    /// for one that is to go. An administrator's overwrites count.
    pub(super) fn announcement(
        &self,
        prefix: &Prefix,
        addresses: Addresses,
    ) -> Result<BTreeMap<String, Option<String>>, String> {
        let ipv4 = self
            .address::<Ipv4Addr>(name::OVERWRITE)?
            .or(addresses.ipv4);
        let ipv6 = self
            .address::<Ipv6Addr>(name::OVERWRITE_V6)?
            .or(addresses.ipv6);
        let text = |text: &str| Some(text.to_owned());
        // As flannel says that there is none.
        let ipv4 = ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string();
        let data_v6 = ipv6.map(|_| "null".to_owned());
        let wanted = [
            (name::MANAGED, text("true")),
            (name::BACKEND_TYPE, text(BACKEND)),
            (name::BACKEND_DATA, text("null")),
            (name::PUBLIC_IP, Some(ipv4)),
            (name::BACKEND_V6_DATA, data_v6),
            (name::PUBLIC_IPV6, ipv6.map(|ipv6| ipv6.to_string())),
        ];
        let differs = |(name, value): &(&str, Option<String>)| self.says(name) != value.as_deref();
        let changes = wanted.into_iter().filter(differs);
        Ok(changes
            .map(|(name, value)| (prefix.key(name), value))
            .collect())
    }

    /// The condition that is to be written for the Node to say so; nothing where it does. `now` is
    /// in RFC 3339.
    pub(super) fn condition(&self, verdict: &Verdict, now: &str) -> Option<Value> {
        let (status, reason, message) = match verdict {
            Ok(()) => (
                "False",
                "HostgwIsUp",
                "hostgw-agent routes for this node's pods".to_owned(),
            ),
            Err(trouble) => ("True", "HostgwIsDown", shorten(trouble)),
        };
        let present = self.unavailable.as_ref();
        let says = |text: &str| present.is_some_and(|present| present.status == text);
        let is_so = |reason: &str, message: &str| {
            present.is_some_and(|present| present.reason == reason && present.message == message)
        };
        if says(status) && is_so(reason, &message) {
            return None;
        }
        let mut condition = json!({
            "type": "NetworkUnavailable",
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": now,
        });
        if !says(status) {
            condition["lastTransitionTime"] = now.into();
        }
        Some(condition)
    }

    /// An event about the Node, to be seen where people look first.
    pub(super) fn event(&self, verdict: &Verdict, now: &str) -> Value {
        let (kind, reason, message) = match verdict {
            Ok(()) => (
                "Normal",
                "NetworkReady",
                "pods of this node have their network".to_owned(),
            ),
            Err(trouble) => ("Warning", "NetworkNotReady", shorten(trouble)),
        };
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": format!("{}.", self.name), "namespace": "default"},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Node", "name": self.name, "uid": self.uid,
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": "hostgw-agent", "host": self.name},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        })
    }
}

/// So much of a text as the API server takes.
fn shorten(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at));
    format!("{}…", &text[..end.unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::{node, prefix};
    use super::*;

    const FILE: &str = "/etc/kube-flannel/net-conf.json";

    fn with_cidrs(cidrs: &[&str]) -> Node {
        node(json!({"metadata": {"name": "worker1"}, "spec": {"podCIDRs": cidrs}}))
    }

    fn network(text: &str) -> NetConf {
        serde_json::from_str(text).expect("a network")
    }

    fn dual() -> NetConf {
        network(
            r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:10::/48",
                "Backend": {"Type": "host-gw"}}"#,
        )
    }

    fn addresses() -> Addresses {
        Addresses {
            ipv4: "192.168.2.16".parse().ok(),
            ipv6: "fd00:192:168:2::16".parse().ok(),
        }
    }

    #[test]
    fn a_node_has_the_subnets_of_its_pod_cidrs() {
        let node = with_cidrs(&["fd00:10:10:1::/64", "10.10.1.0/24"]);
        let (lease, missing) = node
            .own_lease(&dual(), FILE, addresses())
            .expect("it has both");
        assert_eq!(missing, Vec::<String>::new());
        let hops: Vec<_> = lease
            .hops
            .iter()
            .map(|hop| format!("{} {}", hop.subnet, hop.via))
            .collect();
        assert_eq!(
            hops,
            [
                "10.10.1.0/24 192.168.2.16",
                "fd00:10:10:1::/64 fd00:192:168:2::16"
            ]
        );
    }

    #[test]
    fn what_keeps_a_node_from_having_one_names_both_sides() {
        let none = Addresses::default();
        for (cidrs, addresses, words) in [
            (
                &[][..],
                addresses(),
                &["Node worker1", "no podCIDR yet"][..],
            ),
            (
                &["10.244.1.0/24", "fd00:99::/64"],
                addresses(),
                &[
                    "10.244.1.0/24",
                    "Network 10.10.0.0/16",
                    FILE,
                    "fd00:99::/64",
                ],
            ),
            (
                &["10.0.0.0/8"],
                addresses(),
                &["10.0.0.0/8", "Network 10.10.0.0/16", "no IPv6 podCIDR"],
            ),
            (
                &["10.10.1.0/24", "10.10.2.0/24", "fd00::/64"],
                addresses(),
                &["more than two"],
            ),
            (&["10.10.1"], addresses(), &["\"10.10.1\""]),
            (
                &["10.10.1.0/24", "fd00:10:10:1::/64"],
                none,
                &["no IPv4 address", "10.10.0.0/16"],
            ),
        ] {
            let reason = with_cidrs(cidrs).own_lease(&dual(), FILE, addresses);
            let reason = reason.expect_err("there is something wrong");
            for word in words {
                assert!(reason.contains(word), "{reason:?} has {word:?}");
            }
        }
    }

    #[test]
    fn what_one_family_lacks_takes_nothing_from_the_other() {
        let one = |is_ipv4: bool| Addresses {
            ipv4: addresses().ipv4.filter(|_| is_ipv4),
            ipv6: addresses().ipv6.filter(|_| !is_ipv4),
        };
        for (cidrs, addresses, hop, words) in [
            (
                &["10.10.1.0/24"][..],
                addresses(),
                "10.10.1.0/24",
                "no IPv6 podCIDR (10.10.1.0/24), but IPv6Network",
            ),
            (
                &["fd00:10:10:1::/64"],
                addresses(),
                "fd00:10:10:1::/64",
                "no IPv4 podCIDR",
            ),
            (
                &["10.244.1.0/24", "fd00:10:10:1::/64"],
                addresses(),
                "fd00:10:10:1::/64",
                "podCIDR 10.244.1.0/24 of Node worker1 is not within Network 10.10.0.0/16",
            ),
            (
                &["10.10.1.0/24", "fd00:10:10:1::/64"],
                one(true),
                "10.10.1.0/24",
                "no IPv6 address",
            ),
            (
                &["10.10.1.0/24", "fd00:10:10:1::/64"],
                one(false),
                "fd00:10:10:1::/64",
                "no IPv4 address",
            ),
        ] {
            let lease = with_cidrs(cidrs).own_lease(&dual(), FILE, addresses);
            let (lease, missing) = lease.expect("one family is whole");
            let subnets: Vec<_> = lease.subnets().map(|subnet| subnet.to_string()).collect();
            assert_eq!(subnets, [hop]);
            assert!(
                missing.len() == 1 && missing[0].contains(words),
                "{missing:?}"
            );
        }
    }

    #[test]
    fn annotations_are_flannels_and_only_differences_are_written() {
        let prefix = prefix();
        let key = |name: &str| prefix.key(name);
        let empty = with_cidrs(&["10.10.1.0/24"]);
        let changes = empty
            .announcement(&prefix, addresses())
            .expect("no overwrites");
        let wanted = [
            ("backend-data", "null"),
            ("backend-type", "host-gw"),
            ("backend-v6-data", "null"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.2.16"),
            ("public-ipv6", "fd00:192:168:2::16"),
        ];
        let wanted: BTreeMap<_, _> = wanted
            .into_iter()
            .map(|(name, value)| (key(name), Some(value.to_owned())))
            .collect();
        assert_eq!(changes, wanted);
        let annotations: BTreeMap<_, _> = wanted.into_iter().collect();
        let annotated = node(json!({"metadata": {"name": "worker1", "annotations": annotations}}));
        let changes = annotated.announcement(&prefix, addresses());
        assert_eq!(changes, Ok(BTreeMap::new()));
        // One family goes, and the other changes.
        let ipv4 = Addresses {
            ipv4: "192.168.2.20".parse().ok(),
            ipv6: None,
        };
        let changes = annotated
            .announcement(&prefix, ipv4)
            .expect("no overwrites");
        let expected = [
            (key("backend-v6-data"), None),
            (key("public-ip"), Some("192.168.2.20".to_owned())),
            (key("public-ipv6"), None),
        ];
        assert_eq!(changes, BTreeMap::from(expected));
    }

    #[test]
    fn an_administrator_overwrites_what_others_are_told() {
        let prefix = prefix();
        let overwritten = |value: &str| {
            node(json!({"metadata": {"name": "worker1", "annotations":
                {prefix.key("public-ip-overwrite"): value}}}))
        };
        let changes = overwritten("203.0.113.7").announcement(&prefix, addresses());
        let changes = changes.expect("it is an address");
        assert_eq!(
            changes[&prefix.key("public-ip")],
            Some("203.0.113.7".to_owned())
        );
        let both = node(json!({"metadata": {"name": "worker1", "annotations": {
            prefix.key("public-ipv6-overwrite"): "2001:db8::7",
            prefix.key("node-public-ip"): "192.168.2.20",
            prefix.key("node-public-ipv6"): "fd00:192:168:2::20",
        }}}));
        let changes = both
            .announcement(&prefix, addresses())
            .expect("it is an address");
        assert_eq!(
            changes[&prefix.key("public-ipv6")],
            Some("2001:db8::7".to_owned())
        );
        let asked: Vec<_> = both
            .asked()
            .into_iter()
            .flatten()
            .map(|ip| ip.to_string())
            .collect();
        assert_eq!(asked, ["192.168.2.20", "fd00:192:168:2::20"]);
        let reason = overwritten("nat").announcement(&prefix, addresses());
        let reason = reason.expect_err("it is none");
        assert!(
            reason.contains("public-ip-overwrite") && reason.contains("\"nat\""),
            "{reason}"
        );
    }

    #[test]
    fn a_condition_is_written_where_it_differs() {
        let with = |status: &str, reason: &str, message: &str| {
            node(
                json!({"metadata": {"name": "worker1"}, "status": {"conditions": [
                    {"type": "NetworkUnavailable", "status": status, "reason": reason, "message": message},
                ]}}),
            )
        };
        let now = "2026-01-01T00:00:00Z";
        let missing = with_cidrs(&[])
            .condition(&Ok(()), now)
            .expect("it is missing");
        assert_eq!(missing["status"], "False");
        assert_eq!(missing["lastTransitionTime"], now);
        let up = with(
            "False",
            "HostgwIsUp",
            "hostgw-agent routes for this node's pods",
        );
        assert_eq!(up.condition(&Ok(()), now), None);
        // Who said so before does not matter, but it is said by us.
        let flannels = with("False", "FlannelIsUp", "Flannel is running on this node");
        let ours = flannels.condition(&Ok(()), now).expect("it is flannel's");
        assert_eq!(ours.get("lastTransitionTime"), None);
        let down = up.condition(&Err("interface enp0s5 is down".to_owned()), now);
        let down = down.expect("it is another");
        assert_eq!(
            (&down["status"], &down["message"]),
            (&json!("True"), &json!("interface enp0s5 is down"))
        );
        let long = "ü".repeat(2000);
        let down = up.condition(&Err(long), now).expect("it is another");
        assert!(
            down["message"]
                .as_str()
                .is_some_and(|text| text.len() < 1024)
        );
    }
}
