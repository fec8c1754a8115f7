//! Installation on a node: what is installed, how the agent maintains it, and how it is
//! uninstalled.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use conformance::reference_picture::CNI_CONF;
use conformance::{Agent, Attachment, Chain, Lab, Node, Output, dist, wait_for};
use serde_json::Value;

const DIRECTORY_FLAGS: &str = "--cni-conf-dir=/run/net.d --cni-bin-dir=/run/opt";

/// Returns a node with the executables of the agent and the plugin in one directory.
fn node(lab: &Lab) -> Node<'_> {
    for name in ["hostgw-agent", "cni-hostgw"] {
        lab.install(&dist().join(name), &format!("bin/{name}"));
    }
    let cluster = r#"{"network": {"Network": "10.10.0.0/16"}, "nodes": [
        {"name": "worker1", "publicIP": "192.168.2.16", "subnet": "10.10.1.0/24"}]}"#;
    lab.write("cluster.json", cluster);
    lab.node("worker1", &["192.168.2.16/24"])
}

fn agent(node: &Node<'_>, more: &[&str]) -> Agent {
    let mut args = vec!["--cluster=/mnt/cluster.json"];
    args.extend(DIRECTORY_FLAGS.split(' ').chain(more.iter().copied()));
    Agent::start(node, &args)
}

fn run(node: &Node<'_>, args: &str) -> Output {
    node.sh(&format!("/mnt/bin/hostgw-agent {args}"))
}

fn read(node: &Node<'_>, path: &str) -> String {
    fs::read_to_string(node.path(path)).unwrap_or_default()
}

