//! The bridge and its ports: hardware addresses that never move, settings that are put right,
//! addresses of an earlier subnet, modes.

use conformance::{Attachment, Lab, Node, Plugin, Server, wait_for};
use serde_json::{Value, json};

fn conf(kind: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": kind,
        "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]]},
    })
}

fn bridge(node: &Node<'_>) -> Value {
    node.ip("-details link show dev cni0")[0].clone()
}

fn port_settings(node: &Node<'_>) -> Vec<(bool, bool)> {
    let setting = |port: &Value, key: &str| {
        let is_on = &port["linkinfo"]["info_slave_data"][key];
        is_on.as_bool().unwrap_or_else(|| panic!("{key} of {port}"))
    };
    let ports = node.ports();
    let settings = ports
        .iter()
        .map(|port| (setting(port, "hairpin"), setting(port, "isolated")));
    settings.collect()
}

#[test]
fn hardware_addresses_never_move() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let (a, b) = (node.pod("a"), node.pod("b"));
    plugin.add(&a, &conf("cni-hostgw")).ok();
    let before = bridge(&node)["address"].clone();
    assert_eq!(before, "0a:58:0a:0a:01:01");
    // A port with the smallest address of all is what moves a bridge that was given none.
    node.sh("ip link add low address 02:00:00:00:00:01 type veth peer name high && ip link set low master cni0 up")
        .ok();
    plugin.add(&b, &conf("cni-hostgw")).ok();
    plugin.del(&a, &conf("cni-hostgw")).ok();
    assert_eq!(bridge(&node)["address"], before);
    // What udev asks before it changes an address (systemd's MACAddressPolicy): 3 is "set".
    let given = node
        .sh("mount -t sysfs sysfs /mnt && cat /mnt/class/net/cni0/addr_assign_type /mnt/class/net/veth*/addr_assign_type")
        .ok();
    assert_eq!(given, "3\n3\n");
}

#[test]
fn a_bridge_that_somebody_else_made_keeps_its_hardware_address_too() {
    for plugin_of in [Plugin::ours as fn(&Lab) -> Plugin, |_| {
        Plugin::reference("bridge")
    }] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        node.sh("ip link add cni0 type bridge").ok();
        let plugin = plugin_of(&lab);
        plugin.add(&node.pod("a"), &conf("bridge")).ok();
        let before = bridge(&node)["address"].clone();
        node.sh("ip link add low address 02:00:00:00:00:01 type veth peer name high && ip link set low master cni0 up")
            .ok();
        assert_eq!(bridge(&node)["address"], before);
    }
}

#[test]
fn mtu_hairpin_and_isolation_are_put_right_on_the_next_add() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let mut conf = conf("cni-hostgw");
    conf["mtu"] = json!(1400);
    let first = node.pod("a");
    plugin.add(&first, &conf).ok();
    // Somebody else's port is somebody else's.
    node.sh("ip link add tap type veth peer name pat && ip link set tap master cni0")
        .ok();
    assert_eq!(bridge(&node)["mtu"], 1400);
    assert_eq!(port_settings(&node), [(false, false), (false, false)]);
    conf["mtu"] = json!(1450);
    conf["hairpinMode"] = json!(true);
    conf["portIsolation"] = json!(true);
    plugin.add(&node.pod("b"), &conf).ok();
    assert_eq!(bridge(&node)["mtu"], 1450);
    let mut settings = port_settings(&node);
    settings.sort_unstable();
    assert_eq!(settings, [(false, false), (true, true), (true, true)]);
    node.sh("ip link set cni0 mtu 1280").ok();
    plugin.add(&node.pod("c"), &conf).ok();
    assert_eq!(bridge(&node)["mtu"], 1450);
    let gateway = "10.10.1.1";
    assert!(first.pings(gateway), "the first pod lives");
}

#[test]
fn the_reference_never_puts_the_bridges_mtu_right() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::reference("bridge");
    let mut conf = conf("bridge");
    conf["mtu"] = json!(1400);
    plugin.add(&node.pod("a"), &conf).ok();
    conf["mtu"] = json!(1450);
    plugin.add(&node.pod("b"), &conf).ok();
    assert_eq!(bridge(&node)["mtu"], 1400);
}

