//! The `etcd` store: leases in flannel's format, and their whole life on a healthy etcd.

use std::thread::sleep;
use std::time::Duration;

use conformance::etcd::PREFIX;
use conformance::reference_picture::{Family, nodes};
use conformance::{Agent, Etcd, Lab, Node, wait_for};
use serde_json::{Value, json};

/// Starts an agent that uses `etcd` as its store.
fn start(node: &Node<'_>, etcd: &Etcd<'_>, more: &[&str]) -> Agent {
    let url = etcd.url();
    Agent::start(node, &[&["--etcd-endpoints", url.as_str()], more].concat())
}

fn subnet_file(node: &Node<'_>) -> String {
    std::fs::read_to_string(node.path("/run/flannel/subnet.env")).unwrap_or_default()
}

/// Returns the node's own subnet from its subnet file, in the form of an etcd key.
fn own(node: &Node<'_>) -> String {
    let file = subnet_file(node);
    let value = |key: &str| {
        file.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::to_owned)
    };
    let ipv4 = value("FLANNEL_SUBNET=").map(|v4| v4.replace(".1/", ".0-"));
    let ipv6 = value("FLANNEL_IPV6_SUBNET=").map(|v6| v6.replace("::1/", "::-"));
    match (ipv4, ipv6) {
        (Some(v4), Some(v6)) => format!("{v4}&{v6}"),
        (Some(v4), None) => v4,
        (None, Some(v6)) => format!("0.0.0.0-0&{v6}"),
        (None, None) => String::new(),
    }
}

fn wait_for_subnet(node: &Node<'_>, agent: &Agent) -> String {
    wait_for(
        &format!("a subnet on {}: {}", node.name, agent.log()),
        || !own(node).is_empty(),
    );
    own(node)
}

fn routes(node: &Node<'_>) -> Vec<String> {
    let text = node
        .sh("ip route show proto 104; ip -6 route show proto 104")
        .ok();
    let mut routes: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
    routes.sort();
    routes
}

fn network(family: Family) -> Value {
    match family {
        Family::Ipv4 => json!({}),
        Family::Dual => json!({"EnableIPv6": true, "IPv6Network": "fd00:10:10::/48"}),
        Family::Ipv6 => {
            json!({"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:10::/48"})
        }
    }
}

