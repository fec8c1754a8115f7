//! What a Node object says, and the annotations by which flannel's nodes and ours find one another.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;

use super::object::{Condition, Object};
use crate::lease::{Addresses, Hop, Lease};

/// The one backend whose nodes route to one another without more.
pub(super) const BACKEND: &str = "host-gw";

/// What stands before the name of each annotation, `flannel.alpha.coreos.com/` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(String);

/// The annotations that matter, without the prefix.
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

/// A Node, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(super) uid: String,
    /// When it was made, in seconds since 1970.
    pub(super) created: i64,
    /// How new this is; texts of the API server's, which are numbers.
    pub(super) version: u64,
    pub(super) pod_cidrs: Vec<String>,
    /// Those of our prefix, by their names without it.
    annotations: Vec<(&'static str, String)>,
    /// Its `InternalIP`, the first of each family.
    pub(crate) internal: Addresses,
    /// Its condition `NetworkUnavailable`.
    pub(super) unavailable: Option<Condition>,
}

impl Prefix {
    /// An annotation's whole name.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.0)
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// By flannel's rules: a domain; behind a slash, a beginning of the name, which gets a dash.
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
                "{text:?} is not such as flannel.alpha.coreos.com or example.com/pods"
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
    /// What matters of it.
    pub(super) fn node(self, prefix: &Prefix) -> Node {
        let mut metadata = self.metadata.unwrap_or_default();
        let (spec, status) = (
            self.spec.unwrap_or_default(),
            self.status.unwrap_or_default(),
        );
        let annotations = &mut metadata.annotations;
        let mut said = name::ALL
            .into_iter()
            .filter_map(|name| Some((name, annotations.remove(&prefix.key(name))?)));
        let annotations = said.by_ref().collect();
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
            unavailable: conditions.find(|condition| condition.r#type == "NetworkUnavailable"),
        }
    }
}

impl Node {
    /// What an annotation says; nothing where it is empty or missing.
    pub(super) fn says(&self, name: &str) -> Option<&str> {
        let mut all = self.annotations.iter();
        let (_, value) = all.find(|(other, value)| *other == name && !value.is_empty())?;
        Some(value)
    }

    /// An address that an annotation says. The error names it and its value.
    pub(super) fn address<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(text) = self.says(name) else {
            return Ok(None);
        };
        let address = text.parse().map(Some);
        address.map_err(|_| {
            format!(
                "annotation {name} of Node {} is {text:?}, which is no address of that family",
                self.name
            )
        })
    }

    /// Whether `other` says nothing that this does not, however much newer it is.
    pub(super) fn says_as_much_as(&self, other: &Self) -> bool {
        let version = other.version;
        *other
            == Self {
                version,
                ..self.clone()
            }
    }

    /// The addresses that an administrator wants this node to go by, whose interface is the one to
    /// the others.
    pub(crate) fn asked(&self) -> Result<Vec<IpAddr>, String> {
        let ipv4 = self.address::<Ipv4Addr>(name::NODE_IP)?;
        let ipv6 = self.address::<Ipv6Addr>(name::NODE_IPV6)?;
        let ipv4 = ipv4.map(IpAddr::V4);
        Ok(ipv4.into_iter().chain(ipv6.map(IpAddr::V6)).collect())
    }

    /// The addresses that the others were told last.
    pub(super) fn announced(&self) -> Addresses {
        self.said().unwrap_or_default()
    }

    /// Its subnets, the first of each family.
    fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let all: Vec<IpNetwork> = self
            .pod_cidrs
            .iter()
            .filter_map(|cidr| subnet_env::cidr(cidr))
            .collect();
        let first = |is_ipv4| all.iter().copied().find(|cidr| cidr.is_ipv4() == is_ipv4);
        [first(true), first(false)].into_iter().flatten()
    }

    /// How others get to its pods. A node that has none of the annotations goes by its
    /// `InternalIP` where `by_internal` says so.
    pub(super) fn lease(&self, prefix: &Prefix, by_internal: bool) -> Lease {
        let is_managed = self.says(name::MANAGED) == Some("true");
        let said = self.said();
        let via = match &said {
            Ok(said) if is_managed => *said,
            _ if !is_managed && by_internal => self.internal,
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
        let flaw = if !is_managed && !by_internal {
            let key = prefix.key(name::MANAGED);
            Some(format!("its Node has no annotation {key}: \"true\""))
        } else if let Err(reason) = said {
            Some(reason)
        } else if is_managed && self.says(name::BACKEND_TYPE) != Some(BACKEND) {
            let other = self.says(name::BACKEND_TYPE).unwrap_or_default();
            Some(format!("its backend is {other:?}, not {BACKEND}"))
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
        Lease {
            node: self.name.clone(),
            hops,
            flaw,
        }
    }

    /// The addresses that its annotations say.
    fn said(&self) -> Result<Addresses, String> {
        Ok(Addresses {
            // As flannel writes it where there is none.
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
    fn a_prefix_becomes_what_flannel_makes_of_it() {
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
    fn a_lease_is_what_flannel_reads() {
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
        assert_eq!(lease.flaw, None);
        // A family that one side lacks is not there, and the other goes on.
        let lease = annotated(&full[..4], &dual).lease(&prefix(), false);
        assert_eq!((lease.hops.len(), lease.flaw), (1, None));
        // flannel says 0.0.0.0 for a node of IPv6 alone.
        let lease = annotated(
            &[full[0], full[1], ("public-ip", "0.0.0.0"), full[4]],
            &dual,
        )
        .lease(&prefix(), false);
        assert_eq!((lease.hops.len(), lease.flaw), (1, None));
    }

    #[test]
    fn what_is_wrong_with_a_node_is_said() {
        let managed = ("kube-subnet-manager", "true");
        let ours = ("backend-type", "host-gw");
        let address = ("public-ip", "192.168.2.16");
        for (annotations, cidrs, flaw) in [
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
            let said = lease.flaw.expect("there is something wrong");
            assert!(said.contains(flaw), "{said:?} has {flaw:?}");
        }
    }

    #[test]
    fn a_node_without_annotations_goes_by_its_internal_address_where_that_is_asked_for() {
        let lease = annotated(&[], &["10.10.1.0/24"]).lease(&prefix(), true);
        assert_eq!(lease.hops[0].via.to_string(), "10.9.9.9");
        assert_eq!(lease.flaw, None);
        // One that has them goes by them.
        let annotations = [
            ("kube-subnet-manager", "true"),
            ("backend-type", "host-gw"),
            ("public-ip", "192.168.2.16"),
        ];
        let lease = annotated(&annotations, &["10.10.1.0/24"]).lease(&prefix(), true);
        assert_eq!(lease.hops[0].via.to_string(), "192.168.2.16");
    }

    #[test]
    fn only_what_matters_is_kept() {
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
            node.unavailable.map(|condition| condition.reason),
            Some("NoRouteCreated".to_owned())
        );
    }
}
