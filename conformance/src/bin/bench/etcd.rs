//! The agent with leases in a real etcd.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use conformance::reference_picture::{Family, nodes};
use conformance::{Agent, Etcd, Flanneld, Lab, Node, poll, repository};
use serde_json::{Value, json};

use crate::cluster::{
    JOINS, MANY, address, churn, longest_batch_millis, node_with_large_link, route_count,
    single_changes, status, subnet, time_until_ready,
};
use crate::instruments::{Routes, Writer, cpu, peak};
use crate::table::{Targets, columns, head, millis};

/// How long an idle agent is observed.
const IDLE: Duration = Duration::from_secs(30);

/// Prints a row with the cost of each of these cluster sizes.
pub(crate) fn rows(counts: &[u32], out: &mut impl Write, marks: &mut Targets) -> io::Result<()> {
    head(
        out,
        "nodes",
        &["snapshot", "kernel", "restart", "CPU, %", "memory"],
    )?;
    for count in counts {
        let row = measure_costs(*count, marks)?;
        let cells = [
            format!("{:.0} ms", millis(row.snapshot)),
            format!("{:.1} ms", row.kernel),
            format!("{:.0} ms", millis(row.restart)),
            format!("{:.2}", row.busy * 100.0),
            format!("{:.1} MB", row.memory),
        ];
        let what = if *count > MANY { " (simulated)" } else { "" };
        writeln!(out, "{:25}{}", format!("{count}{what}"), columns(cells))?;
    }
    Ok(())
}

/// Returns a lease's value as flannel writes it.
fn lease(ip: Ipv4Addr) -> String {
    json!({"PublicIP": ip.to_string(), "PublicIPv6": null, "BackendType": "host-gw"}).to_string()
}

/// Returns the key of node `i`'s subnet, which is from 10.0.0.0/8 so that 50,000 nodes fit in.
fn key(i: u32) -> String {
    format!("subnets/{}-24", subnet(i))
}

