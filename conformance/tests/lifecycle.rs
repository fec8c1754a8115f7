//! ADD and DEL: repeated, late, concurrent and failed requests, and what they leave behind.

use std::time::Duration;

use conformance::{Attachment, Lab, Node, Output, Plugin, Reply, Server};
use serde_json::{Value, json};

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n";

/// Returns a node with a subnet file but without an agent, which would rewrite the file.
fn node(lab: &Lab) -> Node<'_> {
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.sh("mkdir -p /run/flannel").ok();
    std::fs::write(node.path("/run/flannel/subnet.env"), SUBNET_ENV).expect("writes");
    node
}

/// Returns the names of the links in pod `a`.
fn links_inside(node: &Node<'_>) -> String {
    node.sh("ip -n a -o link show | cut -d: -f2").ok()
}

fn flannel_form() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "cni-hostgw",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
    })
}

/// Returns everything that an ADD may leave behind: links, addresses of the bridge, and files with
/// their content.
fn traces(node: &Node<'_>) -> String {
    node.sh(
        "ip -o link show | cut -d: -f2 | sort; ip -o addr show dev cni0 | grep -v fe80; \
         cd /var/lib/cni && find . -type f | sort | xargs grep -H ''; ls /run /run/netns",
    )
    .stdout
}

#[test]
fn a_second_add_fails_and_leaves_the_first_alone() {
    let lab = Lab::new();
    let node = node(&lab);
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    let (a, b) = (node.pod("a"), node.pod("b"));
    let first = plugin.add(&a, &conf).addresses();
    plugin.add(&b, &conf).ok();
    let before = traces(&node);
    let (code, text) = plugin.add(&a, &conf).error();
    assert_eq!(code, 4, "{text}");
    assert!(
        text.contains(r#"CNI_IFNAME: "eth0" already exists"#),
        "{text}"
    );
    assert_eq!(traces(&node), before);
    assert!(b.pings(&first[0]));

    // The same attachment, requested in another network namespace with other arguments: the live
    // attachment retains its link, bridge port and neighbours.
    let elsewhere = Attachment::named("a").in_netns("/run/netns/c");
    let elsewhere = elsewhere.with_args("MAC=02:00:00:00:00:09");
    let _c = node.pod("c");
    let (code, text) = plugin.call(&node, "ADD", &elsewhere, &conf).error();
    assert_eq!(code, 4, "{text}");
    assert!(
        text.contains("already exists in another network namespace"),
        "{text}"
    );
    assert!(b.pings(&first[0]));
    let ports = node.sh("ip -d link show type bridge_slave").ok();
    assert_eq!(ports.matches("hairpin on").count(), 2, "{ports}");
    // The same after the address store has been deleted.
    node.sh("rm -r /var/lib/cni/networks").ok();
    let (code, text) = plugin.call(&node, "ADD", &elsewhere, &conf).error();
    assert_eq!(code, 4, "{text}");
    let ports = node.sh("ip -d link show type bridge_slave").ok();
    assert_eq!(ports.matches("hairpin on").count(), 2, "{ports}");
    node.sh(&format!("busybox ping -c 1 -W 1 {}", first[0]))
        .ok();
}

#[test]
fn the_reference_also_fails_a_second_add() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::reference("bridge");
    let pod = node.pod("a");
    plugin.add(&pod, &bridge_form("bridge")).ok();
    let (code, text) = plugin.add(&pod, &bridge_form("bridge")).error();
    assert_eq!(code, 999, "{text}");
}

fn bridge_form(kind: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": kind,
        "bridge": "cni0",
        "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]]},
    })
}

#[test]
fn a_second_del_succeeds_and_changes_nothing() {
    for plugin_of in [Plugin::ours as fn(&Lab) -> Plugin, |_| {
        Plugin::reference("bridge")
    }] {
        let lab = Lab::new();
        let node = node(&lab);
        let (plugin, conf) = (plugin_of(&lab), bridge_form("bridge"));
        let pod = node.pod("a");
        plugin.add(&pod, &conf).ok();
        plugin.del(&pod, &conf).ok();
        let after = traces(&node);
        assert!(
            !after.contains("veth") && !after.contains("eth0"),
            "{after}"
        );
        plugin.del(&pod, &conf).ok();
        assert_eq!(traces(&node), after);
    }
}

