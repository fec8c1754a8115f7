//! The fast path: its table, its devices, and its agent. These tests need a kernel with flowtables, so they run in
//! the virtual machines of tests/kernels.rs.

use conformance::fast_path::{
    LIMIT, address, args, devices, flushes, in_cluster, metrics, slow_during, status, until_fast,
    wait_for_status, watch,
};
use conformance::flows::{TcpFlow, UdpFlow};
use conformance::reference_picture::{CNI_CONF, Family};
use conformance::sockets::Place;
use conformance::{Agent, Attachment, Chain, Node, wait_for, wait_within};
use serde_json::Value;

/// Ends an agent, which must exit without a failure.
fn stop(node: &Node<'_>, agent: Agent) {
    let is_success = agent.stop();
    assert!(is_success, "{}", node.sh("cat /run/hostgw-agent.log").ok());
}

#[test]
fn established_flows_of_both_families_take_the_fast_path() {
    in_cluster(Family::Ipv6, |cluster| {
        let workers = cluster.workers();
        let mut tcp = cluster.tcp().remove(0);
        until_fast(&workers, || tcp.exchange(20_000).expect("TCP works"));
    });
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

#[test]
fn pods_that_come_and_go_leave_other_flows_on_the_fast_path() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let mut tcp = cluster.fast_tcp();
        let chain = Chain::new(cluster.lab, CNI_CONF);
        let before = flushes(workers[0]);
        let mut exchange = || (0..20).for_each(|_| tcp.exchange(1000).expect("TCP works"));
        let slow = slow_during(&workers, || {
            for number in 0..5 {
                let pod = workers[0].pod(&format!("guest{number}"));
                let attachment = Attachment::of(&pod);
                let reply = chain.add(&pod, &attachment);
                wait_for("the pod's device is on the fast path", || {
                    devices(workers[0]).len() == 4
                });
                exchange();
                chain.del(&pod, &attachment, Some(&reply.ok())).ok();
                pod.delete();
                wait_for("the pod's device is gone", || {
                    devices(workers[0]).len() == 3
                });
                exchange();
            }
        });
        // Of 400 packets or more. When any link goes up or down, the kernel itself looks up every flow's route again
        // with its next packets.
        assert!(slow[0] <= 40 && slow[1] == 0, "{slow:?}");
        assert_eq!(flushes(workers[0]), before);
    });
}

