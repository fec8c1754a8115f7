//! Upgrades and moves to and from flannel, in a whole Kubernetes in which traffic flows and pods come
//! and go: no packet is lost, no connection breaks, nothing is left behind.

use std::time::Duration;

use conformance::cluster::{Cluster, Families, nodes};
use conformance::{Flanneld, Lab, Node, dist, poll, repository, wait_for, wait_within};
use serde_json::json;

/// Two pods on two workers, a service of the second one, and a deployment that comes and goes.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  nodeName: worker1
  terminationGracePeriodSeconds: 0
  containers:
    - name: a
      image: registry.k8s.io/e2e-test-images/busybox:1.37.0-1
      command: [sleep, infinity]
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: b}}
spec:
  nodeName: worker2
  terminationGracePeriodSeconds: 0
  containers:
    - name: b
      image: registry.k8s.io/e2e-test-images/busybox:1.37.0-1
      command: [socat, "TCP-LISTEN:7000,fork,reuseaddr", "EXEC:cat"]
---
apiVersion: v1
kind: Service
metadata: {name: b}
spec:
  selector: {app: b}
  ports: [{port: 7000}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: churn}
spec:
  replicas: 0
  selector: {matchLabels: {app: churn}}
  template:
    metadata: {labels: {app: churn}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: churn
          image: registry.k8s.io/e2e-test-images/busybox:1.37.0-1
          command: [sleep, infinity]
"#;

/// The deployment gets six pods and none, again and again.
const CHURN: &str = "while [ ! -e /run/churn.stop ]; do KUBECTL scale deployment/churn --replicas=6 && \
     KUBECTL rollout status deployment/churn --timeout=60s && KUBECTL scale deployment/churn --replicas=0 && \
     KUBECTL wait --for=delete pod -l app=churn --timeout=60s || { echo failed; exit; }; \
     echo round >>/run/churn.rounds; done; touch /run/churn.end";

/// Traffic between the pods: two pings, which send up to 1,000 packets a second each, and two TCP connections that carry a hundred lines
/// a second each, one to the pod and one to its service.
struct Traffic<'a> {
    cluster: Cluster<'a>,
    master: &'a Node<'a>,
}

impl<'a> Traffic<'a> {
    fn start(mut cluster: Cluster<'a>, master: &'a Node<'a>) -> Self {
        cluster.apply("pods.yaml", PODS);
        cluster.kubectl("wait --for=condition=Ready pod/a pod/b --timeout=60s");
        let pod = cluster.kubectl("get pod b -o jsonpath={.status.podIP}");
        let service = cluster.kubectl("get service b -o jsonpath={.spec.clusterIP}");
        let stream = |name: &str, target: &str| {
            format!(
                "(i=0; while [ ! -e /tmp/stop ]; do echo $i; i=$((i+1)); sleep 0.01; done | \
                 tee /tmp/{name}.sent | socat -t 10 - TCP:{target}:7000 >/tmp/{name}.echo) >/dev/null 2>&1 & "
            )
        };
        let script = format!(
            "for i in 1 2; do ping -i 0.001 -q {pod} >/tmp/ping$i 2>&1 & done; {}{}sleep 1",
            stream("pod", &pod),
            stream("service", &service)
        );
        master.write("/run/traffic.sh", script);
        cluster.kubectl("exec -i a -- setsid bash </run/traffic.sh");
        let kubectl = format!("/mnt/bin/kubectl --kubeconfig={}", cluster.kube.admin());
        cluster.start_script(&CHURN.replace("KUBECTL", &kubectl));
        let traffic = Self { cluster, master };
        traffic.wait_for_rounds(1);
        traffic
    }

    /// Returns how often the pods of the deployment came and went.
    fn rounds(&self) -> usize {
        let text = self.master.sh("cat /run/churn.rounds").stdout;
        text.lines().count()
    }

