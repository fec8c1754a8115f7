//! What runs in a node itself, where thousands of requests must not each be led into its
//! namespaces: requests to a plugin, and a look at everything that they could leave behind.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

/// Where the plugins are, for `CNI_PATH`.
pub const CNI_PATH: &str = "/mnt/bin:/usr/lib/cni";

/// Seconds after which a request hangs.
const PATIENCE: &str = "30";

/// A request for `eth0` of one container, whose namespace has its name.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `CNI_COMMAND`.
    pub verb: &'a str,
    /// The container.
    pub id: &'a str,
    /// The network configuration.
    pub conf: &'a Value,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The exit code; nothing where a signal ended the plugin.
    pub code: Option<i32>,
    /// What it printed on standard output.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

impl Request<'_> {
    /// Runs `program`, which may be the plugin itself or what starts it, to its end. One that does
    /// not come to an end is killed.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    #[must_use]
    pub fn run(&self, program: &[&str]) -> Ended {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", PATIENCE]).args(program);
        let output = self.prepare(&mut command).output();
        let output = output.unwrap_or_else(|error| panic!("start {program:?}: {error}"));
        Ended {
            // `timeout` says of a program that was killed by a signal: 128 and its number.
            code: output
                .status
                .code()
                .filter(|code| *code < 128 && output.status.signal().is_none()),
            stdout: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }
    }

    /// Gives a command the request.
    ///
    /// # Panics
    ///
    /// When there is no memory for it.
    pub fn prepare<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let stdin = memfd_create("stdin", MemfdFlags::CLOEXEC).expect("memory can be had");
        let mut stdin = File::from(stdin);
        let text = self.conf.to_string();
        stdin.write_all(text.as_bytes()).expect("it is memory");
        stdin.rewind().expect("it is memory");
        let is_of_one = matches!(self.verb, "ADD" | "DEL" | "CHECK");
        let value = |text: String| if is_of_one { text } else { String::new() };
        command
            .env("CNI_COMMAND", self.verb)
            .env("CNI_CONTAINERID", value(self.id.to_owned()))
            .env("CNI_NETNS", value(format!("/run/netns/{}", self.id)))
            .env("CNI_IFNAME", value("eth0".to_owned()))
            .env("CNI_PATH", CNI_PATH)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
    }
}

impl Ended {
    /// Whether it ended with 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// The one JSON document that it printed.
    #[must_use]
    pub fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.stdout).ok()
    }

    /// The code of the error object that it printed.
    #[must_use]
    pub fn error_code(&self) -> Option<u64> {
        let json = self.json()?;
        let has_message = json["msg"].as_str().is_some_and(|msg| !msg.is_empty());
        has_message.then(|| json["code"].as_u64()).flatten()
    }
}

/// Runs a shell script that must succeed, and gives what it printed.
///
/// # Panics
///
/// When it fails.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output();
    let output = output.expect("there is a shell");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The names of the links in this namespace.
#[must_use]
pub fn links() -> BTreeSet<String> {
    names_of_links("/proc/thread-self/net/dev")
}

/// The addresses of the pod called `name`, and the names of its links.
///
/// # Panics
///
/// When it cannot be entered.
#[must_use]
pub fn inside_pod(name: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let netns = File::open(format!("/run/netns/{name}")).expect("the pod has a namespace");
    let look = move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter");
        let links = names_of_links("/proc/thread-self/net/dev");
        (addresses(), links)
    };
    thread::spawn(look).join().expect("it does not panic")
}

fn names_of_links(path: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(path).expect("proc is mounted");
    let names = text.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// The addresses of the thread's namespace, but for those of `lo` and those of the link.
fn addresses() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let trie = fs::read_to_string("/proc/thread-self/net/fib_trie").unwrap_or_default();
    let mut last = "";
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address;
        } else if line.starts_with("/32 host LOCAL") && !last.starts_with("127.") {
            found.insert(last.to_owned());
        }
    }
    let ipv6 = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    for line in ipv6.lines() {
        let digits = line.split(' ').next().unwrap_or_default();
        if let Ok(number) = u128::from_str_radix(digits, 16) {
            let address = std::net::Ipv6Addr::from(number);
            if !address.is_loopback() && !address.is_unicast_link_local() {
                found.insert(address.to_string());
            }
        }
    }
    found
}

/// The files under a folder, by their paths.
#[must_use]
pub fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&path));
        } else {
            found.insert(path.display().to_string());
        }
    }
    found
}
