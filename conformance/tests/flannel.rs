//! The agent together with the real flanneld in one cluster, and as its replacement.

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
    // This is flanneld's own command line.
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

/// Adds a pod on a node with flanneld: the plugins `bridge` and `host-local`, with the
/// configuration that the flannel plugin derives from the subnet file.
fn flannel_pod<'a>(node: &'a Node<'a>) -> (Pod<'a>, Vec<String>) {
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
fn flanneld_and_our_agents_form_one_cluster_on_etcd() {
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
        // All leases have the same format, no matter which agent wrote them.
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
            flannel_pod(&nodes[0]),
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

/// A ping that runs ten times a second until it is stopped.
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

    /// Returns the number of packets sent and the number of answers.
    fn stop(mut self) -> (u32, u32) {
        let pid = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a child process has an id");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).ok();
        let text = std::io::read_to_string(self.0.stdout.take().expect("the stream is piped"))
            .expect("text");
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

/// Returns all rules of flannel on a node, from every place where they may be.
fn flannel_rules(node: &Node<'_>) -> String {
    node.sh(
        "nft list ruleset | grep -i flannel; iptables-save | grep -i flannel; ip6tables-save | grep -i flannel; \
         iptables-legacy-save | grep -i flannel; ip6tables-legacy-save | grep -i flannel",
    )
    .stdout
}

/// Installs the programs of legacy iptables first in flanneld's PATH, under the names that flanneld
/// runs.
fn put_legacy_first(node: &Node<'_>) {
    node.sh(
        "mkdir -p /mnt/first && cd /mnt/first && for six in '' 6; do for way in '' -save -restore; do \
         ln -s /usr/sbin/ip${six}tables-legacy$way ip${six}tables$way; done; done",
    )
    .ok();
}

/// Waits until our rules and routes have replaced flannel's, and the stale route is gone.
fn wait_until_taken_over(node: &Node<'_>, agent: &Agent, mode: &str) {
    agent.wait_for_log("wrote table inet hostgw");
    let what = format!("{mode}: flannel's rules are removed: {}", agent.log());
    wait_for(&what, || flannel_rules(node).is_empty());
    wait_for(
        &format!("{mode}: flannel's routes have become ours"),
        || {
            let routes = "ip route show proto 104; ip -6 route show proto 104";
            node.sh(routes).ok().lines().count() == 2
        },
    );
    let what = format!("{mode}: the stale route is removed: {}", agent.log());
    let stale = "ip route show 10.10.200.0/24";
    wait_for(&what, || node.sh(stale).ok().is_empty());
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn a_node_migrates_from_flanneld_and_back_while_pods_communicate() {
    for mode in ["iptables", "nftables", "legacy"] {
        let lab = Lab::new();
        let nodes = nodes(&lab);
        let store = lab.node("etcd", &["192.168.2.20/24"]);
        let etcd = Etcd::start(&store, "192.168.2.20");
        etcd.configure(&network(Family::Dual, mode == "nftables"));
        if mode == "legacy" {
            put_legacy_first(&nodes[1]);
        }
        let other = start(&nodes[2], &etcd);
        let flanneld = Flanneld::start(&nodes[1], &etcd, &["--ip-masq"]);
        wait_for_file(&nodes[1], || flanneld.log());
        wait_for_file(&nodes[2], || other.log());
        let lease = etcd
            .leases()
            .into_iter()
            .find(|(_, value)| value.contains("192.168.2.16"))
            .expect("flanneld holds a lease");
        let place = match mode {
            "legacy" => "iptables-legacy-save | grep -qi flannel",
            "nftables" => "nft list tables | grep -qi flannel",
            _ => "iptables-save | grep -qi flannel",
        };
        wait_for(place, || nodes[1].sh(place).success);
        let (near, _) = flannel_pod(&nodes[1]);
        let (_far, addresses) = our_pod(&lab, &nodes[2]);
        for address in &addresses {
            wait_for("the pods reach each other", || {
                near.sh(&format!("busybox ping -c 1 -W 1 {address}"))
                    .success
            });
        }
        // A route that flanneld left for a node that no longer exists.
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
        wait_until_taken_over(&nodes[1], &agent, mode);
        let now = etcd.leases();
        assert!(now.contains(&lease), "the lease is the same: {now:?}");
        sleep(Duration::from_secs(1));
        // Then back to flanneld.
        assert!(agent.stop());
        let flanneld = Flanneld::start(&nodes[1], &etcd, &["--ip-masq"]);
        wait_for(
            &format!("{mode}: flannel's rules are back: {}", flanneld.log()),
            || !flannel_rules(&nodes[1]).is_empty(),
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
        cleanup_removes_both(&nodes[1], mode);
    }
}

/// Checks that `cleanup --flannel` removes everything of the agent and of flanneld, and that
/// `--dry-run` announces the same.
fn cleanup_removes_both(node: &Node<'_>, mode: &str) {
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
        "a dry run changes nothing"
    );
    assert_eq!(cleanup(""), dry.replace("would remove", "removed"));
    assert_eq!(flannel_rules(node), "");
    let left = node.sh("ip route | grep via | grep -v default; ip -6 route | grep 'via fd00:192' | grep -v default; ls /run/flannel /var/lib/hostgw").stdout;
    assert_eq!(left, "/run/flannel:\n\n/var/lib/hostgw:\n");
    assert_eq!(cleanup(""), "nothing to remove\n");
}

/// Starts our agent on a node of an API server, with kube-flannel's own command line.
fn start_on_kube(node: &Node<'_>, kube: &Kube<'_>) -> Agent {
    let kubeconfig = format!("--kubeconfig-file={}", kube.admin());
    let args = [
        "--kube-subnet-mgr",
        &kubeconfig,
        "--net-config-path=/mnt/net-conf.json",
        "--iface=enp0s5",
        "--ip-masq",
    ];
    Agent::start_with_env(node, &[("NODE_NAME", &node.name)], &args)
}

/// Returns flannel's annotations of worker1 or worker2, as if both had worker2's address.
fn flannel_annotations(kube: &Kube<'_>, node: &str) -> Vec<(String, String)> {
    let object = kube.node(node);
    let annotations = object["metadata"]["annotations"].as_object().cloned();
    let all = annotations.into_iter().flatten();
    let of_flannel = all.filter(|(key, _)| key.starts_with("flannel."));
    of_flannel
        .map(|(key, value)| {
            let value = value.to_string();
            (key, value.replace("::16", "::15").replace(".16", ".15"))
        })
        .collect()
}

/// Returns the routes of a node to the subnets of other nodes.
fn routes(node: &Node<'_>) -> Vec<String> {
    let ipv4 = picture::routes(&node.sh("ip route show root 10.10.0.0/16").ok());
    let ipv6 = picture::routes(&node.sh("ip -6 route show root fd00:10:10::/48").ok());
    let all = ipv4.into_iter().chain(ipv6);
    all.filter(|route| !route.contains("cni0")).collect()
}

fn expected_routes(name: &str, family: Family) -> Vec<String> {
    let ipv6 = if family.has_ipv6() {
        picture::node_routes6(name, false)
    } else {
        Vec::new()
    };
    [picture::node_routes(name, false), ipv6].concat()
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn kube_flannel_and_our_agents_form_one_cluster_on_an_api_server() {
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

        // Both write the same annotations in the same form.
        let words = |node: &str| flannel_annotations(&kube, node);
        wait_for("the annotations", || {
            words("worker1").len() == if family.has_ipv6() { 6 } else { 4 }
        });
        wait_for("flanneld's annotations", || {
            words("worker2") == words("worker1")
        });
        for node in &nodes {
            wait_for(&format!("the routes of {}", node.name), || {
                routes(node) == expected_routes(&node.name, family)
            });
        }

        // Pods of both kinds of nodes reach each other.
        let chain = Chain::new(&lab, CNI_CONF);
        let ours = nodes[1].pod("ours");
        let our_addresses = chain.add(&ours, &Attachment::of(&ours)).addresses();
        let (theirs, their_addresses) = flannel_pod(&nodes[2]);
        for address in &their_addresses {
            assert!(ours.pings(address), "{address}");
        }
        for address in &our_addresses {
            assert!(theirs.pings(address), "{address}");
        }

        // The address of our node changes in an IPv4 cluster. In a dual-stack cluster, flanneld
        // does not notice a change of one family only.
        if family == Family::Ipv4 {
            nodes[1].sh("ip addr del 192.168.2.16/24 dev enp0s5; ip addr add 192.168.2.26/24 dev enp0s5; ip route add default via 192.168.2.1").ok();
            wait_for("flanneld has updated its route", || {
                routes(&nodes[2]).contains(&"10.10.1.0/24 via 192.168.2.26 dev enp0s5".to_owned())
            });
            assert!(theirs.pings(&our_addresses[0]));
        }

        // Our agent replaces flanneld, and nothing changes for pods or other nodes.
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
