//! Host ports: the capability `portMappings` of our plugin, next to the reference plugin `portmap`.

use std::time::Duration;

use conformance::reference_picture::{Family, agents, cluster, nodes as cluster_nodes};
use conformance::sockets::{Place, sctp_arrives};
use conformance::{Agent, Attachment, Lab, Node, Plugin, Pod, Reply, wait_for};
use serde_json::{Value, json};

/// The plugins that open host ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opener {
    /// The reference: `bridge`, and `portmap` behind it.
    Portmap,
    /// Our plugin alone.
    Ours,
}

const BOTH: [Opener; 2] = [Opener::Portmap, Opener::Ours];

/// One network of a node.
struct Network<'lab> {
    opener: Opener,
    lab: &'lab Lab,
    subnets: Value,
    /// Keys of the entry that opens host ports.
    keys: Value,
}

impl<'lab> Network<'lab> {
    fn new(opener: Opener, lab: &'lab Lab) -> Self {
        let subnets = json!([[{"subnet": "10.10.1.0/24"}], [{"subnet": "fd00:10:10:1::/64"}]]);
        Self {
            opener,
            lab,
            subnets,
            keys: json!({}),
        }
    }

    fn ours(lab: &'lab Lab) -> Self {
        Self::new(Opener::Ours, lab)
    }

    /// The entry of the plugin that makes the interface.
    fn entry(&self, mappings: &Value) -> Value {
        let mut entry = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0",
            "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "ranges": self.subnets},
        });
        if self.opener == Opener::Ours {
            entry["type"] = json!("cni-hostgw");
            self.declare(&mut entry, mappings);
        }
        entry
    }

    fn portmap(&self, mappings: &Value, previous: &Value) -> Value {
        let mut entry = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap"});
        entry["prevResult"] = previous.clone();
        self.declare(&mut entry, mappings);
        entry
    }

    fn declare(&self, entry: &mut Value, mappings: &Value) {
        entry["capabilities"] = json!({"portMappings": true});
        entry["runtimeConfig"] = json!({"portMappings": mappings});
        for (key, value) in self.keys.as_object().expect("keys") {
            entry[key] = value.clone();
        }
    }

    fn plugin(&self) -> Plugin {
        match self.opener {
            Opener::Portmap => Plugin::reference("bridge"),
            Opener::Ours => Plugin::ours(self.lab),
        }
    }

    fn add(&self, pod: &Pod<'_>, mappings: &Value) -> Reply {
        let attachment = Attachment::of(pod).with_args(&pod_args(&pod.netns()));
        let call = |plugin: Plugin, conf: &Value| plugin.call(pod.node(), "ADD", &attachment, conf);
        let reply = call(self.plugin(), &self.entry(mappings));
        // The node finds no IPv6 neighbour before the new bridge has its link-local address.
        wait_for("duplicate address detection on the bridge", || {
            let tentative = "ip -6 address show dev cni0 tentative";
            pod.node().sh(tentative).stdout.is_empty()
        });
        if self.opener == Opener::Ours {
            return reply;
        }
        let portmap = self.portmap(mappings, &reply.ok());
        call(Plugin::reference("portmap"), &portmap)
    }

    fn call(&self, verb: &str, pod: &Pod<'_>, mappings: &Value, result: &Value) -> Reply {
        assert_eq!(self.opener, Opener::Ours);
        let mut conf = self.entry(mappings);
        conf["prevResult"] = result.clone();
        let attachment = Attachment::of(pod);
        self.plugin().call(pod.node(), verb, &attachment, &conf)
    }

    fn del(&self, pod: &Pod<'_>, mappings: &Value) {
        let attachment = Attachment::of(pod);
        if self.opener == Opener::Portmap {
            let portmap = self.portmap(mappings, &json!({"cniVersion": "1.0.0"}));
            let portmap =
                Plugin::reference("portmap").call(pod.node(), "DEL", &attachment, &portmap);
            portmap.ok();
        }
        let entry = self.entry(mappings);
        self.plugin()
            .call(pod.node(), "DEL", &attachment, &entry)
            .ok();
    }
}

/// `CNI_ARGS` with the pod's name, as kubelet gives it.
fn pod_args(netns: &str) -> String {
    let name = netns.rsplit('/').next().expect("a path has a last part");
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}")
}

fn tcp(host_port: u16, container_port: u16) -> Value {
    json!({"hostPort": host_port, "containerPort": container_port, "protocol": "tcp"})
}

/// A lab with worker1 and another machine, `outside`, that knows only worker1's own addresses.
fn nodes(lab: &Lab) -> (Node<'_>, Node<'_>) {
    let node = lab.node("worker1", &["192.168.2.16/24", "fd00:192:168:2::16/64"]);
    let outside = lab.node("outside", &["192.168.2.99/24", "fd00:192:168:2::99/64"]);
    (node, outside)
}

fn elements(node: &Node<'_>) -> usize {
    let table = node.sh("nft list table inet cni-hostgw").stdout;
    table.matches("comment \"veth").count()
}

