//! The reference cluster with the fast path, and the packets that do not take it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::flows::{TcpFlow, UdpFlow};
use crate::reference_picture::{AttachedPod, Family, agents_with, cluster, nodes, pods};
use crate::{Agent, Lab, Node, poll, wait_within};

/// A change takes no longer than this in a virtual machine that emulates instructions.
pub const LIMIT: Duration = Duration::from_secs(25);

/// The reference cluster, whose agents run with `--fast-path=on`.
pub struct FastCluster<'a> {
    /// The lab.
    pub lab: &'a Lab,
    /// The nodes: master, worker1, worker2.
    pub nodes: &'a [Node<'a>],
    /// The agents, one for each node.
    pub agents: Vec<Agent>,
    /// The four pods.
    pub pods: Vec<AttachedPod<'a>>,
}

/// Runs a test with a cluster whose four pods are on the fast path.
pub fn in_cluster(family: Family, test: impl FnOnce(FastCluster<'_>)) {
    let lab = Lab::new();
    let nodes = nodes(&lab, family);
    lab.write("cluster.json", cluster(family, &[]));
    let args = args();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let agents = agents_with(&nodes, &args, Agent::start);
    for agent in &agents {
        agent.wait_for_log("fast path: on");
    }
    let pods = pods(&lab, &nodes, family);
    for node in &nodes {
        watch(node);
    }
    test(FastCluster {
        lab: &lab,
        nodes: &nodes,
        agents,
        pods,
    });
}

/// Returns the arguments of the agents.
#[must_use]
pub fn args() -> [String; 3] {
    let cluster = Lab::path("cluster.json");
    [
        format!("--cluster={}", cluster.display()),
        "--fast-path=on".to_owned(),
        "--v=1".to_owned(),
    ]
}

impl FastCluster<'_> {
    /// Returns a pod of worker1 and one of worker2, between which are the flows of the methods below.
    #[must_use]
    pub fn pair(&self) -> [&AttachedPod<'_>; 2] {
        [&self.pods[0], &self.pods[2]]
    }

    /// Returns the nodes of these pods.
    #[must_use]
    pub fn workers(&self) -> [&Node<'_>; 2] {
        [&self.nodes[1], &self.nodes[2]]
    }

    /// Opens a connection in each family of the cluster.
    #[must_use]
    pub fn tcp(&self) -> Vec<TcpFlow> {
        let [one, two] = self.pair();
        let to = two.addresses.iter().map(|ip| address(ip, 8080));
        to.map(|to| TcpFlow::open(&one.pod, to, &two.pod, to))
            .collect()
    }

    /// Opens a connection in the first family of the cluster, and waits until it is on the fast path.
    #[must_use]
    pub fn fast_tcp(&self) -> TcpFlow {
        let mut tcp = self.tcp().remove(0);
        until_fast(&self.workers(), || {
            tcp.exchange(1000).expect("TCP works");
        });
        tcp
    }

    /// Opens UDP sockets in each family of the cluster.
    #[must_use]
    pub fn udp(&self) -> Vec<UdpFlow> {
        let [one, two] = self.pair();
        let ip = |text: &String| -> IpAddr { text.parse().expect("an address") };
        let pairs = one.addresses.iter().zip(&two.addresses);
        pairs
            .map(|(near, far)| UdpFlow::open((&one.pod, ip(near)), (&two.pod, ip(far))))
            .collect()
    }
}

/// Returns a socket's address.
///
/// # Panics
///
/// If `ip` is no address.
#[must_use]
pub fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// Starts to count the TCP and UDP packets that take the usual way.
pub fn watch(node: &Node<'_>) {
    node.sh(
        "nft 'table inet watch { chain forward { type filter hook forward priority -10; meta l4proto { tcp, udp } counter; }; }'",
    )
    .ok();
}

/// Returns the number of TCP and UDP packets that took the usual way.
fn slow_packets(node: &Node<'_>) -> u64 {
    let text = node.sh("nft list table inet watch").ok();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    let count = words.nth(1).and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("no counter: {text}"))
}

/// Returns the number of packets that these exchanges sent the usual way, on each of the nodes.
pub fn slow_during(nodes: &[&Node<'_>], exchange: impl FnOnce()) -> Vec<u64> {
    let count = || nodes.iter().map(|node| slow_packets(node));
    let before: Vec<_> = count().collect();
    exchange();
    count()
        .zip(before)
        .map(|(now, before)| now - before)
        .collect()
}

/// Uses flows until none of their packets takes the usual way on any of the nodes.
///
/// # Panics
///
/// If some still do after [`LIMIT`] twice.
#[track_caller]
pub fn until_fast(nodes: &[&Node<'_>], mut exchange: impl FnMut()) {
    let mut slow = Vec::new();
    let is_fast = || {
        slow = slow_during(nodes, || (0..8).for_each(|_| exchange()));
        slow.iter().all(|count| *count == 0)
    };
    let found = poll(2 * LIMIT, is_fast);
    assert!(
        found.is_some(),
        "{slow:?} packets of 8 exchanges take the usual way"
    );
}

/// Returns what `hostgw-agent status --json` prints on this node.
///
/// # Panics
///
/// If it fails.
#[must_use]
pub fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json").ok();
    serde_json::from_str(&text).expect("status is JSON")
}

/// Waits until `status` says this of the fast path, and returns all that it says.
#[track_caller]
pub fn wait_for_status(node: &Node<'_>, text: &str) -> String {
    let mut last = String::new();
    let says = || {
        let status = node.sh("/mnt/bin/hostgw-agent status --json");
        let status: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        last = status["fastPath"].to_string();
        last.contains(text)
    };
    wait_within(&format!("the fast path is {text}"), LIMIT, says);
    last
}

/// Returns the devices on the fast path, as the kernel lists them.
///
/// # Panics
///
/// If `nft` fails.
#[must_use]
pub fn devices(node: &Node<'_>) -> Vec<String> {
    let text = node.sh("nft -j list flowtables").ok();
    let list: Value = serde_json::from_str(&text).expect("nft prints JSON");
    let all = list["nftables"].as_array().expect("nft prints a list");
    let mut tables = all.iter().filter_map(|entry| entry.get("flowtable"));
    let table = tables.find(|table| table["table"] == "hostgw-fast-path");
    match table.map(|table| &table["dev"]) {
        Some(Value::Array(all)) => {
            let names = all.iter().filter_map(Value::as_str);
            names.map(str::to_owned).collect()
        }
        Some(Value::String(one)) => vec![one.clone()],
        _ => Vec::new(),
    }
}

/// Returns how often the agent flushed the fast path.
///
/// # Panics
///
/// If the metric is not there.
#[must_use]
pub fn flushes(node: &Node<'_>) -> u64 {
    const NAME: &str = "hostgw_fast_path_flushes_total ";
    let metrics = metrics(node);
    let mut values = metrics.lines().filter_map(|line| line.strip_prefix(NAME));
    let value = values.next().and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("{NAME}is not in {metrics}"))
}

/// Returns the agent's metrics.
#[must_use]
pub fn metrics(node: &Node<'_>) -> String {
    node.sh("curl -s --unix-socket /run/hostgw/agent.sock http://agent/metrics")
        .ok()
}
