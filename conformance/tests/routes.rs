//! The agent's routes: changes of the cluster file and damage in the kernel take effect or are
//! corrected at once.
//!
//! Tests that measure times run alone: `cargo test` runs one file after the other, and each test of
//! this file waits for its turn.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use conformance::reference_picture::{Family, agents, cluster, node_entry, nodes, routes};
use conformance::{Agent, Lab, Node, wait_for};
use serde_json::json;

const LIMIT: Duration = Duration::from_millis(100);

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `test` when it is its turn, on the reference cluster with an agent on each node.
fn in_cluster(family: Family, test: impl FnOnce(&Lab, &[Node<'_>], Vec<Agent>)) {
    let _turn = turn();
    let lab = Lab::new();
    let nodes = nodes(&lab, family);
    lab.write("cluster.json", cluster(family, &[]));
    let agents = agents(&nodes, Agent::start);
    test(&lab, &nodes, agents);
}

/// Returns the node's route to `subnet`, as `ip route` prints it with its protocol.
fn route(node: &Node<'_>, subnet: &str) -> String {
    node.sh(&format!("ip route show {subnet}"))
        .ok()
        .trim()
        .to_owned()
}

const TO_WORKER2: &str = "10.10.2.0/24 via 192.168.2.15 dev enp0s5 proto 104";

/// Returns the median of five measurements of the time until worker1 has the route to worker2, or
/// no longer has it. `again` triggers the change and is not measured itself.
fn median(node: &Node<'_>, has_route: bool, mut again: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..5)
        .map(|_| {
            again();
            wait_for("the route has the expected state", || {
                route(node, "10.10.2.0/24") == if has_route { TO_WORKER2 } else { "" }
            })
        })
        .collect();
    times.sort();
    times[2]
}

#[test]
fn an_edit_of_the_cluster_file_takes_effect_within_100_ms() {
    let _turn = turn();
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let write = |left_out: &[&str]| lab.write("cluster.json", cluster(Family::Ipv4, left_out));
    write(&[]);
    let agents = agents(&nodes, Agent::start);
    let worker1 = &nodes[1];
    let mut gone = Vec::new();
    let mut back = Vec::new();
    for _ in 0..5 {
        gone.push(measure(worker1, false, || write(&["worker2"])));
        back.push(measure(worker1, true, || write(&[])));
    }
    gone.sort();
    back.sort();
    assert!(
        gone[2] < LIMIT && back[2] < LIMIT,
        "removed {gone:?}, restored {back:?}"
    );
    // The removed node retains its last state, and logs that.
    agents[2].wait_for_log("no node has one of this node's addresses (192.168.2.15)");
    agents[2].wait_for_log("the last known state stays in use");
    assert_eq!(
        route(&nodes[2], "10.10.1.0/24"),
        "10.10.1.0/24 via 192.168.2.16 dev enp0s5 proto 104"
    );
}

fn measure(node: &Node<'_>, has_route: bool, again: impl FnOnce()) -> Duration {
    again();
    wait_for("the route has the expected state", || {
        route(node, "10.10.2.0/24") == if has_route { TO_WORKER2 } else { "" }
    })
}

#[test]
fn an_invalid_cluster_file_is_reported_and_the_last_valid_one_stays_in_effect() {
    in_cluster(Family::Ipv4, |lab, nodes, agents| {
        let before: Vec<_> = nodes.iter().map(|node| node.sh("ip route").ok()).collect();
        lab.write("cluster.json", "{");
        agents[1].wait_for_log("cluster.json: EOF while parsing");
        let mut overlap: serde_json::Value =
            serde_json::from_str(&cluster(Family::Ipv4, &[])).expect("just written");
        let entry = node_entry(Family::Ipv4, "worker3", 14, 1);
        overlap["nodes"].as_array_mut().expect("a list").push(entry);
        lab.write("cluster.json", overlap.to_string());
        agents[1]
            .wait_for_log("nodes[3].subnet: 10.10.1.0/24 overlaps 10.10.1.0/24 of node worker1");
        let after: Vec<_> = nodes.iter().map(|node| node.sh("ip route").ok()).collect();
        assert_eq!(after, before);
        lab.write("cluster.json", cluster(Family::Ipv4, &["worker2"]));
        wait_for("the next valid edit takes effect", || {
            route(&nodes[1], "10.10.2.0/24").is_empty()
        });
        agents[1].wait_for_log("ready: 1 of 1 subnets");
    });
}

#[test]
fn deleted_and_replaced_routes_are_restored_within_100_ms() {
    in_cluster(Family::Ipv4, |_lab, nodes, agents| {
        let worker1 = &nodes[1];
        wait_for("the first route", || {
            route(worker1, "10.10.2.0/24") == TO_WORKER2
        });
        let sh = |script: &str| drop(worker1.sh(script).ok());
        let deleted = median(worker1, true, || sh("ip route delete 10.10.2.0/24"));
        let flapped = median(worker1, true, || {
            sh("ip link set enp0s5 down && ip link set enp0s5 up");
        });
        let readdressed = median(worker1, true, || {
            sh(
                "ip addr delete 192.168.2.16/24 dev enp0s5 && ip addr add 192.168.2.16/24 dev enp0s5",
            );
        });
        let replaced = median(worker1, true, || {
            sh("ip route replace 10.10.2.0/24 via 192.168.2.1");
        });
        let times = [deleted, flapped, readdressed, replaced];
        assert!(times.iter().all(|time| *time < LIMIT), "{times:?}");
        let replaced = "replace route 10.10.2.0/24 via 192.168.2.1 proto 3";
        agents[1].wait_for_log(replaced);
        let log = agents[1].log();
        let is_warning = |line: &str| line.contains("WARN") && line.contains(replaced);
        assert!(log.lines().any(is_warning), "{log}");
        // A route placed before ours, which a replace request does not affect.
        sh("ip route prepend 10.10.2.0/24 via 192.168.2.1");
        wait_for("the foreign route is removed", || {
            route(worker1, "10.10.2.0/24") == TO_WORKER2
        });
        // A route that diverts the node's own subnet.
        sh("ip route add 10.10.1.0/24 via 192.168.2.1");
        wait_for("the diverting route is removed", || {
            route(worker1, "10.10.1.0/24").is_empty()
        });
    });
}

#[test]
fn ipv6_routes_are_restored_within_100_ms() {
    in_cluster(Family::Ipv6, |_lab, nodes, _agents| {
        let worker1 = &nodes[1];
        let is_there = || {
            worker1.sh("ip -6 route show fd00:10:10:2::/64").ok().trim()
                == "fd00:10:10:2::/64 via fd00:192:168:2::15 dev enp0s5 proto 104 metric 1024 pref medium"
        };
        wait_for("the first route", is_there);
        for damage in [
            "ip -6 route delete fd00:10:10:2::/64",
            "ip link set enp0s5 down && ip link set enp0s5 up",
            "ip -6 route replace fd00:10:10:2::/64 via fd00:192:168:2::1 metric 1024",
            "ip -6 route add fd00:10:10:2::/64 via fd00:192:168:2::1 metric 5",
        ] {
            let mut times: Vec<_> = (0..5)
                .map(|_| {
                    worker1.sh(damage).ok();
                    wait_for("the route has the expected state", is_there)
                })
                .collect();
            times.sort();
            assert!(times[2] < LIMIT, "{damage}: {times:?}");
        }
    });
}

/// Returns how many times the process has been scheduled.
fn context_switches(pid: u32) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is running");
    let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
    counts
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0)
        })
        .sum()
}