#[test]
fn a_port_is_reached_from_everywhere() {
    for opener in BOTH {
        let lab = Lab::new();
        let (node, outside) = nodes(&lab);
        let network = Network::new(opener, &lab);
        let (web, other) = (node.pod("web"), node.pod("other"));
        let mappings = json!([tcp(8080, 80)]);
        let result = network.add(&web, &mappings).ok();
        network.add(&other, &json!([])).ok();
        let _server = web.answer(80, "web");
        let pod_ip = result["ips"][0]["address"].as_str().expect("an address");
        assert_eq!(pod_ip, "10.10.1.2/24", "{opener:?}");
        let asked = |place: &dyn Fn(&str) -> std::io::Result<String>, address: &str| {
            place(address).unwrap_or_else(|error| panic!("{opener:?}: {address}: {error}"))
        };
        // The client's address is kept.
        let from_outside = |address: &str| outside.ask(address);
        assert_eq!(
            asked(&from_outside, "192.168.2.16:8080"),
            "web 192.168.2.99"
        );
        let answer = asked(&from_outside, "[fd00:192:168:2::16]:8080");
        assert_eq!(answer, "web fd00:192:168:2::99", "{opener:?}");
        let from_node = |address: &str| node.ask(address);
        for address in [
            "127.0.0.1:8080",
            "192.168.2.16:8080",
            "10.10.1.1:8080",
            "[fd00:192:168:2::16]:8080",
            "[fd00:10:10:1::1]:8080",
        ] {
            let answer = asked(&from_node, address);
            assert!(
                answer.starts_with("web "),
                "{opener:?}: {address}: {answer}"
            );
        }
        let from_other = |address: &str| other.ask(address);
        let from_itself = |address: &str| web.ask(address);
        for address in [
            "192.168.2.16:8080",
            "10.10.1.1:8080",
            "[fd00:192:168:2::16]:8080",
            "[fd00:10:10:1::1]:8080",
        ] {
            asked(&from_other, address);
            asked(&from_itself, address);
        }
        // Linux routes no packet from the network to ::1.
        assert!(node.is_closed("[::1]:8080"), "::1 cannot be reached");
        network.del(&web, &mappings);
        assert!(outside.is_closed("192.168.2.16:8080"), "closed");
        assert!(node.is_closed("127.0.0.1:8080"), "closed");
    }
}

#[test]
fn a_pod_of_another_node_reaches_the_port_with_its_own_address() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let web = node.pod("web");
    network.add(&web, &json!([tcp(8080, 80)])).ok();
    let _server = web.answer(80, "web");
    let mut there = Network::ours(&lab);
    there.subnets = json!([[{"subnet": "10.10.2.0/24"}]]);
    let remote = outside.pod("remote");
    there.add(&remote, &json!([])).ok();
    node.sh("ip route add 10.10.2.0/24 via 192.168.2.99").ok();
    let answer = remote.ask("192.168.2.16:8080").expect("reachable");
    assert_eq!(answer, "web 10.10.2.2");
}

#[test]
fn a_port_on_one_address_is_open_there_only() {
    for opener in BOTH {
        let lab = Lab::new();
        let (node, outside) = nodes(&lab);
        node.sh("ip address add 192.168.2.17/24 dev enp0s5").ok();
        let network = Network::new(opener, &lab);
        let web = node.pod("web");
        let mappings = json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "192.168.2.17"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "Tcp", "hostIP": "0.0.0.0"},
            {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "::"},
        ]);
        network.add(&web, &mappings).ok();
        let _server = web.answer(80, "web");
        outside.ask("192.168.2.17:8080").expect("open");
        assert!(
            outside.is_closed("192.168.2.16:8080"),
            "open on the other address"
        );
        outside
            .ask("192.168.2.16:8081")
            .expect("open on every IPv4 address");
        assert!(outside.is_closed("[fd00:192:168:2::16]:8081"), "IPv4 only");
        outside
            .ask("[fd00:192:168:2::16]:8082")
            .expect("open on every IPv6 address");
        assert!(outside.is_closed("192.168.2.16:8082"), "IPv6 only");
        network.del(&web, &mappings);
        assert!(outside.is_closed("192.168.2.17:8080"), "closed");
    }
}

fn masquerades_all(opener: Opener) -> &'static str {
    match opener {
        Opener::Ours => "web 10.10.1.1",
        Opener::Portmap => "web 192.168.2.99",
    }
}

#[test]
fn masquerading_follows_the_keys_of_portmap() {
    for opener in BOTH {
        for (keys, from_outside, is_open_locally) in [
            (json!({}), "web 192.168.2.99", true),
            // The reference has this key from 1.2 on.
            (
                json!({"masqAll": opener == Opener::Ours}),
                masquerades_all(opener),
                true,
            ),
            (json!({"markMasqBit": 11}), "web 192.168.2.99", true),
            (json!({"snat": false}), "web 192.168.2.99", false),
        ] {
            let lab = Lab::new();
            let (node, outside) = nodes(&lab);
            let mut network = Network::new(opener, &lab);
            network.keys = keys.clone();
            let web = node.pod("web");
            network.add(&web, &json!([tcp(8080, 80)])).ok();
            let _server = web.answer(80, "web");
            let answer = outside.ask("192.168.2.16:8080").expect("open");
            assert_eq!(answer, from_outside, "{opener:?} {keys}");
            let is_open = node.ask("127.0.0.1:8080").is_ok();
            assert_eq!(is_open, is_open_locally, "{opener:?} {keys}");
        }
    }
}

