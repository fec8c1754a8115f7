//! From an empty node to running pods: a real kube-apiserver, kubelet and containerd, and the agent
//! from its image, started as the manifest's `DaemonSet` would start it.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use conformance::kubelet::pod;
use conformance::reference_picture::{self as picture, Family};
use conformance::{
    Agent, Kube, Kubelet, Lab, Node, Release, dist, image, manifest, wait_for, wait_within,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// Starts an API server on `master`, applies the manifest, and starts an agent on `master`, which
/// has no pods.
fn control_plane<'a>(master: &'a Node<'a>) -> (Kube<'a>, Agent) {
    let kube = Kube::start(master, "192.168.2.17");
    kube.prepare("default");
    manifest::apply(&kube, |document| {
        document
            .replace("10.244.0.0/16", "10.10.0.0/16")
            // There is no kube-proxy.
            .replace("# - --kube-api-url", "- --kube-api-url")
    });
    kube.prepare(manifest::NAME);
    kube.create_node("master", &["10.10.0.0/24"], &["192.168.2.17"]);
    let lab = master.lab();
    lab.write(
        "net-conf.json",
        manifest::file("net-conf.json").replace("10.244", "10.10"),
    );
    let kubeconfig = format!("--kubeconfig-file={}", kube.admin());
    let args = [
        "--kube-subnet-mgr",
        &kubeconfig,
        "--net-config-path=/mnt/net-conf.json",
        "--node-name=master",
    ];
    let agent = Agent::start(master, &args);
    (kube, agent)
}

/// Runs the agent on a node as the manifest's `DaemonSet` would. `change` edits the pod first.
fn run_agent(kube: &Kube<'_>, kubelet: &Kubelet<'_>, node: &str, change: impl Fn(&mut Value)) {
    kubelet.containerd.import(&image(""));
    let mut pod = manifest::pod(kube, node);
    change(&mut pod);
    kube.create(&format!("/api/v1/namespaces/{}/pods", manifest::NAME), &pod);
}

/// Assigns a subnet to a Node, as the control plane does.
fn assign(kube: &Kube<'_>, node: &str, cidr: &str) {
    let change = json!({"spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
    kube.patch(&format!("/api/v1/nodes/{node}"), &change);
}

fn is_ready(kube: &Kube<'_>, node: &str) -> bool {
    kube.condition(node, "Ready")["status"] == "True"
}

/// Waits until a Node is ready. On timeout, the message includes the logs of its agent and kubelet.
fn wait_for_ready(kube: &Kube<'_>, kubelet: &Kubelet<'_>, node: &str) {
    for _ in 0..600 {
        if is_ready(kube, node) {
            return;
        }
        sleep(Duration::from_millis(100));
    }
    panic!(
        "{node} is not ready: {:#}\n{}\n{}",
        kube.node(node)["status"]["conditions"],
        kubelet
            .containerd
            .sh("cat /var/log/pods/cni-hostgw_*/agent/*.log | tail -30")
            .stdout,
        kubelet
            .containerd
            .sh("grep -E '^[EF]' /run/kubelet.log | tail -20")
            .stdout,
    );
}

/// Returns the addresses of all running pods whose names begin with `begin`.
fn addresses(kube: &Kube<'_>, begin: &str) -> Vec<String> {
    let all = kube.get(PODS);
    let pods = all["items"].as_array().into_iter().flatten();
    let running = pods.filter(|pod| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let is_running = |status: &Value| !status["state"]["running"].is_null();
        let containers = pod["status"]["containerStatuses"].as_array();
        name.starts_with(begin) && containers.is_some_and(|all| all.iter().all(is_running))
    });
    running
        .filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned))
        .collect()
}

fn wait_for_pods(kube: &Kube<'_>, begin: &str, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    wait_within(
        &format!("{count} pods {begin} run"),
        Duration::from_secs(90),
        || {
            all = addresses(kube, begin);
            all.len() == count
        },
    );
    all
}

/// Returns the messages of events about pod sandboxes that could not be created.
fn failures(kube: &Kube<'_>) -> Vec<String> {
    let all = kube.get("/api/v1/namespaces/default/events");
    let events = all["items"].as_array().into_iter().flatten();
    let failed = events.filter(|event| event["reason"] == "FailedCreatePodSandBox");
    failed.map(|event| event["message"].to_string()).collect()
}

