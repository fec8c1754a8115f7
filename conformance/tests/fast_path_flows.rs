//! Flows on the fast path work as others do: with services, rules that come later, and changes of routes, addresses
//! and links. These tests need a kernel with flowtables, so they run in the virtual machines of tests/kernels.rs.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use conformance::fast_path::{
    FastCluster, LIMIT, address, args, flushes, in_cluster, slow_during, until_fast,
    wait_for_status,
};
use conformance::flows::TcpFlow;
use conformance::reference_picture::{
    CNI_CONF, Family, NODES, network, node_addresses, node_entry,
};
use conformance::sockets::Place;
use conformance::{Agent, Attachment, Chain, Node, Plugin, Pod, wait_for, wait_within};
use serde_json::{Value, json};

/// A `NetworkPolicy` ends flows that are on the fast path: rules of nft, of iptables, and elements of sets.
#[test]
fn rules_that_come_later_than_a_flow_end_it() {
    in_cluster(Family::Dual, |cluster| {
        let workers = cluster.workers();
        let [one, two] = cluster.pair();
        let (from, to) = (&one.addresses[0], &two.addresses[0]);
        let (from6, to6) = (&one.addresses[1], &two.addresses[1]);
        let iptables = |tool: &str, from, to| {
            ["I", "D"].map(|verb| format!("{tool} -{verb} FORWARD -s {from} -d {to} -j DROP"))
        };
        let denials = [
            (0, iptables("iptables", from, to)),
            (0, iptables("iptables", to, from)),
            (1, iptables("ip6tables", from6, to6)),
            (0, [
                format!("nft insert rule inet deny forward ip daddr {to} drop"),
                "nft flush chain inet deny forward; nft add rule inet deny forward ip daddr @denied drop".to_owned(),
            ]),
            (0, ["add", "delete"].map(|verb| format!("nft {verb} element inet deny denied '{{ {to} }}'"))),
        ];
        workers[0]
            .sh("nft 'table inet deny { set denied { type ipv4_addr; }; chain forward { type filter hook forward priority 0; ip daddr @denied drop; }; }'")
            .ok();
        for (family, [deny, allow]) in denials {
            let fast = || {
                let mut tcp = cluster.tcp().remove(family);
                until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
                tcp
            };
            let mut tcp = fast();
            let before = flushes(workers[0]);
            workers[0].sh(&deny).ok();
            // Resyncs, which would see the change, too, are every ten seconds.
            let limit = Duration::from_secs(4);
            let time = wait_within(&deny, limit, || flushes(workers[0]) > before);
            eprintln!("flushed after {time:?}: {deny}");
            assert!(tcp.exchange(10).is_err(), "{deny}");
            workers[0].sh(&allow).ok();
            drop(fast());
        }
    });
}

/// A packet counts as accepted once it passed the filters of all hooks and priorities.
#[test]
fn a_later_filter_also_ends_flows() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let [one, two] = cluster.pair();
        let (from, to) = (&one.addresses[0], &two.addresses[0]);
        let deny = |hook: &str, priority: i32| {
            let deny = format!(
                "nft 'table inet late {{ chain filter {{ type filter hook {hook} priority {priority}; ip daddr {{ {from}, {to} }} drop; }}; }}'"
            );
            (deny, "nft delete table inet late".to_owned())
        };
        let iptables = |verb| {
            let rule = |a, b| format!("iptables -t security -{verb} FORWARD -s {a} -d {b} -j DROP");
            format!("{}; {}", rule(from, to), rule(to, from))
        };
        let denials = [
            (iptables("I"), iptables("D")),
            deny("postrouting", 95),
            deny("prerouting", -250),
        ];
        let udp = cluster.udp().remove(0);
        for (deny, allow) in denials {
            until_fast(&workers, || drop(udp.exchange(10)));
            let before = flushes(workers[0]);
            workers[0].sh(&deny).ok();
            wait_within(&deny, LIMIT, || flushes(workers[0]) > before);
            for _ in 0..3 {
                assert!(!udp.any_arrives(), "{deny}");
            }
            workers[0].sh(&allow).ok();
        }
        until_fast(&workers, || drop(udp.exchange(10)));
    });
}

