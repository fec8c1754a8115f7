//! The demo: starts the reference cluster, shows it, and compares it with the expected state.
//!
//! With `STORE=etcd`, the agents lease their subnets from a real etcd. With `STORE=kube`, they use
//! the subnets of the Nodes of a real kube-apiserver. Otherwise they use a cluster file.
//!
//! Exits with 1 if anything differs from the expected state. The demo removes everything again,
//! however it ends; with `KEEP=1` it leaves everything running.

use std::io::{self, Write};
use std::process::ExitCode;

use conformance::reference_picture::{
    AttachedPod, CNI_CONF, Family, NODES, agents, agents_with, cluster, create_nodes, network,
    node_routes, nodes, pod_routes, pods, routes,
};
use conformance::{Agent, Etcd, Kube, Lab, Node, Output, Server, wait_for};
use serde_json::json;

/// Address of the store's node.
const STORE: &str = "192.168.2.20";

/// Servers of a store.
enum StoreServers<'a> {
    Etcd(Etcd<'a>),
    Kube(Kube<'a>),
}

impl<'a> StoreServers<'a> {
    /// Starts the servers that match the node's name.
    fn start(host: &'a Node<'a>, keep: bool) -> Self {
        match (host.name.as_str(), keep) {
            ("kube", true) => Self::Kube(Kube::start_detached(host, STORE)),
            ("kube", false) => Self::Kube(Kube::start(host, STORE)),
            (_, true) => Self::Etcd(Etcd::start_detached(host, STORE)),
            (_, false) => Self::Etcd(Etcd::start(host, STORE)),
        }
    }

    /// Returns their process ids.
    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Etcd(etcd) => vec![etcd.pid()],
            Self::Kube(kube) => vec![kube.pid(), kube.etcd().pid()],
        }
    }

    fn print_instructions(self) {
        match self {
            Self::Etcd(etcd) => etcd.detach(),
            Self::Kube(kube) => kube.detach(),
        }
    }
}

fn main() -> ExitCode {
    let keep = std::env::var("KEEP").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    let mut show = Presenter {
        problems: Vec::new(),
    };
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let start = if keep {
        Agent::start_detached
    } else {
        Agent::start
    };
    let store = std::env::var("STORE").unwrap_or_default();
    let host = match store.as_str() {
        "etcd" | "kube" => Some(lab.node(&store, &[&format!("{STORE}/24")])),
        "" | "file" => None,
        other => {
            show.text(&format!("STORE={other}: must be file, etcd or kube"));
            return ExitCode::FAILURE;
        }
    };
    let store = host.as_ref().map(|host| StoreServers::start(host, keep));
    let agents = match &store {
        Some(StoreServers::Etcd(etcd)) => on_etcd(&mut show, etcd, &nodes, start),
        Some(StoreServers::Kube(kube)) => on_kube(&mut show, kube, &nodes, start),
        None => {
            lab.write("cluster.json", cluster(Family::Ipv4, &[]));
            show.title("Three nodes on one switch, an agent on each, one cluster.json");
            show.text(&cluster(Family::Ipv4, &[]));
            agents(&nodes, start)
        }
    };
    for (node, agent) in nodes.iter().zip(&agents) {
        show.text(&format!("{} (agent is process {})", node.name, agent.pid()));
    }
    show.title("Four pods, attached by cni-hostgw through kube-flannel's own cni-conf.json");
    show.text(CNI_CONF);
    let drawn = pods(&lab, &nodes, Family::Ipv4);
    for pod in &drawn {
        show.text(&format!("{:14} {}", pod.pod.name, pod.addresses.join(" ")));
    }
    show_routes(&mut show, &nodes, &drawn);
    traffic(&mut show, &lab, &drawn);
    let code = show.verdict();
    if keep {
        let mut more: Vec<_> = host.iter().map(Node::pid).collect();
        more.extend(store.iter().flat_map(StoreServers::pids));
        print_instructions(&show, &nodes, &agents, &drawn, &more);
        agents.into_iter().for_each(Agent::detach);
        store.into_iter().for_each(StoreServers::print_instructions);
        lab.keep(nodes.iter().chain(&host));
    }
    code
}

