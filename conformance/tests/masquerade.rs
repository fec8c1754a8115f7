//! Masquerading by the plugin: packets that leave the cluster's network get the node's address, and
//! packets within the network retain the pod's address.

use conformance::reference_picture::{Family, agents, cluster, nodes, pods};
use conformance::{Agent, Attachment, Lab, Plugin, Pod, Server};
use serde_json::{Value, json};

/// Fetches a page of the web server in `server` from `client`, and returns the server's log with
/// the client's address.
fn seen_by(server: &Pod<'_>, address: &str, client: &Pod<'_>) -> String {
    let httpd = Server::start(server, "httpd -f -vv -p 8080 -h /run");
    let fetch = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do busybox wget -q -O - http://{address}:8080/netns/ 2>&1 | grep -q 404 && exit; sleep 0.1; done; exit 1"
    );
    client.sh(&fetch).ok();
    httpd.stop()
}

#[test]
fn pods_are_masqueraded_outside_the_network_and_not_towards_pods() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let _agents = agents(&nodes, Agent::start);
    let attached = pods(&lab, &nodes, Family::Ipv4);
    let (from, to) = (&attached[1], &attached[3]);
    let log = seen_by(&to.pod, &to.addresses[0], &from.pod);
    assert!(log.contains("[::ffff:10.10.1.6]"), "{log}");
    // The switch has no route to any pod, so an answer proves that the ping came from the node's
    // address.
    assert!(
        from.pod.pings("192.168.2.1"),
        "a pod reaches a host outside of the cluster"
    );
}

fn conf(masquerade: Option<bool>) -> Value {
    let mut conf = json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "cni-hostgw",
        "isDefaultGateway": true,
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}], [{"subnet": "fd00:10:10:1::/64"}]]},
    });
    if let Some(masquerade) = masquerade {
        conf["ipMasq"] = json!(masquerade);
    }
    conf
}

#[test]
fn ip_masq_masquerades_both_families_with_one_chain_for_a_subnet() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24", "fd00:192:168:2::16/64"]);
    let plugin = Plugin::ours(&lab);
    let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
    plugin.add(&a, &conf(None)).ok();
    assert!(
        !a.sh("busybox ping -c 1 -W 1 192.168.2.1").success,
        "masquerading is off by default"
    );
    assert_eq!(node.sh("nft list ruleset").ok(), "");
    plugin.add(&b, &conf(Some(true))).ok();
    assert!(b.pings("192.168.2.1") && b.pings("fd00:192:168:2::1"));
    assert!(
        a.pings("192.168.2.1"),
        "masquerading applies to the whole subnet"
    );
    let rules = node.sh("nft list ruleset").ok();
    assert_eq!(rules.matches(" masquerade\n").count(), 2, "{rules}");
    plugin.add(&c, &conf(Some(true))).ok();
    assert_eq!(
        node.sh("nft list ruleset").ok(),
        rules,
        "the next pod does not change the rules"
    );
    // If the chain was flushed, the next ADD fills it again.
    node.sh("nft flush chain ip cni-hostgw-cbr0 masquerade-10.10.1.0-24")
        .ok();
    plugin.add(&node.pod("d"), &conf(Some(true))).ok();
    assert_eq!(
        node.sh("nft list table ip cni-hostgw-cbr0")
            .ok()
            .matches(" masquerade\n")
            .count(),
        1
    );
    // When the cluster's networks change, the rules are replaced.
    node.sh("mkdir -p /run/flannel").ok();
    let mut conf = conf(Some(true));
    conf["subnetFile"] = json!("/run/flannel/subnet.env");
    let many: Vec<_> = (0..40).map(|i| format!("10.{i}.0.0/16")).collect();
    for networks in ["10.10.0.0/16".to_owned(), many.join(",")] {
        let env = format!(
            "FLANNEL_NETWORK={networks}\nFLANNEL_SUBNET=10.10.1.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"
        );
        std::fs::write(node.path("/run/flannel/subnet.env"), env).expect("writes");
        plugin
            .add(&node.pod(&format!("n{}", networks.len())), &conf)
            .ok();
        let rules = node.sh("nft list table ip cni-hostgw-cbr0").ok();
        let ending = |end: &str| rules.lines().filter(|line| line.ends_with(end)).count();
        assert_eq!(ending(" masquerade"), 1, "{rules}");
        assert_eq!(
            ending(" return"),
            networks.split(',').count() + 1,
            "{rules}"
        );
    }
}

