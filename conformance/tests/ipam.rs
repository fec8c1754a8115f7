//! Address management: delegation to other IPAM plugins as the SPEC defines it, and the options of
//! `ipam`.

use conformance::{Attachment, Lab, Node, Plugin, Pod, Server, wait_for};
use serde_json::{Value, json};

/// Returns a configuration for both plugins. Only the plugin differs, and `CNI_PATH` finds the IPAM
/// plugin.
fn with_static(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "cbr0",
        "type": "bridge",
        "isGateway": true,
        "ipMasq": true,
        "ipam": {
            "type": "static",
            "addresses": [
                {"address": "10.30.1.9/24", "gateway": "10.30.1.1"},
                {"address": "fd00:30::9/64"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.99.0/24", "gw": "10.30.1.254"}],
            "dns": {"nameservers": ["10.96.0.10"]},
        },
    })
}

/// Writes an IPAM plugin that records its requests and then runs the shell script `answer`.
fn recorder(lab: &Lab, name: &str, answer: &str) {
    let script = format!(
        "#!/bin/sh\ncat > /run/stdin.$CNI_COMMAND\necho $CNI_COMMAND $CNI_CONTAINERID >> /run/verbs\n{answer}\n"
    );
    lab.write(&format!("bin/{name}"), script);
}

fn in_pod(pod: &Pod<'_>) -> String {
    pod.sh("busybox ip addr show eth0 | grep inet; busybox ip route; ip -6 route show default")
        .ok()
}

#[test]
fn another_ipam_plugin_supplies_the_addresses() {
    let mut seen = Vec::new();
    for plugin_of in [
        |_: &Lab| Plugin::reference("bridge"),
        Plugin::ours as fn(&Lab) -> Plugin,
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24", "fd00:192:168:2::16/64"]);
        let plugin = plugin_of(&lab);
        let pod = node.pod("a");
        let mut conf = with_static("1.0.0");
        let result = plugin.add(&pod, &conf).ok();
        assert_eq!(result["ips"][0]["address"], "10.30.1.9/24");
        // Debian's bridge plugin drops the `dns` of an IPAM plugin's result.
        let is_ours = plugin.0.ends_with("cni-hostgw");
        assert_eq!(result["dns"]["nameservers"][0] == "10.96.0.10", is_ours);
        let bridge = node.sh("ip -o addr show dev cni0").ok();
        assert!(bridge.contains("10.30.1.1/24"), "{bridge}");
        assert!(
            bridge.contains("fd00:30::1/64"),
            "the first address of the subnet: {bridge}"
        );
        assert!(pod.pings("10.30.1.1"));
        // The plugins name the host veth differently, but the addresses and routes in the pod are
        // the same.
        let inside = in_pod(&pod);
        seen.push((result["ips"].clone(), result["routes"].clone(), inside));
        conf["prevResult"] = result;
        plugin
            .call(&node, "CHECK", &Attachment::of(&pod), &conf)
            .ok();
        plugin.del(&pod, &conf).ok();
        plugin.del(&pod, &conf).ok();
        assert!(node.ports().is_empty());
    }
    assert_eq!(seen[0].0, seen[1].0);
    assert_eq!(seen[0].1, seen[1].1);
    let lines = |text: &str| -> Vec<String> {
        // Our plugin marks IPv6 addresses to skip duplicate address detection; the reference
        // disables detection.
        let line = |line: &str| line.trim().replace(" flags 02", "");
        let mut lines: Vec<_> = text.lines().map(line).collect();
        lines.retain(|line| !line.contains("fe80"));
        lines.sort();
        lines
    };
    assert_eq!(lines(&seen[0].2), lines(&seen[1].2));
}