/// Adds pod `a`, calls `spoil`, and checks that DEL with this `CNI_NETNS` succeeds and leaves
/// nothing behind.
fn del_leaves_nothing(conf: &Value, netns: Option<&str>, spoil: impl Fn(&Node<'_>)) {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let other = node.pod("other");
    plugin.add(&other, conf).ok();
    let before = traces(&node).replace("\na\n", "\n");
    let pod = node.pod("a");
    plugin.add(&pod, conf).ok();
    spoil(&node);
    let mut attachment = Attachment::of(&pod);
    if let Some(netns) = netns {
        attachment = attachment.in_netns(netns);
    }
    plugin.call(&node, "DEL", &attachment, conf).ok();
    let after = traces(&node).replace("\na\n", "\n");
    let without_round_robin_state = |text: &str| -> Vec<String> {
        let is_compared = |line: &&str| !line.contains("last_reserved_ip") && *line != "flannel";
        text.lines()
            .filter(is_compared)
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        without_round_robin_state(&after),
        without_round_robin_state(&before)
    );
    plugin.call(&node, "DEL", &attachment, conf).ok();
}

#[test]
fn del_succeeds_after_the_namespace_was_deleted() {
    del_leaves_nothing(&flannel_form(), None, |node| {
        drop(node.sh("ip netns delete a").ok());
    });
}

#[test]
fn del_succeeds_with_an_empty_cni_netns() {
    del_leaves_nothing(&flannel_form(), Some(""), |_| {});
}

#[test]
fn del_succeeds_when_cni_netns_is_not_a_namespace() {
    del_leaves_nothing(&flannel_form(), Some("/etc/passwd"), |_| {});
}

#[test]
fn del_succeeds_without_the_subnet_file() {
    del_leaves_nothing(&flannel_form(), None, |node| {
        drop(node.sh("rm -r /run/flannel").ok());
    });
}

#[test]
fn del_succeeds_when_the_link_is_gone() {
    del_leaves_nothing(&flannel_form(), None, |node| {
        drop(node.sh("ip -n a link delete eth0").ok());
    });
}

#[test]
fn add_and_del_reject_the_nodes_own_namespace_and_change_nothing() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let before = traces(&node);
    // If a process id has been reused, the path may lead to the node's own namespace. A DEL there
    // would delete the node's own eth0.
    node.sh("ip link add eth0 type veth peer name eth1").ok();
    let with_eth0 = traces(&node);
    for own in [
        format!("/proc/{}/ns/net", node.pid()),
        "/proc/self/ns/net".to_owned(),
    ] {
        for verb in ["ADD", "DEL"] {
            let attachment = Attachment::named("a").in_netns(&own);
            let (code, text) = plugin
                .call(&node, verb, &attachment, &flannel_form())
                .error();
            assert_eq!(code, 8, "{verb}: {text}");
            assert_eq!(traces(&node), with_eth0);
        }
    }
    assert_ne!(before, with_eth0);
}

/// Runs an ADD that must fail, on a node without earlier attachments, and compares all traces
/// before and after it. Files and links that belong to the node, not to the attachment, may remain:
/// the store's lock, boot id, marks, settings and round robin state, and those named in `also`.
fn failed_add(
    spoil: impl Fn(&Node<'_>),
    conf: &Value,
    attachment: &Attachment,
    also: &[&str],
) -> (u64, String) {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let _pod = node.pod("a");
    spoil(&node);
    let (before, inside_before) = (traces(&node), links_inside(&node));
    let error = plugin.call(&node, "ADD", attachment, conf).error();
    let (after, before) = (traces(&node), before.lines().collect::<Vec<_>>());
    let of_node = [
        "/lock:",
        "/boot_id:",
        "/marks:",
        "/settings:",
        "/last_reserved_ip.0:",
    ];
    let new: Vec<_> = after
        .lines()
        .filter(|line| !before.contains(line))
        .collect();
    let left: Vec<_> = new
        .into_iter()
        .filter(|line| {
            !of_node
                .iter()
                .chain(also)
                .any(|allowed| line.contains(allowed))
        })
        .collect();
    assert_eq!(left, Vec::<&str>::new(), "{error:?}");
    assert_eq!(links_inside(&node), inside_before, "{error:?}");
    error
}

#[test]
fn an_add_whose_interface_name_exists_fails_and_leaves_nothing() {
    let spoil = |node: &Node<'_>| {
        drop(
            node.sh("ip -n a link add eth0 type veth peer name eth9")
                .ok(),
        );
    };
    let (code, text) = failed_add(spoil, &flannel_form(), &Attachment::named("a"), &[]);
    assert_eq!(code, 4, "{text}");
}

