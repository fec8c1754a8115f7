//! Real clients, built by `make tools`.

use conformance::clients::tool;
use conformance::{Lab, Plugin, repository};

/// cnitool, which is libcni with a command line: add, check, del, by our own conflists,
/// chained with the reference `portmap`.
#[test]
fn cnitool_adds_checks_and_deletes() {
    for list in [
        "10-cni-hostgw.conflist",
        "20-bridge.conflist",
        "kube-flannel/cni-conf.json",
    ] {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24"]);
        for name in ["cni-hostgw", "flannel"] {
            let _ = Plugin::ours_as(&lab, name);
        }
        lab.install(&tool("cnitool"), "bin/cnitool");
        lab.install(&conformance::dist().join("subnet-env"), "bin/subnet-env");
        node.sh("/mnt/bin/subnet-env write --network 10.10.0.0/16 --subnet 10.10.1.0/24")
            .ok();
        let text =
            std::fs::read_to_string(repository().join("examples").join(list)).expect("is there");
        let network = if list.starts_with("20") {
            "pods"
        } else {
            "cbr0"
        };
        lab.write("net.d/10.conflist", &text);
        let (a, _b) = (node.pod("a"), node.pod("b"));
        let cnitool = |verb: &str, pod: &str| {
            node.sh(&format!(
                "NETCONFPATH=/mnt/net.d CNI_PATH=/mnt/bin:/usr/lib/cni /mnt/bin/cnitool {verb} {network} /run/netns/{pod}"
            ))
        };
        cnitool("add", "a").ok();
        let result = cnitool("add", "b").json();
        let address = result["ips"][0]["address"].as_str().expect("has one");
        let address = address.split('/').next().expect("has a first part");
        assert!(a.pings(address), "{list}: {address}");
        if network == "pods" || list.starts_with("10") {
            cnitool("check", "b").ok();
            node.sh("ip -n b route delete default").ok();
            let refused = cnitool("check", "b");
            assert!(
                !refused.success && refused.stderr.contains("route 0.0.0.0/0"),
                "{}",
                refused.stderr
            );
        }
        for pod in ["a", "b", "b"] {
            cnitool("del", pod).ok();
        }
        let left = node.sh(&format!("ls -A /var/lib/cni/networks/{network} /var/lib/cni/networks/{network}/.attachments /var/lib/cni/results")).ok();
        assert!(
            !left.contains(address) && !left.contains(":eth0") && !left.contains("cnitool"),
            "{left}"
        );
        assert_eq!(node.sh("ip -o link show type bridge_slave").ok(), "");
    }
}
