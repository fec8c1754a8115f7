//! The agent with a real API server: its Nodes, their annotations and their condition.

use std::thread::sleep;
use std::time::Duration;

use conformance::kube::{full_node, node_key};
use conformance::reference_picture::{self as picture, Family, node_addresses};
use conformance::{Agent, Kube, Lab, Node, wait_for, wait_within};
use serde_json::{Value, json};

/// The annotations that flannel's nodes write, without their prefix.
const ANNOTATIONS: [(&str, [&str; 3]); 6] = [
    ("kube-subnet-manager", ["true", "true", "true"]),
    ("backend-type", ["host-gw", "host-gw", "host-gw"]),
    ("backend-data", ["null", "null", "null"]),
    (
        "public-ip",
        ["192.168.2.17", "192.168.2.16", "192.168.2.15"],
    ),
    ("backend-v6-data", ["null", "null", "null"]),
    (
        "public-ipv6",
        [
            "fd00:192:168:2::17",
            "fd00:192:168:2::16",
            "fd00:192:168:2::15",
        ],
    ),
];

/// Writes the network configuration into the shared folder, and returns the agent's argument that
/// names it.
fn net_conf(lab: &Lab, family: Family) -> String {
    lab.write("net-conf.json", picture::network(family).to_string());
    format!("--net-config-path={}", Lab::path("net-conf.json").display())
}

fn start(node: &Node<'_>, kubeconfig: &str, more: &[&str]) -> Agent {
    let kubeconfig = format!("--kubeconfig-file={kubeconfig}");
    let name = format!("--node-name={}", node.name);
    let args = ["--kube-subnet-mgr", &kubeconfig, &name];
    Agent::start(node, &[&args[..], more].concat())
}

fn subnet_routes(node: &Node<'_>, family: &str) -> Vec<String> {
    let within = if family == "-6" {
        "fd00:10:10::/48"
    } else {
        "10.0.0.0/8"
    };
    picture::routes(
        &node
            .sh(&format!("ip {family} route show root {within}"))
            .ok(),
    )
}

fn status(node: &Node<'_>) -> Value {
    let status = node.sh("/mnt/bin/hostgw-agent status --json");
    serde_json::from_str(&status.stdout).unwrap_or_default()
}

/// Waits until every node has exactly the expected routes in both families.
fn wait_for_expected_routes(nodes: &[Node<'_>]) {
    for node in nodes {
        let what = format!("the routes of {}", node.name);
        wait_for(&what, || {
            subnet_routes(node, "-4") == picture::node_routes(&node.name, false)
                && subnet_routes(node, "-6") == picture::node_routes6(&node.name, false)
        });
    }
}

fn wait_for_route(node: &Node<'_>, to: &str, via: Option<&str>) {
    let family = if to.contains(':') { "-6" } else { "-4" };
    let what = format!("{to} by {via:?} on {}", node.name);
    wait_for(&what, || {
        let routes = subnet_routes(node, family);
        let mut found = routes.iter().filter(|route| route.starts_with(to));
        match via {
            Some(via) => found.any(|route| route.contains(&format!("via {via} "))),
            None => found.next().is_none(),
        }
    });
}

fn reasons(node: &Node<'_>) -> String {
    status(node)["reasons"].to_string()
}

/// Creates a Node with the annotations that kube-flannel writes.
fn create_flannel_node(kube: &Kube<'_>, name: &str, subnet: u8, host: u8) {
    let (ipv4, ipv6) = node_addresses(host);
    let cidrs = picture::cidrs(Family::Dual, subnet);
    kube.create_node(name, &[&cidrs[0], &cidrs[1]], &[&ipv4, &ipv6]);
    kube.annotate(
        name,
        &[
            ("kube-subnet-manager", "true"),
            ("backend-type", "host-gw"),
            ("backend-data", "null"),
            ("public-ip", &ipv4),
            ("backend-v6-data", "null"),
            ("public-ipv6", &ipv6),
        ],
    );
}

#[test]
fn routes_annotations_and_conditions_follow_the_api_server() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Dual);
    let kube = Kube::start(&nodes[0], "192.168.2.17");
    picture::create_nodes(&kube, Family::Dual);
    let config = net_conf(&lab, Family::Dual);
    let admin = kube.admin();
    let mut agents: Vec<_> = nodes
        .iter()
        .map(|node| start(node, &admin, &[&config]))
        .collect();
    wait_for_expected_routes(&nodes);
    for (name, values) in ANNOTATIONS {
        for (node, value) in nodes.iter().zip(values) {
            let what = format!("{name} of {}", node.name);
            wait_for(&what, || kube.annotation(&node.name, name) == value);
        }
    }
    for node in &nodes {
        let condition = || kube.condition(&node.name, "NetworkUnavailable");
        wait_for("the condition", || condition()["status"] == "False");
        assert_eq!(condition()["reason"], "HostgwIsUp");
        assert!(condition()["lastTransitionTime"].is_string());
        wait_for("readiness", || status(node)["ready"] == true);
    }
    let master = &nodes[0];

    restores_annotation_and_condition(&kube);
    follows_a_flannel_node(&kube, master);

    // This node's own address changes, and the other nodes follow.
    nodes[2]
        .sh("ip addr del 192.168.2.15/24 dev enp0s5; ip addr add 192.168.2.25/24 dev enp0s5")
        .ok();
    wait_for_route(master, "10.10.2.0/24", Some("192.168.2.25"));
    assert_eq!(kube.annotation("worker2", "public-ip"), "192.168.2.25");
    wait_for_route(master, "fd00:10:10:2::/64", Some("fd00:192:168:2::15"));

    // A Node that was deleted while the agent was stopped loses its route after the agent's start.
    assert!(agents.remove(0).stop());
    kube.delete("/api/v1/nodes/worker3");
    let agent = start(master, &admin, &[&config]);
    wait_for_route(master, "10.10.4.0/24", None);
    wait_for_route(master, "10.10.1.0/24", Some("192.168.2.16"));
    drop(agent);
}