#[test]
fn every_verb_passes_the_whole_configuration_to_the_ipam_plugin() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let result = r#"{"cniVersion": "1.1.0", "ips": [{"address": "10.30.1.9/24"}]}"#;
    let answer = format!("test $CNI_COMMAND = ADD && echo '{result}' || true");
    recorder(&lab, "recorder", &answer);
    lab.make_executable("bin/recorder");
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true,
        "ipam": {"type": "recorder", "range": "its own key", "gateway": {"also": "its own"}},
    });
    let pod = node.pod("a");
    conf["prevResult"] = plugin.add(&pod, &conf).ok();
    assert_eq!(conf["prevResult"]["ips"][0]["gateway"], "10.30.1.1");
    for verb in ["CHECK", "STATUS", "DEL"] {
        plugin.call(&node, verb, &Attachment::of(&pod), &conf).ok();
    }
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
    plugin.call(&node, "GC", &Attachment::of(&pod), &conf).ok();
    let read = |name: &str| {
        std::fs::read_to_string(node.path(name)).expect("the IPAM plugin has been called")
    };
    assert_eq!(
        read("/run/verbs"),
        "ADD a\nCHECK a\nSTATUS a\nDEL a\nGC a\n"
    );
    for verb in ["ADD", "CHECK", "STATUS", "DEL", "GC"] {
        let stdin: Value =
            serde_json::from_str(&read(&format!("/run/stdin.{verb}"))).expect("JSON");
        assert_eq!(stdin["ipam"], conf["ipam"], "{verb}");
        assert_eq!(stdin["name"], "cbr0");
        assert_eq!(stdin["prevResult"] != Value::Null, verb != "ADD", "{verb}");
    }
}

#[test]
fn in_flannels_form_the_ipam_plugin_gets_the_same_ranges_and_routes_as_from_flannel() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let result = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.10.1.9/24"}]}"#;
    recorder(&lab, "recorder", &format!("echo '{result}'"));
    lab.make_executable("bin/recorder");
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {},
        "ipam": {"type": "recorder", "routes": [{"dst": "192.168.99.0/24"}]},
    });
    Plugin::ours(&lab).add(&node.pod("a"), &conf).ok();
    let stdin = std::fs::read_to_string(node.path("/run/stdin.ADD"))
        .expect("the IPAM plugin has been called");
    let stdin: Value = serde_json::from_str(&stdin).expect("JSON");
    assert_eq!(
        stdin["ipam"],
        json!({
            "type": "recorder",
            "ranges": [[{"subnet": "10.10.1.0/24"}]],
            "routes": [{"dst": "192.168.99.0/24"}, {"dst": "10.10.0.0/16"}],
        })
    );
}

// Long: a table of cases.
#[test]
fn ipam_plugin_failures_are_reported_and_undone() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "ipam": {"type": "recorder"},
    });
    let pod = node.pod("a");
    let call = |verb: &str| plugin.call(&node, verb, &Attachment::of(&pod), &conf);
    let error = r#"{"code": 11, "msg": "not yet", "details": "really"}"#;
    recorder(&lab, "recorder", &format!("echo '{error}'; exit 1"));
    lab.make_executable("bin/recorder");
    let failed = (11, "recorder: not yet; really".to_owned());
    assert_eq!(call("ADD").error(), failed);
    assert_eq!(call("DEL").error(), failed);
    assert_eq!(call("GC").error().0, 100);
    let (code, text) = call("STATUS").error();
    assert_eq!((code, text.as_str()), (50, "recorder: not yet; really"));
    let verbs =
        std::fs::read_to_string(node.path("/run/verbs")).expect("the IPAM plugin has been called");
    assert!(
        verbs.starts_with("ADD a\nDEL a\n"),
        "a failed ADD is followed by DEL: {verbs}"
    );
    for (answer, expected) in [
        ("echo nonsense", "recorder: ADD; expected"),
        (
            "echo '{\"cniVersion\": \"1.1.0\"}'",
            "recorder: ADD; the result has no addresses",
        ),
        (
            "echo oh dear; exit 3",
            "recorder: ADD; exit status: 3: oh dear",
        ),
        ("kill -9 $$", "recorder: ADD; signal: 9"),
    ] {
        recorder(
            &lab,
            "recorder",
            &format!("test $CNI_COMMAND = ADD || exit 0\n{answer}"),
        );
        lab.make_executable("bin/recorder");
        let (code, text) = call("ADD").error();
        assert_eq!(code, 100, "{text}");
        assert!(text.starts_with(expected), "{expected}: {text}");
    }
    // After the IPAM plugin has succeeded, our plugin fails: this gateway is unreachable.
    let result = r#"{"cniVersion": "1.1.0", "ips": [{"address": "10.30.1.9/24"}],
        "routes": [{"dst": "10.99.0.0/16", "gw": "10.77.0.1"}]}"#;
    recorder(
        &lab,
        "recorder",
        &format!(
            "test $CNI_COMMAND = ADD && echo '{}' || true",
            result.replace('\n', " ")
        ),
    );
    lab.make_executable("bin/recorder");
    node.sh("rm /run/verbs").ok();
    assert_eq!(call("ADD").error().0, 100);
    let verbs =
        std::fs::read_to_string(node.path("/run/verbs")).expect("the IPAM plugin has been called");
    assert_eq!(verbs, "ADD a\nDEL a\n");
    assert!(node.ports().is_empty());
    let missing = plugin.call(&node, "ADD", &Attachment::of(&pod), &{
        let mut conf = conf.clone();
        conf["ipam"]["type"] = json!("../bin/recorder");
        conf
    });
    let (code, text) = missing.error();
    assert_eq!(code, 7);
    assert!(
        text.contains("no executable of that name in CNI_PATH"),
        "{text}"
    );
}

