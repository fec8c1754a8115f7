//! The fast path: what is faster, and what stays true. These tests need a kernel with flowtables, so they run in
//! the virtual machines of tests/kernels.rs.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use conformance::flows::{TcpFlow, UdpFlow};
use conformance::reference_picture::{
    AttachedPod, CNI_CONF, Family, agents_with, cluster, node_entry, nodes, pods,
};
use conformance::{Agent, Attachment, Chain, Lab, Node, Plugin, poll, wait_for, wait_within};
use serde_json::{Value, json};

/// Rules of others may take this long to have an effect on flows on the fast path, in the virtual machine.
const LIMIT: Duration = Duration::from_secs(25);

/// The reference cluster with the fast path.
struct Cluster<'a> {
    lab: &'a Lab,
    nodes: &'a [Node<'a>],
    agents: Vec<Agent>,
    pods: Vec<AttachedPod<'a>>,
}

fn args() -> [String; 3] {
    let cluster = Lab::path("cluster.json");
    [
        format!("--cluster={}", cluster.display()),
        "--fast-path=on".to_owned(),
        "--v=1".to_owned(),
    ]
}

fn in_cluster(family: Family, test: impl FnOnce(Cluster<'_>)) {
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
    test(Cluster {
        lab: &lab,
        nodes: &nodes,
        agents,
        pods,
    });
}

impl Cluster<'_> {
    /// A pod of worker1 and one of worker2.
    fn pair(&self) -> [&AttachedPod<'_>; 2] {
        [&self.pods[0], &self.pods[2]]
    }

    /// A connection between these pods over the first family of the cluster.
    fn tcp(&self) -> TcpFlow {
        let [one, two] = self.pair();
        let to = address(&two.addresses[0], 8080);
        TcpFlow::open(&one.pod, to, &two.pod, to)
    }

    /// The same, once it is on the fast path.
    fn fast_tcp(&self) -> TcpFlow {
        let mut tcp = self.tcp();
        until_fast(&self.workers(), || {
            tcp.exchange(1000).expect("TCP works");
        });
        tcp
    }

    fn udp(&self) -> UdpFlow {
        let [one, two] = self.pair();
        let ip =
            |pod: &AttachedPod<'_>| -> IpAddr { pod.addresses[0].parse().expect("an address") };
        UdpFlow::open((&one.pod, ip(one)), (&two.pod, ip(two)))
    }

    fn workers(&self) -> [&Node<'_>; 2] {
        [&self.nodes[1], &self.nodes[2]]
    }
}

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// Counts the TCP and UDP packets that take the usual way.
fn watch(node: &Node<'_>) {
    node.sh(
        "nft 'table inet watch { chain forward { type filter hook forward priority -10; meta l4proto { tcp, udp } counter; }; }'",
    )
    .ok();
}

/// The number of packets of TCP and UDP that took the usual way.
fn slow_packets(node: &Node<'_>) -> u64 {
    let text = node.sh("nft list table inet watch").ok();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    let count = words.nth(1).and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("no counter: {text}"))
}

