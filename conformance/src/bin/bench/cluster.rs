//! The cluster of the agent's benchmark: many nodes that exist only in the store, and measurements of
//! the agent that routes to them.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use conformance::{Agent, Lab, Node, poll};
use serde_json::Value;

use crate::instruments::{Routes, cpu, time};

/// Number of nodes that join, one after the other.
pub(crate) const JOINS: u32 = 100;
/// Number of nodes in the cluster for which targets are checked.
pub(crate) const MANY: u32 = 5000;
/// Number of leases that change in a second, and duration of the changes.
pub(crate) const CHANGES: u32 = 50;
pub(crate) const CHURN: Duration = Duration::from_secs(60);

/// Returns the first address of node `i`'s subnet.
pub(crate) fn subnet(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + (i << 8))
}

/// Returns the address of node `i`, or the other address to which it changes.
pub(crate) fn address(i: u32, is_other: bool) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_1000 + i + if is_other { 0x4_0000 } else { 0 })
}

/// Creates a node whose link has room for all the other nodes.
pub(crate) fn node_with_large_link<'lab>(lab: &'lab Lab, name: &str, host: u8) -> Node<'lab> {
    let node = lab.node(name, &[&format!("192.168.2.{}/24", 15 + host)]);
    node.plug("ens7", &[&format!("172.16.0.{host}/12")]);
    node
}

pub(crate) fn route_count(node: &Node<'_>) -> u32 {
    let text = node.sh("ip route show proto 104 | wc -l").ok();
    text.trim().parse().expect("a number")
}

/// Returns the routes to other nodes: subnet and next hop.
fn route_map(node: &Node<'_>) -> BTreeMap<String, String> {
    let text = node.sh("ip route show proto 104").ok();
    let route = |line: &str| {
        let (to, rest) = line.split_once(' ').expect("a destination");
        let via = rest.split_once("via ").map_or("", |(_, via)| via);
        let via = via.split(' ').next().unwrap_or_default();
        (to.to_owned(), via.to_owned())
    };
    text.lines().map(route).collect()
}

/// Calls `change` at a constant rate, and returns the share of a core that the agent used. `change`
/// returns the route that the kernel must have afterwards; at the end, every route must match its
/// last change.
pub(crate) fn churn(
    node: &Node<'_>,
    pid: u32,
    mut change: impl FnMut() -> io::Result<(String, Ipv4Addr)>,
) -> io::Result<f64> {
    let mut expected = route_map(node);
    let begin = Instant::now();
    let before = cpu(pid)?;
    let total = CHANGES * u32::try_from(CHURN.as_secs()).expect("a minute");
    for i in 0..total {
        let (subnet, via) = change()?;
        expected.insert(subnet, via.to_string());
        let next = begin + Duration::from_secs(1) / CHANGES * (i + 1);
        sleep(next.saturating_duration_since(Instant::now()));
    }
    let took = begin.elapsed();
    if took > CHURN.mul_f64(1.02) {
        let message = format!("{total} changes took {took:?}, which is too slow for the rate");
        return Err(io::Error::other(message));
    }
    let busy = cpu(pid)?.saturating_sub(before).as_secs_f64() / took.as_secs_f64();
    let mut routes = BTreeMap::new();
    let is_applied = poll(Duration::from_secs(15), || {
        routes = route_map(node);
        routes == expected
    });
    if is_applied.is_some() {
        return Ok(busy);
    }
    let lost: Vec<_> = expected
        .iter()
        .filter(|(to, via)| routes.get(*to) != Some(via))
        .take(5)
        .collect();
    Err(io::Error::other(format!(
        "changes were lost: {lost:?} of {} and {}",
        expected.len(),
        routes.len()
    )))
}

/// Returns the median and the longest time of twenty single changes, each until the node's new
/// address is in the kernel. `change` is the same as for [`churn`].
pub(crate) fn single_changes(
    node: &Node<'_>,
    mut change: impl FnMut() -> io::Result<(String, Ipv4Addr)>,
) -> io::Result<(Duration, Duration)> {
    let mut routes = Routes::watch(node)?;
    let mut times = Vec::new();
    // Let the agent finish the work of the previous part first.
    sleep(Duration::from_secs(5));
    for _ in 0..20 {
        sleep(Duration::from_secs(1));
        let begin = SystemTime::now();
        let (subnet, via) = change()?;
        let came = routes.wait_for(&subnet, &via.to_string(), begin)?;
        times.push(came.duration_since(begin).unwrap_or_default());
    }
    times.sort();
    Ok((times[times.len() / 2], times[times.len() - 1]))
}

/// Returns the output of `status --json`.
pub(crate) fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json").ok();
    serde_json::from_str(&text).expect("JSON")
}

/// Waits until the agent is ready, and returns how long that took since `begin`, according to the time
/// in its log.
pub(crate) fn time_until_ready(agent: &Agent, begin: SystemTime) -> io::Result<Duration> {
    let mut stamp = None;
    let ready = poll(Duration::from_secs(60), || {
        let log = agent.log();
        let line = log.lines().find(|line| line.contains("ready:"));
        stamp = line.and_then(|line| Some(line.split(' ').next()?.to_owned()));
        stamp.is_some()
    });
    match (ready, stamp) {
        (Some(_), Some(stamp)) => Ok(time(&stamp).duration_since(begin).unwrap_or_default()),
        _ => Err(io::Error::other(format!("not ready: {}", agent.log()))),
    }
}

/// Returns how long the kernel took for the agent's longest batch of routes, in milliseconds.
pub(crate) fn longest_batch_millis(node: &Node<'_>) -> f64 {
    let seconds = &status(node)["routes"]["longestBatchSeconds"];
    seconds.as_f64().expect("the status has this number") * 1e3
}
