//! The list as people run it: our plugin alone with host ports and limits of the traffic, next to the
//! reference's `bridge`, `portmap` and `bandwidth` in one list.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use conformance::inside::sh;
use conformance::{Lab, reference};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::contender::{bridge_conf, median};
use crate::table::{Targets, head, row};

/// Number of attachments for each median.
const ROUNDS: usize = 60;

/// A list of plugins, which a runtime runs one after the other.
struct List {
    network: &'static str,
    /// The executable and the configuration of each.
    plugins: Vec<(PathBuf, Value)>,
}

/// The ports and limits that a container asks for.
#[derive(Clone, Copy)]
struct Wish {
    /// Number of host ports, from `first` on.
    ports: u16,
    first: u16,
    protocol: &'static str,
    is_limited: bool,
}

impl Wish {
    const fn ports(ports: u16) -> Self {
        Self {
            ports,
            first: 8000,
            protocol: "tcp",
            is_limited: false,
        }
    }

    const LIMITED: Self = Self {
        ports: 0,
        first: 8000,
        protocol: "tcp",
        is_limited: true,
    };

    fn runtime_config(self) -> Value {
        let ports = self.first..self.first + self.ports;
        let protocol = self.protocol;
        let mapping = |port| json!({"hostPort": port, "containerPort": 80, "protocol": protocol});
        let mut config = json!({"portMappings": ports.map(mapping).collect::<Vec<_>>()});
        if self.is_limited {
            config["bandwidth"] = json!({"ingressRate": 1_000_000_000, "ingressBurst": 8_000_000,
                "egressRate": 1_000_000_000, "egressBurst": 8_000_000});
        }
        config
    }
}

impl List {
    fn new(network: &'static str, bridge: &str, subnet: &str, plugins: &[(&str, PathBuf)]) -> Self {
        let entry = |(kind, path): &(&str, PathBuf)| {
            let mut conf = match *kind {
                "bridge" => bridge_conf(network, &[subnet]),
                other => json!({"cniVersion": "1.0.0", "name": network, "type": other}),
            };
            if *kind == "bridge" {
                conf["bridge"] = json!(bridge);
            }
            conf["capabilities"] = json!({"portMappings": true, "bandwidth": true});
            (path.clone(), conf)
        };
        Self {
            network,
            plugins: plugins.iter().map(entry).collect(),
        }
    }

    /// Runs ADD through the list. Returns the time and the result.
    fn add(&self, pod: &str, wish: Wish) -> (Duration, Value) {
        let mut result = Value::Null;
        let mut time = Duration::ZERO;
        for (path, conf) in &self.plugins {
            let (taken, output) = self.call(path, conf, "ADD", pod, wish, &result);
            time += taken;
            // The floor has no result.
            if !output.is_empty() {
                result = serde_json::from_slice(&output).expect("a result is JSON");
            }
        }
        (time, result)
    }

    /// Runs DEL through the list, last plugin first.
    fn del(&self, pod: &str, wish: Wish, result: &Value) -> Duration {
        let plugins = self.plugins.iter().rev();
        plugins
            .map(|(path, conf)| self.call(path, conf, "DEL", pod, wish, result).0)
            .sum()
    }

    fn call(
        &self,
        path: &PathBuf,
        conf: &Value,
        verb: &str,
        pod: &str,
        wish: Wish,
        previous: &Value,
    ) -> (Duration, Vec<u8>) {
        let mut conf = conf.clone();
        conf["runtimeConfig"] = wish.runtime_config();
        // The first of the list gets no result with ADD.
        if !previous.is_null() {
            conf["prevResult"] = previous.clone();
        }
        let mut command = Command::new(path);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("{}-{pod}", self.network))
            .env("CNI_NETNS", format!("/run/netns/{pod}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("FLOOR_BRIDGE", "cni0")
            .env("FLOOR_VETH", "vethfloor")
            .env("FLOOR_IP", "10.10.1.200")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let begin = Instant::now();
        let mut child = command.spawn().expect("the plugin can be started");
        let mut stdin = child.stdin.take().expect("the stream is piped");
        drop(stdin.write_all(conf.to_string().as_bytes()));
        drop(stdin);
        let output = child.wait_with_output().expect("a child can be waited for");
        let time = begin.elapsed();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{} {verb} {pod}: {text}",
            path.display()
        );
        (time, output.stdout)
    }
}

