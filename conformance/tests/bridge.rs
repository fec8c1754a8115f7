//! The bridge and its ports: hardware addresses that never move, settings that are put right,
//! addresses of an earlier subnet, modes.

use conformance::reference_picture::{Family, agents, cluster, nodes};
use conformance::{Agent, Attachment, Lab, Node, Plugin, Server, wait_for};
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

/// A router advertisement, as anybody can send one: prefix, lifetime and all.
const ADVERTISER: &str = "interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; \
     AdvDefaultLifetime 9000; prefix fd00:bad::/64 { AdvOnLink on; AdvAutonomous on; }; };";

/// What the node has by router advertisements on `bridge`: routes and addresses.
fn by_router(node: &Node<'_>, bridge: &str) -> String {
    node.sh(&format!(
        "ip -6 route show proto ra dev {bridge}; ip -6 -o addr show dev {bridge} dynamic"
    ))
    .stdout
}

#[test]
fn a_pod_does_not_become_the_nodes_router() {
    let with_ipam = |ipam: Value, is_gateway: bool| {
        json!({
            "cniVersion": "1.0.0", "name": "l2", "type": "bridge", "bridge": "br10",
            "isDefaultGateway": is_gateway, "ipam": ipam,
        })
    };
    let ranges = json!({"type": "host-local", "ranges": [[{"subnet": "10.20.1.0/24"}]]});
    let fixed = json!({"type": "static", "addresses": [{"address": "10.20.1.9/24"}]});
    let there_already = "ip link add br10 type bridge && ip link set br10 up \
         && ip addr add 10.20.1.1/24 dev br10";
    let insisting = "ip link add br10 type bridge && ip link set br10 up \
         && echo 2 > /proc/sys/net/ipv6/conf/br10/accept_ra";
    for (conf, before) in [
        (with_ipam(json!({}), false), ""),
        (with_ipam(ranges.clone(), false), ""),
        (with_ipam(ranges.clone(), true), there_already),
        (with_ipam(fixed, true), there_already),
        (with_ipam(json!({}), false), insisting),
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let plugin = Plugin::ours(&lab);
        // The kernel's defaults.
        let defaults =
            "cat /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv6/conf/default/accept_ra";
        assert_eq!(node.sh(defaults).ok(), "0\n1\n");
        if !before.is_empty() {
            node.sh(before).ok();
        }
        let pod = node.pod("rogue");
        plugin.add(&pod, &conf).ok();
        node.write("/run/radvd.conf", ADVERTISER);
        pod.sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
            .ok();
        let _radvd = Server::program_in(
            &pod,
            "radvd",
            "-n -C /run/radvd.conf -p /run/radvd.pid -m stderr",
        );
        // Whoever listens as the kernel does by default hears it.
        let witness = node.pod("witness");
        plugin.add(&witness, &conf).ok();
        wait_for("the advertisement is on the bridge", || {
            !witness.sh("ip -6 route show proto ra").stdout.is_empty()
        });
        assert_eq!(by_router(&node, "br10"), "", "{conf} {before}");
        // The next dual-stack ADD has the node forward; the bridge still does not listen.
        let mut dual = with_ipam(
            json!({"type": "host-local", "ranges": [[{"subnet": "fd00:20::/64"}]]}),
            true,
        );
        dual["name"] = json!("dual");
        dual["bridge"] = json!("cni0");
        plugin.add(&node.pod("dual"), &dual).ok();
        let accepts = node.sh(
            "cat /proc/sys/net/ipv6/conf/br10/accept_ra /proc/sys/net/ipv6/conf/cni0/accept_ra",
        );
        assert_eq!(accepts.ok(), "0\n0\n");
    }
}

#[test]
fn what_a_router_gave_a_bridge_before_is_taken_back() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("rogue");
    node.sh("ip link add br10 type bridge && ip link set br10 up")
        .ok();
    node.sh(
        "ip link add out type veth peer name eth0 netns rogue && ip link set out master br10 up \
         && ip -n rogue link set eth0 up",
    )
    .ok();
    node.write("/run/radvd.conf", ADVERTISER);
    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
        .ok();
    let arguments = "-n -C /run/radvd.conf -p /run/radvd.pid -m stderr";
    let _radvd = Server::program_in(&pod, "radvd", arguments);
    wait_for("the node hears it", || {
        by_router(&node, "br10").contains("fd00:bad:")
    });
    let conf = json!({
        "cniVersion": "1.0.0", "name": "l2", "type": "bridge", "bridge": "br10", "ipam": {},
    });
    plugin.add(&node.pod("a"), &conf).ok();
    assert_eq!(by_router(&node, "br10"), "");
}