#[test]
fn keys_of_portmap_that_cannot_be_had_are_refused() {
    let lab = Lab::new();
    let (node, _) = nodes(&lab);
    let mut network = Network::ours(&lab);
    let pod = node.pod("a");
    for (keys, code, message) in [
        (
            json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}),
            2,
            "externalSetMarkChain: KUBE-MARK-MASQ",
        ),
        (
            json!({"conditionsV4": ["-d", "1.2.3.4"]}),
            2,
            "conditionsV4: ",
        ),
        (json!({"conditionsV6": ["-d", "::1"]}), 2, "conditionsV6: "),
        (json!({"markMasqBit": 32}), 7, "markMasqBit: 32"),
        (json!({"markMasqBit": -1}), 7, "markMasqBit: -1"),
        (
            json!({"snat": "no"}),
            6,
            "network configuration: snat: expected true or false",
        ),
    ] {
        network.keys = keys.clone();
        let (found, text) = network.add(&pod, &json!([])).error();
        assert_eq!(found, code, "{keys}: {text}");
        assert!(text.starts_with(message), "{keys}: {text}");
    }
}

#[test]
fn invalid_mappings_are_refused_with_their_key_and_nothing_is_left() {
    let lab = Lab::new();
    let (node, _) = nodes(&lab);
    let mut network = Network::ours(&lab);
    network.subnets = json!([[{"subnet": "10.10.1.0/24"}]]);
    let pod = node.pod("a");
    let mapping = |host_port: Value, container_port: Value, protocol: &str, ip: &str| {
        json!([tcp(1, 1), {"hostPort": host_port, "containerPort": container_port,
            "protocol": protocol, "hostIP": ip}])
    };
    let one = |key: &str| format!("runtimeConfig.portMappings[1].{key}: ");
    for (mappings, code, message) in [
        (
            mapping(json!(0), json!(80), "tcp", ""),
            7,
            one("hostPort") + "0",
        ),
        (
            mapping(json!(65536), json!(80), "tcp", ""),
            7,
            one("hostPort") + "65536",
        ),
        (
            mapping(json!(-1), json!(80), "tcp", ""),
            7,
            one("hostPort") + "-1",
        ),
        (
            mapping(json!(80), json!(0), "tcp", ""),
            7,
            one("containerPort") + "0",
        ),
        (
            mapping(json!(80), json!(70000), "tcp", ""),
            7,
            one("containerPort") + "70000",
        ),
        (
            mapping(json!(80), json!(80), "icmp", ""),
            7,
            one("protocol") + "\"icmp\"",
        ),
        (
            mapping(json!(80), json!(80), "", ""),
            7,
            one("protocol") + "\"\"",
        ),
        (
            mapping(json!(80), json!(80), "tcp", "node"),
            7,
            one("hostIP") + "\"node\"",
        ),
        (
            mapping(json!("80"), json!(80), "tcp", ""),
            6,
            "network configuration: runtimeConfig.portMappings[1].hostPort: expected".to_owned(),
        ),
        (
            mapping(json!(80), json!(80), "tcp", "fd00::1"),
            7,
            "runtimeConfig.portMappings".to_owned(),
        ),
        (
            mapping(json!(80), json!(80), "tcp", "::"),
            7,
            "runtimeConfig.portMappings".to_owned(),
        ),
        (
            mapping(json!(1), json!(2), "tcp", ""),
            7,
            "runtimeConfig.portMappings".to_owned(),
        ),
        (
            json!({}),
            6,
            "network configuration: runtimeConfig.portMappings: expected".to_owned(),
        ),
    ] {
        let (found, text) = network.add(&pod, &mappings).error();
        assert_eq!(found, code, "{mappings}: {text}");
        assert!(text.starts_with(&message), "{mappings}: {text}");
        assert!(node.ports().is_empty(), "{mappings}");
        assert_eq!(elements(&node), 0, "{mappings}");
    }
    // The same port twice, and a pair for both families, are no error.
    // containerd capitalizes the keys.
    let harmless = json!([tcp(80, 80), tcp(80, 80),
        {"HostPort": 82, "ContainerPort": 80, "Protocol": "SCTP", "HostIP": ""},
        {"hostPort": 81, "containerPort": 80, "protocol": "tcp", "hostIP": "0.0.0.0"},
        {"hostPort": 81, "containerPort": 80, "protocol": "tcp", "hostIP": "::"}]);
    network.add(&pod, &harmless).ok();
}