/// Starts an agent on each node, with a real etcd in which each node's subnet is reserved.
fn on_etcd(
    show: &mut Presenter,
    etcd: &Etcd<'_>,
    nodes: &[Node<'_>],
    start: impl Fn(&Node<'_>, &[&str]) -> Agent,
) -> Vec<Agent> {
    etcd.configure(&json!({"SubnetMin": "10.10.0.0"}));
    for (_, host, subnet) in NODES {
        let node = json!({"PublicIP": format!("192.168.2.{host}"), "PublicIPv6": null, "BackendType": "host-gw"});
        etcd.put(&format!("subnets/10.10.{subnet}.0-24"), &node);
    }
    show.title("Three nodes on one switch, an agent on each, one etcd");
    show.run("etcdctl", etcd.ctl("get --prefix /coreos.com/network"));
    let endpoints = format!("--etcd-endpoints={}", etcd.url());
    agents_with(nodes, &[&endpoints, "--iface=enp0s5"], start)
}

/// Starts an agent on each node, with a real API server whose Nodes have the subnets.
fn on_kube(
    show: &mut Presenter,
    kube: &Kube<'_>,
    nodes: &[Node<'_>],
    start: impl Fn(&Node<'_>, &[&str]) -> Agent,
) -> Vec<Agent> {
    create_nodes(kube, Family::Ipv4);
    let network = network(Family::Ipv4).to_string();
    nodes[0].lab().write("net-conf.json", &network);
    show.title("Three nodes on one switch, an agent on each, one kube-apiserver");
    show.text(&network);
    let kubeconfig = format!("--kubeconfig-file={}", kube.admin());
    let net_conf = format!("--net-config-path={}", Lab::path("net-conf.json").display());
    let args = ["--kube-subnet-mgr", &kubeconfig, &net_conf];
    let agents = agents_with(nodes, &args, |node, args| {
        let name = format!("--node-name={}", node.name);
        start(node, &[args, &[&name]].concat())
    });
    for node in nodes {
        let is_up = || kube.condition(&node.name, "NetworkUnavailable")["status"] == "False";
        wait_for("the condition NetworkUnavailable", is_up);
        let object = kube.node(&node.name);
        let metadata = &object["metadata"];
        show.text(&format!(
            "Node {} {} NetworkUnavailable=False {:#}",
            node.name, object["spec"]["podCIDR"], metadata["annotations"]
        ));
    }
    agents
}

/// Shows and checks the pods' routes, the bridges, and the nodes' routes.
fn show_routes(show: &mut Presenter, nodes: &[Node<'_>], drawn: &[AttachedPod<'_>]) {
    let pod = &drawn[1].pod;
    show.title("In a pod of worker1: ip route");
    let listing = show.run("busybox ip route", pod.sh("busybox ip route"));
    show.expect("the pod's routes", &routes(&listing), &pod_routes(1, 6));
    for node in &nodes[1..] {
        show.title(&format!("On {}: the bridge", node.name));
        let listing = show.run(
            "ip address show dev cni0",
            node.sh("ip -4 address show dev cni0"),
        );
        let subnet = NODES
            .iter()
            .find(|(name, ..)| *name == node.name)
            .expect("drawn")
            .2;
        let expected = format!("inet 10.10.{subnet}.1/24 brd 10.10.{subnet}.255 scope global cni0");
        show.expect(
            "the bridge's address",
            &[listing.contains(&expected)],
            &[true],
        );
        show.expect("the bridge's MTU", &[listing.contains("mtu 1500")], &[true]);
    }
    for node in nodes {
        show.title(&format!("On {}: ip route", node.name));
        let listing = show.run("ip route", node.sh("ip route"));
        let of_pods: Vec<_> = routes(&listing)
            .into_iter()
            .filter(|route| route.starts_with("10.10."))
            .collect();
        let expected = node_routes(&node.name, node.name != "master");
        show.expect(&format!("the routes of {}", node.name), &of_pods, &expected);
    }
}

/// Shows and checks traffic from 10.10.1.6 on worker1 to 10.10.2.4 on worker2.
fn traffic(show: &mut Presenter, lab: &Lab, drawn: &[AttachedPod<'_>]) {
    let (from, to) = (&drawn[1], &drawn[3]);
    let address = &to.addresses[0];
    show.title(&format!(
        "{} pings {address} on {}",
        from.addresses[0],
        to.pod.node().name
    ));
    let ping = from.pod.sh(&format!("busybox ping -c 4 -i 0.3 {address}"));
    let listing = show.run("ping", ping);
    show.expect(
        "the pings' loss",
        &[listing.contains(" 0% packet loss")],
        &[true],
    );

    show.title("16 MiB over TCP");
    lab.write(
        "payload",
        (0..16 << 20)
            .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect::<Vec<_>>(),
    );
    let _server = Server::start(&to.pod, "httpd -f -p 8080 -h /mnt");
    let sum = to.pod.sh("sha256sum < /mnt/payload").ok();
    let fetch = format!(
        "timeout 6 sh -c 'until busybox wget -q -O - http://{address}:8080/payload > /run/got; do sleep 0.1; done'; \
         wc -c < /run/got; sha256sum < /run/got"
    );
    let listing = show.run("wget, its length and sum", from.pod.sh(&fetch));
    show.expect(
        "the transferred file",
        &[listing.lines().last().unwrap_or_default()],
        &[sum.trim_end()],
    );

    show.title("The way there: two hops, then the pod");
    let listing = show.run(
        "traceroute",
        from.pod
            .sh(&format!("busybox traceroute -n -q 1 -m 5 -w 1 {address}")),
    );
    let hop = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    let hops: Vec<_> = listing.lines().skip(1).filter_map(hop).collect();
    show.expect("the hops", &hops, &["10.10.1.1", "192.168.2.15", address]);
}

/// Prints how to enter the namespaces that stay, and how to take everything down.
fn print_instructions(
    show: &Presenter,
    nodes: &[Node<'_>],
    agents: &[Agent],
    drawn: &[AttachedPod<'_>],
    more: &[u32],
) {
    show.title("Left standing (KEEP=1)");
    for node in nodes {
        show.text(&format!(
            "enter {}:\n  nsenter -t {} -m -n -r -w",
            node.name,
            node.pid()
        ));
    }
    for AttachedPod { pod, .. } in drawn {
        let (name, pid, netns) = (&pod.name, pod.node().pid(), pod.netns());
        show.text(&format!(
            "enter {name}:\n  nsenter -t {pid} -m -n -r -w nsenter --net={netns}"
        ));
    }
    let pids = agents
        .iter()
        .map(Agent::pid)
        .chain(nodes.iter().map(Node::pid));
    let pids = pids.chain(nodes.iter().map(|node| node.lab().pid()).take(1));
    let pids = pids.chain(more.iter().copied());
    let pids: Vec<_> = pids.map(|pid| pid.to_string()).collect();
    show.text(&format!("take all of it down:\n  kill {}", pids.join(" ")));
}

/// Prints the demo's output, and collects differences from the expected state.
struct Presenter {
    problems: Vec<String>,
}

impl Presenter {
    /// Shows the problems, and returns the exit code.
    fn verdict(&self) -> ExitCode {
        if self.problems.is_empty() {
            self.title("Everything is as it should be");
            return ExitCode::SUCCESS;
        }
        self.title("NOT as it should be:");
        for problem in &self.problems {
            self.text(problem);
        }
        ExitCode::FAILURE
    }

    fn title(&self, text: &str) {
        self.text(&format!("\n== {text}"));
    }

    #[expect(clippy::unused_self, reason = "for symmetry with the other methods")]
    fn text(&self, text: &str) {
        // A closed standard output must not keep the demo from cleaning up.
        drop(writeln!(io::stdout(), "{}", text.trim_end()));
    }

    fn run(&mut self, what: &str, output: Output) -> String {
        self.text(&output.stdout);
        if !output.success {
            self.problems
                .push(format!("{what} failed: {}", output.stderr));
        }
        output.stdout
    }

    fn expect<A, B>(&mut self, what: &str, got: &[A], expected: &[B])
    where
        A: PartialEq<B> + std::fmt::Debug,
        B: std::fmt::Debug,
    {
        let same = got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| a == b);
        if !same {
            self.problems
                .push(format!("{what}: {got:?}, expected {expected:?}"));
        }
    }
}
