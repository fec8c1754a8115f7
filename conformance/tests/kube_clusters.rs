//! API servers as they are in practice: restored from a backup, cut off from their etcd, or behind
//! a proxy; and Nodes that lack an address family.

use std::thread::sleep;
use std::time::Duration;

use conformance::reference_picture::{self as picture, Family};
use conformance::{Agent, Kube, Lab, Node, Server, wait_for};
use serde_json::{Value, json};

fn net_conf(lab: &Lab, family: Family) -> String {
    lab.write("net-conf.json", picture::network(family).to_string());
    format!("--net-config-path={}", Lab::path("net-conf.json").display())
}

/// Starts an agent with these environment variables.
fn start(node: &Node<'_>, kubeconfig: &str, config: &str, variables: &[(&str, &str)]) -> Agent {
    let kubeconfig = format!("--kubeconfig-file={kubeconfig}");
    let name = format!("--node-name={}", node.name);
    node.sh("rm -f /run/hostgw-agent.log").ok();
    Agent::start_with_env(
        node,
        variables,
        &["--kube-subnet-mgr", &kubeconfig, &name, config],
    )
}

fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json");
    serde_json::from_str(&text.stdout).unwrap_or_default()
}

fn is_ready(node: &Node<'_>) -> bool {
    status(node)["ready"] == true
}

fn has_route(node: &Node<'_>, subnet: u8) -> bool {
    !node
        .sh(&format!("ip route show 10.10.{subnet}.0/24 proto 104"))
        .ok()
        .is_empty()
}

/// Creates another Node with its annotations.
fn create(kube: &Kube<'_>, name: &str, subnet: u8) {
    let ip = format!("192.168.2.{}", 100 + subnet);
    kube.create_node(name, &[&format!("10.10.{subnet}.0/24")], &[&ip]);
    let annotations = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("backend-data", "null"),
        ("public-ip", ip.as_str()),
    ];
    kube.annotate(name, &annotations);
}

#[test]
fn after_a_restore_of_etcd_all_nodes_are_read_again() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Ipv4);
    let (master, worker) = (&nodes[0], &nodes[1]);
    let mut kube = Kube::start(master, "192.168.2.17");
    picture::create_nodes(&kube, Family::Ipv4);
    create(&kube, "worker3", 3);
    let config = net_conf(&lab, Family::Ipv4);
    let agent = start(worker, &kube.admin(), &config, &[]);
    wait_for(&format!("readiness: {}", agent.log()), || {
        is_ready(worker) && has_route(worker, 3)
    });
    kube.stopped(|| drop(master.sh("cp -r /var/lib/etcd /run/backup").ok()));
    // After the backup, one node joins and another leaves.
    create(&kube, "worker4", 4);
    kube.delete("/api/v1/nodes/worker3");
    for round in 0..60 {
        kube.annotate(
            "worker4",
            &[
                ("backend-data", &format!("{round}")),
                ("backend-data", "null"),
            ],
        );
    }
    wait_for(&format!("both: {}", agent.log()), || {
        has_route(worker, 4) && !has_route(worker, 3)
    });
    kube.stopped(|| {
        drop(
            master
                .sh("rm -r /var/lib/etcd && cp -r /run/backup /var/lib/etcd")
                .ok(),
        );
    });
    // The Nodes in the backup count, and later changes.
    create(&kube, "worker5", 5);
    wait_for(
        &format!("the route to the node that joins: {}", agent.log()),
        || has_route(worker, 5),
    );
    wait_for("the route to the node in the backup", || {
        has_route(worker, 3)
    });
    wait_for(
        "the route to the node that is not in the backup is removed",
        || !has_route(worker, 4),
    );
    kube.delete("/api/v1/nodes/worker5");
    wait_for("the route to the deleted node is removed", || {
        !has_route(worker, 5)
    });
    agent.wait_for_log("went back in time");
    wait_for("readiness", || is_ready(worker));
    assert!(agent.stop());
}

#[test]
fn outdated_data_of_an_api_server_removes_no_routes() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Ipv4);
    let (master, worker) = (&nodes[0], &nodes[1]);
    let mut kube = Kube::start(master, "192.168.2.17");
    picture::create_nodes(&kube, Family::Ipv4);
    let config = net_conf(&lab, Family::Ipv4);
    let second = kube.second();
    // The second API server no longer gets anything from etcd, on any of its connections.
    master
        .sh(&format!(
            "nft 'add table ip cut; add chain ip cut in {{ type filter hook input priority 0; }}'; \
             for port in $(ss -tnpH dst 192.168.2.17:2379 | grep pid={}, | sed 's/^[^:]*:\\([0-9]*\\) .*/\\1/'); do \
             nft add rule ip cut in tcp sport 2379 tcp dport $port drop; done; nft list table ip cut | grep -q drop",
            second.pid()
        ))
        .ok();
    let agent = start(worker, &kube.admin(), &config, &[]);
    wait_for("readiness", || is_ready(worker));
    create(&kube, "worker3", 3);
    wait_for("the route", || has_route(worker, 3));
    wait_for("the state is on disk", || {
        let state = worker.path("/var/lib/hostgw/state.json");
        std::fs::read_to_string(state).is_ok_and(|text| text.contains("10.10.3.0/24"))
    });
    assert!(agent.stop());
    // The first API server and etcd fail, and a new agent asks the second one, whose cache is older
    // than the node's saved state.
    kube.kill();
    kube.etcd().freeze(true);
    let agent = start(worker, &second.admin(), &config, &[]);
    agent.wait_for_log("the API server's cache is older than revision");
    agent.wait_for_log("using the last known state");
    sleep(Duration::from_secs(8));
    assert!(has_route(worker, 3), "{}", agent.log());
    wait_for("readiness", || is_ready(worker));
    // Once its etcd answers, the API server's data is current and counts.
    kube.etcd().freeze(false);
    master.sh("nft delete table ip cut").ok();
    second.wait();
    second.delete("/api/v1/nodes/worker3");
    wait_for(&format!("the route is removed: {}", agent.log()), || {
        !has_route(worker, 3)
    });
    assert!(agent.stop());
}