/// The number of packets that these exchanges sent the usual way, on each of the nodes.
fn slow_during(nodes: &[&Node<'_>], mut exchange: impl FnMut()) -> Vec<u64> {
    let count = || {
        nodes
            .iter()
            .map(|node| slow_packets(node))
            .collect::<Vec<_>>()
    };
    let before = count();
    exchange();
    count()
        .iter()
        .zip(before)
        .map(|(now, before)| now - before)
        .collect()
}

/// Uses a flow until none of its packets takes the usual way on any of the nodes.
#[track_caller]
fn until_fast(nodes: &[&Node<'_>], mut exchange: impl FnMut()) {
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

fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json").ok();
    serde_json::from_str(&text).expect("status is JSON")
}

/// Ends an agent, which must exit without a failure.
fn stop(node: &Node<'_>, agent: Agent) {
    let is_success = agent.stop();
    assert!(is_success, "{}", node.sh("cat /run/hostgw-agent.log").ok());
}

/// Waits until the agent that runs now says that the fast path is on with two pods.
fn wait_until_on(node: &Node<'_>) {
    wait_within("the fast path is on", LIMIT, || {
        let status = node.sh("/mnt/bin/hostgw-agent status");
        status.success && status.stdout.contains("on, 3 devices")
    });
}

/// The metric that counts flushes of the fast path.
fn flushes(node: &Node<'_>) -> String {
    let metrics = metrics(node);
    let line = metrics
        .lines()
        .find(|line| line.starts_with("hostgw_fast_path_flushes_total "));
    line.expect("the metric is there").to_owned()
}

fn metrics(node: &Node<'_>) -> String {
    node.sh("curl -s --unix-socket /run/hostgw/agent.sock http://agent/metrics")
        .ok()
}

/// The devices on the fast path, as the kernel lists them.
fn devices(node: &Node<'_>) -> Vec<String> {
    let text = node.sh("nft -j list flowtables").ok();
    let list: Value = serde_json::from_str(&text).expect("nft prints JSON");
    let all = list["nftables"]
        .as_array()
        .expect("nft prints a list")
        .iter();
    let mut tables = all.filter_map(|entry| entry.get("flowtable"));
    let dev = tables
        .find(|table| table["table"] == "hostgw-fast-path")
        .map(|table| &table["dev"]);
    match dev {
        Some(Value::Array(all)) => all
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        Some(Value::String(one)) => vec![one.clone()],
        _ => Vec::new(),
    }
}

#[test]
fn established_flows_of_both_families_take_the_fast_path() {
    in_cluster(Family::Dual, |cluster| {
        let [one, two] = cluster.pair();
        let workers = cluster.workers();
        for (from, to) in one.addresses.iter().zip(&two.addresses) {
            let at = address(to, 8080);
            let mut tcp = TcpFlow::open(&one.pod, at, &two.pod, at);
            until_fast(&workers, || tcp.exchange(20_000).expect("TCP works"));
            let ip = |text: &str| text.parse().expect("an address");
            let udp = UdpFlow::open((&one.pod, ip(from)), (&two.pod, ip(to)));
            until_fast(&workers, || udp.exchange(1000).expect("UDP works"));
            // Longer than the MTU: each fragment takes the usual way, and none is lost.
            udp.exchange(4000).expect("fragments arrive");
            until_fast(&workers, || udp.exchange(1000).expect("UDP works"));
        }
        wait_within("the flows are counted", 3 * LIMIT, || {
            let text = status(workers[0])["fastPath"].to_string();
            text.contains("on, 3 devices, ") && !text.contains(" 0 flows")
        });
        let metrics = metrics(workers[0]);
        for line in ["hostgw_fast_path 1.0", "hostgw_fast_path_devices 3.0"] {
            assert!(metrics.contains(line), "{line} is not in {metrics}");
        }
        // The agent's check of the kernel, as a user calls it.
        let check = workers[0].sh("/mnt/bin/hostgw-agent fast-path check").ok();
        assert!(check.contains("TCP and UDP over IPv4 and IPv6"), "{check}");
    });
}

/// The seconds of a time such as `12:34:56.789`.
fn time_of_day(text: &str) -> f64 {
    let text = text.trim_end().trim_end_matches('Z');
    let numbers = text.splitn(3, ':').map(|part| {
        let number = part.split(|c: char| !c.is_ascii_digit() && c != '.').next();
        number.and_then(|number| number.parse::<f64>().ok())
    });
    let numbers = numbers.map(|number| number.unwrap_or_else(|| panic!("not a time: {text}")));
    numbers.fold(0.0, |sum, number| sum * 60.0 + number)
}

#[test]
fn pods_that_come_and_go_leave_other_flows_on_the_fast_path() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let mut tcp = cluster.fast_tcp();
        let chain = Chain::new(cluster.lab, CNI_CONF);
        let mut times = Vec::new();
        let before = flushes(workers[0]);
        let slow = slow_during(&workers, || {
            for number in 0..5 {
                let pod = workers[0].pod(&format!("guest{number}"));
                let attachment = Attachment::of(&pod);
                let reply = chain.add(&pod, &attachment);
                let added = time_of_day(&workers[0].sh("date +%H:%M:%S.%N").ok());
                wait_for("the pod's device is on the fast path", || {
                    devices(workers[0]).len() == 4
                });
                let log = cluster.agents[1].log();
                let mut lines = log.lines().rev();
                let line = lines.find(|line| line.contains("to the fast path"));
                let line = line.and_then(|line| line.split_once('T')).expect("a line");
                times.push(time_of_day(line.1) - added);
                tcp.exchange(1000).expect("TCP works");
                chain.del(&pod, &attachment, Some(&reply.ok())).ok();
                pod.delete();
                wait_for("the pod's device is gone", || {
                    devices(workers[0]).len() == 3
                });
                tcp.exchange(1000).expect("TCP works");
            }
        });
        // The kernel itself looks up every flow's route again when any link goes up or down: one packet each.
        assert!(slow[0] <= 10 && slow[1] == 0, "{slow:?}");
        assert_eq!(flushes(workers[0]), before);
        times.sort_by(f64::total_cmp);
        eprintln!(
            "a pod is on the fast path {:.0} ms after ADD (median of 5)",
            times[2] * 1e3
        );
    });
}

