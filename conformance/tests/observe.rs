//! The agent's reports: readiness, metrics, status, systemd notifications and its log; and the
//! subcommand `check`.

use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use conformance::reference_picture::{Family, agents, cluster, node_entry, nodes};
use conformance::{Agent, Lab, Node, Server, repository, wait_for, wait_within};
use serde_json::{Value, json};

fn fetch(node: &Node<'_>, path: &str) -> (bool, String) {
    let output = node.sh(&format!(
        "busybox wget -q -O - http://127.0.0.1:8080/{path}"
    ));
    (output.success, output.stdout)
}

/// Returns the reference cluster with one more node, which is not on the link.
fn with_an_off_link_node() -> String {
    let mut cluster: Value =
        serde_json::from_str(&cluster(Family::Ipv4, &[])).expect("just written");
    let mut far = node_entry(Family::Ipv4, "far", 99, 9);
    far["publicIP"] = json!("10.99.0.7");
    cluster["nodes"].as_array_mut().expect("a list").push(far);
    cluster.to_string()
}

#[test]
fn readiness_requires_a_valid_cluster_and_an_address() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let worker1 = &nodes[1];
    let cluster_file = Lab::path("cluster.json").display().to_string();
    let _agent = Agent::start(
        worker1,
        &[
            "--cluster",
            &cluster_file,
            "--healthz-port=8080",
            "--healthz-ip=127.0.0.1",
        ],
    );
    wait_for("health", || {
        fetch(worker1, "healthz") == (true, "hostgw-agent is running\n".to_owned())
    });
    assert!(!fetch(worker1, "readyz").0, "there is no cluster yet");
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    wait_for("readiness", || {
        fetch(worker1, "readyz") == (true, "hostgw-agent is ready\n".to_owned())
    });
    assert!(worker1.path("/run/flannel/subnet.env").exists());
    lab.write("cluster.json", "{");
    wait_for("readiness is gone", || !fetch(worker1, "readyz").0);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    wait_for("readiness", || fetch(worker1, "readyz").0);
    // A single peer that cannot be routed does not make this node unready.
    lab.write("cluster.json", with_an_off_link_node());
    wait_for("the far node is known", || {
        fetch(worker1, "metrics")
            .1
            .contains("hostgw_peers_wanted 3")
    });
    assert!(fetch(worker1, "readyz").0);
    worker1
        .sh("ip link set enp0s5 down; ip addr flush dev enp0s5")
        .ok();
    wait_for("readiness is gone", || !fetch(worker1, "readyz").0);
    let taken = Agent::start(&nodes[2], &["--healthz-port=8080", "--healthz-ip=10.0.0.1"]);
    taken.wait_for_log("hostgw-agent: listen on 10.0.0.1:8080 (--healthz-port): Cannot assign");
}

#[test]
fn a_real_prometheus_scrapes_the_metrics() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", with_an_off_link_node());
    let _agents = agents(&nodes, |node, args| {
        Agent::start(node, &[args, &["--healthz-port=8080"]].concat())
    });
    let master = &nodes[0];
    let targets: Vec<_> = [15, 16, 17]
        .iter()
        .map(|host| format!("192.168.2.{host}:8080"))
        .collect();
    let config = json!({
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [{"job_name": "hostgw", "static_configs": [{"targets": targets}]}],
    });
    // Every JSON document is also a YAML document.
    lab.write("prometheus.yml", config.to_string());
    let _prometheus = Server::program(
        master,
        "prometheus",
        "--config.file=/mnt/prometheus.yml --storage.tsdb.path=/run/prometheus \
         --web.listen-address=127.0.0.1:9090",
    );
    let ask = |query: &str| ask_prometheus(master, query);
    let three = |value: &str| vec![value.to_owned(); 3];
    wait_within("all agents are scraped", Duration::from_secs(20), || {
        ask("up{job=\"hostgw\"}") == three("1") && ask("hostgw_peers_installed") == three("2")
    });
    for (metric, value) in [
        ("hostgw_ready", "1"),
        ("hostgw_peers_wanted", "3"),
        ("hostgw_peers_installed", "2"),
        ("hostgw_peers_refused{reason=\"not-on-link\"}", "1"),
        ("hostgw_peers_refused{reason=\"overlap\"}", "0"),
        (
            "hostgw_peer_refused{node=\"far\",subnet=\"10.10.9.0/24\",next_hop=\"10.99.0.7\"}",
            "1",
        ),
        ("hostgw_store_reached", "1"),
        ("hostgw_build_info", "1"),
        ("hostgw_routes_written_total", "2"),
        ("hostgw_routes_mended_total", "0"),
        ("hostgw_firewall_mended_total", "0"),
        ("hostgw_reconcile_seconds<bool 0.1", "1"),
        ("hostgw_reconciles_total>bool 0", "1"),
        ("(time()-hostgw_reconcile_timestamp_seconds)<bool 15", "1"),
        ("hostgw_store_revision", "0"),
    ] {
        assert_eq!(ask(&metric.replace(' ', "%20")), three(value), "{metric}");
    }
    // Every restored route is counted.
    nodes[1].sh("ip route del 10.10.2.0/24").ok();
    wait_for("the restored route is counted", || {
        ask("sum(hostgw_routes_mended_total)") == ["1"]
    });
}

