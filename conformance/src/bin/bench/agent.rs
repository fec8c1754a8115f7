//! The agent's bench: how soon a node's lease is a route on all others, and what it costs to hold
//! thousands, with leases in a real etcd.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use conformance::reference_picture::{Family, nodes};
use conformance::{Agent, Etcd, Flanneld, Lab, Node, repository};
use serde_json::{Value, json};

use crate::instruments::{Routes, Writer, cpu, peak, time};
use crate::kube;
use crate::table::{Marks, columns, head, millis};

/// How many nodes join, one after the other.
pub(crate) const JOINS: u32 = 100;
/// How many nodes a cluster has where the marks are measured.
pub(crate) const MANY: u32 = 5000;
/// How many leases change in a second, and for how long.
pub(crate) const CHANGES: u32 = 50;
pub(crate) const CHURN: Duration = Duration::from_secs(60);
/// How long an idle agent is watched.
const IDLE: Duration = Duration::from_secs(30);

pub(crate) fn bench(out: &mut impl Write) -> io::Result<()> {
    let mut marks = Marks::default();
    joins(out, &mut marks)?;
    mends(out, &mut marks)?;
    idle(out, &mut marks)?;
    beside_flanneld(out)?;
    rows(&[10, 100, 1000, MANY, 50_000], out, &mut marks)?;
    kube::bench(out, &mut marks)?;
    marks.write(out)
}

/// On an API server alone.
pub(crate) fn bench_on_kube(out: &mut impl Write) -> io::Result<()> {
    let mut marks = Marks::default();
    kube::bench(out, &mut marks)?;
    marks.write(out)
}

/// One size of cluster alone.
pub(crate) fn bench_of(count: u32, out: &mut impl Write) -> io::Result<()> {
    let mut marks = Marks::default();
    if count == MANY {
        beside_flanneld(out)?;
    }
    rows(&[count], out, &mut marks)?;
    marks.write(out)
}

/// What clusters of these sizes cost.
fn rows(counts: &[u32], out: &mut impl Write, marks: &mut Marks) -> io::Result<()> {
    head(
        out,
        "nodes",
        &["snapshot", "kernel", "restart", "CPU, %", "memory"],
    )?;
    for count in counts {
        let row = growth(*count, marks)?;
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

/// A lease as flannel writes it.
fn lease(ip: Ipv4Addr) -> String {
    json!({"PublicIP": ip.to_string(), "PublicIPv6": null, "BackendType": "host-gw"}).to_string()
}

/// The key of the subnet of node `i`: of 10.0.0.0/8, so that 50,000 have room.
fn key(i: u32) -> String {
    format!("subnets/{}-24", subnet(i))
}

/// Where the subnet of node `i` begins.
pub(crate) fn subnet(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + (i << 8))
}

/// The address of node `i`, and the other one that it changes to.
pub(crate) fn address(i: u32, is_other: bool) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_1000 + i + if is_other { 0x4_0000 } else { 0 })
}

