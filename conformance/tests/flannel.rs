//! Beside the real flanneld, in one cluster, and in its place.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use conformance::reference_picture::{self as picture, CNI_CONF, Family};
use conformance::{
    Agent, Attachment, Chain, Etcd, Flanneld, Kube, Lab, Node, Plugin, Pod, wait_for,
};
use serde_json::{Value, json};

const HOSTS: [(&str, u8); 3] = [("master", 17), ("worker1", 16), ("worker2", 15)];

fn nodes(lab: &Lab) -> Vec<Node<'_>> {
    let node = |(name, host): &(&str, u8)| {
        lab.node(
            name,
            &[
                &format!("192.168.2.{host}/24"),
                &format!("fd00:192:168:2::{host}/64"),
            ],
        )
    };
    HOSTS.iter().map(node).collect()
}

fn network(family: Family, uses_nftables: bool) -> Value {
    let mut network = json!({"EnableNFTables": uses_nftables});
    if family.has_ipv6() {
        network["EnableIPv6"] = json!(true);
        network["IPv6Network"] = json!("fd00:10:10::/48");
    }
    network
}

fn start(node: &Node<'_>, etcd: &Etcd<'_>) -> Agent {
    let url = format!("--etcd-endpoints={}", etcd.url());
    // flanneld's own command line.
    Agent::start(node, &[&url, "--iface=enp0s5", "--ip-masq"])
}

