//! A whole Kubernetes: a control plane and two workers, each with kubelet, containerd and
//! kube-proxy, and our manifest; and Kubernetes' own network tests, run in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clients::tool;
use crate::holder::run;
use crate::kube::KEYS;
use crate::process::{Lifetime, Process, log_file};
use crate::{
    Containerd, Crio, Etcd, Kube, Lab, Node, Release, containerd, crio, image, kubelet, repository,
    wait_within,
};

/// Image of the pause container.
const PAUSE: &str = "registry.k8s.io/pause:3.10.1";
const MANIFEST: &str = include_str!("../../examples/kubernetes/cni-hostgw.yaml");

/// Address families of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only. The manifest is applied without a change.
    Ipv4,
    /// IPv4 and IPv6.
    Dual,
    /// IPv6 only.
    Ipv6,
}

impl Families {
    /// Selects the values of the families, given that of IPv4 and that of IPv6.
    fn select(self, ipv4: &str, ipv6: &str) -> Vec<String> {
        match self {
            Self::Ipv4 => vec![ipv4.to_owned()],
            Self::Ipv6 => vec![ipv6.to_owned()],
            Self::Dual => vec![ipv4.to_owned(), ipv6.to_owned()],
        }
    }

    /// Joins the values of the families with a comma.
    fn joined(self, ipv4: &str, ipv6: &str) -> String {
        self.select(ipv4, ipv6).join(",")
    }

    /// Returns the networks of the pods, joined with a comma.
    fn pods(self) -> String {
        self.joined("10.244.0.0/16", "fd00:10:244::/56")
    }

    /// Returns the address of the cluster's DNS.
    fn dns(self) -> String {
        self.select("10.96.0.10", "fd00:10:96::a").remove(0)
    }

    /// Returns the node's own addresses on the switch.
    fn addresses(self, host: u8) -> Vec<String> {
        self.select(
            &format!("192.168.2.{host}"),
            &format!("fd00:192:168:2::{host}"),
        )
    }

    /// Returns the manifest with the user's edit of `net-conf.json`.
    ///
    /// # Panics
    ///
    /// If the manifest has no network to edit.
    #[must_use]
    pub fn manifest(self) -> String {
        let network = "\"Network\": \"10.244.0.0/16\",";
        assert!(
            MANIFEST.contains(network),
            "the manifest has an IPv4 network"
        );
        let ipv6 = "\"EnableIPv6\": true, \"IPv6Network\": \"fd00:10:244::/56\",";
        match self {
            Self::Ipv4 => MANIFEST.to_owned(),
            Self::Dual => MANIFEST.replace(network, &format!("{network} {ipv6}")),
            Self::Ipv6 => MANIFEST.replace(network, &format!("\"EnableIPv4\": false, {ipv6}")),
        }
    }
}

/// Creates the nodes of a cluster: the control plane and two workers.
#[must_use]
pub fn nodes(lab: &Lab, families: Families) -> [Node<'_>; 3] {
    [("master", 17), ("worker1", 16), ("worker2", 15)].map(|(name, host)| {
        let addresses = families.addresses(host);
        let with_length = |address: &String| {
            let length = if address.contains(':') { 64 } else { 24 };
            format!("{address}/{length}")
        };
        let addresses: Vec<_> = addresses.iter().map(with_length).collect();
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        lab.node(name, &addresses)
    })
}

/// A running cluster. It ends when this value is dropped.
pub struct Cluster<'a> {
    /// The API server.
    pub kube: Kube<'a>,
    nodes: &'a [Node<'a>; 3],
    families: Families,
    processes: Vec<Process>,
    runtimes: Vec<Runtime<'a>>,
    /// The interval at which kube-proxy checks that its rules exist.
    proxy_period: &'static str,
    /// Further members of etcd.
    members: Vec<Etcd<'a>>,
}

