//! The agent with a real kube-apiserver and thousands of Nodes, each with everything that a kubelet
//! writes.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use conformance::kube::{full_node, node_key};
use conformance::reference_picture::{Family, create_nodes, network, nodes};
use conformance::{Agent, Flanneld, Kube, Lab, Node, poll, repository};

use crate::cluster::{
    JOINS, MANY, address, churn, longest_batch_millis, node_with_large_link, route_count,
    single_changes, subnet, time_until_ready,
};
use crate::instruments::{Routes, Writer, peak};
use crate::table::{Targets, columns, head, millis};

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 17);

/// Runs the benchmark. The targets are the same as for leases in etcd. It is longer than other
/// functions because its measurements follow each other on one cluster.
pub(crate) fn bench(out: &mut impl Write, marks: &mut Targets) -> io::Result<()> {
    if !repository().join("target/tools/kube-apiserver").exists() {
        return writeln!(
            out,
            "\nkube-apiserver is not built (make tools), so nothing is measured with it"
        );
    }
    let (median, worst) = joins()?;
    let lab = Lab::new();
    let master = lab.node("master", &[&format!("{SERVER}/24")]);
    let kube = Kube::start(&master, &SERVER.to_string());
    lab.write(
        "net-conf.json",
        r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "host-gw"}}"#,
    );
    kube.etcd().put_all((1..=MANY).map(|i| node(i, false)));
    kube.create_node("worker1", &["10.255.0.0/24"], &["192.168.2.16"]);
    let worker = node_with_large_link(&lab, "worker1", 1);
    // Lets the API server read the Nodes before the measurement.
    sleep(Duration::from_secs(5));
    let (agent, snapshot) = timed(&worker, &kube)?;
    assert_eq!(route_count(&worker), MANY, "every node is routed");
    let kernel = longest_batch_millis(&worker);
    let (agent, restart) = restart(agent, &worker, &kube)?;
    let mut writer = Writer::open(&master, SERVER)?;
    let mut turn = 0;
    let mut change = || {
        let i = 1 + turn % MANY;
        let (key, object) = node(i, true);
        writer.put(&key, &object)?;
        turn += 1;
        Ok((format!("{}/24", subnet(i)), address(i, true)))
    };
    let one = single_changes(&worker, &mut change)?;
    let busy = churn(&worker, agent.pid(), &mut change)?;
    let ours = (snapshot, peak(agent.pid())?);
    drop(agent);
    let theirs = flanneld(&lab, &kube)?;

    compare(out, ours, theirs)?;
    writeln!(
        out,
        "a Node joins 3 others: median {:.2} ms, worst of {JOINS} {:.2} ms; 50 changes a second: {:.2} % of a core",
        millis(median),
        millis(worst),
        busy * 100.0
    )?;
    let rows = [
        ("kube: a Node joins, median ms", millis(median), 20.0),
        ("kube: a Node joins, worst ms", millis(worst), 100.0),
        ("kube: one of 5,000 changes, median ms", millis(one.0), 20.0),
        ("kube: one of 5,000 changes, worst ms", millis(one.1), 100.0),
        (
            "kube: 5,000 Nodes to the kernel, s",
            snapshot.as_secs_f64(),
            1.0,
        ),
        ("kube: of which the kernel's batch, ms", kernel, 150.0),
        (
            "kube: restart, right routes, median s",
            restart.as_secs_f64(),
            0.3,
        ),
        ("kube: 50 changes a second, % of a core", busy * 100.0, 5.0),
        ("kube: peak resident memory, MB", ours.1, 32.0),
    ];
    for (what, value, target) in rows {
        marks.at_most(what, value, target);
    }
    Ok(())
}

/// Restarts the agent five times. Returns it, and the median time until it was ready.
fn restart(mut agent: Agent, worker: &Node<'_>, kube: &Kube<'_>) -> io::Result<(Agent, Duration)> {
    let mut times = Vec::new();
    for _ in 0..5 {
        assert!(agent.stop(), "the agent exits with 0");
        fs::write(worker.path("/run/hostgw-agent.log"), "")?;
        let time;
        (agent, time) = timed(worker, kube)?;
        times.push(time);
    }
    times.sort();
    Ok((agent, times[times.len() / 2]))
}