/// A deleted annotation and a changed condition are restored.
fn restores_annotation_and_condition(kube: &Kube<'_>) {
    let key = "flannel.alpha.coreos.com/public-ip";
    let path = "/api/v1/nodes/worker1";
    kube.patch(path, &json!({"metadata": {"annotations": {key: null}}}));
    wait_for("the annotation is restored", || {
        kube.annotation("worker1", "public-ip") == "192.168.2.16"
    });
    let wrong = json!({"status": {"conditions": [
        {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"},
    ]}});
    kube.patch(&format!("{path}/status"), &wrong);
    wait_for("the condition is restored", || {
        kube.condition("worker1", "NetworkUnavailable")["status"] == "False"
    });
}

/// A kube-flannel node joins, changes, and is created again.
fn follows_a_flannel_node(kube: &Kube<'_>, master: &Node<'_>) {
    create_flannel_node(kube, "worker3", 3, 14);
    wait_for_route(master, "10.10.3.0/24", Some("192.168.2.14"));
    wait_for_route(master, "fd00:10:10:3::/64", Some("fd00:192:168:2::14"));
    // Its addresses change, one family at a time.
    kube.annotate("worker3", &[("public-ip", "192.168.2.13")]);
    wait_for_route(master, "10.10.3.0/24", Some("192.168.2.13"));
    kube.annotate("worker3", &[("public-ipv6", "fd00:192:168:2::13")]);
    wait_for_route(master, "fd00:10:10:3::/64", Some("fd00:192:168:2::13"));
    wait_for_route(master, "10.10.3.0/24", Some("192.168.2.13"));
    // The Node is deleted and created again with other podCIDRs.
    kube.delete("/api/v1/nodes/worker3");
    wait_for_route(master, "10.10.3.0/24", None);
    create_flannel_node(kube, "worker3", 4, 14);
    wait_for_route(master, "10.10.4.0/24", Some("192.168.2.14"));
    wait_for_route(master, "fd00:10:10:4::/64", Some("fd00:192:168:2::14"));
    // A node with another backend is not routed.
    kube.annotate("worker3", &[("backend-type", "vxlan")]);
    wait_for_route(master, "10.10.4.0/24", None);
    let peers = status(master)["peers"].to_string();
    assert!(peers.contains("its backend is \\\"vxlan\\\""), "{peers}");
    kube.annotate("worker3", &[("backend-type", "host-gw")]);
    wait_for_route(master, "10.10.4.0/24", Some("192.168.2.14"));
}

#[test]
fn a_node_waits_for_its_pod_cidr_and_reports_that_in_event_condition_and_log() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Ipv4);
    let (master, worker) = (&nodes[0], &nodes[1]);
    let kube = Kube::start(master, "192.168.2.17");
    let config = net_conf(&lab, Family::Ipv4);
    let agent = start(worker, &kube.admin(), &[&config]);
    agent.wait_for_log("there is no Node \"worker1\"");
    kube.create(
        "/api/v1/nodes",
        &json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker1"},
        }),
    );
    wait_for_report(&kube, worker, &agent, &["Node worker1 has no podCIDR yet"]);
    assert!(!worker.path("/run/flannel/subnet.env").exists());
    assert_eq!(
        kube.annotation("worker1", "public-ip"),
        "",
        "the node does not announce an address"
    );

    // A podCIDR that is outside of the network.
    kube.patch(
        "/api/v1/nodes/worker1",
        &json!({"spec": {
            "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"],
        }}),
    );
    // The agent sends at most one event in ten seconds.
    sleep(Duration::from_secs(8));
    let expected = [
        "podCIDR 10.244.1.0/24 of Node worker1",
        "Network 10.10.0.0/16",
        "net-conf.json",
    ];
    wait_for_report(&kube, worker, &agent, &expected);
    assert_eq!(kube.annotation("worker1", "public-ip"), "");

    // Once the configuration has been corrected, the node becomes ready without further help.
    let network = json!({"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}});
    lab.write("net-conf.json", network.to_string());
    wait_for("readiness", || status(worker)["ready"] == true);
    wait_for("the condition", || {
        kube.condition("worker1", "NetworkUnavailable")["status"] == "False"
    });
    let file = std::fs::read_to_string(worker.path("/run/flannel/subnet.env"));
    assert!(
        file.expect("a ready node has a subnet file")
            .contains("FLANNEL_SUBNET=10.244.1.1/24")
    );
    assert_eq!(kube.annotation("worker1", "public-ip"), "192.168.2.16");
}

/// Waits until event, condition, status and log of worker1 contain all of `words`.
fn wait_for_report(kube: &Kube<'_>, worker: &Node<'_>, agent: &Agent, words: &[&str]) {
    let has = |text: &str| words.iter().all(|word| text.contains(word));
    wait_for(&format!("an event with {words:?}"), || {
        kube.events("worker1").iter().any(|event| has(event))
    });
    let condition = kube.condition("worker1", "NetworkUnavailable");
    assert_eq!(condition["status"], "True");
    let message = condition["message"].as_str().unwrap_or_default();
    assert!(has(message), "{condition}");
    assert!(has(&reasons(worker)), "{}", reasons(worker));
    assert!(has(&agent.log()), "{}", agent.log());
    assert_eq!(status(worker)["ready"], false);
}

#[test]
fn an_invalid_network_configuration_changes_nothing_on_a_running_node() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Ipv4);
    let worker = &nodes[1];
    let kube = Kube::start(&nodes[0], "192.168.2.17");
    picture::create_nodes(&kube, Family::Ipv4);
    let config = net_conf(&lab, Family::Ipv4);
    let agent = start(worker, &kube.admin(), &[&config]);
    wait_for("readiness", || status(worker)["ready"] == true);
    // The same with the state that an earlier run saved.
    assert!(agent.stop());
    let _agent = start(worker, &kube.admin(), &[&config]);
    wait_for("readiness", || status(worker)["ready"] == true);
    worker
        .sh("ip addr del 192.168.2.16/24 dev enp0s5; ip addr add 192.168.2.26/24 dev enp0s5; ip route add default via 192.168.2.1")
        .ok();
    wait_for("the address is announced", || {
        kube.annotation("worker1", "public-ip") == "192.168.2.26"
    });
    lab.write("net-conf.json", "{\"Network\": \"10.244.0.0\"}");
    wait_for("the invalid key is reported", || {
        reasons(worker).contains("Network") && reasons(worker).contains("10.244.0.0")
    });
    assert_eq!(status(worker)["node"]["publicIP"], "192.168.2.26");
    assert_eq!(status(worker)["node"]["subnets"], json!(["10.10.1.0/24"]));
    lab.write("net-conf.json", picture::network(Family::Ipv4).to_string());
    wait_for("readiness", || status(worker)["ready"] == true);
}