#[test]
fn the_plugin_does_not_masquerade_if_the_agent_does() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "cni-hostgw",
        "delegate": {"isDefaultGateway": true},
    });
    let write = |masq: bool| {
        lab.install(&conformance::dist().join("subnet-env"), "bin/subnet-env");
        let flag = if masq { "--ip-masq" } else { "" };
        node.sh(&format!("/mnt/bin/subnet-env write --network 10.10.0.0/16 --subnet 10.10.1.0/24 --mtu 1500 {flag}")).ok();
    };
    write(true);
    plugin.add(&node.pod("a"), &conf).ok();
    assert_eq!(node.sh("nft list ruleset").ok(), "");
    write(false);
    let b = node.pod("b");
    plugin.add(&b, &conf).ok();
    let rules = node.sh("nft list ruleset").ok();
    assert!(rules.contains("ip daddr 10.10.0.0/16 return"), "{rules}");
    assert!(b.pings("192.168.2.1"));
}

/// Returns our NAT rules as the iptables programs list them, without counters and without other
/// programs' chains.
fn our_nat_rules(node: &conformance::Node<'_>) -> String {
    node.sh("iptables-save -t nat; ip6tables-save -t nat")
        .ok()
        .lines()
        .filter(|line| line.contains("HOSTGW"))
        .map(|line| line.to_owned() + "\n")
        .collect()
}

#[test]
fn the_iptables_backend_masquerades() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24", "fd00:192:168:2::16/64"]);
    let plugin = Plugin::ours(&lab);
    let mut conf = conf(Some(true));
    conf["ipMasqBackend"] = json!("iptables");
    let (a, b) = (node.pod("a"), node.pod("b"));
    plugin.add(&a, &conf).ok();
    assert!(a.pings("192.168.2.1") && a.pings("fd00:192:168:2::1"));
    let rules = our_nat_rules(&node);
    assert_eq!(rules.matches("-j MASQUERADE").count(), 2, "{rules}");
    plugin.add(&b, &conf).ok();
    assert_eq!(
        our_nat_rules(&node),
        rules,
        "the next pod does not change the rules"
    );
    // When the cluster's networks change, the rules are replaced.
    node.write_subnet_env(false);
    conf["subnetFile"] = json!("/run/flannel/subnet.env");
    plugin.add(&node.pod("c"), &conf).ok();
    let rules = our_nat_rules(&node);
    assert_eq!(rules.matches("POSTROUTING").count(), 2, "{rules}");
    assert_eq!(
        rules.matches("-d 10.10.0.0/16 -j RETURN").count(),
        1,
        "{rules}"
    );
    conf["prevResult"] = plugin.add(&node.pod("d"), &conf).ok();
    let d = Attachment::named("d");
    plugin.call(&node, "CHECK", &d, &conf).ok();
    node.sh("iptables -t nat -F POSTROUTING").ok();
    let (code, text) = plugin.call(&node, "CHECK", &d, &conf).error();
    assert_eq!(
        (code, text.trim_end_matches("; ")),
        (102, "CHECK: 10.10.1.0/24 is not masqueraded")
    );
    plugin.add(&node.pod("e"), &conf).ok();
    plugin.call(&node, "CHECK", &d, &conf).ok();
    // DEL of all pods, with an empty CNI_NETNS, and with another backend in the configuration than
    // at ADD.
    conf["ipMasqBackend"] = json!("nftables");
    for name in ["a", "b", "c", "d", "e"] {
        assert_ne!(our_nat_rules(&node), "");
        plugin
            .call(&node, "DEL", &Attachment::named(name).in_netns(""), &conf)
            .ok();
    }
    assert_eq!(
        our_nat_rules(&node),
        "",
        "the rules are removed with the last pod"
    );
}

