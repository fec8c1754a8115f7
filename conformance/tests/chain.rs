//! Lists of plugins: results of earlier plugins are retained, and options for another entry do not
//! matter.

use conformance::{Attachment, Chain, Lab, Plugin};
use serde_json::{Value, json};

fn conf() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "cni-hostgw",
        "isDefaultGateway": true,
        "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}]]},
    })
}

#[test]
fn prev_result_is_included_in_the_result() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (plugin, pod) = (Plugin::ours(&lab), node.pod("a"));
    for (version, previous) in [
        (
            "1.1.0",
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "net0", "sandbox": "/run/netns/a", "pciID": "0000:01:00.0"}],
                "ips": [{"interface": 0, "address": "10.99.1.5/24"}],
                "routes": [{"dst": "10.99.0.0/16", "gw": "10.99.1.1"}],
                "dns": {"nameservers": ["10.96.0.10"]},
            }),
        ),
        (
            "0.3.1",
            json!({
                "interfaces": [{"name": "net0", "sandbox": "/run/netns/a"}],
                "ips": [{"version": "4", "interface": 0, "address": "10.99.1.5/24"}],
                "routes": [{"dst": "10.99.0.0/16", "gw": "10.99.1.1"}],
                "dns": {"nameservers": ["10.96.0.10"]},
            }),
        ),
    ] {
        let mut conf = conf();
        conf["cniVersion"] = json!(version);
        conf["prevResult"] = previous.clone();
        let result = plugin.add(&pod, &conf).ok();
        assert_eq!(result["cniVersion"], version);
        // The previous result comes after ours, because `firewall` takes the first interface for
        // the bridge.
        assert_eq!(result["interfaces"][0]["name"], "cni0");
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        assert_eq!(result["interfaces"][3], previous["interfaces"][0]);
        assert_eq!(result["ips"][0]["interface"], 2);
        let mut theirs = previous["ips"][0].clone();
        theirs["interface"] = json!(3);
        assert_eq!(result["ips"][1], theirs);
        let routes = result["routes"].as_array().expect("a list");
        assert_eq!(routes.last(), Some(&previous["routes"][0]));
        assert_eq!(result["dns"], previous["dns"]);
        plugin.del(&pod, &conf).ok();
    }
    let mut conf = conf();
    conf["prevResult"] = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.99.1.5/24"}});
    let (code, text) = plugin.add(&pod, &conf).error();
    assert_eq!(code, 6);
    assert!(text.starts_with("could not parse prevResult"), "{text}");
    assert!(node.ports().is_empty());
}

#[test]
fn firewall_finds_the_bridge_behind_a_loopback() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (plugin, pod) = (Plugin::ours(&lab), node.pod("a"));
    let mut conf = conf();
    conf["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo", "sandbox": "/run/netns/a"}],
        "ips": [{"interface": 0, "address": "127.0.0.1/8"}],
    });
    let result = plugin.add(&pod, &conf).ok();
    let firewall = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "firewall", "backend": "iptables",
        "ingressPolicy": "same-bridge", "prevResult": result,
    });
    Plugin::reference("firewall").add(&pod, &firewall).ok();
    let rules = node.sh("iptables-save -t filter").ok();
    assert!(rules.contains("-i cni0"), "{rules}");
    assert!(
        !rules.contains("-i lo") && !rules.contains("-o lo"),
        "{rules}"
    );
}

#[test]
fn check_finds_routes_that_sbr_moved_to_a_table() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    for (name, subnets) in [
        ("one", vec!["10.10.1.0/24"]),
        ("two", vec!["10.10.2.0/24", "fd00:10:10:2::/64"]),
    ] {
        let pod = node.pod(name);
        let ranges: Vec<_> = subnets.iter().map(|s| json!([{"subnet": s}])).collect();
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": name, "type": "cni-hostgw", "isDefaultGateway": true,
            "bridge": format!("br-{name}"),
            "ipam": {"ranges": ranges, "routes": [{"dst": "10.99.0.0/16"}]},
        });
        let result = plugin.add(&pod, &conf).ok();
        let sbr = json!({
            "cniVersion": "1.0.0", "name": name, "type": "sbr", "prevResult": result,
        });
        conf["prevResult"] = Plugin::reference("sbr").add(&pod, &sbr).ok();
        assert_eq!(
            pod.sh("ip route show default").ok(),
            "",
            "sbr has moved the default route"
        );
        plugin
            .call(&node, "CHECK", &Attachment::of(&pod), &conf)
            .ok();
        // A route in a table that no rule selects does not count.
        pod.sh("ip rule flush; ip rule add lookup main").ok();
        let (code, text) = plugin
            .call(&node, "CHECK", &Attachment::of(&pod), &conf)
            .error();
        assert_eq!(code, 102);
        assert!(text.contains("is gone"), "{text}");
    }
}

#[test]
fn chained_reference_plugins_work_after_ours_as_after_the_reference() {
    for kind in ["bridge", "cni-hostgw"] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        let list = |mac: &str| {
            let list = json!({
                "cniVersion": "1.0.0",
                "name": "cbr0",
                "plugins": [
                    {
                        "type": kind, "bridge": "cni0", "isDefaultGateway": true,
                        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]]},
                    },
                    {"type": "tuning", "mac": mac, "sysctl": {"net.ipv4.conf.eth0.proxy_arp": "1"}},
                    {"type": "firewall", "backend": "iptables"},
                    {"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000},
                ],
            });
            Chain::new(&lab, &list.to_string())
        };
        let chain = list("02:00:00:00:00:42");
        node.sh("iptables -P FORWARD DROP").ok();
        let (a, b) = (node.pod("a"), node.pod("b"));
        let attachment = Attachment::of(&a);
        let result = chain.add(&a, &attachment).ok();
        let other = list("02:00:00:00:00:43");
        other.add(&b, &Attachment::of(&b)).ok();
        assert_eq!(
            result["interfaces"][2]["mac"], "02:00:00:00:00:42",
            "{kind}"
        );
        assert!(b.pings("10.10.1.2"), "{kind}");
        let veth = result["interfaces"][1]["name"]
            .as_str()
            .expect("the value is present");
        let shaped = node.sh(&format!("tc qdisc show dev {veth}")).ok();
        assert!(shaped.contains("tbf"), "{kind}: {shaped}");
        let rules = node.sh("iptables-save -t filter").ok();
        assert!(rules.contains("-d 10.10.1.2/32"), "{kind}: {rules}");
        // The result contains the changes by tuning, so CHECK accepts them.
        chain.check(&a, &attachment, &result).ok();
        chain.del(&a, &attachment, Some(&result)).ok();
        chain.del(&a, &attachment, Some(&result)).ok();
        let rules = node.sh("iptables-save -t filter").ok();
        assert!(!rules.contains("10.10.1.2/32"), "{kind}: {rules}");
        assert_eq!(node.ports().len(), 1, "{kind}");
    }
}
