//! The CNI protocol as runtimes see it: verbs, versions, configuration forms, and requested
//! addresses.

use conformance::{Attachment, Lab, Node, Plugin, wait_for};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

fn bridge_form(version: &str, subnets: &[&str]) -> Value {
    let ranges: Vec<_> = subnets
        .iter()
        .map(|subnet| json!([{"subnet": subnet}]))
        .collect();
    json!({
        "cniVersion": version,
        "name": "cbr0",
        "type": "bridge",
        "isDefaultGateway": true,
        "hairpinMode": true,
        "dns": {"nameservers": ["10.96.0.10"]},
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "10.10.0.0/16"}]},
    })
}

const V4: &str = "10.10.1.0/24";

/// Removes from a result what legitimately differs: hardware addresses, the host veth's name, and
/// `mtu`, which the reference does not report yet.
fn comparable(mut result: Value) -> Value {
    for interface in result["interfaces"]
        .as_array_mut()
        .unwrap_or(&mut Vec::new())
    {
        let interface = interface
            .as_object_mut()
            .expect("an interface is an object");
        interface.remove("mac").expect("every interface has one");
        interface.remove("mtu");
        if interface["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("veth"))
        {
            interface["name"] = json!("veth");
        }
    }
    result
}

#[test]
fn version_1_1_0_reports_the_mtu() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let mut conf = bridge_form("1.1.0", &[V4]);
    conf["mtu"] = json!(1400);
    let result = Plugin::ours(&lab).add(&node.pod("a"), &conf).ok();
    assert_eq!(result["cniVersion"], json!("1.1.0"));
    let interfaces = result["interfaces"].as_array();
    let interfaces = interfaces.expect("the result has interfaces");
    assert_eq!(interfaces.len(), 3, "{result}");
    for interface in interfaces {
        assert_eq!(interface["mtu"], json!(1400), "{interface}");
    }
    let links = node.ip("link show dev cni0");
    assert_eq!(
        (&links[0]["mtu"], &links[0]["address"]),
        (&json!(1400), &json!("0a:58:0a:0a:01:01"))
    );
}

#[test]
fn version_lists_all_supported_versions() {
    let lab = Lab::new();
    let node = lab.node("worker1", &[]);
    let reply = Plugin::ours(&lab).call(&node, "VERSION", &Attachment::named("dummy"), &json!({}));
    assert_eq!(
        reply.ok(),
        json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS})
    );
}

#[test]
fn without_a_command_or_with_help_and_version_the_plugin_describes_itself() {
    let lab = Lab::new();
    let node = lab.node("worker1", &[]);
    let plugin = Plugin::ours(&lab).0.display().to_string();
    let versions =
        "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
    let output = node.sh(&plugin);
    assert!(output.success && output.stdout.is_empty());
    assert!(
        output.stderr.starts_with("cni-hostgw 0."),
        "{}",
        output.stderr
    );
    assert!(output.stderr.contains(versions), "{}", output.stderr);
    for (argument, expected) in [
        ("--help", "CNI_COMMAND"),
        ("-h", "--version"),
        ("--version", versions),
        ("-V", "cni-hostgw 0."),
    ] {
        let text = node.sh(&format!("{plugin} {argument}")).ok();
        assert!(text.contains(expected), "{argument}: {text}");
    }
    let refused = node.sh(&format!("{plugin} --nonsense"));
    assert!(!refused.success && refused.stderr.contains(r#"unknown argument "--nonsense""#));
}

// Long: a table of cases.
#[test]
fn errors_are_objects_with_the_cni_version_of_the_configuration() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let _pod = node.pod("a");
    let mut conf = bridge_form("0.4.0", &[V4]);
    conf["vlan"] = json!(5);
    let reply = plugin.call(&node, "ADD", &Attachment::named("a"), &conf);
    assert!(
        !reply.success && reply.stderr.is_empty(),
        "{}",
        reply.stderr
    );
    assert_eq!(
        reply.json,
        json!({"cniVersion": "0.4.0", "code": 2, "msg": "vlan: 5 is not supported"})
    );
    for (change, code, expected) in [
        (
            json!({"ipam": {"type": "nobody"}}),
            7,
            r#"ipam.type: "nobody"; no executable of that name in CNI_PATH (/mnt/bin:"#,
        ),
        (json!({"macspoofchk": true}), 2, "macspoofchk"),
        (
            json!({"mtu": 67}),
            7,
            "mtu: 67; must be from 68 to 65535 bytes",
        ),
        (
            json!({"bridge": "way-too-long-name"}),
            7,
            r#"bridge: "way-too-long-name"; interface name is too long"#,
        ),
        (
            json!({"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.5/24"}]]}}),
            7,
            "has host bits set",
        ),
        (
            json!({"ipam": {"ranges": [[{"subnet": 5}]]}}),
            6,
            "ipam.ranges[0][0].subnet",
        ),
        (
            json!({"runtimeConfig": {"ips": ["10.10.1"]}}),
            7,
            r#"runtimeConfig.ips: "10.10.1""#,
        ),
        (
            json!({"ipam": {"type": "host-local", "subnet": "10.10.1.0/24", "gateway": "fd00::1"}}),
            7,
            "gateway fd00::1 is not of the family of network 10.10.1.0/24",
        ),
        (
            json!({"ipam": {"type": "host-local", "rangeStart": "10.10.1.9"}}),
            7,
            "rangeStart, rangeEnd and gateway require a subnet",
        ),
        (
            json!({"ipam": {"type": "host-local", "subnet": "10.10.1.0/24", "resolvConf": "/run/none"}}),
            7,
            "ipam.resolvConf: /run/none; No such file",
        ),
        (
            json!({"runtimeConfig": {"mac": "zz"}}),
            7,
            r#"runtimeConfig.mac: "zz""#,
        ),
        (
            json!({"cniVersion": "7.0.0"}),
            1,
            "incompatible CNI versions",
        ),
        (json!({"name": ""}), 7, "missing network name"),
        (
            json!({"subnetFileWait": 61, "ipam": {"type": "host-local"}}),
            7,
            "subnetFileWait: 61; must be from 0 to 60 seconds",
        ),
        (
            json!({"prevResult": "what"}),
            6,
            r#"could not parse prevResult: expected an object, not "what""#,
        ),
    ] {
        let mut conf = bridge_form("1.0.0", &[V4]);
        for (key, value) in change.as_object().expect("an object") {
            conf[key] = value.clone();
        }
        let error = plugin
            .call(&node, "ADD", &Attachment::named("a"), &conf)
            .error();
        assert_eq!(error.0, code, "{change}: {}", error.1);
        assert!(error.1.contains(expected), "{change}: {}", error.1);
    }
}