/// From the moment before the lease is sent to etcd until the route is in the kernel of all three
/// nodes.
fn joins(out: &mut impl Write, marks: &mut Marks) -> io::Result<()> {
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
        wait_for(agent, "ready:")?;
    }
    let mut routes: Vec<_> = nodes.iter().map(Routes::watch).collect::<io::Result<_>>()?;
    let mut writer = Writer::open(&store, Ipv4Addr::new(192, 168, 2, 20))?;
    let mut times = Vec::new();
    for i in 0..JOINS {
        // Subnets of this size: none that the three nodes have themselves.
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

/// What happens to a route, and how soon it is as it should be.
const HARMS: [(&str, &str); 4] = [
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

/// From the moment before the program that does the harm starts until the route is back.
fn mends(out: &mut impl Write, marks: &mut Marks) -> io::Result<()> {
    let theirs = repository().join("target/tools/flanneld").exists();
    head(out, "a route, ms, worst", &["ours", "flanneld"])?;
    let mut worst: f64 = 0.0;
    for (what, harm) in HARMS {
        let ours = mend(harm, 20, |node, etcd| start(node, etcd, "enp0s5"))?;
        worst = worst.max(millis(ours));
        let cell = |time: Option<Duration>| {
            time.map_or("never".to_owned(), |time| format!("{:.1}", millis(time)))
        };
        let flanneld = |node: &Node<'_>, etcd: &Etcd<'_>| Flanneld::start(node, etcd, &[]);
        let theirs = if theirs {
            cell(mend(harm, 2, flanneld).ok())
        } else {
            "-".to_owned()
        };
        writeln!(out, "{what:25}{}", columns([cell(Some(ours)), theirs]))?;
    }
    marks.at_most("a route is mended, worst ms", worst, 50.0);
    Ok(())
}

/// The worst of so many times, with an agent that `start` starts. Fails where it takes longer than
/// anybody waits.
fn mend<T>(
    harm: &str,
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
    let patience = Duration::from_secs(30);
    let wait = |begin: Instant| {
        while via().is_empty() {
            if begin.elapsed() > patience {
                return Err(io::Error::other("the route does not come"));
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    wait(Instant::now())?;
    let mut routes = Routes::watch(&node)?;
    let mut worst = Duration::ZERO;
    for _ in 0..times {
        sleep(Duration::from_millis(500));
        let begin = SystemTime::now();
        node.sh(harm).ok();
        wait(Instant::now())?;
        let back = routes.wait_for("10.10.2.0/24", "192.168.2.15", begin)?;
        worst = worst.max(back.duration_since(begin).unwrap_or_default());
    }
    Ok(worst)
}

/// Three agents without anything to do.
fn idle(out: &mut impl Write, marks: &mut Marks) -> io::Result<()> {
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
        wait_for(agent, "the cluster has 2 other node(s)")?;
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
    // Every process that one of them starts is a line here.
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

/// What one size of cluster costs.
struct Growth {
    snapshot: Duration,
    kernel: f64,
    restart: Duration,
    busy: f64,
    memory: f64,
}

fn growth(count: u32, marks: &mut Marks) -> io::Result<Growth> {
    let lab = Lab::new();
    let (node, store) = (
        big(&lab, "worker1", 1),
        lab.node("etcd", &["192.168.2.20/24"]),
    );
    let etcd = Etcd::start(&store, "192.168.2.20");
    fill(&etcd, count);
    let (agent, snapshot) = timed(&node, &etcd)?;
    let routes = route_count(&node);
    assert_eq!(routes, count, "every node is routed");
    let kernel = kernel_millis(&agent.log(), count);
    assert!(agent.stop(), "it ends well");
    fs::write(node.path("/run/hostgw-agent.log"), "")?;
    let (agent, restart) = timed(&node, &etcd)?;
    let written = status(&node)["routes"]["written"].clone();
    assert_eq!(written, json!(0), "nothing was to be written");
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
    let mended = mend_of_many(&node)?;
    if count == MANY {
        marks.at_most("a route of 5,000 is mended, worst ms", millis(mended), 50.0);
        marks.at_most(
            "snapshot of 5,000 to the kernel, s",
            snapshot.as_secs_f64(),
            1.0,
        );
        marks.at_most("of which the kernel's batch, ms", kernel, 150.0);
        marks.at_most(
            "restart with 5,000 right routes, s",
            restart.as_secs_f64(),
            0.3,
        );
        marks.at_most(
            "one of 5,000 changes, median ms",
            millis(change_median),
            20.0,
        );
        marks.at_most(
            "one of 5,000 changes, worst ms",
            millis(change_worst),
            100.0,
        );
        marks.at_most("50 changes a second, % of a core", busy * 100.0, 5.0);
        marks.at_most("peak resident memory, 5,000 peers, MB", memory, 32.0);
    }
    Ok(Growth {
        snapshot,
        kernel,
        restart,
        busy,
        memory,
    })
}

/// The worst of ten routes that are deleted, two of them right after each other each time.
fn mend_of_many(node: &Node<'_>) -> io::Result<Duration> {
    let mut routes = Routes::watch(node)?;
    let mut worst = Duration::ZERO;
    for i in 1..=10 {
        if i % 2 == 1 {
            sleep(Duration::from_millis(1500));
        }
        let subnet = key(i).replace("subnets/", "").replace('-', "/");
        let begin = SystemTime::now();
        node.sh(&format!("ip route del {subnet}")).ok();
        // First it is told that the route went.
        routes.wait_for("Deleted", &subnet, begin)?;
        let back = routes.wait_for(&subnet, "", begin)?;
        worst = worst.max(back.duration_since(begin).unwrap_or_default());
    }
    Ok(worst)
}

/// A node whose link has room for all the others.
pub(crate) fn big<'lab>(lab: &'lab Lab, name: &str, host: u8) -> Node<'lab> {
    let node = lab.node(name, &[&format!("192.168.2.{}/24", 15 + host)]);
    node.plug("ens7", &[&format!("172.16.0.{host}/12")]);
    node
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

/// Starts the agent, and says how long it took until it was ready, by its own word.
fn timed(node: &Node<'_>, etcd: &Etcd<'_>) -> io::Result<(Agent, Duration)> {
    let begin = SystemTime::now();
    let agent = start(node, etcd, "ens7");
    let line = wait_for(&agent, "ready:")?;
    let end = time(line.split(' ').next().unwrap_or_default());
    Ok((agent, end.duration_since(begin).unwrap_or_default()))
}

/// The line of the log that has `text`, once it is there.
pub(crate) fn wait_for(agent: &Agent, text: &str) -> io::Result<String> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        let log = agent.log();
        if let Some(line) = log.lines().find(|line| line.contains(text)) {
            return Ok(line.to_owned());
        }
        sleep(Duration::from_millis(5));
    }
    Err(io::Error::other(format!(
        "{text:?} does not come: {}",
        agent.log()
    )))
}

/// What the agent says that the kernel took for so many routes.
pub(crate) fn kernel_millis(log: &str, count: u32) -> f64 {
    let begin = format!("added or replaced {count} routes");
    let line = log.lines().find(|line| line.contains(&begin));
    let words = line.and_then(|line| line.rsplit("took ").next());
    let number = words.and_then(|words| words.split(' ').next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

pub(crate) fn route_count(node: &Node<'_>) -> u32 {
    let text = node.sh("ip route show proto 104 | wc -l").ok();
    text.trim().parse().expect("a number")
}

/// The routes to other nodes: subnet and next hop.
pub(crate) fn route_map(node: &Node<'_>) -> BTreeMap<String, String> {
    let text = node.sh("ip route show proto 104").ok();
    let route = |line: &str| {
        let (to, rest) = line.split_once(' ').expect("a destination");
        let via = rest.split_once("via ").map_or("", |(_, via)| via);
        let via = via.split(' ').next().unwrap_or_default();
        (to.to_owned(), via.to_owned())
    };
    text.lines().map(route).collect()
}

/// Has `change` change nodes, so many in a second, and says what share of a core the agent took.
/// `change` gives what route the kernel is to have for it: in the end, every route is as the last
/// change says.
pub(crate) fn churn(
    node: &Node<'_>,
    pid: u32,
    mut change: impl FnMut() -> io::Result<(String, Ipv4Addr)>,
) -> io::Result<f64> {
    let mut wanted = route_map(node);
    let begin = Instant::now();
    let before = cpu(pid)?;
    let total = CHANGES * u32::try_from(CHURN.as_secs()).expect("a minute");
    for i in 0..total {
        let (subnet, via) = change()?;
        wanted.insert(subnet, via.to_string());
        let next = begin + Duration::from_secs(1) / CHANGES * (i + 1);
        sleep(next.saturating_duration_since(Instant::now()));
    }
    let took = begin.elapsed();
    if took > CHURN.mul_f64(1.02) {
        let message = format!("{total} changes took {took:?}, which are too few in a second");
        return Err(io::Error::other(message));
    }
    let busy = cpu(pid)?.saturating_sub(before).as_secs_f64() / took.as_secs_f64();
    let mut routes = BTreeMap::new();
    for _ in 0..150 {
        routes = route_map(node);
        if routes == wanted {
            return Ok(busy);
        }
        sleep(Duration::from_millis(100));
    }
    let lost: Vec<_> = wanted
        .iter()
        .filter(|(to, via)| routes.get(*to) != Some(via))
        .take(5)
        .collect();
    Err(io::Error::other(format!(
        "changes were lost: {lost:?} of {} and {}",
        wanted.len(),
        routes.len()
    )))
}

/// How long it takes until a node's new address is in the kernel, one at a time: the median and the
/// worst of twenty. `change` is that of [`churn`].
pub(crate) fn single_changes(
    node: &Node<'_>,
    mut change: impl FnMut() -> io::Result<(String, Ipv4Addr)>,
) -> io::Result<(Duration, Duration)> {
    let mut routes = Routes::watch(node)?;
    let mut times = Vec::new();
    // So that it does not rest from what was before.
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

/// The real flanneld with as many nodes, where it was built.
fn beside_flanneld(out: &mut impl Write) -> io::Result<()> {
    if !repository().join("target/tools/flanneld").exists() {
        return writeln!(
            out,
            "\nflanneld is not built (make tools), and not measured beside"
        );
    }
    let lab = Lab::new();
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    fill(&etcd, MANY);
    let (ours, theirs) = (big(&lab, "worker1", 1), big(&lab, "worker2", 2));
    let (agent, our_time) = timed(&ours, &etcd)?;
    let begin = Instant::now();
    let flanneld = Flanneld::start(&theirs, &etcd, &["--iface=ens7"]);
    // Every lease but its own: ours, too.
    let count = || {
        let routes = "ip route show proto boot | grep -c 'via 172'";
        theirs.sh(routes).stdout.trim().parse().unwrap_or(0)
    };
    while count() < MANY && begin.elapsed() < Duration::from_secs(120) {
        sleep(Duration::from_millis(100));
    }
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

/// What `status --json` says.
fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json").ok();
    serde_json::from_str(&text).expect("JSON")
}