/// Returns the values of a query's results.
fn ask_prometheus(node: &Node<'_>, query: &str) -> Vec<String> {
    let url = format!("http://127.0.0.1:9090/api/v1/query?query={query}");
    let text = node.sh(&format!("busybox wget -q -O - '{url}'")).stdout;
    let answer: Value = serde_json::from_str(&text).unwrap_or_default();
    let results = answer["data"]["result"].as_array().into_iter().flatten();
    results
        .map(|result| result["value"][1].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn status_prints_a_table_or_json() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let worker1 = &nodes[1];
    lab.install(
        &conformance::dist().join("hostgw-agent"),
        "bin/hostgw-agent",
    );
    let without_agent = worker1.sh("/mnt/bin/hostgw-agent status");
    assert!(!without_agent.success);
    assert!(
        without_agent
            .stderr
            .starts_with("hostgw-agent: no agent answers at /run/hostgw/agent.sock (is hostgw-agent running?): No such file"),
        "{}",
        without_agent.stderr
    );
    lab.write("cluster.json", with_an_off_link_node());
    let _agents = agents(&nodes, Agent::start);
    let status = || worker1.sh("/mnt/bin/hostgw-agent status").ok();
    wait_for("two of three", || {
        status().contains("peers      2 of 3 routed")
    });
    let lines: Vec<_> = status()
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        lines,
        [
            "ready yes",
            "node worker1",
            "subnet 10.10.1.0/24",
            "interface enp0s5 mtu 1500 192.168.2.16",
            "because it has the default route",
            "store file /mnt/cluster.json",
            "firewall nftables",
            "fast path off (--fast-path=off)",
            "peers 2 of 3 routed",
            "",
            "SUBNET NEXT HOP DEVICE STATE NODE REASON",
            "10.10.0.0/24 192.168.2.17 enp0s5 installed master",
            "10.10.2.0/24 192.168.2.15 enp0s5 installed worker2",
            "10.10.9.0/24 10.99.0.7 refused far 10.99.0.7 is not on the link of enp0s5 (--onlink accepts it)",
        ]
    );
    let text = worker1.sh("/mnt/bin/hostgw-agent status --json").ok();
    let status: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(status["node"]["subnets"], json!(["10.10.1.0/24"]));
    assert_eq!(status["node"]["interface"], "enp0s5");
    let worker2 = json!({
        "node": "worker2", "subnet": "10.10.2.0/24", "nextHop": "192.168.2.15",
        "device": "enp0s5", "state": "installed", "reason": null,
    });
    assert_eq!(status["peers"][1], worker2);
}