/// Adds a pod, and returns the address and hardware address that it got.
fn add_and_inspect(
    node: &Node<'_>,
    plugin: &Plugin,
    name: &str,
    args: &str,
    conf: &Value,
) -> (String, String) {
    let _pod = node.pod(name);
    let attachment = Attachment::named(name).with_args(args);
    let result = plugin.call(node, "ADD", &attachment, conf).ok();
    let mac = result["interfaces"][2]["mac"]
        .as_str()
        .expect("the value is present")
        .to_owned();
    let address = result["ips"][0]["address"]
        .as_str()
        .expect("the value is present")
        .to_owned();
    let inside = node
        .sh(&format!(
            "ip -n {name} -o addr show dev eth0; ip -n {name} link show dev eth0"
        ))
        .ok();
    assert!(
        inside.contains(&address) && inside.contains(&mac),
        "{inside}"
    );
    (address, mac)
}

#[test]
fn addresses_and_macs_can_be_requested_by_cni_args_args_and_runtime_config() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = bridge_form("1.0.0", &[V4]);
    let plain = add_and_inspect(&node, &plugin, "a", "", &conf);
    assert_eq!(
        plain,
        ("10.10.1.2/24".into(), "0a:58:0a:0a:01:02".into()),
        "computed from the address"
    );
    let args = "K8S_POD_NAME=x;MAC=02:00:00:00:00:01;IgnoreUnknown=1;IP=10.10.1.50;Other=1";
    assert_eq!(
        add_and_inspect(&node, &plugin, "b", args, &conf),
        ("10.10.1.50/24".into(), "02:00:00:00:00:01".into())
    );
    let mut by_args = conf.clone();
    by_args["args"] = json!({"cni": {"ips": ["10.10.1.60/24"], "mac": "02:00:00:00:00:02"}});
    assert_eq!(
        add_and_inspect(&node, &plugin, "c", "", &by_args),
        ("10.10.1.60/24".into(), "02:00:00:00:00:02".into())
    );
    let mut by_runtime = conf.clone();
    by_runtime["runtimeConfig"] = json!({"ips": ["10.10.1.70"], "mac": "02:00:00:00:00:03"});
    let before = add_and_inspect(&node, &plugin, "d", "MAC=02:00:00:00:00:09", &by_runtime);
    assert_eq!(before, ("10.10.1.70/24".into(), "02:00:00:00:00:03".into()));
    let refused = |name: &str, args: &str| {
        let _pod = node.pod(name);
        let attachment = Attachment::named(name).with_args(args);
        plugin.call(&node, "ADD", &attachment, &conf).error()
    };
    assert!(
        refused("e", "IP=10.10.1.50")
            .1
            .contains("10.10.1.50 is not available")
    );
    assert!(
        refused("f", "IP=10.10.1.1")
            .1
            .contains("10.10.1.1 is the subnet's gateway")
    );
    assert!(
        refused("g", "IP=10.99.1.1")
            .1
            .contains("failed to allocate all requested IPs: 10.99.1.1")
    );
    assert_eq!(refused("h", "Other=1").0, 4);
}