/// A `NetworkPolicy` ends flows that are on the fast path: rules of nft, of iptables, and elements of sets.
#[test]
fn rules_that_come_later_than_a_flow_end_it() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let [one, two] = cluster.pair();
        let (from, to) = (&one.addresses[0], &two.addresses[0]);
        let denials = [
            (
                format!("iptables -I FORWARD -s {from} -d {to} -j DROP"),
                format!("iptables -D FORWARD -s {from} -d {to} -j DROP"),
            ),
            (
                format!("iptables -I FORWARD -s {to} -d {from} -j DROP"),
                format!("iptables -D FORWARD -s {to} -d {from} -j DROP"),
            ),
            (
                format!("nft insert rule inet deny forward ip daddr {to} drop"),
                "nft flush chain inet deny forward; nft add rule inet deny forward ip daddr @denied drop".to_owned(),
            ),
            (
                format!("nft add element inet deny denied '{{ {to} }}'"),
                format!("nft delete element inet deny denied '{{ {to} }}'"),
            ),
        ];
        workers[0]
            .sh("nft 'table inet deny { set denied { type ipv4_addr; }; chain forward { type filter hook forward priority 0; ip daddr @denied drop; }; }'")
            .ok();
        for (deny, allow) in denials {
            let mut tcp = cluster.fast_tcp();
            workers[0].sh(&deny).ok();
            // Sooner than the next resync, which would see the change, too.
            let time = wait_within(&deny, Duration::from_secs(9), || tcp.exchange(10).is_err());
            eprintln!("ended after {time:?}, of which 3 s are the timeout: {deny}");
            workers[0].sh(&allow).ok();
            drop(cluster.fast_tcp());
        }
    });
}

/// Rules of iptables-legacy cause no event: there the administrator flushes.
#[test]
fn a_flush_sends_flows_by_all_rules_and_loses_nothing() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let mut tcp = cluster.fast_tcp();
        let flush = || {
            let text = workers[0].sh("/mnt/bin/hostgw-agent fast-path flush").ok();
            assert!(text.contains("flushed"), "{text}");
        };
        let slow = slow_during(&workers[..1], || {
            flush();
            tcp.exchange(1000).expect("no packet is lost");
        });
        assert!(slow[0] > 0, "the flow passed the rules again");
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));

        let to = &cluster.pair()[1].addresses[0];
        workers[0]
            .sh(&format!("iptables-legacy -I FORWARD -d {to} -j DROP"))
            .ok();
        std::thread::sleep(Duration::from_secs(2));
        tcp.exchange(1000).expect("nobody saw the rule");
        flush();
        assert!(tcp.exchange(1000).is_err(), "the rule has an effect");
        workers[0].sh("iptables-legacy -F FORWARD").ok();
        // Without a fast path, it says so.
        let none = cluster.lab.node("other", &["192.168.2.30/24"]);
        cluster.lab.install(
            &conformance::dist().join("hostgw-agent"),
            "bin/hostgw-agent",
        );
        let output = none.sh("/mnt/bin/hostgw-agent fast-path flush");
        assert!(!output.success && output.stderr.contains("no fast path on this node"));
    });
}

