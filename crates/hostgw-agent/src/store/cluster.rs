//! The format of `cluster.json`: the network and its nodes.
//!
//! ```json
//! {
//!     "network": {"Network": "10.10.0.0/16", "Backend": {"Type": "host-gw"}},
//!     "nodes": [
//!         {"name": "worker1", "publicIP": "192.168.2.16", "subnet": "10.10.1.0/24"}
//!     ]
//! }
//! ```

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Deserializer};

use crate::lease::{Ground, Hop, Lease, Snapshot};
use crate::net_conf::NetConf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    network: NetConf,
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    name: String,
    #[serde(default, rename = "publicIP", deserialize_with = "value")]
    public_ip: Option<Ipv4Addr>,
    #[serde(default, rename = "publicIPv6", deserialize_with = "value")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(default, deserialize_with = "value")]
    subnet: Option<Ipv4Network>,
    #[serde(default, rename = "ipv6Subnet", deserialize_with = "value")]
    ipv6_subnet: Option<Ipv6Network>,
}

/// An address or a subnet, with the text in the error.
fn value<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Value,
{
    let Some(text) = Option::<String>::deserialize(from)? else {
        return Ok(None);
    };
    // A subnet's parser takes an address alone for a subnet of one, and a netmask for a prefix length.
    let is_subnet = T::EXAMPLE.contains('/');
    let is_right =
        is_subnet == text.contains('/') && is_subnet == subnet_env::cidr(&text).is_some();
    let value = is_right.then(|| text.parse().ok());
    let reason = || format!("{text:?} is not such as {}", T::EXAMPLE);
    value
        .flatten()
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom(reason()))
}

/// What a node's entry holds, and how people write it.
trait Value: FromStr {
    const EXAMPLE: &str;
}

impl Value for Ipv4Addr {
    const EXAMPLE: &str = "192.168.2.16";
}

impl Value for Ipv6Addr {
    const EXAMPLE: &str = "fd00:192:168:2::16";
}

impl Value for Ipv4Network {
    const EXAMPLE: &str = "10.10.1.0/24";
}

impl Value for Ipv6Network {
    const EXAMPLE: &str = "fd00:10:10:1::/64";
}

/// Reads a cluster. What is wrong is named by its path and its value.
pub(crate) fn parse(text: &str) -> Result<Snapshot, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let cluster: Cluster =
        serde_path_to_error::deserialize(&mut json).map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    let mut names = Unique::new("name");
    let mut addresses = Unique::new("public address");
    let mut ground: Ground<usize> = Ground::new();
    let mut leases: Vec<Arc<Lease>> = Vec::new();
    for (i, node) in cluster.nodes.into_iter().enumerate() {
        let wrong = |key: &str, reason: String| format!("nodes[{i}].{key}: {reason}");
        if node.name.is_empty() {
            return Err(wrong("name", "is empty".to_owned()));
        }
        let hops = hops(&cluster.network, &node).map_err(|(key, reason)| wrong(key, reason))?;
        names.take(&node.name, i)?;
        for hop in &hops {
            addresses.take(&hop.via, i)?;
            let subnet = hop.subnet;
            if let Some((other, whose)) = ground.taken(subnet) {
                let whose = leases.get(whose).map_or(&node.name, |lease| &lease.node);
                let reason = format!("{subnet} overlaps {other} of node {whose}");
                let key = if subnet.is_ipv4() {
                    "subnet"
                } else {
                    "ipv6Subnet"
                };
                return Err(wrong(key, reason));
            }
            ground.take(subnet, i);
        }
        leases.push(Arc::new(Lease {
            node: node.name,
            hops,
            flaw: None,
        }));
    }
    Ok(Snapshot {
        network: cluster.network,
        leases,
    })
}