/// Prints time and memory of our agent beside those of flanneld.
fn compare(
    out: &mut impl Write,
    ours: (Duration, f64),
    theirs: Option<(Duration, f64)>,
) -> io::Result<()> {
    head(out, "5,000 Nodes", &["ours", "flanneld"])?;
    let cell = |time: Duration| format!("{:.0} ms", millis(time));
    let memory = |megabytes: f64| format!("{megabytes:.1} MB");
    for (what, ours, theirs) in [
        (
            "snapshot to the kernel",
            cell(ours.0),
            theirs.map(|(time, _)| cell(time)),
        ),
        (
            "peak resident memory",
            memory(ours.1),
            theirs.map(|(_, megabytes)| memory(megabytes)),
        ),
    ] {
        let theirs = theirs.unwrap_or_else(|| "-".to_owned());
        writeln!(out, "{what:25}{}", columns([ours, theirs]))?;
    }
    Ok(())
}

/// Returns node `i` as it is stored in etcd: key and object.
fn node(i: u32, is_other: bool) -> (String, String) {
    let name = format!("n-{i}");
    let cidr = format!("{}/24", subnet(i));
    let object = full_node(&name, &cidr, &address(i, is_other).to_string());
    (node_key(&name), object)
}

/// Starts the agent, and returns the time until it logged that it was ready.
fn timed(node: &Node<'_>, kube: &Kube<'_>) -> io::Result<(Agent, Duration)> {
    let kubeconfig = format!("--kubeconfig-file={}", kube.admin());
    let args = [
        "--kube-subnet-mgr",
        &kubeconfig,
        "--net-config-path=/mnt/net-conf.json",
        "--node-name=worker1",
        "--iface=ens7",
    ];
    let begin = SystemTime::now();
    let agent = Agent::start(node, &args);
    let took = time_until_ready(&agent, begin)?;
    Ok((agent, took))
}

/// Returns the median and the longest time from just before a Node is written to etcd, through the
/// API server's watch, until its route is in the kernel of all three nodes.
fn joins() -> io::Result<(Duration, Duration)> {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let master = lab.node("kube", &["192.168.2.20/24"]);
    let kube = Kube::start(&master, "192.168.2.20");
    create_nodes(&kube, Family::Ipv4);
    lab.write("net-conf.json", network(Family::Ipv4).to_string());
    let kubeconfig = format!("--kubeconfig-file={}", kube.admin());
    let start = |node: &Node<'_>| {
        let name = format!("--node-name={}", node.name);
        Agent::start(
            node,
            &[
                "--kube-subnet-mgr",
                &kubeconfig,
                "--net-config-path=/mnt/net-conf.json",
                &name,
            ],
        )
    };
    let agents: Vec<_> = nodes.iter().map(start).collect();
    for agent in &agents {
        agent.wait_for_log("ready:");
    }
    sleep(Duration::from_secs(2));
    let mut routes: Vec<_> = nodes.iter().map(Routes::watch).collect::<io::Result<_>>()?;
    let mut writer = Writer::open(&master, Ipv4Addr::new(192, 168, 2, 20))?;
    let mut times = Vec::new();
    for i in 0..JOINS {
        let name = format!("new-{i}");
        // Subnets of a size that the three nodes themselves do not have.
        let cidr = format!("10.10.{}.{}/28", 100 + i / 16, i % 16 * 16);
        let object = full_node(&name, &cidr, "192.168.2.100");
        let begin = SystemTime::now();
        writer.put(&node_key(&name), &object)?;
        let mut last = begin;
        for routes in &mut routes {
            last = last.max(routes.wait(&cidr)?);
        }
        times.push(last.duration_since(begin).unwrap_or_default());
        writer.delete(&node_key(&name))?;
        sleep(Duration::from_millis(50));
    }
    times.sort();
    Ok((times[times.len() / 2], times[times.len() - 1]))
}

/// Measures time and memory of the real flanneld with the same number of Nodes. Returns `None` if
/// flanneld has not been built.
fn flanneld(lab: &Lab, kube: &Kube<'_>) -> io::Result<Option<(Duration, f64)>> {
    if !repository().join("target/tools/flanneld").exists() {
        return Ok(None);
    }
    kube.create_node("worker2", &["10.255.1.0/24"], &["192.168.2.17"]);
    let node = node_with_large_link(lab, "worker2", 2);
    let begin = Instant::now();
    let flanneld = Flanneld::start_on_kube_with_interface(&node, kube, "ens7");
    let count = || {
        let routes = "ip route show proto boot | grep -c 'via 172'";
        node.sh(routes).stdout.trim().parse().unwrap_or(0)
    };
    poll(Duration::from_secs(120), || count() >= MANY);
    Ok(Some((begin.elapsed(), peak(flanneld.pid())?)))
}
