//! The parts of a Node object that the agent uses, and the annotations through which flannel's
//! nodes and ours find each other.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;

use super::error::Error;
use super::object::{Condition, Object};
use crate::network::{Addresses, Hop, Lease, excerpt};

/// The only backend whose nodes can be routed to without encapsulation.
pub(super) const HOST_GW: &str = "host-gw";

/// Prefix of the name of each annotation, such as `flannel.alpha.coreos.com/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(String);

/// Names of the annotations in use, without the prefix.
pub(super) mod name {
    pub(in super::super) const MANAGED: &str = "kube-subnet-manager";
    pub(in super::super) const BACKEND_TYPE: &str = "backend-type";
    pub(in super::super) const BACKEND_DATA: &str = "backend-data";
    pub(in super::super) const BACKEND_V6_DATA: &str = "backend-v6-data";
    pub(in super::super) const PUBLIC_IP: &str = "public-ip";
    pub(in super::super) const PUBLIC_IPV6: &str = "public-ipv6";
    pub(in super::super) const OVERWRITE: &str = "public-ip-overwrite";
    pub(in super::super) const OVERWRITE_V6: &str = "public-ipv6-overwrite";
    pub(in super::super) const NODE_IP: &str = "node-public-ip";
    pub(in super::super) const NODE_IPV6: &str = "node-public-ipv6";

    pub(super) const ALL: [&str; 10] = [
        MANAGED,
        BACKEND_TYPE,
        BACKEND_DATA,
        BACKEND_V6_DATA,
        PUBLIC_IP,
        PUBLIC_IPV6,
        OVERWRITE,
        OVERWRITE_V6,
        NODE_IP,
        NODE_IPV6,
    ];
}

/// The parts of a Node that the agent uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(super) uid: String,
    /// Creation time, in seconds since 1970.
    pub(super) created: i64,
    /// `resourceVersion` as a number. The API server gives it as a string.
    pub(super) version: u64,
    pub(super) pod_cidrs: Vec<String>,
    /// Annotations that have our prefix, by their names without it.
    annotations: Vec<(&'static str, String)>,
    /// Addresses of type `InternalIP`, the first of each family.
    pub(crate) internal: Addresses,
    /// The condition `NetworkUnavailable`.
    pub(super) network_unavailable: Option<Condition>,
}