#[test]
fn a_port_of_a_live_pod_is_refused_and_one_of_a_gone_pod_is_taken_over() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    node.sh("ip address add 192.168.2.17/24 dev enp0s5").ok();
    let network = Network::ours(&lab);
    let (first, second) = (node.pod("first"), node.pod("second"));
    let on = |ip: &str, port: u16| json!({"hostPort": port, "containerPort": 80, "protocol": "tcp", "hostIP": ip});
    network
        .add(
            &first,
            &json!([
                tcp(8080, 80),
                on("192.168.2.17", 8081),
                on("192.168.2.16", 8081)
            ]),
        )
        .ok();
    for (taken, port) in [
        (tcp(8080, 80), "0.0.0.0:8080/tcp"),
        (on("192.168.2.16", 8080), "192.168.2.16:8080/tcp"),
        (
            on("fd00:192:168:2::16", 8080),
            "[fd00:192:168:2::16]:8080/tcp",
        ),
        (on("192.168.2.17", 8081), "192.168.2.17:8081/tcp"),
        (tcp(8081, 80), "0.0.0.0:8081/tcp"),
    ] {
        let before = node.sh("nft list table inet cni-hostgw").ok();
        let (code, text) = network.add(&second, &json!([tcp(9090, 80), taken])).error();
        assert_eq!(code, 7, "{text}");
        let named = format!("host port {port} is in use by pod default/first (container first, ");
        assert!(text.starts_with(&named), "{text}");
        assert_eq!(node.ports().len(), 1, "nothing is left of the second pod");
        assert_eq!(node.sh("nft list table inet cni-hostgw").ok(), before);
    }
    // Another protocol, and another address, are other ports.
    let others = json!([on("192.168.2.99", 8081),
        {"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]);
    network.add(&second, &others).ok();
    network.del(&second, &others);
    // The first pod disappears without DEL.
    node.sh("ip netns delete first").ok();
    wait_for("the veth to be gone", || node.ports().is_empty());
    let taken = json!([tcp(8080, 80), tcp(8081, 80)]);
    network.add(&second, &taken).ok();
    let _server = second.answer(80, "second");
    for port in [8080, 8081] {
        let answer = outside.ask(&format!("192.168.2.17:{port}")).expect("open");
        assert_eq!(answer, "second 192.168.2.99");
    }
    // The late DEL of the first pod does not close the second one's ports.
    network.del(&first, &json!([tcp(8080, 80)]));
    outside.ask("192.168.2.16:8080").expect("still open");
}

#[test]
fn a_port_requested_for_two_networks_of_one_container_leads_to_the_first() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let plugin = Plugin::ours(&lab);
    let pod = node.pod("both");
    let ports = json!([tcp(8080, 80)]);
    let first = network.add(&pod, &ports).ok();
    let second = |ports: &Value| {
        json!({
            "cniVersion": "1.0.0", "name": "second", "type": "cni-hostgw", "bridge": "cni1",
            "isGateway": true, "ipam": {"ranges": [[{"subnet": "10.20.1.0/24"}]]},
            "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": ports},
        })
    };
    let attachment = Attachment::of(&pod).interface("net1");
    let call = |verb: &str, conf: &Value| plugin.call(&node, verb, &attachment, conf);
    // One port is open already, the other one is new.
    for requested in [ports.clone(), json!([tcp(8080, 80), tcp(8081, 80)])] {
        let mut conf = second(&requested);
        conf["prevResult"] = call("ADD", &conf).ok();
        call("CHECK", &conf).ok();
        let _server = pod.answer(80, "both");
        outside
            .ask("192.168.2.16:8080")
            .expect("the first network has it");
        let has_second = requested.as_array().is_some_and(|all| all.len() == 2);
        assert_eq!(outside.ask("192.168.2.16:8081").is_ok(), has_second);
        call("DEL", &conf).ok();
        outside
            .ask("192.168.2.16:8080")
            .expect("the first network keeps it");
        assert!(outside.is_closed("192.168.2.16:8081"));
    }
    // Without the first network, CHECK of the second one fails.
    let mut conf = second(&ports);
    conf["prevResult"] = call("ADD", &conf).ok();
    network.del(&pod, &ports);
    let (_, text) = call("CHECK", &conf).error();
    assert!(text.contains("host ports is missing"), "{text}");
    call("DEL", &conf).ok();
    assert_eq!(elements(&node), 0);
    drop(first);
}

#[test]
fn a_pod_can_have_a_range_of_1000_ports() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let (many, other) = (node.pod("many"), node.pod("other"));
    let range = (10_000..11_000).map(|port| tcp(port, 80));
    let mappings = Value::Array(range.collect());
    network.add(&many, &mappings).ok();
    let _server = many.answer(80, "many");
    for port in [10_000, 10_500, 10_999] {
        outside.ask(&format!("192.168.2.16:{port}")).expect("open");
        outside
            .ask(&format!("[fd00:192:168:2::16]:{port}"))
            .expect("open");
    }
    let (_, text) = network.add(&other, &json!([tcp(10_700, 80)])).error();
    assert!(
        text.contains("0.0.0.0:10700/tcp is in use by pod default/many"),
        "{text}"
    );
    network.del(&many, &mappings);
    assert_eq!(elements(&node), 0);
    network.add(&other, &json!([tcp(10_700, 80)])).ok();
}

