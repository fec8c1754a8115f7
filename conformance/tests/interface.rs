//! The interface to the other nodes: how the agent chooses it, and how the agent follows its
//! changes.

use std::fs;

use conformance::{Agent, Etcd, Lab, Node, wait_for};
use serde_json::{Value, json};

/// Runs a test with a node that has two interfaces, and an etcd with a lease of another node on
/// each interface's link.
fn in_lab(test: impl FnOnce(&Lab, &Node<'_>, &Etcd<'_>)) {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24", "fd00:192:168:2::16/64"]);
    node.plug("ens7", &["172.16.5.16/24", "172.16.5.17/24"]);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    let lease = |ip: &str| json!({"PublicIP": ip, "PublicIPv6": null, "BackendType": "host-gw"});
    etcd.put("subnets/10.10.2.0-24", &lease("192.168.2.15"));
    etcd.put("subnets/10.10.3.0-24", &lease("172.16.5.15"));
    test(&lab, &node, &etcd);
}

fn start(node: &Node<'_>, etcd: &Etcd<'_>, more: &[&str]) -> Agent {
    let url = format!("--etcd-endpoints={}", etcd.url());
    Agent::start(node, &[&[url.as_str()], more].concat())
}

/// Returns the public address in this node's lease.
fn public(etcd: &Etcd<'_>) -> String {
    let value: Value = serde_json::from_str(&etcd.get("subnets/10.10.1.0-24")).unwrap_or_default();
    value["PublicIP"].as_str().unwrap_or_default().to_owned()
}

fn has_route(node: &Node<'_>, route: &str) -> bool {
    node.sh("ip route show proto 104")
        .ok()
        .lines()
        .any(|line| line.trim() == route)
}