/// Measures from just before the lease is sent to etcd until the route is in the kernel of all
/// three nodes.
pub(crate) fn joins(out: &mut impl Write, marks: &mut Targets) -> io::Result<()> {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    let agents: Vec<_> = nodes
        .iter()
        .map(|node| start(node, &etcd, "enp0s5"))
        .collect();
    for agent in &agents {
        agent.wait_for_log("ready:");
    }
    let mut routes: Vec<_> = nodes.iter().map(Routes::watch).collect::<io::Result<_>>()?;
    let mut writer = Writer::open(&store, Ipv4Addr::new(192, 168, 2, 20))?;
    let mut times = Vec::new();
    for i in 0..JOINS {
        // Subnets of a size that the three nodes themselves do not have.
        let subnet = format!("10.10.{}.{}", 100 + i / 16, i % 16 * 16);
        let begin = SystemTime::now();
        writer.put(
            &format!("subnets/{subnet}-28"),
            &lease(Ipv4Addr::new(192, 168, 2, 100)),
        )?;
        let mut last = begin;
        for routes in &mut routes {
            last = last.max(routes.wait(&format!("{subnet}/28"))?);
        }
        times.push(last.duration_since(begin).unwrap_or_default());
        writer.delete(&format!("subnets/{subnet}-28"))?;
        sleep(Duration::from_millis(20));
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    writeln!(
        out,
        "a node joins 3 others: median {:.2} ms, worst of {JOINS} {:.2} ms",
        millis(median),
        millis(worst)
    )?;
    marks.at_most("a node joins, median ms", millis(median), 20.0);
    marks.at_most("a node joins, worst ms", millis(worst), 100.0);
    Ok(())
}

/// Kinds of damage to a route: name and script.
const DAMAGES: [(&str, &str); 4] = [
    ("deleted", "ip route del 10.10.2.0/24"),
    ("replaced", "ip route replace 10.10.2.0/24 via 192.168.2.1"),
    (
        "link down and up",
        "ip link set enp0s5 down; ip link set enp0s5 up",
    ),
    (
        "address away and back",
        "ip addr del 192.168.2.16/24 dev enp0s5; ip addr add 192.168.2.16/24 dev enp0s5",
    ),
];

/// Measures from just before the damaging program starts until the route is back.
pub(crate) fn repairs(out: &mut impl Write, marks: &mut Targets) -> io::Result<()> {
    let theirs = repository().join("target/tools/flanneld").exists();
    head(out, "a route, ms, worst", &["ours", "flanneld"])?;
    let mut worst: f64 = 0.0;
    for (what, damage) in DAMAGES {
        let ours = measure_repair(damage, 20, |node, etcd| start(node, etcd, "enp0s5"))?;
        worst = worst.max(millis(ours));
        let cell = |time: Option<Duration>| {
            time.map_or("never".to_owned(), |time| format!("{:.1}", millis(time)))
        };
        let flanneld = |node: &Node<'_>, etcd: &Etcd<'_>| Flanneld::start(node, etcd, &[]);
        let theirs = if theirs {
            cell(measure_repair(damage, 2, flanneld).ok())
        } else {
            "-".to_owned()
        };
        writeln!(out, "{what:25}{}", columns([cell(Some(ours)), theirs]))?;
    }
    marks.at_most("a route is mended, worst ms", worst, 50.0);
    Ok(())
}

/// Returns the longest of `times` repairs by the agent that `start` starts. Fails if one takes
/// longer than the timeout.
fn measure_repair<T>(
    damage: &str,
    times: usize,
    start: impl Fn(&Node<'_>, &Etcd<'_>) -> T,
) -> io::Result<Duration> {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    let other: Value = serde_json::from_str(&lease(Ipv4Addr::new(192, 168, 2, 15)))?;
    etcd.put("subnets/10.10.2.0-24", &other);
    let _agent = start(&node, &etcd);
    let via = || {
        node.sh("ip route show 10.10.2.0/24 via 192.168.2.15")
            .stdout
    };
    let timeout = Duration::from_secs(30);
    let wait = || {
        let appeared = poll(timeout, || !via().is_empty());
        appeared.ok_or_else(|| io::Error::other("the route does not appear"))
    };
    wait()?;
    let mut routes = Routes::watch(&node)?;
    let mut worst = Duration::ZERO;
    for _ in 0..times {
        sleep(Duration::from_millis(500));
        let begin = SystemTime::now();
        node.sh(damage).ok();
        wait()?;
        let back = routes.wait_for("10.10.2.0/24", "192.168.2.15", begin)?;
        worst = worst.max(back.duration_since(begin).unwrap_or_default());
    }
    Ok(worst)
}

/// Measures three idle agents.
pub(crate) fn idle(out: &mut impl Write, marks: &mut Targets) -> io::Result<()> {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    let agents: Vec<_> = nodes
        .iter()
        .map(|node| start(node, &etcd, "enp0s5"))
        .collect();
    for agent in &agents {
        agent.wait_for_log("the cluster has 2 other node(s)");
    }
    sleep(Duration::from_secs(2));
    let before: Vec<_> = agents
        .iter()
        .map(|agent| cpu(agent.pid()))
        .collect::<io::Result<_>>()?;
    sleep(IDLE);
    let mut busiest: f64 = 0.0;
    for (agent, before) in agents.iter().zip(before) {
        busiest = busiest
            .max(cpu(agent.pid())?.saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64());
    }
    // Each process started by the agent is one line of this output.
    let calls = Command::new("timeout")
        .args([
            "12",
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=fork,vfork,clone,clone3,execve",
            "-p",
        ])
        .arg(agents[0].pid().to_string())
        .stderr(Stdio::piped())
        .output()?;
    let started = String::from_utf8_lossy(&calls.stderr)
        .lines()
        .filter(|line| line.contains('('))
        .count();
    writeln!(
        out,
        "idle, 3 nodes: {:.4} % of a core, {started} processes started",
        busiest * 100.0
    )?;
    marks.at_most("idle, % of a core", busiest * 100.0, 0.1);
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    marks.at_most("idle, processes started", started as f64, 0.0);
    Ok(())
}

/// Costs of one cluster size.
struct Costs {
    snapshot: Duration,
    kernel: f64,
    restart: Duration,
    busy: f64,
    memory: f64,
}

// Long: measurements that follow each other on one cluster.
fn measure_costs(count: u32, marks: &mut Targets) -> io::Result<Costs> {
    let lab = Lab::new();
    let (node, store) = (
        node_with_large_link(&lab, "worker1", 1),
        lab.node("etcd", &["192.168.2.20/24"]),
    );
    let etcd = Etcd::start(&store, "192.168.2.20");
    fill(&etcd, count);
    let (agent, snapshot) = timed(&node, &etcd)?;
    let routes = route_count(&node);
    assert_eq!(routes, count, "every node is routed");
    let kernel = longest_batch_millis(&node);
    assert!(agent.stop(), "the agent exits with 0");
    fs::write(node.path("/run/hostgw-agent.log"), "")?;
    let (agent, restart) = timed(&node, &etcd)?;
    let written = status(&node)["routes"]["written"].clone();
    assert_eq!(written, json!(0), "no route had to be written");
    let mut writer = Writer::open(&store, Ipv4Addr::new(192, 168, 2, 20))?;
    let mut turn = 0;
    let mut change = || {
        let i = 1 + turn % count;
        let ip = address(i, (turn / count).is_multiple_of(2));
        writer.put(&key(i), &lease(ip))?;
        turn += 1;
        Ok((key(i).replace("subnets/", "").replace('-', "/"), ip))
    };
    let (change_median, change_worst) = single_changes(&node, &mut change)?;
    let busy = churn(&node, agent.pid(), &mut change)?;
    let memory = peak(agent.pid())?;
    let mended = measure_repair_among_many(&node)?;
    if count == MANY {
        let rows = [
            (
                "a route of 5,000 is restored, worst ms",
                millis(mended),
                50.0,
            ),
            (
                "snapshot of 5,000 to the kernel, s",
                snapshot.as_secs_f64(),
                1.0,
            ),
            ("of which the kernel's batch, ms", kernel, 150.0),
            (
                "restart with 5,000 right routes, s",
                restart.as_secs_f64(),
                0.3,
            ),
            (
                "one of 5,000 changes, median ms",
                millis(change_median),
                20.0,
            ),
            (
                "one of 5,000 changes, worst ms",
                millis(change_worst),
                100.0,
            ),
            ("50 changes a second, % of a core", busy * 100.0, 5.0),
            ("peak resident memory, 5,000 peers, MB", memory, 32.0),
        ];
        for (what, value, target) in rows {
            marks.at_most(what, value, target);
        }
    }
    Ok(Costs {
        snapshot,
        kernel,
        restart,
        busy,
        memory,
    })
}

/// Returns the longest of ten repairs after a route was deleted. Every second deletion follows
/// right after the previous repair.
fn measure_repair_among_many(node: &Node<'_>) -> io::Result<Duration> {
    let mut routes = Routes::watch(node)?;
    let mut worst = Duration::ZERO;
    for i in 1..=10 {
        if i % 2 == 1 {
            sleep(Duration::from_millis(1500));
        }
        let subnet = key(i).replace("subnets/", "").replace('-', "/");
        let begin = SystemTime::now();
        node.sh(&format!("ip route del {subnet}")).ok();
        // The first event reports the deletion.
        routes.wait_for("Deleted", &subnet, begin)?;
        let back = routes.wait_for(&subnet, "", begin)?;
        worst = worst.max(back.duration_since(begin).unwrap_or_default());
    }
    Ok(worst)
}

fn fill(etcd: &Etcd<'_>, count: u32) {
    let network = json!({
        "Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.255.0.0",
        "Backend": {"Type": "host-gw"},
    });
    etcd.put("config", &network);
    etcd.put_all((1..=count).map(|i| (key(i), lease(address(i, false)))));
}

fn start(node: &Node<'_>, etcd: &Etcd<'_>, interface: &str) -> Agent {
    let endpoints = format!("--etcd-endpoints={}", etcd.url());
    Agent::start(node, &[&endpoints, &format!("--iface={interface}")])
}

/// Starts the agent, and returns the time until it logged that it was ready.
fn timed(node: &Node<'_>, etcd: &Etcd<'_>) -> io::Result<(Agent, Duration)> {
    let begin = SystemTime::now();
    let agent = start(node, etcd, "ens7");
    let took = time_until_ready(&agent, begin)?;
    Ok((agent, took))
}

/// Measures the real flanneld with the same number of nodes, if it has been built.
pub(crate) fn compare_with_flanneld(out: &mut impl Write) -> io::Result<()> {
    if !repository().join("target/tools/flanneld").exists() {
        return writeln!(
            out,
            "\nflanneld is not built (make tools) and is not measured"
        );
    }
    let lab = Lab::new();
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    fill(&etcd, MANY);
    let (ours, theirs) = (
        node_with_large_link(&lab, "worker1", 1),
        node_with_large_link(&lab, "worker2", 2),
    );
    let (agent, our_time) = timed(&ours, &etcd)?;
    let begin = Instant::now();
    let flanneld = Flanneld::start(&theirs, &etcd, &["--iface=ens7"]);
    // Every lease but flanneld's own, including the one of our agent.
    let count = || {
        let routes = "ip route show proto boot | grep -c 'via 172'";
        theirs.sh(routes).stdout.trim().parse().unwrap_or(0)
    };
    poll(Duration::from_secs(120), || count() >= MANY);
    let their_time = begin.elapsed();
    head(out, "5,000 nodes", &["ours", "flanneld"])?;
    let theirs_in_time = match count() {
        MANY.. => format!("{:.0} ms", millis(their_time)),
        few => format!("{few} only"),
    };
    let cells = [format!("{:.0} ms", millis(our_time)), theirs_in_time];
    writeln!(out, "{:25}{}", "snapshot to the kernel", columns(cells))?;
    let cells = [peak(agent.pid())?, peak(flanneld.pid())?].map(|peak| format!("{peak:.1} MB"));
    writeln!(out, "{:25}{}", "peak resident memory", columns(cells))
}