/// Returns the addresses that are reserved in a node's address store.
fn reserved_addresses(node: &Node<'_>) -> BTreeSet<String> {
    let all = node
        .sh("cd /var/lib/cni/networks/cbr0 2>/dev/null && ls")
        .stdout;
    let names = all.lines().filter(|name| name.starts_with("10."));
    names.map(str::to_owned).collect()
}

/// Returns what a node has of pods: number of ports, reserved addresses, rules, and files.
fn traces(node: &Node<'_>) -> (usize, BTreeSet<String>, String, String) {
    let rules = "iptables-save -t nat | grep -E 'CNI-(DN|SN)-'; nft list tables | grep cni-hostgw-";
    let files = "ls /var/lib/cni/networks/cbr0/.attachments /var/lib/cni/results /var/lib/cni/flannel 2>/dev/null | grep -vE '^$|:$|^boot_id$|^settings$'";
    (
        node.ports().len(),
        reserved_addresses(node),
        node.sh(rules).stdout,
        node.sh(files).stdout,
    )
}

/// A ping that runs ten times a second until it is stopped.
struct Ping(Child);

impl Ping {
    fn start(kubelet: &Kubelet<'_>, node: &Node<'_>, pod: &str, to: &str) -> Self {
        let inner = node.command("nsenter");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .arg(format!("--net={}", kubelet.netns(pod)))
            .args(["timeout", "-s", "INT", "300"])
            .args(["busybox", "ping", "-i", "0.1", "-W", "1", to])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.expect("setpriv is part of every Debian"))
    }

    /// Returns the number of packets sent and the number of packets received.
    fn stop(mut self) -> (usize, usize) {
        // `timeout` passes the signal on to ping, which then prints its summary.
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child process has an id"), Signal::INT)
            .expect("the process is running");
        let stdout = self.0.stdout.take().expect("the stream is piped");
        let text = std::io::read_to_string(stdout).expect("text");
        drop(self.0.wait());
        let summary = text
            .lines()
            .find(|line| line.contains("packets transmitted"));
        let summary = summary.unwrap_or_else(|| panic!("no summary: {text}"));
        let mut numbers = summary
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

/// Two nodes with kubelet and containerd, and their API server.
struct Cluster<'a> {
    kube: &'a Kube<'a>,
    workers: [&'a Node<'a>; 2],
    kubelets: [Kubelet<'a>; 2],
}

#[test]
fn an_empty_node_becomes_ready_runs_pods_and_survives_restarts_of_every_component() {
    let lab = Lab::new();
    let nodes = picture::nodes(&lab, Family::Ipv4);
    let (kube, _agent) = control_plane(&nodes[0]);
    let start =
        |i: usize, release, address| Kubelet::start(&nodes[i], release, address, Some(&kube));
    let cluster = Cluster {
        kube: &kube,
        workers: [&nodes[1], &nodes[2]],
        kubelets: [
            start(1, Release::Newest, "192.168.2.16"),
            start(2, Release::Debian, "192.168.2.15"),
        ],
    };
    cluster.nodes_become_ready();
    let (client, web) = cluster.pods_reach_each_other();
    cluster.start_and_delete_sixty_pods(&client);
    cluster.restart_everything(&web);
    // After all pods have been deleted, nothing of them is left.
    for name in ["web", "client"] {
        kube.delete(&format!("{PODS}/{name}"));
    }
    let nothing = (0, BTreeSet::new(), String::new(), String::new());
    for node in cluster.workers {
        for _ in 0..300 {
            if traces(node) == nothing {
                break;
            }
            sleep(Duration::from_millis(100));
        }
        assert_eq!(traces(node), nothing, "what is left on {}", node.name);
    }
}

/// How long the agent's probes are watched. kubelet restarts a container that does not answer for a
/// minute and a half.
const PROBE_OBSERVATION_TIME: Duration = Duration::from_secs(300);

// Long: one scenario, in which each step needs the steps before.
#[test]
fn in_an_ipv6_only_cluster_the_agent_answers_its_probes() {
    let lab = Lab::new();
    let master = lab.node("master", &["fd00:192:168:2::17/64"]);
    let worker = lab.node("worker1", &["fd00:192:168:2::16/64"]);
    let kube = Kube::start(&master, "fd00:192:168:2::17");
    kube.prepare("default");
    manifest::apply(&kube, |document| {
        document
            .replace(
                "\"Network\": \"10.244.0.0/16\"",
                "\"EnableIPv4\": false, \"EnableIPv6\": true, \"IPv6Network\": \"fd00:10:10::/48\"",
            )
            // There is no kube-proxy.
            .replace("# - --kube-api-url", "- --kube-api-url")
            .replace(
                "https://192.168.2.17:6443",
                "https://[fd00:192:168:2::17]:6443",
            )
    });
    kube.prepare(manifest::NAME);
    let kubelet = Kubelet::start(&worker, Release::Newest, "fd00:192:168:2::16", Some(&kube));
    wait_for("kubelet registers", || {
        kube.call("GET", "/api/v1/nodes/worker1", "").code == 200
    });
    assign(&kube, "worker1", "fd00:10:10:1::/64");
    run_agent(&kube, &kubelet, "worker1", |_| {});
    wait_for_ready(&kube, &kubelet, "worker1");
    let path = format!("/api/v1/namespaces/{}/pods/{0}-worker1", manifest::NAME);
    let container = || kube.get(&path)["status"]["containerStatuses"][0].clone();
    wait_within(
        "the agent's probe is answered",
        Duration::from_secs(60),
        || container()["ready"] == true,
    );
    // The sysctls in the container are read-only. The manifest mounts the node's /proc/sys/net
    // instead.
    assert_eq!(
        worker
            .sh("cat /proc/sys/net/ipv6/conf/all/forwarding")
            .ok()
            .trim(),
        "1"
    );
    worker
        .sh("echo 0 >/proc/sys/net/ipv6/conf/all/forwarding")
        .ok();
    wait_for("the node forwards again", || {
        worker
            .sh("cat /proc/sys/net/ipv6/conf/all/forwarding")
            .ok()
            .trim()
            == "1"
    });
    kube.create(PODS, &pod("a", "worker1", "sleep 1000", &json!({})));
    let addresses = wait_for_pods(&kube, "a", 1);
    assert!(addresses[0].starts_with("fd00:10:10:1:"), "{addresses:?}");
    sleep(PROBE_OBSERVATION_TIME);
    let status = container();
    assert_eq!(status["restartCount"], 0, "{status:#}");
    assert_eq!(status["ready"], true, "{status:#}");
}

impl Cluster<'_> {
    /// kubelet registers the node. The agent starts before a subnet is assigned, and the node
    /// becomes ready only with both.
    fn nodes_become_ready(&self) {
        let (kube, [worker1, worker2], [kubelet1, kubelet2]) =
            (self.kube, self.workers, &self.kubelets);
        for node in ["worker1", "worker2"] {
            let path = format!("/api/v1/nodes/{node}");
            wait_for("kubelet registers", || {
                kube.call("GET", &path, "").code == 200
            });
        }
        let ready = kube.condition("worker1", "Ready");
        assert_eq!(ready["status"], "False", "{ready}");
        assert!(
            ready["message"]
                .to_string()
                .contains("cni plugin not initialized"),
            "{ready}"
        );

        // At first, the agent installs only the plugin executable.
        run_agent(kube, kubelet1, "worker1", |_| {});
        kubelet2.containerd.import(&image("-iptables-legacy"));
        run_agent(kube, kubelet2, "worker2", with_legacy_iptables);
        wait_within(
            "the agent reports that it waits for a podCIDR",
            Duration::from_secs(60),
            || {
                let message =
                    kube.condition("worker1", "NetworkUnavailable")["message"].to_string();
                message.contains("Node worker1 has no podCIDR yet")
            },
        );
        assert!(worker1.path("/opt/cni/bin/cni-hostgw").exists());
        assert_eq!(worker1.sh("ls /etc/cni/net.d").stdout, "");
        assert!(!is_ready(kube, "worker1"));
        // A node on which iptables-legacy drops forwarded packets, as Docker configures it.
        worker2.sh("iptables-legacy -P FORWARD DROP").ok();
        assign(kube, "worker1", "10.10.1.0/24");
        assign(kube, "worker2", "10.10.2.0/24");
        for (kubelet, node) in [(kubelet1, "worker1"), (kubelet2, "worker2")] {
            wait_for_ready(kube, kubelet, node);
            assert_eq!(
                kube.condition(node, "NetworkUnavailable")["status"],
                "False"
            );
        }
        for (node, host) in [("master", 17), ("worker1", 16), ("worker2", 15)] {
            assert_eq!(
                kube.annotation(node, "public-ip"),
                format!("192.168.2.{host}")
            );
        }
        let list = std::fs::read_to_string(worker1.path("/etc/cni/net.d/10-cni-hostgw.conflist"));
        assert_eq!(
            list.expect("a ready node has the conflist"),
            manifest::file("cni-conf.json")
        );
        let routes = picture::routes(&worker1.sh("ip route show root 10.10.0.0/16").ok());
        assert_eq!(routes, picture::node_routes("worker1", false));
    }

    /// Checks that pods of both nodes reach each other by ping and TCP, and that a pod is reachable
    /// by a host port. Returns the addresses of `client` on the first node and of `web` on the
    /// second.
    fn pods_reach_each_other(&self) -> (String, String) {
        let (kube, kubelet) = (self.kube, &self.kubelets[0]);
        let serve = "dd if=/dev/urandom of=/tmp/file bs=1M count=8; sha256sum /tmp/file | cut -c-64 >/tmp/sum; exec httpd -f -p 80 -h /tmp";
        let port = json!({"ports": [{"containerPort": 80, "hostPort": 8080}]});
        kube.create(PODS, &pod("web", "worker2", serve, &port));
        kube.create(PODS, &pod("client", "worker1", "sleep 100000", &json!({})));
        let web = wait_for_pods(kube, "web", 1).remove(0);
        let client = wait_for_pods(kube, "client", 1).remove(0);
        assert!(
            web.starts_with("10.10.2.") && client.starts_with("10.10.1."),
            "{web} {client}"
        );
        let ping = format!("busybox ping -c 3 -i 0.2 -W 2 {web}");
        kubelet.in_pod("client", &ping).ok();
        wait_for("the server is up", || {
            let sum = format!("busybox wget -q -O - http://{web}/sum");
            kubelet.in_pod("client", &sum).stdout.len() == 65
        });
        let fetch = |from: &str| {
            format!(
                "busybox wget -q -O - http://{from}/file | sha256sum | cut -c-64; busybox wget -q -O - http://{from}/sum"
            )
        };
        let whole = |text: String| {
            let lines: Vec<_> = text.lines().collect();
            lines.len() == 2 && lines[0] == lines[1] && lines[0].len() == 64
        };
        assert!(whole(kubelet.in_pod("client", &fetch(&web)).ok()));
        assert!(whole(self.workers[0].sh(&fetch("192.168.2.15:8080")).ok()));
        let table = self.workers[1].sh("nft list table inet cni-hostgw").ok();
        assert!(
            table.contains("tcp . 8080") && table.contains("/web"),
            "the host port is in the table: {table}"
        );
        (client, web)
    }

    /// Starts sixty pods at once, then deletes them.
    fn start_and_delete_sixty_pods(&self, client: &String) {
        let (kube, worker) = (self.kube, self.workers[0]);
        let before = traces(worker);
        let begin = Instant::now();
        for i in 0..60 {
            let name = format!("many-{i}");
            kube.create(PODS, &pod(&name, "worker1", "sleep 100000", &json!({})));
        }
        let all = wait_for_pods(kube, "many-", 60);
        eprintln!("60 pods run after {:.1} s", begin.elapsed().as_secs_f64());
        let distinct: BTreeSet<_> = all.iter().chain([client]).collect();
        assert_eq!(distinct.len(), 61, "{all:?}");
        assert_eq!(reserved_addresses(worker).len(), 61);
        // Events are there at all.
        let events = kube.get("/api/v1/namespaces/default/events");
        let mut events = events["items"].as_array().into_iter().flatten();
        assert!(events.any(|event| event["reason"] == "Started"));
        assert_eq!(failures(kube), [""; 0]);
        for i in 0..60 {
            kube.delete(&format!("{PODS}/many-{i}"));
        }
        wait_within(
            "sixty sandboxes are removed",
            Duration::from_secs(60),
            || self.kubelets[0].sandboxes() == 2,
        );
        wait_for("nothing is left of the sixty pods", || {
            traces(worker) == before
        });
    }

    /// Kills kubelet, containerd and the agent on both nodes, and checks that pods lose no packet.
    fn restart_everything(&self, web: &str) {
        let (kube, [worker1, worker2], kubelets) = (self.kube, self.workers, &self.kubelets);
        let ping = Ping::start(&kubelets[0], worker1, "client", web);
        let before = (traces(worker1), traces(worker2));
        sleep(Duration::from_secs(1));
        for kubelet in kubelets {
            kubelet.restart();
            sleep(Duration::from_secs(1));
            kubelet.containerd.kill(false);
            kubelet.containerd.wait_for_cri();
            let old = kubelet.containerd.sh("pidof hostgw-agent").ok();
            kubelet.containerd.sh(&format!("kill -9 {old}")).ok();
            wait_within(
                "the agent has been restarted",
                Duration::from_secs(60),
                || {
                    let new = kubelet.containerd.sh("pidof hostgw-agent");
                    new.success && new.stdout != old
                },
            );
        }
        sleep(Duration::from_secs(3));
        for (kubelet, node) in kubelets.iter().zip(["worker1", "worker2"]) {
            wait_for_ready(kube, kubelet, node);
        }
        // A pod that is created now gets a network like any other.
        kube.create(PODS, &pod("late", "worker1", "sleep 100000", &json!({})));
        wait_for_pods(kube, "late", 1);
        let (sent, received) = ping.stop();
        eprintln!("{sent} pings while everything was restarted");
        assert!(
            sent > 60 && sent == received,
            "{sent} sent, {received} received"
        );
        kube.delete(&format!("{PODS}/late"));
        wait_for("no trace of the deleted pod is left", || {
            (traces(worker1), traces(worker2)) == before
        });
    }
}

