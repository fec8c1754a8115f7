//! A subnet belongs to one network only, and changes of a bridge are made one at a time.

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
fn with_type_bridge_a_network_without_ipam_gets_no_addresses() {
    // The form in which users of Multus and OpenShift write a second network.
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
        // `ipam` without a type means the same as no `ipam`, whatever its other keys.
        let mut untyped = conf(kind);
        untyped["ipam"] = json!({"ranges": [[{"subnet": "10.10.1.0/24"}]]});
        let result = plugin.call(&node, "ADD", &attachment, &untyped).ok();
        assert_eq!(result["ips"].is_array(), has_addresses, "{kind}: {result}");
    }
}

/// Checks that ADD of `conf` for a second interface of the pod fails and creates nothing, and that
/// STATUS fails. Returns the error.
fn expect_rejected(node: &Node<'_>, plugin: &Plugin, pod: &Pod<'_>, conf: &Value) -> String {
    let before = node
        .sh("ls -R /var/lib/cni/networks; ip -o link | wc -l")
        .ok();
    let (code, text) = plugin.call(node, "ADD", &second(pod), conf).error();
    assert_eq!(code, 7, "{text}");
    let after = node
        .sh("ls -R /var/lib/cni/networks; ip -o link | wc -l")
        .ok();
    assert_eq!(before, after, "nothing is created");
    let (code, _) = plugin
        .call(node, "STATUS", &Attachment::named(""), conf)
        .error();
    assert_eq!(code, 50);
    text
}

#[test]
fn a_subnet_in_which_another_network_has_pods_is_rejected() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    plugin.add(&pod, &flannel_form("cbr0")).ok();
    // In either form, with the subnet from the subnet file or from the configuration: the same
    // subnet, a part of it, or a larger one.
    for conf in [
        flannel_form("other"),
        json!({"cniVersion": "1.1.0", "name": "other", "type": "cni-hostgw"}),
        bridge_form("other", "10.10.1.0/24"),
        bridge_form("other", "10.10.1.128/25"),
        bridge_form("other", "10.10.0.0/16"),
    ] {
        let text = expect_rejected(&node, &plugin, &pod, &conf);
        for expected in [
            r#"network "other""#,
            r#"network "cbr0""#,
            "10.10.1.2",
            "container a",
            "another subnet",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
    // Another subnet is accepted. The same subnet is accepted once the first network has no pods.
    let mut conf = bridge_form("other", "10.20.1.0/24");
    conf["bridge"] = json!("cni1");
    plugin.call(&node, "ADD", &second(&pod), &conf).ok();
    plugin.call(&node, "DEL", &second(&pod), &conf).ok();
    plugin.del(&pod, &flannel_form("cbr0")).ok();
    plugin.add(&pod, &flannel_form("other")).ok();
    let text = expect_rejected(&node, &plugin, &pod, &flannel_form("cbr0"));
    assert!(text.contains("container a"), "{text}");
}

#[test]
fn subnet_conflicts_are_detected_with_reference_plugins_other_data_dirs_and_other_families() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let mut theirs = bridge_form("theirs", "10.10.1.0/24");
    theirs["cniVersion"] = json!("1.0.0");
    Plugin::reference("bridge").add(&pod, &theirs).ok();
    let conf = bridge_form("ours", "10.10.1.0/24");
    let text = expect_rejected(&node, &plugin, &pod, &conf);
    assert!(text.contains(r#"network "theirs""#), "{text}");
    // A reservation from before the last boot does not count.
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
    let text = expect_rejected(&node, &plugin, &pod, &ipv6);
    assert!(text.contains("in /var/lib/elsewhere/elsewhere"), "{text}");
}

#[test]
fn a_gateway_address_of_another_interface_is_rejected_unless_that_is_an_empty_bridge() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let conf = bridge_form("n", "10.10.1.0/24");
    node.sh("ip addr add 10.10.1.1/32 dev enp0s5").ok();
    let (code, text) = plugin.add(&pod, &conf).error();
    assert_eq!(code, 100, "{text}");
    let expected = "cni0 cannot get the gateway address 10.10.1.1/24: enp0s5 already has it";
    assert!(text.contains(expected), "{text}");
    assert!(node.ports().is_empty());
    node.sh("ip addr del 10.10.1.1/32 dev enp0s5").ok();
    // The network's own bridge from before its configuration named another bridge.
    plugin.add(&pod, &conf).ok();
    let mut renamed = conf.clone();
    renamed["bridge"] = json!("br-new");
    let other = node.pod("b");
    let (code, text) = plugin.add(&other, &renamed).error();
    assert_eq!(code, 100, "{text}");
    assert!(text.contains("cni0 already has it"), "{text}");
    plugin.del(&pod, &conf).ok();
    plugin.add(&other, &renamed).ok();
    assert!(other.pings("10.10.1.1"));
}

/// Runs ADDs for two networks at the same time.
fn add_concurrently(node: &Node<'_>, plugin: &Plugin, requests: [(&str, &Value); 2]) -> [Reply; 2] {
    let start =
        |(name, conf): (&str, &Value)| plugin.start(node, "ADD", &Attachment::named(name), conf);
    requests.map(start).map(conformance::Running::wait)
}

#[test]
fn of_two_concurrent_networks_on_one_bridge_one_is_rejected() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let (_a, _b) = (node.pod("a"), node.pod("b"));
    let crio = bridge_form("crio", "10.85.0.0/16");
    let podman = bridge_form("podman", "10.88.0.0/16");
    for _ in 0..40 {
        let [one, other] = add_concurrently(&node, &plugin, [("a", &crio), ("b", &podman)]);
        let addresses = node.sh("ip -o -4 addr show dev cni0").ok();
        let (is_first, expect_rejected) = if one.success {
            (true, other)
        } else {
            (false, one)
        };
        let (code, text) = expect_rejected.error();
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
    // One network whose subnet changes between the two requests; then two networks with the same
    // subnet.
    let other = bridge_form("crio", "10.86.0.0/16");
    let same = bridge_form("podman", "10.85.0.0/16");
    for (conf, code) in [(&other, 100), (&same, 7)] {
        for _ in 0..20 {
            let replies = add_concurrently(&node, &plugin, [("a", &crio), ("b", conf)]);
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
fn an_add_gives_up_on_the_node_lock_after_ten_seconds() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    // The lock belongs to the network namespace: an ADD on another node is not blocked.
    let other = lab.node("worker2", &["192.168.2.15/24"]);
    let holder = Server::program(&node, "flock", "/var/lib/cni/hostgw.lock busybox sleep 30");
    conformance::wait_for("the lock is held", || {
        !node.sh("flock -n /var/lib/cni/hostgw.lock true").success
    });
    let conf = bridge_form("cbr0", "10.10.1.0/24");
    let begin = std::time::Instant::now();
    let elsewhere = other.pod("b");
    plugin.add(&elsewhere, &conf).ok();
    assert!(begin.elapsed().as_secs() < 5, "another node is not blocked");
    let (code, text) = plugin.add(&pod, &conf).error();
    assert_eq!(code, 11, "{text}");
    assert!(text.contains("held for more than 10s by process"), "{text}");
    assert!(begin.elapsed().as_secs() < 20);
    drop(holder);
}

#[test]
fn an_address_of_another_ipam_plugin_must_not_be_reserved_on_the_node() {
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
fn one_store_may_be_configured_by_different_paths() {
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
fn a_blocked_store_of_one_network_does_not_block_other_networks() {
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