/// A bridge of the node's own, with an uplink whose MTU is `mtu`.
fn with_uplink(lab: &Lab, mtu: u32) -> Node<'_> {
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.sh(&format!(
        "ip link add cni0 type bridge && ip link set cni0 up && ip link add uplink type veth peer name wire \
         && ip link set wire up mtu {mtu} && ip link set uplink mtu {mtu} master cni0 up"
    ))
    .ok();
    node
}

#[test]
fn the_mtu_of_a_bridge_respects_ports_that_are_not_pods() {
    // An uplink that takes less than the list asks for, and one that takes more.
    for (uplink, asked, expected) in [(1500, 9000, 1500), (9000, 1500, 9000), (1500, 1400, 1500)] {
        let lab = Lab::new();
        let node = with_uplink(&lab, uplink);
        assert_eq!(bridge(&node)["mtu"], uplink);
        let plugin = Plugin::ours(&lab);
        let mut conf = conf("cni-hostgw");
        conf["mtu"] = json!(asked);
        let pod = node.pod("a");
        for _ in 0..2 {
            plugin.add(&pod, &conf).ok();
            assert_eq!(bridge(&node)["mtu"], expected, "{uplink} {asked}");
            plugin.del(&pod, &conf).ok();
            assert_eq!(bridge(&node)["mtu"], expected, "{uplink} {asked}");
        }
    }
}

#[test]
fn two_networks_on_one_bridge_agree_on_its_mtu() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let with_mtu = |name: &str, mtu: u32| {
        json!({
            "cniVersion": "1.0.0", "name": name, "type": "bridge", "mtu": mtu, "ipam": {},
        })
    };
    plugin.add(&node.pod("a"), &with_mtu("large", 1450)).ok();
    assert_eq!(bridge(&node)["mtu"], 1450);
    for i in 0..3 {
        plugin
            .add(&node.pod(&format!("s{i}")), &with_mtu("small", 1400))
            .ok();
        assert_eq!(bridge(&node)["mtu"], 1400);
        plugin
            .add(&node.pod(&format!("l{i}")), &with_mtu("large", 1450))
            .ok();
        assert_eq!(
            bridge(&node)["mtu"],
            1400,
            "no port is asked for more than it takes"
        );
    }
}

#[test]
fn a_bridge_that_has_its_address_already_keeps_its_hardware_address() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    node.sh(
        "ip link add cni0 type bridge && ip link set cni0 up && ip addr add 10.10.1.1/24 dev cni0",
    )
    .ok();
    let first = node.pod("a");
    plugin.add(&first, &conf("cni-hostgw")).ok();
    let before = bridge(&node)["address"].clone();
    node.sh("ip link add low address 02:00:00:00:00:01 type veth peer name high && ip link set low master cni0 up")
        .ok();
    plugin.add(&node.pod("b"), &conf("cni-hostgw")).ok();
    plugin.del(&first, &conf("cni-hostgw")).ok();
    assert_eq!(bridge(&node)["address"], before);
    // What is known of the pods is forgotten only once, when the address is made to stay.
    node.sh("ip neigh add 10.10.1.99 lladdr 02:00:00:00:00:99 dev cni0 nud reachable")
        .ok();
    plugin.add(&node.pod("c"), &conf("cni-hostgw")).ok();
    assert!(
        node.sh("ip neigh show dev cni0")
            .ok()
            .contains("10.10.1.99")
    );
}

#[test]
fn a_bridge_whose_last_port_left_gets_a_hardware_address() {
    for has_address in [false, true] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let plugin = Plugin::ours(&lab);
        node.sh("ip link add cni0 type bridge && ip link set cni0 up")
            .ok();
        if has_address {
            node.sh("ip addr add 10.10.1.1/24 dev cni0").ok();
        }
        node.sh("ip link add tap type veth peer name pat && ip link set tap master cni0 up && ip link del tap")
            .ok();
        assert_eq!(bridge(&node)["address"], "00:00:00:00:00:00");
        let (a, b) = (node.pod("a"), node.pod("b"));
        let result = plugin.add(&a, &conf("cni-hostgw")).ok();
        assert_eq!(bridge(&node)["address"], "0a:58:0a:0a:01:01");
        assert_eq!(result["interfaces"][0]["mac"], "0a:58:0a:0a:01:01");
        plugin.add(&b, &conf("cni-hostgw")).ok();
        assert!(a.pings("10.10.1.1") && b.pings("10.10.1.1"));
        plugin.del(&a, &conf("cni-hostgw")).ok();
        plugin.del(&b, &conf("cni-hostgw")).ok();
        assert_eq!(bridge(&node)["address"], "0a:58:0a:0a:01:01");
    }
}