/// Selects the image with iptables-legacy, and mounts the lock file that all users of
/// iptables-legacy share.
fn with_legacy_iptables(pod: &mut Value) {
    let container = &mut pod["spec"]["containers"][0];
    let image = container["image"].as_str().unwrap_or_default().to_owned();
    container["image"] = format!("{image}-iptables-legacy").into();
    let mounts = container["volumeMounts"]
        .as_array_mut()
        .expect("the container has mounts");
    mounts.push(json!({"name": "lock", "mountPath": "/run/xtables.lock"}));
    let volumes = pod["spec"]["volumes"]
        .as_array_mut()
        .expect("the pod has volumes");
    volumes.push(json!({
        "name": "lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"},
    }));
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn pods_run_again_after_a_reboot() {
    let lab = Lab::new();
    let master = lab.node("master", &["192.168.2.17/24"]);
    let (kube, _agent) = control_plane(&master);
    let worker = lab.node("worker1", &["192.168.2.16/24"]);
    let kubelet = Kubelet::start(&worker, Release::Debian, "192.168.2.16", Some(&kube));
    wait_for("kubelet registers", || {
        kube.call("GET", "/api/v1/nodes/worker1", "").code == 200
    });
    assign(&kube, "worker1", "10.10.1.0/24");
    run_agent(&kube, &kubelet, "worker1", |_| {});
    wait_for_ready(&kube, &kubelet, "worker1");
    for i in 0..5 {
        kube.create(
            PODS,
            &pod(&format!("a-{i}"), "worker1", "sleep 100000", &json!({})),
        );
    }
    let before = wait_for_pods(&kube, "a-", 5);
    assert_eq!(reserved_addresses(&worker).len(), 5);

    // Power loss: only the files on disk survive.
    drop(kubelet);
    worker
        .sh("tar -C / --one-file-system -cf /mnt/disk.tar var/lib/cni var/lib/hostgw var/lib/kubelet var/lib/containerd-test etc/cni opt/cni")
        .ok();
    drop(worker);
    let worker = lab.node("worker1", &["192.168.2.16/24"]);
    worker.sh("tar -C / -xf /mnt/disk.tar var/lib").ok();
    worker.write(
        "/run/sysctl/kernel.random.boot_id",
        "0b0074ed-0000-4000-8000-00000000b007\n",
    );
    let kubelet = Kubelet::start_on_hold(&worker, Release::Debian, "192.168.2.16", Some(&kube));
    worker.sh("tar -C / -xf /mnt/disk.tar etc/cni opt/cni").ok();
    assert_eq!(
        reserved_addresses(&worker).len(),
        5,
        "the reservations on disk"
    );
    worker.sh("rm /run/kubelet.hold").ok();
    kubelet.wait();
    wait_within(
        "new sandboxes for all pods",
        Duration::from_secs(120),
        || kubelet.sandboxes() == 6,
    );
    let mut after = Vec::new();
    wait_within(
        "all pods have addresses of this boot",
        Duration::from_secs(60),
        || {
            after = addresses(&kube, "a-");
            let distinct: BTreeSet<_> = after.iter().cloned().collect();
            after.len() == 5 && distinct == reserved_addresses(&worker)
        },
    );
    eprintln!("before {before:?}, after {after:?}");
    for i in 0..5 {
        let pod = format!("a-{i}");
        kubelet
            .in_pod(&pod, "busybox ping -c 2 -i 0.2 -W 2 192.168.2.17")
            .ok();
    }
    wait_for("one port for each pod", || worker.ports().len() == 5);
    // No address has leaked: after all pods have been deleted, no reservation is left.
    for i in 0..5 {
        kube.delete(&format!("{PODS}/a-{i}"));
    }
    wait_within("no address is reserved", Duration::from_secs(30), || {
        reserved_addresses(&worker).is_empty()
    });
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn kubelet_without_an_api_server_runs_static_pods_with_a_cluster_file() {
    let lab = Lab::new();
    let nodes = [
        lab.node("worker1", &["192.168.2.16/24"]),
        lab.node("worker2", &["192.168.2.15/24"]),
    ];
    lab.write("cluster.json", picture::cluster(Family::Ipv4, &["master"]));
    lab.install(&dist().join("cni-hostgw"), "bin/cni-hostgw");
    let agents: Vec<_> = nodes
        .iter()
        .map(|node| Agent::start(node, &["--cluster=/mnt/cluster.json"]))
        .collect();
    let releases = [
        (Release::Newest, "192.168.2.16"),
        (Release::Debian, "192.168.2.15"),
    ];
    let kubelets: Vec<_> = nodes
        .iter()
        .zip(releases)
        .map(|(node, (release, address))| Kubelet::start(node, release, address, None))
        .collect();
    for (i, node) in nodes.iter().enumerate() {
        let manifest = pod(
            &format!("static-{i}"),
            &node.name,
            "exec httpd -f -p 80 -h /bin",
            &json!({}),
        );
        node.write("/etc/kubernetes/manifests/pod.json", manifest.to_string());
        let installed = node.sh("/mnt/bin/hostgw-agent install").ok();
        assert!(
            installed.contains("/etc/cni/net.d/10-cni-hostgw.conflist"),
            "{installed}"
        );
    }
    let mut found = Vec::new();
    for (i, kubelet) in kubelets.iter().enumerate() {
        let name = format!("static-{i}-{}", nodes[i].name);
        wait_within("a static pod", Duration::from_secs(60), || {
            !kubelet.sandbox(&name).is_empty()
        });
        found.push(name);
    }
    let address = kubelets[1]
        .in_pod(
            &found[1],
            "ip -4 -o addr show dev eth0 | cut -d/ -f1 | tr -s \" \" | cut -d\" \" -f4",
        )
        .ok();
    let address = address.trim();
    assert!(address.starts_with("10.10.2."), "{address}");
    kubelets[0]
        .in_pod(
            &found[0],
            &format!("busybox ping -c 3 -i 0.2 -W 2 {address}"),
        )
        .ok();
    let fetch = format!("busybox wget -q -O - http://{address}/busybox | cmp - /bin/busybox");
    wait_for("the file arrives complete", || {
        kubelets[0].in_pod(&found[0], &fetch).success
    });
    drop(kubelets);
    for agent in agents {
        assert!(agent.stop());
    }
}