// Long: a table of cases.
#[test]
fn route_options_take_effect() {
    let mut seen = Vec::new();
    for plugin_of in [
        |_: &Lab| Plugin::reference("bridge"),
        Plugin::ours as fn(&Lab) -> Plugin,
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let conf = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]], "routes": [
                {"dst": "0.0.0.0/0", "mtu": 1300, "advmss": 1200, "priority": 7},
                {"dst": "10.20.0.0/16", "gw": "10.10.1.9", "table": 100},
                {"dst": "10.21.0.0/16", "table": 70000},
                {"dst": "10.22.0.0/16", "gw": "0.0.0.0", "scope": 253},
            ]},
        });
        let pod = node.pod("a");
        let plugin = plugin_of(&lab);
        // Without the routes and options that this reference release does not know.
        let mut ours = conf.clone();
        if plugin.0.ends_with("cni-hostgw") {
            ours["ipam"]["routes"][3] = json!({"dst": "10.22.0.0/16", "gw": "10.10.1.8"});
        } else {
            let routes = ours["ipam"]["routes"].as_array_mut().expect("a list");
            routes.truncate(1);
        }
        let result = plugin.add(&pod, &ours).ok();
        seen.push(pod.sh("ip route show table all | grep -v local").ok());
        if plugin.0.ends_with("cni-hostgw") {
            assert_eq!(result["routes"][0]["advmss"], 1200);
            let routes = seen.last().expect("just pushed");
            for route in [
                "default via 10.10.1.1 dev eth0 metric 7 mtu 1300 advmss 1200",
                "10.20.0.0/16 via 10.10.1.9 dev eth0 table 100",
                "10.21.0.0/16 via 10.10.1.1 dev eth0 table 70000",
                "10.22.0.0/16 via 10.10.1.8 dev eth0",
            ] {
                assert!(
                    routes.lines().any(|line| line.trim() == route),
                    "{route}: {routes}"
                );
            }
            let mut checked = ours.clone();
            checked["prevResult"] = result;
            plugin
                .call(&node, "CHECK", &Attachment::of(&pod), &checked)
                .ok();
            pod.sh("ip route delete 10.21.0.0/16 table 70000").ok();
            let (code, text) = plugin
                .call(&node, "CHECK", &Attachment::of(&pod), &checked)
                .error();
            assert_eq!(code, 102);
            assert!(text.contains("route 10.21.0.0/16 is gone"), "{text}");
        }
    }
    let theirs = seen[0].lines().next().unwrap_or_default().trim().to_owned();
    assert_eq!(
        theirs, "default via 10.10.1.1 dev eth0",
        "the reference applies none of the options"
    );
}