#[test]
fn empty_values_of_unsupported_keys_are_accepted() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let mut conf = bridge_form("1.0.0", &[V4]);
    for (key, nothing) in [
        ("vlan", json!(0)),
        ("vlanTrunk", json!([])),
        ("ipMasqBackend", json!("")),
        ("macspoofchk", json!(false)),
        ("subnetFile", json!("")),
        (
            "runtimeConfig",
            json!({"portMappings": [], "bandwidth": {}, "mac": ""}),
        ),
        ("args", json!({"cni": {"ips": []}})),
    ] {
        conf[key] = nothing;
    }
    conf["ipam"]["dataDir"] = json!("");
    conf["ipam"]["resolvConf"] = json!("");
    conf["mtu"] = json!(0);
    let reply = Plugin::ours(&lab).add(&node.pod("a"), &conf);
    assert_eq!(reply.addresses(), ["10.10.1.2"]);
    assert!(node.path("/var/lib/cni/networks/cbr0/10.10.1.2").exists());
}

#[test]
fn explicit_ranges_replace_the_subnet_file_except_in_flannels_form() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    lab.install(&conformance::dist().join("subnet-env"), "bin/subnet-env");
    node.sh(
        "/mnt/bin/subnet-env write --network 10.10.0.0/16 --subnet 10.10.1.0/24 \
         --network fd00:10:10::/48 --subnet fd00:10:10:1::/64 --mtu 1400",
    )
    .ok();
    let range = json!({"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.100"});
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true,
        "subnetFile": "/run/flannel/subnet.env", "ipam": {"ranges": [[range]]},
    });
    let (pod, other) = (node.pod("a"), node.pod("b"));
    assert_eq!(
        Plugin::ours(&lab).add(&pod, &conf).addresses(),
        ["10.10.1.100"]
    );
    // In flannel's form, ranges in the configuration are ignored: a range left there by mistake
    // would give every node the same addresses.
    conf["delegate"] = json!({"isDefaultGateway": true});
    for ipam in [
        json!({"ranges": [[{"subnet": "10.99.1.0/24"}]]}),
        json!({"subnet": "10.99.1.0/24", "rangeStart": "10.99.1.9"}),
    ] {
        conf["ipam"] = ipam;
        let addresses = Plugin::ours(&lab).add(&other, &conf).addresses();
        assert!(addresses[0].starts_with("10.10.1."), "{addresses:?}");
        assert!(addresses[1].starts_with("fd00:10:10:1:"), "{addresses:?}");
        Plugin::ours(&lab).del(&other, &conf).ok();
    }
    assert!(
        pod.sh("busybox ip route")
            .ok()
            .contains("10.10.0.0/16 via 10.10.1.1")
    );
    assert!(pod.sh("ip link show eth0").ok().contains("mtu 1400"));
}

#[test]
fn flannel_and_bridge_forms_have_the_same_effect() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    lab.install(&conformance::dist().join("subnet-env"), "bin/subnet-env");
    node.sh("/mnt/bin/subnet-env write --network 10.10.0.0/16 --subnet 10.10.1.0/24 --mtu 1450 --ip-masq --file /run/elsewhere/subnet.env").ok();
    let plugin = Plugin::ours(&lab);
    let flannel = json!({
        "cniVersion": "1.1.0", "name": "one", "type": "flannel", "subnetFile": "/run/elsewhere/subnet.env",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true, "bridge": "br-one"},
    });
    let bridge = json!({
        "cniVersion": "1.1.0", "name": "two", "type": "cni-hostgw", "BRIDGE": "br-two", "isGateway": null,
        "hairpinMode": true, "isDefaultGateway": true, "mtu": 1450,
        "ipam": {"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.2", "rangeEnd": "10.10.1.99", "gateway": "10.10.1.1",
            "routes": [{"dst": "10.10.0.0/16"}], "dataDir": "/run/store"},
    });
    let [mut one, mut two] = [("a", &flannel), ("b", &bridge)].map(|(name, conf)| {
        let pod = node.pod(name);
        let reply = plugin.add(&pod, conf);
        let routes = pod.sh("busybox ip route").ok();
        let result = comparable(reply.ok());
        let ports = node.sh("ip -d link show type bridge_slave").ok();
        let port = ports.contains("hairpin on");
        plugin.del(&pod, conf).ok();
        (result, routes, port)
    });
    for result in [&mut one.0, &mut two.0] {
        result["interfaces"][0]["name"] = json!("bridge");
        result["interfaces"][2]["sandbox"] = json!("netns");
    }
    assert_eq!(one, two);
    assert!(one.2, "hairpin mode is on");
    assert!(
        node.path("/run/store/two").exists(),
        "the store is in the configured dataDir"
    );
}

/// Shell expression for the name of the host veth.
const VETH: &str = "$(ip -o link show type bridge_slave | sed 's/.*: \\(veth[^@]*\\)@.*/\\1/')";