/// Returns the value of a lease as flannel writes it.
fn value(host: u8, family: Family) -> String {
    let v4 = if family.has_ipv4() {
        format!("192.168.2.{host}")
    } else {
        "0.0.0.0".to_owned()
    };
    let v6 = if family.has_ipv6() {
        format!("\"fd00:192:168:2::{host}\"")
    } else {
        "null".to_owned()
    };
    format!(r#"{{"PublicIP":"{v4}","PublicIPv6":{v6},"BackendType":"host-gw"}}"#)
}

#[test]
fn nodes_write_leases_in_flannels_format_and_route_to_one_another() {
    for family in [Family::Ipv4, Family::Dual, Family::Ipv6] {
        let lab = Lab::new();
        let nodes = nodes(&lab, family);
        let store = lab.node("etcd", &["192.168.2.20/24"]);
        // A cluster with IPv6 only still needs an IPv4 route to the store.
        if family == Family::Ipv6 {
            for (node, host) in nodes.iter().zip([117, 116, 115]) {
                node.sh(&format!("ip addr add 192.168.2.{host}/24 dev enp0s5"))
                    .ok();
            }
        }
        let etcd = Etcd::start(&store, "192.168.2.20");
        etcd.configure(&network(family));
        let agents: Vec<_> = nodes.iter().map(|node| start(node, &etcd, &[])).collect();
        let mut expected = Vec::new();
        for ((node, agent), host) in nodes.iter().zip(&agents).zip([17, 16, 15]) {
            let key = wait_for_subnet(node, agent);
            expected.push((key.clone(), value(host, family)));
            assert_ne!(
                etcd.entry(&format!("subnets/{key}"))["lease"],
                json!(null),
                "{key}"
            );
        }
        let mut leases = etcd.leases();
        leases.sort();
        expected.sort();
        assert_eq!(leases, expected, "{family:?}");
        for node in &nodes {
            let count = if family == Family::Dual { 4 } else { 2 };
            wait_for(&format!("{count} routes on {}", node.name), || {
                routes(node).len() == count
            });
        }
    }
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn routes_follow_the_leases() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    let agent = start(&nodes[1], &etcd, &[]);
    agent.wait_for_log("etcd has no /coreos.com/network/config");
    etcd.configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    assert_eq!(wait_for_subnet(&nodes[1], &agent), "10.10.1.0-24");
    let to = |via: &str| format!("10.10.2.0/24 via {via} dev enp0s5");
    let lease = |ip: &str| json!({"PublicIP": ip, "PublicIPv6": null, "BackendType": "host-gw"});
    etcd.put("subnets/10.10.2.0-24", &lease("192.168.2.15"));
    wait_for("the route", || routes(&nodes[1]) == [to("192.168.2.15")]);
    // The same subnet with another address. flannel's own snapshots miss this change.
    etcd.put("subnets/10.10.2.0-24", &lease("192.168.2.17"));
    wait_for("the other route", || {
        routes(&nodes[1]) == [to("192.168.2.17")]
    });
    // A lease that cannot be routed is logged once, and does not affect the routes of other leases.
    etcd.put(
        "subnets/10.10.3.0-24",
        &json!({"PublicIP": "192.168.2.18", "BackendType": "vxlan"}),
    );
    etcd.put("subnets/10.10.4.0-24", &lease("10.99.99.99"));
    etcd.put("subnets/10.99.0.0-24", &lease("192.168.2.19"));
    etcd.put("subnets/10.10.2.128-25", &lease("192.168.2.21"));
    etcd.put("subnets/10.10.5.0-24", &lease("192.168.2.17"));
    etcd.put("subnets/10.10.6.0-24", &lease("192.168.2.16"));
    etcd.put("subnets/10.10.7.0-24", &json!({"PublicIP": null}));
    etcd.put("subnets/nonsense", &json!(1));
    for output in [
        r#"10.10.3.0/24 of 10.10.3.0-24 is not routed: its backend is "vxlan", not "host-gw""#,
        "10.10.4.0/24 of 10.10.4.0-24 is not routed: 10.99.99.99 is not on the link of enp0s5",
        "10.99.0.0/24 of 10.99.0.0-24 is not routed: it lies outside the network 10.10.0.0/16",
        "10.10.2.128/25 of 10.10.2.128-25 is not routed: it overlaps 10.10.2.0/24 of 10.10.2.0-24",
        "10.10.2.0/24 of 10.10.2.0-24 is not routed: 192.168.2.17 is also the address of 10.10.5.0-24, which is newer",
        "10.10.6.0/24 of 10.10.6.0-24 is not routed: 192.168.2.16 is not the address of another node",
        "the lease 10.10.7.0-24 is not routed: the value is not a lease",
        "the lease nonsense is not routed: its key is not a subnet",
    ] {
        agent.wait_for_log(output);
    }
    wait_for("the newer lease takes precedence", || {
        routes(&nodes[1])
            == [
                // This subnet is free again, because the older lease that overlapped it is not
                // routed.
                "10.10.2.128/25 via 192.168.2.21 dev enp0s5",
                "10.10.5.0/24 via 192.168.2.17 dev enp0s5",
            ]
    });
    etcd.ctl("del /coreos.com/network/subnets/10.10.5.0-24")
        .ok();
    wait_for("the older lease is routed again", || {
        routes(&nodes[1]) == [to("192.168.2.17")]
    });
    sleep(Duration::from_millis(300));
    assert_eq!(agent.log().matches("is not on the link").count(), 1);
    // Routes stay when the network configuration becomes invalid.
    etcd.ctl("put /coreos.com/network/config '{\"Network\": \"10.10.0.0/29\"}'")
        .ok();
    agent.wait_for_log(
        "/coreos.com/network/config: Network is 10.10.0.0/29, and must be a /28 or larger",
    );
    assert_eq!(routes(&nodes[1]), [to("192.168.2.17")]);
}

#[test]
fn a_node_that_restarts_gets_its_previous_subnet() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    let worker1 = &nodes[1];
    let agent = start(worker1, &etcd, &[]);
    let first = wait_for_subnet(worker1, &agent);
    let path = format!("subnets/{first}");
    assert!(agent.stop());
    let mut last = etcd.entry(&path);
    assert_ne!(last["mod_revision"], json!(null), "the lease stays: {last}");
    // The subnet is found by the node's address, by its subnet file, or by its saved state.
    for (removal, deletes_the_lease, address) in [
        ("rm -r /run/flannel /var/lib/hostgw", false, "192.168.2.16"),
        ("rm -r /var/lib/hostgw", true, "192.168.2.16"),
        (
            "rm -r /run/flannel; ip addr del 192.168.2.16/24 dev enp0s5; \
             ip addr add 192.168.2.66/24 dev enp0s5; ip route add default via 192.168.2.1",
            false,
            "192.168.2.66",
        ),
    ] {
        worker1.sh(removal).ok();
        if deletes_the_lease {
            etcd.ctl(&format!("del {PREFIX}/{path}")).ok();
        }
        let agent = start(worker1, &etcd, &[]);
        assert_eq!(wait_for_subnet(worker1, &agent), first, "{removal}");
        wait_for("the lease of the subnet has the node's address", || {
            etcd.get(&path).contains(&format!("\"{address}\""))
        });
        let now = etcd.entry(&path);
        // Without the lease, the key is created again. Otherwise it is the same key.
        let is_same = now["create_revision"] == last["create_revision"];
        assert_eq!(is_same, !deletes_the_lease, "{removal}: {last} {now}");
        last = now;
        assert_eq!(etcd.leases().len(), 1, "{removal}");
        assert!(agent.stop());
    }
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn concurrently_started_nodes_get_distinct_subnets_and_a_full_network_waits_for_a_release() {
    let lab = Lab::new();
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    // Eight nodes for eight subnets, so that nodes compete for the same subnets.
    etcd.configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.8.0"}));
    let name = |i: u8| format!("node{i}");
    let nodes: Vec<_> = (1..=8)
        .map(|i| lab.node(&name(i), &[&format!("192.168.2.{}/24", 30 + i)]))
        .collect();
    let agents: Vec<_> = nodes.iter().map(|node| start(node, &etcd, &[])).collect();
    let mut subnets: Vec<_> = nodes
        .iter()
        .zip(&agents)
        .map(|(node, agent)| wait_for_subnet(node, agent))
        .collect();
    subnets.sort();
    let expected: Vec<_> = (1..=8).map(|i| format!("10.10.{i}.0-24")).collect();
    assert_eq!(subnets, expected);
    for node in &nodes {
        wait_for("seven routes", || routes(node).len() == 7);
    }
    // A ninth node gets no subnet until another node releases its lease.
    let ninth = lab.node("node9", &["192.168.2.39/24"]);
    let agent = start(&ninth, &etcd, &[]);
    agent.wait_for_log("no subnet is free: all 8 from 10.10.1.0/24 to 10.10.8.0/24 are leased");
    let mut agents = agents;
    assert!(agents.remove(0).stop());
    let url = etcd.url();
    let output = nodes[0]
        .sh(&format!(
            "/mnt/bin/hostgw-agent release --etcd-endpoints {url}"
        ))
        .ok();
    let freed = output.trim().strip_prefix("released lease ");
    let freed = freed.unwrap_or_else(|| panic!("{output}")).to_owned();
    assert_eq!(wait_for_subnet(&ninth, &agent), freed);
    assert_eq!(
        subnet_file(&nodes[0]),
        "",
        "without a subnet file, no new pod gets an address from the released subnet"
    );
    // The node that released its lease now holds none.
    let output = nodes[0]
        .sh(&format!(
            "/mnt/bin/hostgw-agent release --etcd-endpoints {url}"
        ))
        .ok();
    assert_eq!(
        output,
        "this node holds no lease below /coreos.com/network\n"
    );
    // A lease is not released while an agent is running on the node.
    let refused = ninth.sh(&format!(
        "/mnt/bin/hostgw-agent release --etcd-endpoints {url}"
    ));
    assert!(
        !refused.success && refused.stderr.contains("an agent is running on this node"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_reserved_lease_without_ttl_is_used_and_never_expires_or_released() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    let reserved = "subnets/10.10.77.0-24";
    etcd.put(
        reserved,
        &serde_json::from_str(&value(16, Family::Ipv4)).expect("JSON"),
    );
    let agent = start(&nodes[1], &etcd, &["--subnet-lease-ttl=5s"]);
    assert_eq!(wait_for_subnet(&nodes[1], &agent), "10.10.77.0-24");
    sleep(Duration::from_secs(6));
    let entry = etcd.entry(reserved);
    assert!(entry["lease"].is_null() && entry["version"] == 1, "{entry}");
    assert!(agent.stop());
    let url = etcd.url();
    let output = nodes[1]
        .sh(&format!(
            "/mnt/bin/hostgw-agent release --etcd-endpoints {url}"
        ))
        .ok();
    assert_eq!(output, "10.10.77.0-24 is a reservation and stays\n");
    assert_eq!(etcd.entry(reserved)["version"], 1);
}

#[test]
fn a_lease_is_renewed_and_reacquired_after_it_expired_or_was_deleted() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    let worker1 = &nodes[1];
    let agent = start(worker1, &etcd, &["--subnet-lease-ttl=6s"]);
    let key = wait_for_subnet(worker1, &agent);
    let path = format!("subnets/{key}");
    let first = etcd.entry(&path);
    // A renewal does not write the key, so it does not use space in etcd.
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(etcd.entry(&path), first);
    let granted = etcd.ctl("lease list").ok();
    assert!(
        granted.contains("found 1 leases"),
        "the agent holds exactly one etcd lease: {granted}"
    );
    // The lease is renewed even if the network configuration is invalid.
    etcd.ctl("put /coreos.com/network/config '{'").ok();
    agent.wait_for_log("/coreos.com/network/config: EOF while parsing");
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(etcd.entry(&path), first, "the lease is still renewed");
    etcd.configure(&json!({}));
    // If the node is disconnected for longer than the lease's TTL, the agent logs the loss and
    // acquires the lease again.
    worker1.sh("ip link set enp0s5 down").ok();
    wait_for("the lease expires in etcd", || etcd.leases().is_empty());
    agent.wait_for_log("this node's lease has expired");
    worker1
        .sh("ip link set enp0s5 up; ip route add default via 192.168.2.1")
        .ok();
    wait_for("the lease is back", || etcd.leases().len() == 1);
    assert_eq!(own(worker1), key);
    assert!(!etcd.get(&path).is_empty(), "the same subnet");
    // The key is deleted while the agent is running.
    let line = format!("lease {key} was gone; acquired it again");
    let count = || agent.log().matches(&line).count();
    let before = count();
    etcd.ctl(&format!("del {PREFIX}/{path}")).ok();
    wait_for("the lease is back", || !etcd.get(&path).is_empty());
    wait_for("it is logged", || count() == before + 1);
}

#[test]
fn a_lease_overwritten_by_another_node_is_reported_and_not_overwritten_back() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    let worker1 = &nodes[1];
    let agent = start(worker1, &etcd, &["--healthz-port=8080"]);
    let key = wait_for_subnet(worker1, &agent);
    let path = format!("subnets/{key}");
    let ready = || {
        worker1
            .sh("busybox wget -q -O - http://127.0.0.1:8080/readyz")
            .success
    };
    wait_for("readiness", ready);
    let metrics = worker1
        .sh("busybox wget -q -O - http://127.0.0.1:8080/metrics")
        .ok();
    let metric = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {metrics}"))
            .trim()
            .parse()
            .expect("a number")
    };
    assert!((86_000.0..=86_400.0).contains(&metric("hostgw_lease_seconds ")));
    assert!((0.0..5.0).contains(&metric("hostgw_store_lag_seconds ")));
    assert!(metric("hostgw_store_revision ") >= 2.0);
    let other_nodes_value = serde_json::from_str(&value(15, Family::Ipv4)).expect("JSON");
    etcd.put(&path, &other_nodes_value);
    agent.wait_for_log(&format!(
        "the lease of {key} was taken over by 192.168.2.15: two nodes use the same subnet"
    ));
    wait_for("readiness is gone", || !ready());
    let subnet = key.replace('-', "/");
    agent.wait_for_log(&format!(
        "{subnet} of {key} is not routed: it overlaps {subnet} of this node"
    ));
    assert_eq!(
        own(worker1),
        key,
        "the node continues to use its subnet for pods"
    );
    sleep(Duration::from_secs(2));
    assert_eq!(
        etcd.get(&path),
        other_nodes_value.to_string(),
        "the agent does not overwrite the other node's value"
    );
    etcd.ctl(&format!("del /coreos.com/network/{path}")).ok();
    wait_for(
        "the lease is acquired again once the key is deleted",
        || etcd.get(&path) == value(16, Family::Ipv4),
    );
    wait_for("readiness is back", ready);
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn large_clusters_use_nexthop_objects_and_restore_them() {
    const NODES: usize = 600;
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.plug("ens7", &["172.16.0.1/12"]);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({"Network": "10.0.0.0/8", "SubnetMin": "10.255.0.0"}));
    let lease = |i: usize, third: u8| {
        let ip = format!("172.{third}.{}.{}", i / 256, i % 256);
        let value = json!({"PublicIP": ip, "PublicIPv6": null, "BackendType": "host-gw"});
        (
            format!("subnets/10.{}.{}.0-24", i / 256, i % 256),
            value.to_string(),
        )
    };
    etcd.put_all((1..=NODES).map(|i| lease(i, 17)));
    let agent = start(&node, &etcd, &["--iface=ens7"]);
    let count = |what: &str| -> usize {
        let text = node.sh(&format!("ip {what} | wc -l")).ok();
        text.trim().parse().expect("a number")
    };
    let routes = || count("route show proto 104");
    let objects = || count("nexthop show proto 104");
    wait_for("all routes", || routes() == NODES);
    assert_eq!(objects(), NODES);
    let route = || {
        node.sh("ip route get 10.0.7.9 | head -1; ip route show 10.0.7.0/24")
            .ok()
    };
    assert!(route().contains("via 172.17.0.7 dev ens7"), "{}", route());
    // A node gets a new address, another is removed, next hops and routes are deleted, and the link
    // goes down and up.
    etcd.put_all([lease(7, 18)]);
    wait_for("the new next hop", || route().contains("via 172.18.0.7"));
    etcd.ctl("del /coreos.com/network/subnets/10.0.8.0-24").ok();
    wait_for("its route goes", || routes() == NODES - 1);
    for damage in [
        "ip nexthop flush proto 104",
        "for i in 1 2 3 4 5; do ip route del 10.0.$i.0/24; done",
        "ip link set ens7 down; ip link set ens7 up",
    ] {
        node.sh(damage).ok();
        wait_for(damage, || routes() == NODES - 1);
    }
    assert!(route().contains("via 172.18.0.7"), "{}", route());
    // A nexthop object that no route uses is removed later, outside of urgent changes.
    node.sh("ip nexthop add id 4242 via 172.16.9.9 dev ens7 proto 104")
        .ok();
    let begin = std::time::Instant::now();
    while objects() != NODES - 1 {
        assert!(begin.elapsed() < Duration::from_secs(15), "{}", objects());
        sleep(Duration::from_millis(200));
    }
    assert!(agent.stop());
    let output = node.sh("/mnt/bin/hostgw-agent cleanup").ok();
    assert!(
        output.contains("removed 599 next hop(s) of ours\n"),
        "{output}"
    );
    assert_eq!((routes(), objects()), (0, 0));
}