/// One hop of each enabled family that the node has anything of, one at least. Errors name the key.
fn hops(network: &NetConf, node: &Node) -> Result<Vec<Hop>, (&'static str, String)> {
    let mut hops = Vec::new();
    let missing = |key| (key, "is missing".to_owned());
    let is_there = node.public_ip.is_some() || node.subnet.is_some();
    let is_other = node.public_ipv6.is_some() || node.ipv6_subnet.is_some();
    if let Some(space) = network
        .ipv4
        .filter(|_| is_there || network.ipv6.is_none() || !is_other)
    {
        let via = node.public_ip.ok_or_else(|| missing("publicIP"))?;
        let subnet = node.subnet.ok_or_else(|| missing("subnet"))?;
        check_address("publicIP", via.into())?;
        hops.push(hop("subnet", space.network, subnet.into(), via.into())?);
    }
    if let Some(space) = network.ipv6.filter(|_| is_other || network.ipv4.is_none()) {
        let via = node.public_ipv6.ok_or_else(|| missing("publicIPv6"))?;
        let subnet = node.ipv6_subnet.ok_or_else(|| missing("ipv6Subnet"))?;
        check_address("publicIPv6", via.into())?;
        hops.push(hop("ipv6Subnet", space.network, subnet.into(), via.into())?);
    }
    Ok(hops)
}

/// A next hop is one other machine.
fn check_address(key: &'static str, via: IpAddr) -> Result<(), (&'static str, String)> {
    if via.is_unspecified()
        || via.is_loopback()
        || via.is_multicast()
        || via == IpAddr::V4(Ipv4Addr::BROADCAST)
    {
        return Err((key, format!("{via} is no address of a node")));
    }
    Ok(())
}

fn hop(
    key: &'static str,
    network: IpNetwork,
    subnet: IpNetwork,
    via: IpAddr,
) -> Result<Hop, (&'static str, String)> {
    let wrong = |reason: String| Err((key, format!("{subnet} {reason}")));
    if subnet.ip() != subnet.network() {
        return wrong(format!(
            "has host bits set, the network address is {}",
            subnet.network()
        ));
    }
    if subnet.prefix() < network.prefix() || !network.contains(subnet.ip()) {
        return wrong(format!("lies outside the network {network}"));
    }
    if subnet_env::is_too_small(subnet) {
        return wrong("is too small for a gateway and a pod".to_owned());
    }
    Ok(Hop { subnet, via })
}

/// Finds what two nodes have both.
struct Unique<T> {
    what: &'static str,
    taken: HashMap<T, usize>,
}

