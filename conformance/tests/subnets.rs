//! One subnet, one network; one bridge, decisions about it one at a time.

use conformance::{Attachment, Lab, Node, Plugin, Pod, Reply, Server};
use serde_json::{Value, json};

fn flannel_form(name: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": name, "type": "cni-hostgw",
        "delegate": {"isDefaultGateway": true},
    })
}

fn bridge_form(name: &str, subnet: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": name, "type": "cni-hostgw", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]},
    })
}

fn second(pod: &Pod<'_>) -> Attachment {
    Attachment {
        ifname: "eth1".to_owned(),
        ..Attachment::of(pod)
    }
}

#[test]
fn written_for_bridge_a_network_without_ipam_has_no_addresses() {
    // As multus and OpenShift users write a second network.
    let conf = |kind: &str| json!({"cniVersion": "0.3.1", "name": "eth1", "type": kind, "interface": "eth1"});
    for (plugin_of, kind, has_addresses) in [
        (
            (|_: &Lab| Plugin::reference("bridge")) as fn(&Lab) -> Plugin,
            "bridge",
            false,
        ),
        (Plugin::ours, "bridge", false),
        (Plugin::ours, "cni-hostgw", true),
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        node.write_subnet_env(true);
        let pod = node.pod("a");
        let plugin = plugin_of(&lab);
        let attachment = second(&pod);
        let result = plugin.call(&node, "ADD", &attachment, &conf(kind)).ok();
        assert_eq!(result["ips"].is_array(), has_addresses, "{kind}: {result}");
        plugin.call(&node, "DEL", &attachment, &conf(kind)).ok();
        // `ipam` without a type is none either, whatever else it says.
        let mut untyped = conf(kind);
        untyped["ipam"] = json!({"ranges": [[{"subnet": "10.10.1.0/24"}]]});
        let result = plugin.call(&node, "ADD", &attachment, &untyped).ok();
        assert_eq!(result["ips"].is_array(), has_addresses, "{kind}: {result}");
    }
}

/// Adds `conf` for a second interface of a pod that has the first network.
fn refused(node: &Node<'_>, plugin: &Plugin, pod: &Pod<'_>, conf: &Value) -> String {
    let before = node
        .sh("ls -R /var/lib/cni/networks; ip -o link | wc -l")
        .ok();
    let (code, text) = plugin.call(node, "ADD", &second(pod), conf).error();
    assert_eq!(code, 7, "{text}");
    let after = node
        .sh("ls -R /var/lib/cni/networks; ip -o link | wc -l")
        .ok();
    assert_eq!(before, after, "nothing is made");
    let (code, _) = plugin
        .call(node, "STATUS", &Attachment::named(""), conf)
        .error();
    assert_eq!(code, 50);
    text
}