#[test]
fn rules_that_came_while_no_agent_ran_end_flows_when_it_starts() {
    in_cluster(Family::Ipv4, |mut cluster| {
        let mut tcp = cluster.fast_tcp();
        let agent = cluster.agents.remove(1);
        let worker = &cluster.nodes[1];
        assert!(agent.stop());
        worker.sh("iptables -I FORWARD -s 10.10.1.5 -j DROP").ok();
        let args = args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let _agent = Agent::start(worker, &args);
        wait_for_status(worker, "on, 3 devices");
        assert!(tcp.exchange(10).is_err(), "the rule has an effect");
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

/// One family of the cluster, as its services need it.
struct Services<'a> {
    /// The family in rules of nft.
    family: &'static str,
    /// Two addresses of services, and those of worker1 and of a host that knows no pods.
    addresses: [&'static str; 4],
    /// A pod of worker1, one of worker2, and another of worker1.
    pods: [&'a str; 3],
}

impl<'a> Services<'a> {
    fn of_both_families(cluster: &'a FastCluster<'_>) -> [Self; 2] {
        let pods = [0, 2, 1].map(|pod: usize| &cluster.pods[pod]);
        let services = |index: usize, family, addresses| Self {
            family,
            addresses,
            pods: pods.map(|pod| pod.addresses[index].as_str()),
        };
        [
            services(
                0,
                "ip",
                ["10.96.0.1", "10.96.0.2", "192.168.2.16", "192.168.2.40"],
            ),
            services(
                1,
                "ip6",
                [
                    "fd00:10:96::1",
                    "fd00:10:96::2",
                    "fd00:192:168:2::16",
                    "fd00:192:168:2::40",
                ],
            ),
        ]
    }

    /// Services as kube-proxy makes them: by address, by port of a node, to the pod itself.
    fn rules(&self) -> String {
        let Self {
            family,
            addresses: [first, second, ..],
            pods: [own, far, neighbour],
        } = self;
        let at = address;
        let far = |port| at(far, port);
        format!(
            "nft 'table {family} services {{ \
               chain incoming {{ type nat hook prerouting priority dstnat; \
                 {family} daddr {first} tcp dport 80 dnat to {}; {family} daddr {second} tcp dport 80 dnat to {}; \
                 {family} daddr {second} tcp dport 81 dnat to {}; \
                 fib daddr type local tcp dport 30080 dnat to {}; }}; \
               chain outgoing {{ type nat hook postrouting priority srcnat; ct status dnat {family} saddr {own} {family} daddr {own} masquerade; \
                 meta l4proto tcp ct original proto-dst 30080 masquerade; }}; }}'",
            far(8080),
            at(own, 8081),
            at(neighbour, 8083),
            far(8082)
        )
    }
}

#[track_caller]
fn check(name: &str, mut flow: TcpFlow, nodes: &[&Node<'_>]) {
    let mut exchange = |length| {
        let result = flow.exchange(length);
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
    };
    until_fast(nodes, || exchange(1000));
    exchange(30_000);
}

/// Attaches a pod with a port of the node. Returns the configuration and the pod's addresses.
fn add_with_port(
    cluster: &FastCluster<'_>,
    pod: &Pod<'_>,
    mapping: &Value,
) -> (Value, Vec<String>) {
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {"isDefaultGateway": true, "hairpinMode": true},
        "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [mapping]},
    });
    let addresses = Plugin::ours(cluster.lab).add(pod, &conf).addresses();
    (conf, addresses)
}

#[test]
fn translated_flows_take_the_fast_path() {
    in_cluster(Family::Dual, |cluster| {
        let workers = cluster.workers();
        let [one, two] = cluster.pair();
        let master = &cluster.nodes[0];
        let world = cluster
            .lab
            .node("world", &["192.168.2.40/24", "fd00:192:168:2::40/64"]);
        let web = workers[0].pod("web");
        let mapping = json!({"hostPort": 8090, "containerPort": 8091, "protocol": "tcp"});
        let (_, web_addresses) = add_with_port(&cluster, &web, &mapping);
        for (services, web_ip) in Services::of_both_families(&cluster)
            .iter()
            .zip(&web_addresses)
        {
            workers[0].sh(&services.rules()).ok();
            let [first, second, node, outside] = services.addresses;
            let [own, far, neighbour] = services.pods;
            let flow = TcpFlow::open(&one.pod, address(first, 80), &two.pod, address(far, 8080));
            check("ClusterIP", flow, &workers);
            let flow = TcpFlow::open(&one.pod, address(second, 80), &one.pod, address(own, 8081));
            check("hairpin", flow, &workers[..1]);
            let at = address(neighbour, 8083);
            let flow = TcpFlow::open(&one.pod, address(second, 81), &cluster.pods[1].pod, at);
            check("between pods of one node", flow, &workers[..1]);
            let flow = TcpFlow::open(master, address(node, 30080), &two.pod, address(far, 8082));
            check("NodePort", flow, &workers[..1]);
            let flow = TcpFlow::open(master, address(node, 8090), &web, address(web_ip, 8091));
            check("host port", flow, &workers[..1]);
            let at = address(outside, 8099);
            let flow = TcpFlow::open(&one.pod, at, &world, at);
            let from = flow.far.peer_addr().expect("connected").ip().to_string();
            assert_eq!(from, node, "masqueraded");
            check("masquerading", flow, &workers[..1]);
        }
    });
}

/// kube-proxy deletes a flow's entry of connection tracking when the pod behind a service changes. So does our DEL for
/// the ports of a node.
#[test]
fn udp_flows_whose_entry_is_deleted_follow_the_new_rule() {
    in_cluster(Family::Dual, |cluster| {
        let workers = cluster.workers();
        let (client, next) = (&cluster.pods[0], &cluster.pods[3]);
        let _first = cluster.pods[2].pod.answer(53, "first");
        let _next = next.pod.answer(53, "next");
        for (index, services) in Services::of_both_families(&cluster).iter().enumerate() {
            let family = services.family;
            let service = services.addresses[0];
            let rule = |to: &str| {
                let to = address(to, 53);
                format!(
                    "nft 'add table {family} dns; add chain {family} dns incoming {{ type nat hook prerouting priority dstnat; }}; flush chain {family} dns incoming; \
                    add rule {family} dns incoming {family} daddr {service} udp dport 53 dnat to {to}'"
                )
            };
            workers[0].sh(&rule(services.pods[1])).ok();
            let socket = client.pod.udp_client();
            let target = address(service, 53).to_string();
            let ask = || socket.ask(&target).unwrap_or_default();
            until_fast(&workers, || assert!(ask().starts_with("first ")));
            workers[0].sh(&rule(&next.addresses[index])).ok();
            until_fast(&workers, || assert!(ask().starts_with("first ")));
            let option = if family == "ip" { "" } else { "-f ipv6" };
            let delete = format!("conntrack -D {option} -p udp --orig-dst {service}");
            let deleted = workers[0].sh(&delete);
            eprintln!("{delete}: {deleted:?}");
            let time = wait_within("the next server answers", Duration::from_secs(5), || {
                ask().starts_with("next ")
            });
            eprintln!("the next server answered after {time:?}");
            until_fast(&workers, || assert!(ask().starts_with("next ")));
        }
    });
}

#[test]
fn udp_flows_of_host_ports_follow_the_pod() {
    in_cluster(Family::Dual, |cluster| {
        let worker = cluster.workers()[0];
        let master = &cluster.nodes[0];
        let mapping = json!({"hostPort": 5353, "containerPort": 53, "protocol": "udp"});
        let sockets = [(); 2].map(|()| master.udp_client());
        let targets = ["192.168.2.16:5353", "[fd00:192:168:2::16]:5353"];
        for name in ["first", "next"] {
            let pod = worker.pod(name);
            let (conf, _) = add_with_port(&cluster, &pod, &mapping);
            let _server = pod.answer(53, name);
            for (socket, target) in sockets.iter().zip(targets) {
                until_fast(&[worker], || {
                    let answer = socket.ask(target).expect("answered");
                    assert!(answer.starts_with(name), "{answer}");
                });
            }
            Plugin::ours(cluster.lab).del(&pod, &conf).ok();
            pod.delete();
        }
    });
}

#[test]
fn no_flow_of_a_deleted_pod_is_on_the_fast_path_to_the_next_with_its_address() {
    for family in [Family::Ipv4, Family::Ipv6] {
        in_cluster(family, the_next_pod_gets_no_flow);
    }
}

fn the_next_pod_gets_no_flow(mut cluster: FastCluster<'_>) {
    let (mut tcp, udp) = (cluster.tcp().remove(0), cluster.udp().remove(0));
    until_fast(&cluster.workers(), || {
        tcp.exchange(1000).expect("TCP works");
        udp.exchange(1000).expect("UDP works");
    });
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
    let slow = slow_during(&[worker2], || {
        assert!(udp.exchange(1000).is_err(), "the old pod does not answer");
    });
    assert!(slow[0] > 0, "the datagram passed all rules");
    let to = address(&ip, 8080);
    let mut tcp = TcpFlow::open(&cluster.pods[0].pod, to, &pod, to);
    until_fast(&cluster.workers(), || {
        tcp.exchange(1000).expect("the new pod is reached");
    });
}

#[test]
fn flows_follow_a_peer_that_gets_another_address() {
    in_cluster(Family::Dual, |cluster| {
        let workers = cluster.workers();
        let (mut tcp, udp) = (cluster.tcp(), cluster.udp());
        until_fast(&workers, || {
            for tcp in &mut tcp {
                tcp.exchange(1000).expect("TCP works");
            }
            for udp in &udp {
                udp.exchange(1000).expect("UDP works");
            }
        });
        let (old, new) = (node_addresses(15), node_addresses(99));
        workers[1]
            .sh(&format!(
                "ip addr add {}/24 dev enp0s5; ip addr add {}/64 dev enp0s5 nodad",
                new.0, new.1
            ))
            .ok();
        let nodes = NODES.map(|(name, host, subnet)| {
            let host = if name == "worker2" { 99 } else { host };
            node_entry(Family::Dual, name, host, subnet)
        });
        let text = json!({"network": network(Family::Dual), "nodes": nodes}).to_string();
        cluster.lab.write("cluster.json", text);
        wait_for("the routes follow", || {
            let routes = workers[0].sh("ip route; ip -6 route").ok();
            [&new.0, &new.1]
                .iter()
                .all(|ip| routes.contains(&format!("via {ip} ")))
        });
        workers[1]
            .sh(&format!(
                "ip addr del {}/24 dev enp0s5; ip addr replace {}/24 dev enp0s5; ip addr del {}/64 dev enp0s5",
                old.0, new.0, old.1
            ))
            .ok();
        workers[0].sh("ip neigh flush dev enp0s5").ok();
        for tcp in &mut tcp {
            tcp.exchange(20_000).expect("TCP follows");
        }
        until_fast(&workers, || {
            for tcp in &mut tcp {
                tcp.exchange(1000).expect("TCP works");
            }
        });
        until_fast(&workers, || {
            for udp in &udp {
                drop(udp.exchange(1000));
            }
        });
        for udp in &udp {
            udp.exchange(1000).expect("UDP follows");
        }
    });
}

#[test]
fn flows_survive_an_uplink_that_goes_down_and_up() {
    in_cluster(Family::Dual, |cluster| {
        let workers = cluster.workers();
        let mut tcp = cluster.tcp();
        let mut exchange = || tcp.iter_mut().try_for_each(|tcp| tcp.exchange(1000));
        until_fast(&workers, || exchange().expect("TCP works"));
        // Without an address that stays, the kernel forgets IPv6 addresses of a link that goes down.
        workers[0]
            .sh("echo 1 >/proc/sys/net/ipv6/conf/enp0s5/keep_addr_on_down; ip link set enp0s5 down; sleep 0.5; ip link set enp0s5 up")
            .ok();
        cluster.agents[1].wait_for_log("interface enp0s5 is down");
        wait_within("TCP works again", 2 * LIMIT, || exchange().is_ok());
        until_fast(&workers, || exchange().expect("TCP works"));
    });
}

#[test]
fn a_smaller_mtu_on_one_side_is_discovered() {
    in_cluster(Family::Dual, |cluster| {
        const LENGTH: usize = 3 << 20;
        let workers = cluster.workers();
        let fast = || {
            let mut tcp = cluster.tcp();
            until_fast(&workers, || {
                for tcp in &mut tcp {
                    tcp.exchange(1000).expect("TCP works");
                }
            });
            tcp
        };
        let stream = |tcp: &mut Vec<TcpFlow>, name: &str| {
            for tcp in tcp {
                assert_eq!(tcp.stream(LENGTH).expect(name), LENGTH, "{name}");
            }
        };
        let mut before = fast();
        workers[0].sh("ip link set enp0s5 mtu 1300").ok();
        stream(&mut before, "a flow of before");
        let mut after = fast();
        stream(&mut after, "a flow of after");
        // A router that sends less than it receives says so; a receiver would drop packets in silence.
        workers[1].sh("ip link set enp0s5 mtu 1300").ok();
        for flow in &mut after {
            std::mem::swap(&mut flow.near, &mut flow.far);
        }
        stream(&mut after, "the other direction");
    });
}

/// The kernel takes a flow off the fast path after 30 seconds without a packet, and connection tracking goes on.
#[test]
fn flows_that_are_idle_for_long_continue() {
    in_cluster(Family::Dual, |cluster| {
        let workers = cluster.workers();
        let (mut tcp, udp) = (cluster.tcp(), cluster.udp());
        let mut exchange = || {
            for tcp in &mut tcp {
                tcp.exchange(1000).expect("TCP continues");
            }
            for udp in &udp {
                udp.exchange(1000).expect("UDP continues");
            }
        };
        until_fast(&workers, &mut exchange);
        // Without its entry, connection tracking would drop a packet in the middle of a connection.
        workers[0].sh("nft insert rule inet watch forward ct state invalid drop; nft insert rule inet watch forward ct state new tcp flags != syn drop").ok();
        std::thread::sleep(Duration::from_secs(45));
        let slow = slow_during(&workers[..1], &mut exchange);
        assert!(slow[0] >= 4, "they were off the fast path: {slow:?}");
        until_fast(&workers, &mut exchange);
    });
}