#[test]
fn udp_flows_of_before_are_forgotten_on_add_and_on_del() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    node.sh("ip address add 192.168.2.17/24 dev enp0s5").ok();
    let network = Network::ours(&lab);
    let (first, second) = (node.pod("first"), node.pod("second"));
    let mapping = json!([{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}]);
    let addresses = ["192.168.2.16:5353", "[fd00:192:168:2::16]:5353"];
    // Without any rule that needs it, the kernel tracks no connections.
    node.sh(
        "nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; \
             add rule inet t c ct state new accept'",
    )
    .ok();
    // A flow to the node itself, before there is a mapping, and one to another port.
    let clients = addresses.map(|_| outside.udp_client());
    let on_node = node.answer(5353, "node");
    for (client, address) in clients.iter().zip(addresses) {
        assert!(client.ask(address).expect("answered").starts_with("node "));
    }
    drop(on_node);
    let _other = node.answer(5454, "node");
    let unrelated = outside.udp_client();
    unrelated.ask("192.168.2.16:5454").expect("answered");
    let unrelated_flow = || {
        node.sh("grep -c 'dport=5454' /proc/net/nf_conntrack")
            .stdout
    };
    assert_eq!(unrelated_flow().trim(), "1");

    network.add(&first, &mapping).ok();
    let _first = first.answer(53, "first");
    for (client, address) in clients.iter().zip(addresses) {
        let answer = client.ask(address).expect("answered");
        assert!(
            answer.starts_with("first "),
            "ADD forgets the flow to the node: {answer}"
        );
    }
    network.del(&first, &mapping);
    let flows = node
        .sh("grep -c 'dport=5353' /proc/net/nf_conntrack")
        .stdout;
    assert_eq!(flows.trim(), "0", "DEL forgets the flows");
    assert_eq!(unrelated_flow().trim(), "1", "other flows are kept");
    network.add(&second, &mapping).ok();
    let _second = second.answer(53, "second");
    for (client, address) in clients.iter().zip(addresses) {
        let answer = client.ask(address).expect("answered");
        assert!(
            answer.starts_with("second "),
            "the same socket of the client: {answer}"
        );
    }
}

#[test]
fn a_port_never_leads_to_the_pod_that_gets_the_address_next() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let mapping = json!([tcp(8080, 80)]);
    // Each way in which a pod ends without its DEL, and its address is free again.
    let reset = "rm -rf /var/lib/cni/networks/cbr0";
    for (name, end) in [
        ("wiped-store", format!("ip netns delete {{}}; {reset}")),
        (
            "released-address",
            "ip netns delete {}; rm /var/lib/cni/networks/cbr0/10.10.1.*".to_owned(),
        ),
        ("wiped-live", reset.to_owned()),
    ] {
        let (old, new) = (node.pod(name), node.pod(&format!("{name}-next")));
        let result = network.add(&old, &mapping).ok();
        node.sh(&end.replace("{}", name)).ok();
        node.sh("rm -f /var/lib/cni/networks/cbr0/last_reserved_ip.*")
            .ok();
        if name == "wiped-live" {
            // The veth would still have the address.
            node.sh("ip link show type veth | grep -o 'veth[a-z0-9]*' | xargs -n1 ip link delete")
                .ok();
        }
        let next = network.add(&new, &json!([])).ok();
        assert_eq!(
            next["ips"][0]["address"], result["ips"][0]["address"],
            "{name}"
        );
        let _server = new.answer(80, "wrong");
        assert!(outside.is_closed("192.168.2.16:8080"), "{name}");
        assert_eq!(elements(&node), 0, "{name}");
        network.del(&old, &mapping);
        network.del(&new, &json!([]));
        node.sh(reset).ok();
    }
}

#[test]
fn a_mapping_goes_before_its_address_is_free() {
    let lab = Lab::new();
    let (node, _) = nodes(&lab);
    let network = Network::ours(&lab);
    let pod = node.pod("a");
    let mapping = json!([tcp(8080, 80)]);
    network.add(&pod, &mapping).ok();
    // The lock of the host ports is held: DEL must not release the address.
    let lock = "/run/cni-hostgw/host-ports/lock";
    let mut holder = node
        .command("flock")
        .args(["-F", lock, "sleep", "60"])
        .spawn()
        .expect("flock");
    wait_for("the lock to be held", || {
        !node.sh(&format!("flock -n {lock} true")).success
    });
    let attachment = Attachment::of(&pod);
    let entry = network.entry(&mapping);
    let (code, text) = network
        .plugin()
        .call(&node, "DEL", &attachment, &entry)
        .error();
    assert_eq!(code, 11, "{text}");
    assert!(text.contains("lock of the host ports"), "{text}");
    assert!(node.path("/var/lib/cni/networks/cbr0/10.10.1.2").exists());
    assert_eq!(node.ports().len(), 1);
    holder.kill().expect("the holder runs");
    holder.wait().expect("the holder ends");
    network.del(&pod, &mapping);
    assert!(!node.path("/var/lib/cni/networks/cbr0/10.10.1.2").exists());
    assert_eq!(elements(&node), 0);
}

