//! Debian's containerd without Kubernetes: `ctr run --cni`.

use conformance::{Containerd, Lab, Release, repository};
use serde_json::{Value, json};

#[test]
fn ctr_runs_a_container_with_an_address_and_leaves_nothing() {
    let example = std::fs::read_to_string(repository().join("examples/10-cni-hostgw.conflist"));
    let ours: Value = serde_json::from_str(&example.expect("the file exists")).expect("is JSON");
    let theirs = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "plugins": [{
            "type": "bridge", "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]]},
        }],
    });
    for (kind, list) in [("theirs", &theirs), ("ours", &ours)] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        node.write_subnet_env(true);
        let containerd = Containerd::start(&node, Release::Debian, list);
        let name = format!("{kind}-{}", node.pid());
        let script = "ip -4 -o addr show dev eth0 && ip route && ping -c 1 -W 2 10.10.1.1";
        let run = format!("run --rm --cni --rootfs /run/rootfs {name} /bin/sh -c '{script}'");
        let output = containerd.ctr(&run).ok();
        assert!(output.contains("10.10.1.2/24"), "{kind}: {output}");
        assert!(output.contains("default via 10.10.1.1"), "{kind}: {output}");
        assert!(node.ports().is_empty(), "{kind}");
        let left = node
            .sh("ls -A /var/lib/cni/networks/cbr0 /var/lib/cni/networks/cbr0/.attachments /var/lib/cni/results")
            .stdout;
        assert!(
            !left.contains("10.10.1.2") && !left.contains(&name),
            "{kind}: {left}"
        );
    }
}