#[test]
fn an_add_with_an_exhausted_range_fails_and_leaves_nothing() {
    let mut conf = bridge_form("cni-hostgw");
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.10.1.0/30"}]]);
    let spoil = |node: &Node<'_>| {
        let store = node.path("/var/lib/cni/networks/cbr0");
        std::fs::create_dir_all(&store).expect("makes it");
        std::fs::write(store.join("10.10.1.2"), "somebody\r\neth0").expect("writes");
    };
    let (code, text) = failed_add(spoil, &conf, &Attachment::named("a"), &[]);
    assert_eq!(code, 101, "{text}");
    let wanted = "no IP addresses available in range set 10.10.1.1-10.10.1.2: all 1 are reserved in \
                  /var/lib/cni/networks/cbr0; reclaimed 0 stale reservations";
    assert_eq!(text.trim_end_matches("; "), wanted);
}

#[test]
fn an_add_whose_bridge_name_belongs_to_a_veth_fails_and_leaves_nothing() {
    let spoil = |node: &Node<'_>| {
        drop(node.sh("ip link add cni0 type veth peer name cni1").ok());
    };
    let (code, text) = failed_add(spoil, &flannel_form(), &Attachment::named("a"), &[]);
    assert_eq!(code, 100, "{text}");
    assert!(
        text.contains("cni0 already exists but is not a bridge"),
        "{text}"
    );
}

#[test]
fn an_add_whose_last_step_fails_leaves_nothing() {
    let mut conf = bridge_form("cni-hostgw");
    // This gateway is unreachable: the kernel rejects the route after all other steps have
    // succeeded.
    conf["ipam"]["routes"] = json!([{"dst": "10.99.0.0/16", "gw": "10.77.0.1"}]);
    let (code, text) = failed_add(|_| {}, &conf, &Attachment::named("a"), &["cni0"]);
    assert_eq!(code, 100, "{text}");
    assert!(
        text.contains("add route 10.99.0.0/16 via 10.77.0.1"),
        "{text}"
    );
    assert!(
        text.contains("Nexthop has invalid gateway"),
        "includes the kernel's message: {text}"
    );
}

#[test]
fn an_add_without_a_subnet_file_fails_with_try_again_later() {
    let spoil = |node: &Node<'_>| drop(node.sh("rm -r /run/flannel").ok());
    let (code, text) = failed_add(spoil, &flannel_form(), &Attachment::named("a"), &[]);
    assert_eq!(code, 11, "{text}");
    for expected in ["/run/flannel/subnet.env, waited 2s", "hostgw-agent"] {
        assert!(text.contains(expected), "{text}");
    }
    let spoil = |node: &Node<'_>| drop(node.sh("sed -i /MTU/d /run/flannel/subnet.env").ok());
    let mut conf = flannel_form();
    conf["subnetFileWait"] = json!(0.1);
    let (code, text) = failed_add(spoil, &conf, &Attachment::named("a"), &[]);
    assert_eq!(code, 11, "{text}");
    for expected in ["waited 100ms", "is missing FLANNEL_MTU"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn an_add_waits_for_the_subnet_file() {
    let lab = Lab::new();
    let node = node(&lab);
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    node.sh("mv /run/flannel/subnet.env /run/flannel/later")
        .ok();
    let _pod = node.pod("a");
    let running = plugin.start(&node, "ADD", &Attachment::named("a"), &conf);
    std::thread::sleep(std::time::Duration::from_millis(300));
    node.sh("mv /run/flannel/later /run/flannel/subnet.env")
        .ok();
    assert_eq!(running.wait().addresses(), ["10.10.1.2"]);
}

#[test]
fn sixty_four_concurrent_adds_get_distinct_addresses_and_dels_empty_the_store() {
    let lab = Lab::new();
    let node = node(&lab);
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    let names: Vec<_> = (0..64).map(|i| format!("p{i}")).collect();
    let script: Vec<_> = names
        .iter()
        .map(|name| format!("ip netns add {name}"))
        .collect();
    node.sh(&script.join(" && ")).ok();
    let all = |verb: &str| -> Vec<Reply> {
        let started: Vec<_> = names
            .iter()
            .map(|name| plugin.start(&node, verb, &Attachment::named(name), &conf))
            .collect();
        started
            .into_iter()
            .map(conformance::Running::wait)
            .collect()
    };
    let mut addresses: Vec<_> = all("ADD").iter().flat_map(Reply::addresses).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 64);
    for reply in all("DEL") {
        reply.ok();
    }
    let left = node
        .sh("cd /var/lib/cni/networks/cbr0 && ls -A . .attachments && ip -o link show type bridge_slave")
        .ok();
    let left: Vec<_> = left
        .lines()
        .filter(|line| line.contains("10.10.") || line.contains(":eth0") || line.contains("veth"))
        .collect();
    assert_eq!(left, Vec::<&str>::new());
}

#[test]
fn an_exhausted_range_reclaims_the_address_of_a_pod_that_vanished_without_del() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let mut conf = bridge_form("cni-hostgw");
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.10.1.0/29"}]]);
    let pods: Vec<_> = (0..5).map(|i| node.pod(&format!("p{i}"))).collect();
    for pod in &pods {
        plugin.add(pod, &conf).ok();
    }
    let more = node.pod("more");
    assert_eq!(
        plugin.add(&more, &conf).error().0,
        101,
        "all five pods are live"
    );
    // The pod vanished without a DEL two minutes ago.
    node.sh(
        "ip netns delete p2; touch -d '-2 minutes' /var/lib/cni/networks/cbr0/.attachments/p2:eth0",
    )
    .ok();
    conformance::wait_for(
        "the kernel deletes the veth together with the namespace",
        || {
            node.sh("ip -o link show type bridge_slave")
                .ok()
                .lines()
                .count()
                == 4
        },
    );
    assert_eq!(plugin.add(&more, &conf).addresses(), ["10.10.1.4"]);
}