#[test]
fn an_idle_agent_wakes_up_less_than_ten_times_a_second() {
    in_cluster(Family::Ipv4, |_lab, _nodes, agents| {
        std::thread::sleep(Duration::from_millis(500));
        let before = context_switches(agents[1].pid());
        std::thread::sleep(Duration::from_secs(3));
        let woken = context_switches(agents[1].pid()) - before;
        assert!(woken < 30, "woken {woken} times in three seconds");
    });
}

#[test]
fn a_link_flap_that_removes_the_default_route_does_not_change_the_interface() {
    in_cluster(Family::Ipv4, |lab, nodes, _agents| {
        let worker1 = &nodes[1];
        worker1
            .sh("ip link set enp0s5 down && ip link set enp0s5 up")
            .ok();
        assert!(!worker1.sh("ip route").ok().contains("default"));
        wait_for("the routes are back", || {
            route(worker1, "10.10.2.0/24") == TO_WORKER2
        });
        lab.write("cluster.json", cluster(Family::Ipv4, &["worker2"]));
        wait_for("an edit still takes effect", || {
            route(worker1, "10.10.2.0/24").is_empty()
        });
    });
}

#[test]
fn routes_of_an_earlier_run_are_removed_at_start_and_foreign_routes_stay() {
    let _turn = turn();
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    let worker1 = &nodes[1];
    worker1
        .sh("ip route add 10.10.7.0/24 via 192.168.2.99 proto 104; \
             ip route add fd00:10:10:7::/64 via fd00:192:168:2::99 proto 104; \
             ip route add 10.10.2.0/24 via 192.168.2.15; \
             ip route add 10.10.8.0/24 via 192.168.2.99; ip route add 172.30.0.0/16 via 192.168.2.1")
        .ok();
    let _agents = agents(&nodes, Agent::start);
    wait_for("our old routes are removed", || {
        route(worker1, "10.10.7.0/24").is_empty()
            && worker1
                .sh("ip -6 route show fd00:10:10:7::/64")
                .ok()
                .is_empty()
    });
    wait_for("a route with another protocol is adopted", || {
        route(worker1, "10.10.2.0/24") == TO_WORKER2
    });
    assert_eq!(
        route(worker1, "10.10.8.0/24"),
        "10.10.8.0/24 via 192.168.2.99 dev enp0s5"
    );
    assert_eq!(
        route(worker1, "172.30.0.0/16"),
        "172.30.0.0/16 via 192.168.2.1 dev enp0s5"
    );
}