#[test]
fn resolv_conf_is_returned_as_the_dns_of_the_result() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write(
        "/run/resolv.conf",
        "# ours\nnameserver 10.96.0.10\nnameserver 10.96.0.11\ndomain old.local\n\
         search a.local b.local\noptions ndots:5 timeout:1\n",
    );
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge",
        "ipam": {"type": "host-local", "subnet": "10.10.1.0/24", "resolvConf": "/run/resolv.conf"},
    });
    // Debian's bridge plugin drops `dns`, so host-local is called directly.
    let theirs = Plugin::reference("host-local").add(&node.pod("a"), &conf);
    let ours = Plugin::ours(&lab).add(&node.pod("b"), &conf).ok();
    assert_eq!(ours["dns"], theirs.ok()["dns"]);
    assert_eq!(ours["dns"]["search"], json!(["a.local", "b.local"]));
    // `dns` in the network configuration replaces it.
    conf["dns"] = json!({"nameservers": ["10.96.0.53"]});
    let ours = Plugin::ours(&lab).add(&node.pod("c"), &conf).ok();
    assert_eq!(ours["dns"], conf["dns"]);
}

/// Returns true if duplicate address detection of pod `name` has not finished.
fn is_tentative(node: &Node<'_>, name: &str) -> bool {
    node.sh(&format!(
        "ip -n {name} -6 -o addr show dev eth0 scope global"
    ))
    .ok()
    .contains("tentative")
}

#[test]
fn ipv6_waits_for_duplicate_address_detection_only_if_enabledad_is_set() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["fd00:192:168:2::16/64"]);
    let plugin = Plugin::ours(&lab);
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "fd00:10:10:1::/64"}]]},
    });
    let timed = |name: &str, conf: &Value| {
        let pod = node.pod(name);
        let begin = std::time::Instant::now();
        let address = plugin.add(&pod, conf).addresses().remove(0);
        (begin.elapsed().as_millis(), address)
    };
    let (time, address) = timed("a", &conf);
    assert!(time < 500 && !is_tentative(&node, "a"), "{time} ms");
    node.sh(&format!("busybox ping -c 1 -W 1 {address}")).ok();
    conf["enabledad"] = json!(true);
    let (time, _) = timed("b", &conf);
    // The kernel waits up to a second before it sends its solicitation, and one second after.
    assert!(
        !is_tentative(&node, "b"),
        "ADD returns after duplicate address detection"
    );
    assert!(
        time >= 900,
        "duplicate address detection takes a second: {time} ms"
    );
    assert!(time < 5000, "{time} ms");
    // A duplicate is detected, reported and undone.
    node.sh("ip -n a addr add fd00:10:10:1::99/64 dev eth0 nodad")
        .ok();
    let pod = node.pod("c");
    let attachment = Attachment::of(&pod).with_args("IP=fd00:10:10:1::99");
    let (code, text) = plugin.call(&node, "ADD", &attachment, &conf).error();
    assert_eq!(code, 100);
    assert!(
        text.contains("fd00:10:10:1::99 is in use elsewhere"),
        "{text}"
    );
    assert_eq!(node.ports().len(), 2);
    assert!(
        !node
            .path("/var/lib/cni/networks/cbr0/fd00:10:10:1::99")
            .exists()
    );
}

#[test]
fn check_accepts_link_local_gateways_and_multipath_routes() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["fd00:192:168:2::16/64"]);
    let plugin = Plugin::ours(&lab);
    for (name, ipam) in [
        // A link-local gateway, as a router announces it.
        (
            "a",
            json!({"ranges": [[{"subnet": "fd00:5::/64", "gateway": "fe80::1"}]]}),
        ),
        // Two routes to the same destination.
        (
            "b",
            json!({"ranges": [[{"subnet": "fd00:6::/64"}]], "routes": [
                {"dst": "fd01::/64", "gw": "fd00:6::8"}, {"dst": "fd01::/64", "gw": "fd00:6::9"},
            ]}),
        ),
    ] {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": name, "type": "cni-hostgw", "bridge": format!("br-{name}"),
            "isDefaultGateway": true, "ipam": ipam,
        });
        let pod = node.pod(name);
        conf["prevResult"] = plugin.add(&pod, &conf).ok();
        plugin
            .call(&node, "CHECK", &Attachment::of(&pod), &conf)
            .ok();
    }
}

#[test]
fn a_second_add_of_a_live_attachment_does_not_call_the_ipam_plugin() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let result = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.30.1.9/24"}]}"#;
    recorder(&lab, "recorder", &format!("echo '{result}'"));
    lab.make_executable("bin/recorder");
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "ipam": {"type": "recorder"},
    });
    let (a, _b) = (node.pod("a"), node.pod("b"));
    plugin.add(&a, &conf).ok();
    let elsewhere = Attachment::of(&a).in_netns("/run/netns/b");
    let (code, text) = plugin.call(&node, "ADD", &elsewhere, &conf).error();
    assert_eq!(code, 4, "{text}");
    let verbs =
        std::fs::read_to_string(node.path("/run/verbs")).expect("the IPAM plugin has been called");
    assert_eq!(verbs, "ADD a\n");
}

