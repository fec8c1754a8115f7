//! GC: it removes whatever belongs to no valid attachment, and leaves everything else unchanged.

use conformance::{Attachment, Lab, Node, Plugin, wait_for};
use serde_json::{Value, json};

fn flannel_form() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "cni-hostgw",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
    })
}

fn with_valid(conf: &Value, key: &str, ids: &[&str]) -> Value {
    let valid = ids
        .iter()
        .map(|id| json!({"containerID": id, "ifname": "eth0"}));
    let mut conf = conf.clone();
    conf[key] = valid.collect();
    conf
}

/// Returns the names of reserved addresses, index entries, host veths, rules and scratch files.
fn resources(node: &Node<'_>) -> Vec<String> {
    let listed = node
        .sh(
            "cd /var/lib/cni; ls networks/cbr0 networks/cbr0/.attachments flannel | grep -v last; \
             ip -o link show type veth | grep -v enp0s5 | cut -d: -f2; nft list ruleset | grep masquerade-",
        )
        .stdout;
    listed.lines().map(|line| line.trim().to_owned()).collect()
}

/// Returns a node whose agent does not masquerade, with three pods of our plugin, and with a
/// reservation and a scratch file of the `flannel` plugin.
fn node_with_pods<'a>(lab: &'a Lab, plugin: &Plugin, conf: &Value) -> Node<'a> {
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(false);
    for name in ["a", "b", "c"] {
        plugin.add(&node.pod(name), conf).ok();
    }
    let scratch = |name: &str, network: &str| {
        let text = format!(r#"{{"name": "{network}", "type": "bridge"}}"#);
        node.write(&format!("/var/lib/cni/flannel/{name}"), text);
    };
    scratch("old", "cbr0");
    scratch("a", "cbr0");
    scratch("theirs", "another");
    node.write("/var/lib/cni/flannel/torn", "");
    let store = "/var/lib/cni/networks/cbr0";
    node.write(&format!("{store}/10.10.1.77"), "old\r\neth0");
    node.write(&format!("{store}/10.10.1.78"), "");
    node
}

#[test]
fn gc_removes_everything_that_belongs_to_no_valid_attachment() {
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let lab = Lab::new();
        let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
        let node = node_with_pods(&lab, &plugin, &conf);
        assert_eq!(node.ports().len(), 3);
        let request = with_valid(&conf, key, &["a"]);
        let reply = plugin.call(&node, "GC", &Attachment::named(""), &request);
        assert!(reply.stderr.is_empty());
        assert_eq!(reply.ok(), Value::Null, "no output on success");
        let left = resources(&node);
        assert_eq!(node.ports().len(), 1, "{left:?}");
        for gone in [
            "10.10.1.3",
            "10.10.1.4",
            "10.10.1.77",
            "10.10.1.78",
            "b:eth0",
            "c:eth0",
            "old",
            "torn",
        ] {
            assert!(!left.contains(&gone.to_owned()), "{gone}: {left:?}");
        }
        for there in ["10.10.1.2", "a:eth0", "a", "theirs"] {
            assert!(left.contains(&there.to_owned()), "{there}: {left:?}");
        }
        assert!(
            left.iter()
                .any(|line| line.contains("masquerade-10.10.1.0-24"))
        );
        let inside = node.sh("ip -n a -o addr show dev eth0").ok();
        assert!(
            inside.contains("10.10.1.2"),
            "the valid attachment still has its address"
        );
        // A second GC has nothing to do.
        plugin
            .call(&node, "GC", &Attachment::named(""), &request)
            .ok();
        assert_eq!(resources(&node), left);
    }
}

#[test]
fn null_valid_attachments_means_that_no_attachment_is_valid() {
    let lab = Lab::new();
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    let node = node_with_pods(&lab, &plugin, &conf);
    let is_ours = |line: &String| line.contains("10.10.1");
    assert!(resources(&node).iter().any(is_ours));
    let mut request = conf.clone();
    request["cni.dev/valid-attachments"] = Value::Null;
    plugin
        .call(&node, "GC", &Attachment::named(""), &request)
        .ok();
    let left = resources(&node);
    assert_eq!(
        left.iter().filter(|line| line.contains("10.10.1")).count(),
        0,
        "{left:?}"
    );
    assert!(node.ports().is_empty());
    assert_eq!(
        node.sh("nft list ruleset").ok(),
        "",
        "the rules are removed with the last pod"
    );
}

#[test]
fn without_valid_attachments_gc_removes_only_dead_attachments() {
    let lab = Lab::new();
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    let node = node_with_pods(&lab, &plugin, &conf);
    node.sh(
        "ip netns delete b; touch -d '-2 minutes' /var/lib/cni/networks/cbr0/.attachments/?:eth0",
    )
    .ok();
    wait_for(
        "the kernel deletes the veth together with the namespace",
        || node.ports().len() == 2,
    );
    plugin.call(&node, "GC", &Attachment::named(""), &conf).ok();
    let left = resources(&node);
    assert!(!left.contains(&"10.10.1.3".to_owned()), "{left:?}");
    for there in ["10.10.1.2", "10.10.1.4", "10.10.1.77"] {
        assert!(left.contains(&there.to_owned()), "{there}: {left:?}");
    }
}