#[test]
fn an_unreachable_api_server_does_not_affect_running_nodes() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Dual);
    let mut kube = Kube::start(&nodes[0], "192.168.2.17");
    picture::create_nodes(&kube, Family::Dual);
    let config = net_conf(&lab, Family::Dual);
    let admin = kube.admin();
    let mut agents: Vec<_> = nodes
        .iter()
        .map(|node| start(node, &admin, &[&config]))
        .collect();
    wait_for_expected_routes(&nodes);
    let worker = &nodes[1];
    wait_for("the state is on disk", || {
        let state = worker.path("/var/lib/hostgw/state.json");
        std::fs::read_to_string(state).is_ok_and(|text| text.contains("10.10.2.0/24"))
    });

    kube.kill();
    assert!(agents.remove(1).stop());
    let agent = boots_from_the_saved_state(&nodes[1..2], &admin, &config);

    // The changes during the outage are older than the API server's watch cache, so the agent has
    // to list all Nodes again.
    let second = kube.second();
    create_flannel_node(&second, "worker3", 3, 14);
    second.delete("/api/v1/nodes/worker2");
    drop(second);
    kube.restart();
    for node in [&nodes[0], worker] {
        wait_for_route(node, "10.10.3.0/24", Some("192.168.2.14"));
        wait_for_route(node, "10.10.2.0/24", None);
    }
    agents[0].wait_for_log("listing all Nodes");
    agent.wait_for_log("the store can be reached again");

    notices_a_hanging_server(&kube, worker);
    drop(agent);
    let agent = routes_although_its_requests_are_rejected(&kube, &nodes[0], worker, &config);
    recovers_with_etcd(&kube, worker);
    assert!(agent.stop());
}