#[test]
fn capabilities_supply_ip_ranges_and_dns() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw",
        "capabilities": {"ipRanges": true, "dns": true},
        "dns": {"nameservers": ["10.96.0.10"]},
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}]]},
    });
    // With capitalized keys, as containerd sends them.
    conf["runtimeConfig"] = json!({
        "ipRanges": [[{"Subnet": "10.40.1.0/24", "RangeStart": "10.40.1.50", "Gateway": "10.40.1.7"}]],
        "dns": {"Servers": ["10.96.0.53"], "Searches": ["shop.local"], "Options": ["ndots:5"]},
    });
    let result = plugin.add(&node.pod("a"), &conf).ok();
    assert_eq!(result["ips"][0]["address"], "10.40.1.50/24");
    assert_eq!(result["ips"][0]["gateway"], "10.40.1.7");
    assert_eq!(result["ips"][1]["address"], "10.10.1.2/24");
    let dns =
        json!({"nameservers": ["10.96.0.53"], "search": ["shop.local"], "options": ["ndots:5"]});
    assert_eq!(result["dns"], dns);
    conf["runtimeConfig"] = json!({"dns": {}});
    let result = plugin.add(&node.pod("b"), &conf).ok();
    assert_eq!(result["dns"], conf["dns"]);
}

#[test]
fn a_dhcp_server_on_the_bridge_supplies_the_addresses() {
    for plugin_of in [
        |_: &Lab| Plugin::reference("bridge"),
        Plugin::ours as fn(&Lab) -> Plugin,
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let plugin = plugin_of(&lab);
        node.sh("ip link add br-dhcp type bridge && ip link set br-dhcp up && ip addr add 10.50.1.1/24 dev br-dhcp")
            .ok();
        node.write(
            "/run/udhcpd.conf",
            "start 10.50.1.20\nend 10.50.1.40\ninterface br-dhcp\nlease_file /run/udhcpd.leases\n\
             pidfile /run/udhcpd.pid\noption subnet 255.255.255.0\noption router 10.50.1.1\n",
        );
        node.write("/run/udhcpd.leases", "");
        let _server = Server::start_on(&node, "udhcpd -f /run/udhcpd.conf");
        let _daemon = Server::program(&node, "/usr/lib/cni/dhcp", "daemon");
        wait_for("the daemon listens", || {
            node.path("/run/cni/dhcp.sock").exists()
        });
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": "dhcp", "type": "bridge", "bridge": "br-dhcp",
            "ipam": {"type": "dhcp"},
        });
        let (a, b) = (node.pod("a"), node.pod("b"));
        let reply = plugin.add(&a, &conf);
        let first = reply.addresses().remove(0);
        assert!(first.starts_with("10.50.1."), "{first}");
        let second = plugin.add(&b, &conf).addresses().remove(0);
        assert_ne!(first, second);
        assert!(a.pings("10.50.1.1") && b.pings(&first));
        assert!(a.sh("ip route").ok().contains("default via 10.50.1.1"));
        conf["prevResult"] = reply.ok();
        // With the reference, the bridge's hardware address changes with its ports.
        if plugin.0.ends_with("cni-hostgw") {
            plugin.call(&node, "CHECK", &Attachment::of(&a), &conf).ok();
        }
        plugin.del(&a, &conf).ok();
        plugin.del(&a, &conf).ok();
        assert_eq!(node.ports().len(), 1);
    }
}

