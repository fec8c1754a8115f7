//! The demo: it shows the reference cluster, reports errors, and leaves nothing behind.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use conformance::wait_for;
use rustix::process::{Pid, Signal, kill_process};

fn demo(keep: &str) -> Child {
    demo_on(keep, "")
}

fn demo_on(keep: &str, store: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_demo"))
        .env("KEEP", keep)
        .env("STORE", store)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cargo has built the program")
}

/// Reads the demo's output up to the line about worker1's agent. Returns the rest of the output and
/// the agent's process id.
fn up_to_worker1(child: &mut Child) -> (BufReader<std::process::ChildStdout>, u32) {
    let mut lines = BufReader::new(child.stdout.take().expect("the stream is piped"));
    loop {
        let mut line = String::new();
        assert!(
            lines.read_line(&mut line).expect("text") > 0,
            "the demo ended early"
        );
        if let Some(rest) = line.strip_prefix("worker1 (agent is process ") {
            return (
                lines,
                rest.trim_end_matches(")\n").parse().expect("a number"),
            );
        }
    }
}

fn is_gone(pid: u32) -> bool {
    // A zombie process has no network namespace any more.
    !Path::new(&format!("/proc/{pid}/ns/net")).exists()
        || std::fs::read_link(format!("/proc/{pid}/ns/net")).is_err()
}

#[test]
fn the_demo_succeeds_with_a_cluster_file_and_with_etcd() {
    for store in ["", "etcd"] {
        demo_succeeds(store);
    }
}

fn demo_succeeds(store: &str) {
    let output = demo_on("", store)
        .wait_with_output()
        .expect("the process ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for line in [
        "10.10.1.0/24 dev eth0 scope link  src 10.10.1.6",
        "10.10.2.0/24 via 192.168.2.15 dev enp0s5 proto 104",
        " 0% packet loss",
        "== Everything is as it should be",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn the_demo_reports_a_fault_and_cleans_up() {
    let mut child = demo("");
    let (mut lines, agent) = up_to_worker1(&mut child);
    let blackhole = [
        "-t",
        &agent.to_string(),
        "-n",
        "ip",
        "route",
        "add",
        "blackhole",
        "10.10.2.4",
    ];
    assert!(
        Command::new("nsenter")
            .args(blackhole)
            .status()
            .expect("nsenter is installed")
            .success()
    );
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("text");
    assert!(!child.wait().expect("the process ends").success());
    assert!(
        rest.contains("NOT as it should be") && rest.contains("the pings' loss"),
        "{rest}"
    );
    wait_for("the agent is gone", || is_gone(agent));
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let mut child = demo("");
    let (_lines, agent) = up_to_worker1(&mut child);
    let holders = || {
        let namespace =
            std::fs::read_link(format!("/proc/{agent}/ns/net")).expect("the process is running");
        let all = std::fs::read_dir("/proc").expect("readable").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let inside = |pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|n| n == namespace)
        };
        pids.filter(inside).collect::<Vec<_>>()
    };
    let before = holders();
    assert!(
        before.len() >= 2,
        "the agent and the node's holder: {before:?}"
    );
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .expect("a child process has an id");
    kill_process(pid, Signal::INT).expect("the process is running");
    assert!(!child.wait().expect("the process ends").success());
    wait_for("no process is left in worker1", || {
        before.iter().all(|pid| is_gone(*pid))
    });
}

#[test]
fn with_keep_the_lab_stays_until_it_is_taken_down() {
    let output = demo("1").wait_with_output().expect("the process ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let after = |what: &str| {
        let mut lines = text.lines().skip_while(|line| *line != what).skip(1);
        lines
            .next()
            .unwrap_or_else(|| panic!("{what} is not in {text}"))
            .trim()
            .to_owned()
    };
    let sh = |script: &str| {
        Command::new("sh")
            .args(["-c", script])
            .output()
            .expect("sh is installed")
    };
    let enter = after("enter worker1-pod6:");
    let ping = sh(&format!("{enter} busybox ping -c 1 -W 2 10.10.2.4"));
    let node = sh(&format!(
        "{} ip route show 10.10.2.0/24",
        after("enter worker1:")
    ));
    let down = after("take all of it down:");
    assert!(sh(&down).status.success());
    assert!(ping.status.success(), "{ping:?}");
    assert!(
        String::from_utf8_lossy(&node.stdout).contains("via 192.168.2.15"),
        "{node:?}"
    );
    let pids = down
        .trim_start_matches("kill ")
        .split(' ')
        .map(|pid| pid.parse().expect("a number"));
    let pids: Vec<u32> = pids.collect();
    wait_for("everything is down", || {
        pids.iter().all(|pid| is_gone(*pid))
    });
}