/// Starts the agent on a node that boots while the API server is down. The node restores its routes
/// and its subnet file from the saved state, and becomes ready.
fn boots_from_the_saved_state(nodes: &[Node<'_>], admin: &str, config: &str) -> Agent {
    let worker = &nodes[0];
    worker
        .sh("rm -r /run/flannel; ip route flush proto 104; ip -6 route flush proto 104")
        .ok();
    let agent = start(worker, admin, &[config]);
    wait_for_expected_routes(nodes);
    assert!(worker.path("/run/flannel/subnet.env").exists());
    wait_for("readiness", || status(worker)["ready"] == true);
    agent.wait_for_log("using the last known state");
    agent
}

/// The agent notices an API server that hangs, and recovers when the API server continues.
fn notices_a_hanging_server(kube: &Kube<'_>, worker: &Node<'_>) {
    kube.freeze(true);
    wait_within("the store is not reached", Duration::from_secs(25), || {
        status(worker)["store"]["reached"] == false
    });
    assert_eq!(status(worker)["ready"], true);
    kube.freeze(false);
    kube.delete("/api/v1/nodes/worker3");
    wait_for_route(worker, "10.10.3.0/24", None);
}

/// The API server answers only this agent with 429. The agent cannot announce its node to others,
/// but it still routes to other nodes.
fn routes_although_its_requests_are_rejected(
    kube: &Kube<'_>,
    master: &Node<'_>,
    worker: &Node<'_>,
    config: &str,
) -> Agent {
    reject_requests_of_slow(kube, master);
    worker.sh("rm /run/hostgw-agent.log").ok();
    let key = "flannel.alpha.coreos.com/public-ip";
    let change = json!({"metadata": {"annotations": {key: null}}});
    kube.patch("/api/v1/nodes/worker1", &change);
    let agent = start(worker, &kube.kubeconfig("slow"), &[config]);
    agent.wait_for_log("(429)");
    let before = count_rejections(kube);
    sleep(Duration::from_secs(8));
    let tries = count_rejections(kube) - before;
    assert!((1..=5).contains(&tries), "{tries} requests in 8 seconds");
    kube.delete("/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas/slow");
    wait_within("the annotation", Duration::from_secs(20), || {
        kube.annotation("worker1", "public-ip") == "192.168.2.16"
    });
    agent
}

/// An API server without its etcd answers with 500 or not at all, and recovers together with etcd.
fn recovers_with_etcd(kube: &Kube<'_>, worker: &Node<'_>) {
    kube.etcd().freeze(true);
    sleep(Duration::from_secs(3));
    kube.etcd().freeze(false);
    wait_for("the API server is ready again", || {
        kube.call("GET", "/readyz", "").code == 200
    });
    create_flannel_node(kube, "worker4", 4, 13);
    wait_for_route(worker, "10.10.4.0/24", Some("192.168.2.13"));
}

/// Returns the number of requests of the user `slow` that the API server has rejected.
fn count_rejections(kube: &Kube<'_>) -> u64 {
    let answer = kube.call("GET", "/metrics", "");
    let text = answer.body.as_str().expect("metrics are text");
    let counts_rejections_of_slow = |line: &&str| {
        line.starts_with("apiserver_flowcontrol_rejected_requests_total{")
            && line.contains("flow_schema=\"slow\"")
    };
    let counts = text.lines().filter(counts_rejections_of_slow);
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// Makes the API server reject every request of the user `slow` with 429 for a minute. `node` is
/// the API server's node.
fn reject_requests_of_slow(kube: &Kube<'_>, node: &Node<'_>) {
    let group = "/apis/rbac.authorization.k8s.io/v1";
    kube.create(&format!("{group}/clusterrolebindings"), &json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "slow"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "slow"}],
    }));
    let group = "/apis/flowcontrol.apiserver.k8s.io/v1";
    kube.create(
        &format!("{group}/prioritylevelconfigurations"),
        &json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": "slow"},
            "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0,
                "limitResponse": {"type": "Reject"},
            }},
        }),
    );
    kube.create(
        &format!("{group}/flowschemas"),
        &json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": {"name": "slow"},
            "spec": {
                "priorityLevelConfiguration": {"name": "slow"},
                "matchingPrecedence": 2,
                "rules": [{
                    "subjects": [{"kind": "User", "user": {"name": "slow"}}],
                    "resourceRules": [{
                        "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
                        "clusterScope": true, "namespaces": ["*"],
                    }],
                }],
            },
        }),
    );
    // With zero concurrency shares, the API server still executes one request at a time. This
    // request never ends, so all others are rejected.
    let url = kube.url();
    let hold = format!(
        "((sleep 60 | curl -sk -X POST -T - -H 'Authorization: Bearer slow' \
         {url}/api/v1/namespaces) >/dev/null 2>&1 &)"
    );
    // The new objects take effect only after the API server has processed them, so try until the
    // first rejection.
    for _ in 0..20 {
        node.sh(&hold).ok();
        for _ in 0..5 {
            if kube.call_as("slow", "GET", "/api/v1/nodes", "").code == 429 {
                return;
            }
            sleep(Duration::from_millis(100));
        }
    }
    panic!("the API server does not reject requests of the user slow");
}