#[test]
fn the_ipam_plugin_is_called_when_the_interface_is_attached_to_the_bridge() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let result = r#"{"cniVersion": "1.0.0", "ips": [{"address": "10.30.1.9/24"}]}"#;
    let look = "nsenter --net=$CNI_NETNS ip -o link show dev $CNI_IFNAME > /run/link.$CNI_COMMAND; \
                ip -o link show type bridge_slave > /run/ports.$CNI_COMMAND";
    let answer = format!(
        "{look}; test -e /run/fail && exit 1; test $CNI_COMMAND = ADD && echo '{result}' || true"
    );
    recorder(&lab, "recorder", &answer);
    lab.make_executable("bin/recorder");
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isGateway": true,
        "ipam": {"type": "recorder"},
    });
    let pod = node.pod("a");
    plugin.add(&pod, &conf).ok();
    let read =
        |name: &str| std::fs::read_to_string(node.path(name)).expect("the file has been written");
    assert!(read("/run/link.ADD").contains("eth0"));
    assert!(read("/run/ports.ADD").contains("master cni0"));
    plugin.del(&pod, &conf).ok();
    // If the IPAM plugin fails, it gets DEL while the interface still exists; the interface is
    // deleted after that.
    node.sh("touch /run/fail; rm /run/link.DEL").ok();
    assert_eq!(plugin.add(&pod, &conf).error().0, 100);
    assert!(read("/run/link.DEL").contains("eth0"));
    assert!(node.ports().is_empty());
    assert!(!pod.sh("ip link").ok().contains("eth0"));
}

#[test]
fn routes_of_a_family_without_an_address_do_not_fail_an_add() {
    let both = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let fixed = |address: &str| json!({"type": "static", "addresses": [{"address": address}], "routes": both});
    let ranged = |subnet: &str| json!({"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": both});
    for ipam in [
        ranged("10.10.1.0/24"),
        ranged("fd00:10:10:1::/64"),
        fixed("10.10.1.9/24"),
        fixed("fd00:10:10:1::9/64"),
    ] {
        for plugin_of in [
            |_: &Lab| Plugin::reference("bridge"),
            Plugin::ours as fn(&Lab) -> Plugin,
        ] {
            let lab = Lab::new();
            let node = lab.node("worker1", &["192.168.2.16/24"]);
            let plugin = plugin_of(&lab);
            let mut conf = json!({
                "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "isGateway": true, "ipam": ipam,
            });
            let pod = node.pod("a");
            let result = plugin.add(&pod, &conf).ok();
            assert_eq!(result["routes"], both);
            let routes = pod
                .sh("ip -4 route show default; ip -6 route show default")
                .ok();
            assert_eq!(routes.matches("default").count(), 2, "{routes}");
            if plugin.0.ends_with("cni-hostgw") {
                conf["prevResult"] = result;
                plugin
                    .call(&node, "CHECK", &Attachment::of(&pod), &conf)
                    .ok();
            }
        }
    }
    // With a gateway of a family without addresses, the reference fails; our plugin skips the
    // route.
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true,
        "capabilities": {"ipRanges": true},
        "runtimeConfig": {"ipRanges": [[{"subnet": "10.10.1.0/24"}]]},
        "ipam": {"type": "host-local", "routes": [{"dst": "fd01::/64", "gw": "fd00::1"}, {"dst": "::/0"}]},
    });
    let pod = node.pod("a");
    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        .ok();
    plugin
        .call(&node, "STATUS", &Attachment::named(""), &conf)
        .ok();
    plugin.add(&pod, &conf).ok();
    assert!(pod.pings("10.10.1.1"));
}

#[test]
fn host_bits_of_an_ipv6_route_are_cleared() {
    for plugin_of in [
        |_: &Lab| Plugin::reference("bridge"),
        Plugin::ours as fn(&Lab) -> Plugin,
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let plugin = plugin_of(&lab);
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": "crio", "type": "bridge", "isGateway": true,
            "ipam": {
                "type": "host-local", "ranges": [[{"subnet": "1100:200::/24"}]],
                "routes": [{"dst": "1100:200::1/24"}, {"dst": "1100:300::7/32"}],
            },
        });
        let pod = node.pod("a");
        let result = plugin.add(&pod, &conf).ok();
        assert_eq!(result["routes"][0]["dst"], "1100:200::1/24");
        let routes = pod.sh("ip -6 route").ok();
        assert!(routes.contains("1100:300::/32 via 1100:200::1"), "{routes}");
        if plugin.0.ends_with("cni-hostgw") {
            conf["prevResult"] = result;
            plugin
                .call(&node, "CHECK", &Attachment::of(&pod), &conf)
                .ok();
        }
    }
}