// Long: a table of cases.
#[test]
fn check_fails_after_each_kind_of_damage() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    for (damage, expected) in [
        (
            "ip -n a addr delete 10.10.1.2/24 dev eth0",
            "interface eth0 lacks address 10.10.1.2/24",
        ),
        (
            "ip -n a route delete default",
            "route 0.0.0.0/0 via 10.10.1.1 is gone",
        ),
        ("ip -n a link set eth0 down", "interface eth0 is down"),
        (
            "ip -n a link set eth0 address 02:00:00:00:00:07",
            "interface eth0 has hardware address 02:00:00:00:00:07, not 0a:58:0a:0a:01:02",
        ),
        (
            "ip -n a link set eth0 mtu 1500",
            "interface eth0 has MTU 1500, not 1400",
        ),
        ("ip link set VETH mtu 1300", "has MTU 1300, not 1400"),
        ("ip link set VETH down", "is down"),
        (
            "ip -n a link delete eth0; ip -n a link add eth0 type bridge",
            "interface eth0 is not a veth",
        ),
        (
            "ip -n a link set eth0 down; ip -n a link set eth0 name eth1; ip -n a link add eth0 address 0a:58:0a:0a:01:02 mtu 1400 up type veth peer name eth9; ip -n a link set eth9 up",
            "is not the other end of eth0",
        ),
        ("ip -n a link delete eth0", "interface eth0 is gone"),
        ("ip link delete cni0", "bridge cni0 is gone"),
        ("ip link set cni0 down", "bridge cni0 is down"),
        (
            "ip addr delete 10.10.1.1/24 dev cni0",
            "bridge cni0 lacks address 10.10.1.1/24",
        ),
        (
            "echo 0 > /proc/sys/net/ipv4/ip_forward",
            "the node does not forward: net/ipv4/ip_forward is 0",
        ),
        ("ip link set VETH nomaster", "is not a port of cni0"),
        (
            "ip link set VETH type bridge_slave hairpin off",
            "has hairpin mode off",
        ),
        (
            "ip link set VETH type bridge_slave isolated on",
            "has port isolation on",
        ),
        (
            "ip neigh replace 10.10.1.2 dev cni0 lladdr 02:00:00:00:00:09 nud reachable",
            "stale neighbour entry for 10.10.1.2: 02:00:00:00:00:09, expected 0a:58:0a:0a:01:02",
        ),
        (
            "rm /var/lib/cni/networks/cbr0/10.10.1.2",
            "address 10.10.1.2 is not reserved for this attachment",
        ),
        (
            "nft delete table ip cni-hostgw-cbr0",
            "10.10.1.0/24 is not masqueraded",
        ),
    ] {
        let mut conf = bridge_form("1.1.0", &[V4]);
        conf["ipMasq"] = json!(true);
        conf["mtu"] = json!(1400);
        node.sh("rm -rf /var/lib/cni/networks").ok();
        let pod = node.pod("a");
        conf["prevResult"] = plugin.add(&pod, &conf).ok();
        let attachment = Attachment::of(&pod);
        plugin.call(&node, "CHECK", &attachment, &conf).ok();
        node.sh(&damage.replace("VETH", VETH)).ok();
        let (code, text) = plugin.call(&node, "CHECK", &attachment, &conf).error();
        assert_eq!(code, 102, "{damage}: {text}");
        assert!(text.contains(expected), "{damage}: {text}");
        plugin.del(&pod, &conf).ok();
        pod.delete();
    }
}

#[test]
fn check_accepts_changes_by_later_plugins_and_outdated_neighbour_entries() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let mut conf = bridge_form("1.0.0", &[V4]);
    let result = plugin.add(&pod, &conf).ok();
    conf["prevResult"] = result;
    conf["prevResult"]["interfaces"][2]["mac"] = json!("02:00:00:00:00:07");
    // An interface of another plugin in prevResult and a route that another process added are
    // accepted (see the end of this test). In IPv6, CHECK does not wait for an answer from a
    // neighbour either.
    let mut dual = bridge_form("1.1.0", &["10.11.1.0/24", "fd00:10:11:1::/64"]);
    dual["name"] = json!("dual");
    dual["bridge"] = json!("cni1");
    let six = node.pod("six");
    dual["prevResult"] = plugin.add(&six, &dual).ok();
    dual["prevResult"]["interfaces"][2]["mac"] = json!("02:00:00:00:00:08");
    // Changes the hardware address as the tuning plugin does, then restores the routes that were
    // lost with the link.
    six.sh(
        "ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:08 && ip link set eth0 up \
         && ip route add default via 10.11.1.1 && ip route add 10.10.0.0/16 via 10.11.1.1 \
         && ip -6 route add default via fd00:10:11:1::1",
    )
    .ok();
    wait_for(
        "CHECK accepts the hardware address announced to the neighbours",
        || {
            plugin
                .call(&node, "CHECK", &Attachment::of(&six), &dual)
                .success
        },
    );
    let interfaces = conf["prevResult"]["interfaces"].as_array_mut();
    interfaces.expect("a list").push(json!({"name": "bwp0"}));
    node.sh(
        "ip -n a link set eth0 address 02:00:00:00:00:07 mtu 1300; ip neigh flush dev cni0; \
         ip -n a route add 10.77.0.0/16 via 10.10.1.1",
    )
    .ok();
    plugin
        .call(&node, "CHECK", &Attachment::of(&pod), &conf)
        .ok();
}

