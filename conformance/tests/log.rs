//! The log: one line for each request if a log is configured, and nothing otherwise.

use conformance::{Attachment, Lab, Plugin};
use serde_json::json;

#[test]
fn each_request_writes_one_line_with_its_parameters_and_outcome() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(false);
    let plugin = Plugin::ours(&lab);
    let conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {"isDefaultGateway": true},
    });
    let pod = node.pod("a");
    let attachment =
        Attachment::of(&pod).with_args("IgnoreUnknown=1;K8S_POD_NAME=web-1;K8S_POD_NAMESPACE=shop");
    let with_env = |verb: &str, log: &str| {
        let mut command = node.command(&plugin.0);
        command.env("CNI_HOSTGW_LOG", log);
        plugin
            .start_with_command(&mut command, verb, &attachment, &conf)
            .wait()
    };
    let add = with_env("ADD", "/run/log");
    assert!(add.success && add.stderr.is_empty(), "{}", add.stderr);
    assert!(!with_env("ADD", "/run/log").success);
    assert!(with_env("DEL", "/run/log").success);
    assert!(with_env("STATUS", "/run/log").success);
    let log = std::fs::read_to_string(node.path("/run/log")).expect("the file has been written");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 4, "{log}");
    let of = "network=cbr0 container=a ifname=eth0 pod=shop/web-1";
    for (line, expected) in [
        (lines[0], format!("verb=ADD {of} outcome=ok us=")),
        (
            lines[1],
            format!(
                r#"verb=ADD {of} outcome=failed code=4 msg="CNI_IFNAME: \"eth0\" already exists"#
            ),
        ),
        (lines[2], format!("verb=DEL {of} outcome=ok us=")),
        (
            lines[3],
            "verb=STATUS network=cbr0 outcome=ok us=".to_owned(),
        ),
    ] {
        assert!(
            line.starts_with("time=20") && line.contains(&expected),
            "{expected}: {line}"
        );
    }
    check_times(lines[0]);
    let mode = node.sh("stat -c %a /run/log").ok();
    assert_eq!(
        mode.trim(),
        "640",
        "other users must not read container ids"
    );
}

/// Checks that the sum of the steps' times does not exceed the time of the whole request.
fn check_times(line: &str) {
    let number = |key: &str| -> u64 {
        let value = line.split(&format!(" {key}=")).nth(1);
        let value = value.and_then(|rest| rest.split(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("{key} in {line}"))
    };
    let steps = [
        "read",
        "config",
        "netns",
        "ipam",
        "bridge",
        "masquerade",
        "veth",
        "interface",
    ];
    let sum: u64 = steps.iter().map(|step| number(step)).sum();
    assert!(number("veth") > 0 && sum <= number("us"), "{}", line);
}

#[test]
fn a_request_that_is_rejected_before_its_configuration_was_parsed_is_logged() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let plugin = Plugin::ours(&lab);
    let conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "cni-hostgw"});
    let mut bad = Attachment::named("b");
    bad.ifname = "a/b".to_owned();
    let mut command = node.command(&plugin.0);
    command.env("CNI_HOSTGW_LOG", "/run/refused");
    let refused = plugin
        .start_with_command(&mut command, "ADD", &bad, &conf)
        .wait();
    assert!(!refused.success);
    let line =
        std::fs::read_to_string(node.path("/run/refused")).expect("the file has been written");
    assert!(
        line.contains("verb=ADD container=b ifname=a/b outcome=failed code=4"),
        "{line}"
    );
}

#[test]
fn the_log_file_can_be_configured_and_a_log_that_cannot_be_written_does_not_fail_a_request() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(true);
    let plugin = Plugin::ours(&lab);
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "delegate": {}, "logFile": "/run/by-conf",
    });
    let reply = plugin.add(&node.pod("a"), &conf);
    assert!(reply.success && reply.stderr.is_empty());
    let log =
        std::fs::read_to_string(node.path("/run/by-conf")).expect("the file has been written");
    assert!(log.contains("verb=ADD"), "{log}");
    conf["logFile"] = json!("/run/none/log");
    let reply = plugin.add(&node.pod("b"), &conf);
    assert!(reply.success);
    assert!(
        reply
            .stderr
            .contains("write the log /run/none/log: No such file"),
        "{}",
        reply.stderr
    );
}
