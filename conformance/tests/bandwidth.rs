//! Limits of the traffic: the capability `bandwidth` and the static keys, next to the reference plugin
//! `bandwidth`.

use conformance::sockets::{Place, Transport};
use conformance::{Attachment, Lab, Node, Plugin, Pod, wait_for};
use serde_json::{Value, json};

/// The limits of the tests, in bits per second.
const INGRESS: u32 = 40_000_000;
const EGRESS: u32 = 24_000_000;

fn limits() -> Value {
    json!({"ingressRate": INGRESS, "ingressBurst": 400_000,
        "egressRate": EGRESS, "egressBurst": 400_000})
}

fn conf(keys: &Value, requested: &Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true,
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}], [{"subnet": "fd00:10:10:1::/64"}]]},
        "capabilities": {"bandwidth": true}, "runtimeConfig": {"bandwidth": requested},
    });
    for (key, value) in keys.as_object().expect("keys") {
        conf[key] = value.clone();
    }
    conf
}

/// Attaches the pod with the limits, by our plugin, or by the reference plugins.
fn add(lab: &Lab, pod: &Pod<'_>, is_ours: bool) -> Value {
    if is_ours {
        return Plugin::ours(lab)
            .add(pod, &conf(&json!({}), &limits()))
            .ok();
    }
    let mut bridge = conf(&json!({}), &json!({}));
    bridge["type"] = json!("bridge");
    bridge["bridge"] = json!("cni0");
    bridge["ipam"]["type"] = json!("host-local");
    let result = Plugin::reference("bridge").add(pod, &bridge).ok();
    let mut bandwidth = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth"});
    bandwidth["prevResult"] = result;
    bandwidth["runtimeConfig"] = json!({"bandwidth": limits()});
    Plugin::reference("bandwidth").add(pod, &bandwidth).ok()
}

fn node(lab: &Lab) -> Node<'_> {
    lab.node("worker1", &["192.168.2.16/24"])
}

fn settle(node: &Node<'_>) {
    wait_for("duplicate address detection on the bridge", || {
        let tentative = "ip -6 address show dev cni0 tentative";
        node.sh(tentative).stdout.is_empty()
    });
}

fn has_link(node: &Node<'_>, start: &str) -> bool {
    node.sh("ip -o link").ok().contains(&format!(": {start}"))
}

/// Measures up to three times, because a busy machine disturbs TCP.
fn assert_near(limit: u32, what: &str, measure: impl Fn() -> f64) {
    // The limit counts headers, too: they are 4 % of a full packet.
    let is_near = |ratio: &f64| (0.9..=1.05).contains(ratio);
    let mut ratios = Vec::new();
    for _ in 0..3 {
        ratios.push(measure() / f64::from(limit));
        if ratios.last().is_some_and(is_near) {
            return;
        }
    }
    panic!("{what}: {ratios:.2?} of the limit");
}

#[test]
fn rates_are_kept_both_ways_in_both_families_for_tcp_and_udp() {
    for is_ours in [false, true] {
        let lab = Lab::new();
        let node = node(&lab);
        let pod = node.pod("a");
        let result = add(&lab, &pod, is_ours);
        settle(&node);
        let interfaces = result["interfaces"].as_array().expect("a list");
        assert_eq!(interfaces.len(), 4, "the link of kind ifb is in the result");
        let name = interfaces[3]["name"].as_str().expect("a name");
        assert!(name.starts_with("bwp") && has_link(&node, name), "{name}");
        let ways = [
            (Transport::Tcp, "10.10.1.2:5001", "10.10.1.1:5001"),
            (Transport::Udp, "10.10.1.2:5001", "10.10.1.1:5001"),
            (
                Transport::Tcp,
                "[fd00:10:10:1::2]:5001",
                "[fd00:10:10:1::1]:5001",
            ),
            (
                Transport::Udp,
                "[fd00:10:10:1::2]:5001",
                "[fd00:10:10:1::1]:5001",
            ),
        ];
        // The reference shows that the measurement is right. It need not do so for each family.
        let count = if is_ours { 4 } else { 2 };
        for (transport, to_pod, to_node) in &ways[..count] {
            let what = |way| format!("ours: {is_ours}, {transport:?} {way} {to_pod}");
            // One way after the other: the acknowledgements of one TCP connection would wait in the
            // queue of the other.
            assert_near(INGRESS, &what("received"), || {
                node.send_to(&pod, to_pod, *transport).rate()
            });
            assert_near(EGRESS, &what("sent"), || {
                pod.send_to(&node, to_node, *transport).rate()
            });
        }
    }
}

