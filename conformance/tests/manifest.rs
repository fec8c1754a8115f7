//! `examples/kubernetes/cni-hostgw.yaml` on a real API server: whether it is accepted, and what it
//! permits.

use std::time::Duration;

use conformance::reference_picture::{self as picture, Family};
use conformance::{Agent, Kube, Lab, Node, manifest, wait_for, wait_within};
use serde_json::{Value, json};

/// Returns a token of the manifest's service account, which is valid until its `Secret` is deleted.
fn token(kube: &Kube<'_>, name: &str) -> String {
    let secrets = format!("/api/v1/namespaces/{}/secrets", manifest::NAME);
    kube.create(
        &secrets,
        &json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        }),
    );
    let path = format!(
        "/api/v1/namespaces/{0}/serviceaccounts/{0}/token",
        manifest::NAME
    );
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": name}},
    });
    let answer = kube.call("POST", &path, &request.to_string()).ok();
    answer["status"]["token"]
        .as_str()
        .expect("a token")
        .to_owned()
}

/// Writes what a pod gets from its service account: a token, the namespace and the API server's CA.
fn give_token(node: &Node<'_>, token: &str) {
    let folder = "/run/secrets/kubernetes.io/serviceaccount";
    node.write(&format!("{folder}/.token"), token);
    node.write(&format!("{folder}/namespace"), manifest::NAME);
    node.sh(&format!(
        "mv {folder}/.token {folder}/token; cp /mnt/kube/ca.crt {folder}/"
    ))
    .ok();
}

fn start_as_pod(node: &Node<'_>, config: &str) -> Agent {
    node.sh("rm -f /run/hostgw-agent.log").ok();
    let variables = [
        ("KUBERNETES_SERVICE_HOST", "192.168.2.17"),
        ("KUBERNETES_SERVICE_PORT", "6443"),
        ("NODE_NAME", &node.name),
    ];
    Agent::start_with_env(node, &variables, &["--kube-subnet-mgr", config, "-v=1"])
}

/// Checks that the `DaemonSet`'s pod is admitted in the manifest's namespace, and that elsewhere Pod
/// Security rejects it only for what it cannot do without.
fn is_admitted(kube: &Kube<'_>) {
    let pod = manifest::pod(kube, "worker1").to_string();
    let try_in = |namespace: &str| {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict");
        kube.call("POST", &path, &pod)
    };
    let admitted = try_in(manifest::NAME);
    assert_eq!(admitted.code, 201, "{admitted:?}");
    assert_eq!(admitted.body["spec"]["priority"], 2_000_001_000);
    kube.create("/api/v1/namespaces", &json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "baseline", "labels": {"pod-security.kubernetes.io/enforce": "baseline"}},
    }));
    kube.create(
        "/api/v1/namespaces/baseline/serviceaccounts",
        &json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": manifest::NAME},
        }),
    );
    let refused = try_in("baseline");
    assert_eq!(refused.code, 403);
    let message = refused.body["message"].as_str().unwrap_or_default();
    let unavoidable_violations = "non-default capabilities (container \"agent\" must not include \
        \"NET_ADMIN\", \"NET_RAW\" in securityContext.capabilities.add), \
        host namespaces (hostNetwork=true), \
        hostPath volumes (volumes \"subnet-file\", \"socket\", \"state\", \"plugins\", \"lists\", \
        \"host-ports\", \"results\", \"settings\")";
    assert!(
        message.ends_with(&format!("\"baseline:latest\": {unavoidable_violations}")),
        "{message}"
    );
}

#[test]
fn the_manifest_is_accepted_and_grants_exactly_the_needed_permissions() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Dual);
    let (master, worker) = (&nodes[0], &nodes[1]);
    let kube = Kube::start(master, "192.168.2.17");
    picture::create_nodes(&kube, Family::Dual);
    lab.write("net-conf.json", picture::network(Family::Dual).to_string());
    let config = format!("--net-config-path={}", Lab::path("net-conf.json").display());
    manifest::apply(&kube, str::to_owned);

    is_admitted(&kube);

    // With exactly its role, everything works. (The test writes the annotations of `master`
    // itself.)
    let announced = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("public-ip", "192.168.2.17"),
    ];
    kube.annotate("master", &announced);
    give_token(worker, &token(&kube, "first"));
    let agent = start_as_pod(worker, &config);
    works_with_exactly_its_role(&lab, &kube, worker);
    uses_a_replaced_token(&kube, worker);
    let log = agent.log();
    assert!(!log.contains("is forbidden: User"), "{log}");
    drop(agent);

    check_each_rule_is_needed(&kube, worker, &config);
    kube.delete("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/cni-hostgw");
    lab.write("net-conf.json", r#"{"Network": "10.99.0.0/16"}"#);
    let agent = start_as_pod(worker, &config);
    agent.wait_for_log("cannot create resource \"events\"");
}

