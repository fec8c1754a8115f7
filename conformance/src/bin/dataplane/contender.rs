//! The networks that are compared.

use std::fs::File;
use std::net::IpAddr;
use std::time::Duration;

use conformance::sockets::Place;
use conformance::traffic::{Load, Sample};
use conformance::{Agent, Attachment, Etcd, Flanneld, Lab, Node, Plugin, Pod, poll, wait_within};
use serde_json::{Value, json};

/// Everything is set up within this time, also where instructions are emulated.
const MINUTE: Duration = Duration::from_secs(60);

/// Two places, and the address of the second.
pub(crate) struct Contender<'a> {
    pub(crate) name: &'static str,
    from: End<'a>,
    to: End<'a>,
    ip: IpAddr,
}

enum End<'a> {
    Node(&'a Node<'a>),
    Pod(Pod<'a>),
}

impl Place for End<'_> {
    fn network(&self) -> File {
        match self {
            Self::Node(node) => node.network(),
            Self::Pod(pod) => pod.network(),
        }
    }
}

impl Contender<'_> {
    pub(crate) fn measure(&self, load: Load, duration: Duration) -> Sample {
        load.measure(&self.from, &self.to, self.ip, duration)
    }

    /// Makes both nodes' interfaces send packets of 1,500 bytes and join those that they receive, as network cards
    /// do, or pass packets of up to 64 KiB as they are, as between virtual machines of one host.
    pub(crate) fn set_segmented(&self, is_segmented: bool) {
        let (split, join) = if is_segmented {
            ("off", "on")
        } else {
            ("on", "off")
        };
        let sending = format!(
            "tso {split} tx-udp_tnl-segmentation {split} tx-udp_tnl-csum-segmentation {split}"
        );
        for end in [&self.from, &self.to] {
            let node = match end {
                End::Node(node) => node,
                End::Pod(pod) => pod.node(),
            };
            node.sh(&format!("ethtool -K enp0s5 gro {join} {sending}"))
                .ok();
            let port = format!("p-{}-5", node.name);
            node.lab()
                .on_switch(&format!("ethtool -K {port} {sending}"));
        }
    }
}

/// Sets up all networks, and calls `work` with them. The fast path is left out, with a line that says so, if this
/// kernel does not have it.
pub(crate) fn in_lab<T>(work: impl FnOnce(&[Contender<'_>]) -> T) -> T {
    let lab = Lab::new();
    let pair = |number: u8| {
        [0, 1].map(|side| {
            let host = 40 + 2 * number + side;
            lab.node(&format!("n{host}"), &[&format!("192.168.2.{host}/24")])
        })
    };
    let (plain, fast, host_gw, vxlan) = (pair(0), pair(1), pair(2), pair(3));
    let stores = [20, 21].map(|host| {
        let address = format!("192.168.2.{host}");
        (
            lab.node(&format!("etcd{host}"), &[&format!("{address}/24")]),
            address,
        )
    });
    let etcds = stores
        .each_ref()
        .map(|(node, address)| Etcd::start(node, address));
    etcds[0].configure(&json!({}));
    etcds[1].configure(&json!({"Backend": {"Type": "vxlan"}}));

    let (_plain_agents, plain_pods) = ours(&lab, &plain, "plain.json", "off");
    let (fast_agents, fast_pods) = ours(&lab, &fast, "fast.json", "auto");
    let (_host_gw_daemons, host_gw_pods) = theirs(&host_gw, &etcds[0]);
    let (_vxlan_daemons, vxlan_pods) = theirs(&vxlan, &etcds[1]);
    let mut contenders = vec![
        Contender {
            name: "node to node",
            from: End::Node(&plain[0]),
            to: End::Node(&plain[1]),
            ip: "192.168.2.41".parse().expect("an address"),
        },
        plain_pods.contender("cni-hostgw"),
    ];
    match fast_path(&fast, &fast_agents) {
        Ok(()) => contenders.push(fast_pods.contender("cni-hostgw, fast path")),
        Err(reason) => eprintln!("cni-hostgw with the fast path is left out: {reason}"),
    }
    contenders.push(host_gw_pods.contender("bridge, flanneld host-gw"));
    contenders.push(vxlan_pods.contender("bridge, flanneld vxlan"));
    work(&contenders)
}

/// Two pods, and the second one's address.
struct Pods<'a>([Pod<'a>; 2], IpAddr);