// Long: a table of cases.
#[test]
fn flags_and_annotations_choose_interface_address_and_annotation_names() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Ipv4);
    let (master, worker) = (&nodes[0], &nodes[1]);
    let kube = Kube::start(master, "192.168.2.17");
    picture::create_nodes(&kube, Family::Ipv4);
    let config = net_conf(&lab, Family::Ipv4);
    let admin = kube.admin();

    // `--peers-without-annotations` routes to Nodes without annotations, and
    // `--kube-annotation-prefix` changes the names of the annotations.
    let flags = [
        config.as_str(),
        "--peers-without-annotations",
        "--kube-annotation-prefix=example.com/pods",
    ];
    let agent = start(master, &admin, &flags);
    wait_for_route(master, "10.10.1.0/24", Some("192.168.2.16"));
    wait_for_route(master, "10.10.2.0/24", Some("192.168.2.15"));
    wait_for("the annotation", || {
        let node = kube.node("master");
        node["metadata"]["annotations"]["example.com/pods-public-ip"] == "192.168.2.17"
    });
    assert_eq!(kube.annotation("master", "public-ip"), "");
    assert!(agent.stop());

    // Without these flags, Nodes without annotations are not routed, and the status gives the
    // reason.
    let agent = start(master, &admin, &[&config]);
    wait_for_route(master, "10.10.1.0/24", None);
    let peers = status(master)["peers"].to_string();
    assert!(peers.contains("kube-subnet-manager"), "{peers}");

    // By default, the interface is the one that has the Node's InternalIP, independent of the
    // default route. The annotation `node-public-ip` takes precedence over the InternalIP. The
    // annotation `public-ip-overwrite` is the address announced to the other nodes.
    worker.plug("enp0s6", &["192.168.2.116/24"]);
    worker
        .sh("ip route replace default via 192.168.2.1 dev enp0s6")
        .ok();
    let other = start(worker, &admin, &[&config]);
    wait_for_route(master, "10.10.1.0/24", Some("192.168.2.16"));
    assert_eq!(status(worker)["node"]["interface"], "enp0s5");
    kube.annotate("worker1", &[("node-public-ip", "192.168.2.116")]);
    wait_for_route(master, "10.10.1.0/24", Some("192.168.2.116"));
    assert_eq!(status(worker)["node"]["interface"], "enp0s6");
    kube.annotate("worker1", &[("public-ip-overwrite", "192.168.2.200")]);
    wait_for_route(master, "10.10.1.0/24", Some("192.168.2.200"));
    kube.annotate("worker1", &[("public-ip-overwrite", "nat")]);
    wait_for("the broken annotation is named", || {
        let reasons = reasons(worker);
        reasons.contains("public-ip-overwrite") && reasons.contains("nat")
    });
    wait_for("the condition has the reason", || {
        let condition = kube.condition("worker1", "NetworkUnavailable");
        condition["status"] == "True"
            && condition["message"]
                .to_string()
                .contains("public-ip-overwrite")
    });
    kube.annotate(
        "worker1",
        &[("public-ip-overwrite", ""), ("node-public-ip", "")],
    );
    wait_for_route(master, "10.10.1.0/24", Some("192.168.2.16"));
    wait_for("readiness", || status(worker)["ready"] == true);
    assert!(other.stop() && agent.stop());
}