#[test]
fn only_the_named_subnets_are_limited_or_not_limited() {
    let lab = Lab::new();
    let node = node(&lab);
    node.sh("ip address add 10.99.0.1/32 dev lo").ok();
    let plugin = Plugin::ours(&lab);
    let subnets = json!(["10.99.0.0/16", "fd00:99::/32"]);
    for (key, to_bridge, to_other) in [
        ("shapedSubnets", false, true),
        ("unshapedSubnets", true, false),
    ] {
        let pod = node.pod(key);
        let mut keys = limits();
        keys[key] = subnets.clone();
        plugin.add(&pod, &conf(&keys, &json!({}))).ok();
        settle(&node);
        let check = |address: &str, is_limited: bool| {
            let measure = || pod.send_to(&node, address, Transport::Udp).rate();
            if is_limited {
                assert_near(EGRESS, &format!("{key} {address}"), measure);
            } else {
                let rate = measure();
                assert!(rate > 1.5 * f64::from(EGRESS), "{key} {address}: {rate}");
            }
        };
        check("10.10.1.1:5001", to_bridge);
        check("10.99.0.1:5002", to_other);
        let attachment = Attachment::of(&pod);
        plugin
            .call(&node, "DEL", &attachment, &conf(&keys, &json!({})))
            .ok();
    }
}

#[test]
fn static_keys_win_over_those_of_the_runtime() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let keys = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000});
    let result = plugin.add(&pod, &conf(&keys, &limits())).ok();
    assert_eq!(
        result["interfaces"].as_array().map(Vec::len),
        Some(3),
        "no egress limit"
    );
    let shown = node.sh("tc qdisc show").ok();
    assert!(
        shown.contains("tbf 1: dev veth") && shown.contains("rate 8Mbit"),
        "{shown}"
    );
    assert!(!has_link(&node, "bwp"));
    // Also if they ask for no limit, and with a limit of one way only.
    let unlimited = node.pod("u");
    let keys = json!({"ingressRate": 0, "ingressBurst": 0});
    plugin.add(&unlimited, &conf(&keys, &limits())).ok();
    let sending = node.pod("s");
    let keys = json!({"egressRate": 8_000_000, "egressBurst": 800_000});
    plugin.add(&sending, &conf(&keys, &json!({}))).ok();
    let shown = node.sh("tc qdisc show").ok();
    assert_eq!(shown.matches("tbf 1: dev veth").count(), 1, "{shown}");
    assert_eq!(shown.matches("tbf 1: dev bwp").count(), 1, "{shown}");
    let gone = conf(&keys, &json!({}));
    plugin
        .call(&node, "DEL", &Attachment::of(&sending), &gone)
        .ok();
    // Without the capability, what the runtime sends is for another plugin.
    let other = node.pod("b");
    let mut undeclared = conf(&json!({}), &limits());
    undeclared["capabilities"] = json!({});
    plugin.add(&other, &undeclared).ok();
    assert_eq!(node.sh("tc qdisc show").ok().matches("tbf").count(), 1);
}

#[test]
fn large_rates_and_bursts_do_not_overflow() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    for (rate, burst, shown_rate) in [
        (10_000_000_000_u64, 34_359_738_352_u64, "rate 10Gbit"),
        (100_000_000_000, 2_147_483_647, "rate 100Gbit"),
        (8_000, 34_359_738_352, "rate 8Kbit"),
        (1_000_000, 8, "rate 1Mbit"),
    ] {
        let pod = node.pod(&format!("p{rate}"));
        let keys = json!({"ingressRate": rate, "ingressBurst": burst,
            "egressRate": rate, "egressBurst": burst});
        let result = plugin.add(&pod, &conf(&keys, &json!({}))).ok();
        settle(&node);
        let shown = node.sh("tc qdisc show").ok();
        assert_eq!(shown.matches(shown_rate).count(), 2, "{rate}: {shown}");
        let mut check = conf(&keys, &json!({}));
        check["prevResult"] = result;
        plugin
            .call(&node, "CHECK", &Attachment::of(&pod), &check)
            .ok();
        let _server = pod.answer(80, "p");
        let ip = check["prevResult"]["ips"][0]["address"]
            .as_str()
            .expect("an address");
        let address = ip.replace("/24", ":80");
        node.ask(&address).expect("packets pass");
        plugin
            .call(&node, "DEL", &Attachment::of(&pod), &check)
            .ok();
    }
}