#[test]
fn a_bridge_of_another_subnet_without_pods_is_readdressed() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw",
        "delegate": {"isDefaultGateway": true},
    });
    let pod = node.pod("a");
    plugin.add(&pod, &conf).ok();
    plugin.del(&pod, &conf).ok();
    let env = node.path("/run/flannel/subnet.env");
    let text = std::fs::read_to_string(&env).expect("written");
    let text = text.replace("10.10.1.1/24", "10.10.7.1/24");
    std::fs::write(env, text).expect("writes");
    assert_eq!(plugin.add(&pod, &conf).addresses(), ["10.10.7.2"]);
    let addresses = node.sh("ip -4 -o addr show dev cni0").ok();
    assert!(
        addresses.contains("10.10.7.1/24") && !addresses.contains("10.10.1.1"),
        "{addresses}"
    );
    assert!(pod.pings("10.10.7.1"));
}

#[test]
fn a_bridge_of_another_subnet_with_pods_says_which_and_what_to_do() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (ours, reference) = (Plugin::ours(&lab), Plugin::reference("bridge"));
    let named = Attachment::of(&node.pod("a"))
        .with_args("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1");
    ours.call(&node, "ADD", &named, &conf("cni-hostgw")).ok();
    ours.add(&node.pod("b"), &conf("cni-hostgw")).ok();
    let mut other = conf("cni-hostgw");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.10.7.0/24"}]]);
    let pod = node.pod("c");
    assert_eq!(reference.add(&pod, &other).error().0, 999);
    reference.del(&pod, &other).ok();
    let (code, text) = ours.add(&pod, &other).error();
    assert_eq!(code, 100);
    for said in [
        r#""cni0" already has an IP address different from 10.10.7.1/24: 10.10.1.1/24"#,
        "shop/web-1",
        "b",
        "drain the node",
        "put subnet 10.10.1.0/24 back",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let addresses = node.sh("ip -4 -o addr show dev cni0").ok();
    assert!(addresses.contains("10.10.1.1/24") && !addresses.contains("10.10.7.1"));
    other["forceAddress"] = json!(true);
    ours.add(&pod, &other).ok();
    let addresses = node.sh("ip -4 -o addr show dev cni0").ok();
    assert!(!addresses.contains("10.10.1.1/24") && addresses.contains("10.10.7.1"));
}