#[test]
fn reservations_from_before_a_reboot_are_discarded() {
    let lab = Lab::new();
    let node = node(&lab);
    let (plugin, mut conf) = (Plugin::ours(&lab), bridge_form("cni-hostgw"));
    conf["ipam"]["ranges"] = json!([[{"subnet": "10.10.1.0/30"}]]);
    let a = node.pod("a");
    plugin.add(&a, &conf).ok();
    // The state after a reboot: no links, another boot id, and the old files.
    node.sh("ip netns delete a; ip link delete cni0; echo other > /var/lib/cni/networks/cbr0/.attachments/boot_id").ok();
    let b = node.pod("b");
    assert_eq!(plugin.add(&b, &conf).addresses(), ["10.10.1.2"]);
}

#[test]
fn del_leaves_an_interface_of_another_attachment_alone() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let (pod, other) = (node.pod("a"), node.pod("b"));
    let address = plugin.add(&pod, &flannel_form()).addresses();
    plugin.add(&other, &flannel_form()).ok();
    // ADD for a second network with the same namespace and interface name fails; then DEL for it
    // must not touch the interface.
    let mut second = flannel_form();
    second["name"] = json!("second");
    let attachment = Attachment::named("other-id").in_netns("/run/netns/a");
    assert_eq!(plugin.call(&node, "ADD", &attachment, &second).error().0, 4);
    plugin.call(&node, "DEL", &attachment, &second).ok();
    assert!(other.pings(&address[0]));
}

#[test]
fn del_does_not_block_on_a_cni_netns_that_is_not_a_network_namespace() {
    del_leaves_nothing(&flannel_form(), Some("/var/lib/fifo"), |node| {
        drop(node.sh("mkfifo /var/lib/fifo").ok());
    });
    del_leaves_nothing(&flannel_form(), Some("/proc/self/ns/mnt"), |_| {});
}

#[test]
fn routes_that_exist_already_do_not_fail_an_add() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    // A cluster with one node, whose subnet is the whole network.
    let env = SUBNET_ENV.replace("10.10.0.0/16", "10.10.1.0/24");
    std::fs::write(node.path("/run/flannel/subnet.env"), env).expect("writes");
    let pod = node.pod("a");
    plugin.add(&pod, &flannel_form()).ok();
    // A second network of the same pod, with its own default route.
    let mut second = bridge_form("cni-hostgw");
    second["name"] = json!("second");
    second["bridge"] = json!("cni1");
    second["ipam"]["ranges"] = json!([[{"subnet": "10.20.1.0/24"}], [{"subnet": "fd00:20::/64"}]]);
    let mut attachment = Attachment::of(&pod);
    attachment.ifname = "net1".to_owned();
    plugin.call(&node, "ADD", &attachment, &second).ok();
    let routes = pod.sh("busybox ip route").ok();
    // The newest default route comes first, as with the reference since 1.6.0.
    let defaults: Vec<_> = routes
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("default"))
        .collect();
    assert_eq!(
        defaults,
        [
            "default via 10.20.1.1 dev net1",
            "default via 10.10.1.1 dev eth0"
        ]
    );
    assert!(!routes.contains("10.10.1.0/24 via"), "{routes}");
    // A third network, so that IPv6 has two default routes as well.
    second["name"] = json!("third");
    second["bridge"] = json!("cni2");
    second["ipam"]["ranges"] = json!([[{"subnet": "fd00:30::/64"}]]);
    attachment.ifname = "net2".to_owned();
    plugin.call(&node, "ADD", &attachment, &second).ok();
    // In IPv6, the kernel uses both default routes.
    let routes = pod.sh("ip -6 route show default").ok();
    for hop in [
        "nexthop via fd00:20::1 dev net1",
        "nexthop via fd00:30::1 dev net2",
    ] {
        assert!(routes.contains(hop), "{hop}: {routes}");
    }
    // A third default route in IPv4.
    second["name"] = json!("fourth");
    second["bridge"] = json!("cni3");
    second["ipam"]["ranges"] = json!([[{"subnet": "10.30.1.0/24"}]]);
    attachment.ifname = "net3".to_owned();
    second["prevResult"] = plugin.call(&node, "ADD", &attachment, &second).ok();
    let routes = pod.sh("busybox ip route").ok();
    assert!(
        routes.starts_with("default via 10.30.1.1 dev net3"),
        "{routes}"
    );
    plugin.call(&node, "CHECK", &attachment, &second).ok();
}

