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
use subnet::Subnet;

use crate::network::{Hop, Lease, NetConf, Snapshot, SubnetMap};

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

/// Reads an address or a subnet from a string. An error shows the string.
fn value<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Value,
{
    let Some(text) = Option::<String>::deserialize(from)? else {
        return Ok(None);
    };
    // The parser of subnets would accept an address without a prefix length, and a netmask.
    let is_subnet = T::EXAMPLE.contains('/');
    let is_well_formed =
        is_subnet == text.contains('/') && is_subnet == subnet::parse(&text).is_some();
    let value = is_well_formed.then(|| text.parse().ok());
    let reason = || format!("{text:?} is not of the form {}", T::EXAMPLE);
    value
        .flatten()
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom(reason()))
}

/// A type of value in a node's entry, and an example of it for error messages.
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

/// Why a text is not a cluster. It names the path of the value in the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// It is not JSON of the right shape.
    #[error("{0}")]
    Shape(String),
    #[error("nodes[{index}].{key}: {reason}")]
    Node {
        index: usize,
        key: &'static str,
        reason: String,
    },
    #[error("nodes[{index}]: {what} {value} is already used by nodes[{other}]")]
    Duplicate {
        index: usize,
        what: &'static str,
        value: String,
        other: usize,
    },
}

/// Reads a cluster file.
pub(crate) fn parse(text: &[u8]) -> Result<Snapshot, Error> {
    let cluster = read(text).map_err(Error::Shape)?;
    let mut names = UniqueValues::new("name");
    let mut addresses = UniqueValues::new("public address");
    let mut taken: SubnetMap<usize> = SubnetMap::new();
    let mut leases: Vec<Arc<Lease>> = Vec::new();
    for (index, node) in cluster.nodes.into_iter().enumerate() {
        let invalid = |key, reason| Error::Node { index, key, reason };
        if node.name.is_empty() {
            return Err(invalid("name", "is empty".to_owned()));
        }
        let hops = hops(&cluster.network, &node).map_err(|(key, reason)| invalid(key, reason))?;
        names.add(&node.name, index)?;
        for hop in &hops {
            addresses.add(&hop.via, index)?;
            let subnet = hop.subnet;
            if let Some((other, owner)) = taken.overlapping(subnet) {
                let owner = leases.get(owner).map_or(&node.name, |lease| &lease.node);
                let key = if subnet.is_ipv4() {
                    "subnet"
                } else {
                    "ipv6Subnet"
                };
                let reason = format!("{subnet} overlaps {other} of node {owner}");
                return Err(invalid(key, reason));
            }
            taken.insert(subnet, index);
        }
        leases.push(Arc::new(Lease {
            node: node.name,
            hops,
            invalid_reason: None,
        }));
    }
    Ok(Snapshot {
        network: cluster.network,
        leases,
    })
}

fn read(text: &[u8]) -> Result<Cluster, String> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let cluster = serde_path_to_error::deserialize(&mut json);
    let cluster = cluster.map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    Ok(cluster)
}

/// Returns one hop for each enabled family of which the node has an address or a subnet; at least
/// one. Errors name the key.
fn hops(network: &NetConf, node: &Node) -> Result<Vec<Hop>, (&'static str, String)> {
    let mut hops = Vec::new();
    let missing = |key| (key, "is missing".to_owned());
    let has_ipv4 = node.public_ip.is_some() || node.subnet.is_some();
    let has_ipv6 = node.public_ipv6.is_some() || node.ipv6_subnet.is_some();
    if let Some(pool) = network
        .ipv4
        .filter(|_| has_ipv4 || network.ipv6.is_none() || !has_ipv6)
    {
        let via = node.public_ip.ok_or_else(|| missing("publicIP"))?;
        let subnet = node.subnet.ok_or_else(|| missing("subnet"))?;
        check_address("publicIP", via.into())?;
        hops.push(hop("subnet", pool.network, subnet.into(), via.into())?);
    }
    if let Some(pool) = network.ipv6.filter(|_| has_ipv6 || network.ipv4.is_none()) {
        let via = node.public_ipv6.ok_or_else(|| missing("publicIPv6"))?;
        let subnet = node.ipv6_subnet.ok_or_else(|| missing("ipv6Subnet"))?;
        check_address("publicIPv6", via.into())?;
        hops.push(hop("ipv6Subnet", pool.network, subnet.into(), via.into())?);
    }
    Ok(hops)
}

