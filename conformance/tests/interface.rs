//! The interface to the other nodes: how it is told from others, and that it is followed.

use std::fs;

use conformance::{Agent, Etcd, Lab, Node, wait_for};
use serde_json::{Value, json};

/// A node with two interfaces, and a store with a lease of another node on each one's link.
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

/// The address in this node's lease.
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

#[test]
fn it_is_told_in_flannels_order() {
    in_lab(|_lab, node, etcd| {
        for (args, address) in [
            (&[][..], "192.168.2.16"),
            (&["--iface=ens7"], "172.16.5.16"),
            (&["-iface", "172.16.5.17"], "172.16.5.16"),
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
        for (args, said) in [
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
                "192.168.2.16 is not an address of interface ens7, and host-gw needs one that is",
            ),
        ] {
            let agent = start(node, etcd, args);
            agent.wait_for_log(said);
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

#[test]
fn what_happens_to_it_is_followed() {
    in_lab(|_lab, node, etcd| {
        let agent = start(node, etcd, &["--iface=enp0s5"]);
        let route = "10.10.2.0/24 via 192.168.2.15 dev enp0s5";
        wait_for("the route", || has_route(node, route));
        let lease = etcd.entry("subnets/10.10.1.0-24")["create_revision"].clone();
        // Another address: the lease is this node's all the same, and says so.
        node.sh("ip addr del 192.168.2.16/24 dev enp0s5; ip addr add 192.168.2.66/24 dev enp0s5")
            .ok();
        wait_for("the lease has the new address", || {
            public(etcd) == "192.168.2.66"
        });
        assert_eq!(
            etcd.entry("subnets/10.10.1.0-24")["create_revision"],
            lease,
            "in place"
        );
        wait_for("the route", || has_route(node, route));
        agent.wait_for_log("the lease of 10.10.1.0-24 is for 192.168.2.66 now");
        // Gone, and back with another number.
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
            "in place"
        );
        // One of several that has no address yet does not count, and another default route, as a
        // VPN brings one, moves nobody.
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
        // Its MTU is the pods'.
        node.sh("ip link set enp0s5 mtu 1400").ok();
        let file = node.path("/run/flannel/subnet.env");
        wait_for("the subnet file follows", || {
            fs::read_to_string(&file)
                .expect("always there")
                .contains("FLANNEL_MTU=1400\n")
        });
    });
}

#[test]
fn a_next_hop_off_the_link_is_routed_where_the_fabric_carries_it() {
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
        // A route of its own says that it is on the link, too.
        assert!(
            has_route(node, "10.10.2.0/24 via 192.168.2.15 dev enp0s5"),
            "others are as ever"
        );
    });
}

#[test]
fn a_route_makes_a_next_hop_one_of_the_link() {
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