/// Services as kube-proxy makes them: by address, by port of a node, to the pod itself; and masquerading.
#[test]
fn translated_flows_take_the_fast_path() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let [one, two] = cluster.pair();
        let (own, to) = (&one.addresses[0], &two.addresses[0]);
        let services = format!(
            "nft 'table ip services {{ \
               chain incoming {{ type nat hook prerouting priority dstnat; \
                 ip daddr 10.96.0.1 tcp dport 80 dnat to {to}:8080; ip daddr 10.96.0.2 tcp dport 80 dnat to {own}:8081; \
                 fib daddr type local tcp dport 30080 dnat to {to}:8082; }}; \
               chain outgoing {{ type nat hook postrouting priority srcnat; ct status dnat ip saddr {own} ip daddr {own} masquerade; \
                 meta l4proto tcp ct original proto-dst 30080 masquerade; }}; }}'"
        );
        workers[0].sh(&services).ok();
        let check = |name: &str, mut flow: TcpFlow, nodes: &[&Node<'_>]| {
            until_fast(nodes, || {
                flow.exchange(1000)
                    .unwrap_or_else(|error| panic!("{name}: {error}"));
            });
            flow.exchange(30_000)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        };
        let service = address("10.96.0.1", 80);
        let flow = TcpFlow::open(&one.pod, service, &two.pod, address(to, 8080));
        check("ClusterIP", flow, &workers);
        let hairpin = TcpFlow::open(
            &one.pod,
            address("10.96.0.2", 80),
            &one.pod,
            address(own, 8081),
        );
        check("hairpin", hairpin, &workers[..1]);
        let master = &cluster.nodes[0];
        let port = address("192.168.2.16", 30080);
        let flow = TcpFlow::open(master, port, &two.pod, address(to, 8082));
        check("NodePort", flow, &workers[..1]);

        // A host port of the plugin, and a server that knows no pods.
        let pod = workers[0].pod("web");
        let conf = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {"isDefaultGateway": true},
            "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": [{"hostPort": 8090, "containerPort": 8091, "protocol": "tcp"}]},
        });
        let reply = Plugin::ours(cluster.lab).add(&pod, &conf);
        let ip = reply.addresses()[0].clone();
        let flow = TcpFlow::open(
            master,
            address("192.168.2.16", 8090),
            &pod,
            address(&ip, 8091),
        );
        check("host port", flow, &workers[..1]);
        let world = cluster.lab.node("world", &["192.168.2.40/24"]);
        let at = address("192.168.2.40", 8099);
        let flow = TcpFlow::open(&one.pod, at, &world, at);
        let from = flow.far.peer_addr().expect("connected").ip().to_string();
        assert_eq!(from, "192.168.2.16", "masqueraded");
        check("masquerading", flow, &workers[..1]);
    });
}

#[test]
fn no_flow_of_a_deleted_pod_is_on_the_fast_path_to_the_next_with_its_address() {
    in_cluster(Family::Ipv4, |mut cluster| {
        let mut tcp = cluster.fast_tcp();
        let old = cluster.pods.remove(2);
        let chain = Chain::new(cluster.lab, CNI_CONF);
        let worker2 = &cluster.nodes[2];
        let attachment = Attachment::of(&old.pod);
        let ip = old.addresses[0].clone();
        chain.del(&old.pod, &attachment, Some(&old.reply.ok())).ok();
        old.pod.delete();
        let pod = worker2.pod("next");
        let args = format!("IP={ip};IgnoreUnknown=1");
        let reply = chain.add(&pod, &Attachment::of(&pod).with_args(&args));
        assert_eq!(reply.addresses()[0], ip);
        let slow = slow_during(&[worker2], || {
            tcp.near.write_all(b"x").expect("it is in the buffer");
            let answer = tcp.near.read(&mut [0]).map_err(|error| error.kind());
            // The new pod's answer, because it does not know the connection.
            assert_eq!(answer, Err(ErrorKind::ConnectionReset));
        });
        assert!(slow[0] > 0, "the packet passed all rules");
        let to = address(&ip, 8080);
        let mut tcp = TcpFlow::open(&cluster.pods[0].pod, to, &pod, to);
        until_fast(&cluster.workers(), || {
            tcp.exchange(1000).expect("the new pod is reached");
        });
    });
}

#[test]
fn flows_follow_a_peer_that_gets_another_address() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let mut tcp = cluster.tcp();
        let udp = cluster.udp();
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
        until_fast(&workers, || udp.exchange(1000).expect("UDP works"));
        workers[1].sh("ip addr add 192.168.2.99/24 dev enp0s5").ok();
        let nodes = [("master", 17, 0), ("worker1", 16, 1), ("worker2", 99, 2)]
            .map(|(name, host, subnet)| node_entry(Family::Ipv4, name, host, subnet));
        let network = conformance::reference_picture::network(Family::Ipv4);
        let text = json!({"network": network, "nodes": nodes}).to_string();
        cluster.lab.write("cluster.json", text);
        wait_for("the route follows", || {
            workers[0]
                .sh("ip route show 10.10.2.0/24")
                .ok()
                .contains("192.168.2.99")
        });
        workers[1].sh("ip addr del 192.168.2.15/24 dev enp0s5; ip addr replace 192.168.2.99/24 dev enp0s5").ok();
        workers[0].sh("ip neigh flush dev enp0s5").ok();
        tcp.exchange(20_000).expect("TCP follows");
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
        until_fast(&workers, || drop(udp.exchange(1000)));
        udp.exchange(1000).expect("UDP follows");
    });
}