#[test]
fn check_needs_no_subnet_file() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let file = "/run/flannel/subnet.env";
    for (content, addresses) in [
        (
            "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
            1,
        ),
        (
            "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\n\
             FLANNEL_IPV6_NETWORK=fd00:10:10::/48\nFLANNEL_IPV6_SUBNET=fd00:10:10:1::1/64\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
            2,
        ),
    ] {
        node.sh("rm -rf /var/lib/cni/networks; ip link delete cni0 || true")
            .ok();
        node.write(file, content);
        let mut conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {"isDefaultGateway": true, "ipMasq": true}});
        let pod = node.pod("a");
        let result = plugin.add(&pod, &conf).ok();
        assert_eq!(result["ips"].as_array().map(Vec::len), Some(addresses));
        conf["prevResult"] = result;
        let attachment = Attachment::of(&pod);
        let check = || plugin.call(&node, "CHECK", &attachment, &conf);
        for damage in [
            "true",
            "echo FLANNEL_MTU=x > /run/flannel/subnet.env",
            "rm /run/flannel/subnet.env",
        ] {
            node.sh(damage).ok();
            check().ok();
        }
        // It still compares what prevResult has.
        node.sh("ip -n a route delete default").ok();
        let (code, text) = check().error();
        assert!(code == 102 && text.contains("is gone"), "{text}");
        // The kernel deletes the veth some time after the namespace, and the next pod has the same ID.
        node.write(file, content);
        plugin.del(&pod, &conf).ok();
        pod.delete();
    }
}

#[test]
fn check_requires_prev_result() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    for plugin in [Plugin::reference("bridge"), Plugin::ours(&lab)] {
        let pod = node.pod("a");
        let conf = bridge_form("1.0.0", &[V4]);
        plugin.add(&pod, &conf).ok();
        let (_, text) = plugin
            .call(&node, "CHECK", &Attachment::of(&pod), &conf)
            .error();
        assert!(
            text.to_lowercase().contains("required prevresult missing"),
            "{text}"
        );
        plugin.del(&pod, &conf).ok();
        pod.delete();
    }
}

#[test]
fn status_fails_if_an_add_would_fail() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {}});
    let status = || plugin.call(&node, "STATUS", &Attachment::named(""), &conf);
    let (code, text) = status().error();
    assert_eq!(code, 50);
    assert!(text.contains("/run/flannel/subnet.env"), "{text}");
    node.sh("mkdir -p /run/flannel; echo FLANNEL_MTU=1500 > /run/flannel/subnet.env")
        .ok();
    assert!(
        status()
            .error()
            .1
            .contains("is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET")
    );
    lab.install(&conformance::dist().join("subnet-env"), "bin/subnet-env");
    node.sh("/mnt/bin/subnet-env write --network 10.10.0.0/16 --subnet 10.10.1.0/24")
        .ok();
    assert_eq!(status().ok(), Value::Null);
    node.sh("ip link add cni0 type bridge && ip addr add 10.77.9.1/24 dev cni0")
        .ok();
    assert_eq!(status().ok(), Value::Null, "ADD will correct the address");
    node.sh("ip link add tap type veth peer name pat && ip link set tap master cni0")
        .ok();
    let (code, text) = status().error();
    assert_eq!(code, 50);
    assert!(text.contains("10.77.9.1/24"), "{text}");
    // Any address in addition to the gateway's is accepted.
    node.sh("ip addr add 10.10.1.1/24 dev cni0").ok();
    assert_eq!(status().ok(), Value::Null);
    node.sh("ip link delete cni0 && ip link add cni0 type veth peer name cni1")
        .ok();
    let (code, text) = status().error();
    assert_eq!(
        (code, text.trim_end_matches("; ")),
        (50, "cni0 already exists but is not a bridge")
    );
    node.sh("ip link delete cni0; echo > /var/lib/cni/networks")
        .ok();
    let (code, text) = status().error();
    assert_eq!(code, 50);
    assert!(
        text.starts_with("access the store in /var/lib/cni/networks/cbr0"),
        "{text}"
    );
    node.sh("rm /var/lib/cni/networks; mount -o bind,ro /var/lib/cni /var/lib/cni")
        .ok();
    let (code, text) = status().error();
    assert_eq!(code, 50);
    assert!(text.contains("Read-only file system"), "{text}");
}