fn wait_for_file(node: &Node<'_>, log: impl Fn() -> String) {
    let file = node.path("/run/flannel/subnet.env");
    for _ in 0..1000 {
        if file.exists() {
            return;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("no subnet file on {}: {}", node.name, log());
}

/// A pod of a node with flanneld: `bridge` and `host-local` with what flannel's plugin renders of
/// the subnet file.
fn flannels_pod<'a>(node: &'a Node<'a>) -> (Pod<'a>, Vec<String>) {
    let file = std::fs::read_to_string(node.path("/run/flannel/subnet.env")).expect("written");
    let value = |key: &str| {
        file.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::to_owned)
    };
    let subnets = ["FLANNEL_SUBNET=", "FLANNEL_IPV6_SUBNET="]
        .into_iter()
        .filter_map(value);
    let networks = ["FLANNEL_NETWORK=", "FLANNEL_IPV6_NETWORK="]
        .into_iter()
        .filter_map(value);
    let masked = |subnet: &str| subnet.replace(".1/", ".0/").replace("::1/", "::/");
    let ranges: Vec<_> = subnets
        .map(|subnet| json!([{"subnet": masked(&subnet)}]))
        .collect();
    let routes: Vec<_> = networks.map(|network| json!({"dst": network})).collect();
    let conf = json!({
        "cniVersion": "0.3.1", "name": "cbr0", "type": "bridge", "isGateway": true,
        "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false, "mtu": 1500,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    });
    let pod = node.pod("theirs");
    let addresses = Plugin::reference("bridge").add(&pod, &conf).addresses();
    (pod, addresses)
}

fn our_pod<'a>(lab: &Lab, node: &'a Node<'a>) -> (Pod<'a>, Vec<String>) {
    let pod = node.pod("ours");
    let addresses = Chain::new(lab, CNI_CONF)
        .add(&pod, &Attachment::of(&pod))
        .addresses();
    (pod, addresses)
}

#[test]
fn one_node_with_flanneld_and_two_of_ours_are_one_cluster() {
    for family in [Family::Ipv4, Family::Dual] {
        let lab = Lab::new();
        let nodes = nodes(&lab);
        let store = lab.node("etcd", &["192.168.2.20/24"]);
        let etcd = Etcd::start(&store, "192.168.2.20");
        etcd.configure(&network(family, false));
        let flanneld = Flanneld::start(&nodes[0], &etcd, &["--ip-masq"]);
        let agents = [start(&nodes[1], &etcd), start(&nodes[2], &etcd)];
        wait_for_file(&nodes[0], || flanneld.log());
        for (node, agent) in nodes[1..].iter().zip(&agents) {
            wait_for_file(node, || agent.log());
        }
        // One form of lease, whoever wrote it.
        let leases = etcd.leases();
        assert_eq!(leases.len(), 3, "{leases:?}");
        for (_, host) in HOSTS {
            let v6 = if family == Family::Dual {
                format!("\"fd00:192:168:2::{host}\"")
            } else {
                "null".to_owned()
            };
            let value = format!(
                "{{\"PublicIP\":\"192.168.2.{host}\",\"PublicIPv6\":{v6},\"BackendType\":\"host-gw\"}}"
            );
            assert!(
                leases.iter().any(|(_, other)| *other == value),
                "{value} in {leases:?}"
            );
        }
        let pods = [
            flannels_pod(&nodes[0]),
            our_pod(&lab, &nodes[1]),
            our_pod(&lab, &nodes[2]),
        ];
        for (from, _) in &pods {
            for address in pods.iter().flat_map(|(_, addresses)| addresses) {
                wait_for(
                    &format!(
                        "{family:?}: {} on {} reaches {address}",
                        from.name,
                        from.node().name
                    ),
                    || {
                        from.sh(&format!("busybox ping -c 1 -W 1 {address}"))
                            .success
                    },
                );
                assert!(from.pings(address));
            }
        }
    }
}

/// Pings ten times a second until it is stopped.
struct Pings(Child);

impl Pings {
    fn start(from: &Pod<'_>, address: &str) -> Self {
        let inner = from.command("busybox");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(["ping", "-i", "0.1", "-W", "1", address])
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv is part of every Debian");
        Self(child)
    }

    /// How many were sent, and how many were answered.
    fn stop(mut self) -> (u32, u32) {
        let pid = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a child has an id");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).ok();
        let text =
            std::io::read_to_string(self.0.stdout.take().expect("it is piped")).expect("text");
        drop(self.0.wait());
        let line = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .unwrap_or_else(|| panic!("{text}"));
        let numbers: Vec<u32> = line
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        (numbers[0], numbers[1])
    }
}

/// All of flannel's rules on a node, in each of the places where they may be.
fn flannels_rules(node: &Node<'_>) -> String {
    node.sh(
        "nft list ruleset | grep -i flannel; iptables-save | grep -i flannel; ip6tables-save | grep -i flannel; \
         iptables-legacy-save | grep -i flannel; ip6tables-legacy-save | grep -i flannel",
    )
    .stdout
}

#[test]
fn a_node_changes_to_ours_and_back_while_its_pods_talk() {
    for mode in ["iptables", "nftables", "legacy"] {
        let lab = Lab::new();
        let nodes = nodes(&lab);
        let store = lab.node("etcd", &["192.168.2.20/24"]);
        let etcd = Etcd::start(&store, "192.168.2.20");
        etcd.configure(&network(Family::Dual, mode == "nftables"));
        if mode == "legacy" {
            // flanneld takes what is called iptables.
            nodes[1].sh(
                "mkdir -p /mnt/first && cd /mnt/first && for six in '' 6; do for way in '' -save -restore; do \
                 ln -s /usr/sbin/ip${six}tables-legacy$way ip${six}tables$way; done; done",
            )
            .ok();
        }
        let other = start(&nodes[2], &etcd);
        let flanneld = Flanneld::start(&nodes[1], &etcd, &["--ip-masq"]);
        wait_for_file(&nodes[1], || flanneld.log());
        wait_for_file(&nodes[2], || other.log());
        let lease = etcd
            .leases()
            .into_iter()
            .find(|(_, value)| value.contains("192.168.2.16"))
            .expect("flanneld has one");
        wait_for("flannel's rules", || !flannels_rules(&nodes[1]).is_empty());
        let (near, _) = flannels_pod(&nodes[1]);
        let (_far, addresses) = our_pod(&lab, &nodes[2]);
        for address in &addresses {
            wait_for("the pods reach each other", || {
                near.sh(&format!("busybox ping -c 1 -W 1 {address}"))
                    .success
            });
        }
        // What flanneld left of a node that is gone.
        nodes[1]
            .sh("ip route add 10.10.200.0/24 via 192.168.2.1 dev enp0s5")
            .ok();
        let pings: Vec<_> = addresses
            .iter()
            .map(|address| Pings::start(&near, address))
            .collect();
        sleep(Duration::from_secs(1));
        flanneld.stop();
        let agent = start(&nodes[1], &etcd);
        agent.wait_for_log("wrote the table inet hostgw");
        wait_for(
            &format!("{mode}: flannel's rules go: {}", agent.log()),
            || flannels_rules(&nodes[1]).is_empty(),
        );
        let marked = || {
            nodes[1]
                .sh("ip route show proto 104; ip -6 route show proto 104")
                .ok()
                .lines()
                .count()
        };
        wait_for(&format!("{mode}: its routes are ours"), || marked() == 2);
        wait_for(
            &format!("{mode}: what it left is gone: {}", agent.log()),
            || nodes[1].sh("ip route show 10.10.200.0/24").ok().is_empty(),
        );
        let now = etcd.leases();
        assert!(now.contains(&lease), "the lease is the same: {now:?}");
        sleep(Duration::from_secs(1));
        // And back.
        assert!(agent.stop());
        let flanneld = Flanneld::start(&nodes[1], &etcd, &["--ip-masq"]);
        wait_for(
            &format!("{mode}: flannel's rules are back: {}", flanneld.log()),
            || !flannels_rules(&nodes[1]).is_empty(),
        );
        sleep(Duration::from_secs(1));
        assert!(etcd.leases().contains(&lease));
        for (ping, address) in pings.into_iter().zip(&addresses) {
            let (sent, answered) = ping.stop();
            assert!(
                sent > 20 && answered + 1 >= sent,
                "{mode}: {address}: {answered} of {sent}"
            );
        }
        flanneld.stop();
        both_can_be_taken_away(&nodes[1], mode);
    }
}

/// Everything of the agent's and of flanneld's goes, and before that it is said.
fn both_can_be_taken_away(node: &Node<'_>, mode: &str) {
    let cleanup = |more: &str| {
        node.sh(&format!("/mnt/bin/hostgw-agent cleanup --flannel {more}"))
            .ok()
    };
    let before = node.sh("ip route; ip -6 route; nft list ruleset").ok();
    let dry = cleanup("--dry-run");
    for part in [
        "route 10.10.",
        "route fd00:10:10",
        "nf_tables table inet hostgw",
        "flannel's ",
        "/run/flannel/subnet.env",
        "/var/lib/hostgw/state.json",
    ] {
        assert!(
            dry.lines()
                .any(|line| line.starts_with(&format!("would remove {part}"))),
            "{mode}: {part} in {dry}"
        );
    }
    assert_eq!(
        node.sh("ip route; ip -6 route; nft list ruleset").ok(),
        before,
        "it was only said"
    );
    assert_eq!(cleanup(""), dry.replace("would remove", "removed"));
    assert_eq!(flannels_rules(node), "");
    let left = node.sh("ip route | grep via | grep -v default; ip -6 route | grep 'via fd00:192' | grep -v default; ls /run/flannel /var/lib/hostgw").stdout;
    assert_eq!(left, "/run/flannel:\n\n/var/lib/hostgw:\n");
    assert_eq!(cleanup(""), "nothing is left\n");
}

/// Starts ours on a node of an API server, with kube-flannel's own command line.
fn start_on_kube(node: &Node<'_>, kube: &Kube<'_>) -> Agent {
    let kubeconfig = format!("--kubeconfig-file={}", kube.admin());
    let args = [
        "--kube-subnet-mgr",
        &kubeconfig,
        "--net-config-path=/mnt/net-conf.json",
        "--iface=enp0s5",
        "--ip-masq",
    ];
    Agent::start_in(node, &[("NODE_NAME", &node.name)], &args)
}

#[test]
fn nodes_of_kube_flannels_and_ours_share_a_cluster() {
    for family in [Family::Ipv4, Family::Dual] {
        let lab = Lab::new();
        let nodes = nodes(&lab);
        let kube = Kube::start(&nodes[0], "192.168.2.17");
        picture::create_nodes(&kube, family);
        lab.write("net-conf.json", picture::network(family).to_string());
        let agents = [&nodes[0], &nodes[1]].map(|node| start_on_kube(node, &kube));
        let flanneld = Flanneld::start_on_kube(&nodes[2], &kube);
        wait_for_file(&nodes[1], || agents[1].log());
        wait_for_file(&nodes[2], || flanneld.log());

        // Each has written what the other reads, and in the same words.
        let words = |node: &str| {
            let object = kube.node(node);
            let annotations = object["metadata"]["annotations"].as_object().cloned();
            let of_flannel = annotations
                .into_iter()
                .flatten()
                .filter(|(key, _)| key.starts_with("flannel."))
                .map(|(key, value)| {
                    (
                        key,
                        value
                            .to_string()
                            .replace("::16", "::15")
                            .replace(".16", ".15"),
                    )
                });
            of_flannel.collect::<Vec<_>>()
        };
        wait_for("the annotations", || {
            words("worker1").len() == if family.has_ipv6() { 6 } else { 4 }
        });
        wait_for("flanneld's annotations", || {
            words("worker2") == words("worker1")
        });
        let routes = |node: &Node<'_>| {
            let ipv4 = picture::routes(&node.sh("ip route show root 10.10.0.0/16").ok());
            let ipv6 = picture::routes(&node.sh("ip -6 route show root fd00:10:10::/48").ok());
            let without_bridge = |route: &String| !route.contains("cni0");
            let all: Vec<_> = ipv4
                .into_iter()
                .chain(ipv6)
                .filter(without_bridge)
                .collect();
            all
        };
        let wanted = |name: &str| {
            let ipv6 = if family.has_ipv6() {
                picture::node_routes6(name, false)
            } else {
                Vec::new()
            };
            [picture::node_routes(name, false), ipv6].concat()
        };
        for node in &nodes {
            wait_for(&format!("the routes of {}", node.name), || {
                routes(node) == wanted(&node.name)
            });
        }

        // Pods of both reach each other.
        let chain = Chain::new(&lab, CNI_CONF);
        let ours = nodes[1].pod("ours");
        let our_addresses = chain.add(&ours, &Attachment::of(&ours)).addresses();
        let (theirs, their_addresses) = flannels_pod(&nodes[2]);
        for address in &their_addresses {
            assert!(ours.pings(address), "{address}");
        }
        for address in &our_addresses {
            assert!(theirs.pings(address), "{address}");
        }

        // An address of ours changes, in one family alone; flanneld of two families overlooks that.
        if family == Family::Ipv4 {
            nodes[1].sh("ip addr del 192.168.2.16/24 dev enp0s5; ip addr add 192.168.2.26/24 dev enp0s5; ip route add default via 192.168.2.1").ok();
            wait_for("flanneld follows", || {
                routes(&nodes[2]).contains(&"10.10.1.0/24 via 192.168.2.26 dev enp0s5".to_owned())
            });
            assert!(theirs.pings(&our_addresses[0]));
        }

        // flanneld makes way for ours, and nothing changes for anybody.
        let before = words("worker2");
        flanneld.stop();
        let agent = start_on_kube(&nodes[2], &kube);
        agent.wait_for_log("ready: ");
        assert_eq!(words("worker2"), before);
        assert_eq!(
            kube.condition("worker2", "NetworkUnavailable")["status"],
            "False"
        );
        for address in &our_addresses {
            assert!(theirs.pings(address), "{address}");
        }
        assert_eq!(
            nodes[2]
                .sh("ip route show root 10.10.0.0/16 | grep -vc -e cni0 -e 104")
                .stdout,
            "0\n"
        );
    }
}