/// The fast path of an earlier run stays in use: no packet is lost, and no flow takes the usual way for long.
#[test]
fn an_agent_that_stops_and_starts_loses_no_packet() {
    in_cluster(Family::Dual, |mut cluster| {
        let (mut tcp, udp) = (cluster.tcp(), cluster.udp());
        let mut use_all = || {
            for _ in 0..20 {
                for tcp in &mut tcp {
                    tcp.exchange(1000).expect("TCP works");
                }
                for udp in &udp {
                    udp.exchange(1000).expect("no datagram is lost");
                }
            }
        };
        until_fast(&cluster.workers(), &mut use_all);
        let agent = cluster.agents.remove(1);
        stop(&cluster.nodes[1], agent);
        let slow = slow_during(&cluster.workers(), &mut use_all);
        assert!(slow.iter().sum::<u64>() <= 8, "without an agent: {slow:?}");
        let args = args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let agent = Agent::start(&cluster.nodes[1], &args);
        wait_for_status(&cluster.nodes[1], "on, 3 devices");
        use_all();
        until_fast(&cluster.workers(), &mut use_all);

        // Without the flag, everything is as it was before.
        drop(agent);
        let agent = Agent::start(&cluster.nodes[1], &args[..1]);
        wait_for("the fast path is off", || {
            devices(&cluster.nodes[1]).is_empty()
        });
        use_all();
        wait_for_status(&cluster.nodes[1], "off (--fast-path=off)");
        drop(agent);
        // Flows in use get on it in both directions, whenever their devices come.
        let agent = Agent::start(&cluster.nodes[1], &args);
        wait_within("the fast path is on", LIMIT, || {
            use_all();
            devices(&cluster.nodes[1]).len() == 3
        });
        until_fast(&cluster.workers(), &mut use_all);
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
            wait_within(damage, 2 * LIMIT, || {
                tcp.exchange(1000).expect("TCP works");
                devices(workers[0]).len() == 3
            });
            // A flow of before may still be on it, so that only a new one shows that flows are added again.
            drop(cluster.fast_tcp());
            until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
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

/// Gives a device as many hooks as the kernel allows, so that it refuses one more.
fn fill_hooks(node: &Node<'_>, device: &str) {
    const MOST: usize = 1024;
    // A transaction has no room for all.
    for first in (0..MOST).step_by(64) {
        let chains = (first..first + 64).map(|i| {
            format!("add chain netdev full c{i} {{ type filter hook ingress device {device} priority 0; }}")
        });
        let script = chains.collect::<Vec<_>>().join("\n");
        node.write("/run/full.nft", format!("add table netdev full\n{script}"));
        node.sh("nft -f /run/full.nft").ok();
    }
}

/// Pods behind a device that the kernel refuses take the usual way, the others do not. Without the uplink, all do.
#[test]
fn a_device_that_the_kernel_refuses_takes_only_itself() {
    in_cluster(Family::Ipv4, |mut cluster| {
        let workers = [&cluster.nodes[1], &cluster.nodes[2]];
        let node = workers[0];
        let mut tcp = cluster.fast_tcp();
        node.sh("ip link add full type veth peer name full-peer; ip link set full up")
            .ok();
        fill_hooks(node, "full");
        node.sh("ip link set full master cni0").ok();
        let text = wait_for_status(node, "full");
        let expected = "on, 3 devices";
        assert!(
            text.contains(expected) && text.contains("add full to the fast path"),
            "{text}"
        );
        cluster.agents[1].wait_for_log("add full to the fast path");
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));

        node.sh("nft delete table netdev full; ip link delete full")
            .ok();
        wait_for_status(node, "on, 3 devices");
        let agent = cluster.agents.remove(1);
        stop(node, agent);
        node.sh("nft delete table inet hostgw-fast-path").ok();
        fill_hooks(node, "enp0s5");
        let args = args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let _agent = Agent::start(node, &args);
        let text = wait_for_status(node, "the kernel refuses the uplink");
        assert!(text.contains("add enp0s5 to the fast path"), "{text}");
        assert_eq!(devices(node), [""; 0]);
        let metric = metrics(node);
        assert!(metric.contains("hostgw_fast_path 0.0"), "{metric}");
        tcp.exchange(1000).expect("TCP works");

        node.sh("nft delete table netdev full").ok();
        wait_for_status(node, "on, 3 devices");
        until_fast(&workers, || tcp.exchange(1000).expect("TCP works"));
    });
}

/// IPVS translates answers where the fast path does not pass.
#[test]
fn a_node_with_ipvs_services_has_no_fast_path() {
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let [one, two] = cluster.pair();
        let service = address("10.96.0.1", 80);
        let server = address(&two.addresses[0], 8080);
        workers[0]
            .sh(&format!(
                "ip address add 10.96.0.1/32 dev lo; ipvsadm -A -t {service} -s rr; ipvsadm -a -t {service} -r {server} -m; \
                 echo 1 >/proc/sys/net/ipv4/vs/conntrack"
            ))
            .ok();
        // Nothing tells the agent at once, and nothing is wrong until it sees the service.
        let mut tcp = TcpFlow::open(&one.pod, service, &two.pod, server);
        wait_within("the fast path is off", LIMIT, || {
            tcp.exchange(1000).expect("the service works");
            status(workers[0])["fastPath"].to_string().contains("IPVS")
        });
        assert_eq!(devices(workers[0]), [""; 0]);
        tcp.exchange(1000).expect("the service works");
        workers[0].sh("ipvsadm -C").ok();
        wait_for_status(workers[0], "on, 3 devices");
        drop(cluster.fast_tcp());
    });
}