#[test]
fn the_agent_keeps_bridges_of_pods_from_listening_to_routers() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    let _agents = agents(&nodes, Agent::start);
    let (node, plugin) = (&nodes[1], Plugin::ours(&lab));
    wait_for("the subnet file is there", || {
        node.path("/run/flannel/subnet.env").exists()
    });
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {},
    });
    let layer_2 = json!({
        "cniVersion": "1.0.0", "name": "l2", "type": "bridge", "bridge": "br10", "ipam": {},
    });
    plugin.add(&node.pod("a"), &conf).ok();
    plugin.add(&node.pod("b"), &layer_2).ok();
    node.sh("ip link add br-other type bridge").ok();
    for bridge in ["cni0", "br10", "br-other"] {
        node.sh(&format!(
            "echo 2 > /proc/sys/net/ipv6/conf/{bridge}/accept_ra"
        ))
        .ok();
    }
    // A setting tells nobody that it was changed; the next change of a link does.
    node.sh("ip link add nudge type bridge").ok();
    let accepts = |bridge: &str| {
        node.sh(&format!("cat /proc/sys/net/ipv6/conf/{bridge}/accept_ra"))
            .ok()
    };
    wait_for("the agent puts it right", || {
        accepts("cni0") == "0\n" && accepts("br10") == "0\n"
    });
    assert_eq!(accepts("br-other"), "2\n", "it has no pods");
    assert_eq!(
        accepts("enp0s5"),
        "2\n",
        "the uplink hears its router although the node forwards"
    );
}

#[test]
fn the_pod_that_another_ipam_plugin_serves_does_not_stand_in_its_own_way() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    node.sh(
        "ip link add cni0 type bridge && ip link set cni0 up && ip addr add 10.77.9.1/24 dev cni0",
    )
    .ok();
    let mut conf = conf("bridge");
    conf["ipam"] = json!({
        "type": "static", "addresses": [{"address": "10.10.1.9/24", "gateway": "10.10.1.1"}],
    });
    let pod = node.pod("a");
    plugin.add(&pod, &conf).ok();
    assert!(pod.pings("10.10.1.1"));
    let addresses = node.sh("ip -4 -o addr show dev cni0").ok();
    assert!(!addresses.contains("10.77.9.1"), "{addresses}");
    // Another pod does.
    conf["name"] = json!("other");
    conf["ipam"]["addresses"] = json!([{"address": "10.20.1.9/24", "gateway": "10.20.1.1"}]);
    assert_eq!(plugin.add(&node.pod("b"), &conf).error().0, 100);
    assert_eq!(node.ports().len(), 1);
}

#[test]
fn only_uplinks_go_on_listening_to_routers_when_the_node_forwards() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    // A bridge of containers of somebody else's, one of which has advertised itself.
    let pod = node.pod("theirs");
    node.sh(
        "ip link add docker0 type bridge && ip link set docker0 up \
         && ip link add out type veth peer name eth0 netns theirs && ip link set out master docker0 up \
         && ip -n theirs link set eth0 up",
    )
    .ok();
    node.write("/run/radvd.conf", ADVERTISER);
    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
        .ok();
    let arguments = "-n -C /run/radvd.conf -p /run/radvd.pid -m stderr";
    let _radvd = Server::program_in(&pod, "radvd", arguments);
    wait_for("the node hears it", || {
        by_router(&node, "docker0").contains("default")
    });
    let mut conf = conf("cni-hostgw");
    conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:10:10:1::/64"}]]);
    plugin.add(&node.pod("a"), &conf).ok();
    let accepts = node
        .sh("cat /proc/sys/net/ipv6/conf/docker0/accept_ra")
        .ok();
    assert_eq!(accepts, "1\n");
    assert_eq!(by_router(&node, "docker0").matches("default").count(), 0);
}