#[test]
fn status_takes_under_three_milliseconds_and_writes_nothing() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(false);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {},
        "logFile": "/run/log",
    });
    for _ in 0..21 {
        plugin
            .call(&node, "STATUS", &Attachment::named(""), &conf)
            .ok();
    }
    assert_eq!(node.sh("ls /var/lib/cni").ok(), "");
    assert_eq!(node.sh("nft list ruleset").ok(), "");
    let log = std::fs::read_to_string(node.path("/run/log")).expect("the file has been written");
    let mut times: Vec<u64> = log
        .lines()
        .filter_map(|line| line.split(" us=").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    times.sort_unstable();
    assert_eq!(times.len(), 21, "{log}");
    assert!(times[10] < 3000, "the median, in microseconds: {times:?}");
}

// Long: a table of cases.
#[test]
fn wrong_json_types_are_reported_with_json_type_names() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let _pod = node.pod("a");
    let typed = |key: &str, value: Value| json!({ key: value });
    for (change, expected) in [
        (
            typed("ipam", json!([])),
            "ipam: expected an object, found the array []",
        ),
        (
            typed("ipam", json!(["host-local", [], []])),
            "ipam: expected an object, found the array",
        ),
        (
            typed("args", json!([[["10.1.2.77"]]])),
            "args: expected an object, found the array",
        ),
        (
            typed("args", json!({"cni": [["10.1.2.77"]]})),
            "args.cni: expected an object",
        ),
        (
            typed("runtimeConfig", json!([["10.1.2.77"]])),
            "runtimeConfig: expected an object",
        ),
        (
            typed("runtimeConfig", json!({"dns": [["10.0.0.1"]]})),
            "runtimeConfig.dns: expected an object",
        ),
        (
            typed("runtimeConfig", json!({"ipRanges": [[["10.1.2.0/24"]]]})),
            "runtimeConfig.ipRanges[0][0]: expected an object",
        ),
        (
            typed("dns", json!([["10.0.0.1"]])),
            "dns: expected an object",
        ),
        (
            typed("capabilities", json!([true, false])),
            "capabilities: expected an object",
        ),
        (
            typed("capabilities", json!({"ips": "yes"})),
            r#"capabilities.ips: expected true or false, found the string "yes""#,
        ),
        (
            typed(
                "ipam",
                json!({"type": "host-local", "routes": [["10.0.0.0/8"]]}),
            ),
            "ipam.routes[0]: expected an object",
        ),
        (
            typed("ipam", json!({"type": 5})),
            "ipam.type: expected a string, found the number 5",
        ),
        (
            typed("mtu", json!(-1)),
            "mtu: expected a whole number from 0 to 4294967295, found the number -1",
        ),
        (typed("mtu", json!(1500.5)), "mtu: expected a whole number"),
        (
            typed("prevResult", json!({"interfaces": [["eth0"]]})),
            "interfaces[0]: expected an object",
        ),
        (typed("delegate", json!([])), "delegate: expected an object"),
        (
            typed("delegate", json!({"args": []})),
            "delegate.args: expected an object",
        ),
    ] {
        let mut conf = bridge_form("1.0.0", &[V4]);
        for (key, value) in change.as_object().expect("an object") {
            conf[key] = value.clone();
        }
        let (code, text) = plugin
            .call(&node, "ADD", &Attachment::named("a"), &conf)
            .error();
        assert_eq!(code, 6, "{change}: {text}");
        assert!(text.contains(expected), "{change}: {text}");
        for rust_word in ["struct", "sequence", "u32", "i64", "a map", "invalid type"] {
            assert!(!text.contains(rust_word), "{change}: {text}");
        }
        // DEL still succeeds with the wrong configuration, so that an attachment can be removed
        // after a change of the configuration.
        if !change["prevResult"].is_object() {
            plugin
                .call(&node, "DEL", &Attachment::named("a"), &conf)
                .ok();
        }
    }
}