fn list(node: &Node<'_>, path: &str) -> Value {
    serde_json::from_str(&read(node, path)).unwrap_or_default()
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn uninstall_restores_the_previous_state() {
    let lab = Lab::new();
    let node = node(&lab);
    // An older plugin is in use, and a foreign list sorts before ours.
    node.write(
        "/run/opt/cni-hostgw",
        "#!/bin/sh\necho old; sleep 1; echo still",
    );
    node.sh("chmod 755 /run/opt/cni-hostgw").ok();
    node.write("/run/net.d/05-other.conf", "{}");
    let mut command = node.command("/run/opt/cni-hostgw");
    let mut old = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("it is a script");
    let stdout = old.stdout.take().expect("the stream is piped");
    let mut lines = BufReader::new(stdout).lines();
    let mut line = || lines.next().expect("a line").expect("text");
    assert_eq!(line(), "old", "the plugin is running now");

    // A shell reads a short script at once, so that only an open file shows how it is replaced.
    let mut opened = fs::File::open(node.path("/run/opt/cni-hostgw")).expect("it is there");

    let before = run(&node, &format!("install {DIRECTORY_FLAGS} --wait=300ms"));
    assert!(!before.success);
    assert!(
        before.stderr.contains("/run/flannel/subnet.env"),
        "{}",
        before.stderr
    );
    assert!(
        before.stderr.contains("is the agent running?"),
        "{}",
        before.stderr
    );
    assert!(!node.path("/run/net.d/10-cni-hostgw.conflist").exists());
    let plugin = node.path("/run/opt/cni-hostgw");
    let installed = fs::metadata(&plugin).expect("it is there");
    assert_eq!(
        installed.len(),
        fs::metadata(dist().join("cni-hostgw"))
            .expect("built")
            .len()
    );
    assert_eq!(installed.permissions().mode() & 0o777, 0o755);
    let mut text = String::new();
    opened.read_to_string(&mut text).expect("it is open");
    assert_eq!(text, "#!/bin/sh\necho old; sleep 1; echo still");
    assert_eq!(line(), "still");
    assert!(old.wait().expect("it ends").success());

    let running_agent = agent(&node, &[]);
    let done = run(&node, &format!("install {DIRECTORY_FLAGS}"));
    assert!(
        done.stderr
            .contains("/run/net.d/05-other.conf sorts before our CNI configuration"),
        "{}",
        done.stderr
    );
    assert_eq!(done.ok(), "installed /run/net.d/10-cni-hostgw.conflist\n");
    // Files that are already right are not touched.
    let inode = fs::metadata(&plugin).expect("it is there").ino();
    assert_eq!(run(&node, &format!("install {DIRECTORY_FLAGS}")).ok(), "");
    assert_eq!(fs::metadata(&plugin).expect("it is there").ino(), inode);
    // The installed plugin works.
    let chain = Chain::new(&lab, &read(&node, "/run/net.d/10-cni-hostgw.conflist"));
    let pod = node.pod("a");
    chain.add(&pod, &Attachment::of(&pod)).ok();
    assert!(pod.pings("192.168.2.16"));
    chain.del(&pod, &Attachment::of(&pod), None).ok();

    let refused = run(&node, "uninstall");
    assert!(
        !refused.success && refused.stderr.contains("stop it first"),
        "{}",
        refused.stderr
    );
    assert!(running_agent.stop());
    let message = run(&node, "uninstall").ok();
    assert_eq!(
        message,
        "removed /run/net.d/10-cni-hostgw.conflist\nrestored /run/opt/cni-hostgw\n"
    );
    assert!(read(&node, "/run/opt/cni-hostgw").starts_with("#!/bin/sh\necho old"));
    assert_eq!(node.sh("ls /run/net.d").ok(), "05-other.conf\n");
    assert_eq!(node.sh("ls /var/lib/hostgw").ok(), "state.json\n");
    assert_eq!(
        run(&node, "uninstall").ok(),
        "",
        "nothing is left to uninstall"
    );
}

#[test]
fn flannels_list_is_replaced_atomically_and_restored() {
    let lab = Lab::new();
    let node = node(&lab);
    let flannels = CNI_CONF.replace(
        "\"hairpinMode\": true",
        "\"hairpinMode\": true, \"mtu\": 1400",
    );
    assert_ne!(flannels, CNI_CONF);
    node.write("/run/net.d/10-flannel.conflist", &flannels);
    node.sh("chmod 600 /run/net.d/10-flannel.conflist").ok();
    // A list with another network name would not find the existing pods' reservations.
    lab.write("other.conflist", CNI_CONF.replace("cbr0", "pods"));
    let running_agent = agent(
        &node,
        &["--take-over-flannel", "--cni-conf=/mnt/other.conflist"],
    );
    running_agent.wait_for_log("name is \"pods\"");
    running_agent.wait_for_log("\"cbr0\" of /run/net.d/10-flannel.conflist");
    assert_eq!(read(&node, "/run/net.d/10-flannel.conflist"), flannels);
    let status: Value = run(&node, "status --json").json();
    assert_eq!(
        status["ready"], false,
        "pods would be attached by another plugin"
    );
    assert!(running_agent.stop());

    // Without `--take-over-flannel`, our list is installed in addition to flannel's.
    lab.write("ours.conflist", CNI_CONF);
    let running_agent = agent(&node, &["--cni-conf=/mnt/ours.conflist"]);
    let names = || node.sh("ls /run/net.d").ok();
    wait_for("our list", || {
        names() == "10-cni-hostgw.conflist\n10-flannel.conflist\n"
    });
    assert!(running_agent.stop());

    // With `--take-over-flannel`, flannel's list gets our plugin and retains its other settings,
    // and there is no second list.
    let running_agent = agent(&node, &["--take-over-flannel"]);
    let ours = || list(&node, "/run/net.d/10-flannel.conflist");
    wait_for("flannel's list is ours", || {
        ours()["plugins"][0]["type"] == "cni-hostgw"
    });
    assert_eq!(ours()["plugins"][0]["delegate"]["mtu"], 1400);
    assert_eq!(ours()["name"], "cbr0");
    wait_for("one list", || names() == "10-flannel.conflist\n");
    assert!(running_agent.stop());
    run(&node, "uninstall").ok();
    assert_eq!(read(&node, "/run/net.d/10-flannel.conflist"), flannels);
    let mode = node.sh("stat -c %a /run/net.d/10-flannel.conflist").ok();
    assert_eq!(mode, "600\n");
    assert!(!node.path("/run/opt/cni-hostgw").exists());
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn an_agent_reinstalls_removed_files_and_follows_changes_of_its_list() {
    let lab = Lab::new();
    let node = node(&lab);
    lab.write(
        "cni-conf.json",
        CNI_CONF.replace("\"flannel\"", "\"cni-hostgw\""),
    );
    lab.write(
        "cluster.json",
        r#"{"network": {"Network": "10.10.0.0/16"}, "nodes": []}"#,
    );
    let running_agent = agent(&node, &["--cni-conf=/mnt/cni-conf.json"]);
    let path = "/run/net.d/10-cni-hostgw.conflist";
    wait_for("the plugin is installed", || {
        node.path("/run/opt/cni-hostgw").exists()
    });
    // The node has no subnet yet, so the list is not installed.
    running_agent.wait_for_log("no node has one of this node's addresses");
    assert!(!node.path(path).exists());
    let cluster = r#"{"network": {"Network": "10.10.0.0/16"}, "nodes": [
        {"name": "worker1", "publicIP": "192.168.2.16", "subnet": "10.10.1.0/24"}]}"#;
    lab.write("cluster.json", cluster);
    wait_for("the list is installed", || node.path(path).exists());
    assert!(node.path("/run/flannel/subnet.env").exists());
    // A package upgrade has removed the plugin and the list, and the list is edited: the agent
    // reinstalls both.
    node.sh(&format!("rm /run/opt/cni-hostgw {path}")).ok();
    let later = CNI_CONF.replace("\"flannel\"", "\"cni-hostgw\", \"mtu\": 1400");
    lab.write("cni-conf.json", later);
    for _ in 0..120 {
        if node.path("/run/opt/cni-hostgw").exists() && node.path(path).exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(
        node.path("/run/opt/cni-hostgw").exists(),
        "{}",
        running_agent.log()
    );
    assert_eq!(list(&node, path)["plugins"][0]["mtu"], 1400);
    // An invalid list is not installed.
    lab.write("cni-conf.json", "{\"name\": \"cbr0\"}");
    running_agent.wait_for_log("/mnt/cni-conf.json (--cni-conf): cniVersion is missing");
    assert_eq!(list(&node, path)["plugins"][0]["mtu"], 1400);
    assert!(running_agent.stop());
    // A file that someone changed after the installation is left alone.
    node.sh(&format!("echo >>{path}")).ok();
    let message = run(&node, "uninstall").ok();
    assert!(
        message.contains(&format!("left {path}: someone changed it since")),
        "{message}"
    );
    // The changed list still needs the plugin, so the plugin stays, too. Once the list is removed,
    // `uninstall` removes the plugin.
    assert!(node.path(path).exists() && node.path("/run/opt/cni-hostgw").exists());
    node.sh(&format!("rm {path}")).ok();
    run(&node, "uninstall").ok();
    assert!(!node.path("/run/opt/cni-hostgw").exists());
    assert!(!node.path("/var/lib/hostgw/installed.json").exists());
}