/// 60 MB of Nodes, of which the agent retains very little.
#[test]
fn five_thousand_nodes_need_less_than_32_mib_of_memory() {
    let lab = Lab::new();
    let master = lab.node("master", &["192.168.2.17/24"]);
    let kube = Kube::start(&master, "192.168.2.17");
    let subnet = |i: u32| std::net::Ipv4Addr::from(0x0a0a_0000 + (i << 8));
    let address = |i: u32| std::net::Ipv4Addr::from(0xac10_1000 + i);
    let nodes = (1..=5000).map(|i| {
        let name = format!("n-{i}");
        let node = full_node(&name, &format!("{}/24", subnet(i)), &address(i).to_string());
        (node_key(&name), node)
    });
    kube.etcd().put_all(nodes);
    kube.create_node("worker1", &["10.10.0.0/24"], &["192.168.2.16"]);
    let worker = lab.node("worker1", &["192.168.2.16/24"]);
    worker.plug("ens7", &["172.16.0.1/12"]);
    lab.write("net-conf.json", r#"{"Network": "10.0.0.0/8"}"#);
    let agent = start(
        &worker,
        &kube.admin(),
        &["--net-config-path=/mnt/net-conf.json", "--iface=ens7"],
    );
    agent.wait_for_log("ready: 5000 of 5000 subnets");
    kube.annotate("n-4711", &[("public-ip", "172.31.0.1")]);
    wait_for_route(&worker, &format!("{}/24", subnet(4711)), Some("172.31.0.1"));
    kube.delete("/api/v1/nodes/n-42");
    wait_for_route(&worker, &format!("{}/24", subnet(42)), None);
    let peak = agent.peak_memory();
    eprintln!("5,000 Nodes: {peak} kB at most");
    assert!(peak <= 32 << 10, "{peak} kB");
}

#[test]
fn the_demo_succeeds_with_an_api_server() {
    let mut demo = std::process::Command::new(env!("CARGO_BIN_EXE_demo"));
    let shown = demo.env("STORE", "kube").env_remove("KEEP").output();
    let shown = shown.expect("the demo has been built with the tests");
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success(), "{text}");
    for line in [
        "Node worker1 \"10.10.1.0/24\" NetworkUnavailable=False",
        "\"flannel.alpha.coreos.com/public-ip\": \"192.168.2.16\"",
        "10.10.2.0/24 via 192.168.2.15 dev enp0s5 proto 104",
        "4 packets transmitted, 4 packets received, 0% packet loss",
        "Everything is as it should be",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
}