// Long: a table of cases.
#[test]
fn requested_addresses_are_accepted_in_every_form_that_go_parses_and_no_other() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let conf = bridge_form("1.0.0", &["10.1.0.0/24"]);
    let with = |key: &str, text: &str| {
        let mut conf = conf.clone();
        let mut attachment = Attachment::of(&pod);
        match key {
            "IP" => attachment = attachment.with_args(&format!("IgnoreUnknown=1;IP={text}")),
            "args" => conf["args"] = json!({"cni": {"ips": [text]}}),
            _ => conf["runtimeConfig"] = json!({"ips": [text]}),
        }
        (conf, attachment)
    };
    for key in ["IP", "args", "runtimeConfig"] {
        for text in [
            "10.1.0.78",
            "10.1.0.78/24",
            "10.1.0.78/8",
            "::ffff:10.1.0.78",
            "::ffff:a01:4e",
            "::ffff:10.1.0.78/24",
            "::ffff:10.1.0.78/120",
        ] {
            let (conf, attachment) = with(key, text);
            let reply = plugin.call(&node, "ADD", &attachment, &conf);
            assert_eq!(reply.addresses(), ["10.1.0.78"], "{key} {text}");
            plugin.call(&node, "DEL", &attachment, &conf).ok();
        }
        for text in [
            "10.1.0.78/abc",
            "10.1.0.78/64",
            "10.1.0.78/99",
            "10.1.0.78/",
            "10.1.0.78/+24",
            "/24",
            "10.1.0.64/255.255.255.224",
            "::ffff:10.1.0.78/129",
        ] {
            let (conf, attachment) = with(key, text);
            let (code, expected) = plugin.call(&node, "ADD", &attachment, &conf).error();
            assert_eq!(code, 7, "{key} {text}: {expected}");
            assert!(expected.contains(text), "{key} {text}: {expected}");
        }
    }
    let mut conf = conf;
    for (range, expected) in [
        (
            json!({"subnet": "10.2.1.64/255.255.255.224"}),
            "is not a network",
        ),
        (
            json!({"subnet": "10.2.1.0/24", "gateway": "10.2.2.1"}),
            "gateway 10.2.2.1 not in network 10.2.1.0/24",
        ),
        (
            json!({"subnet": "fd00::/64", "gateway": "fd01::1"}),
            "gateway fd01::1 not in network fd00::/64",
        ),
    ] {
        conf["ipam"]["ranges"] = json!([[range]]);
        let (_, text) = plugin.add(&pod, &conf).error();
        assert!(text.contains(expected), "{text}");
    }
    let mapped = json!({"subnet": "10.1.0.0/24", "rangeStart": "::ffff:10.1.0.9", "rangeEnd": "::ffff:a01:9", "gateway": "::ffff:10.1.0.7"});
    conf["ipam"]["ranges"] = json!([[mapped]]);
    let result = plugin.add(&pod, &conf).ok();
    assert_eq!(result["ips"][0]["address"], "10.1.0.9/24");
    assert_eq!(result["ips"][0]["gateway"], "10.1.0.7");
}

#[test]
fn requested_macs_are_accepted_in_every_form_that_go_parses() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = bridge_form("1.0.0", &[V4]);
    for mac in ["0a58.0a01.0042", "0A-58-0A-01-00-42", "0a:58:0a:01:00:42"] {
        let pod = node.pod("a");
        let attachment = Attachment::of(&pod).with_args(&format!("IgnoreUnknown=1;MAC={mac}"));
        let result = plugin.call(&node, "ADD", &attachment, &conf).ok();
        assert_eq!(result["interfaces"][2]["mac"], "0a:58:0a:01:00:42");
        plugin.call(&node, "DEL", &attachment, &conf).ok();
        pod.delete();
    }
}

#[test]
fn cni_args_errors_name_the_invalid_pair_and_the_right_remedy() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("a");
    let expected = |args: &str| {
        let attachment = Attachment::of(&pod).with_args(args);
        let reply = plugin.call(&node, "ADD", &attachment, &bridge_form("1.0.0", &[V4]));
        let (code, text) = reply.error();
        assert_eq!(code, 4);
        text
    };
    let text = expected("IgnoreUnknown=1;TOKEN=YWJj==");
    assert!(text.contains(r#"invalid pair "TOKEN=YWJj==""#), "{text}");
    assert!(
        text.contains(r#"no value may contain "=""#) && !text.contains("IgnoreUnknown"),
        "{text}"
    );
    let text = expected("TOKEN=abc");
    assert!(text.contains("add IgnoreUnknown=1"), "{text}");
}

#[test]
fn versions_0_1_0_and_0_2_0_support_links_without_addresses() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    for version in ["0.1.0", "0.2.0"] {
        let pod = node.pod("a");
        let conf = json!({"cniVersion": version, "name": "l2", "type": "bridge"});
        let result = plugin.add(&pod, &conf).ok();
        assert_eq!(result, json!({"cniVersion": version, "dns": {}}));
        assert!(pod.sh("ip -br link show eth0").ok().contains(" UP "));
        plugin.del(&pod, &conf).ok();
        pod.delete();
    }
}

#[test]
fn container_ids_and_network_names_may_be_longer_than_file_and_table_names() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let _pod = node.pod("a");
    // Together longer than a file name may be, and longer than an nftables table name may be.
    for (id, network) in [
        ("c".repeat(254), "net".to_owned()),
        ("c".repeat(300), "net".to_owned()),
        ("c".repeat(64), "n".repeat(250)),
        ("c".repeat(300), "n".repeat(250)),
    ] {
        let mut conf = bridge_form("1.1.0", &[V4]);
        conf["type"] = json!("cni-hostgw");
        conf["name"] = json!(network);
        conf["ipMasq"] = json!(true);
        let attachment = Attachment {
            id: id.clone(),
            ..Attachment::named("a")
        };
        for verb in ["DEL", "ADD"] {
            plugin.call(&node, verb, &attachment, &conf).ok();
        }
        let rules = node.sh("nft list ruleset").ok();
        assert!(rules.contains("masquerade"), "{rules}");
        plugin.call(&node, "DEL", &attachment, &conf).ok();
        assert_eq!(node.sh("nft list ruleset").ok(), "");
        // GC finds the attachment, too.
        plugin.call(&node, "ADD", &attachment, &conf).ok();
        let mut collect = conf.clone();
        collect["cni.dev/valid-attachments"] = json!([]);
        plugin.call(&node, "GC", &attachment, &collect).ok();
        assert!(node.ports().is_empty());
        assert_eq!(node.sh("nft list ruleset").ok(), "");
        node.sh("ls -R /var/lib/cni | grep -E '^10|:eth0|^_' && exit 1; true")
            .ok();
    }
    // No file can have such a long name, so there is nothing to delete.
    let mut conf = bridge_form("1.1.0", &[V4]);
    conf["name"] = json!("n".repeat(300));
    plugin
        .call(&node, "DEL", &Attachment::named("a"), &conf)
        .ok();
}