#[test]
fn check_compares_and_status_and_gc_know_host_ports() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let (web, other) = (node.pod("web"), node.pod("other"));
    let mappings = json!([tcp(8080, 80), {"hostPort": 53, "containerPort": 53, "protocol": "udp"}]);
    let result = network.add(&web, &mappings).ok();
    let others = json!([tcp(9090, 80)]);
    let other_result = network.add(&other, &others).ok();
    let check = || network.call("CHECK", &web, &mappings, &result);
    check().ok();
    network.call("CHECK", &other, &others, &other_result).ok();
    let gc = |valid: &Value| {
        let mut conf = network.entry(&json!([]));
        conf["cniVersion"] = json!("1.1.0");
        conf["cni.dev/valid-attachments"] = valid.clone();
        network
            .plugin()
            .call(&node, "GC", &Attachment::of(&web), &conf)
            .ok();
    };
    let all = json!([{"containerID": "web", "ifname": "eth0"},
        {"containerID": "other", "ifname": "eth0"}]);
    for (damage, expected) in [
        (
            "nft delete element inet cni-hostgw ports-ipv4 '{ tcp . 8080 }'",
            "0.0.0.0:8080/tcp",
        ),
        (
            "nft delete element inet cni-hostgw ports-ipv6 '{ udp . 53 }'",
            "[::]:53/udp",
        ),
        ("nft flush map inet cni-hostgw masquerade-ipv4", "0.0.0.0:"),
        ("nft flush chain inet cni-hostgw prerouting", "was changed"),
        ("nft add rule inet cni-hostgw ports counter", "was changed"),
        (
            "nft delete table inet cni-hostgw",
            "table inet cni-hostgw is missing",
        ),
    ] {
        node.sh(damage).ok();
        let (code, text) = check().error();
        assert_eq!(code, 102, "{damage}: {text}");
        assert!(text.contains(expected), "{damage}: {text}");
        gc(&all);
        check().ok();
    }
    node.sh("sysctl -qw net.ipv4.conf.cni0.route_localnet=0")
        .ok();
    let (_, text) = check().error();
    assert!(text.contains("route_localnet is not 1"), "{text}");
    let mut status = network.entry(&json!([]));
    status["cniVersion"] = json!("1.1.0");
    network
        .plugin()
        .call(&node, "STATUS", &Attachment::of(&web), &status)
        .ok();
    gc(&json!([{"containerID": "other", "ifname": "eth0"}]));
    assert!(
        outside.is_closed("192.168.2.16:8080"),
        "GC closes ports that nobody holds"
    );
    let _server = other.answer(80, "other");
    outside
        .ask("192.168.2.16:9090")
        .expect("the valid attachment keeps its port");
    let pods = node
        .sh("ls /run/cni-hostgw/host-ports/pods /run/cni-hostgw/host-ports/addresses")
        .ok();
    assert_eq!(pods.matches("veth").count(), 1, "{pods}");
    assert_eq!(pods.matches("10.10.1.").count(), 1, "{pods}");
    // Somebody deletes the record.
    node.sh("rm /run/cni-hostgw/host-ports/pods/veth*").ok();
    let (_, text) = network
        .call("CHECK", &other, &others, &other_result)
        .error();
    assert!(
        text.contains("record of its host ports is missing"),
        "{text}"
    );
    gc(&json!([{"containerID": "other", "ifname": "eth0"}]));
    outside
        .ask("192.168.2.16:9090")
        .expect("the port of a live pod stays open");
    network.del(&other, &others);
    assert_eq!(elements(&node), 0);
}

#[test]
fn the_next_request_puts_back_a_table_that_was_flushed() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let (web, other, third) = (node.pod("web"), node.pod("other"), node.pod("third"));
    network.add(&web, &json!([tcp(8080, 80)])).ok();
    network.add(&other, &json!([tcp(8081, 80)])).ok();
    let _server = web.answer(80, "web");
    let before = node.sh("nft list table inet cni-hostgw").ok();
    node.sh("nft flush ruleset").ok();
    assert!(outside.is_closed("192.168.2.16:8080"), "flushed");
    network.add(&third, &json!([tcp(8082, 80)])).ok();
    outside
        .ask("192.168.2.16:8080")
        .expect("the table was written again");
    network.del(&third, &json!([tcp(8082, 80)]));
    assert_eq!(node.sh("nft list table inet cni-hostgw").ok(), before);
    node.sh("nft flush ruleset").ok();
    network.del(&other, &json!([tcp(8081, 80)]));
    let mut restored = false;
    for _ in 0..3 {
        // A DEL has nothing to add. The next ADD with a port has.
        network.add(&third, &json!([tcp(8082, 80)])).ok();
        restored = outside.ask("192.168.2.16:8080").is_ok();
        network.del(&third, &json!([tcp(8082, 80)]));
    }
    assert!(restored);
}

#[test]
fn pods_do_not_reach_the_nodes_loopback_services() {
    let lab = Lab::new();
    let (node, _) = nodes(&lab);
    let network = Network::ours(&lab);
    let (web, evil) = (node.pod("web"), node.pod("evil"));
    network.add(&web, &json!([tcp(8080, 80)])).ok();
    network.add(&evil, &json!([])).ok();
    assert_eq!(
        node.sh("sysctl -n net.ipv4.conf.cni0.route_localnet")
            .ok()
            .trim(),
        "1"
    );
    let _server = node.answer(10_250, "node");
    evil.sh("ip route add 127.0.0.2/32 via 10.10.1.1; sysctl -qw net.ipv4.conf.eth0.route_localnet=1 \
             net.ipv4.conf.all.route_localnet=1; ip rule add pref 5 lookup local; ip rule delete pref 0; \
             ip rule add pref 1 to 127.0.0.2 lookup main").ok();
    assert!(evil.is_closed("127.0.0.2:10250"), "CVE-2020-8558");
    // The test can tell: without the rule, the packet arrives.
    network.del(&web, &json!([tcp(8080, 80)]));
    assert!(evil.is_closed("127.0.0.2:10250"), "also without any port");
    node.sh("nft flush chain inet cni-hostgw loopback").ok();
    evil.ask("127.0.0.2:10250")
        .expect("reachable without the rule");
}

