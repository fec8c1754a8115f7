//! Code for programs that run inside a node, because entering the node's namespaces thousands of
//! times would be slow: requests to a plugin, and a view of everything that a request may leave
//! behind.

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

/// Search path of the plugins, for `CNI_PATH`.
pub const CNI_PATH: &str = "/mnt/bin:/usr/lib/cni";

/// Seconds after which a request counts as hanging and is killed.
const REQUEST_TIMEOUT: &str = "30";

/// A request for `eth0` of one container. The network namespace has the container's name.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `CNI_COMMAND`.
    pub verb: &'a str,
    /// The container.
    pub id: &'a str,
    /// The network configuration.
    pub conf: &'a Value,
}

/// Outcome of a request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit code; `None` if a signal ended the plugin.
    pub code: Option<i32>,
    /// Text from standard output.
    pub stdout: String,
    /// Text from standard error.
    pub stderr: String,
}

impl Request<'_> {
    /// Runs `program` with the request until it ends. The program is the plugin itself or a wrapper
    /// that starts it. A program that does not end in time is killed.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[must_use]
    pub fn run(&self, program: &[&str]) -> Outcome {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", REQUEST_TIMEOUT]).args(program);
        let output = self.prepare(&mut command).output();
        let output = output.unwrap_or_else(|error| panic!("start {program:?}: {error}"));
        Outcome {
            // `timeout` exits with 128 plus the signal number if a signal killed the program.
            code: output
                .status
                .code()
                .filter(|code| *code < 128 && output.status.signal().is_none()),
            stdout: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }
    }

    /// Sets the request's environment variables and standard input on a command.
    ///
    /// # Panics
    ///
    /// If no memory is available for the input.
    pub fn prepare<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let stdin = memfd_create("stdin", MemfdFlags::CLOEXEC).expect("memory is available");
        let mut stdin = File::from(stdin);
        let text = self.conf.to_string();
        stdin
            .write_all(text.as_bytes())
            .expect("a memfd accepts reads and writes");
        stdin.rewind().expect("a memfd accepts reads and writes");
        let needs_attachment = matches!(self.verb, "ADD" | "DEL" | "CHECK");
        let value = |text: String| {
            if needs_attachment {
                text
            } else {
                String::new()
            }
        };
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

impl Outcome {
    /// Returns true if the exit code is 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }

    /// Returns the standard output as JSON, if it is one JSON document.
    #[must_use]
    pub fn json(&self) -> Option<Value> {
        serde_json::from_str(&self.stdout).ok()
    }

    /// Returns the code of the error object on standard output, if there is one with a message.
    #[must_use]
    pub fn error_code(&self) -> Option<u64> {
        let json = self.json()?;
        let has_message = json["msg"].as_str().is_some_and(|msg| !msg.is_empty());
        has_message.then(|| json["code"].as_u64()).flatten()
    }
}

/// Runs a shell script that must succeed, and returns its standard output.
///
/// # Panics
///
/// If the script fails.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output();
    let output = output.expect("there is a shell");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the names of the links in this namespace.
#[must_use]
pub fn links() -> BTreeSet<String> {
    names_of_links("/proc/thread-self/net/dev")
}

/// Returns the addresses of the pod called `name`, and the names of its links.
///
/// # Panics
///
/// If the pod's network namespace cannot be entered.
#[must_use]
pub fn inside_pod(name: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let netns = File::open(format!("/run/netns/{name}")).expect("the pod has a namespace");
    let look = move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter");
        let links = names_of_links("/proc/thread-self/net/dev");
        (addresses(), links)
    };
    thread::spawn(look)
        .join()
        .expect("the thread does not panic")
}

fn names_of_links(path: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(path).expect("proc is mounted");
    let names = text.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// Returns the addresses in the thread's network namespace, without loopback and link-local
/// addresses.
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

/// Returns the paths of all files below a folder.
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