#[test]
fn a_subnet_that_another_network_has_pods_in_is_refused() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    plugin.add(&pod, &flannel_form("cbr0")).ok();
    // In either form, by the subnet file or by name, the whole of it or a part, or more than it.
    for conf in [
        flannel_form("other"),
        json!({"cniVersion": "1.1.0", "name": "other", "type": "cni-hostgw"}),
        bridge_form("other", "10.10.1.0/24"),
        bridge_form("other", "10.10.1.128/25"),
        bridge_form("other", "10.10.0.0/16"),
    ] {
        let text = refused(&node, &plugin, &pod, &conf);
        for said in [
            r#"network "other""#,
            r#"network "cbr0""#,
            "10.10.1.2",
            "container a",
            "another subnet",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
    // Another subnet is another matter; and so is this one when the first network's pods are gone.
    let mut conf = bridge_form("other", "10.20.1.0/24");
    conf["bridge"] = json!("cni1");
    plugin.call(&node, "ADD", &second(&pod), &conf).ok();
    plugin.call(&node, "DEL", &second(&pod), &conf).ok();
    plugin.del(&pod, &flannel_form("cbr0")).ok();
    plugin.add(&pod, &flannel_form("other")).ok();
    let text = refused(&node, &plugin, &pod, &flannel_form("cbr0"));
    assert!(text.contains("container a"), "{text}");
}

#[test]
fn a_subnet_of_the_reference_or_of_another_data_dir_or_family_is_found_too() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let mut theirs = bridge_form("theirs", "10.10.1.0/24");
    theirs["cniVersion"] = json!("1.0.0");
    Plugin::reference("bridge").add(&pod, &theirs).ok();
    let conf = bridge_form("ours", "10.10.1.0/24");
    let text = refused(&node, &plugin, &pod, &conf);
    assert!(text.contains(r#"network "theirs""#), "{text}");
    // What was reserved before the machine was booted is nobody's.
    node.sh("touch -d '2001-01-01' /var/lib/cni/networks/theirs/10.10.1.2; ip netns del a; ip link del cni0")
        .ok();
    let pod = node.pod("b");
    plugin.add(&pod, &conf).ok();
    plugin.del(&pod, &conf).ok();
    let mut elsewhere = bridge_form("elsewhere", "10.10.2.0/24");
    elsewhere["bridge"] = json!("cni2");
    elsewhere["ipam"]["ranges"] =
        json!([[{"subnet": "10.10.2.0/24"}], [{"subnet": "fd00:10:10:2::/64"}]]);
    elsewhere["ipam"]["dataDir"] = json!("/var/lib/elsewhere");
    plugin.add(&pod, &elsewhere).ok();
    let mut ipv6 = bridge_form("ours", "fd00:10:10:2::/64");
    ipv6["bridge"] = json!("cni3");
    let text = refused(&node, &plugin, &pod, &ipv6);
    assert!(text.contains("in /var/lib/elsewhere/elsewhere"), "{text}");
}

#[test]
fn a_gateway_that_another_interface_has_is_refused_unless_it_is_an_empty_bridge() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let conf = bridge_form("n", "10.10.1.0/24");
    node.sh("ip addr add 10.10.1.1/32 dev enp0s5").ok();
    let (code, text) = plugin.add(&pod, &conf).error();
    assert_eq!(code, 100, "{text}");
    let said = "cni0 cannot have the gateway's address 10.10.1.1/24: enp0s5 has it already";
    assert!(text.contains(said), "{text}");
    assert!(node.ports().is_empty());
    node.sh("ip addr del 10.10.1.1/32 dev enp0s5").ok();
    // The network's own bridge, before its configuration named another.
    plugin.add(&pod, &conf).ok();
    let mut renamed = conf.clone();
    renamed["bridge"] = json!("br-new");
    let other = node.pod("b");
    let (code, text) = plugin.add(&other, &renamed).error();
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("cni0 has it already"), "{text}");
    plugin.del(&pod, &conf).ok();
    plugin.add(&other, &renamed).ok();
    assert!(other.pings("10.10.1.1"));
}

/// ADDs of two networks in the same instant.
fn at_once(node: &Node<'_>, plugin: &Plugin, requests: [(&str, &Value); 2]) -> [Reply; 2] {
    let start =
        |(name, conf): (&str, &Value)| plugin.start(node, "ADD", &Attachment::named(name), conf);
    requests.map(start).map(conformance::Running::wait)
}

#[test]
fn of_two_networks_on_one_bridge_at_once_one_is_refused() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let (_a, _b) = (node.pod("a"), node.pod("b"));
    let crio = bridge_form("crio", "10.85.0.0/16");
    let podman = bridge_form("podman", "10.88.0.0/16");
    for _ in 0..40 {
        let [one, other] = at_once(&node, &plugin, [("a", &crio), ("b", &podman)]);
        let addresses = node.sh("ip -o -4 addr show dev cni0").ok();
        let (is_first, refused) = if one.success {
            (true, other)
        } else {
            (false, one)
        };
        let (code, text) = refused.error();
        assert_eq!(code, 100, "{text}");
        assert!(
            text.contains("already has an IP address different"),
            "{text}"
        );
        assert_eq!(addresses.contains("10.85.0.1/16"), is_first, "{addresses}");
        assert_eq!(addresses.contains("10.88.0.1/16"), !is_first, "{addresses}");
        for (name, conf) in [("a", &crio), ("b", &podman)] {
            plugin
                .call(&node, "DEL", &Attachment::named(name), conf)
                .ok();
        }
        node.sh("ip link delete cni0").ok();
    }
    // One network whose subnet changes between two requests, and one subnet in two networks.
    let other = bridge_form("crio", "10.86.0.0/16");
    let same = bridge_form("podman", "10.85.0.0/16");
    for (conf, code) in [(&other, 100), (&same, 7)] {
        for _ in 0..20 {
            let replies = at_once(&node, &plugin, [("a", &crio), ("b", conf)]);
            let failed: Vec<_> = replies.into_iter().filter(|r| !r.success).collect();
            assert_eq!(failed.len(), 1);
            for reply in failed {
                assert_eq!(reply.error().0, code);
            }
            let addresses = node.sh("ip -o -4 addr show dev cni0 | wc -l").ok();
            assert_eq!(addresses.trim(), "1");
            for (name, conf) in [("a", &crio), ("b", conf)] {
                plugin
                    .call(&node, "DEL", &Attachment::named(name), conf)
                    .ok();
            }
            node.sh("ip link delete cni0").ok();
        }
    }
}