#[test]
fn flows_survive_an_uplink_that_goes_down_and_up() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let mut tcp = cluster.fast_tcp();
        workers[0]
            .sh("ip link set enp0s5 down; sleep 0.5; ip link set enp0s5 up")
            .ok();
        cluster.agents[1].wait_for_log("interface enp0s5 is down");
        wait_within("TCP works again", 2 * LIMIT, || tcp.exchange(1000).is_ok());
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
    });
}

#[test]
fn a_smaller_mtu_on_one_side_is_discovered() {
    in_cluster(Family::Ipv4, |cluster| {
        const LENGTH: usize = 3 << 20;
        let workers = cluster.workers();
        let mut before = cluster.fast_tcp();
        workers[0].sh("ip link set enp0s5 mtu 1300").ok();
        assert_eq!(before.stream(LENGTH).expect("a flow of before"), LENGTH);
        let mut after = cluster.fast_tcp();
        assert_eq!(after.stream(LENGTH).expect("a flow of after"), LENGTH);
        // A router that sends less than it receives says so; a receiver would drop packets in silence.
        workers[1].sh("ip link set enp0s5 mtu 1300").ok();
        std::mem::swap(&mut after.near, &mut after.far);
        assert_eq!(after.stream(LENGTH).expect("the other direction"), LENGTH);
    });
}

/// The kernel takes a flow off the fast path after 30 seconds without a packet, and connection tracking goes on.
#[test]
fn flows_that_are_idle_for_long_continue() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let (mut tcp, udp) = (cluster.tcp(), cluster.udp());
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
        until_fast(&workers, || udp.exchange(1000).expect("UDP works"));
        // Without its entry, connection tracking would drop a packet in the middle of a connection.
        workers[0].sh("nft insert rule inet watch forward ct state invalid drop; nft insert rule inet watch forward ct state new tcp flags != syn drop").ok();
        std::thread::sleep(Duration::from_secs(45));
        let slow = slow_during(&workers[..1], || {
            tcp.exchange(1000).expect("TCP continues");
            udp.exchange(1000).expect("UDP continues");
        });
        assert!(slow[0] > 0, "they were off the fast path");
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
    });
}

/// The fast path of an earlier run stays in use: no packet is lost, and no flow takes the usual way for long.
#[test]
fn an_agent_that_stops_and_starts_loses_no_packet() {
    in_cluster(Family::Ipv4, |mut cluster| {
        let mut tcp = cluster.tcp();
        let udp = cluster.udp();
        until_fast(&cluster.workers(), || {
            tcp.exchange(1000).expect("TCP works");
        });
        until_fast(&cluster.workers(), || {
            udp.exchange(1000).expect("UDP works");
        });
        let mut use_both = || {
            for _ in 0..20 {
                tcp.exchange(1000).expect("TCP works");
                udp.exchange(1000).expect("no datagram is lost");
            }
        };
        let agent = cluster.agents.remove(1);
        stop(&cluster.nodes[1], agent);
        let slow = slow_during(&cluster.workers(), &mut use_both);
        assert!(slow.iter().sum::<u64>() <= 4, "without an agent: {slow:?}");
        let args = args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let agent = Agent::start(&cluster.nodes[1], &args);
        wait_until_on(&cluster.nodes[1]);
        use_both();
        until_fast(&cluster.workers(), &mut use_both);

        // Without the flag, everything is as it was before.
        drop(agent);
        let agent = Agent::start(&cluster.nodes[1], &args[..1]);
        wait_for("the fast path is off", || {
            devices(&cluster.nodes[1]).is_empty()
        });
        use_both();
        let off = status(&cluster.nodes[1])["fastPath"].to_string();
        assert!(off.contains("off (--fast-path=off)"), "{off}");
        drop(agent);
        let agent = Agent::start(&cluster.nodes[1], &args);
        wait_until_on(&cluster.nodes[1]);
        stop(&cluster.nodes[1], agent);
        let removed = cluster.nodes[1].sh("/mnt/bin/hostgw-agent cleanup").ok();
        assert!(
            removed.contains("removed nf_tables table inet hostgw-fast-path"),
            "{removed}"
        );
        assert_eq!(devices(&cluster.nodes[1]), [""; 0]);
    });
}