/// Checks that a next hop is a unicast address of another machine.
fn check_address(key: &'static str, via: IpAddr) -> Result<(), (&'static str, String)> {
    if via.is_unspecified()
        || via.is_loopback()
        || via.is_multicast()
        || via == IpAddr::V4(Ipv4Addr::BROADCAST)
    {
        return Err((key, format!("{via} is not a valid node address")));
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
    if Subnet::of(subnet).is_too_small() {
        return wrong("is too small for a gateway and a pod".to_owned());
    }
    Ok(Hop { subnet, via })
}

/// Finds values that two nodes have in common.
struct UniqueValues<T> {
    what: &'static str,
    seen: HashMap<T, usize>,
}

impl<T: Eq + Hash + fmt::Display + Clone> UniqueValues<T> {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            seen: HashMap::new(),
        }
    }

    fn add(&mut self, value: &T, index: usize) -> Result<(), Error> {
        match self.seen.insert(value.clone(), index) {
            Some(other) => Err(Error::Duplicate {
                index,
                what: self.what,
                value: value.to_string(),
                other,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Snapshot, String> {
        parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    fn cluster(nodes: &str) -> Result<Snapshot, String> {
        read_text(&format!(
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
    fn a_next_hop_is_a_unicast_address_of_another_machine() {
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
            let error = read_text(&text).expect_err(via);
            assert!(
                error.ends_with(&format!("{via} is not a valid node address")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_missing_family_does_not_affect_the_other() {
        let parse = |node: &str| {
            let network =
                r#""Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48""#;
            let text =
                format!(r#"{{"network": {{{network}}}, "nodes": [{{"name": "a", {node}}}]}}"#);
            read_text(&text).map(|snapshot| {
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
        for (node, message) in [
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
            assert_eq!(parse(&node), Err(message.to_owned()));
        }
    }

    #[test]
    fn errors_name_the_path_and_the_value() {
        let node = |name: &str, ip: &str, subnet: &str| {
            format!(r#"{WORKER1}, {{"name": "{name}", "publicIP": "{ip}", "subnet": "{subnet}"}}"#)
        };
        for (nodes, message) in [
            (
                node("worker1", "192.168.2.15", "10.10.2.0/24"),
                "nodes[1]: name worker1 is already used by nodes[0]",
            ),
            (
                node("worker2", "192.168.2.16", "10.10.2.0/24"),
                "nodes[1]: public address 192.168.2.16 is already used by nodes[0]",
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
                "nodes[1].publicIP: \"x\" is not of the form 192.168.2.16",
            ),
            (
                node("worker2", "192.168.2.15", "10.10.2.0"),
                r#"nodes[1].subnet: "10.10.2.0" is not of the form 10.10.1.0/24"#,
            ),
            (
                node("worker2", "0.0.0.0", "10.10.2.0/24"),
                "nodes[1].publicIP: 0.0.0.0 is not a valid node address",
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
            assert!(error.starts_with(message), "{error}");
        }
        assert!(read_text("{} {}").is_err());
    }

    #[test]
    fn damaged_files_never_panic() {
        let valid = format!(
            r#"{{"network": {{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:10:10::/48"}}, "nodes": [{WORKER1}, {{"name": "b", "publicIPv6": "fd00::15", "ipv6Subnet": "fd00:10:10:2::/64", "subnet": "10.10.2.0/24", "publicIP": "192.168.2.15"}}]}}"#
        );
        random_input::never_panics(&[valid.as_bytes()], |text| drop(parse(text)));
    }
}
