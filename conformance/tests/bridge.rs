//! The bridge and its ports: stable hardware addresses, settings that are corrected, addresses of
//! an earlier subnet, and modes.

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
fn the_bridges_hardware_address_does_not_change_with_its_ports() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let (a, b) = (node.pod("a"), node.pod("b"));
    plugin.add(&a, &conf("cni-hostgw")).ok();
    let before = bridge(&node)["address"].clone();
    assert_eq!(before, "0a:58:0a:0a:01:01");
    // Without an address of its own, a bridge takes the lowest hardware address of its ports.
    node.sh("ip link add low address 02:00:00:00:00:01 type veth peer name high && ip link set low master cni0 up")
        .ok();
    plugin.add(&b, &conf("cni-hostgw")).ok();
    plugin.del(&a, &conf("cni-hostgw")).ok();
    assert_eq!(bridge(&node)["address"], before);
    // udev reads addr_assign_type before it changes an address (systemd's MACAddressPolicy). The
    // value 3 means that the address was set explicitly.
    let given = node
        .sh("mount -t sysfs sysfs /mnt && cat /mnt/class/net/cni0/addr_assign_type /mnt/class/net/veth*/addr_assign_type")
        .ok();
    assert_eq!(given, "3\n3\n");
}

#[test]
fn a_preexisting_bridge_also_retains_its_hardware_address() {
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
fn the_next_add_corrects_mtu_hairpin_mode_and_port_isolation() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let mut conf = conf("cni-hostgw");
    conf["mtu"] = json!(1400);
    let first = node.pod("a");
    plugin.add(&first, &conf).ok();
    // A port that our plugin did not create is left alone.
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
    assert!(first.pings(gateway), "the first pod still has connectivity");
}

#[test]
fn the_reference_does_not_correct_the_bridges_mtu() {
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
fn a_bridge_without_pods_gets_the_gateway_address_of_a_new_subnet() {
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
fn a_bridge_whose_pods_use_another_subnet_fails_the_add_and_names_the_pods() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (ours, reference) = (Plugin::ours(&lab), Plugin::reference("bridge"));
    let named = Attachment::of(&node.pod("a"))
        .with_args("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1");
    ours.call(&node, "ADD", &named, &conf("cni-hostgw")).ok();
    ours.add(&node.pod("second"), &conf("cni-hostgw")).ok();
    let mut other = conf("cni-hostgw");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.10.7.0/24"}]]);
    let pod = node.pod("c");
    assert_eq!(reference.add(&pod, &other).error().0, 999);
    reference.del(&pod, &other).ok();
    let (code, text) = ours.add(&pod, &other).error();
    assert_eq!(code, 100);
    for expected_text in [
        r#""cni0" already has an IP address different from 10.10.7.1/24: 10.10.1.1/24"#,
        "shop/web-1",
        "second",
        "drain the node",
        "restore subnet 10.10.1.0/24",
    ] {
        assert!(text.contains(expected_text), "{expected_text}: {text}");
    }
    let addresses = node.sh("ip -4 -o addr show dev cni0").ok();
    assert!(addresses.contains("10.10.1.1/24") && !addresses.contains("10.10.7.1"));
    other["forceAddress"] = json!(true);
    ours.add(&pod, &other).ok();
    let addresses = node.sh("ip -4 -o addr show dev cni0").ok();
    assert!(!addresses.contains("10.10.1.1/24") && addresses.contains("10.10.7.1"));
}

#[test]
fn promiscuous_mode_works_as_in_the_reference() {
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
        let expected_text = "cannot set hairpin mode and promiscuous mode at the same time";
        assert!(text.contains(expected_text), "{text}");
    }
}

#[test]
fn without_ipam_the_pod_gets_a_link_without_addresses() {
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
        // Debian's release of the reference is older than this key.
        if kind == "cni-hostgw" {
            let mut disabled = conf.clone();
            disabled["disableContainerInterface"] = json!(true);
            plugin.add(&down, &disabled).ok();
            assert!(down.sh("ip -br link show eth0").ok().contains("DOWN"));
            disabled["ipam"] =
                json!({"type": "host-local", "ranges": [[{"subnet": "10.1.1.0/24"}]]});
            let (_, text) = plugin.add(&node.pod("c"), &disabled).error();
            let expected_text = "cannot use IPAM when DisableContainerInterface flag is set";
            assert!(text.contains(expected_text), "{text}");
            let one = node.pod("one");
            let mac = |result: Value| result["interfaces"][2]["mac"].to_string();
            let first = mac(plugin.add(&one, &conf).ok());
            plugin.del(&one, &conf).ok();
            let second = mac(plugin.add(&one, &conf).ok());
            assert_ne!(
                first, second,
                "the hardware address is random: other nodes may be on this bridge"
            );
        }
    }
}

#[test]
fn concurrent_adds_replace_the_bridges_addresses_once() {
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
fn a_range_set_with_two_subnets_puts_both_gateways_on_the_bridge() {
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
        // The reference fails here: it treats the first subnet's gateway as a conflicting address.
        assert_eq!(second.success, plugin.0.ends_with("cni-hostgw"));
        if second.success {
            assert!(b.pings("10.10.2.1") && b.pings("10.10.1.5"));
        }
    }
}

#[test]
fn a_default_route_from_a_router_advertisement_survives_the_first_add() {
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
        let from_router_advertisements = || node.sh("ip -6 route show default proto ra").stdout;
        wait_for("the node has received a router advertisement", || {
            !from_router_advertisements().is_empty()
        });
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
        assert_eq!(
            !from_router_advertisements().is_empty(),
            is_ours,
            "{}",
            from_router_advertisements()
        );
    }
}