#[test]
fn comments_in_resolv_conf_may_have_any_encoding() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write("/run/resolv.conf", b"# f\xfcr uns\nnameserver 10.96.0.10\n");
    let mut conf = bridge_form("1.0.0", &[V4]);
    conf["dns"] = json!({});
    conf["ipam"]["resolvConf"] = json!("/run/resolv.conf");
    let result = Plugin::ours(&lab).add(&node.pod("a"), &conf).ok();
    assert_eq!(result["dns"]["nameservers"], json!(["10.96.0.10"]));
}

#[test]
fn the_subnet_file_is_parsed_as_flannel_parses_it() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "subnetFileWait": 0,
        "delegate": {"isDefaultGateway": true},
    });
    let write = |network: &str, subnet: &str, mtu: &str| {
        let text = format!(
            "FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"
        );
        node.write("/run/flannel/subnet.env", text);
    };
    let pod = node.pod("a");
    // The same network twice, once with host bits; one IPv6 network; and MTU 0, which means the
    // kernel's default.
    write(
        "10.10.0.0/16,fd00:10::/48,10.10.0.5/16",
        "10.10.1.1/24",
        "0",
    );
    let result = plugin.add(&pod, &conf).ok();
    let routes = json!([{"dst": "10.10.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.10.1.1"}]);
    assert_eq!(result["routes"], routes);
    assert!(pod.sh("ip link show eth0").ok().contains("mtu 1500"));
    plugin.del(&pod, &conf).ok();
    let text = "\u{feff}FLANNEL_NETWORK=10.10.0.0/16\r\nFLANNEL_SUBNET=10.10.1.1/24\r\nFLANNEL_MTU=1450\r\nFLANNEL_IPMASQ=true\r\n";
    node.write("/run/flannel/subnet.env", text);
    plugin.add(&pod, &conf).ok();
    plugin.del(&pod, &conf).ok();
    for (network, subnet, expected) in [
        (
            "10.10.0.0/16",
            "10.99.3.1/24",
            "subnet 10.99.3.1/24 is not in any of the networks",
        ),
        (
            "10.10.0.0/16",
            "10.10.1.1/255.255.255.0",
            "is not an IPv4 subnet",
        ),
        (
            "10.10.0.0/255.255.0.0",
            "10.10.1.1/24",
            "is not a list of networks",
        ),
    ] {
        write(network, subnet, "1500");
        let (code, text) = plugin.add(&pod, &conf).error();
        assert_eq!(code, 11);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn delegate_keys_that_flannel_passes_to_bridge_take_effect() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
        "delegate": {
            "dns": {"nameservers": ["10.96.0.10"]},
            "args": {"cni": {"ips": ["10.10.1.77"], "mac": "02:00:00:00:00:07"}},
            "runtimeConfig": {"ips": ["10.10.1.88"]},
        },
    });
    // A single range set can serve only one of the requested addresses: the first that fits.
    conf["delegate"]["args"]["cni"]["ips"] = json!([]);
    let pod = node.pod("a");
    let result = plugin.add(&pod, &conf).ok();
    assert_eq!(result["ips"][0]["address"], "10.10.1.88/24");
    assert_eq!(result["dns"]["nameservers"], json!(["10.96.0.10"]));
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:07");
    plugin.del(&pod, &conf).ok();
    // A `runtimeConfig` from the runtime replaces the delegate's, so the addresses in the
    // delegate's `args` are requested.
    conf["runtimeConfig"] = json!({});
    conf["delegate"]["args"]["cni"]["ips"] = json!(["10.10.1.77"]);
    let result = plugin.add(&pod, &conf).ok();
    assert_eq!(result["ips"][0]["address"], "10.10.1.77/24");
}