#[test]
fn a_pod_can_use_ipv6_even_if_the_runtime_disabled_it_in_the_namespace() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true,
        "ipam": {"ranges": [[{"subnet": "fd00:10:10:1::/64"}]]},
    });
    let pod = node.pod("a");
    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        .ok();
    let address = plugin.add(&pod, &conf).addresses().remove(0);
    assert!(pod.pings("::1") && pod.pings(&address) && pod.pings("fd00:10:10:1::1"));
}

#[test]
fn in_flannels_form_the_ipam_plugin_gets_the_same_configuration_for_every_verb() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let result = r#"{"cniVersion": "1.1.0", "ips": [{"address": "10.10.1.9/24"}]}"#;
    let answer = format!("test $CNI_COMMAND = ADD && echo '{result}' || true");
    recorder(&lab, "recorder", &answer);
    lab.make_executable("bin/recorder");
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {},
        "ipam": {"type": "recorder", "routes": [{"dst": "10.99.0.0/16"}]},
        "cni.dev/valid-attachments": [],
    });
    let pod = node.pod("a");
    conf["prevResult"] = plugin.add(&pod, &conf).ok();
    for verb in ["CHECK", "STATUS", "DEL", "GC"] {
        plugin.call(&node, verb, &Attachment::of(&pod), &conf).ok();
        let text = std::fs::read_to_string(node.path(&format!("/run/stdin.{verb}")));
        let stdin: Value =
            serde_json::from_str(&text.expect("the IPAM plugin has been called")).expect("JSON");
        assert_eq!(
            stdin["ipam"]["ranges"],
            json!([[{"subnet": "10.10.1.0/24"}]]),
            "{verb}"
        );
        let routes = json!([{"dst": "10.99.0.0/16"}, {"dst": "10.10.0.0/16"}]);
        assert_eq!(stdin["ipam"]["routes"], routes, "{verb}");
    }
    // DEL succeeds without the subnet file, too.
    node.sh("rm /run/flannel/subnet.env").ok();
    plugin.del(&pod, &conf).ok();
}

#[test]
fn a_requested_address_is_reclaimed_from_an_attachment_that_no_longer_exists() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true,
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}]]},
    });
    let request_address =
        |pod: &Pod<'_>| Attachment::of(pod).with_args("IgnoreUnknown=1;IP=10.10.1.77");
    let (a, b) = (node.pod("a"), node.pod("b"));
    plugin.call(&node, "ADD", &request_address(&a), &conf).ok();
    let (code, text) = plugin
        .call(&node, "ADD", &request_address(&b), &conf)
        .error();
    assert_eq!(code, 7);
    assert!(
        text.contains("already reserved by container a, interface eth0"),
        "{text}"
    );
    a.delete();
    wait_for(
        "the kernel deletes the veth together with the namespace",
        || node.ports().is_empty(),
    );
    // The reservation is not old enough: a running ADD would not have created its veth yet.
    assert_eq!(
        plugin
            .call(&node, "ADD", &request_address(&b), &conf)
            .error()
            .0,
        7
    );
    node.sh("touch -d '-2 minutes' /var/lib/cni/networks/cbr0/.attachments/a:eth0")
        .ok();
    plugin.call(&node, "ADD", &request_address(&b), &conf).ok();
}

#[test]
fn status_fails_for_an_unreachable_gateway_and_a_full_disk() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let status = |conf: &Value| {
        let reply = plugin.call(&node, "STATUS", &Attachment::named(""), conf);
        let (code, text) = reply.error();
        assert_eq!(code, 50, "{text}");
        text
    };
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw",
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}]], "routes": [{"dst": "10.99.0.0/16", "gw": "10.77.0.1"}]},
    });
    let text = status(&conf);
    assert!(text.contains("dst 10.99.0.0/16, gw 10.77.0.1"), "{text}");
    assert_eq!(plugin.add(&node.pod("a"), &conf).error().0, 100);
    conf["ipam"]["routes"] = json!([{"dst": "10.99.0.0/16", "gw": "10.10.1.9"}]);
    plugin
        .call(&node, "STATUS", &Attachment::named(""), &conf)
        .ok();
    // A disk without free space, and one without free inodes.
    for (options, fill) in [
        (
            "size=64k",
            "head -c 100000 /dev/zero > /var/lib/cni/networks/full",
        ),
        ("nr_inodes=2", "true"),
    ] {
        node.sh(&format!(
            "mkdir -p /var/lib/cni/networks && mount -t tmpfs -o {options} tmpfs /var/lib/cni/networks; {fill}; \
             touch /var/lib/cni/networks/last; true"
        ))
        .ok();
        let text = status(&conf);
        assert!(
            text.contains("no storage space") || text.contains("No space left"),
            "{text}"
        );
        node.sh("umount /var/lib/cni/networks").ok();
    }
}

