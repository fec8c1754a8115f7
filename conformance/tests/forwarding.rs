//! Forwarding has several switches: one for each interface, and one that new interfaces inherit.

use std::process::Command;

use conformance::reference_picture::{Family, cluster, nodes};
use conformance::{Agent, Lab, Node, Plugin, wait_for};
use serde_json::{Value, json};

fn setting(node: &Node<'_>, name: &str) -> String {
    node.sh(&format!("cat /proc/sys/{name}"))
        .ok()
        .trim()
        .to_owned()
}

fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json");
    serde_json::from_str(&text.stdout).unwrap_or_default()
}

const SETTINGS: [&str; 8] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/default/forwarding",
    "net/ipv4/conf/enp0s5/forwarding",
    "net/ipv4/conf/cni0/forwarding",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "net/ipv6/conf/enp0s5/forwarding",
    "net/ipv6/conf/cni0/forwarding",
];

#[test]
fn forwarding_that_was_turned_off_is_restored_logged_and_counted() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    let worker1 = &nodes[1];
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    let agent = Agent::start(
        worker1,
        &["--cluster=/mnt/cluster.json", "--healthz-port=8080"],
    );
    agent.wait_for_log("ready: ");
    let plugin = Plugin::ours(&lab);
    let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw"});
    plugin.add(&worker1.pod("a"), &conf).ok();
    wait_for("all settings are 1", || {
        SETTINGS.iter().all(|name| setting(worker1, name) == "1")
    });
    let mended = |node: &Node<'_>| {
        status(node)["forwarding"]["mended"]
            .as_u64()
            .unwrap_or_default()
    };
    for name in SETTINGS {
        let before = mended(worker1);
        worker1.sh(&format!("echo 0 >/proc/sys/{name}")).ok();
        wait_for(&format!("{name} is on again: {}", agent.log()), || {
            setting(worker1, name) == "1"
        });
        wait_for("the correction is counted", || mended(worker1) > before);
        wait_for("all settings are 1 again", || {
            SETTINGS.iter().all(|name| setting(worker1, name) == "1")
        });
    }
    let dotted = "net.ipv4.conf.enp0s5.forwarding was 0; set it to 1";
    assert!(agent.log().contains(dotted), "{}", agent.log());
    let metrics = worker1
        .sh("busybox wget -q -O - http://127.0.0.1:8080/metrics")
        .ok();
    let name = "hostgw_forwarding_mended_total ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(name));
    let count = count.and_then(|count| count.parse::<usize>().ok());
    assert!(count >= Some(SETTINGS.len()), "{metrics}");
}

#[test]
fn a_bridge_created_later_forwards_too() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let worker1 = &nodes[1];
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    worker1
        .sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/conf/default/forwarding")
        .ok();
    let agent = Agent::start(worker1, &["--cluster=/mnt/cluster.json"]);
    agent.wait_for_log("ready: ");
    assert_eq!(setting(worker1, "net/ipv4/conf/default/forwarding"), "1");
    let conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw"});
    Plugin::ours(&lab).add(&worker1.pod("a"), &conf).ok();
    assert_eq!(setting(worker1, "net/ipv4/conf/cni0/forwarding"), "1");
}

/// Makes the node's `/proc/sys` read-only, as in a container.
fn make_read_only(node: &Node<'_>) {
    node.sh("mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys")
        .ok();
}

/// Writes a sysctl from outside the node's mount namespace, where `/proc/sys` is writable.
fn write(node: &Node<'_>, name: &str, value: &str) {
    let written = Command::new("nsenter")
        .args([
            format!("--net=/proc/{}/ns/net", node.pid()),
            "sh".to_owned(),
            "-c".to_owned(),
        ])
        .arg(format!("echo {value} >/proc/sys/{name}"))
        .status();
    assert!(written.is_ok_and(|status| status.success()), "{name}");
}

#[test]
fn settings_that_a_container_cannot_write_are_reported_with_the_command() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    let worker1 = &nodes[1];
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        write(worker1, name, "1");
    }
    make_read_only(worker1);
    assert!(!worker1.sh("echo 1 >/proc/sys/net/ipv4/ip_forward").success);
    let agent = Agent::start(worker1, &["--cluster=/mnt/cluster.json"]);
    agent.wait_for_log("ready: ");
    for (name, dotted) in [
        (
            "net/ipv4/conf/enp0s5/forwarding",
            "net.ipv4.conf.enp0s5.forwarding",
        ),
        (
            "net/ipv4/conf/default/forwarding",
            "net.ipv4.conf.default.forwarding",
        ),
        (
            "net/ipv6/conf/all/forwarding",
            "net.ipv6.conf.all.forwarding",
        ),
    ] {
        write(worker1, name, "0");
        let reason = || status(worker1)["reasons"].to_string();
        wait_for(&format!("{name}: {}", reason()), || {
            status(worker1)["ready"] == false
                && reason().contains(&format!("`sysctl -w {dotted}=1`"))
        });
        write(worker1, name, "1");
        wait_for("readiness", || status(worker1)["ready"] == true);
    }
}
