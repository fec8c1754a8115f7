//! The `etcd` store: leases as flannel writes them, held whatever happens to the store.

use std::thread::sleep;
use std::time::Duration;

use conformance::reference_picture::{Family, nodes};
use conformance::{Agent, Etcd, Lab, Node, wait_for};
use serde_json::{Value, json};

/// How the agents reach their store.
fn start(node: &Node<'_>, etcd: &Etcd<'_>, more: &[&str]) -> Agent {
    let url = etcd.url();
    Agent::start(node, &[&["--etcd-endpoints", url.as_str()], more].concat())
}

fn subnet_file(node: &Node<'_>) -> String {
    std::fs::read_to_string(node.path("/run/flannel/subnet.env")).unwrap_or_default()
}

/// The subnet that the node's file says is its own, as a key of etcd's.
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

/// A value as flannel writes it.
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
fn nodes_lease_subnets_as_flannel_writes_them_and_route_one_another() {
    for family in [Family::Ipv4, Family::Dual, Family::Ipv6] {
        let lab = Lab::new();
        let nodes = nodes(&lab, family);
        let store = lab.node("etcd", &["192.168.2.20/24"]);
        // IPv6 alone still needs a way to the store.
        if family == Family::Ipv6 {
            for (node, host) in nodes.iter().zip([117, 116, 115]) {
                node.sh(&format!("ip addr add 192.168.2.{host}/24 dev enp0s5"))
                    .ok();
            }
        }
        let etcd = Etcd::start(&store, "192.168.2.20");
        etcd.configure(&network(family));
        let agents: Vec<_> = nodes.iter().map(|node| start(node, &etcd, &[])).collect();
        let mut wanted = Vec::new();
        for ((node, agent), host) in nodes.iter().zip(&agents).zip([17, 16, 15]) {
            let key = wait_for_subnet(node, agent);
            wanted.push((key.clone(), value(host, family)));
            assert_ne!(
                etcd.entry(&format!("subnets/{key}"))["lease"],
                json!(null),
                "{key}"
            );
        }
        let mut leases = etcd.leases();
        leases.sort();
        wanted.sort();
        assert_eq!(leases, wanted, "{family:?}");
        for node in &nodes {
            let count = if family == Family::Dual { 4 } else { 2 };
            wait_for(&format!("{count} routes on {}", node.name), || {
                routes(node).len() == count
            });
        }
    }
}

#[test]
fn what_a_lease_says_is_followed() {
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
    // The same subnet, another address: flannel's snapshots miss that.
    etcd.put("subnets/10.10.2.0-24", &lease("192.168.2.17"));
    wait_for("the other route", || {
        routes(&nodes[1]) == [to("192.168.2.17")]
    });
    // What cannot be routed is said, once, and keeps nothing else from being routed.
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
    for said in [
        r#"10.10.3.0/24 of 10.10.3.0-24 is not routed: its backend is "vxlan", not "host-gw""#,
        "10.10.4.0/24 of 10.10.4.0-24 is not routed: 10.99.99.99 is not on the link of enp0s5",
        "10.99.0.0/24 of 10.99.0.0-24 is not routed: it lies outside the network 10.10.0.0/16",
        "10.10.2.128/25 of 10.10.2.128-25 is not routed: it overlaps 10.10.2.0/24 of 10.10.2.0-24",
        "10.10.2.0/24 of 10.10.2.0-24 is not routed: 192.168.2.17 is also the address of 10.10.5.0-24, which is newer",
        "10.10.6.0/24 of 10.10.6.0-24 is not routed: 192.168.2.16 is not the address of another node",
        "the lease 10.10.7.0-24 is not routed: its value is not a lease's",
        "the lease nonsense is not routed: its key names no subnet",
    ] {
        agent.wait_for_log(said);
    }
    wait_for("the newer lease counts", || {
        routes(&nodes[1])
            == [
                // What the older one took is free by that.
                "10.10.2.128/25 via 192.168.2.21 dev enp0s5",
                "10.10.5.0/24 via 192.168.2.17 dev enp0s5",
            ]
    });
    etcd.ctl("del /coreos.com/network/subnets/10.10.5.0-24")
        .ok();
    wait_for("the older lease counts again", || {
        routes(&nodes[1]) == [to("192.168.2.17")]
    });
    sleep(Duration::from_millis(300));
    assert_eq!(agent.log().matches("is not on the link").count(), 1);
    // Nothing is forgotten when the configuration breaks, and it goes on when it is mended.
    etcd.ctl("put /coreos.com/network/config '{\"Network\": \"10.10.0.0/29\"}'")
        .ok();
    agent.wait_for_log(
        "/coreos.com/network/config: Network is 10.10.0.0/29, and must be a /28 or larger",
    );
    assert_eq!(routes(&nodes[1]), [to("192.168.2.17")]);
}

