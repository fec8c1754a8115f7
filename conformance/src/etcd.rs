//! A real etcd with one or more members, each on a node.

use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use serde_json::{Value, json};

use crate::process::{Lifetime, Process, log_file};
use crate::{Node, Output, wait_for};

/// Default prefix of flannel's keys.
pub const PREFIX: &str = "/coreos.com/network";

/// A running etcd member. It ends when this value is dropped, or when the program that started it
/// ends.
pub struct Etcd<'a> {
    node: &'a Node<'a>,
    address: String,
    arguments: Vec<String>,
    process: Process,
}

impl<'a> Etcd<'a> {
    /// Starts a cluster with one member on `node`, which has this address.
    #[must_use]
    pub fn start(node: &'a Node<'a>, address: &str) -> Self {
        let mut members = Self::cluster(&[(node, address)]);
        members.pop().expect("one member")
    }

    /// Starts a member that outlives this program once [`Self::detach`] is called.
    #[must_use]
    pub fn start_detached(node: &'a Node<'a>, address: &str) -> Self {
        let url = format!("http://{address}:2379");
        let arguments = vec![
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
        ];
        let process = Self::process(node, Lifetime::Detached, &arguments);
        let etcd = Self {
            node,
            address: address.to_owned(),
            arguments,
            process,
        };
        etcd.wait();
        etcd
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Lets etcd run on after this program ends.
    pub fn detach(self) {
        self.process.detach();
    }

    /// Starts a member with more arguments, such as those for TLS. Its client URL begins with
    /// `scheme`.
    #[must_use]
    pub fn start_with(node: &'a Node<'a>, address: &str, scheme: &str, more: &[&str]) -> Self {
        let url = format!("{scheme}://{address}:2379");
        let mut arguments = vec![
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
        ];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        Self::spawn(node, address, arguments)
    }

    /// Starts a cluster with one member on each of these nodes.
    ///
    /// # Panics
    ///
    /// If the members do not form a cluster in time.
    #[must_use]
    pub fn cluster(nodes: &[(&'a Node<'a>, &str)]) -> Vec<Self> {
        let peer = |address: &str| format!("http://{address}:2380");
        let all = nodes
            .iter()
            .map(|(node, address)| format!("{}={}", node.name, peer(address)));
        let all = all.collect::<Vec<_>>().join(",");
        let member = |(node, address): &(&'a Node<'a>, &str)| {
            let client = format!("http://{address}:2379");
            let arguments = vec![
                format!("--name={}", node.name),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={}", peer(address)),
                format!("--initial-advertise-peer-urls={}", peer(address)),
                format!("--initial-cluster={all}"),
            ];
            Self::spawn(node, address, arguments)
        };
        let members: Vec<_> = nodes.iter().map(member).collect();
        for member in &members {
            member.wait();
        }
        members
    }

    fn spawn(node: &'a Node<'a>, address: &str, arguments: Vec<String>) -> Self {
        let process = Self::process(node, Lifetime::Killed, &arguments);
        Self {
            node,
            address: address.to_owned(),
            arguments,
            process,
        }
    }

    fn process(node: &Node<'_>, lifetime: Lifetime, arguments: &[String]) -> Process {
        let mut command = node.command("etcd");
        command
            .arg("--data-dir=/var/lib/etcd")
            // Without fsync and with short intervals: these tests are not about a slow disk.
            .args([
                "--unsafe-no-fsync",
                "--heartbeat-interval=50",
                "--election-timeout=500",
            ])
            .args(arguments);
        let log = log_file(&node.path("/run/etcd.log"));
        Process::start(&command, lifetime, log)
    }

    /// Waits until the member is healthy.
    pub fn wait(&self) {
        wait_for(&format!("etcd on {} answers", self.node.name), || {
            self.ctl("endpoint health").success
        });
    }

    /// Returns the URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}:2379", self.address)
    }

    /// Runs `etcdctl` with these arguments.
    #[must_use]
    pub fn ctl(&self, args: &str) -> Output {
        let url = self.url();
        let script = format!(
            "ETCDCTL_API=3 timeout 5 etcdctl --endpoints={url} --command-timeout=2s {args}"
        );
        self.node.sh(&script)
    }

    /// Writes a value.
    pub fn put(&self, key: &str, value: &Value) {
        self.ctl(&format!("put {PREFIX}/{key} '{value}'")).ok();
    }