#[test]
fn promiscuous_mode_is_the_references() {
    for plugin_of in [
        |_: &Lab| Plugin::reference("bridge"),
        Plugin::ours as fn(&Lab) -> Plugin,
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let plugin = plugin_of(&lab);
        let mut conf = conf("bridge");
        plugin.add(&node.pod("a"), &conf).ok();
        let flags = |node: &Node<'_>| bridge(node)["flags"].to_string();
        assert!(!flags(&node).contains("PROMISC"));
        conf["promiscMode"] = json!(true);
        plugin.add(&node.pod("b"), &conf).ok();
        assert!(flags(&node).contains("PROMISC"));
        conf["hairpinMode"] = json!(true);
        let (_, text) = plugin.add(&node.pod("c"), &conf).error();
        let said = "cannot set hairpin mode and promiscuous mode at the same time";
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn without_ipam_there_are_links_and_nothing_else() {
    for (plugin_of, kind) in [
        (
            (|_: &Lab| Plugin::reference("bridge")) as fn(&Lab) -> Plugin,
            "bridge",
        ),
        (Plugin::ours, "cni-hostgw"),
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let plugin = plugin_of(&lab);
        let conf = json!({
            "cniVersion": "1.0.0", "name": "l2", "type": kind, "bridge": "br-l2", "ipam": {},
        });
        let (up, down) = (node.pod("up"), node.pod("down"));
        let result = plugin.add(&up, &conf).ok();
        assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(3));
        assert_eq!(result["ips"], Value::Null);
        assert!(up.sh("ip -br link show eth0").ok().contains(" UP "));
        assert_eq!(up.sh("ip -4 -o addr show dev eth0").ok(), "");
        plugin.add(&down, &conf).ok();
        for pod in [&up, &down] {
            plugin.del(pod, &conf).ok();
        }
        assert!(node.ports().is_empty(), "{kind}");
        // The reference that Debian has is older than this key.
        if kind == "cni-hostgw" {
            let mut disabled = conf.clone();
            disabled["disableContainerInterface"] = json!(true);
            plugin.add(&down, &disabled).ok();
            assert!(down.sh("ip -br link show eth0").ok().contains("DOWN"));
            disabled["ipam"] =
                json!({"type": "host-local", "ranges": [[{"subnet": "10.1.1.0/24"}]]});
            let (_, text) = plugin.add(&node.pod("c"), &disabled).error();
            let said = "cannot use IPAM when DisableContainerInterface flag is set";
            assert!(text.contains(said), "{text}");
            let one = node.pod("one");
            let mac = |result: Value| result["interfaces"][2]["mac"].to_string();
            let first = mac(plugin.add(&one, &conf).ok());
            plugin.del(&one, &conf).ok();
            let second = mac(plugin.add(&one, &conf).ok());
            assert_ne!(
                first, second,
                "by chance: other nodes may be on this bridge"
            );
        }
    }
}

#[test]
fn many_adds_at_once_readdress_a_bridge_once() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let old = (2..42).map(|i| format!("ip addr add 10.{i}.0.1/24 dev cni0"));
    let old: Vec<_> = old.collect();
    node.sh(&format!(
        "ip link add cni0 type bridge && {}",
        old.join(" && ")
    ))
    .ok();
    let names: Vec<_> = (0..12).map(|i| format!("p{i}")).collect();
    let _pods: Vec<_> = names.iter().map(|name| node.pod(name)).collect();
    let conf = conf("cni-hostgw");
    let start = |name: &String| plugin.start(&node, "ADD", &Attachment::named(name), &conf);
    let running: Vec<_> = names.iter().map(start).collect();
    for add in running {
        add.wait().ok();
    }
    let addresses = node.sh("ip -4 -o addr show dev cni0 | wc -l").ok();
    assert_eq!(addresses.trim(), "1");
}

#[test]
fn a_range_set_of_two_subnets_has_both_gateways() {
    for plugin_of in [
        |_: &Lab| Plugin::reference("bridge"),
        Plugin::ours as fn(&Lab) -> Plugin,
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let plugin = plugin_of(&lab);
        let mut conf = conf("bridge");
        conf["ipam"]["ranges"] = json!([[
            {"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.5", "rangeEnd": "10.10.1.5"},
            {"subnet": "10.10.2.0/24"},
        ]]);
        let (a, b) = (node.pod("a"), node.pod("b"));
        plugin.add(&a, &conf).ok();
        let second = plugin.add(&b, &conf);
        // The reference fails here: for it the first subnet's gateway stands in the way.
        assert_eq!(second.success, plugin.0.ends_with("cni-hostgw"));
        if second.success {
            assert!(b.pings("10.10.2.1") && b.pings("10.10.1.5"));
        }
    }
}

#[test]
fn a_default_route_from_a_router_outlives_the_first_pod() {
    for is_ours in [false, true] {
        let lab = Lab::new();
        let router = lab.node("router", &["fd00:192:168:2::9/64"]);
        let node = lab.node("worker1", &["fd00:192:168:2::16/64"]);
        node.sh("ip -6 route del default").ok();
        router.write(
            "/run/radvd.conf",
            "interface enp0s5 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; \
             AdvDefaultLifetime 9000; };",
        );
        router
            .sh("echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
            .ok();
        let arguments = "-n -C /run/radvd.conf -p /run/radvd.pid -m stderr";
        let _radvd = Server::program(&router, "radvd", arguments);
        let by_router = || node.sh("ip -6 route show default proto ra").stdout;
        wait_for("a router is heard", || !by_router().is_empty());
        let (plugin, kind) = if is_ours {
            (Plugin::ours(&lab), "cni-hostgw")
        } else {
            (Plugin::reference("bridge"), "bridge")
        };
        let mut conf = conf(kind);
        conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:10:10:1::/64"}]]);
        plugin.add(&node.pod("a"), &conf).ok();
        let forwards = node.sh("cat /proc/sys/net/ipv6/conf/all/forwarding").ok();
        assert_eq!(forwards, "1\n");
        assert_eq!(!by_router().is_empty(), is_ours, "{}", by_router());
    }
}