// Long: a table of cases.
#[test]
fn proxy_settings_work_as_in_kubectl() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Ipv4);
    let (master, worker) = (&nodes[0], &nodes[1]);
    let kube = Kube::start(master, "192.168.2.17");
    picture::create_nodes(&kube, Family::Ipv4);
    let config = net_conf(&lab, Family::Ipv4);
    let proxy = lab.node("proxy", &["192.168.2.30/24"]);
    proxy.write(
        "/run/tinyproxy.conf",
        "Port 3128\nListen 192.168.2.30\nTimeout 600\nBasicAuth agent s3cr3t\nLogLevel Connect\nLogFile \"/run/tinyproxy.log\"\n",
    );
    let _server = Server::program(&proxy, "tinyproxy", "-d -c /run/tinyproxy.conf");
    let admin = kube.admin();
    let proxy_url = "http://agent:s3cr3t@192.168.2.30:3128";
    // The API server is reachable only through the proxy.
    worker
        .sh("nft 'add table ip wall; add chain ip wall out { type filter hook output priority 0; }; \
             add rule ip wall out ip daddr 192.168.2.17 tcp dport 6443 reject'")
        .ok();
    let text = std::fs::read_to_string(master.path(&admin))
        .or_else(|_| std::fs::read_to_string(worker.path(&admin)));
    let text = text.expect("a kubeconfig");
    let mut file: Value = serde_json::from_str(&text).expect("JSON");
    file["clusters"][0]["cluster"]["proxy-url"] = proxy_url.into();
    lab.write("by-proxy.conf", file.to_string());
    for (kubeconfig, variables) in [
        (admin.as_str(), &[("HTTPS_PROXY", proxy_url)][..]),
        (&admin, &[("https_proxy", "agent:s3cr3t@192.168.2.30:3128")]),
        ("/mnt/by-proxy.conf", &[]),
        (
            "/mnt/by-proxy.conf",
            &[("HTTPS_PROXY", "http://192.168.2.99:1"), ("NO_PROXY", "*")],
        ),
    ] {
        let agent = start(worker, kubeconfig, &config, variables);
        wait_for(&format!("{variables:?}: {}", agent.log()), || {
            is_ready(worker)
        });
        assert!(!agent.log().contains("s3cr3t"));
        assert!(agent.stop());
        worker.sh("rm -r /var/lib/hostgw").ok();
    }
    let seen = proxy.sh("cat /run/tinyproxy.log").ok();
    assert!(seen.contains("CONNECT 192.168.2.17:6443"), "{seen}");
    // Hosts in NO_PROXY are reached directly: no proxy listens at this address.
    worker.sh("nft delete table ip wall").ok();
    for list in [
        "192.168.2.17",
        "10.0.0.0/8, 192.168.2.0/24,",
        "192.168.2.17:6443",
        "*",
    ] {
        let variables = [("HTTPS_PROXY", "http://192.168.2.99:1"), ("NO_PROXY", list)];
        let agent = start(worker, &admin, &config, &variables);
        wait_for(&format!("{list}: {}", agent.log()), || is_ready(worker));
        assert!(agent.stop());
        worker.sh("rm -r /var/lib/hostgw").ok();
    }
    // An agent without valid credentials reports that, and not that the API server is unreachable.
    let agent = start(worker, &kube.kubeconfig("nobody's"), &config, &[]);
    agent.wait_for_log("the API server does not accept our credentials: Unauthorized (401)");
    assert!(agent.stop());
}

