//! Random configurations and sequences of requests, sent to our plugin and to the reference `bridge`
//! with `host-local`. Both must succeed and fail alike, and leave the same behind.
//!
//! `SEQUENCES=1000 SEED=7 cargo test -p conformance --test differential` tries others.

use std::env;

use conformance::chance::Rng;
use conformance::{Attachment, Lab, Node, Plugin};
use serde_json::{Value, json};

const PODS: [&str; 4] = ["a", "b", "c", "d"];

/// Returns a random configuration. Its ranges are small, so that they are exhausted now and then.
fn conf(chance: &mut Rng, name: &str) -> Value {
    let range = |subnet: &str, prefix: &str| json!([{"subnet": subnet, "rangeStart": format!("{prefix}5"), "rangeEnd": format!("{prefix}7")}]);
    let ranges = [
        json!([range("10.10.1.0/24", "10.10.1.")]),
        json!([range("fd00:10:10:1::/64", "fd00:10:10:1::")]),
        json!([
            range("10.10.1.0/24", "10.10.1."),
            range("fd00:10:10:1::/64", "fd00:10:10:1::")
        ]),
        json!([[{"subnet": "10.10.1.0/29"}]]),
        json!([[{"subnet": "10.10.1.0/24", "gateway": "10.10.1.9", "rangeEnd": "10.10.1.3"}]]),
        json!([[
            {"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.20", "rangeEnd": "10.10.1.21"},
            {"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.30", "rangeEnd": "10.10.1.31"},
        ]]),
    ];
    let kind = usize::try_from(chance.below(6)).expect("few");
    let mut conf = json!({
        "cniVersion": chance.one_of(&["0.3.0", "0.3.1", "0.4.0", "1.0.0"]),
        "name": name, "type": "bridge", "bridge": "cni0",
        "ipam": {"type": "host-local", "ranges": ranges[kind]},
    });
    for key in [
        "isGateway",
        "isDefaultGateway",
        "hairpinMode",
        "promiscMode",
        "forceAddress",
    ] {
        if chance.once_in(3) {
            conf[key] = json!(true);
        }
    }
    if chance.once_in(3) {
        conf["mtu"] = json!(1400);
    }
    if chance.once_in(2) && kind != 1 {
        conf["ipam"]["routes"] = chance
            .one_of(&[
                r#"[{"dst": "10.20.0.0/16"}]"#,
                r#"[{"dst": "10.20.0.0/16"}, {"dst": "10.30.0.0/16", "gw": "10.10.1.200"}]"#,
                // The reference fails if `isDefaultGateway` adds the same route.
                if conf["isDefaultGateway"] == true {
                    "[]"
                } else {
                    r#"[{"dst": "0.0.0.0/0"}]"#
                },
            ])
            .parse()
            .expect("JSON");
    }
    conf
}

/// Returns everything of a node and these pods that both plugins must leave alike.
fn state(node: &Node<'_>, name: &str, pods: &[&str]) -> String {
    let script = format!(
        "ls /var/lib/cni/networks/{name} 2>/dev/null | grep -E '^[0-9a-f]+[.:]'; \
         for pod in {pods}; do echo $pod; ip -n $pod -o address show dev eth0 2>/dev/null | grep -v fe80 | sed 's/^[0-9]*: //; s/[\\]//; s/ nodad//; s/  */ /g'; \
         ip -n $pod route show; ip -n $pod -6 route show | grep -vE 'fe80|ff00'; ip -n $pod -o link show dev eth0 2>/dev/null | grep -o 'mtu [0-9]*'; done; \
         test \"$(ip -o link show type bridge_slave)\" || exit 0; \
         ip -o address show dev cni0 2>/dev/null | grep -v fe80 | sed 's/^[0-9]*: //; s/[\\]//; s/ nodad//; s/  */ /g'; \
         ip -d -o link show dev cni0 2>/dev/null | grep -oE 'mtu [0-9]*|promiscuity [0-9]*'; \
         ip -d -o link show type bridge_slave | grep -oE 'hairpin o[nf]+' | sort",
        pods = pods.join(" "),
    );
    node.sh(&script).stdout
}