#[test]
fn concurrent_adds_create_the_iptables_rules_once() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let mut conf = conf(Some(true));
    conf["ipMasqBackend"] = json!("iptables");
    let names: Vec<_> = (0..12).map(|i| format!("p{i}")).collect();
    let _pods: Vec<_> = names.iter().map(|name| node.pod(name)).collect();
    let start = |name: &String| plugin.start(&node, "ADD", &Attachment::named(name), &conf);
    let running: Vec<_> = names.iter().map(start).collect();
    for add in running {
        add.wait().ok();
    }
    assert_eq!(our_nat_rules(&node).matches("-A POSTROUTING").count(), 2);
}

#[test]
fn del_without_a_namespace_removes_the_masquerading() {
    // The reference leaves its rules behind, as its users report (plugins#810).
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (reference, ours) = (Plugin::reference("bridge"), Plugin::ours(&lab));
    let mut theirs = conf(Some(true));
    theirs["ipam"]["type"] = json!("host-local");
    reference.add(&node.pod("theirs"), &theirs).ok();
    node.sh("ip netns delete theirs").ok();
    let gone = Attachment::named("theirs").in_netns("");
    reference.call(&node, "DEL", &gone, &theirs).ok();
    assert!(node.sh("iptables-save -t nat").ok().contains(":CNI-"));
    node.sh("nft flush ruleset").ok();

    let conf = conf(Some(true));
    for name in ["a", "b"] {
        ours.add(&node.pod(name), &conf).ok();
    }
    let table = "nft list table ip cni-hostgw-cbr0 && nft list table ip6 cni-hostgw-cbr0";
    node.sh(table).ok();
    let a = Attachment::named("a").in_netns("");
    ours.call(&node, "DEL", &a, &conf).ok();
    node.sh(table).ok();
    node.sh("ip netns delete b").ok();
    ours.call(&node, "DEL", &Attachment::named("b"), &conf).ok();
    assert_eq!(node.sh("nft list ruleset").ok(), "");
    // The next pod is masqueraded again.
    let c = node.pod("c");
    ours.add(&c, &conf).ok();
    assert!(c.pings("192.168.2.1"));
}

#[test]
fn an_unknown_masquerading_backend_is_rejected() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let mut conf = conf(Some(true));
    conf["ipMasqBackend"] = json!("ebpf");
    let (code, text) = Plugin::ours(&lab).add(&node.pod("a"), &conf).error();
    assert_eq!(code, 2);
    assert!(
        text.starts_with("ipMasqBackend: ebpf is not supported"),
        "{text}"
    );
}

#[test]
fn an_ipv4_network_needs_no_ip6tables() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    node.sh(
        "mkdir /run/up /run/work && mount -t overlay overlay \
         -o lowerdir=/usr/sbin,upperdir=/run/up,workdir=/run/work /usr/sbin && rm /usr/sbin/ip6tables*",
    )
    .ok();
    let mut conf = conf(Some(true));
    conf["cniVersion"] = json!("1.1.0");
    conf["ipMasqBackend"] = json!("iptables");
    let status = |conf: &Value| plugin.call(&node, "STATUS", &Attachment::named(""), conf);
    let (code, text) = status(&conf).error();
    assert_eq!(code, 50);
    assert!(text.contains("masquerade with ip6tables"), "{text}");
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.10.1.0/24"}]]);
    status(&conf).ok();
    let a = node.pod("a");
    plugin.add(&a, &conf).ok();
    assert!(a.pings("192.168.2.1"));
    plugin.del(&a, &conf).ok();
    assert!(!node.sh("iptables-save -t nat").ok().contains("HOSTGW"));
}

#[test]
fn with_another_ipam_plugin_masquerading_is_also_removed_with_the_last_pod() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = |last: u8| {
        let address = format!("10.30.1.{last}/24");
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true, "ipMasq": true,
            "ipam": {"type": "static", "addresses": [{"address": address, "gateway": "10.30.1.1"}]},
        })
    };
    let (a, b) = (node.pod("a"), node.pod("b"));
    plugin.add(&a, &conf(5)).ok();
    plugin.add(&b, &conf(6)).ok();
    plugin.del(&a, &conf(5)).ok();
    assert!(b.pings("192.168.2.1"));
    plugin.del(&b, &conf(6)).ok();
    assert_eq!(node.sh("nft list ruleset").ok(), "");
}