#[test]
fn gc_leaves_other_networks_alone() {
    let lab = Lab::new();
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    let node = node_with_pods(&lab, &plugin, &conf);
    let other = json!({
        "cniVersion": "1.1.0", "name": "other", "type": "cni-hostgw", "isDefaultGateway": true, "ipMasq": true,
        "bridge": "cni1", "ipam": {"ranges": [[{"subnet": "10.20.1.0/24"}]]},
    });
    let pod = node.pod("d");
    plugin.add(&pod, &other).ok();
    let request = with_valid(&conf, "cni.dev/valid-attachments", &[]);
    plugin
        .call(&node, "GC", &Attachment::named(""), &request)
        .ok();
    assert!(pod.pings("10.20.1.1"));
    assert!(node.path("/var/lib/cni/networks/other/10.20.1.2").exists());
    let rules = node.sh("nft list ruleset").ok();
    assert!(
        rules.contains("cni-hostgw-other") && !rules.contains("cni-hostgw-cbr0"),
        "{rules}"
    );
}

#[test]
fn gc_continues_after_a_failure_and_reports_every_failure() {
    let lab = Lab::new();
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    let node = node_with_pods(&lab, &plugin, &conf);
    // Two reservations that cannot be removed, because they are directories.
    node.sh("cd /var/lib/cni/networks/cbr0; rm 10.10.1.77 10.10.1.78; mkdir 10.10.1.77 10.10.1.78")
        .ok();
    let request = with_valid(&conf, "cni.dev/valid-attachments", &["a"]);
    let (code, text) = plugin
        .call(&node, "GC", &Attachment::named(""), &request)
        .error();
    assert_eq!(code, 100, "{text}");
    assert!(
        text.starts_with("GC could not remove 2 resource(s)"),
        "{text}"
    );
    let message = "reservation in /var/lib/cni/networks/cbr0";
    assert_eq!(text.matches(message).count(), 2, "{text}");
    let left = resources(&node);
    assert!(
        !left.contains(&"10.10.1.3".to_owned()) && !left.contains(&"torn".to_owned()),
        "{left:?}"
    );
    assert_eq!(node.ports().len(), 1);
}

#[test]
fn one_gc_removes_a_hundred_orphans() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    for i in 0..100 {
        plugin.add(&node.pod(&format!("p{i}")), &conf).ok();
    }
    let request = with_valid(&conf, "cni.dev/valid-attachments", &["p7"]);
    plugin
        .call(&node, "GC", &Attachment::named(""), &request)
        .ok();
    assert_eq!(node.ports().len(), 1);
    let held = node.sh("ls /var/lib/cni/networks/cbr0 | grep 10.10.1").ok();
    assert_eq!(held, "10.10.1.9\n");
}

#[test]
fn masquerading_of_the_reference_plugin_is_removed_with_its_pod() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (reference, ours) = (Plugin::reference("bridge"), Plugin::ours(&lab));
    let conf = |kind: &str| {
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": kind, "isDefaultGateway": true, "ipMasq": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]]},
        })
    };
    for name in ["a", "b", "c"] {
        reference.add(&node.pod(name), &conf("bridge")).ok();
    }
    let jumps = || {
        node.sh("iptables-save -t nat | grep -c -- '-j CNI-'")
            .stdout
    };
    assert_eq!(jumps().trim(), "3");
    // One attachment is removed by DEL after its namespace was deleted, one by GC.
    node.sh("ip netns delete a").ok();
    ours.call(&node, "DEL", &Attachment::named("a"), &conf("cni-hostgw"))
        .ok();
    assert_eq!(jumps().trim(), "2");
    let mut request = with_valid(&conf("cni-hostgw"), "cni.dev/valid-attachments", &["c"]);
    request["cniVersion"] = json!("1.1.0");
    ours.call(&node, "GC", &Attachment::named(""), &request)
        .ok();
    assert_eq!(jumps().trim(), "1");
    let saved = node.sh("iptables-save -t nat").ok();
    assert_eq!(saved.matches(":CNI-").count(), 1, "{saved}");
}

#[test]
fn gc_deletes_no_unrelated_files_in_a_wrong_data_dir() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let mut conf = flannel_form();
    conf["dataDir"] = json!("/var/lib/cni/networks/cbr0");
    plugin.add(&node.pod("a"), &conf).ok();
    let files = ["notes.txt", "10.10.1.99", "folder/file", "other.json"];
    for file in files {
        node.write(&format!("/var/lib/cni/networks/cbr0/{file}"), "a\r\neth0");
    }
    let request = with_valid(&conf, "cni.dev/valid-attachments", &["a"]);
    plugin
        .call(&node, "GC", &Attachment::named(""), &request)
        .ok();
    let dir = node.path("/var/lib/cni/networks/cbr0");
    for file in files
        .iter()
        .chain(&["10.10.1.2", "lock", "last_reserved_ip.0"])
    {
        assert!(dir.join(file).exists(), "{file}");
    }
    conf["dataDir"] = json!("/run/flannel/subnet.env");
    plugin
        .call(&node, "DEL", &Attachment::named("a"), &conf)
        .ok();
}