// Long: a table of cases.
#[test]
fn the_interface_is_chosen_in_flannels_order() {
    in_lab(|_lab, node, etcd| {
        for (args, address) in [
            (&[][..], "192.168.2.16"),
            (&["--iface=ens7"], "172.16.5.16"),
            (&["-iface", "172.16.5.17"], "172.16.5.17"),
            (&["--iface-regex=^172\\.16\\.5\\.17$"], "172.16.5.17"),
            (&["--iface=", "--iface=ens7"], "192.168.2.16"),
            (&["--iface=eth9", "--iface-regex="], "192.168.2.16"),
            (&["--iface=eth9", "--iface=ens7"], "172.16.5.16"),
            (&["--iface-regex=^172\\.16\\."], "172.16.5.16"),
            (
                &["--iface-regex=nothing", "--iface-regex=ens."],
                "172.16.5.16",
            ),
            (&["--iface-can-reach=172.16.5.99"], "172.16.5.16"),
            (&["--iface-can-reach=8.8.8.8"], "192.168.2.16"),
            (&["--public-ip=172.16.5.17"], "172.16.5.17"),
            (&["--iface=ens7", "--public-ip=172.16.5.17"], "172.16.5.17"),
            (&["--iface=enp0s5", "--iface-regex=ens7"], "192.168.2.16"),
        ] {
            etcd.ctl("del /coreos.com/network/subnets/10.10.1.0-24")
                .ok();
            node.sh("ip route flush proto 104").ok();
            let agent = start(node, etcd, args);
            wait_for(&format!("{args:?}: {}", agent.log()), || {
                public(etcd) == address
            });
            let (route, device) = if address.starts_with("172") {
                ("10.10.3.0/24 via 172.16.5.15", "ens7")
            } else {
                ("10.10.2.0/24 via 192.168.2.15", "enp0s5")
            };
            wait_for("the route", || {
                has_route(node, &format!("{route} dev {device}"))
            });
            assert!(agent.stop());
            node.sh("rm /run/hostgw-agent.log").ok();
        }
        for (args, expected) in [
            (
                &["--iface=eth9", "--iface=10.0.0.1"][..],
                r#"no interface is named "eth9" or "10.0.0.1" or has that address (--iface)"#,
            ),
            (
                &["--iface-regex=^x"],
                r#"no interface matches "^x" (--iface-regex)"#,
            ),
            (
                &["--public-ip=10.0.0.1"],
                "no interface has the address 10.0.0.1 (--public-ip)",
            ),
            (
                &["--iface=ens7", "--public-ip=192.168.2.16"],
                "192.168.2.16 is not an address of interface ens7, but host-gw needs one of its addresses",
            ),
        ] {
            let agent = start(node, etcd, args);
            agent.wait_for_log(expected);
            assert!(agent.stop());
            node.sh("rm /run/hostgw-agent.log").ok();
        }
        node.sh("ip route del default; ip -6 route del default")
            .ok();
        let agent = start(node, etcd, &["--iface-can-reach=8.8.8.8"]);
        agent.wait_for_log("no interface reaches 8.8.8.8 (--iface-can-reach)");
        assert!(agent.stop());
        node.sh("rm -r /var/lib/hostgw").ok();
        let agent = start(node, etcd, &[]);
        agent.wait_for_log("there is no default route; name the interface to the other nodes");
    });
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn routes_lease_and_mtu_follow_changes_of_the_interface() {
    in_lab(|_lab, node, etcd| {
        let agent = start(node, etcd, &["--iface=enp0s5"]);
        let route = "10.10.2.0/24 via 192.168.2.15 dev enp0s5";
        wait_for("the route", || has_route(node, route));
        let lease = etcd.entry("subnets/10.10.1.0-24")["create_revision"].clone();
        // The node gets another address: the lease remains this node's and is updated with the new
        // address.
        node.sh("ip addr del 192.168.2.16/24 dev enp0s5; ip addr add 192.168.2.66/24 dev enp0s5")
            .ok();
        wait_for("the lease has the new address", || {
            public(etcd) == "192.168.2.66"
        });
        assert_eq!(
            etcd.entry("subnets/10.10.1.0-24")["create_revision"],
            lease,
            "the key is updated in place"
        );
        wait_for("the route", || has_route(node, route));
        agent.wait_for_log("lease 10.10.1.0-24 now has the address 192.168.2.66");
        // The interface is deleted, then created again with another index.
        let number = node.ip("link show enp0s5")[0]["ifindex"].clone();
        node.sh("ip link del enp0s5").ok();
        agent.wait_for_log(r#"no interface is named "enp0s5""#);
        node.sh("ip link add spare type bridge").ok();
        node.plug("enp0s5", &["192.168.2.16/24"]);
        assert_ne!(node.ip("link show enp0s5")[0]["ifindex"], number);
        wait_for("the route", || has_route(node, route));
        wait_for("the lease has its address", || {
            public(etcd) == "192.168.2.16"
        });
        assert_eq!(
            etcd.entry("subnets/10.10.1.0-24")["create_revision"],
            lease,
            "the key is updated in place"
        );
        // Of several `--iface` candidates, one without an address is skipped. A second default
        // route, such as a VPN adds, does not change the chosen interface.
        assert!(agent.stop());
        node.sh("rm /run/hostgw-agent.log; ip link add tun0 type bridge; ip link set tun0 up")
            .ok();
        let agent = start(node, etcd, &["--iface=tun0", "--iface=enp0s5"]);
        agent.wait_for_log("10.10.1.0/24 on enp0s5");
        assert!(agent.stop());
        node.sh("rm /run/hostgw-agent.log; ip route add default via 192.168.2.1 metric 100")
            .ok();
        let agent = start(node, etcd, &[]);
        agent.wait_for_log("10.10.1.0/24 on enp0s5");
        node.sh("ip addr add 10.8.0.2/24 dev tun0; ip route add default via 10.8.0.1 dev tun0")
            .ok();
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert_eq!(public(etcd), "192.168.2.16");
        // The pods' MTU follows the interface's MTU.
        node.sh("ip link set enp0s5 mtu 1400").ok();
        let file = node.path("/run/flannel/subnet.env");
        wait_for("the subnet file follows", || {
            fs::read_to_string(&file)
                .expect("the subnet file always exists")
                .contains("FLANNEL_MTU=1400\n")
        });
    });
}

fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json");
    serde_json::from_str(&text.stdout).unwrap_or_default()
}

fn because(node: &Node<'_>) -> String {
    status(node)["node"]["because"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Deletes this node's lease in etcd, and all saved state on the node.
fn delete_all_state(node: &Node<'_>, etcd: &Etcd<'_>) {
    etcd.ctl("del --prefix /coreos.com/network/subnets/10.10.1.0-24")
        .ok();
    node.sh("rm -rf /run/hostgw-agent.log /var/lib/hostgw /run/flannel; ip route flush proto 104")
        .ok();
}

#[test]
fn an_interface_chosen_by_address_is_announced_with_that_address() {
    in_lab(|_lab, node, etcd| {
        node.sh("ip addr add 10.64.3.16/24 dev enp0s5; ip addr add fd00:64::16/64 dev enp0s5 nodad; ip -6 route del default")
            .ok();
        for (arg, address, why) in [
            (
                "--iface=10.64.3.16",
                "10.64.3.16",
                "it has 10.64.3.16 (--iface)",
            ),
            (
                "--iface-regex=10\\.64\\..*",
                "10.64.3.16",
                "10.64.3.16 matches",
            ),
            (
                "--iface-can-reach=10.64.3.9",
                "10.64.3.16",
                "packets to 10.64.3.9 leave through it",
            ),
            (
                "--iface=enp0s5",
                "192.168.2.16",
                "it is named \"enp0s5\" (--iface)",
            ),
            ("--iface-regex=^enp", "192.168.2.16", "its name matches"),
        ] {
            delete_all_state(node, etcd);
            let agent = start(node, etcd, &[arg]);
            wait_for(arg, || public(etcd) == address);
            wait_for(&format!("{arg}: {}", because(node)), || {
                because(node).contains(why)
            });
            assert!(agent.stop());
        }
        // The same for IPv6.
        etcd.ctl("del --prefix /coreos.com/network/subnets/").ok();
        etcd.configure(&json!({
            "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:10::/48",
        }));
        for arg in [
            "--iface=fd00:64::16",
            "--iface-regex=^fd00:64:",
            "--iface-can-reach=fd00:64::9",
        ] {
            etcd.ctl("del --prefix /coreos.com/network/subnets/").ok();
            node.sh("rm -rf /run/hostgw-agent.log /var/lib/hostgw /run/flannel")
                .ok();
            let agent = start(node, etcd, &[arg]);
            wait_for(&format!("{arg}: {}", agent.log()), || {
                etcd.leases()
                    .iter()
                    .any(|(_, value)| value.contains("\"fd00:64::16\""))
            });
            assert!(agent.stop());
        }
    });
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn the_announced_address_does_not_depend_on_the_kernels_order_of_addresses() {
    in_lab(|_lab, node, etcd| {
        // By one process: with three, the agent may see that the address is gone.
        let again = "printf 'addr del 192.168.2.16/24 dev enp0s5\\naddr add 192.168.2.16/24 dev enp0s5\\n\
                     route replace default via 192.168.2.1\\n' | ip -batch -";
        // Add a virtual address to the interface, and add the main address again, while the agent
        // runs. The result is the same after a restart.
        node.sh("ip addr add 192.168.2.77/32 dev enp0s5").ok();
        let agent = start(node, etcd, &[]);
        wait_for("the lease", || public(etcd) == "192.168.2.16");
        node.sh(again).ok();
        std::thread::sleep(std::time::Duration::from_millis(700));
        assert_eq!(public(etcd), "192.168.2.16", "{}", agent.log());
        assert!(agent.stop());
        // Without an agent, there is no status.
        let agent = start(node, etcd, &[]);
        wait_for("readiness", || {
            let status = status(node);
            status["ready"] == true && status["store"]["reached"] == true
        });
        assert_eq!(status(node)["node"]["publicIP"], "192.168.2.16");
        assert_eq!(public(etcd), "192.168.2.16");
        assert!(agent.stop());
        // Without saved state, a virtual address (/32) is the last choice, as are a link-local or
        // deprecated address.
        for other in [
            "192.168.2.77/32",
            "169.254.7.7/16",
            "192.168.2.78/24 preferred_lft 0 valid_lft 600",
        ] {
            delete_all_state(node, etcd);
            node.sh(&format!(
                "ip addr flush dev enp0s5 scope global; ip addr add {other} dev enp0s5; \
                 ip addr add 192.168.2.16/24 dev enp0s5; ip route replace default via 192.168.2.1"
            ))
            .ok();
            let agent = start(node, etcd, &[]);
            wait_for(other, || public(etcd) == "192.168.2.16");
            assert!(agent.stop());
        }
        // If the interface has no other address, a /32 is used: some clouds assign a /32.
        delete_all_state(node, etcd);
        node.sh(
            "ip addr flush dev enp0s5 scope global; ip addr add 192.168.2.77/32 dev enp0s5; \
                 ip route add 192.168.2.0/24 dev enp0s5; ip route replace default via 192.168.2.1",
        )
        .ok();
        let agent = start(node, etcd, &[]);
        wait_for("the lease", || public(etcd) == "192.168.2.77");
        // The announced address stays as long as the interface has it, even if a better address is
        // added.
        node.sh("ip addr add 192.168.2.16/24 dev enp0s5").ok();
        std::thread::sleep(std::time::Duration::from_millis(700));
        assert_eq!(public(etcd), "192.168.2.77");
        node.sh("ip addr del 192.168.2.77/32 dev enp0s5; ip route replace default via 192.168.2.1")
            .ok();
        wait_for("the lease has the new address", || {
            public(etcd) == "192.168.2.16"
        });
        assert!(agent.stop());
    });
}

#[test]
fn in_ipv6_the_announced_address_also_stays_when_others_are_added() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["fd00:192:168:2::16/64"]);
    let store = lab.node("etcd", &["fd00:192:168:2::20/64"]);
    let etcd = Etcd::start(&store, "[fd00:192:168:2::20]");
    etcd.configure(&json!({
        "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:10::/48",
    }));
    let public = || {
        etcd.leases()
            .first()
            .map(|(_, value)| value.clone())
            .unwrap_or_default()
    };
    let agent = start(&node, &etcd, &[]);
    wait_for("the lease", || public().contains("\"fd00:192:168:2::16\""));
    for other in [
        "fd00:192:168:2::77/128",
        "fd00:192:168:2::78/64",
        "fd00:192:168:2::/64",
    ] {
        node.sh(&format!("ip addr add {other} dev enp0s5 nodad"))
            .ok();
        std::thread::sleep(std::time::Duration::from_millis(400));
        assert!(
            public().contains("\"fd00:192:168:2::16\""),
            "{other}: {}",
            public()
        );
    }
    assert!(agent.stop());
    // The kernel lists the newest address first. Of equally good addresses, the first in that list
    // is announced. Virtual (/128), anycast and link-local addresses are not announced.
    etcd.ctl("del --prefix /coreos.com/network/subnets/").ok();
    node.sh("rm -rf /var/lib/hostgw /run/flannel /run/hostgw-agent.log; ip addr del fd00:192:168:2::78/64 dev enp0s5")
        .ok();
    let agent = start(&node, &etcd, &[]);
    wait_for("the lease", || public().contains("\"fd00:192:168:2::16\""));
    assert!(agent.stop());
    // With only a link-local address, there is nothing to announce.
    etcd.ctl("del --prefix /coreos.com/network/subnets/").ok();
    node.sh("rm -rf /var/lib/hostgw /run/flannel /run/hostgw-agent.log; ip -6 addr flush dev enp0s5 scope global; \
             ip -6 route replace fd00:192:168:2::/64 dev enp0s5; ip -6 route replace default via fd00:192:168:2::1 dev enp0s5")
        .ok();
    let agent = start(&node, &etcd, &["--iface=enp0s5"]);
    agent.wait_for_log("the interface has no IPv6 address, and the network needs one");
    assert_eq!(etcd.leases(), [], "{}", agent.log());
}

#[test]
fn lo_is_never_chosen_as_the_interface() {
    in_lab(|_lab, node, etcd| {
        node.sh("ip addr add 10.255.0.1/32 dev lo").ok();
        for (args, expected) in [
            (
                &["--iface=10.255.0.1"][..],
                "lo is not used as the interface to the other nodes, although it has 10.255.0.1 (--iface)",
            ),
            (
                &["--iface=lo"],
                "lo is not used as the interface to the other nodes",
            ),
            (
                &["--iface-regex=^10\\.255\\."],
                "lo is not used as the interface to the other nodes",
            ),
            (
                &["--public-ip=10.255.0.1"],
                "lo is not used as the interface to the other nodes",
            ),
            (
                &["--iface-can-reach=10.255.0.1"],
                "lo is not used as the interface to the other nodes",
            ),
        ] {
            delete_all_state(node, etcd);
            let agent = start(node, etcd, args);
            agent.wait_for_log(expected);
            wait_for(
                "the lease has the address of the default route's interface",
                || public(etcd) == "192.168.2.16",
            );
            wait_for("its MTU", || {
                let file = fs::read_to_string(node.path("/run/flannel/subnet.env"));
                file.is_ok_and(|file| file.contains("MTU=1500"))
            });
            assert!(
                status(node)["warnings"].to_string().contains("lo is not"),
                "{}",
                status(node)
            );
            assert!(agent.stop());
        }
    });
}

#[test]
fn a_default_route_split_over_one_interface_counts_as_one() {
    in_lab(|_lab, node, etcd| {
        for routes in [
            "default nexthop via 192.168.2.1 nexthop via 192.168.2.2",
            "0.0.0.0/1 via 192.168.2.1; ip route add 128.0.0.0/1 via 192.168.2.1",
        ] {
            delete_all_state(node, etcd);
            node.sh(&format!(
                "ip route flush root 0.0.0.0/1; ip route del default; ip route add {routes}"
            ))
            .ok();
            let agent = start(node, etcd, &[]);
            wait_for(&format!("{routes}: {}", agent.log()), || {
                public(etcd) == "192.168.2.16"
            });
            assert!(agent.stop());
        }
        delete_all_state(node, etcd);
        node.sh("ip route del 0.0.0.0/1; ip route del 128.0.0.0/1; \
                 ip route add default nexthop via 192.168.2.1 nexthop via 172.16.5.1 dev ens7")
            .ok();
        let agent = start(node, etcd, &[]);
        agent.wait_for_log("the default route has several interfaces (enp0s5, ens7)");
        assert!(agent.stop());
    });
}

/// Pings a neighbour of the node twenty times a second while running the script `doing` on the
/// node, and returns the number of lost packets.
fn count_lost_pings(lab: &Lab, node: &Node<'_>, doing: &str) -> usize {
    let neighbour = lab.node("neighbour", &["192.168.2.15/24"]);
    neighbour.sh("ip addr add 10.10.2.1/24 dev lo").ok();
    node.sh("ip addr add 10.10.1.1/24 dev lo").ok();
    let ping = "busybox ping -i 0.05 -c 60 -W 1 -I 10.10.1.1 10.10.2.1 >/run/ping.log 2>&1 &";
    neighbour
        .sh("ip route add 10.10.1.0/24 via 192.168.2.16")
        .ok();
    node.sh(&format!("{ping} sleep 0.3; {doing}; wait")).ok();
    let log = fs::read_to_string(node.path("/run/ping.log")).unwrap_or_default();
    let received = log
        .split(" packets received")
        .next()
        .and_then(|head| head.rsplit(' ').next());
    60 - received
        .and_then(|count| count.parse::<usize>().ok())
        .unwrap_or_else(|| panic!("{log}"))
}

#[test]
fn the_agent_follows_its_address_through_a_rename_or_into_a_bridge() {
    in_lab(|lab, node, etcd| {
        let agent = start(node, etcd, &["--iface=enp0s5"]);
        wait_for("the route", || {
            has_route(node, "10.10.2.0/24 via 192.168.2.15 dev enp0s5")
        });
        // Rename the interface while it is up.
        let count = count_lost_pings(lab, node, "ip link set enp0s5 name lan0");
        assert_eq!(count, 0, "packets lost during the rename");
        wait_for("the agent follows the rename", || {
            status(node)["node"]["interface"] == "lan0"
        });
        assert!(
            because(node).contains("it was the interface before"),
            "{}",
            because(node)
        );
        assert!(
            status(node)["warnings"]
                .to_string()
                .contains("no interface is named")
        );
        assert!(status(node)["ready"] == true, "{}", status(node));
        // The same after a restart.
        assert!(agent.stop());
        let agent = start(node, etcd, &["--iface=enp0s5"]);
        wait_for("readiness", || status(node)["ready"] == true);
        assert_eq!(status(node)["node"]["interface"], "lan0");
        node.sh("ip link set lan0 name enp0s5").ok();
        wait_for("the interface has its old name again", || {
            status(node)["node"]["interface"] == "enp0s5"
        });
        // Make the interface a port of a bridge, and move its address to the bridge.
        node.sh("ip link add br0 type bridge; ip link set br0 address $(cat /sys/class/net/enp0s5/address 2>/dev/null || \
                 ip -br link show enp0s5 | awk '{print $3}'); ip link set br0 up; ip link set enp0s5 master br0; \
                 ip addr add 192.168.2.16/24 dev br0; ip addr del 192.168.2.16/24 dev enp0s5; ip route replace default via 192.168.2.1 dev br0")
            .ok();
        wait_for(&format!("the bridge is followed: {}", agent.log()), || {
            has_route(node, "10.10.2.0/24 via 192.168.2.15 dev br0")
        });
        assert_eq!(public(etcd), "192.168.2.16");
        wait_for("its reason", || {
            because(node).starts_with("enp0s5 is a port of it: it is named")
        });
        assert!(agent.stop());
        // After a restart, too.
        node.sh("rm /run/hostgw-agent.log").ok();
        let agent = start(node, etcd, &["--iface-regex=^(enp0s5|br0)$"]);
        agent.wait_for_log("10.10.1.0/24 on br0");
        assert!(agent.stop());
    });
}

#[test]
fn of_two_interfaces_on_one_link_the_chosen_one_is_used() {
    in_lab(|_lab, node, etcd| {
        node.plug("ens8", &["192.168.2.116/24"]);
        for (args, address, dev) in [
            (&["--iface=enp0s5"][..], "192.168.2.16", "enp0s5"),
            (&["--iface=ens8"], "192.168.2.116", "ens8"),
            (&["--iface=192.168.2.116"], "192.168.2.116", "ens8"),
        ] {
            delete_all_state(node, etcd);
            let agent = start(node, etcd, args);
            wait_for(&format!("{args:?}"), || public(etcd) == address);
            let route = format!("10.10.2.0/24 via 192.168.2.15 dev {dev}");
            wait_for(&route, || has_route(node, &route));
            assert!(agent.stop());
        }
        // When the default route moves to another interface, the node stays with the interface that
        // has its address.
        delete_all_state(node, etcd);
        node.sh("ip route replace default via 192.168.2.1 dev enp0s5; ip route add default via 192.168.2.1 dev ens8 metric 50")
            .ok();
        let agent = start(node, etcd, &[]);
        wait_for("the lease", || public(etcd) == "192.168.2.16");
        node.sh("ip route del default via 192.168.2.1 dev enp0s5")
            .ok();
        std::thread::sleep(std::time::Duration::from_millis(700));
        assert_eq!(public(etcd), "192.168.2.16", "{}", agent.log());
        assert!(
            because(node).contains("this node's announced address, 192.168.2.16"),
            "{}",
            because(node)
        );
    });
}

#[test]
fn a_next_hop_that_is_not_on_the_link_is_routed_with_onlink() {
    in_lab(|_lab, node, etcd| {
        let far = json!({"PublicIP": "10.99.0.7", "PublicIPv6": null, "BackendType": "host-gw"});
        etcd.put("subnets/10.10.9.0-24", &far);
        let agent = start(node, etcd, &[]);
        agent.wait_for_log(
            "10.10.9.0/24 of 10.10.9.0-24 is not routed: 10.99.0.7 is not on the link of enp0s5",
        );
        assert!(agent.stop());
        let _agent = start(node, etcd, &["--onlink"]);
        wait_for("the route", || {
            has_route(node, "10.10.9.0/24 via 10.99.0.7 dev enp0s5 onlink")
        });
        // Next hops that are on the link are routed without `onlink`.
        assert!(
            has_route(node, "10.10.2.0/24 via 192.168.2.15 dev enp0s5"),
            "other routes are unchanged"
        );
    });
}

#[test]
fn a_next_hop_is_on_the_link_if_a_link_route_covers_it() {
    in_lab(|_lab, node, etcd| {
        let far = json!({"PublicIP": "10.99.0.7", "PublicIPv6": null, "BackendType": "host-gw"});
        etcd.put("subnets/10.10.9.0-24", &far);
        let agent = start(node, etcd, &[]);
        agent.wait_for_log("10.99.0.7 is not on the link");
        node.sh("ip route add 10.99.0.0/16 dev enp0s5").ok();
        wait_for("the route", || {
            has_route(node, "10.10.9.0/24 via 10.99.0.7 dev enp0s5")
        });
    });
}