#[test]
fn is_gateway_force_address_and_port_isolation_take_effect() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let mut conf = bridge_form("cni-hostgw");
    conf["isDefaultGateway"] = json!(false);
    let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
    plugin.add(&a, &conf).ok();
    assert!(
        !node.sh("ip -o addr show dev cni0").ok().contains("inet "),
        "no gateway"
    );
    assert!(!a.sh("ip route").ok().contains("default"));
    plugin.del(&a, &conf).ok();
    // A bridge with a port of another process is in use.
    node.sh("ip addr add 10.10.9.1/24 dev cni0 && ip link add tap type veth peer name pat && ip link set tap master cni0")
        .ok();
    conf["isGateway"] = json!(true);
    assert_eq!(plugin.add(&a, &conf).error().0, 100);
    conf["forceAddress"] = json!(true);
    conf["portIsolation"] = json!(true);
    plugin.add(&a, &conf).ok();
    let addresses = node.sh("ip -o -4 addr show dev cni0").ok();
    assert!(
        addresses.contains("10.10.1.1/24") && !addresses.contains("10.10.9.1"),
        "{addresses}"
    );
    let isolated = plugin.add(&b, &conf).addresses();
    // Another network on the same bridge has its own port isolation setting. It uses static
    // addresses, because a subnet belongs to one network only.
    conf["name"] = json!("open");
    conf["portIsolation"] = json!(false);
    conf["ipam"] = json!({
        "type": "static", "addresses": [{"address": "10.10.1.100/24", "gateway": "10.10.1.1"}],
    });
    let open = plugin.add(&c, &conf).addresses();
    assert!(a.pings("10.10.1.1") && a.pings(&open[0]));
    assert!(
        !a.sh(&format!("busybox ping -c 1 -W 1 {}", isolated[0]))
            .success
    );
}

#[test]
fn an_add_gives_up_on_a_lock_held_for_more_than_ten_seconds_and_names_the_holder() {
    let lab = Lab::new();
    let node = node(&lab);
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    let (a, b) = (node.pod("a"), node.pod("b"));
    plugin.add(&a, &conf).ok();
    let mut stuck = node.command("flock");
    let mut stuck = stuck
        .args(["/var/lib/cni/networks/cbr0/lock", "sleep", "13"])
        .spawn()
        .expect("starts");
    conformance::wait_for("the lock is held", || {
        !node
            .sh("flock -n /var/lib/cni/networks/cbr0/lock true")
            .success
    });
    let before = traces(&node);
    let (code, text) = plugin.add(&b, &conf).error();
    assert_eq!(code, 11, "{text}");
    let holder = format!(
        "/cbr0/lock: held for more than 10s by process {} (flock)",
        stuck.id()
    );
    assert!(text.contains(&holder), "{holder}: {text}");
    assert_eq!(traces(&node), before);
    assert!(stuck.wait().expect("the process ends").success());
    plugin.add(&b, &conf).ok();
}

#[test]
fn pod_names_may_be_as_long_as_kubernetes_allows() {
    let lab = Lab::new();
    let node = node(&lab);
    let (plugin, mut conf) = (Plugin::ours(&lab), flannel_form());
    let (namespace, name) = ("n".repeat(63), "p".repeat(253));
    for (i, network) in ["cbr0".to_owned(), "n".repeat(250)].iter().enumerate() {
        conf["name"] = serde_json::json!(network);
        let _pod = node.pod(&format!("a{i}"));
        let attachment = Attachment {
            id: "c".repeat(64),
            netns: format!("/run/netns/a{i}"),
            ifname: "fifteen-bytes-x".to_owned(),
            args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"),
        };
        plugin.call(&node, "ADD", &attachment, &conf).ok();
        let alias = node.sh("ip link show type bridge_slave").ok();
        assert!(alias.contains("alias cni-hostgw "), "{alias}");
        plugin.call(&node, "DEL", &attachment, &conf).ok();
    }
}