/// Number from an environment variable.
fn variable(name: &str, default: u64) -> u64 {
    let value = env::var(name).ok().and_then(|value| value.parse().ok());
    value.unwrap_or(default)
}

#[test]
fn random_sequences_end_as_with_the_reference() {
    let lab = Lab::new();
    let nodes = ["ours", "reference"].map(|name| lab.node(name, &["192.168.2.16/24"]));
    let plugins = [Plugin::ours(&lab), Plugin::reference("bridge")];
    let mut chance = Rng::new(variable("SEED", 1));
    // Duplicate address detection takes seconds.
    let prepare = "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad";
    for node in &nodes {
        node.sh(prepare).ok();
    }
    for sequence in 0..variable("SEQUENCES", 100) {
        let name = format!("net{sequence}");
        let conf = conf(&mut chance, &name);
        let mut done = vec![conf.to_string()];
        let mut results = [0, 1].map(|_| PODS.map(|_| Value::Null));
        let create = format!(
            "for pod in {}; do ip netns add $pod; ip netns exec $pod sh -c '{prepare}; ip link set lo up'; done",
            PODS.join(" ")
        );
        for node in &nodes {
            node.sh(&create).ok();
        }
        for _ in 0..3 + chance.below(6) {
            let verb = chance.one_of(&["ADD", "ADD", "ADD", "DEL", "DEL", "CHECK"]);
            let pod = usize::try_from(chance.below(4)).expect("few");
            let attachment = Attachment::named(PODS[pod]);
            let args = chance.one_of(&[
                "",
                "",
                "",
                "IgnoreUnknown=1;IP=10.10.1.6",
                "IgnoreUnknown=1;IP=10.10.1.200",
            ]);
            let attachment = attachment.with_args(args);
            done.push(format!("{verb} {} {args}", PODS[pod]));
            let succeeded = [0, 1].map(|side| {
                let mut conf = conf.clone();
                if verb != "ADD" && !results[side][pod].is_null() {
                    conf["prevResult"] = results[side][pod].clone();
                }
                let send = |verb| plugins[side].call(&nodes[side], verb, &attachment, &conf);
                let reply = send(verb);
                done.push(format!(
                    "{}: {} {}",
                    nodes[side].name, reply.success, reply.json
                ));
                match (verb, reply.success) {
                    ("ADD", true) => results[side][pod] = reply.json,
                    // The reference leaves what it has made. The runtime sends DEL, but the bridge
                    // stays, and may be unusable. It also goes on with the next address.
                    ("ADD", false) => {
                        results[side][pod] = Value::Null;
                        send("DEL").ok();
                        let unused =
                            "test \"$(ip -o link show type bridge_slave)\" || ip link delete cni0; \\
                             rm -f /var/lib/cni/networks/*/last_reserved_ip.*";
                        let _ = nodes[side].sh(unused);
                    }
                    ("DEL", true) => results[side][pod] = Value::Null,
                    _ => {}
                }
                reply.success
            });
            let what = || format!("sequence {sequence}:\n{}", done.join("\n"));
            // The hardware address of the reference's bridge changes with its ports.
            let has_new_mac = verb == "CHECK"
                && succeeded == [true, false]
                && done
                    .last()
                    .is_some_and(|reply| reply.contains("Mac doesn't match"));
            assert!(succeeded[0] == succeeded[1] || has_new_mac, "{}", what());
            let [ours, theirs] = [0, 1].map(|side| state(&nodes[side], &name, &[PODS[pod]]));
            assert_eq!(ours, theirs, "{}", what());
        }
        let [ours, theirs] = [0, 1].map(|side| state(&nodes[side], &name, &PODS));
        assert_eq!(ours, theirs, "sequence {sequence}:\n{}", done.join("\n"));
        let remove = format!(
            "for pod in {}; do ip netns delete $pod; done; ip link delete cni0 2>/dev/null; rm -rf /var/lib/cni/networks/*",
            PODS.join(" ")
        );
        for node in &nodes {
            node.sh(&remove).ok();
        }
    }
}