impl Prefix {
    /// Returns the full name of an annotation.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Parses a prefix by flannel's rules: a domain, optionally followed by a slash and the start
    /// of the names, to which a dash is added.
    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, begin) = text.split_once('/').unwrap_or((text, ""));
        let is_part = |text: &str| {
            let is_good =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
            text.chars().all(is_good)
        };
        let is_domain = is_part(domain)
            && domain.contains('.')
            && domain.split('.').all(|label| !label.is_empty());
        if !is_domain || !is_part(begin) {
            return Err(format!(
                "{text:?} is not of the form flannel.alpha.coreos.com or example.com/pods"
            ));
        }
        let dash = if begin.is_empty() || begin.ends_with('-') {
            ""
        } else {
            "-"
        };
        Ok(Self(format!("{domain}/{begin}{dash}")))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Object {
    /// Reduces the object to the parts that the agent uses.
    pub(super) fn node(self, prefix: &Prefix) -> Node {
        let mut metadata = self.metadata.unwrap_or_default();
        let (spec, status) = (
            self.spec.unwrap_or_default(),
            self.status.unwrap_or_default(),
        );
        let annotations = &mut metadata.annotations;
        let mut message = name::ALL
            .into_iter()
            .filter_map(|name| Some((name, annotations.remove(&prefix.key(name))?)));
        let annotations = message.by_ref().collect();
        let mut internal = Addresses::default();
        let addresses = status.addresses.iter();
        for address in addresses.filter(|address| address.r#type == "InternalIP") {
            match address.address.parse() {
                Ok(IpAddr::V4(v4)) => {
                    internal.ipv4.get_or_insert(v4);
                }
                Ok(IpAddr::V6(v6)) => {
                    internal.ipv6.get_or_insert(v6);
                }
                Err(_) => {}
            }
        }
        let mut pod_cidrs = spec.pod_cidrs;
        if pod_cidrs.is_empty() && !spec.pod_cidr.is_empty() {
            pod_cidrs.push(spec.pod_cidr);
        }
        let mut conditions = status.conditions.into_iter();
        let created = metadata.creation_timestamp.unwrap_or_default();
        Node {
            name: metadata.name,
            uid: metadata.uid,
            created: created.seconds,
            version: metadata.resource_version.parse().unwrap_or_default(),
            pod_cidrs,
            annotations,
            internal,
            network_unavailable: conditions
                .find(|condition| condition.r#type == "NetworkUnavailable"),
        }
    }
}

impl Node {
    /// Returns the value of an annotation; `None` if it is empty or missing.
    pub(super) fn says(&self, name: &str) -> Option<&str> {
        let mut all = self.annotations.iter();
        let (_, value) = all.find(|(other, value)| *other == name && !value.is_empty())?;
        Some(value)
    }

    /// Returns the address in an annotation. An error names the annotation and its value.
    pub(super) fn address<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, Error> {
        let Some(text) = self.says(name) else {
            return Ok(None);
        };
        let address = text.parse().map(Some);
        address.map_err(|_| Error::InvalidAnnotation {
            node: self.name.clone(),
            name,
            value: excerpt(text),
        })
    }

    /// True if `other` has the same values, whatever its version is.
    pub(super) fn differs_only_in_version(&self, other: &Self) -> bool {
        let version = other.version;
        *other
            == Self {
                version,
                ..self.clone()
            }
    }

    /// Returns the addresses that an administrator has requested for this node. The interface that
    /// has them is the uplink.
    pub(super) fn requested_addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let ipv4 = self.address::<Ipv4Addr>(name::NODE_IP)?;
        let ipv6 = self.address::<Ipv6Addr>(name::NODE_IPV6)?;
        let ipv4 = ipv4.map(IpAddr::V4);
        Ok(ipv4.into_iter().chain(ipv6.map(IpAddr::V6)).collect())
    }

    /// Returns the addresses that the annotations announce to the other nodes.
    pub(super) fn announced(&self) -> Addresses {
        self.public_addresses().unwrap_or_default()
    }

    /// Returns the node's subnets, the first of each family.
    fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let all: Vec<IpNetwork> = self
            .pod_cidrs
            .iter()
            .filter_map(|cidr| subnet::parse(cidr))
            .collect();
        let first = |is_ipv4| all.iter().copied().find(|cidr| cidr.is_ipv4() == is_ipv4);
        [first(true), first(false)].into_iter().flatten()
    }

    /// Returns the lease of the node: its subnets and how to reach them. A node without annotations
    /// is reached by its `InternalIP` if `uses_internal_ip` is true.
    pub(super) fn lease(&self, prefix: &Prefix, uses_internal_ip: bool) -> Lease {
        let is_managed = self.says(name::MANAGED) == Some("true");
        let message = self.public_addresses();
        let via = match &message {
            Ok(message) if is_managed => *message,
            _ if !is_managed && uses_internal_ip => self.internal,
            _ => Addresses::default(),
        };
        let hop = |subnet: IpNetwork| {
            let via = if subnet.is_ipv4() {
                via.ipv4.map(IpAddr::V4)
            } else {
                via.ipv6.map(IpAddr::V6)
            };
            Some(Hop { subnet, via: via? })
        };
        let hops: Vec<_> = self.subnets().filter_map(hop).collect();
        let invalid_reason = if !is_managed && !uses_internal_ip {
            let key = prefix.key(name::MANAGED);
            Some(format!("its Node has no annotation {key}: \"true\""))
        } else if let Err(reason) = message {
            Some(reason.to_string())
        } else if is_managed && self.says(name::BACKEND_TYPE) != Some(HOST_GW) {
            let other = self.says(name::BACKEND_TYPE).unwrap_or_default();
            let other = excerpt(other);
            Some(format!("its backend is {other:?}, not {HOST_GW}"))
        } else if self.pod_cidrs.is_empty() {
            Some("its Node has no podCIDR".to_owned())
        } else if hops.is_empty() {
            let cidrs = self.pod_cidrs.join(", ");
            Some(format!(
                "its Node has no address of the family of its podCIDR {cidrs}"
            ))
        } else {
            None
        };
        Lease::new(&self.name, hops, invalid_reason)
    }

    /// Returns the addresses in the annotations.
    fn public_addresses(&self) -> Result<Addresses, Error> {
        Ok(Addresses {
            // flannel writes 0.0.0.0 if the node has no IPv4 address.
            ipv4: self
                .address(name::PUBLIC_IP)?
                .filter(|ipv4: &Ipv4Addr| !ipv4.is_unspecified()),
            ipv6: self.address(name::PUBLIC_IPV6)?,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::*;

    pub(in super::super) fn prefix() -> Prefix {
        "flannel.alpha.coreos.com".parse().expect("flannel's own")
    }

    pub(in super::super) fn node(value: Value) -> Node {
        let object: Object = serde_json::from_value(value).expect("a Node");
        object.node(&prefix())
    }

    fn annotated(annotations: &[(&str, &str)], cidrs: &[&str]) -> Node {
        let annotations: HashMap<_, _> = annotations
            .iter()
            .map(|(name, value)| (prefix().key(name), *value))
            .collect();
        node(json!({
            "metadata": {"name": "worker1", "annotations": annotations},
            "spec": {"podCIDR": cidrs.first().unwrap_or(&""), "podCIDRs": cidrs},
            "status": {"addresses": [
                {"type": "Hostname", "address": "worker1"},
                {"type": "InternalIP", "address": "10.9.9.9"},
            ]},
        }))
    }

    #[test]
    fn a_prefix_is_normalized_as_by_flannel() {
        for (text, key) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/x"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/x"),
            ("example.com/pods", "example.com/pods-x"),
            ("example.com/pods-", "example.com/pods-x"),
        ] {
            assert_eq!(
                text.parse::<Prefix>().map(|prefix| prefix.key("x")),
                Ok(key.to_owned())
            );
        }
        for text in [
            "",
            "com",
            "a/b/c.d",
            "Example.com",
            "a..b",
            "example.com/p q",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_lease_has_the_hops_that_flannel_would_read() {
        let full = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "host-gw"),
            ("backend-data", "null"),
            ("public-ip", "192.168.2.16"),
            ("public-ipv6", "fd00:192:168:2::16"),
        ];
        let dual = ["10.10.1.0/24", "fd00:10:10:1::/64"];
        let lease = annotated(&full, &dual).lease(&prefix(), false);
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
        assert_eq!(lease.invalid_reason, None);
        // A family that one side does not have is left out; the other family is routed.
        let lease = annotated(&full[..4], &dual).lease(&prefix(), false);
        assert_eq!((lease.hops.len(), lease.invalid_reason), (1, None));
        // flannel writes 0.0.0.0 for an IPv6-only node.
        let lease = annotated(
            &[full[0], full[1], ("public-ip", "0.0.0.0"), full[4]],
            &dual,
        )
        .lease(&prefix(), false);
        assert_eq!((lease.hops.len(), lease.invalid_reason), (1, None));
    }

    #[test]
    fn a_node_that_cannot_be_routed_has_a_reason() {
        let managed = ("kube-subnet-manager", "true");
        let ours = ("backend-type", "host-gw");
        let address = ("public-ip", "192.168.2.16");
        for (annotations, cidrs, invalid_reason) in [
            (
                vec![],
                vec!["10.10.1.0/24"],
                "no annotation flannel.alpha.coreos.com/kube-subnet-manager",
            ),
            (
                vec![managed, ("backend-type", "vxlan"), address],
                vec!["10.10.1.0/24"],
                "\"vxlan\"",
            ),
            (vec![managed, ours, address], vec![], "no podCIDR"),
            (
                vec![managed, ours, ("public-ip", "worker1")],
                vec!["10.10.1.0/24"],
                "public-ip of Node worker1 is \"worker1\"",
            ),
            (
                vec![managed, ours, address],
                vec!["fd00:10:10:1::/64"],
                "family of its podCIDR fd00:10:10:1::/64",
            ),
        ] {
            let lease = annotated(&annotations, &cidrs).lease(&prefix(), false);
            let message = lease.invalid_reason.expect("there is something wrong");
            assert!(
                message.contains(invalid_reason),
                "{message:?} has {invalid_reason:?}"
            );
        }
    }

    #[test]
    fn a_node_without_annotations_is_reached_by_its_internal_ip_if_enabled() {
        let lease = annotated(&[], &["10.10.1.0/24"]).lease(&prefix(), true);
        assert_eq!(lease.hops[0].via.to_string(), "10.9.9.9");
        assert_eq!(lease.invalid_reason, None);
        // A node with annotations is reached by the addresses in them.
        let annotations = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "host-gw"),
            ("public-ip", "192.168.2.16"),
        ];
        let lease = annotated(&annotations, &["10.10.1.0/24"]).lease(&prefix(), true);
        assert_eq!(lease.hops[0].via.to_string(), "192.168.2.16");
    }

    #[test]
    fn only_the_fields_in_use_are_kept() {
        let node = node(json!({
            "kind": "Node",
            "metadata": {
                "name": "worker1", "uid": "u", "resourceVersion": "17",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"a": "b"}, "annotations": {"other/public-ip": "1.2.3.4"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": {}}}],
            },
            "spec": {"podCIDR": "10.10.1.0/24"},
            "status": {
                "images": [{"names": ["x"], "sizeBytes": 1}],
                "conditions": [
                    {"type": "Ready", "status": "True"},
                    {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"},
                ],
            },
        }));
        assert_eq!(node.pod_cidrs, ["10.10.1.0/24"]);
        assert_eq!(node.annotations, []);
        assert_eq!(node.version, 17);
        assert_eq!(
            node.network_unavailable.map(|condition| condition.reason),
            Some("NoRouteCreated".to_owned())
        );
    }

    #[test]
    fn damaged_annotations_never_panic() {
        let values: [&[u8]; 2] = [
            b"host-gw\nnull\n192.168.2.15\nfd00::15\n192.168.2.16,fd00::16\n10.10.1.0/24\nfd00:10:10:1::/64",
            b"vxlan\n{\"VNI\":1}\n\n::\n0.0.0.0\n10.10.1.7/33\n",
        ];
        random_input::never_panics(&values, |input| {
            let text = String::from_utf8_lossy(input);
            let mut lines = text.split('\n');
            let mut line = || lines.next().unwrap_or_default();
            let annotations = [
                (name::BACKEND_TYPE, line()),
                (name::BACKEND_DATA, line()),
                (name::PUBLIC_IP, line()),
                (name::PUBLIC_IPV6, line()),
                (name::OVERWRITE, line()),
            ];
            let node = annotated(&annotations, &[line(), line()]);
            for uses_internal_ip in [false, true] {
                drop(node.lease(&prefix(), uses_internal_ip));
            }
            drop(node.requested_addresses());
            drop(text.parse::<Prefix>());
        });
    }
}