#[test]
fn an_ipam_result_with_a_gateway_of_the_other_family_is_rejected() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let result =
        r#"{"cniVersion": "1.0.0", "ips": [{"address": "fd00::5/64", "gateway": "10.1.1.1"}]}"#;
    recorder(
        &lab,
        "recorder",
        &format!("test $CNI_COMMAND = ADD && echo '{result}' || true"),
    );
    lab.make_executable("bin/recorder");
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isGateway": true,
        "ipam": {"type": "recorder"},
    });
    let (code, text) = plugin.add(&node.pod("a"), &conf).error();
    assert_eq!(code, 100, "{text}");
    assert!(
        text.contains("the gateway of fd00::5/64 is of a different IP family"),
        "{text}"
    );
    assert!(node.ports().is_empty());
    let verbs =
        std::fs::read_to_string(node.path("/run/verbs")).expect("the IPAM plugin has been called");
    assert_eq!(verbs, "ADD a\nDEL a\n");
}

#[test]
fn directories_named_like_reservations_do_not_block_add() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true,
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/29"}]]},
    });
    node.sh("cd /var/lib/cni && mkdir -p networks/cbr0/10.10.1.2 networks/cbr0/last_reserved_ip.0")
        .ok();
    let (a, b) = (node.pod("a"), node.pod("b"));
    assert_eq!(plugin.add(&a, &conf).addresses(), ["10.10.1.3"]);
    assert_eq!(plugin.add(&b, &conf).addresses(), ["10.10.1.4"]);
    let request_address = Attachment::of(&node.pod("c")).with_args("IgnoreUnknown=1;IP=10.10.1.2");
    let (code, text) = plugin.call(&node, "ADD", &request_address, &conf).error();
    assert_eq!(code, 7);
    assert!(text.contains("already reserved by a directory"), "{text}");
    plugin.del(&a, &conf).ok();
    plugin.del(&b, &conf).ok();
}

#[test]
fn without_the_subnet_file_the_ipam_plugin_gets_the_ranges_of_the_add() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let result = r#"{"cniVersion": "1.1.0", "ips": [{"address": "10.10.1.9/24"}]}"#;
    recorder(
        &lab,
        "recorder",
        &format!("test $CNI_COMMAND = ADD && echo '{result}' || true"),
    );
    lab.make_executable("bin/recorder");
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {},
        "ipam": {"type": "recorder"}, "cni.dev/valid-attachments": [],
    });
    let pod = node.pod("a");
    conf["prevResult"] = plugin.add(&pod, &conf).ok();
    node.sh("rm /run/flannel/subnet.env").ok();
    for verb in ["DEL", "GC"] {
        plugin.call(&node, verb, &Attachment::of(&pod), &conf).ok();
        let text = std::fs::read_to_string(node.path(&format!("/run/stdin.{verb}")));
        let stdin: Value =
            serde_json::from_str(&text.expect("the IPAM plugin has been called")).expect("JSON");
        assert_eq!(
            stdin["ipam"]["ranges"],
            json!([[{"subnet": "10.10.1.0/24"}]]),
            "{verb}"
        );
    }
}

#[test]
fn a_route_with_link_scope_has_no_gateway() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "isGateway": true,
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}]], "routes": [
            {"dst": "10.10.9.1/32", "scope": 253}, {"dst": "0.0.0.0/0", "gw": "10.10.1.1"},
        ]},
    });
    let pod = node.pod("a");
    plugin.add(&pod, &conf).ok();
    let routes = pod.sh("ip route").ok();
    assert!(routes.contains("10.10.9.1 dev eth0 scope link"), "{routes}");
}
