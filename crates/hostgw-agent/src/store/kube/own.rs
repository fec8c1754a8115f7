//! Reads this node's subnets from its own Node object, and decides what to write there. No I/O.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::error::Error;
use super::format::{HOST_GW, Node, Prefix, name};
use crate::network::{Addresses, Hop, Lease, NetConf, SubnetPool};
use crate::store::NetworkStatus;

/// The length in bytes that the API server accepts for a condition's message.
const MAX_MESSAGE: usize = 1000;

impl Node {
    /// This node's own lease, from its podCIDRs and the addresses of its uplink, and why it lacks a
    /// family. Fails if it lacks all. Errors name what the Node says, and what the network's
    /// configuration in `file` says.
    pub(super) fn own_lease(
        &self,
        network: &NetConf,
        file: &str,
        addresses: Addresses,
    ) -> Result<(Lease, Vec<Error>), Error> {
        let subnets = self.own_subnets()?;
        let mut hops = Vec::new();
        let mut missing = Vec::new();
        for pool in network.pools() {
            match self.hop_of_family(&subnets, pool, file, addresses) {
                Ok(hop) => hops.push(hop),
                Err(error) => missing.push(error),
            }
        }
        if hops.is_empty() {
            return Err(Error::NoFamily(missing));
        }
        let lease = Lease {
            node: self.name.clone(),
            hops,
            invalid_reason: None,
        };
        Ok((lease, missing))
    }

    /// The podCIDRs, one or two.
    fn own_subnets(&self) -> Result<Vec<IpNetwork>, Error> {
        let node = || self.name.clone();
        if self.pod_cidrs.is_empty() {
            return Err(Error::NoPodCidr(node()));
        }
        if self.pod_cidrs.len() > 2 {
            let cidrs = self.pod_cidrs.join(", ");
            return Err(Error::TooManyPodCidrs {
                node: node(),
                cidrs,
            });
        }
        let parse = |cidr: &String| {
            subnet::parse(cidr).ok_or_else(|| Error::InvalidPodCidr {
                node: node(),
                cidr: cidr.clone(),
            })
        };
        self.pod_cidrs.iter().map(parse).collect()
    }

    /// The subnet of one family, with this node's address.
    fn hop_of_family(
        &self,
        subnets: &[IpNetwork],
        pool: SubnetPool,
        file: &str,
        addresses: Addresses,
    ) -> Result<Hop, Error> {
        let network = pool.network;
        let (family, key, via) = if network.is_ipv4() {
            ("IPv4", "Network", addresses.ipv4.map(IpAddr::V4))
        } else {
            ("IPv6", "IPv6Network", addresses.ipv6.map(IpAddr::V6))
        };
        let (node, file) = (self.name.clone(), file.to_owned());
        let is_of_family = |subnet: &&IpNetwork| subnet.is_ipv4() == network.is_ipv4();
        let Some(subnet) = subnets.iter().copied().find(|subnet| is_of_family(&subnet)) else {
            return Err(Error::NoPodCidrOfFamily {
                node,
                family,
                cidrs: self.pod_cidrs.join(", "),
                key,
                file,
                network,
            });
        };
        if !network.contains(subnet.ip()) || network.prefix() > subnet.prefix() {
            return Err(Error::PodCidrOutside {
                node,
                cidr: subnet,
                key,
                file,
                network,
            });
        }
        let via = via.ok_or(Error::NoAddressOfFamily {
            family,
            key,
            file,
            network,
        })?;
        Ok(Hop { subnet, via })
    }