#[test]
fn routes_and_subnet_file_stay_when_the_agent_stops() {
    in_cluster(Family::Dual, |_lab, nodes, agents| {
        wait_for("the route", || {
            route(&nodes[1], "10.10.2.0/24") == TO_WORKER2
        });
        let listing = |node: &Node<'_>| routes(&node.sh("ip route; ip -6 route").ok());
        let before: Vec<_> = nodes.iter().map(listing).collect();
        let file =
            std::fs::read_to_string(nodes[1].path("/run/flannel/subnet.env")).expect("written");
        assert_eq!(
            file,
            "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\n\
         FLANNEL_IPV6_NETWORK=fd00:10:10::/48\nFLANNEL_IPV6_SUBNET=fd00:10:10:1::1/64\n\
         FLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
        );
        for agent in agents {
            assert!(agent.stop(), "the agent exits with 0 after SIGTERM");
        }
        assert_eq!(nodes.iter().map(listing).collect::<Vec<_>>(), before);
        assert_eq!(nodes[1].sh("cat /proc/sys/net/ipv4/ip_forward").ok(), "1\n");
        assert_eq!(
            nodes[1]
                .sh("cat /proc/sys/net/ipv6/conf/all/forwarding")
                .ok(),
            "1\n"
        );
        // The uplink still accepts router advertisements although the node forwards.
        assert_eq!(
            nodes[1]
                .sh("cat /proc/sys/net/ipv6/conf/enp0s5/accept_ra")
                .ok(),
            "2\n"
        );
        assert!(nodes[1].path("/run/flannel/subnet.env").exists());
    });
}