    /// Writes many values over one connection, each in its own request.
    pub fn put_each(&self, pairs: impl IntoIterator<Item = (String, String)>) {
        let put = |(key, value): (String, String)| ("/v3/kv/put", put(&key, &value));
        self.post(pairs.into_iter().map(put));
    }

    /// Writes many values, fifty in each transaction.
    pub fn put_all(&self, pairs: impl IntoIterator<Item = (String, String)>) {
        let puts: Vec<_> = pairs
            .into_iter()
            .map(|(key, value)| json!({"requestPut": put(&key, &value)}))
            .collect();
        let txn = |puts: &[Value]| ("/v3/kv/txn", json!({"success": puts}));
        self.post(puts.chunks(50).map(txn));
    }

    /// Sends requests one after the other over etcd's HTTP and JSON gateway.
    ///
    /// # Panics
    ///
    /// If any request fails.
    fn post(&self, requests: impl IntoIterator<Item = (&'static str, Value)>) {
        let mut text = String::new();
        let mut count = 0;
        for (path, body) in requests {
            let body = body.to_string();
            let length = body.len();
            let head = format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {length}");
            text.extend([&head, "\r\n\r\n", &body]);
            count += 1;
        }
        text += "GET /health HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n";
        let mut command = self.node.command("busybox");
        let mut client = command
            .args(["nc", &self.address, "2379"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("busybox is installed");
        let mut stdin = client.stdin.take().expect("the stream is piped");
        let writer = thread::spawn(move || stdin.write_all(text.as_bytes()).map(|()| stdin));
        let mut answers = client.stdout.take().expect("the stream is piped");
        let mut responses = String::new();
        answers
            .read_to_string(&mut responses)
            .expect("etcd answers in text");
        drop(writer.join());
        drop(client.wait());
        let good = responses.matches("HTTP/1.1 200 OK").count();
        assert_eq!(good, count + 1, "every request succeeds: {responses:.2000}");
    }

    /// Writes flannel's network configuration, with these keys in addition to the usual ones.
    pub fn configure(&self, more: &Value) {
        let mut network = json!({"Network": "10.10.0.0/16", "Backend": {"Type": "host-gw"}});
        for (key, value) in more.as_object().into_iter().flatten() {
            network[key] = value.clone();
        }
        self.put("config", &network);
    }

    /// Returns a value verbatim; empty if the key does not exist.
    #[must_use]
    pub fn get(&self, key: &str) -> String {
        let output = self.ctl(&format!("get --print-value-only '{PREFIX}/{key}'"));
        output.ok().trim().to_owned()
    }

    /// Returns the leases: each key without `subnets/`, and its value.
    #[must_use]
    pub fn leases(&self) -> Vec<(String, String)> {
        let text = self.ctl(&format!("get --prefix {PREFIX}/subnets/")).ok();
        let lines: Vec<_> = text.lines().collect();
        let pair = |pair: &[&str]| {
            let key = pair[0].rsplit('/').next().unwrap_or_default();
            (key.to_owned(), pair[1].to_owned())
        };
        lines.chunks_exact(2).map(pair).collect()
    }

    /// Returns etcd's full entry of a key as JSON, with its revisions and lease id.
    #[must_use]
    pub fn entry(&self, key: &str) -> Value {
        let text = self.ctl(&format!("get -w json '{PREFIX}/{key}'")).ok();
        let value: Value = serde_json::from_str(&text).expect("JSON was asked for");
        value["kvs"][0].clone()
    }

    /// Kills the member, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Restarts the member on its existing data.
    pub fn restart(&mut self) {
        self.kill();
        self.process = Self::process(self.node, Lifetime::Killed, &self.arguments);
    }

    /// Stops the process with SIGSTOP, as on a machine that hangs, or continues it.
    pub fn freeze(&self, is_frozen: bool) {
        self.process.freeze(is_frozen);
    }
}

/// Returns a put request for one value, in etcd's JSON. A key is below [`PREFIX`] unless it begins
/// with a slash.
#[must_use]
pub fn put(key: &str, value: &str) -> Value {
    json!({"key": text(&path(key)), "value": text(value)})
}

/// Returns a delete request for one key, in etcd's JSON.
#[must_use]
pub fn delete(key: &str) -> Value {
    json!({"key": text(&path(key))})
}

fn path(key: &str) -> String {
    if key.starts_with('/') {
        key.to_owned()
    } else {
        format!("{PREFIX}/{key}")
    }
}

/// Encodes text as etcd's JSON encodes bytes: in base64.
fn text(text: &str) -> String {
    STANDARD.encode(text)
}