    /// Waits until the pods came and went this many times more.
    fn wait_for_rounds(&self, more: usize) {
        let target = self.rounds() + more;
        let log = || self.master.sh("tail -5 /run/script.log").stdout;
        let what = format!("pods come and go: {}", log());
        wait_within(&what, Duration::from_secs(120), || self.rounds() >= target);
    }

    /// Stops everything, and checks that nothing was lost or left behind.
    fn stop(self) {
        self.master.sh("touch /run/churn.stop").ok();
        let ended = poll(Duration::from_secs(120), || {
            self.master.path("/run/churn.end").exists()
        });
        let log = self.master.sh("tail -5 /run/script.log").stdout;
        assert!(ended.is_some(), "pods come and go: {log}");
        let end = "touch /tmp/stop; pkill -INT ping; sleep 3; cat /tmp/ping?; cd /tmp; for name in pod service; do \
             [ \"$(sha256sum <$name.sent)\" = \"$(sha256sum <$name.echo)\" ] && wc -l <$name.sent; done";
        self.master.write("/run/end.sh", end);
        let text = self.cluster.kubectl("exec -i a -- bash </run/end.sh");
        let numbers = |after: &str| -> Vec<u64> {
            let before = text
                .split(after)
                .map(|before| before.split([' ', '\n']).next_back());
            before.filter_map(|word| word?.parse().ok()).collect()
        };
        let (sent, received) = (numbers(" packets transmitted"), numbers(" received,"));
        let lines: Vec<u64> = text
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect();
        let rounds = self.rounds();
        eprintln!("{sent:?} pings sent, {received:?} received, {lines:?} lines, {rounds} rounds");
        assert!(sent.len() == 2 && received.len() == 2, "{text}");
        for (sent, received) in sent.iter().zip(&received) {
            // The last ping is still on its way when ping ends.
            assert!(*sent > 5_000 && sent - received <= 1, "{text}");
        }
        assert!(
            lines.len() == 2 && lines.iter().all(|lines| *lines > 500),
            "{text}"
        );
        let is_clean = poll(Duration::from_secs(20), || self.cluster.leaks().is_empty());
        assert!(is_clean.is_some(), "{:?}", self.cluster.leaks());
        assert_eq!(self.cluster.failed_sandboxes(), Vec::<String>::new());
    }
}

#[test]
fn an_upgrade_and_a_downgrade_lose_no_packet() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Families::Ipv4);
    let cluster = Cluster::start(&nodes, Families::Ipv4, "iptables", &[]);
    cluster.import(&repository().join("target/image/next.tar"));
    let traffic = Traffic::start(cluster, &nodes[0]);
    let set_image = "-n cni-hostgw set image daemonset/cni-hostgw agent=localhost/cni-hostgw:next";
    for (command, is_next) in [
        (set_image, true),
        ("-n cni-hostgw rollout undo daemonset/cni-hostgw", false),
        (set_image, true),
    ] {
        traffic.cluster.kubectl(command);
        traffic
            .cluster
            .kubectl("-n cni-hostgw rollout status daemonset/cni-hostgw --timeout=120s");
        for node in &nodes {
            // The executables of the next image have one more line.
            let what = format!("the plugin on {} is of the other image", node.name);
            wait_for(&what, || {
                let end = node.sh("tail -c 5 /opt/cni/bin/cni-hostgw").stdout;
                (end == "next\n") == is_next
            });
        }
        traffic.wait_for_rounds(2);
    }
    traffic.stop();
}