#[test]
fn portmaps_rules_of_the_same_attachment_go_with_del_and_gc() {
    for verb in ["DEL", "GC"] {
        let lab = Lab::new();
        let (node, outside) = nodes(&lab);
        let theirs = Network::new(Opener::Portmap, &lab);
        let pod = node.pod("a");
        let mapping = json!([tcp(8080, 80)]);
        theirs.add(&pod, &mapping).ok();
        let _server = pod.answer(80, "a");
        outside.ask("192.168.2.16:8080").expect("open");
        let ours = Network::ours(&lab);
        let mut conf = ours.entry(&mapping);
        if verb == "GC" {
            conf["cniVersion"] = json!("1.1.0");
            conf["cni.dev/valid-attachments"] = json!([]);
        }
        ours.plugin()
            .call(&node, verb, &Attachment::of(&pod), &conf)
            .ok();
        let rules = node.sh("iptables-save -t nat; ip6tables-save -t nat").ok();
        assert!(!rules.contains("CNI-DN-"), "{verb}: {rules}");
    }
}

#[test]
fn a_list_with_portmap_behind_our_capability_is_refused() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let pod = node.pod("a");
    let list = |ours: bool, name: &str| {
        json!({"cniVersion": "1.0.0", "name": name, "plugins": [
            {"type": "cni-hostgw", "capabilities": {"portMappings": ours}},
            {"type": "portmap", "capabilities": {"portMappings": true}}]})
        .to_string()
    };
    let path = "/etc/cni/net.d/10-list.conflist";
    node.make_etc_private();
    node.write(path, list(true, "cbr0"));
    let (code, text) = network.add(&pod, &json!([tcp(8080, 80)])).error();
    assert_eq!(code, 7, "{text}");
    assert!(
        text.starts_with(&format!("{path} has the capability portMappings twice")),
        "{text}"
    );
    assert!(node.ports().is_empty());
    // Another network's list, and one in which only portmap has the capability, do not matter.
    for text in [list(true, "other"), list(false, "cbr0"), "{".to_owned()] {
        node.write(path, text);
        network.add(&pod, &json!([tcp(8080, 80)])).ok();
        network.del(&pod, &json!([tcp(8080, 80)]));
    }
    // Without the capability, portmap does the work as before.
    let chained = Network::new(Opener::Portmap, &lab);
    let mut conf = network.entry(&json!([tcp(8080, 80)]));
    conf["capabilities"] = json!({});
    let result = network.plugin().add(&pod, &conf).ok();
    assert_eq!(elements(&node), 0);
    let portmap = chained.portmap(&json!([tcp(8080, 80)]), &result);
    Plugin::reference("portmap").add(&pod, &portmap).ok();
    let _server = pod.answer(80, "a");
    outside.ask("192.168.2.16:8080").expect("open");
}

#[test]
fn attachments_at_once_get_their_ports_and_one_of_two_gets_a_contested_one() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let pods: Vec<_> = (0..16).map(|i| node.pod(&format!("p{i}"))).collect();
    let mappings = |i: u16| json!([tcp(8000 + i, 80), tcp(7000 + i / 2, 80)]);
    let running: Vec<_> = pods
        .iter()
        .zip(0..)
        .map(|(pod, i)| {
            let conf = network.entry(&mappings(i));
            network
                .plugin()
                .start(&node, "ADD", &Attachment::of(pod), &conf)
        })
        .collect();
    let replies: Vec<_> = running
        .into_iter()
        .map(conformance::Running::wait)
        .collect();
    for pair in 0..8 {
        let of_pair: Vec<_> = replies[2 * pair..2 * pair + 2].iter().collect();
        let succeeded = of_pair.iter().filter(|reply| reply.success).count();
        assert_eq!(succeeded, 1, "pair {pair}");
    }
    assert_eq!(node.ports().len(), 8);
    for (i, pod) in pods.iter().enumerate().filter(|(i, _)| replies[*i].success) {
        let _server = pod.answer(80, "right");
        let port = 8000 + i;
        outside.ask(&format!("192.168.2.16:{port}")).expect("open");
    }
}