#[test]
fn concurrently_started_dual_stack_nodes_never_share_an_ipv4_subnet() {
    let lab = Lab::new();
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    // Six nodes start at once with four IPv4 subnets and many IPv6 subnets. A key contains both
    // subnets, so two keys could contain the same IPv4 subnet.
    etcd.configure(&json!({
        "SubnetMin": "10.10.1.0", "SubnetMax": "10.10.4.0",
        "EnableIPv6": true, "IPv6Network": "fd00:10:10::/48",
    }));
    let nodes: Vec<_> = (31..37)
        .map(|host| {
            let v6 = format!("fd00:192:168:2::{host}/64");
            lab.node(
                &format!("node{host}"),
                &[&format!("192.168.2.{host}/24"), &v6],
            )
        })
        .collect();
    let agents: Vec<_> = nodes.iter().map(|node| start(node, &etcd, &[])).collect();
    wait_for("four have a subnet", || {
        nodes.iter().filter(|node| !own(node).is_empty()).count() == 4
    });
    wait_for("two nodes log that no subnet is free", || {
        let stuck = |agent: &&Agent| agent.log().contains("no subnet is free: all 4 from");
        agents.iter().filter(stuck).count() == 2
    });
    let mut subnets: Vec<_> = etcd
        .leases()
        .into_iter()
        .map(|(key, _)| key.split('&').next().unwrap_or_default().to_owned())
        .collect();
    subnets.sort();
    let expected: Vec<_> = (1..=4).map(|i| format!("10.10.{i}.0-24")).collect();
    assert_eq!(subnets, expected);
}