#[test]
fn interface_names_with_a_percent_sign_are_rejected() {
    let lab = Lab::new();
    let node = node(&lab);
    let (plugin, mut conf) = (Plugin::ours(&lab), flannel_form());
    let pod = node.pod("a");
    let mut attachment = Attachment::of(&pod);
    attachment.ifname = "eth%d".to_owned();
    let (code, text) = plugin.call(&node, "ADD", &attachment, &conf).error();
    assert_eq!(code, 4, "{text}");
    conf["delegate"]["bridge"] = json!("br%d");
    let (code, text) = plugin.add(&pod, &conf).error();
    assert_eq!(
        (code, text.as_str()),
        (7, r#"bridge: "br%d"; interface name contains %"#)
    );
    assert!(!node.sh("ip link").ok().contains("br0"));
}

/// Runs a request in a shell, with its standard output redirected by `redirection`.
fn run_in_shell(
    node: &Node<'_>,
    verb: &str,
    name: &str,
    conf: &Value,
    redirection: &str,
) -> Output {
    node.write("/run/request", conf.to_string());
    let run = format!(
        "CNI_COMMAND={verb} CNI_CONTAINERID={name} CNI_NETNS=/run/netns/{name} CNI_IFNAME=eth0 \
         CNI_PATH=/mnt/bin /mnt/bin/cni-hostgw < /run/request {redirection}"
    );
    node.sh(&run)
}

#[test]
fn an_add_whose_result_cannot_be_written_leaves_nothing() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let mut conf = bridge_form("cni-hostgw");
    conf["ipMasq"] = json!(true);
    let (a, b) = (node.pod("a"), node.pod("b"));
    plugin.add(&b, &conf).ok();
    // Without the request's own file and the round robin state.
    let seen = || -> Vec<String> {
        let is_relevant =
            |line: &&str| !line.contains("last_reserved_ip") && !line.contains("request");
        traces(&node)
            .lines()
            .filter(is_relevant)
            .map(str::to_owned)
            .collect()
    };
    let before = seen();
    let has_failed_at_the_end = || {
        let output = run_in_shell(&node, "ADD", "a", &conf, ">/dev/full");
        !output.success && output.stderr.contains("failed to write the answer")
    };
    assert!(has_failed_at_the_end());
    assert_eq!(seen(), before);
    plugin.del(&a, &conf).ok();
    assert_eq!(seen(), before);
    // The failed first ADD of a network leaves no firewall rules either.
    plugin.del(&b, &conf).ok();
    assert!(has_failed_at_the_end());
    assert_eq!(node.sh("nft list ruleset").ok(), "");
    assert!(node.ports().is_empty());
}

#[test]
fn an_add_fails_if_a_sysctl_cannot_be_set() {
    // A sysctl that already has the right value is accepted on a read-only file system.
    for (setting, value, subnet) in [
        ("net/ipv4/ip_forward", "0", "10.10.1.0/24"),
        ("net/ipv6/conf/cni0/accept_ra", "1", "10.10.1.0/24"),
        ("net/ipv6/conf/all/forwarding", "0", "fd00:10:10:1::/64"),
        ("", "", "10.10.1.0/24"),
    ] {
        let lab = Lab::new();
        let node = node(&lab);
        let plugin = Plugin::ours(&lab);
        let mut conf = bridge_form("cni-hostgw");
        conf["ipam"]["ranges"] = json!([[{"subnet": subnet}]]);
        let (a, b) = (node.pod("a"), node.pod("b"));
        plugin.add(&a, &conf).ok();
        if !setting.is_empty() {
            node.sh(&format!("echo {value} > /proc/sys/{setting}")).ok();
        }
        node.sh("mount -o bind,ro /proc/sys /proc/sys").ok();
        let reply = plugin.add(&b, &conf);
        assert_eq!(reply.success, setting.is_empty(), "{setting}");
        if !setting.is_empty() {
            let (code, text) = reply.error();
            assert_eq!(code, 100);
            assert!(
                text.contains(setting) && text.contains("Read-only"),
                "{text}"
            );
            assert_eq!(node.ports().len(), 1);
        }
    }
}