#[test]
fn a_stuck_holder_of_the_nodes_lock_blocks_nobody_for_ever() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    // In this node and in another one: the lock is the network namespace's.
    let other = lab.node("worker2", &["192.168.2.15/24"]);
    let holder = Server::program(&node, "flock", "/var/lib/cni/hostgw.lock busybox sleep 30");
    conformance::wait_for("the lock is held", || {
        !node.sh("flock -n /var/lib/cni/hostgw.lock true").success
    });
    let conf = bridge_form("cbr0", "10.10.1.0/24");
    let begin = std::time::Instant::now();
    let elsewhere = other.pod("b");
    plugin.add(&elsewhere, &conf).ok();
    assert!(begin.elapsed().as_secs() < 5, "another node goes on");
    let (code, text) = plugin.add(&pod, &conf).error();
    assert_eq!(code, 11, "{text}");
    assert!(text.contains("held for more than 10s by process"), "{text}");
    assert!(begin.elapsed().as_secs() < 20);
    drop(holder);
}

#[test]
fn an_address_that_another_ipam_plugin_gives_is_nobody_elses_on_the_node() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let (a, b) = (node.pod("a"), node.pod("b"));
    plugin.add(&a, &bridge_form("cbr0", "10.10.1.0/24")).ok();
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "fixed", "type": "bridge",
        "ipam": {"type": "static", "addresses": [{"address": "10.10.1.2/24"}]},
    });
    let (code, text) = plugin.add(&b, &conf).error();
    assert_eq!(code, 7, "{text}");
    assert!(
        text.contains(r#"network "cbr0""#) && text.contains("container a"),
        "{text}"
    );
    assert_eq!(node.ports().len(), 1);
    conf["ipam"]["addresses"] = json!([{"address": "10.10.1.200/24"}]);
    plugin.add(&b, &conf).ok();
}

#[test]
fn a_store_by_another_path_is_the_same_store() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    node.sh("mkdir -p /var/lib/cni/networks && ln -s /var/lib/cni/networks /var/lib/link")
        .ok();
    let mut conf = bridge_form("cbr0", "10.10.1.0/24");
    for (name, data_dir) in [
        ("a", "/var/lib/link"),
        ("b", "/var/lib/cni/networks/"),
        ("c", "/var/lib/link"),
        ("d", "/var/lib/../lib/cni/networks"),
    ] {
        conf["ipam"]["dataDir"] = json!(data_dir);
        plugin.add(&node.pod(name), &conf).ok();
    }
    assert_eq!(node.ports().len(), 4);
}

#[test]
fn one_networks_stuck_store_keeps_no_other_from_the_bridges() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let (stuck, other) = (bridge_form("stuck", "10.10.1.0/24"), {
        let mut conf = bridge_form("other", "10.20.1.0/24");
        conf["bridge"] = json!("cni1");
        conf
    });
    let (_a, _b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
    plugin.add(&node.pod("first"), &stuck).ok();
    let holder = Server::program(
        &node,
        "flock",
        "/var/lib/cni/networks/stuck/lock busybox sleep 20",
    );
    conformance::wait_for("the lock is held", || {
        !node
            .sh("flock -n /var/lib/cni/networks/stuck/lock true")
            .success
    });
    let start = |name: &str| plugin.start(&node, "ADD", &Attachment::named(name), &stuck);
    let waiting = ["a", "b"].map(start);
    let begin = std::time::Instant::now();
    plugin.add(&c, &other).ok();
    assert!(begin.elapsed().as_secs() < 5);
    for add in waiting {
        assert_eq!(add.wait().error().0, 11);
    }
    drop(holder);
}