impl<T: Eq + Hash + fmt::Display + Clone> Unique<T> {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            taken: HashMap::new(),
        }
    }

    fn take(&mut self, value: &T, node: usize) -> Result<(), String> {
        match self.taken.insert(value.clone(), node) {
            Some(other) => Err(format!(
                "nodes[{node}]: {} {value} is also that of nodes[{other}]",
                self.what
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(nodes: &str) -> Result<Snapshot, String> {
        parse(&format!(
            r#"{{"network": {{"Network": "10.10.0.0/16"}}, "nodes": [{nodes}]}}"#
        ))
    }

    const WORKER1: &str =
        r#"{"name": "worker1", "publicIP": "192.168.2.16", "subnet": "10.10.1.0/24"}"#;

    #[test]
    fn a_node_holds_its_subnet() {
        let snapshot = cluster(WORKER1).expect("valid");
        assert_eq!(snapshot.leases[0].node, "worker1");
        let hop = snapshot.leases[0].hops[0];
        assert_eq!(
            format!("{} via {}", hop.subnet, hop.via),
            "10.10.1.0/24 via 192.168.2.16"
        );
    }

    #[test]
    fn a_next_hop_is_another_machine() {
        for (family, via) in [
            ("", "0.0.0.0"),
            ("", "127.0.0.1"),
            ("", "224.0.0.1"),
            ("", "255.255.255.255"),
            ("v6", "::"),
            ("v6", "::1"),
            ("v6", "ff02::1"),
        ] {
            let (network, node) = if family == "v6" {
                (
                    r#""EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48""#,
                    format!(r#""publicIPv6": "{via}", "ipv6Subnet": "fd00::/64""#),
                )
            } else {
                (
                    r#""Network": "10.10.0.0/16""#,
                    format!(r#""publicIP": "{via}", "subnet": "10.10.1.0/24""#),
                )
            };
            let text =
                format!(r#"{{"network": {{{network}}}, "nodes": [{{"name": "a", {node}}}]}}"#);
            let error = parse(&text).expect_err(via);
            assert!(
                error.ends_with(&format!("{via} is no address of a node")),
                "{error}"
            );
        }
    }

    #[test]
    fn what_one_family_lacks_takes_nothing_from_the_other() {
        let parse = |node: &str| {
            let network =
                r#""Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48""#;
            let text =
                format!(r#"{{"network": {{{network}}}, "nodes": [{{"name": "a", {node}}}]}}"#);
            parse(&text).map(|snapshot| {
                let subnets = snapshot.leases[0].subnets();
                subnets
                    .map(|subnet| subnet.to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        let ipv4 = r#""publicIP": "192.168.2.16", "subnet": "10.10.1.0/24""#;
        let ipv6 = r#""publicIPv6": "fd01::16", "ipv6Subnet": "fd00:0:0:1::/64""#;
        assert_eq!(parse(ipv4).as_deref(), Ok("10.10.1.0/24"));
        assert_eq!(parse(ipv6).as_deref(), Ok("fd00:0:0:1::/64"));
        let both = parse(&format!("{ipv4}, {ipv6}"));
        assert_eq!(both.as_deref(), Ok("10.10.1.0/24 fd00:0:0:1::/64"));
        for (node, said) in [
            (
                format!(r#"{ipv4}, "publicIPv6": "fd01::16""#),
                "nodes[0].ipv6Subnet: is missing",
            ),
            (
                format!(r#"{ipv6}, "subnet": "10.10.1.0/24""#),
                "nodes[0].publicIP: is missing",
            ),
            (
                r#""publicIP": null"#.to_owned(),
                "nodes[0].publicIP: is missing",
            ),
        ] {
            assert_eq!(parse(&node), Err(said.to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path_and_value() {
        let node = |name: &str, ip: &str, subnet: &str| {
            format!(r#"{WORKER1}, {{"name": "{name}", "publicIP": "{ip}", "subnet": "{subnet}"}}"#)
        };
        for (nodes, said) in [
            (
                node("worker1", "192.168.2.15", "10.10.2.0/24"),
                "nodes[1]: name worker1 is also that of nodes[0]",
            ),
            (
                node("worker2", "192.168.2.16", "10.10.2.0/24"),
                "nodes[1]: public address 192.168.2.16 is also that of nodes[0]",
            ),
            (
                node("worker2", "192.168.2.15", "10.10.1.128/25"),
                "nodes[1].subnet: 10.10.1.128/25 overlaps 10.10.1.0/24 of node worker1",
            ),
            (
                node("worker2", "192.168.2.15", "10.11.0.0/24"),
                "nodes[1].subnet: 10.11.0.0/24 lies outside the network 10.10.0.0/16",
            ),
            (
                node("worker2", "192.168.2.15", "10.10.2.1/24"),
                "nodes[1].subnet: 10.10.2.1/24 has host bits set, the network address is 10.10.2.0",
            ),
            (
                node("worker2", "192.168.2.15", "10.10.2.0/31"),
                "nodes[1].subnet: 10.10.2.0/31 is too small for a gateway and a pod",
            ),
            (
                node("", "192.168.2.15", "10.10.2.0/24"),
                "nodes[1].name: is empty",
            ),
            (
                node("worker2", "x", "10.10.2.0/24"),
                "nodes[1].publicIP: \"x\" is not such as 192.168.2.16",
            ),
            (
                node("worker2", "192.168.2.15", "10.10.2.0"),
                r#"nodes[1].subnet: "10.10.2.0" is not such as 10.10.1.0/24"#,
            ),
            (
                node("worker2", "0.0.0.0", "10.10.2.0/24"),
                "nodes[1].publicIP: 0.0.0.0 is no address of a node",
            ),
            (
                r#"{"name": "a", "subnet": "10.10.1.0/24"}"#.to_owned(),
                "nodes[0].publicIP: is missing",
            ),
            (
                r#"{"name": "a", "Subnet": "10.10.1.0/24"}"#.to_owned(),
                "nodes[0].Subnet: unknown field `Subnet`",
            ),
        ] {
            let error = cluster(&nodes).expect_err(&nodes);
            assert!(error.starts_with(said), "{error}");
        }
        assert!(parse("{} {}").is_err());
    }
}