#[test]
fn a_node_with_one_pod_cidr_works_in_a_dual_stack_cluster() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Dual);
    let (master, worker) = (&nodes[0], &nodes[1]);
    let mut kube = Kube::start(master, "192.168.2.17");
    for (name, subnet, host) in [("master", 0, 17), ("worker1", 1, 16)] {
        let (ipv4, ipv6) = picture::node_addresses(host);
        kube.create_node(name, &[&format!("10.10.{subnet}.0/24")], &[&ipv4, &ipv6]);
    }
    create(&kube, "worker3", 3);
    let config = net_conf(&lab, Family::Dual);
    let agent = start(worker, &kube.admin(), &config, &[]);
    wait_for(&format!("readiness: {}", agent.log()), || {
        is_ready(worker) && has_route(worker, 3)
    });
    let expected = "Node worker1 has no IPv6 podCIDR (10.10.1.0/24), but IPv6Network";
    assert!(
        status(worker)["warnings"].to_string().contains(expected),
        "{}",
        status(worker)
    );
    wait_for("the condition", || {
        kube.condition("worker1", "NetworkUnavailable")["status"] == "False"
    });
    let file =
        || std::fs::read_to_string(worker.path("/run/flannel/subnet.env")).unwrap_or_default();
    assert!(
        file().contains("FLANNEL_SUBNET=10.10.1.1/24") && !file().contains("IPV6"),
        "{}",
        file()
    );
    // The node reboots while the API server is unreachable.
    let written = file();
    wait_for("the state is on disk", || {
        worker.path("/var/lib/hostgw/state.json").exists()
    });
    kube.kill();
    assert!(agent.stop());
    worker
        .sh("rm -r /run/flannel; ip route flush proto 104")
        .ok();
    let agent = start(worker, &kube.admin(), &config, &[]);
    wait_for(&format!("readiness: {}", agent.log()), || {
        is_ready(worker) && has_route(worker, 3)
    });
    assert_eq!(file(), written);
    kube.restart();
    // With only a link-local IPv6 address, no IPv6 address is announced.
    worker.sh("ip -6 addr flush dev enp0s5 scope global").ok();
    wait_for(&format!("none is announced: {}", agent.log()), || {
        kube.annotation("worker1", "public-ip") == "192.168.2.16"
            && kube.annotation("worker1", "public-ipv6").is_empty()
    });
    wait_for("readiness", || is_ready(worker));
    assert!(agent.stop());
}

/// Creates a Node with the annotations of flannel, whatever they say.
fn claim(kube: &Kube<'_>, name: &str, cidr: &str, address: &str) {
    kube.create_node(name, &[cidr], &["192.168.2.99"]);
    let annotations = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("backend-data", "null"),
        ("public-ip", address),
    ];
    kube.annotate(name, &annotations);
}

#[test]
fn hostile_nodes_and_annotations_that_change_100_times_a_second_do_not_matter() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Ipv4);
    let server = lab.node("api", &["192.168.2.21/24"]);
    let kube = Kube::start(&server, "192.168.2.21");
    picture::create_nodes(&kube, Family::Ipv4);
    let config = net_conf(&lab, Family::Ipv4);
    let worker1 = &nodes[1];
    let agent = start(worker1, &kube.admin(), &config, &[]);
    create(&kube, "honest", 5);
    for (name, cidr, address) in [
        ("ours", "10.10.1.128/25", "192.168.2.99"),
        ("everything", "10.10.0.0/16", "192.168.2.99"),
        ("default", "0.0.0.0/0", "192.168.2.99"),
        ("loopback", "127.0.0.0/8", "192.168.2.99"),
        ("multicast", "224.0.0.0/24", "192.168.2.99"),
        ("nodes", "192.168.2.0/24", "192.168.2.99"),
        ("self", "10.10.40.0/24", "192.168.2.16"),
        ("link-local", "10.10.41.0/24", "169.254.1.1"),
        ("no-address", "10.10.42.0/24", "localhost"),
        ("pod", "10.10.43.0/24", "10.10.1.7"),
    ] {
        claim(&kube, name, cidr, address);
    }
    wait_for(&format!("the honest route: {}", agent.log()), || {
        has_route(worker1, 5)
    });
    let routes = || {
        let text = worker1.sh("ip route show proto 104").ok();
        let route = |line: &str| line.split(" dev ").next().map(str::to_owned);
        text.lines().filter_map(route).collect::<Vec<_>>()
    };
    assert_eq!(routes(), ["10.10.5.0/24 via 192.168.2.105"]);
    // An address that moves 100 times a second for ten seconds: valid, invalid, this node's own.
    let addresses = ["192.168.2.105", "192.168.2.106", "192.168.2.16", "none"];
    let change = |i: usize| {
        let address = addresses[i % addresses.len()];
        json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/public-ip": address}}})
    };
    let log = agent.log().len();
    let used = agent.cpu();
    let took = kube.patch_each("/api/v1/nodes/honest", 100, (0..1000).map(change));
    let used = agent.cpu().saturating_sub(used);
    let written = agent.log().len() - log;
    eprintln!("{used:?} of CPU and {written} bytes of log in {took:?}");
    assert!(took < Duration::from_secs(40), "{took:?}");
    assert!(used < took / 10, "{used:?} in {took:?}");
    assert!(written < 20_000, "{}", agent.log());
    kube.patch("/api/v1/nodes/honest", &change(1));
    wait_for(&format!("the last address: {}", agent.log()), || {
        routes() == ["10.10.5.0/24 via 192.168.2.106"]
    });
    assert!(is_ready(worker1));
}