/// Median times of ADD and DEL for each of several lists and wishes, which take turns.
fn timed(cases: &[(&List, Wish)]) -> Vec<(Duration, Duration)> {
    let mut times = vec![(Vec::new(), Vec::new()); cases.len()];
    for round in 0..ROUNDS {
        for turn in 0..cases.len() {
            let i = (round + turn) % cases.len();
            let (list, wish) = cases[i];
            let (add, result) = list.add("p0", wish);
            times[i].0.push(add);
            // A DEL waits for the kernel's clock: it should begin at any time between two ticks.
            let offset = (round * cases.len() + turn) * 1237 % 10_000;
            thread::sleep(Duration::from_micros(offset.try_into().expect("small")));
            times[i].1.push(list.del("p0", wish, &result));
        }
    }
    let medians = times.into_iter();
    medians
        .map(|(add, del)| (median(add), median(del)))
        .collect()
}

/// Measures in the current node.
pub(crate) fn inside() -> io::Result<()> {
    let mut out = io::stdout();
    let (bin, theirs) = (Lab::path("bin"), reference());
    let ours = List::new(
        "ours",
        "cni0",
        "10.10.1.0/24",
        &[("bridge", bin.join("cni-hostgw"))],
    );
    let plugin = |name| (name, theirs.join(name));
    let chain = |network, subnet, bridge, plugins: &[&'static str]| {
        let plugins: Vec<_> = plugins.iter().map(|name| plugin(*name)).collect();
        List::new(network, bridge, subnet, &plugins)
    };
    let two = chain("two", "10.10.2.0/24", "cni2", &["bridge", "portmap"]);
    let three = chain(
        "three",
        "10.10.3.0/24",
        "cni3",
        &["bridge", "portmap", "bandwidth"],
    );
    let floor = List {
        network: "floor",
        plugins: vec![(bin.join("floor"), bridge_conf("floor", &["10.10.1.0/24"]))],
    };
    let mut marks = Targets::default();
    sh("ip netns add held-ours; ip netns add held-two");
    let held = |ports, first| Wish {
        ports,
        first,
        protocol: "tcp",
        is_limited: false,
    };
    // One port is held, as on a node on which host ports are in use.
    let mut holders = [(&ours, "held-ours", 20_000), (&two, "held-two", 30_000)]
        .map(|(list, pod, first)| (list, pod, first, list.add(pod, held(1, first)).1));
    lists(&mut out, &mut marks, [&floor, &ours, &two, &three])?;
    let mut by_count = Vec::new();
    let mut carried = Vec::new();
    for count in [1, 100, 1000] {
        for (list, pod, first, result) in &mut holders {
            list.del(pod, held(count, *first), result);
            *result = list.add(pod, held(count, *first)).1;
        }
        // Not in turns: the kernel still frees what iptables deleted when the other's DEL runs.
        let mut times = timed(&[(&ours, Wish::ports(0)), (&ours, Wish::ports(1))]);
        times.extend(timed(&[(&two, Wish::ports(1))]));
        by_count.push((count, times));
        if count != 100 {
            carried.push((count, [&ours, &two].map(traffic)));
        }
    }
    head(&mut out, "ports held on the node", &["ours", "ours", "two"])?;
    for (count, times) in &by_count {
        let adds: Vec<_> = times.iter().map(|times| times.0).collect();
        let dels: Vec<_> = times.iter().map(|times| times.1).collect();
        row(&mut out, &format!("ADD, {count} held"), &adds)?;
        row(&mut out, &format!("DEL, {count} held"), &dels)?;
    }
    writeln!(
        out,
        "{:25}{:>10}{:>10}{:>10}",
        "", "no port", "one port", "one port"
    )?;
    marks.at_most(
        "ADD with one port, 1,000 held / 1",
        ratio(by_count[2].1[1].0, by_count[0].1[1].0),
        1.1,
    );
    // How long a DEL waits for the kernel depends on what else is on the node, such as the rules of
    // the reference for 1,000 ports.
    let with_all_held = &by_count[2].1;
    marks.at_most(
        "DEL with one port / without, 1,000 held",
        ratio(with_all_held[1].1, with_all_held[0].1),
        1.1,
    );
    head(&mut out, "to a host port, a second", &["ours", "two"])?;
    for (count, [ours, two]) in &carried {
        for (what, of) in [("connections", 0), ("UDP packets", 1)] {
            let name = format!("{what}, {count} held");
            writeln!(out, "{name:25}{:>10}{:>10}", ours[of], two[of])?;
        }
    }
    marks.write(&mut out)
}