/// Reads Nodes, and writes the annotations, the condition and the events of its own Node.
fn works_with_exactly_its_role(lab: &Lab, kube: &Kube<'_>, worker: &Node<'_>) {
    wait_for("the annotation", || {
        kube.annotation("worker1", "public-ip") == "192.168.2.16"
    });
    wait_for("the condition", || {
        kube.condition("worker1", "NetworkUnavailable")["status"] == "False"
    });
    wait_for("a route to master", || {
        let routes = worker.sh("ip route").stdout;
        routes.contains("10.10.0.0/24 via 192.168.2.17")
    });
    // The agent may create events about its own node, too.
    let good = picture::network(Family::Dual).to_string();
    lab.write("net-conf.json", r#"{"Network": "10.99.0.0/16"}"#);
    let has_event = || {
        let events = kube.events("worker1");
        events
            .iter()
            .any(|event| event.contains("not within Network 10.99.0.0/16"))
    };
    wait_for("an event", has_event);
    wait_for("the condition with the reason", || {
        kube.condition("worker1", "NetworkUnavailable")["status"] == "True"
    });
    lab.write("net-conf.json", &good);
    wait_for("the condition", || {
        kube.condition("worker1", "NetworkUnavailable")["status"] == "False"
    });
    worker.sh("ip link set enp0s5 down").ok();
    std::thread::sleep(Duration::from_secs(5));
    worker
        .sh("ip link set enp0s5 up; ip route add default via 192.168.2.1")
        .ok();
    wait_for("readiness", || {
        worker
            .sh("/mnt/bin/hostgw-agent status")
            .stdout
            .contains("ready      yes")
    });
}

/// The token is replaced, and the old one is revoked.
fn uses_a_replaced_token(kube: &Kube<'_>, worker: &Node<'_>) {
    let second = token(kube, "second");
    kube.delete(&format!(
        "/api/v1/namespaces/{}/secrets/first",
        manifest::NAME
    ));
    give_token(worker, &second);
    // The API server caches a token that it has seen for this long.
    std::thread::sleep(Duration::from_secs(12));
    let key = "flannel.alpha.coreos.com/public-ip";
    kube.patch(
        "/api/v1/nodes/worker1",
        &json!({"metadata": {"annotations": {key: null}}}),
    );
    wait_for("the annotation is restored", || {
        kube.annotation("worker1", "public-ip") == "192.168.2.16"
    });
}

/// Checks that something fails without each part of the role, and works again once the part is
/// granted.
fn check_each_rule_is_needed(kube: &Kube<'_>, worker: &Node<'_>, config: &str) {
    let key = "flannel.alpha.coreos.com/public-ip";
    let cluster_role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/cni-hostgw";
    let all = kube.get(cluster_role)["rules"].clone();
    let nodes_alone = |verbs: &[&str]| {
        json!([
            {"apiGroups": [""], "resources": ["nodes"], "verbs": verbs},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        ])
    };
    let reading = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}]);
    let grant = |rules: Value| {
        let mut role = kube.get(cluster_role);
        role["rules"] = rules;
        kube.call("PUT", cluster_role, &role.to_string()).ok();
    };
    let mut agent = None;
    for (rules, missing) in [
        (nodes_alone(&["watch"]), "cannot list resource \"nodes\""),
        (nodes_alone(&["list"]), "cannot watch resource \"nodes\""),
        (reading, "cannot patch resource \"nodes/status\""),
    ] {
        grant(rules);
        kube.patch(
            "/api/v1/nodes/worker1",
            &json!({"metadata": {"annotations": {key: null}}}),
        );
        drop(agent.take());
        let started = agent.insert(start_as_pod(worker, config));
        started.wait_for_log(missing);
        let log = started.log();
        assert!(
            !log.contains('\0') && !log.contains("\\0"),
            "the log has text, not binary data: {log}"
        );
    }
    // What was rejected succeeds once it is granted.
    kube.patch(
        "/api/v1/nodes/worker1/status",
        &json!({"status": {"conditions": [{"type": "NetworkUnavailable", "$patch": "delete"}]}}),
    );
    let condition = || kube.condition("worker1", "NetworkUnavailable")["status"].clone();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        condition(),
        Value::Null,
        "the condition must not be written without permission"
    );
    grant(all);
    wait_within(
        "the condition and the annotation are written",
        Duration::from_secs(60),
        || condition() == "False" && kube.annotation("worker1", "public-ip") == "192.168.2.16",
    );
}