/// The container runtime of a node.
enum Runtime<'a> {
    Containerd(Containerd<'a>),
    Crio(Crio<'a>),
}

impl<'a> Runtime<'a> {
    /// Starts a runtime that has all images.
    fn start(node: &'a Node<'a>, is_crio: bool) -> Self {
        if is_crio {
            let ours = image("").display().to_string();
            let path = archive().display().to_string();
            let tests = image_names(&archive())
                .into_iter()
                .map(|name| format!("{path}:{name}"));
            let archives: Vec<_> = tests.chain([ours]).collect();
            return Self::Crio(Crio::start_for_kubernetes(node, PAUSE, &archives));
        }
        let containerd = Containerd::start_with_pause(node, Release::Newest, PAUSE);
        containerd.import(&archive());
        containerd.import(&image(""));
        containerd.wait_for_cri();
        Self::Containerd(containerd)
    }

    fn socket(&self) -> &'static str {
        match self {
            Self::Containerd(_) => containerd::SOCKET,
            Self::Crio(_) => crio::SOCKET,
        }
    }

    fn start_script(&self, script: &str) -> Process {
        match self {
            Self::Containerd(containerd) => containerd.start_script(script),
            Self::Crio(crio) => crio.start_script(script),
        }
    }
}

/// Outcome of a run of Kubernetes' tests.
#[derive(Debug, PartialEq, Eq)]
pub struct Specs {
    /// Number of specs that passed.
    pub passed: usize,
    /// Names of the specs that failed.
    pub failed: Vec<String>,
}