#[test]
fn a_node_that_comes_back_has_its_subnet() {
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
    // Known by its address, by its subnet file, and by its saved state.
    for forget in [
        "rm -r /run/flannel /var/lib/hostgw",
        "rm -r /var/lib/hostgw; ETCDCTL_API=3 true",
        "rm -r /run/flannel; ip addr del 192.168.2.16/24 dev enp0s5; \
         ip addr add 192.168.2.66/24 dev enp0s5; ip route add default via 192.168.2.1",
    ] {
        worker1.sh(forget).ok();
        if forget.contains("true") {
            etcd.ctl(&format!("del /coreos.com/network/{path}")).ok();
        }
        let agent = start(worker1, &etcd, &[]);
        assert_eq!(wait_for_subnet(worker1, &agent), first, "{forget}");
        wait_for("the lease is taken over", || {
            let now = etcd.entry(&path);
            now["mod_revision"] != last["mod_revision"] && now["kvs"] == last["kvs"]
        });
        last = etcd.entry(&path);
        assert_eq!(etcd.leases().len(), 1, "{forget}");
        assert!(agent.stop());
    }
    assert!(
        etcd.get(&path).contains("192.168.2.66"),
        "with its new address"
    );
}

#[test]
fn many_new_nodes_at_once_get_a_subnet_each() {
    let lab = Lab::new();
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    // Eight nodes for eight subnets: everybody wants what somebody else takes.
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
    let wanted: Vec<_> = (1..=8).map(|i| format!("10.10.{i}.0-24")).collect();
    assert_eq!(subnets, wanted);
    for node in &nodes {
        wait_for("seven routes", || routes(node).len() == 7);
    }
    // For a ninth there is none, until somebody gives his back.
    let ninth = lab.node("node9", &["192.168.2.39/24"]);
    let agent = start(&ninth, &etcd, &[]);
    agent.wait_for_log("no subnet is free: all 8 from 10.10.1.0/24 to 10.10.8.0/24 are leased");
    let mut agents = agents;
    assert!(agents.remove(0).stop());
    let url = etcd.url();
    let said = nodes[0]
        .sh(&format!(
            "/mnt/bin/hostgw-agent release --etcd-endpoints {url}"
        ))
        .ok();
    let freed = said
        .trim()
        .strip_prefix("gave ")
        .and_then(|rest| rest.strip_suffix(" back"));
    let freed = freed.unwrap_or_else(|| panic!("{said}")).to_owned();
    assert_eq!(wait_for_subnet(&ninth, &agent), freed);
    assert_eq!(
        subnet_file(&nodes[0]),
        "",
        "no pod gets an address of it any more"
    );
    // The one who gave it back holds none now.
    let said = nodes[0]
        .sh(&format!(
            "/mnt/bin/hostgw-agent release --etcd-endpoints {url}"
        ))
        .ok();
    assert_eq!(said, "this node holds no lease below /coreos.com/network\n");
    // While an agent runs, nothing is given back.
    let refused = ninth.sh(&format!(
        "/mnt/bin/hostgw-agent release --etcd-endpoints {url}"
    ));
    assert!(
        !refused.success && refused.stderr.contains("an agent runs here"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_reservation_stays_one() {
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
    let said = nodes[1]
        .sh(&format!(
            "/mnt/bin/hostgw-agent release --etcd-endpoints {url}"
        ))
        .ok();
    assert_eq!(said, "10.10.77.0-24 is a reservation, and stays\n");
    assert_eq!(etcd.entry(reserved)["version"], 1);
}

#[test]
fn a_lease_is_renewed_and_taken_again() {
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
    // Renewed, it is the same: keeping it alive takes no room in etcd.
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(etcd.entry(&path), first);
    let granted = etcd.ctl("lease list").ok();
    assert!(
        granted.contains("found 1 leases"),
        "nothing is left behind: {granted}"
    );
    // Whatever is wrong with the configuration, the lease is renewed.
    etcd.ctl("put /coreos.com/network/config '{'").ok();
    agent.wait_for_log("/coreos.com/network/config: EOF while parsing");
    std::thread::sleep(Duration::from_secs(9));
    assert_eq!(etcd.entry(&path), first, "renewed all the same");
    etcd.configure(&json!({}));
    // Cut off for longer than the lease holds: it is said, and taken again by itself.
    worker1.sh("ip link set enp0s5 down").ok();
    wait_for("etcd forgets the node", || etcd.leases().is_empty());
    agent.wait_for_log("this node's lease has run out");
    worker1
        .sh("ip link set enp0s5 up; ip route add default via 192.168.2.1")
        .ok();
    wait_for("the lease is back", || etcd.leases().len() == 1);
    assert_eq!(own(worker1), key);
    assert!(!etcd.get(&path).is_empty(), "the same subnet");
    // Deleted under its hands.
    etcd.ctl(&format!("del /coreos.com/network/{path}")).ok();
    agent.wait_for_log(&format!("the lease of {key} was gone; took it again"));
    wait_for("the lease is back", || !etcd.get(&path).is_empty());
}

#[test]
fn theft_is_an_alarm() {
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
    let thief = serde_json::from_str(&value(15, Family::Ipv4)).expect("JSON");
    etcd.put(&path, &thief);
    agent.wait_for_log(&format!(
        "the lease of {key} was taken over by 192.168.2.15: two nodes have one subnet"
    ));
    wait_for("readiness is gone", || !ready());
    let subnet = key.replace('-', "/");
    agent.wait_for_log(&format!(
        "{subnet} of {key} is not routed: it overlaps {subnet} of this node"
    ));
    assert_eq!(own(worker1), key, "pods go on");
    sleep(Duration::from_secs(2));
    assert_eq!(etcd.get(&path), thief.to_string(), "it is not fought for");
    etcd.ctl(&format!("del /coreos.com/network/{path}")).ok();
    wait_for("it is taken again when it is free", || {
        etcd.get(&path) == value(16, Family::Ipv4)
    });
    wait_for("readiness is back", ready);
}

#[test]
fn in_a_large_cluster_next_hops_are_objects_of_their_own() {
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
    // A node moves, one goes, somebody takes everything away, and the link goes down and up.
    etcd.put_all([lease(7, 18)]);
    wait_for("the new next hop", || route().contains("via 172.18.0.7"));
    etcd.ctl("del /coreos.com/network/subnets/10.0.8.0-24").ok();
    wait_for("its route goes", || routes() == NODES - 1);
    for harm in [
        "ip nexthop flush proto 104",
        "for i in 1 2 3 4 5; do ip route del 10.0.$i.0/24; done",
        "ip link set ens7 down; ip link set ens7 up",
    ] {
        node.sh(harm).ok();
        wait_for(harm, || routes() == NODES - 1);
    }
    assert!(route().contains("via 172.18.0.7"), "{}", route());
    // What no route names any more goes when there is time.
    node.sh("ip nexthop add id 4242 via 172.16.9.9 dev ens7 proto 104")
        .ok();
    let begin = std::time::Instant::now();
    while objects() != NODES - 1 {
        assert!(begin.elapsed() < Duration::from_secs(15), "{}", objects());
        sleep(Duration::from_millis(200));
    }
    assert!(agent.stop());
    let said = node.sh("/mnt/bin/hostgw-agent cleanup").ok();
    assert!(said.contains("removed 599 next hop(s) of ours\n"), "{said}");
    assert_eq!((routes(), objects()), (0, 0));
}

#[test]
fn no_two_new_nodes_of_two_families_get_one_subnet() {
    let lab = Lab::new();
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    // Six nodes at once, four IPv4 subnets, any number of IPv6 ones: a key has both in its name.
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
    wait_for("two have none, and say so", || {
        let stuck = |agent: &&Agent| agent.log().contains("no subnet is free: all 4 from");
        agents.iter().filter(stuck).count() == 2
    });
    let mut subnets: Vec<_> = etcd
        .leases()
        .into_iter()
        .map(|(key, _)| key.split('&').next().unwrap_or_default().to_owned())
        .collect();
    subnets.sort();
    let wanted: Vec<_> = (1..=4).map(|i| format!("10.10.{i}.0-24")).collect();
    assert_eq!(subnets, wanted);
}

#[test]
fn a_reservation_goes_before_what_the_node_remembers() {
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
fn one_address_on_two_nodes_is_an_alarm() {
    let lab = Lab::new();
    let store = lab.node("etcd", &["192.168.2.20/24"]);
    let etcd = Etcd::start(&store, "192.168.2.20");
    etcd.configure(&json!({}));
    // As with machines that are all 10.0.2.15 on their first interface.
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
fn a_node_that_starts_while_the_configuration_is_broken_has_what_it_had() {
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
    assert!(!ready(), "it is not as it should be");
    etcd.configure(&json!({}));
    wait_for("readiness", ready);
}