// Long: a table of damages.
#[test]
fn the_agent_writes_the_table_again_at_once() {
    let lab = Lab::new();
    let nodes = cluster_nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let agents = agents(&nodes, Agent::start);
    let (master, worker1) = (&nodes[0], &nodes[1]);
    let mut network = Network::ours(&lab);
    network.subnets = json!([[{"subnet": "10.10.1.0/24"}]]);
    let (web, other, gone) = (
        worker1.pod("web"),
        worker1.pod("other"),
        worker1.pod("gone"),
    );
    let mappings = json!([tcp(8080, 80), {"hostPort": 8081, "containerPort": 80,
        "protocol": "tcp", "hostIP": "192.168.2.16"}]);
    network.add(&web, &mappings).ok();
    network.add(&other, &json!([tcp(9090, 80)])).ok();
    network.add(&gone, &json!([tcp(9091, 80)])).ok();
    let _server = web.answer(80, "web");
    // Without the handles, which are new in a new table.
    let table = || worker1.sh("nft list table inet cni-hostgw").stdout;
    let sorted = || {
        let mut lines: Vec<_> = table()
            .split([',', '\n'])
            .map(|l| l.trim().to_owned())
            .collect();
        lines.sort();
        lines
    };
    let written = sorted();
    let mut times = Vec::new();
    for damage in [
        "nft flush ruleset",
        "nft delete table inet cni-hostgw",
        "nft flush chain inet cni-hostgw prerouting",
        "nft flush map inet cni-hostgw ports-ipv4",
        "nft delete element inet cni-hostgw address-ports-ipv4 '{ tcp . 192.168.2.16 . 8081 }'",
        "nft insert rule inet cni-hostgw ports drop",
        "nft add chain inet cni-hostgw prerouting '{ policy drop; }'",
        "nft add table inet cni-hostgw '{ flags dormant; }'",
    ] {
        worker1.sh(damage).ok();
        times.push(wait_for(damage, || sorted() == written));
        master.ask("192.168.2.16:8080").expect(damage);
        master.ask("192.168.2.16:8081").expect(damage);
    }
    let latest = times.iter().max().expect("there are some");
    assert!(*latest < Duration::from_secs(2), "{times:?}");
    // A pod that is gone without DEL, and a change of another table.
    worker1.sh("ip netns delete gone").ok();
    wait_for("the veth to be gone", || worker1.ports().len() == 2);
    worker1.sh("nft add table inet other").ok();
    wait_for("the port of the pod that is gone to be closed", || {
        !table().contains("9091")
    });
    master.ask("192.168.2.16:8080").expect("still open");
    let log = agents[1].log();
    assert!(log.contains("restored table inet cni-hostgw"), "{log}");
    // With ports of pods, cleanup leaves the table; without, it removes it.
    let cleanup = "/mnt/bin/hostgw-agent cleanup --dry-run";
    assert!(!worker1.sh(cleanup).stdout.contains("table inet cni-hostgw"));
    network.del(&web, &mappings);
    network.del(&other, &json!([tcp(9090, 80)]));
    let found = worker1.sh(cleanup).stdout;
    assert!(
        found.contains("would remove nf_tables table inet cni-hostgw"),
        "{found}"
    );
    // The bridge may still route loopback addresses: its guard comes back, too.
    worker1.sh("nft flush ruleset").ok();
    wait_for("the guard", || table().contains("\"cni0\""));
}

#[test]
fn sctp_is_mapped_and_its_flows_are_forgotten() {
    for opener in BOTH {
        let lab = Lab::new();
        let (node, outside) = nodes(&lab);
        let network = Network::new(opener, &lab);
        let (first, second) = (node.pod("first"), node.pod("second"));
        let mapping = json!([{"hostPort": 3868, "containerPort": 3869, "protocol": "SCTP"}]);
        let arrives = |pod: &Pod<'_>| sctp_arrives(&outside, "192.168.2.16:3868", pod);
        network.add(&first, &mapping).ok();
        assert_eq!(arrives(&first), Some(3869), "{opener:?}");
        network.del(&first, &mapping);
        if opener == Opener::Ours {
            let flows = node.sh("grep -c sctp /proc/net/nf_conntrack").stdout;
            assert_eq!(flows.trim(), "0");
            network.add(&second, &mapping).ok();
            assert_eq!(arrives(&second), Some(3869), "the same ports of the client");
        }
    }
}

/// The rules that Docker and firewalld make, and what they do with them.
#[test]
fn host_ports_work_beside_dockers_and_firewalls_rules() {
    let lab = Lab::new();
    let (node, outside) = nodes(&lab);
    let network = Network::ours(&lab);
    let (web, container) = (node.pod("web"), node.pod("container"));
    network.add(&web, &json!([tcp(8080, 80)])).ok();
    network.add(&container, &json!([])).ok();
    let _servers = [web.answer(80, "web"), container.answer(80, "container")];
    let docker = "iptables -t nat -N DOCKER
        iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
        iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
        iptables -t nat -A DOCKER -p tcp --dport 9000 -j DNAT --to-destination 10.10.1.3:80";
    node.sh(docker).ok();
    let firewalld = "table inet firewalld
        delete table inet firewalld
        table inet firewalld {
            chain nat_PREROUTING { type nat hook prerouting priority dstnat + 10; }
            chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; }
            chain filter_INPUT { type filter hook input priority filter + 10; policy accept; }
        }";
    node.write("/run/firewalld.nft", firewalld);
    for reload in [
        "true",
        "nft -f /run/firewalld.nft",
        "nft -f /run/firewalld.nft",
        "iptables -t nat -F DOCKER; iptables -t nat -A DOCKER -p tcp --dport 9000 -j DNAT \
         --to-destination 10.10.1.3:80",
    ] {
        node.sh(reload).ok();
        let ask = |port: u16| outside.ask(&format!("192.168.2.16:{port}")).expect(reload);
        assert_eq!(ask(8080), "web 192.168.2.99", "{reload}");
        assert_eq!(ask(9000), "container 192.168.2.99", "{reload}");
        node.ask("127.0.0.1:8080").expect(reload);
    }
}
