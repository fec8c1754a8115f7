//! Address management: another plugin's, by the SPEC's delegation; and what `ipam` may ask for.

use conformance::{Attachment, Lab, Node, Plugin, Pod};
use serde_json::{Value, json};

/// Both plugins take it; only the type differs, and `CNI_PATH` finds the IPAM plugin.
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

/// An IPAM plugin that passes on to another and writes down what it was asked.
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
fn another_ipam_plugin_gives_the_addresses() {
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
        // The bridge that Debian has loses what an IPAM plugin says of name resolution.
        let is_ours = plugin.0.ends_with("cni-hostgw");
        assert_eq!(result["dns"]["nameservers"][0] == "10.96.0.10", is_ours);
        let bridge = node.sh("ip -o addr show dev cni0").ok();
        assert!(bridge.contains("10.30.1.1/24"), "{bridge}");
        assert!(
            bridge.contains("fd00:30::1/64"),
            "the subnet's first: {bridge}"
        );
        assert!(pod.pings("10.30.1.1"));
        // A host veth is called what each calls it; what the pod has is the same.
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
        // Ours says that IPv6 waits for no duplicate detection; theirs turns it off.
        let line = |line: &str| line.trim().replace(" flags 02", "");
        let mut lines: Vec<_> = text.lines().map(line).collect();
        lines.retain(|line| !line.contains("fe80"));
        lines.sort();
        lines
    };
    assert_eq!(lines(&seen[0].2), lines(&seen[1].2));
}

#[test]
fn every_verb_is_delegated_with_the_whole_configuration() {
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
    let read = |name: &str| std::fs::read_to_string(node.path(name)).expect("was asked");
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
fn flannels_form_gives_the_other_plugin_what_flannel_gives() {
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
    let stdin = std::fs::read_to_string(node.path("/run/stdin.ADD")).expect("was asked");
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

#[test]
fn the_other_plugins_failures_are_passed_on_and_undone() {
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
    let verbs = std::fs::read_to_string(node.path("/run/verbs")).expect("was asked");
    assert!(
        verbs.starts_with("ADD a\nDEL a\n"),
        "a failed ADD is deleted: {verbs}"
    );
    for (answer, said) in [
        ("echo nonsense", "recorder: ADD; expected"),
        (
            "echo '{\"cniVersion\": \"1.1.0\"}'",
            "recorder: ADD; its result has no addresses",
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
        assert!(text.starts_with(said), "{said}: {text}");
    }
    // Ours fails behind it: no way to this gateway.
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
    let verbs = std::fs::read_to_string(node.path("/run/verbs")).expect("was asked");
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

#[test]
fn routes_have_what_they_ask_for() {
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
        // What this reference does not know, it leaves out.
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
        "they apply none of it"
    );
}

#[test]
fn resolv_conf_becomes_the_results_dns() {
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
    // The bridge that Debian has loses it, so host-local is asked itself.
    let theirs = Plugin::reference("host-local").add(&node.pod("a"), &conf);
    let ours = Plugin::ours(&lab).add(&node.pod("b"), &conf).ok();
    assert_eq!(ours["dns"], theirs.ok()["dns"]);
    assert_eq!(ours["dns"]["search"], json!(["a.local", "b.local"]));
    // The configuration's own word takes its place.
    conf["dns"] = json!({"nameservers": ["10.96.0.53"]});
    let ours = Plugin::ours(&lab).add(&node.pod("c"), &conf).ok();
    assert_eq!(ours["dns"], conf["dns"]);
}

/// Whether `address` of pod `name` is still being looked for elsewhere.
fn is_tentative(node: &Node<'_>, name: &str) -> bool {
    node.sh(&format!(
        "ip -n {name} -6 -o addr show dev eth0 scope global"
    ))
    .ok()
    .contains("tentative")
}

#[test]
fn ipv6_does_not_wait_for_duplicate_detection_unless_it_is_asked_to() {
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
    // The kernel waits up to a second before it asks, and one after.
    assert!(!is_tentative(&node, "b"), "ADD came back when it was over");
    assert!(time >= 900, "detection takes its time: {time} ms");
    assert!(time < 5000, "{time} ms");
    // A duplicate is found, told, and taken back.
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
fn check_right_after_add_takes_gateways_and_routes_as_they_can_be() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["fd00:192:168:2::16/64"]);
    let plugin = Plugin::ours(&lab);
    for (name, ipam) in [
        // A gateway of the link, as routers have it.
        (
            "a",
            json!({"ranges": [[{"subnet": "fd00:5::/64", "gateway": "fe80::1"}]]}),
        ),
        // Two ways to one place.
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
fn a_second_add_of_a_live_attachment_leaves_the_other_plugins_lease_alone() {
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
    let verbs = std::fs::read_to_string(node.path("/run/verbs")).expect("was asked");
    assert_eq!(verbs, "ADD a\n");
}

#[test]
fn capabilities_give_ranges_and_name_resolution() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw",
        "capabilities": {"ipRanges": true, "dns": true},
        "dns": {"nameservers": ["10.96.0.10"]},
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}]]},
    });
    // In capitals, as containerd sends them.
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