impl<'a> Cluster<'a> {
    /// Starts a cluster, with kube-proxy in the mode `proxy`, and waits until its DNS answers. The
    /// nodes with the names `crio` have CRI-O, the others containerd.
    ///
    /// # Panics
    ///
    /// If a part does not start.
    #[must_use]
    pub fn start(nodes: &'a [Node<'a>; 3], families: Families, proxy: &str, crio: &[&str]) -> Self {
        let cluster = Self::start_without_network(nodes, families, proxy, crio);
        cluster.apply("cni-hostgw.yaml", &families.manifest());
        cluster.wait_for_dns();
        cluster
    }

    /// Starts a cluster without the manifest and without DNS: the nodes are not ready.
    ///
    /// # Panics
    ///
    /// If a part does not start.
    #[must_use]
    pub fn start_without_network(
        nodes: &'a [Node<'a>; 3],
        families: Families,
        proxy: &str,
        crio: &[&str],
    ) -> Self {
        let mut cluster = Self::start_control_plane(nodes, families, &[], "30s");
        for (node, host) in nodes.iter().zip([17, 16, 15]) {
            cluster.start_node(node, host, proxy, crio.contains(&node.name.as_str()));
        }
        cluster
    }

    /// Starts a cluster with two API servers and three members of etcd, one on the control plane and the
    /// others on `spares`. The agents use the second API server, which is returned and restarts every
    /// 25 seconds.
    ///
    /// # Panics
    ///
    /// If a part does not start.
    #[must_use]
    pub fn start_redundant(
        nodes: &'a [Node<'a>; 3],
        spares: &[(&'a Node<'a>, &str)],
    ) -> (Self, Kube<'a>) {
        let families = Families::Ipv4;
        let mut cluster = Self::start_control_plane(nodes, families, spares, "1s");
        for (node, host) in nodes.iter().zip([17, 16, 15]) {
            cluster.start_node(node, host, "iptables", false);
        }
        let second = cluster.kube.restarting_second();
        let flag = "- --kube-api-url=https://192.168.2.17:6444";
        let manifest = families.manifest();
        let manifest = manifest.replace("# - --kube-api-url=https://192.168.2.17:6443", flag);
        assert!(manifest.contains(flag));
        cluster.apply("cni-hostgw.yaml", &manifest);
        cluster.wait_for_dns();
        (cluster, second)
    }

    fn start_control_plane(
        nodes: &'a [Node<'a>; 3],
        families: Families,
        spares: &[(&'a Node<'a>, &str)],
        proxy_period: &'static str,
    ) -> Self {
        let lab = nodes[0].lab();
        for name in [
            "crictl",
            "kubectl",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
            "e2e.test",
            "ginkgo",
        ] {
            lab.install(&tool(name), &format!("bin/{name}"));
        }
        let services = families.joined("10.96.0.0/16", "fd00:10:96::/112");
        let address = &families.addresses(17)[0];
        let (kube, members) = Kube::start_for_cluster(&nodes[0], address, &services, spares);
        let mut cluster = Self {
            kube,
            nodes,
            families,
            processes: Vec::new(),
            runtimes: Vec::new(),
            proxy_period,
            members,
        };
        cluster.start_controllers(&services);
        cluster
    }

    /// Starts the cluster's DNS, and waits until it answers.
    pub fn wait_for_dns(&self) {
        self.apply("coredns.yaml", &coredns(self.families));
        self.wait_for_nodes();
        self.kubectl("-n kube-system rollout status deployment/coredns --timeout=120s");
    }

    /// Imports an image on each node with containerd.
    pub fn import(&self, archive: &Path) {
        for runtime in &self.runtimes {
            if let Runtime::Containerd(containerd) = runtime {
                containerd.import(archive);
            }
        }
    }

    /// Starts a script on the control plane. It ends with the cluster.
    pub fn start_script(&mut self, script: &str) {
        let mut command = self.nodes[0].command("sh");
        command.args(["-c", script]);
        let log = log_file(&self.nodes[0].path("/run/script.log"));
        let process = Process::start(&command, Lifetime::Killed, log);
        self.processes.push(process);
    }

    /// Starts the controller manager and the scheduler on the control plane.
    fn start_controllers(&mut self, services: &str) {
        let kubeconfig = format!("--kubeconfig={}", self.kube.admin());
        let mut manager = vec![
            kubeconfig.clone(),
            "--leader-elect=false".to_owned(),
            "--allocate-node-cidrs".to_owned(),
            format!("--cluster-cidr={}", self.families.pods()),
            format!("--service-cluster-ip-range={services}"),
            format!("--service-account-private-key-file={KEYS}/accounts.key"),
            format!("--root-ca-file={KEYS}/ca.crt"),
        ];
        if self.families == Families::Ipv6 {
            manager.push("--node-cidr-mask-size-ipv6=64".to_owned());
        }
        let scheduler = vec![kubeconfig, "--leader-elect=false".to_owned()];
        for (name, arguments) in [
            ("kube-controller-manager", manager),
            ("kube-scheduler", scheduler),
        ] {
            self.start_process(&self.nodes[0], name, &arguments);
        }
    }

    fn start_process(&mut self, node: &Node<'_>, name: &str, arguments: &[String]) {
        let mut command = node.command(Lab::path(&format!("bin/{name}")));
        command.args(arguments);
        let log = log_file(&node.path(&format!("/run/{name}.log")));
        let process = Process::start(&command, Lifetime::Killed, log);
        self.processes.push(process);
    }

    /// Starts a container runtime, kubelet and kube-proxy on a node.
    fn start_node(&mut self, node: &'a Node<'a>, host: u8, proxy: &str, is_crio: bool) {
        let runtime = Runtime::start(node, is_crio);
        let socket = runtime.socket();
        self.runtimes.push(runtime);
        let dns = self.families.dns();
        let change = |yaml: &str| {
            yaml.replace("[10.96.0.10]", &format!("[\"{dns}\"]"))
                .replace(containerd::SOCKET, socket)
        };
        let taint = if node.name == "master" {
            "--register-with-taints=node-role.kubernetes.io/control-plane=:NoSchedule"
        } else {
            ""
        };
        let addresses = self.families.addresses(host).join(",");
        kubelet::configure(node, &addresses, Some(&self.kube), change, taint);
        node.sh("rm /run/kubelet.hold").ok();
        kubelet::wait(node);
        // Nothing of the machine's is set.
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.kube.admin()},
            "mode": proxy, "hostnameOverride": node.name, "oomScoreAdj": 0,
            "clusterCIDR": self.families.pods(),
            "iptables": {"syncPeriod": self.proxy_period},
            "conntrack": {
                "maxPerCore": 0, "min": 0,
                "tcpEstablishedTimeout": "24h", "tcpCloseWaitTimeout": "1h",
            },
        });
        node.write("/run/kube-proxy.yaml", config.to_string());
        self.start_process(
            node,
            "kube-proxy",
            &["--config=/run/kube-proxy.yaml".to_owned()],
        );
    }

    /// Applies a file with kubectl.
    pub fn apply(&self, name: &str, text: &str) {
        self.nodes[0].lab().write(name, text);
        self.kubectl(&format!("apply -f {}", Lab::path(name).display()));
    }

    /// Runs kubectl as the administrator and returns its output.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn kubectl(&self, arguments: &str) -> String {
        let script = format!(
            "/mnt/bin/kubectl --kubeconfig={} {arguments}",
            self.kube.admin()
        );
        self.nodes[0].sh(&script).ok()
    }

    fn wait_for_nodes(&self) {
        for node in self.nodes {
            wait_within("the node is ready", Duration::from_secs(120), || {
                self.kube.condition(&node.name, "Ready")["status"] == "True"
            });
        }
    }

    /// Runs the specs whose names match `focus` and not `skip`, both regular expressions, with four
    /// processes on the control plane. The output of the tests goes to standard error.
    ///
    /// # Panics
    ///
    /// If the tests do not run to their end.
    #[must_use]
    pub fn run_specs(&self, focus: &str, skip: &str) -> Specs {
        let skip = if skip.is_empty() {
            String::new()
        } else {
            format!("--skip='{skip}'")
        };
        let script = format!(
            "cd /run && timeout 2400 /mnt/bin/ginkgo --procs=4 --silence-skips --no-color --focus='{focus}' {skip} /mnt/bin/e2e.test -- \
             --provider=skeleton --kubeconfig={} --kubectl-path=/mnt/bin/kubectl --num-nodes=2 \
             --dns-domain=cluster.local --report-dir=/run/e2e --report-complete-ginkgo --disable-log-dump",
            self.kube.admin()
        );
        let text = self.nodes[0].sh(&script).stdout;
        let report = self.nodes[0].path("/run/e2e/ginkgo/report.json");
        let report = fs::read_to_string(report)
            .unwrap_or_else(|error| panic!("the tests did not end: {error}: {text}"));
        eprintln!("{text}");
        let report = serde_json::from_str(&report).expect("ginkgo writes JSON");
        specs(&report)
    }

    /// Every 20 seconds until the cluster ends, deletes all of our `nf_tables` tables on each node, and ten
    /// seconds later kills the agent and replaces the plugin's executable. Rules are deleted only while
    /// an agent runs: after some kills, kubelet waits for a minute before it starts the next one.
    pub fn disturb(&mut self) {
        let script = "while sleep 10; do pidof hostgw-agent && nft list tables | grep hostgw | \
               while read -r table; do nft delete $table; done; sleep 10; \
             kill -9 $(pidof hostgw-agent) && echo killed >>/run/disturbed; \
             cd /opt/cni/bin && cp cni-hostgw .copy && mv .copy cni-hostgw; done";
        let started = self.runtimes.iter();
        let started = started.map(|runtime| runtime.start_script(script));
        self.processes.extend(started);
    }

    /// Until the cluster ends, moves the leadership of etcd to another member every 20 seconds, and deletes
    /// all `nf_tables` rules of each node every 30 seconds, once an agent runs there: ours, kube-proxy's and
    /// those of host ports.
    pub fn disturb_more(&mut self) {
        let urls: Vec<_> = self.members.iter().map(Etcd::url).collect();
        let urls = format!("{},{}", self.kube.etcd().url(), urls.join(","));
        let script = format!(
            "export ETCDCTL_API=3; while sleep 20; do status=$(etcdctl --endpoints={urls} endpoint status) && \
             etcdctl --endpoints=$(echo \"$status\" | awk -F', ' '$5 == \"true\" {{print $1}}') \
               move-leader $(echo \"$status\" | awk -F', ' '$5 == \"false\" {{print $2}}' | shuf -n 1) >>/run/leaders; done"
        );
        self.start_script(&script);
        let script = "while sleep 30; do until pidof hostgw-agent; do sleep 1; done; \
             nft flush ruleset && echo flushed >>/run/flushed; done";
        let started = self.runtimes.iter();
        let started = started.map(|runtime| runtime.start_script(script));
        self.processes.extend(started);
    }

    /// Returns how often etcd's leader changed, and how often the rules of the first worker were deleted.
    #[must_use]
    pub fn times_disturbed_more(&self) -> (usize, usize) {
        let lines =
            |node: &Node<'_>, file: &str| node.sh(&format!("cat {file}")).stdout.lines().count();
        (
            lines(&self.nodes[0], "/run/leaders"),
            lines(&self.nodes[1], "/run/flushed"),
        )
    }

    /// Returns how often the agent of the first worker was killed.
    #[must_use]
    pub fn times_disturbed(&self) -> usize {
        let log = self.nodes[1].sh("cat /run/disturbed").stdout;
        log.lines().count()
    }

    /// Compares what the workers hold for pods with the pods that they have: ports of the bridge, and
    /// addresses in the store of the network `cbr0`. Returns a line for each difference.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        let compare = |node: &Node<'_>| {
            let path = format!("/api/v1/pods?fieldSelector=spec.nodeName={}", node.name);
            let pods = self.kube.get(&path);
            let pods = pods["items"].as_array().into_iter().flatten();
            let addresses = pods
                .filter(|pod| pod["spec"]["hostNetwork"] != true)
                .filter_map(|pod| pod["status"]["podIPs"].as_array().cloned())
                .flatten();
            let mut addresses: Vec<_> = addresses
                .filter_map(|ip| ip["ip"].as_str().map(str::to_owned))
                .collect();
            addresses.sort();
            let reserved = "cd /var/lib/cni/networks/cbr0 && ls | grep -E '^[0-9a-f]+[.:]' | sort";
            let reserved = node.sh(reserved).stdout;
            let reserved: Vec<_> = reserved.lines().map(str::to_owned).collect();
            let ports = node.ports().len();
            let families = if self.families == Families::Dual {
                2
            } else {
                1
            };
            let is_equal = reserved == addresses && ports * families == addresses.len();
            let name = &node.name;
            (!is_equal).then(|| {
                format!("{name}: {ports} ports, {reserved:?} reserved, pods have {addresses:?}")
            })
        };
        self.nodes[1..].iter().filter_map(compare).collect()
    }

    /// Returns the lines in which a node's kubelet says that it could not create a pod's sandbox.
    #[must_use]
    pub fn failed_sandboxes(&self) -> Vec<String> {
        let log = |node: &Node<'_>| {
            let search = "grep -E 'RunPodSandbox from runtime service failed' /run/kubelet.log";
            node.sh(search).stdout
        };
        let lines: Vec<_> = self.nodes.iter().map(log).collect();
        lines
            .iter()
            .flat_map(|text| text.lines())
            .map(str::to_owned)
            .collect()
    }
}