#[test]
fn gc_removes_a_reference_plugins_link_together_with_its_reservation() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let (reference, ours) = (Plugin::reference("bridge"), Plugin::ours(&lab));
    let conf = |kind: &str, version: &str| {
        json!({
            "cniVersion": version, "name": "cbr0", "type": kind, "isDefaultGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}], [{"subnet": "fd00:10::/64"}]]},
        })
    };
    let (theirs, valid) = (node.pod("theirs"), node.pod("valid"));
    reference.add(&theirs, &conf("bridge", "1.0.0")).ok();
    reference.add(&valid, &conf("bridge", "1.0.0")).ok();
    let conf = conf("cni-hostgw", "1.1.0");
    let request = with_valid(&conf, "cni.dev/valid-attachments", &["valid"]);
    ours.call(&node, "GC", &Attachment::named(""), &request)
        .ok();
    // The reservation and the link are removed together, never only one of them.
    let held = node.path("/var/lib/cni/networks/cbr0/10.10.1.2").exists();
    let pod_has_address = theirs.sh("ip -o addr").ok().contains("10.10.1.2");
    assert_eq!(held, pod_has_address);
    assert!(!held, "the attachment is not valid for the runtime");
    assert!(valid.pings("10.10.1.1") && valid.pings("fd00:10::1"));
    let pod = node.pod("new");
    let request_address = Attachment::of(&pod).with_args("IgnoreUnknown=1;IP=10.10.1.2");
    ours.call(&node, "ADD", &request_address, &conf).ok();
    assert!(valid.pings("10.10.1.2"));
}

#[test]
fn gc_does_not_mistake_an_error_for_an_empty_store() {
    let lab = Lab::new();
    let (plugin, conf) = (Plugin::ours(&lab), flannel_form());
    let node = node_with_pods(&lab, &plugin, &conf);
    let request = with_valid(&conf, "cni.dev/valid-attachments", &["a", "b", "c"]);
    // Each access to the store fails once: each of these system calls returns a disk error.
    for call in ["statx", "openat", "getdents64", "flock", "read"] {
        let mut failures = 0;
        for nth in 1..40 {
            let inject = format!("inject={call}:error=EIO:when={nth}");
            let mut command = node.command("strace");
            command.args(["-qq", "-o", "/dev/null", "-e", &inject]);
            command.arg(&plugin.0);
            let request =
                plugin.start_with_command(&mut command, "GC", &Attachment::named(""), &request);
            failures += usize::from(request.wait().json["code"].is_u64());
        }
        assert!(failures > 0, "no {call} of GC failed");
    }
    let rules = node.sh("nft list ruleset").ok();
    assert!(rules.contains("masquerade-10.10.1.0-24"), "{rules}");
    for address in ["10.10.1.2", "10.10.1.3", "10.10.1.4"] {
        let path = format!("/var/lib/cni/networks/cbr0/{address}");
        assert!(node.path(&path).exists(), "{address}");
    }
    assert_eq!(node.ports().len(), 3);
}

#[test]
fn gc_removes_the_host_veth_of_a_killed_add() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    for (name, ipam) in [
        ("ranges", json!({"ranges": [[{"subnet": "10.10.1.0/24"}]]})),
        ("nobody", json!({})),
    ] {
        let conf = json!({
            "cniVersion": "1.1.0", "name": name, "type": "cni-hostgw", "bridge": name, "ipam": ipam,
        });
        let pod = node.pod(name);
        // ADD is killed at each of its requests to the kernel and at each answer, also between the
        // creation of the veth pair and the setting of its alias.
        let mut left = 0;
        for nth in 1..40 {
            let inject = format!("inject=sendto,recvfrom:signal=KILL:when={nth}");
            let mut command = node.command("strace");
            command.args(["-qq", "-o", "/dev/null", "-e", &inject]);
            command.arg(&plugin.0);
            let add = plugin.start_with_command(&mut command, "ADD", &Attachment::of(&pod), &conf);
            let is_killed = !add.wait().success;
            assert!(nth > 1 || is_killed, "the first request kills the ADD");
            left += usize::from(is_killed && !node.ports().is_empty());
            let request = with_valid(&conf, "cni.dev/valid-attachments", &[]);
            plugin
                .call(&node, "GC", &Attachment::named(""), &request)
                .ok();
            assert!(node.ports().is_empty(), "{name}, request {nth}");
        }
        assert!(left > 0, "{name}: no killed ADD left a veth");
    }
}