/// The plugin leaves VLANs alone, also where the kernel can filter them; a bridge that somebody else made filter them
/// works as well.
#[test]
fn a_bridge_that_filters_vlans_has_a_fast_path() {
    in_cluster(Family::Dual, |cluster| {
        let workers = cluster.workers();
        let filters = |node: &Node<'_>| {
            let text = node.sh("ip -d -j link show cni0").ok();
            let links: Value = serde_json::from_str(&text).expect("ip prints JSON");
            links[0]["linkinfo"]["info_data"]["vlan_filtering"].clone()
        };
        for node in workers {
            assert_eq!(filters(node), 0);
            node.sh("ip link set cni0 type bridge vlan_filtering 1")
                .ok();
        }
        let mut tcp = cluster.tcp();
        let mut exchange = || {
            for tcp in &mut tcp {
                tcp.exchange(20_000).expect("TCP works");
            }
        };
        until_fast(&workers, &mut exchange);
        let pod = workers[0].pod("next");
        let chain = Chain::new(cluster.lab, CNI_CONF);
        let reply = chain.add(&pod, &Attachment::of(&pod));
        assert_eq!(filters(workers[0]), 1, "the plugin does not change it");
        let far = &cluster.pair()[1].pod;
        for ip in reply.addresses() {
            let at = address(&ip, 8080);
            let mut tcp = TcpFlow::open(far, at, &pod, at);
            until_fast(&workers, || tcp.exchange(20_000).expect("TCP works"));
        }
        workers[0]
            .sh("ip link set cni0 type bridge vlan_filtering 0")
            .ok();
        until_fast(&workers, exchange);
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

/// The limits of a pod's traffic hold on the fast path, because they are in the queues of its devices. Packets that a
/// limited pod sends take the usual way: the kernel brings them back from the queue behind the fast path's place.
#[test]
fn limited_pods_keep_their_rates() {
    const RATE: u32 = 20_000_000;
    in_cluster(Family::Ipv4, |cluster| {
        let workers = cluster.workers();
        let mut conf: Value = serde_json::from_str(CNI_CONF).expect("the list is JSON");
        let plugin = &mut conf["plugins"][0];
        plugin["ingressRate"] = RATE.into();
        plugin["ingressBurst"] = 400_000.into();
        plugin["egressRate"] = RATE.into();
        plugin["egressBurst"] = 400_000.into();
        let pod = workers[0].pod("limited");
        let chain = Chain::new(cluster.lab, &conf.to_string());
        let reply = chain.add(&pod, &Attachment::of(&pod));
        wait_for_status(workers[0], "on, 4 devices");
        let far = cluster.pair()[1];
        let (own, other) = (&reply.addresses()[0], &far.addresses[0]);
        for node in workers {
            let rules = format!(
                "nft insert rule inet watch forward ct state invalid drop; nft insert rule inet watch forward ip daddr {own} counter"
            );
            node.sh(&rules).ok();
        }
        for is_to_pod in [true, false] {
            let mut rate = 0.0;
            let slow = slow_during(&workers, || {
                let transport = conformance::sockets::Transport::Tcp;
                rate = if is_to_pod {
                    far.pod.send_to(&pod, &format!("{own}:5001"), transport)
                } else {
                    pod.send_to(&far.pod, &format!("{other}:5001"), transport)
                }
                .rate();
            });
            let share = rate / f64::from(RATE);
            eprintln!(
                "to the limited pod: {is_to_pod}, {share:.3} of the limit, {slow:?} packets took the usual way"
            );
            assert!((0.5..=1.05).contains(&share), "{share} of the limit");
            assert!(slow.iter().all(|count| *count < 200), "{slow:?}");
        }
    });
}
