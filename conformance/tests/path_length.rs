//! The length of the kernel's path from pod to pod, compared with that from node to node. It runs in the virtual
//! machine of tests/kernels.rs, whose clock counts instructions: figures repeat to about 1 %.

use std::time::Duration;

use conformance::reference_picture::{Family, agents_with, cluster, nodes, pods};
use conformance::sockets::Place;
use conformance::traffic::Load;
use conformance::{Agent, Lab, wait_for};
use serde_json::Value;

/// Requests a second of pods without the fast path, as a share of those from node to node, by kernel.
const RECORDED: &str = include_str!("../src/kernels/path-length.json");

/// Requests a second between two pairs of places, in turns: the most of each pair, because other work only makes
/// them fewer. A pair has the address of its second place.
fn most<A: Place, B: Place>(one: (&A, &A, &str), other: (&B, &B, &str)) -> (f64, f64) {
    const TURNS: usize = 5;
    let mut best = (0.0_f64, 0.0_f64);
    for _ in 0..TURNS {
        best.0 = best.0.max(requests(one.0, one.1, one.2));
        best.1 = best.1.max(requests(other.0, other.1, other.2));
    }
    best
}

fn requests(from: &impl Place, to: &impl Place, ip: &str) -> f64 {
    let ip = ip.parse().expect("an address");
    let duration = Duration::from_millis(400);
    Load::Requests.measure(from, to, ip, duration).rate
}

#[test]
fn requests_on_the_fast_path_are_nearly_as_fast_as_between_nodes() {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("every Linux has it");
    let recorded: Value = serde_json::from_str(RECORDED).expect("the file is JSON");
    let known = recorded.as_object().expect("an object").iter();
    let mut known = known.filter(|(version, _)| release.starts_with(&format!("{version}.")));
    let recorded = known.next().and_then(|(_, share)| share.as_f64());
    let recorded = recorded.unwrap_or_else(|| panic!("nothing is recorded for Linux {release}"));

    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let file = format!("--cluster={}", Lab::path("cluster.json").display());
    let start = |fast_path| agents_with(&nodes, &[&file, fast_path], Agent::start);
    let agents = start("--fast-path=on");
    for agent in &agents {
        agent.wait_for_log("fast path: on");
    }
    let pods = pods(&lab, &nodes, Family::Ipv4);
    wait_for("the pods are on the fast path", || {
        let status = nodes[1].sh("/mnt/bin/hostgw-agent status").ok();
        status.contains("on, 3 devices")
    });
    let (one, two) = (&pods[0], &pods[2]);
    let in_turns = || {
        let between_pods = (&one.pod, &two.pod, two.addresses[0].as_str());
        let between_nodes = (&nodes[1], &nodes[2], "192.168.2.15");
        most(between_pods, between_nodes)
    };
    // What agents set up stays without them, and they need time themselves.
    drop(agents);
    let (fast, plain) = in_turns();
    let agents = start("--fast-path=off");
    wait_for("the fast path is off", || {
        let tables = [1, 2].map(|node: usize| nodes[node].sh("nft list tables").ok());
        tables.iter().all(|tables| !tables.contains("fast-path"))
    });
    drop(agents);
    let (usual, again) = in_turns();
    let (fast, usual) = (fast / plain, usual / again);
    eprintln!(
        "requests a second: node to node {plain:.3} and {again:.3} thousand, pods {usual:.3} of that, on the fast path {fast:.3} (Linux {})",
        release.trim()
    );
    assert!(fast >= 0.95, "the fast path is {fast:.3} of node to node");
    assert!(
        usual >= 0.98 * recorded,
        "pods without it are {usual:.3} of node to node; recorded is {recorded}"
    );
}