/// Compares the lists as people run them.
fn lists(
    out: &mut impl Write,
    marks: &mut Targets,
    [floor, ours, two, three]: [&List; 4],
) -> io::Result<()> {
    let cases = [
        (floor, Wish::ports(0)),
        (ours, Wish::ports(0)),
        (two, Wish::ports(0)),
        (three, Wish::ports(0)),
        (ours, Wish::ports(1)),
        (two, Wish::ports(1)),
        (three, Wish::ports(1)),
        (ours, Wish::ports(10)),
        (two, Wish::ports(10)),
        (ours, Wish::LIMITED),
        (three, Wish::LIMITED),
    ];
    let times = timed(&cases);
    let names = ["ours", "two", "three"];
    writeln!(
        out,
        "two: bridge, portmap; three: bridge, portmap, bandwidth"
    )?;
    head(out, "milliseconds, median", &names)?;
    let zero = Duration::ZERO;
    for (name, [ours, two, three]) in [
        ("no port", [Some(1), Some(2), Some(3)]),
        ("one port", [Some(4), Some(5), Some(6)]),
        ("ten ports", [Some(7), Some(8), None]),
        ("bandwidth", [Some(9), None, Some(10)]),
    ] {
        let of = |pick: fn(&(Duration, Duration)) -> Duration| {
            [ours, two, three].map(|i: Option<usize>| i.map_or(zero, |i| pick(&times[i])))
        };
        row(out, &format!("ADD, {name}"), &of(|times| times.0))?;
        row(out, &format!("DEL, {name}"), &of(|times| times.1))?;
    }
    let add = |i: usize| times[i].0;
    marks.at_most("ADD with one port / without", ratio(add(4), add(1)), 1.15);
    marks.at_least(
        "[bridge, portmap] / ours, no port",
        ratio(add(2), add(1)),
        2.0,
    );
    marks.at_least(
        "[bridge, portmap] / ours, one port",
        ratio(add(5), add(4)),
        10.0,
    );
    marks.at_most(
        "DEL with one port / floor's DEL",
        ratio(times[4].1, times[0].1),
        1.1,
    );
    Ok(())
}

/// Connections and UDP packets that reach a pod by a host port in one second, from another pod.
fn traffic(list: &List) -> [u64; 2] {
    let node = Ipv4Addr::new(192, 168, 2, 16);
    let wish = Wish::ports(1);
    let tcp = list.add("p0", wish).1;
    let client = list.add("p1", Wish::ports(0)).1;
    let listener = enter("p0", || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)));
    let listener = listener.expect("a free port");
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let server = thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            drop(listener.accept());
        }
    });
    let address = SocketAddr::from((node, wish.first));
    let connections = enter("p1", move || {
        let (begin, mut count) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_secs(1) {
            TcpStream::connect(address).expect("the port is open");
            count += 1;
        }
        count
    });
    is_over.store(true, Ordering::Relaxed);
    enter("p1", move || drop(TcpStream::connect(address)));
    server.join().expect("the server does not panic");
    list.del("p0", wish, &tcp);
    let packets = udp_packets(list, address);
    list.del("p1", Wish::ports(0), &client);
    [connections, packets]
}

fn udp_packets(list: &List, address: SocketAddr) -> u64 {
    let wish = Wish {
        protocol: "udp",
        ..Wish::ports(1)
    };
    let result = list.add("p0", wish).1;
    let socket = enter("p0", || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 80)));
    let socket = socket.expect("a free port");
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a timeout");
    let count = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let (counted, over) = (Arc::clone(&count), Arc::clone(&is_over));
    let receiver = thread::spawn(move || {
        let mut packet = [0; 64];
        while !over.load(Ordering::Relaxed) {
            if socket.recv(&mut packet).is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let client = enter("p1", || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let client = client.expect("a free port");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        drop(client.send_to(&[0; 18], address));
    }
    let packets = count.load(Ordering::Relaxed);
    is_over.store(true, Ordering::Relaxed);
    receiver.join().expect("the receiver does not panic");
    list.del("p0", wish, &result);
    packets
}

/// Runs `work` in the network namespace of a pod.
fn enter<T: Send + 'static>(pod: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = File::open(format!("/run/netns/{pod}")).expect("the pod has a namespace");
    let thread = thread::spawn(move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter");
        work()
    });
    thread.join().expect("the thread does not panic")
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