/// Reads ginkgo's report.
fn specs(report: &Value) -> Specs {
    let all = report[0]["SpecReports"].as_array().into_iter().flatten();
    let mut specs = Specs {
        passed: 0,
        failed: Vec::new(),
    };
    for spec in all {
        let containers = spec["ContainerHierarchyTexts"]
            .as_array()
            .into_iter()
            .flatten();
        let name = containers.chain([&spec["LeafNodeText"]]);
        let name: Vec<_> = name.filter_map(|text| text.as_str()).collect();
        match spec["State"].as_str() {
            Some("passed") if spec["LeafNodeType"] == "It" => specs.passed += 1,
            Some("passed" | "skipped" | "pending") => {}
            _ => specs.failed.push(name.join(" ")),
        }
    }
    specs
}

/// Returns the archive with the images of Kubernetes' tests.
///
/// # Panics
///
/// If it is not built.
fn archive() -> PathBuf {
    let path = repository().join("target/kubernetes/e2e.tar");
    assert!(
        path.exists(),
        "{} does not exist: run `make test-kubernetes`",
        path.display()
    );
    path
}

/// Returns the names of the images in an archive.
fn image_names(archive: &Path) -> Vec<String> {
    let index = run(Command::new("tar")
        .arg("-xOf")
        .arg(archive)
        .arg("index.json"))
    .json();
    let all = index["manifests"].as_array().into_iter().flatten();
    let name = |image: &Value| {
        image["annotations"]["io.containerd.image.name"]
            .as_str()
            .map(str::to_owned)
    };
    all.filter_map(name).collect()
}

/// Returns Kubernetes' own manifest of `CoreDNS`, without the names outside of the cluster.
fn coredns(families: Families) -> String {
    let text = fs::read_to_string(tool("coredns.yaml.base")).expect("the file is readable");
    let (before, after) = text
        .split_once("        forward . /etc/resolv.conf {\n")
        .expect("CoreDNS forwards by default");
    let (_, after) = after.split_once("}\n").expect("the block ends");
    format!("{before}{after}")
        .replace("__DNS__DOMAIN__", "cluster.local")
        .replace("__DNS__SERVER__", &families.dns())
        .replace("__DNS__MEMORY__LIMIT__", "170Mi")
}