#[test]
fn an_add_waits_for_the_lock_even_if_it_cannot_start_a_thread() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let holder = Server::program(&node, "flock", "/var/lib/cni/hostgw.lock busybox sleep 2");
    conformance::wait_for("the lock is held", || {
        !node.sh("flock -n /var/lib/cni/hostgw.lock true").success
    });
    let mut command = node.command("strace");
    command.args([
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=clone3,clone:error=EAGAIN",
    ]);
    command.arg(&plugin.0);
    let conf = bridge_form("cni-hostgw");
    let begin = std::time::Instant::now();
    let add = plugin.start_with_command(&mut command, "ADD", &Attachment::of(&pod), &conf);
    add.wait().ok();
    assert!(begin.elapsed() > Duration::from_secs(1), "it waited");
    drop(holder);
}

#[test]
fn del_works_on_a_full_and_on_a_read_only_disk() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let conf = bridge_form("cni-hostgw");
    let (a, b) = (node.pod("a"), node.pod("b"));
    node.sh(
        "mkdir -p /var/lib/cni/networks && mount -t tmpfs -o size=200k tmpfs /var/lib/cni/networks",
    )
    .ok();
    let del = |name: &str| plugin.call(&node, "DEL", &Attachment::named(name), &conf);
    // DEL of an unknown attachment, on a full disk and on a read-only one.
    node.sh("head -c 300000 /dev/zero > /var/lib/cni/networks/full; mkdir -p /var/lib/cni/networks/cbr0; true")
        .ok();
    del("a").ok();
    node.sh("mount -o remount,ro /var/lib/cni/networks").ok();
    del("a").ok();
    node.sh("mount -o remount,rw /var/lib/cni/networks && rm -r /var/lib/cni/networks/*")
        .ok();
    // Add two pods, then fill the disk.
    plugin.add(&a, &conf).ok();
    plugin.add(&b, &conf).ok();
    node.sh("head -c 300000 /dev/zero > /var/lib/cni/networks/full; true")
        .ok();
    del("a").ok();
    del("a").ok();
    assert!(!node.path("/var/lib/cni/networks/cbr0/10.10.1.2").exists());
    // DEL of an attachment that is already gone has nothing to remove and succeeds. DEL of an
    // existing one cannot remove its reservation: it fails, and the reservation stays.
    node.sh("mount -o remount,ro /var/lib/cni/networks").ok();
    del("a").ok();
    let (code, text) = del("b").error();
    assert_eq!(code, 5, "{text}");
    node.sh("mount -o remount,rw /var/lib/cni/networks").ok();
    del("b").ok();
    let left = node
        .sh("ls -A /var/lib/cni/networks/cbr0 | grep ^10; true")
        .ok();
    assert_eq!(left, "");
    assert!(node.ports().is_empty());
}

#[test]
fn del_of_a_reference_plugins_pod_does_not_mistake_an_error_for_a_deleted_namespace() {
    let lab = Lab::new();
    let node = node(&lab);
    let (ours, reference) = (Plugin::ours(&lab), Plugin::reference("bridge"));
    let pod = node.pod("a");
    reference.add(&pod, &bridge_form("bridge")).ok();
    let conf = bridge_form("cni-hostgw");
    let mut removed = 0;
    for call in ["openat", "fstatfs", "setns", "socket"] {
        let mut failed = 0;
        for error in ["EMFILE", "EIO", "ENOBUFS", "EPERM", "ENOMEM"] {
            for nth in 1..6 {
                let inject = format!("inject={call}:error={error}:when={nth}");
                let mut command = node.command("strace");
                command.args(["-qq", "-o", "/dev/null", "-e", &inject]);
                command.arg(&ours.0);
                let del =
                    ours.start_with_command(&mut command, "DEL", &Attachment::of(&pod), &conf);
                failed += usize::from(del.wait().json["code"].is_u64());
                let is_held = node.path("/var/lib/cni/networks/cbr0/10.10.1.2").exists();
                let pod_has_address = pod.sh("ip -o addr").ok().contains("10.10.1.2");
                // The link is deleted before the reservation, so that no pod gets an address that
                // is still in use.
                assert!(is_held || !pod_has_address, "{inject}");
                removed += usize::from(!is_held);
                if !is_held || !pod_has_address {
                    ours.del(&pod, &conf).ok();
                    reference.add(&pod, &bridge_form("bridge")).ok();
                    node.sh(
                        "cd /var/lib/cni/networks/cbr0 && mv 10.10.1.* 10.10.1.2 2>/dev/null; true",
                    )
                    .ok();
                    pod.sh("ip addr flush dev eth0 && ip addr add 10.10.1.2/24 dev eth0")
                        .ok();
                }
            }
        }
        assert!(failed > 0, "no {call} of DEL failed");
    }
    assert!(removed > 0);
}