#[test]
fn invalid_limits_are_refused_with_their_key_and_nothing_is_left() {
    let lab = Lab::new();
    let node = node(&lab);
    let (plugin, pod) = (Plugin::ours(&lab), node.pod("a"));
    for (keys, code, message) in [
        (json!({"ingressRate": 1000}), 7, "ingressBurst: 0"),
        (json!({"egressBurst": 1000}), 7, "egressRate: 0"),
        (
            json!({"egressRate": 7, "egressBurst": 1000}),
            7,
            "egressRate: 7",
        ),
        (
            json!({"ingressRate": 1000, "ingressBurst": 34_359_738_360_u64}),
            7,
            "ingressBurst: 34359738360",
        ),
        (
            json!({"ingressRate": -1, "ingressBurst": 5}),
            6,
            "network configuration: ingressRate: ",
        ),
        (
            json!({"ingressRate": "1M"}),
            6,
            "network configuration: ingressRate: ",
        ),
        (
            json!({"shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["10.1.0.0/16"]}),
            7,
            "shapedSubnets and unshapedSubnets cannot be used together",
        ),
        (
            json!({"shapedSubnets": ["ten"]}),
            6,
            "network configuration: shapedSubnets[0]: \"ten\" is not a network",
        ),
    ] {
        let (found, text) = plugin.add(&pod, &conf(&keys, &json!({}))).error();
        assert_eq!(found, code, "{keys}: {text}");
        assert!(text.starts_with(message), "{keys}: {text}");
        assert!(node.ports().is_empty() && !has_link(&node, "bwp"), "{keys}");
    }
}

#[test]
fn the_limits_end_with_the_pod_and_check_and_gc_know_them() {
    let lab = Lab::new();
    let node = node(&lab);
    let plugin = Plugin::ours(&lab);
    let conf = conf(&json!({}), &limits());
    let call = |verb, pod: &Pod<'_>, keys: &Value| {
        let mut conf = conf.clone();
        for (key, value) in keys.as_object().expect("keys") {
            conf[key] = value.clone();
        }
        plugin.call(&node, verb, &Attachment::of(pod), &conf)
    };
    let (a, b, c) = (node.pod("a"), node.pod("b"), node.pod("c"));
    let result = plugin.add(&a, &conf).ok();
    let previous = json!({"prevResult": result});
    call("CHECK", &a, &previous).ok();
    let (veth, ifb) = (
        result["interfaces"][1]["name"].as_str().expect("a name"),
        result["interfaces"][3]["name"].as_str().expect("a name"),
    );
    let link = node.ip(&format!("link show {ifb}"));
    assert_eq!(link[0]["ifalias"], "cni-hostgw-bandwidth cbr0/a/eth0");
    for (damage, repair, expected) in [
        (
            format!("tc qdisc change dev {veth} root tbf rate 1mbit burst 50000 limit 90000"),
            format!("tc qdisc change dev {veth} root tbf rate 40mbit burst 50000 limit 175000"),
            "what the container receives is not limited",
        ),
        (
            format!("tc qdisc change dev {ifb} root tbf rate 24mbit burst 500000 limit 900000"),
            format!("tc qdisc change dev {ifb} root tbf rate 24mbit burst 50000 limit 125000"),
            "what the container sends is not limited",
        ),
        (
            format!("ip link set {ifb} down"),
            format!("ip link set {ifb} up"),
            "is gone or down",
        ),
        (
            format!("tc filter delete dev {veth} parent ffff:"),
            format!(
                "tc filter add dev {veth} parent ffff: protocol all prio 1 u32 match u32 0 0 \
                 action mirred egress redirect dev {ifb}"
            ),
            "are not redirected to",
        ),
    ] {
        node.sh(&damage).ok();
        let (code, text) = call("CHECK", &a, &previous).error();
        assert_eq!(code, 102, "{damage}: {text}");
        assert!(text.contains(expected), "{damage}: {text}");
        node.sh(&repair).ok();
        call("CHECK", &a, &previous).ok();
    }
    // DEL twice, and DEL without the namespace.
    call("DEL", &a, &json!({})).ok();
    assert!(!has_link(&node, "bwp"));
    call("DEL", &a, &json!({})).ok();
    plugin.add(&b, &conf).ok();
    node.sh("ip netns delete b").ok();
    wait_for("the veth to be gone", || node.ports().is_empty());
    assert!(has_link(&node, "bwp"));
    call("DEL", &b, &json!({"capabilities": {}, "runtimeConfig": {}})).ok();
    assert!(
        !has_link(&node, "bwp"),
        "also if the capability is not declared any more"
    );
    // GC.
    plugin.add(&a, &conf).ok();
    plugin.add(&c, &conf).ok();
    let valid = json!([{"containerID": "c", "ifname": "eth0"}]);
    call(
        "GC",
        &a,
        &json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}),
    )
    .ok();
    assert_eq!(node.sh("ip -o link show type ifb").ok().lines().count(), 1);
    assert_eq!(node.ports().len(), 1);
    call("DEL", &c, &json!({})).ok();
    // What the reference made for the same attachment.
    add(&lab, &a, false);
    assert!(has_link(&node, "bwp"));
    call("DEL", &a, &json!({})).ok();
    assert!(!has_link(&node, "bwp"));
}