/// Configuration of radvd in a pod: any pod can send such router advertisements, with a prefix and
/// a lifetime.
const ADVERTISER: &str = "interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; \
     AdvDefaultLifetime 9000; prefix fd00:bad::/64 { AdvOnLink on; AdvAutonomous on; }; };";

/// Returns the routes and addresses that the node has from router advertisements on `bridge`.
fn from_router_advertisements(node: &Node<'_>, bridge: &str) -> String {
    node.sh(&format!(
        "ip -6 route show proto ra dev {bridge}; ip -6 -o addr show dev {bridge} dynamic"
    ))
    .stdout
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn the_node_ignores_router_advertisements_of_pods() {
    let with_ipam = |ipam: Value, is_gateway: bool| {
        json!({
            "cniVersion": "1.0.0", "name": "l2", "type": "bridge", "bridge": "br10",
            "isDefaultGateway": is_gateway, "ipam": ipam,
        })
    };
    let ranges = json!({"type": "host-local", "ranges": [[{"subnet": "10.20.1.0/24"}]]});
    let fixed = json!({"type": "static", "addresses": [{"address": "10.20.1.9/24"}]});
    let existing_bridge = "ip link add br10 type bridge && ip link set br10 up \
         && ip addr add 10.20.1.1/24 dev br10";
    let accepting_bridge = "ip link add br10 type bridge && ip link set br10 up \
         && echo 2 > /proc/sys/net/ipv6/conf/br10/accept_ra";
    for (conf, before) in [
        (with_ipam(json!({}), false), ""),
        (with_ipam(ranges.clone(), false), ""),
        (with_ipam(ranges.clone(), true), existing_bridge),
        (with_ipam(fixed, true), existing_bridge),
        (with_ipam(json!({}), false), accepting_bridge),
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let plugin = Plugin::ours(&lab);
        // These are the kernel's defaults.
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
        let _radvd = Server::start_program_in(
            &pod,
            "radvd",
            "-n -C /run/radvd.conf -p /run/radvd.pid -m stderr",
        );
        // The witness pod accepts router advertisements, as the kernel does by default.
        let witness = node.pod("witness");
        plugin.add(&witness, &conf).ok();
        wait_for("the advertisement is on the bridge", || {
            !witness.sh("ip -6 route show proto ra").stdout.is_empty()
        });
        assert_eq!(
            from_router_advertisements(&node, "br10"),
            "",
            "{conf} {before}"
        );
        // The next dual-stack ADD enables forwarding on the node. The bridge still ignores router
        // advertisements.
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
fn routes_and_addresses_that_a_bridge_got_from_router_advertisements_are_removed() {
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
    let _radvd = Server::start_program_in(&pod, "radvd", arguments);
    wait_for("the node has received the advertisement", || {
        from_router_advertisements(&node, "br10").contains("fd00:bad:")
    });
    let conf = json!({
        "cniVersion": "1.0.0", "name": "l2", "type": "bridge", "bridge": "br10", "ipam": {},
    });
    plugin.add(&node.pod("a"), &conf).ok();
    assert_eq!(from_router_advertisements(&node, "br10"), "");
}

/// Returns a node with an existing bridge and an uplink port with this MTU.
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
fn the_bridge_mtu_follows_ports_that_are_not_pods() {
    // An uplink with a smaller MTU than the configuration requests, and two with a larger MTU.
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
fn two_networks_on_one_bridge_use_the_smaller_mtu() {
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
            "the bridge MTU does not exceed the smallest port MTU"
        );
    }
}

#[test]
fn a_preexisting_bridge_with_the_gateway_address_retains_its_hardware_address() {
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
    // Neighbour entries are flushed only once, when the hardware address is fixed; later ADDs leave
    // them alone.
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
fn a_bridge_without_ports_and_hardware_address_gets_one() {
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
fn the_agent_disables_router_advertisements_on_pod_bridges() {
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
    // The kernel sends no notification when this sysctl changes. The agent checks it at the next
    // change of a link.
    node.sh("ip link add nudge type bridge").ok();
    let accepts = |bridge: &str| {
        node.sh(&format!("cat /proc/sys/net/ipv6/conf/{bridge}/accept_ra"))
            .ok()
    };
    wait_for("the agent corrects the sysctl", || {
        accepts("cni0") == "0\n" && accepts("br10") == "0\n"
    });
    assert_eq!(accepts("br-other"), "2\n", "the bridge has no pods");
    assert_eq!(
        accepts("enp0s5"),
        "2\n",
        "the uplink accepts router advertisements although the node forwards"
    );
}

#[test]
fn an_add_with_another_ipam_plugin_does_not_count_its_own_port_as_a_pod() {
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
    // A port of another pod does prevent the change of the bridge's address.
    conf["name"] = json!("other");
    conf["ipam"]["addresses"] = json!([{"address": "10.20.1.9/24", "gateway": "10.20.1.1"}]);
    assert_eq!(plugin.add(&node.pod("b"), &conf).error().0, 100);
    assert_eq!(node.ports().len(), 1);
}

#[test]
fn when_the_node_forwards_only_uplinks_accept_router_advertisements() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    // A container bridge of another program, on which one container has sent router advertisements.
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
    let _radvd = Server::start_program_in(&pod, "radvd", arguments);
    wait_for("the node has received the advertisement", || {
        from_router_advertisements(&node, "docker0").contains("default")
    });
    let mut conf = conf("cni-hostgw");
    conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:10:10:1::/64"}]]);
    plugin.add(&node.pod("a"), &conf).ok();
    let accepts = node
        .sh("cat /proc/sys/net/ipv6/conf/docker0/accept_ra")
        .ok();
    assert_eq!(accepts, "1\n");
    assert_eq!(
        from_router_advertisements(&node, "docker0")
            .matches("default")
            .count(),
        0
    );
}