impl<'a> Pods<'a> {
    fn new(pods: [Pod<'a>; 2], result: &Value) -> Self {
        let address = result["ips"][0]["address"]
            .as_str()
            .expect("ADD returns it");
        let ip = address.split('/').next().expect("an address");
        Self(pods, ip.parse().expect("an address"))
    }

    fn contender(self, name: &'static str) -> Contender<'a> {
        let Self([from, to], ip) = self;
        Contender {
            name,
            from: End::Pod(from),
            to: End::Pod(to),
            ip,
        }
    }
}

fn ours<'a>(
    lab: &Lab,
    nodes: &'a [Node<'a>; 2],
    file: &str,
    fast_path: &str,
) -> ([Agent; 2], Pods<'a>) {
    let entry = |(number, node): (usize, &Node<'_>)| {
        let host = node.name.trim_start_matches('n');
        json!({"name": node.name, "publicIP": format!("192.168.2.{host}"), "subnet": format!("10.10.{number}.0/24")})
    };
    let entries: Vec<_> = nodes.iter().enumerate().map(entry).collect();
    let network = json!({"Network": "10.10.0.0/16", "Backend": {"Type": "host-gw"}});
    lab.write(
        file,
        json!({"network": network, "nodes": entries}).to_string(),
    );
    let cluster = format!("--cluster={}", Lab::path(file).display());
    let fast_path = format!("--fast-path={fast_path}");
    let agents = nodes
        .each_ref()
        .map(|node| Agent::start(node, &[&cluster, &fast_path, "--ip-masq"]));
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
    });
    let plugin = Plugin::ours(lab);
    let attach = |node: &'a Node<'a>| {
        wait_within("the subnet file", MINUTE, || {
            node.path("/run/flannel/subnet.env").exists()
        });
        let pod = node.pod("pod");
        let result = plugin.add(&pod, &conf).ok();
        (pod, result)
    };
    let [(one, _), (two, result)] = nodes.each_ref().map(attach);
    (agents, Pods::new([one, two], &result))
}

/// True if both nodes use the fast path; else the reason.
fn fast_path(nodes: &[Node<'_>; 2], agents: &[Agent; 2]) -> Result<(), String> {
    let mut reason = String::new();
    for (node, agent) in nodes.iter().zip(agents) {
        let is_decided = || {
            let log = agent.log();
            let mut states = log.lines().rev();
            let state = states.find_map(|line| line.split_once("fast path: "));
            state.unwrap_or_default().1.clone_into(&mut reason);
            !reason.is_empty() && !reason.contains("being checked")
        };
        wait_within("the fast path is decided", MINUTE, is_decided);
        if !reason.starts_with("on") {
            return Err(reason);
        }
        wait_within("the pod is on the fast path", MINUTE, || {
            let status = node.sh("/mnt/bin/hostgw-agent status").ok();
            status.contains("on, 2 devices")
        });
    }
    Ok(())
}

fn theirs<'a>(nodes: &'a [Node<'a>; 2], etcd: &Etcd<'_>) -> ([Flanneld; 2], Pods<'a>) {
    let daemons = nodes
        .each_ref()
        .map(|node| Flanneld::start(node, etcd, &["--ip-masq"]));
    let plugin = Plugin::reference("bridge");
    let attach = |node: &'a Node<'a>| {
        let has_file = || node.path("/run/flannel/subnet.env").exists();
        if poll(MINUTE, has_file).is_none() {
            let logs = daemons.each_ref().map(Flanneld::log);
            panic!("flanneld wrote no subnet file: {}", logs.concat());
        }
        let file = node.sh("cat /run/flannel/subnet.env").ok();
        let value = |key: &str| {
            let mut lines = file.lines();
            let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{key} is not in {file}"))
                .to_owned()
        };
        // What flannel's plugin makes of this file.
        let conf = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "hairpinMode": true,
            "isGateway": true, "isDefaultGateway": true, "ipMasq": false,
            "mtu": value("FLANNEL_MTU").parse::<u32>().expect("a number"),
            "ipam": {
                "type": "host-local", "subnet": value("FLANNEL_SUBNET").replace(".1/24", ".0/24"),
                "routes": [{"dst": value("FLANNEL_NETWORK")}],
            },
        });
        let pod = node.pod("pod");
        let result = plugin.call(node, "ADD", &Attachment::of(&pod), &conf).ok();
        (pod, result)
    };
    let [(one, _), (two, result)] = nodes.each_ref().map(attach);
    (daemons, Pods::new([one, two], &result))
}