/// Whatever others do to the table, the agent restores it; a bridge that loses a port loses its flows.
#[test]
fn the_table_and_its_devices_are_restored() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let mut tcp = cluster.fast_tcp();
        let all = devices(workers[0]);
        assert_eq!(all.len(), 3, "{all:?}");
        for damage in [
            "nft delete table inet hostgw-fast-path",
            "nft flush ruleset",
            "nft flush chain inet hostgw-fast-path add-flow",
            "nft flush chain inet hostgw-fast-path forward",
            "nft delete flowtable inet hostgw-fast-path pods '{ devices = { enp0s5 }; }'",
        ] {
            workers[0].sh(damage).ok();
            if damage.contains("ruleset") {
                watch(workers[0]);
            }
            wait_within(damage, 2 * LIMIT, || devices(workers[0]).len() == 3);
            tcp.exchange(1000).expect("TCP works");
            // Only a new flow shows that flows are added again.
            drop(cluster.fast_tcp());
        }
        // A port that leaves its bridge leaves the fast path, and so do its flows.
        let port = workers[0].ports()[0]["ifname"]
            .as_str()
            .expect("a name")
            .to_owned();
        workers[0].sh(&format!("ip link set {port} nomaster")).ok();
        wait_within("the port is gone", LIMIT, || {
            !devices(workers[0]).contains(&port)
        });
        workers[0]
            .sh(&format!("ip link set {port} master cni0"))
            .ok();
        wait_within("the port is back", LIMIT, || {
            devices(workers[0]).contains(&port)
        });
        drop(cluster.fast_tcp());
    });
}

/// More devices than a page of an answer of the kernel has room for.
#[test]
fn a_node_may_have_hundreds_of_pods() {
    in_cluster(Family::Ipv4, |cluster| {
        const MORE: usize = 300;
        let workers = cluster.workers();
        let links = |script: fn(usize) -> String| {
            let lines: Vec<_> = (0..MORE).map(script).collect();
            workers[0].write("/run/links", lines.join("\n"));
            workers[0].sh("ip -batch /run/links").ok();
        };
        links(|i| {
            format!("link add more{i} master cni0 type veth peer name peer{i}\nlink set more{i} up")
        });
        wait_within("all are on the fast path", 8 * LIMIT, || {
            devices(workers[0]).len() == MORE + 3
        });
        let mut tcp = cluster.fast_tcp();
        let restored = "restored table inet hostgw-fast-path";
        assert!(!cluster.agents[1].log().contains(restored));
        workers[0].sh("/mnt/bin/hostgw-agent fast-path flush").ok();
        tcp.exchange(1000).expect("TCP works");
        assert_eq!(devices(workers[0]).len(), MORE + 3);
        links(|i| format!("link delete more{i}"));
        wait_within("they are gone", 8 * LIMIT, || {
            devices(workers[0]).len() == 3
        });
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
        assert!(!cluster.agents[1].log().contains(restored));
    });
}

/// Their packets stay on the bridge, as without the fast path, also where the bridge calls iptables.
#[test]
fn flows_between_pods_of_one_node_stay_on_the_bridge() {
    in_cluster(Family::Dual, |cluster| {
        let worker = cluster.workers()[0];
        worker
            .sh("test $(cat /proc/sys/net/bridge/bridge-nf-call-iptables) = 1")
            .ok();
        let [one, two] = [&cluster.pods[0], &cluster.pods[1]];
        for ip in &two.addresses {
            let at = address(ip, 8080);
            let mut tcp = TcpFlow::open(&one.pod, at, &two.pod, at);
            let mut exchange = || (0..20).for_each(|_| tcp.exchange(1000).expect("TCP works"));
            exchange();
            let slow = slow_during(&[worker], exchange);
            assert!(slow[0] >= 40, "{slow:?} packets passed the rules");
        }
    });
}

#[test]
fn rules_that_came_while_no_agent_ran_end_flows_when_it_starts() {
    in_cluster(Family::Ipv4, |mut cluster| {
        let mut tcp = cluster.fast_tcp();
        let agent = cluster.agents.remove(1);
        let worker = &cluster.nodes[1];
        stop(worker, agent);
        worker.sh("iptables -I FORWARD -s 10.10.1.5 -j DROP").ok();
        let args = args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let _agent = Agent::start(worker, &args);
        wait_until_on(worker);
        assert!(tcp.exchange(10).is_err(), "the rule has an effect");
    });
}