/// Gives a node a list of the plugin `bridge`, as flannel's own plugin calls it. That one is not available as
/// a Go module.
fn configure_flannel(node: &Node<'_>, cidr: &str) {
    let list = json!({
        "cniVersion": "0.3.1", "name": "cbr0",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
                "hairpinMode": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "ranges": [[{"subnet": cidr}]],
                    "routes": [{"dst": "10.244.0.0/16"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    node.write("/etc/cni/net.d/10-flannel.conflist", list.to_string());
}

/// Returns the number of routes to other nodes' subnets that match `filter`.
fn routes(node: &Node<'_>, filter: &str) -> usize {
    let text = node.sh(&format!("ip route show root 10.244.0.0/16 {filter}"));
    let lines = text.stdout;
    lines.lines().filter(|line| line.contains(" via ")).count()
}

#[test]
fn moves_from_flannel_and_back_lose_no_packet() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Families::Ipv4);
    let cluster = Cluster::start_without_network(&nodes, Families::Ipv4, "iptables", &[]);
    let network = json!({"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}});
    lab.write("net-conf.json", network.to_string());
    let mut flanneld = Vec::new();
    for node in &nodes {
        let mut cidr = String::new();
        wait_for("a podCIDR", || {
            let spec = &cluster.kube.node(&node.name)["spec"]["podCIDR"];
            cidr = spec.as_str().unwrap_or_default().to_owned();
            !cidr.is_empty()
        });
        configure_flannel(node, &cidr);
        flanneld.push(Flanneld::start_on_kube(node, &cluster.kube));
    }
    cluster.wait_for_dns();
    // The one test of kubernetes_e2e.rs that cannot pass: it asks a server on the Internet.
    let specs = cluster.run_specs("should forward PTR records lookup", "");
    assert_eq!((specs.passed, specs.failed.len()), (0, 1), "{specs:?}");
    let traffic = Traffic::start(cluster, &nodes[0]);
    let cluster = &traffic.cluster;

    let manifest = Families::Ipv4
        .manifest()
        .replace("# - --take-over-flannel", "- --take-over-flannel")
        .replace(
            "kubernetes.io/os: linux",
            "kubernetes.io/os: linux\n        hostgw: \"true\"",
        );
    cluster.apply("cni-hostgw.yaml", &manifest);
    let minute = Duration::from_secs(60);
    for (node, flanneld) in nodes.iter().zip(flanneld) {
        flanneld.stop();
        cluster.kubectl(&format!("label node {} hostgw=true", node.name));
        wait_within("our list takes the place of flannel's", minute, || {
            let count = "cd /etc/cni/net.d && ls *.conflist && grep -l cni-hostgw *.conflist";
            node.sh(count).stdout.lines().count() == 2
        });
        cluster.kubectl("-n cni-hostgw rollout status daemonset/cni-hostgw --timeout=60s");
        assert_eq!(routes(node, "proto 104"), 2);
        traffic.wait_for_rounds(1);
    }
    lab.install(&dist().join("hostgw-agent"), "bin/hostgw-agent");
    let mut flanneld = Vec::new();
    for node in &nodes {
        let name = &node.name;
        cluster.kubectl(&format!("label node {name} hostgw-"));
        cluster.kubectl(&format!(
            "-n cni-hostgw wait --for=delete pod --field-selector=spec.nodeName={name} --timeout=60s"
        ));
        flanneld.push(Flanneld::start_on_kube(node, &cluster.kube));
        let log = || flanneld.last().map(Flanneld::log).unwrap_or_default();
        // Until flanneld has written its rules, it refuses.
        let can_hand_over = "/mnt/bin/hostgw-agent cleanup --hand-over --dry-run";
        wait_within(&format!("flanneld's rules: {}", log()), minute, || {
            node.sh(can_hand_over).success
        });
        let undo = "/mnt/bin/hostgw-agent uninstall && /mnt/bin/hostgw-agent cleanup --hand-over";
        let done = node.sh(undo).ok();
        assert_eq!(
            done.matches("handed over route 10.244.").count(),
            2,
            "{done}"
        );
        assert_eq!(
            (routes(node, "proto 104"), routes(node, "proto boot")),
            (0, 2)
        );
        assert!(node.path("/run/flannel/subnet.env").exists());
        traffic.wait_for_rounds(2);
    }
    traffic.stop();
}
