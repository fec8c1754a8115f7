//! The reference cluster that the demo shows and that tests/picture.rs checks: three nodes, four
//! pods.

use std::net::Ipv6Addr;

use serde_json::{Value, json};

use crate::{Agent, Attachment, Chain, Kube, Lab, Node, Pod, Reply, wait_for};

/// The stock configuration list of kube-flannel.
pub const CNI_CONF: &str = include_str!("../../examples/kube-flannel/cni-conf.json");

/// Address families of the reference cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Family {
    Ipv4,
    Ipv6,
    Dual,
}

impl Family {
    /// Returns true if the cluster has IPv4.
    #[must_use]
    pub fn has_ipv4(self) -> bool {
        self != Self::Ipv6
    }

    /// Returns true if the cluster has IPv6.
    #[must_use]
    pub fn has_ipv6(self) -> bool {
        self != Self::Ipv4
    }

    /// Returns the IPv4 item, the IPv6 item, or both, as the family requires.
    pub fn of<T>(self, ipv4: T, ipv6: T) -> impl Iterator<Item = T> {
        let ipv4 = self.has_ipv4().then_some(ipv4);
        ipv4.into_iter().chain(self.has_ipv6().then_some(ipv6))
    }
}

/// Nodes of the reference cluster: name, last part of the address, number of the subnet.
pub const NODES: [(&str, u8, u8); 3] = [("master", 17, 0), ("worker1", 16, 1), ("worker2", 15, 2)];

/// Pods of the reference cluster: index of the node in [`NODES`], last part of the address.
pub const PODS: [(usize, u8); 4] = [(1, 5), (1, 6), (2, 3), (2, 4)];

/// Returns the IPv4 and the IPv6 address of a pod.
#[must_use]
pub fn pod_addresses(subnet: u8, host: u8) -> (String, String) {
    (
        format!("10.10.{subnet}.{host}"),
        format!("fd00:10:10:{subnet}::{host}"),
    )
}

/// Returns the IPv4 and the IPv6 address of a node.
#[must_use]
pub fn node_addresses(host: u8) -> (String, String) {
    (
        format!("192.168.2.{host}"),
        format!("fd00:192:168:2::{host}"),
    )
}

/// Returns the network of the reference cluster, in the keys of `net-conf.json`.
#[must_use]
pub fn network(family: Family) -> Value {
    let mut network = json!({"Network": "10.10.0.0/16", "Backend": {"Type": "host-gw"}});
    if family.has_ipv6() {
        network["EnableIPv6"] = json!(true);
        network["IPv6Network"] = json!("fd00:10:10::/48");
    }
    if !family.has_ipv4() {
        network["EnableIPv4"] = json!(false);
    }
    network
}

/// Creates the three Nodes with their podCIDRs, as kubelets and the control plane would.
pub fn create_nodes(kube: &Kube<'_>, family: Family) {
    for (name, host, subnet) in NODES {
        let (ipv4, ipv6) = node_addresses(host);
        let addresses: Vec<_> = family.of(ipv4, ipv6).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        let cidrs = cidrs(family, subnet);
        let cidrs: Vec<_> = cidrs.iter().map(String::as_str).collect();
        kube.create_node(name, &cidrs, &addresses);
    }
}

/// Returns the subnets of a node of the reference cluster.
#[must_use]
pub fn cidrs(family: Family, subnet: u8) -> Vec<String> {
    family
        .of(format!("10.10.{subnet}.0/24"), subnet6(subnet))
        .collect()
}

/// Returns the cluster file of the reference cluster, without the nodes named in `excluded`.
#[must_use]
pub fn cluster(family: Family, excluded: &[&str]) -> String {
    let nodes = NODES.iter().filter(|(name, ..)| !excluded.contains(name));
    let nodes = nodes.map(|(name, host, subnet)| node_entry(family, name, *host, *subnet));
    let nodes: Vec<_> = nodes.collect();
    serde_json::to_string_pretty(&json!({"network": network(family), "nodes": nodes}))
        .expect("JSON can be written")
}

/// Returns a node's entry in the cluster file.
#[must_use]
pub fn node_entry(family: Family, name: &str, host: u8, subnet: u8) -> Value {
    let mut node = json!({"name": name});
    let (ipv4, ipv6) = node_addresses(host);
    if family.has_ipv4() {
        node["publicIP"] = json!(ipv4);
        node["subnet"] = json!(format!("10.10.{subnet}.0/24"));
    }
    if family.has_ipv6() {
        node["publicIPv6"] = json!(ipv6);
        node["ipv6Subnet"] = json!(subnet6(subnet));
    }
    node
}

/// Starts the three nodes.
#[must_use]
pub fn nodes(lab: &Lab, family: Family) -> Vec<Node<'_>> {
    let node = |(name, host, _): &(&str, u8, u8)| {
        let (ipv4, ipv6) = node_addresses(*host);
        let addresses: Vec<_> = family
            .of(format!("{ipv4}/24"), format!("{ipv6}/64"))
            .collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        lab.node(name, &addresses)
    };
    NODES.iter().map(node).collect()
}