#[test]
fn health_checks_are_answered_in_both_families() {
    const IPV4: [&str; 2] = ["127.0.0.1", "192.168.2.16"];
    const IPV6: [&str; 2] = ["[::1]", "[fd00:192:168:2::16]"];
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    let worker1 = &nodes[1];
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    let answers = |address: &str| {
        let url = format!("http://{address}:8080/healthz");
        worker1.sh(&format!("busybox wget -q -O - '{url}'")).success
    };
    let cluster = "--cluster=/mnt/cluster.json";
    let port = "--healthz-port=8080";
    for (setup, args, families) in [
        ("true", &[cluster, port][..], (true, true)),
        // Independent of the node's setting for dual-stack sockets.
        (
            "echo 1 >/proc/sys/net/ipv6/bindv6only",
            &[cluster, port],
            (true, true),
        ),
        ("true", &[cluster, port, "--healthz-ip="], (true, true)),
        (
            "true",
            &[cluster, port, "--healthz-ip=0.0.0.0"],
            (true, false),
        ),
        (
            "true",
            &[cluster, port, "--healthz-ip=fd00:192:168:2::16"],
            (false, true),
        ),
        (
            "true",
            &[cluster, port, "--healthz-ip=localhost"],
            (true, false),
        ),
    ] {
        worker1.sh(setup).ok();
        let agent = Agent::start(worker1, args);
        agent.wait_for_log("ready: ");
        let is_all = !args
            .iter()
            .any(|arg| arg.ends_with("::16") || arg.ends_with("localhost"));
        let address = |family: [&'static str; 2]| if is_all { family[1] } else { family[0] };
        let ipv6 = if args.iter().any(|arg| arg.ends_with("::16")) {
            IPV6[1]
        } else {
            address(IPV6)
        };
        let seen = (answers(address(IPV4)), answers(ipv6));
        if args.iter().any(|arg| arg.ends_with("localhost")) {
            assert!(seen.0 || seen.1, "{args:?}");
        } else {
            assert_eq!(seen, families, "{args:?}");
        }
        assert!(agent.stop());
        worker1.sh("rm /run/hostgw-agent.log").ok();
    }
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn the_agent_notifies_systemd_only_when_it_is_ready() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let worker1 = &nodes[1];
    // Socket paths are limited in length, and each test needs its own: use the path of the node's
    // file from outside.
    let listener = UnixDatagram::bind(worker1.path("/run/notify")).expect("binds");
    listener
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    let wait_for_message = |expected: &str| {
        let mut message = String::new();
        while !message.contains(expected) {
            let mut buffer = [0; 4096];
            let length = listener
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{expected:?}: {error}"));
            message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        }
        message
    };
    lab.install(
        &conformance::dist().join("hostgw-agent"),
        "bin/hostgw-agent",
    );
    let mut command = worker1.command("env");
    let mut child = command
        .args([
            "NOTIFY_SOCKET=/run/notify",
            "/mnt/bin/hostgw-agent",
            "--cluster=/mnt/cluster.json",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let message = wait_for_message("STATUS=read /mnt/cluster.json: No such file");
    assert!(!message.contains("READY=1"), "{message}");
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let message = wait_for_message("READY=1");
    assert!(
        message.contains("STATUS=this node has its subnet and its routes")
            && message.contains("WATCHDOG=1"),
        "{message}"
    );
    worker1.sh(&format!("kill {}", child.id())).ok();
    wait_for_message("STOPPING=1");
    assert!(child.wait().is_ok_and(|status| status.success()));
    // The agent's standard error is not a terminal, so each line is a JSON object.
    let log =
        std::io::read_to_string(child.stderr.take().expect("the stream is piped")).expect("text");
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let messages: Vec<_> = lines
        .iter()
        .filter_map(|line| line["message"].as_str())
        .collect();
    assert!(
        messages.contains(&"add route 10.10.2.0/24 via 192.168.2.15 proto 104"),
        "{messages:?}"
    );
    assert!(
        lines
            .iter()
            .all(|line| line["timestamp"].is_string() && line["level"].is_string())
    );
}

#[test]
fn check_validates_cluster_files_and_network_configurations() {
    let lab = Lab::new();
    let node = lab.node("worker1", &[]);
    lab.install(
        &conformance::dist().join("hostgw-agent"),
        "bin/hostgw-agent",
    );
    for name in [
        "cluster.json",
        "cluster-dual-stack.json",
        "net-conf.json",
        "10-cni-hostgw.conflist",
        "20-bridge.conflist",
    ] {
        lab.write(
            name,
            std::fs::read(repository().join("examples").join(name)).expect("readable"),
        );
    }
    lab.write("bad.json", r#"{"Network": "10.0.0.0/16", "SubnetLen": 31}"#);
    lab.write("bad.conflist", r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "cni-hostgw", "mtu": "big"}]}"#);
    let good = node.sh(
        "cd /mnt && bin/hostgw-agent check cluster.json cluster-dual-stack.json net-conf.json \
         10-cni-hostgw.conflist 20-bridge.conflist",
    );
    let message = good.ok();
    assert_eq!(message.lines().count(), 5, "{message}");
    assert!(
        message.contains("cluster.json: a cluster of 3 node(s) in 10.10.0.0/16\n"),
        "{message}"
    );
    let bad =
        node.sh("cd /mnt && bin/hostgw-agent check bad.json cluster.json bad.conflist missing");
    assert!(!bad.success && bad.stdout.is_empty());
    for message in [
        "bad.json: SubnetLen is 31, and must be from 18 (the prefix length of Network plus 2) to 30",
        "bad.conflist: plugins[0].",
        "missing: No such file or directory",
    ] {
        assert!(bad.stderr.contains(message), "{}", bad.stderr);
    }
}