#[test]
fn a_reserved_lease_takes_precedence_over_the_nodes_previous_subnet() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({"SubnetMax": "10.10.9.0"}));
    let agent = start(&nodes[1], &etcd, &[]);
    let first = wait_for_subnet(&nodes[1], &agent);
    assert!(agent.stop());
    etcd.ctl(&format!("del /coreos.com/network/subnets/{first}"))
        .ok();
    let reserved = if first == "10.10.7.0-24" {
        "10.10.8.0-24"
    } else {
        "10.10.7.0-24"
    };
    let node = serde_json::from_str(&value(16, Family::Ipv4)).expect("JSON");
    etcd.put(&format!("subnets/{reserved}"), &node);
    let _agent = start(&nodes[1], &etcd, &[]);
    wait_for("the reserved subnet", || own(&nodes[1]) == reserved);
    assert_eq!(etcd.leases().len(), 1, "{:?}", etcd.leases());
}

#[test]
fn two_nodes_with_the_same_address_are_reported() {
    let lab = Lab::new();
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    // For example, virtual machines that all have 10.0.2.15 on their first interface.
    let node = |name: &str, host: u8| {
        let node = lab.node(name, &[&format!("192.168.2.{host}/24")]);
        node.sh(
            "ip link add nat0 type bridge; ip link set nat0 up; ip addr add 10.0.2.15/24 dev nat0",
        )
        .ok();
        node
    };
    let (first, second) = (node("first", 31), node("second", 32));
    let agent = start(&first, &etcd, &["--iface=nat0"]);
    let subnet = wait_for_subnet(&first, &agent);
    let other = start(&second, &etcd, &["--iface=nat0"]);
    wait_for_subnet(&second, &other);
    agent.wait_for_log(&format!(
        "the lease of {subnet} was written by another node with this node's address 10.0.2.15"
    ));
}

#[test]
fn a_node_that_starts_with_an_invalid_network_configuration_uses_its_saved_state() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    let worker1 = &nodes[1];
    let agent = start(worker1, &etcd, &[]);
    let subnet = wait_for_subnet(worker1, &agent);
    assert!(agent.stop());
    etcd.ctl("put /coreos.com/network/config '{'").ok();
    worker1.sh("rm -r /run/flannel /run/hostgw-agent.log").ok();
    let agent = start(worker1, &etcd, &["--healthz-port=8080"]);
    agent.wait_for_log("/coreos.com/network/config: EOF while parsing");
    assert_eq!(wait_for_subnet(worker1, &agent), subnet);
    let ready = || {
        let fetch = "busybox wget -q -O - http://127.0.0.1:8080/readyz";
        worker1.sh(fetch).success
    };
    assert!(
        !ready(),
        "the node is not ready while the configuration is invalid"
    );
    etcd.configure(&json!({}));
    wait_for("readiness", ready);
}