    /// The annotations to change so that other nodes find this one at `addresses`; `None` for one to
    /// delete. An administrator's overwrites count.
    pub(super) fn annotation_changes(
        &self,
        prefix: &Prefix,
        addresses: Addresses,
    ) -> Result<BTreeMap<String, Option<String>>, Error> {
        let ipv4 = self
            .address::<Ipv4Addr>(name::OVERWRITE)?
            .or(addresses.ipv4);
        let ipv6 = self
            .address::<Ipv6Addr>(name::OVERWRITE_V6)?
            .or(addresses.ipv6);
        let text = |text: &str| Some(text.to_owned());
        // flannel writes 0.0.0.0 for no address.
        let ipv4 = ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED).to_string();
        let data_v6 = ipv6.map(|_| "null".to_owned());
        let wanted = [
            (name::MANAGED, text("true")),
            (name::BACKEND_TYPE, text(HOST_GW)),
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

    /// The condition to write for this status; `None` if the Node has it already. `now` is in RFC
    /// 3339.
    pub(super) fn condition(&self, network_status: &NetworkStatus, now: &str) -> Option<Value> {
        let (status, reason, message) = match network_status {
            NetworkStatus::Ready => (
                "False",
                "HostgwIsUp",
                "hostgw-agent routes for this node's pods".to_owned(),
            ),
            NetworkStatus::NotReady(problem) => ("True", "HostgwIsDown", truncate(problem)),
        };
        let present = self.network_unavailable.as_ref();
        let says = |text: &str| present.is_some_and(|present| present.status == text);
        let has_text = |reason: &str, message: &str| {
            present.is_some_and(|present| present.reason == reason && present.message == message)
        };
        if says(status) && has_text(reason, &message) {
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

    /// An event about the Node with this status. `now` is in RFC 3339.
    pub(super) fn event(&self, network_status: &NetworkStatus, now: &str) -> Value {
        let (kind, reason, message) = match network_status {
            NetworkStatus::Ready => (
                "Normal",
                "NetworkReady",
                "the pod network of this node is ready".to_owned(),
            ),
            NetworkStatus::NotReady(problem) => ("Warning", "NetworkNotReady", truncate(problem)),
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

/// A text, cut to the length that the API server accepts.
fn truncate(text: &str) -> String {
    if text.len() <= MAX_MESSAGE {
        return text.to_owned();
    }
    let end = (0..=MAX_MESSAGE)
        .rev()
        .find(|at| text.is_char_boundary(*at));
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
        assert_eq!(missing, []);
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
    fn errors_name_the_node_and_the_configuration() {
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
            let reason = reason.expect_err("there is something wrong").to_string();
            for word in words {
                assert!(reason.contains(word), "{reason:?} has {word:?}");
            }
        }
    }

    #[test]
    fn a_missing_family_does_not_affect_the_other() {
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
                missing.len() == 1 && missing[0].to_string().contains(words),
                "{missing:?}"
            );
        }
    }

    #[test]
    fn only_annotations_that_differ_from_flannels_are_written() {
        let prefix = prefix();
        let key = |name: &str| prefix.key(name);
        let empty = with_cidrs(&["10.10.1.0/24"]);
        let changes = empty
            .annotation_changes(&prefix, addresses())
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
        let changes = annotated.annotation_changes(&prefix, addresses());
        assert_eq!(changes, Ok(BTreeMap::new()));
        // One family is removed, and the other changes.
        let ipv4 = Addresses {
            ipv4: "192.168.2.20".parse().ok(),
            ipv6: None,
        };
        let changes = annotated
            .annotation_changes(&prefix, ipv4)
            .expect("no overwrites");
        let expected = [
            (key("backend-v6-data"), None),
            (key("public-ip"), Some("192.168.2.20".to_owned())),
            (key("public-ipv6"), None),
        ];
        assert_eq!(changes, BTreeMap::from(expected));
    }

    #[test]
    fn an_overwrite_replaces_the_announced_address() {
        let prefix = prefix();
        let overwritten = |value: &str| {
            node(json!({"metadata": {"name": "worker1", "annotations":
                {prefix.key("public-ip-overwrite"): value}}}))
        };
        let changes = overwritten("203.0.113.7").annotation_changes(&prefix, addresses());
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
            .annotation_changes(&prefix, addresses())
            .expect("it is an address");
        assert_eq!(
            changes[&prefix.key("public-ipv6")],
            Some("2001:db8::7".to_owned())
        );
        let requested: Vec<_> = both
            .requested_addresses()
            .into_iter()
            .flatten()
            .map(|ip| ip.to_string())
            .collect();
        assert_eq!(requested, ["192.168.2.20", "fd00:192:168:2::20"]);
        let reason = overwritten("nat").annotation_changes(&prefix, addresses());
        let reason = reason.expect_err("it is none").to_string();
        assert!(
            reason.contains("public-ip-overwrite") && reason.contains("\"nat\""),
            "{reason}"
        );
    }

    fn not_ready(reason: &str) -> NetworkStatus {
        NetworkStatus::NotReady(reason.to_owned())
    }

    #[test]
    fn a_condition_is_written_only_if_it_differs() {
        let with = |status: &str, reason: &str, message: &str| {
            node(
                json!({"metadata": {"name": "worker1"}, "status": {"conditions": [
                    {"type": "NetworkUnavailable", "status": status, "reason": reason, "message": message},
                ]}}),
            )
        };
        let now = "2026-01-01T00:00:00Z";
        let missing = with_cidrs(&[])
            .condition(&NetworkStatus::Ready, now)
            .expect("it is missing");
        assert_eq!(missing["status"], "False");
        assert_eq!(missing["lastTransitionTime"], now);
        let up = with(
            "False",
            "HostgwIsUp",
            "hostgw-agent routes for this node's pods",
        );
        assert_eq!(up.condition(&NetworkStatus::Ready, now), None);
        // The status stays the same, but reason and message must be ours.
        let flannels = with("False", "FlannelIsUp", "Flannel is running on this node");
        let ours = flannels
            .condition(&NetworkStatus::Ready, now)
            .expect("it is flannel's");
        assert_eq!(ours.get("lastTransitionTime"), None);
        let down = up.condition(&not_ready("interface enp0s5 is down"), now);
        let down = down.expect("it is another");
        assert_eq!(
            (&down["status"], &down["message"]),
            (&json!("True"), &json!("interface enp0s5 is down"))
        );
        let long = "ü".repeat(2000);
        let down = up.condition(&not_ready(&long), now).expect("it is another");
        assert!(
            down["message"]
                .as_str()
                .is_some_and(|text| text.len() < 1024)
        );
    }
}
