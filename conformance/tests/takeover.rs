//! Our plugin replaces the reference plugins on a node with running pods.

use conformance::{Attachment, Lab, Plugin};
use serde_json::{Value, json};

fn conf(kind: &str) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "cbr0",
        "type": kind,
        "bridge": "cni0",
        "isDefaultGateway": true,
        "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]]},
    })
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn our_plugin_takes_over_and_deletes_pods_of_the_reference_plugins() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (reference, ours) = (Plugin::reference("bridge"), Plugin::ours(&lab));
    let old = [node.pod("old1"), node.pod("old2"), node.pod("old3")];
    for (pod, expected) in old.iter().zip(["10.10.1.2", "10.10.1.3", "10.10.1.4"]) {
        assert_eq!(reference.add(pod, &conf("bridge")).addresses(), [expected]);
    }
    let new = node.pod("new");
    let reply = ours.add(&new, &conf("cni-hostgw"));
    assert_eq!(
        reply.addresses(),
        ["10.10.1.5"],
        "the round robin continues from the reference's last address"
    );
    assert!(old[0].pings("10.10.1.3") && old[0].pings("10.10.1.5") && new.pings("10.10.1.2"));
    assert!(old[1].pings("192.168.2.16"));

    let is_reserved = |address: &str| {
        node.path("/var/lib/cni/networks/cbr0")
            .join(address)
            .exists()
    };
    ours.del(&old[0], &conf("cni-hostgw")).ok();
    assert!(!is_reserved("10.10.1.2") && is_reserved("10.10.1.3"));
    assert!(
        !old[0].sh("ip link show eth0").success,
        "the pod's interface is deleted"
    );
    // The address is released even if the network namespace is gone.
    node.sh("ip netns delete old2").ok();
    ours.call(
        &node,
        "DEL",
        &Attachment::named("old2"),
        &conf("cni-hostgw"),
    )
    .ok();
    assert!(!is_reserved("10.10.1.3"));
    assert!(old[2].pings("10.10.1.5"));

    // And back again: the reference deletes pods that our plugin added, and respects our
    // reservations.
    let another = node.pod("another");
    assert_eq!(
        ours.add(&another, &conf("cni-hostgw")).addresses(),
        ["10.10.1.6"]
    );
    reference.del(&new, &conf("bridge")).ok();
    assert!(!is_reserved("10.10.1.5") && is_reserved("10.10.1.6"));
    let last = node.pod("last");
    assert_eq!(
        reference.add(&last, &conf("bridge")).addresses(),
        ["10.10.1.7"]
    );
    assert!(last.pings("10.10.1.6"));
    // After DEL by our plugin, the index no longer contains what the reference has released.
    ours.del(&new, &conf("cni-hostgw")).ok();
    assert!(
        !node
            .path("/var/lib/cni/networks/cbr0/.attachments/new:eth0")
            .exists()
    );
}

#[test]
fn check_accepts_an_attachment_of_the_reference_plugin() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (reference, ours) = (Plugin::reference("bridge"), Plugin::ours(&lab));
    let pod = node.pod("a");
    let mut conf = conf("bridge");
    conf["prevResult"] = reference.add(&pod, &conf).ok();
    ours.call(&node, "CHECK", &Attachment::of(&pod), &conf).ok();
}