#[test]
fn an_exhausted_range_does_not_reclaim_a_live_pods_address_reserved_by_another_plugin() {
    let lab = Lab::new();
    let node = node(&lab);
    let (ours, reference) = (Plugin::ours(&lab), Plugin::reference("bridge"));
    let ranges = json!([[{"subnet": "10.10.1.0/30"}]]);
    let (mut conf, mut theirs) = (bridge_form("cni-hostgw"), bridge_form("bridge"));
    conf["ipam"]["ranges"] = ranges.clone();
    theirs["ipam"]["ranges"] = ranges;
    let (a, b) = (node.pod("a"), node.pod("b"));
    // Our plugin added the pod two minutes ago. Then the node went back to the reference plugin,
    // which released the address and reserved it again.
    ours.add(&a, &conf).ok();
    node.sh("touch -d '-2 minutes' /var/lib/cni/networks/cbr0/.attachments/a:eth0")
        .ok();
    reference.del(&a, &theirs).ok();
    reference.add(&a, &theirs).ok();
    assert_eq!(ours.add(&b, &conf).error().0, 101);
    assert!(node.path("/var/lib/cni/networks/cbr0/10.10.1.2").exists());
    assert!(a.pings("10.10.1.1"));
}

#[test]
fn a_reference_plugins_attachment_that_is_added_again_gets_a_new_address() {
    let lab = Lab::new();
    let node = node(&lab);
    let (ours, reference) = (Plugin::ours(&lab), Plugin::reference("bridge"));
    let conf = bridge_form("cni-hostgw");
    let (first, pod) = (node.pod("first"), node.pod("a"));
    ours.add(&first, &conf).ok();
    reference.add(&pod, &bridge_form("bridge")).ok();
    node.sh("ip -n a link delete eth0").ok();
    assert_eq!(ours.add(&pod, &conf).addresses(), ["10.10.1.3"]);
    ours.del(&pod, &conf).ok();
    let held = node.sh("ls /var/lib/cni/networks/cbr0 | grep ^10").ok();
    assert_eq!(held, "10.10.1.2\n");
}

#[test]
fn a_renamed_host_veth_still_belongs_to_its_attachment() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let conf = bridge_form("cni-hostgw");
    let (a, b) = (node.pod("a"), node.pod("b"));
    let request_address =
        |pod: &str| Attachment::named(pod).with_args("IgnoreUnknown=1;IP=10.10.1.50");
    plugin.call(&node, "ADD", &request_address("a"), &conf).ok();
    node.sh(
        "veth=$(ip -o link show type bridge_slave | sed 's/.*: \\(veth[^@]*\\)@.*/\\1/'); \
         ip link set $veth down && ip link set $veth name renamed && ip link set renamed up; \
         touch -d '-2 minutes' /var/lib/cni/networks/cbr0/.attachments/a:eth0",
    )
    .ok();
    assert_eq!(
        plugin
            .call(&node, "ADD", &request_address("b"), &conf)
            .error()
            .0,
        7
    );
    assert!(a.pings("10.10.1.1"));
    plugin
        .call(&node, "DEL", &Attachment::named("a").in_netns(""), &conf)
        .ok();
    assert!(node.ports().is_empty());
    plugin.call(&node, "ADD", &request_address("b"), &conf).ok();
    assert!(b.pings("10.10.1.1"));
}

#[test]
fn a_second_add_of_a_reference_plugins_live_attachment_fails() {
    let lab = Lab::new();
    let node = node(&lab);
    let (ours, reference) = (Plugin::ours(&lab), Plugin::reference("bridge"));
    let conf = bridge_form("cni-hostgw");
    let (a, _b) = (node.pod("a"), node.pod("b"));
    reference.add(&a, &bridge_form("bridge")).ok();
    let elsewhere = Attachment::named("a").in_netns("/run/netns/b");
    let (code, text) = ours.call(&node, "ADD", &elsewhere, &conf).error();
    assert_eq!(code, 4, "{text}");
    // The oldest host-local releases wrote only the container ID.
    node.sh("printf a > /var/lib/cni/networks/cbr0/10.10.1.2")
        .ok();
    let mut second = Attachment::named("a");
    "eth1".clone_into(&mut second.ifname);
    assert_eq!(ours.call(&node, "ADD", &second, &conf).error().0, 4);
    assert_eq!(node.ports().len(), 1);
    assert!(a.pings("10.10.1.1"));
}