#[test]
fn the_node_is_identified_by_name_interface_or_address() {
    let _turn = turn();
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let worker1 = &nodes[1];
    let path = Lab::path("cluster.json").display().to_string();
    // Without a default route, only the flags and the node's name and addresses identify the
    // interface.
    worker1.sh("ip route delete default").ok();
    for args in [
        &[][..],
        &["--node-name", "worker1"],
        &["--iface", "enp0s5"],
        &["--iface", "192.168.2.16"],
    ] {
        let args = [&["--cluster", path.as_str()], args].concat();
        let agent = Agent::start(worker1, &args);
        agent.wait_for_log("this node is worker1 with 10.10.1.0/24 on enp0s5");
        wait_for("the route", || route(worker1, "10.10.2.0/24") == TO_WORKER2);
        assert!(agent.stop());
        worker1
            .sh("ip route flush proto 104; rm /run/hostgw-agent.log")
            .ok();
    }
    let expect_not_found = |args: &[&str], expected: &str| {
        let agent = Agent::start(worker1, &[&["--cluster", path.as_str()], args].concat());
        agent.wait_for_log(expected);
        worker1.sh("rm /run/hostgw-agent.log").ok();
    };
    worker1.sh("ip link add bare type bridge").ok();
    expect_not_found(
        &["--iface", "bare"],
        "no node has one of this node's addresses (none)",
    );
    expect_not_found(&["--node-name", "worker9"], r#"no node is named "worker9""#);
    expect_not_found(
        &["--iface", "eth7"],
        r#"no interface is named "eth7" or has that address"#,
    );
}

#[test]
fn a_cluster_file_that_is_created_late_takes_effect() {
    let _turn = turn();
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let agent = Agent::start(&nodes[1], &["--cluster", "/mnt/late/cluster.json"]);
    agent.wait_for_log("read /mnt/late/cluster.json: No such file or directory");
    assert!(!nodes[1].path("/run/flannel/subnet.env").exists());
    // A busy node with constant changes does not delay the agent.
    let mut busy = nodes[1].command("sh");
    let busy = busy.args([
        "-c",
        "for i in $(seq 60); do ip addr add 127.1.1.$i/32 dev lo; sleep 0.2; done",
    ]);
    let mut busy = busy.spawn().expect("sh is installed");
    lab.write("late/cluster.json", cluster(Family::Ipv4, &[]));
    let late = wait_for("the route", || {
        route(&nodes[1], "10.10.2.0/24") == TO_WORKER2
    });
    drop(busy.kill());
    drop(busy.wait());
    assert!(late < Duration::from_secs(5), "{late:?}");
}

#[test]
fn the_subnet_file_and_ip_forward_are_restored() {
    in_cluster(Family::Ipv4, |_lab, nodes, _agents| {
        let worker1 = &nodes[1];
        let file = worker1.path("/run/flannel/subnet.env");
        let written = std::fs::read_to_string(&file).expect("written");
        // A change of an interface's MTU causes an event, and the subnet file follows.
        worker1.sh("ip link set enp0s5 mtu 1400").ok();
        wait_for("the subnet file has the MTU", || {
            let text = std::fs::read_to_string(&file).expect("the subnet file always exists");
            text == written.replace("1500", "1400")
        });
        assert_eq!(json!(worker1.ip("link show enp0s5")[0]["mtu"]), json!(1400));
        // Damage that causes no event is repaired at the next event, or within ten seconds.
        worker1
            .sh("rm /run/flannel/subnet.env; echo 0 > /proc/sys/net/ipv4/ip_forward")
            .ok();
        worker1.sh("ip addr add 127.1.1.1/32 dev lo").ok();
        wait_for("the file is back", || file.exists());
        assert_eq!(worker1.sh("cat /proc/sys/net/ipv4/ip_forward").ok(), "1\n");
    });
}

fn status(node: &Node<'_>) -> serde_json::Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json");
    serde_json::from_str(&text.stdout).unwrap_or_default()
}

/// Returns the state and the reason of worker2's subnet in the status.
fn status_of_worker2(node: &Node<'_>) -> (String, String) {
    let status = status(node);
    let peers = status["peers"].as_array().cloned().unwrap_or_default();
    let peer = peers
        .into_iter()
        .find(|peer| peer["node"] == "worker2")
        .unwrap_or_default();
    let text = |key: &str| peer[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

#[test]
fn routes_and_rules_that_divert_a_peers_packets_are_reported_for_that_peer() {
    in_cluster(Family::Dual, |lab, nodes, agents| {
        let worker1 = &nodes[1];
        wait_for("the route", || route(worker1, "10.10.2.0/24") == TO_WORKER2);
        let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw"});
        conformance::Plugin::ours(lab)
            .add(&worker1.pod("a"), &conf)
            .ok();
        for (put, take, expected) in [
            (
                "ip route add blackhole 10.10.2.64/26 proto static",
                "ip route del blackhole 10.10.2.64/26",
                "a part of the subnet is diverted: route 10.10.2.64/26",
            ),
            (
                "ip route add 10.10.2.7/32 via 192.168.2.1",
                "ip route del 10.10.2.7/32",
                "a part of the subnet is diverted: route 10.10.2.7/32 via 192.168.2.1",
            ),
            (
                "ip rule add from 192.168.2.16 lookup 100; ip route add default via 192.168.2.1 table 100",
                "ip rule del from 192.168.2.16; ip route flush table 100",
                "packets of the node with source address 192.168.2.16 go elsewhere via 192.168.2.1 by table 100",
            ),
            (
                "ip rule add from 10.10.1.0/24 lookup 100; ip route add default via 192.168.2.1 table 100",
                "ip rule del from 10.10.1.0/24; ip route flush table 100",
                "packets of a pod go elsewhere via 192.168.2.1 by table 100",
            ),
            (
                "ip rule add to 10.10.2.0/24 unreachable",
                "ip rule del to 10.10.2.0/24",
                "packets of the node are dropped",
            ),
        ] {
            worker1.sh(put).ok();
            wait_for(&format!("{put}: {:?}", status_of_worker2(worker1)), || {
                let (state, reason) = status_of_worker2(worker1);
                state == "diverted" && reason.contains(expected)
            });
            worker1.sh(take).ok();
            wait_for("the peer's state is as before", || {
                status_of_worker2(worker1) == ("installed".to_owned(), String::new())
            });
        }
        // The same in IPv6.
        let expected = || status(worker1)["peers"].to_string();
        worker1.sh("ip -6 rule add from fd00:10:10:1::/64 lookup 100; ip -6 route add default via fd00:192:168:2::1 table 100").ok();
        wait_for(&expected(), || {
            expected().contains("packets of a pod go elsewhere via fd00:192:168:2::1")
        });
        worker1.sh("ip -6 rule del from fd00:10:10:1::/64; ip -6 route add blackhole fd00:10:10:2:8::/80").ok();
        wait_for(&expected(), || {
            expected().contains("route fd00:10:10:2:8::/80")
        });
        drop(agents);
    });
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn ip_blackhole_route_adds_blackhole_routes_for_unassigned_subnets() {
    let _turn = turn();
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    let worker1 = &nodes[1];
    let args = ["--cluster=/mnt/cluster.json"];
    let agent = Agent::start(worker1, &[&args[..], &["--ip-blackhole-route"]].concat());
    agent.wait_for_log("ready: ");
    let blackholes = |family: &str| {
        let all = worker1
            .sh(&format!("ip {family} route show type blackhole proto 104"))
            .ok();
        all.lines()
            .filter_map(|line| line.split(' ').nth(1))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    wait_for("both", || {
        blackholes("-4") == ["10.10.0.0/16", "10.10.1.0/24"]
    });
    wait_for("both of IPv6", || {
        blackholes("-6") == ["fd00:10:10:1::/64", "fd00:10:10::/48"]
    });
    assert!(!worker1.sh("ip route get 10.10.77.1").success);
    assert!(
        worker1
            .sh("ip route get 10.10.2.5")
            .ok()
            .contains("via 192.168.2.15")
    );
    // Once the bridge exists, its own route takes precedence.
    let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw"});
    let pod = worker1.pod("a");
    conformance::Plugin::ours(&lab).add(&pod, &conf).ok();
    assert!(
        worker1
            .sh("ip route get 10.10.1.2")
            .ok()
            .contains("dev cni0")
    );
    assert!(
        worker1
            .sh("ip -6 route get fd00:10:10:1::2")
            .ok()
            .contains("dev cni0")
    );
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(blackholes("-4"), ["10.10.0.0/16", "10.10.1.0/24"]);
    worker1
        .sh("ip route del blackhole 10.10.0.0/16 proto 104")
        .ok();
    wait_for("the blackhole route is restored", || {
        blackholes("-4").len() == 2
    });
    // The routes are not rewritten again and again.
    let written = || status(worker1)["routes"]["written"].clone();
    let before = written();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(written(), before);
    assert!(agent.stop());
    worker1.sh("rm /run/hostgw-agent.log").ok();
    let agent = Agent::start(worker1, &args);
    agent.wait_for_log("ready: ");
    wait_for("the routes are removed without the flag", || {
        blackholes("-4").is_empty() && blackholes("-6").is_empty()
    });
}

#[test]
fn repeated_external_changes_of_a_route_are_logged_at_a_limited_rate() {
    in_cluster(Family::Ipv4, |_, nodes, agents| {
        let worker1 = &nodes[1];
        wait_for("the route", || route(worker1, "10.10.2.0/24") == TO_WORKER2);
        worker1
            .sh("for i in $(seq 200); do ip route replace 10.10.2.0/24 via 192.168.2.1; busybox usleep 50000; done")
            .ok();
        wait_for("the route", || route(worker1, "10.10.2.0/24") == TO_WORKER2);
        let log = agents[1].log();
        let logged = log
            .lines()
            .filter(|line| line.contains("replace route 10.10.2.0/24"))
            .count();
        assert!((1..=15).contains(&logged), "{logged} lines: {log}");
        agents[1].wait_for_log("more in the last");
    });
}
