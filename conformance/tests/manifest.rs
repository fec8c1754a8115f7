//! `examples/kubernetes/cni-hostgw.yaml` on a real API server: what it takes, and what it grants.

use conformance::kubelet::wait_long;
use conformance::reference_picture::{self as picture, Family};
use conformance::{Agent, Kube, Lab, Node, manifest, wait_for};
use serde_json::{Value, json};

/// A token of the manifest's service account, which holds until its `Secret` is deleted.
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

/// What a pod is given: a token, and who signed the API server's certificate.
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
    Agent::start_in(node, &variables, &["--kube-subnet-mgr", config, "-v=1"])
}

/// Its pod is admitted where everything is, and elsewhere only its nature is against it.
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
    let said = refused.body["message"].as_str().unwrap_or_default();
    let of_its_nature = "non-default capabilities (container \"agent\" must not include \
        \"NET_ADMIN\", \"NET_RAW\" in securityContext.capabilities.add), \
        host namespaces (hostNetwork=true), \
        hostPath volumes (volumes \"subnet-file\", \"socket\", \"state\", \"plugins\", \"lists\", \"settings\")";
    assert!(
        said.ends_with(&format!("\"baseline:latest\": {of_its_nature}")),
        "{said}"
    );
}

#[test]
fn the_manifest_is_taken_as_it_is_and_grants_what_is_needed_and_no_more() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Dual);
    let (master, worker) = (&nodes[0], &nodes[1]);
    let kube = Kube::start(master, "192.168.2.17");
    picture::create_nodes(&kube, Family::Dual);
    lab.write("net-conf.json", picture::network(Family::Dual).to_string());
    let config = format!("--net-config-path={}", Lab::path("net-conf.json").display());
    manifest::apply(&kube, str::to_owned);

    is_admitted(&kube);

    // Exactly its role: everything works. (master is announced by hand.)
    let announced = [
        ("kube-subnet-manager", "true"),
        ("backend-type", "host-gw"),
        ("public-ip", "192.168.2.17"),
    ];
    kube.annotate("master", &announced);
    give_token(worker, &token(&kube, "first"));
    let agent = start_as_pod(worker, &config);
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
    // It may tell of itself, too.
    let good = picture::network(Family::Dual).to_string();
    lab.write("net-conf.json", r#"{"Network": "10.99.0.0/16"}"#);
    let is_told = || {
        let events = kube.events("worker1");
        events
            .iter()
            .any(|event| event.contains("not within Network 10.99.0.0/16"))
    };
    wait_for("an event", is_told);
    wait_for("the condition with the reason", || {
        kube.condition("worker1", "NetworkUnavailable")["status"] == "True"
    });
    lab.write("net-conf.json", &good);
    wait_for("the condition", || {
        kube.condition("worker1", "NetworkUnavailable")["status"] == "False"
    });
    worker.sh("ip link set enp0s5 down").ok();
    std::thread::sleep(std::time::Duration::from_secs(5));
    worker
        .sh("ip link set enp0s5 up; ip route add default via 192.168.2.1")
        .ok();
    wait_for("readiness", || {
        worker
            .sh("/mnt/bin/hostgw-agent status")
            .stdout
            .contains("ready      yes")
    });

    // Another token comes, and the old one goes.
    let second = token(&kube, "second");
    kube.delete(&format!(
        "/api/v1/namespaces/{}/secrets/first",
        manifest::NAME
    ));
    give_token(worker, &second);
    // So long the API server believes a token that it has seen.
    std::thread::sleep(std::time::Duration::from_secs(12));
    let key = "flannel.alpha.coreos.com/public-ip";
    kube.patch(
        "/api/v1/nodes/worker1",
        &json!({"metadata": {"annotations": {key: null}}}),
    );
    wait_for("the annotation comes back", || {
        kube.annotation("worker1", "public-ip") == "192.168.2.16"
    });
    let log = agent.log();
    assert!(!log.contains("is forbidden: User"), "{log}");
    drop(agent);

    each_part_is_needed(&kube, worker, &config);
    kube.delete("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles/cni-hostgw");
    lab.write("net-conf.json", r#"{"Network": "10.99.0.0/16"}"#);
    let agent = start_as_pod(worker, &config);
    agent.wait_for_log("cannot create resource \"events\"");
}

/// Without any part of the role, something does not work, and works once it is granted.
fn each_part_is_needed(kube: &Kube<'_>, worker: &Node<'_>, config: &str) {
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
        assert!(!log.contains("\\u0000"), "words, not bytes: {log}");
    }
    // What was refused comes once it is granted.
    kube.patch(
        "/api/v1/nodes/worker1/status",
        &json!({"status": {"conditions": [{"type": "NetworkUnavailable", "$patch": "delete"}]}}),
    );
    let condition = || kube.condition("worker1", "NetworkUnavailable")["status"].clone();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(condition(), Value::Null, "it may not be written");
    grant(all);
    wait_long("what was refused", 60, || {
        condition() == "False" && kube.annotation("worker1", "public-ip") == "192.168.2.16"
    });
}
