//! Reuse of an address by another pod immediately after its release.

use conformance::reference_picture::{Family, agents, cluster, nodes};
use conformance::{Agent, Attachment, Lab, Node, Plugin};
use serde_json::{Value, json};

fn conf(subnet: &str, v6: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "cbr0",
        "type": "bridge",
        "isDefaultGateway": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}], [{"subnet": v6}]]},
    })
}

/// Returns true if a single ping is answered within a second.
fn answers(run: impl Fn(&str) -> conformance::Output, address: &str) -> bool {
    run(&format!("busybox ping -c 1 -W 1 {address}")).success
}

#[test]
fn a_reused_address_is_reachable_at_once_from_its_node_from_pods_and_from_other_nodes() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    let _agents = agents(&nodes, Agent::start);
    let (one, two): (&Node<'_>, &Node<'_>) = (&nodes[1], &nodes[2]);
    let plugin = Plugin::ours(&lab);
    let conf_one = conf("10.10.1.0/24", "fd00:10:10:1::/64");
    let conf_two = conf("10.10.2.0/24", "fd00:10:10:2::/64");
    let neighbour = one.pod("neighbour");
    plugin.add(&neighbour, &conf_one).ok();
    let far = two.pod("far");
    plugin.add(&far, &conf_two).ok();
    let addresses = ["10.10.1.9", "fd00:10:10:1::9"];
    let add = |name: &str, mac: &str| {
        let pod = one.pod(name);
        let mac = if mac.is_empty() {
            String::new()
        } else {
            format!(";MAC={mac}")
        };
        let mut conf = conf_one.clone();
        conf["runtimeConfig"] = json!({"ips": addresses});
        let attachment = Attachment::of(&pod).with_args(&format!("IgnoreUnknown=1{mac}"));
        plugin.call(one, "ADD", &attachment, &conf).ok();
        (pod, attachment)
    };
    // First with given hardware addresses, as pods of other plugins have them, then with the
    // computed one.
    for (name, mac) in [
        ("first", "02:00:00:00:00:01"),
        ("second", "02:00:00:00:00:02"),
        ("third", ""),
        ("fourth", ""),
    ] {
        let (pod, attachment) = add(name, mac);
        for address in addresses {
            assert!(
                answers(|script| one.sh(script), address),
                "{name}: {address} from the node"
            );
            assert!(
                answers(|script| neighbour.sh(script), address),
                "{name}: {address} from a pod"
            );
            assert!(
                answers(|script| far.sh(script), address),
                "{name}: {address} from another node"
            );
            assert!(
                answers(|script| two.sh(script), address),
                "{name}: {address} from a node"
            );
        }
        plugin.call(one, "DEL", &attachment, &conf_one).ok();
        pod.delete();
    }
}

#[test]
fn an_address_that_moves_to_another_node_of_a_layer_2_network_is_reachable_at_once() {
    let lab = Lab::new();
    let plugin = Plugin::ours(&lab);
    let no_ipv6 = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6";
    let client = lab.node("client", &[]);
    client
        .sh(&format!("{no_ipv6}; ip addr add 10.40.1.1/24 dev enp0s5"))
        .ok();
    let nodes = ["one", "two"].map(|name| lab.node(name, &[]));
    for node in &nodes {
        node.sh(&format!(
            "{no_ipv6}; ip link add l2 type bridge && ip link set enp0s5 master l2 && ip link set l2 up"
        ))
        .ok();
    }
    let fixed = json!({"type": "static", "addresses": [{"address": "10.40.1.9/24"}]});
    let ranged = json!({"type": "host-local", "ranges": [[{
        "subnet": "10.40.1.0/24", "rangeStart": "10.40.1.9", "rangeEnd": "10.40.1.9",
    }]]});
    for ipam in [ranged, fixed] {
        let conf = json!({
            "cniVersion": "1.0.0", "name": "l2", "type": "cni-hostgw", "bridge": "l2", "ipam": ipam,
        });
        for round in 0..6 {
            let node = &nodes[round % 2];
            let pod = node.pod("a");
            pod.sh(no_ipv6).ok();
            plugin.add(&pod, &conf).ok();
            assert!(
                answers(|script| client.sh(script), "10.40.1.9"),
                "round {round} of {conf}: the switch has learned the new port"
            );
            plugin.del(&pod, &conf).ok();
            pod.delete();
        }
    }
}

#[test]
fn an_add_deletes_neighbour_entries_of_its_addresses() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24", "fd00:192:168:2::16/64"]);
    let plugin = Plugin::ours(&lab);
    let mut conf = conf("10.10.1.0/24", "fd00:10:10:1::/64");
    plugin.add(&node.pod("first"), &conf).ok();
    // The kernel never replaces a permanent entry by itself.
    let entry = "dev cni0 lladdr 02:00:00:00:00:99 nud permanent";
    let addresses = ["10.10.1.9", "fd00:10:10:1::9"];
    for address in addresses {
        node.sh(&format!("ip neigh replace {address} {entry}")).ok();
    }
    conf["capabilities"] = json!({"ips": true});
    conf["runtimeConfig"] = json!({"ips": addresses});
    plugin.add(&node.pod("second"), &conf).ok();
    for address in addresses {
        assert!(answers(|script| node.sh(script), address), "{address}");
    }
}