/// Starts an agent on each node with the same cluster file, and waits until all have written their
/// subnet files.
#[must_use]
pub fn agents(nodes: &[Node<'_>], start: impl Fn(&Node<'_>, &[&str]) -> Agent) -> Vec<Agent> {
    let cluster = Lab::path("cluster.json").display().to_string();
    agents_with(nodes, &["--cluster", &cluster], start)
}

/// Starts an agent on each node with these arguments, and waits until all have written their subnet
/// files.
#[must_use]
pub fn agents_with(
    nodes: &[Node<'_>],
    args: &[&str],
    start: impl Fn(&Node<'_>, &[&str]) -> Agent,
) -> Vec<Agent> {
    let agents: Vec<_> = nodes.iter().map(|node| start(node, args)).collect();
    for (node, agent) in nodes.iter().zip(&agents) {
        wait_for(
            &format!("a subnet file on {}: {}", node.name, agent.log()),
            || node.path("/run/flannel/subnet.env").exists(),
        );
    }
    agents
}

/// An attached pod of the reference cluster.
pub struct AttachedPod<'a> {
    /// The pod.
    pub pod: Pod<'a>,
    /// Addresses of the pod, IPv4 before IPv6.
    pub addresses: Vec<String>,
    /// The plugin's reply to ADD.
    pub reply: Reply,
}

/// Attaches the four pods through the stock configuration list, each with its fixed addresses.
#[must_use]
pub fn pods<'a>(lab: &Lab, nodes: &'a [Node<'a>], family: Family) -> Vec<AttachedPod<'a>> {
    let chain = Chain::new(lab, CNI_CONF);
    let attach = |(node, host): &(usize, u8)| {
        let (ipv4, ipv6) = pod_addresses(NODES[*node].2, *host);
        let addresses: Vec<_> = family.of(ipv4, ipv6).collect();
        let pod = nodes[*node].pod(&format!("{}-pod{host}", nodes[*node].name));
        // CNI_ARGS can name one address only. In a dual-stack network, the IPv6 address comes from
        // the round robin.
        let args = format!("IP={};IgnoreUnknown=1", addresses[0]);
        let reply = chain.add(&pod, &Attachment::of(&pod).with_args(&args));
        let got = reply.addresses();
        assert_eq!(got[0], addresses[0], "the pod gets the requested address");
        AttachedPod {
            pod,
            addresses: got,
            reply,
        }
    };
    PODS.iter().map(attach).collect()
}

/// Returns the routes of an `ip route` listing without protocol, metric and preference, which the
/// expected routes do not include.
#[must_use]
pub fn routes(listing: &str) -> Vec<String> {
    let mut routes = Vec::new();
    for line in listing.lines().filter(|line| !line.trim().is_empty()) {
        let mut words: Vec<_> = line.split_whitespace().collect();
        for key in ["proto", "metric", "pref"] {
            if let Some(at) = words.iter().position(|word| *word == key) {
                words.drain(at..at + 2);
            }
        }
        routes.push(words.join(" "));
    }
    routes
}

/// Returns the expected IPv4 routes in a pod of the reference cluster.
#[must_use]
pub fn pod_routes(subnet: u8, host: u8) -> Vec<String> {
    vec![
        format!("default via 10.10.{subnet}.1 dev eth0"),
        format!("10.10.0.0/16 via 10.10.{subnet}.1 dev eth0"),
        format!("10.10.{subnet}.0/24 dev eth0 scope link src 10.10.{subnet}.{host}"),
    ]
}

/// Returns the expected IPv4 routes to the pods' subnets on a node. `has_bridge` is true once the
/// node has a pod.
#[must_use]
pub fn node_routes(node: &str, has_bridge: bool) -> Vec<String> {
    let route = |(name, host, subnet): &(&str, u8, u8)| {
        if *name != node {
            let via = node_addresses(*host).0;
            return Some(format!("10.10.{subnet}.0/24 via {via} dev enp0s5"));
        }
        let own = format!("10.10.{subnet}.0/24 dev cni0 scope link src 10.10.{subnet}.1");
        has_bridge.then_some(own)
    };
    NODES.iter().filter_map(route).collect()
}

/// Returns the expected IPv6 routes to the pods' subnets on a node. `has_bridge` is true once the
/// node has a pod.
#[must_use]
pub fn node_routes6(node: &str, has_bridge: bool) -> Vec<String> {
    let route = |(name, host, subnet): &(&str, u8, u8)| {
        if *name != node {
            let via = node_addresses(*host).1;
            return Some(format!("{} via {via} dev enp0s5", subnet6(*subnet)));
        }
        has_bridge.then(|| format!("{} dev cni0", subnet6(*subnet)))
    };
    NODES.iter().filter_map(route).collect()
}

/// Returns a node's IPv6 subnet as the kernel prints it.
fn subnet6(subnet: u8) -> String {
    let network = Ipv6Addr::new(0xfd00, 0x10, 0x10, subnet.into(), 0, 0, 0, 0);
    format!("{network}/64")
}
