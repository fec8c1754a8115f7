//! A real etcd, one or several members, each on a node.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{Node, Output, wait_for};

/// Where flannel keeps its network.
pub const PREFIX: &str = "/coreos.com/network";

/// The kernel ends it when the thread that started it does, however that happens.
const DYING: &str = "setpriv --pdeathsig KILL --";

/// A running member. Ends when it is dropped, and with the program that started it.
pub struct Etcd<'a> {
    node: &'a Node<'a>,
    address: String,
    arguments: Vec<String>,
    child: Child,
}

impl<'a> Etcd<'a> {
    /// A cluster of one on `node`, which has this address.
    #[must_use]
    pub fn start(node: &'a Node<'a>, address: &str) -> Self {
        let mut members = Self::cluster(&[(node, address)]);
        members.pop().expect("one member")
    }

    /// The same, but once it is left it outlives this program.
    #[must_use]
    pub fn start_for_good(node: &'a Node<'a>, address: &str) -> Self {
        let url = format!("http://{address}:2379");
        let arguments = vec![
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
        ];
        let child = Self::child(node, "setsid", &arguments);
        let etcd = Self {
            node,
            address: address.to_owned(),
            arguments,
            child,
        };
        etcd.wait();
        etcd
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it go on after this program.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// The same with more arguments, such as those for TLS; its clients' URL begins with `scheme`.
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

    /// One member on each of these nodes.
    ///
    /// # Panics
    ///
    /// When they do not find one another.
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
        let child = Self::child(node, DYING, &arguments);
        Self {
            node,
            address: address.to_owned(),
            arguments,
            child,
        }
    }

    fn child(node: &Node<'_>, start: &str, arguments: &[String]) -> Child {
        let inner = node.command("etcd");
        let log = File::options()
            .create(true)
            .append(true)
            .open(node.path("/run/etcd.log"));
        let mut start = start.split(' ');
        Command::new(start.next().expect("a program"))
            .args(start)
            .arg(inner.get_program())
            .args(inner.get_args())
            .arg("--data-dir=/var/lib/etcd")
            // These tests are not about a slow disk.
            .args([
                "--unsafe-no-fsync",
                "--heartbeat-interval=50",
                "--election-timeout=500",
            ])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the node's /run takes files"))
            .spawn()
            .expect("etcd: make packages installs it")
    }

    /// Waits until it answers.
    pub fn wait(&self) {
        wait_for(&format!("etcd on {} answers", self.node.name), || {
            self.ctl("endpoint health").success
        });
    }

    /// Where clients find it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}:2379", self.address)
    }

    /// What `etcdctl` says.
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

    /// Writes many values, each in a request of its own, over one connection.
    pub fn put_each(&self, pairs: impl IntoIterator<Item = (String, String)>) {
        let put = |(key, value): (String, String)| ("/v3/kv/put", put(&key, &value));
        self.post(pairs.into_iter().map(put));
    }

    /// Writes many values, fifty in one transaction.
    pub fn put_all(&self, pairs: impl IntoIterator<Item = (String, String)>) {
        let puts: Vec<_> = pairs
            .into_iter()
            .map(|(key, value)| json!({"requestPut": put(&key, &value)}))
            .collect();
        let txn = |puts: &[Value]| ("/v3/kv/txn", json!({"success": puts}));
        self.post(puts.chunks(50).map(txn));
    }

    /// Sends requests one after the other, by HTTP and JSON.
    ///
    /// # Panics
    ///
    /// When not every one succeeds.
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
            .expect("busybox is there");
        let mut stdin = client.stdin.take().expect("it is piped");
        let writer = thread::spawn(move || stdin.write_all(text.as_bytes()).map(|()| stdin));
        let mut answers = client.stdout.take().expect("it is piped");
        let mut said = String::new();
        answers
            .read_to_string(&mut said)
            .expect("etcd answers in text");
        drop(writer.join());
        drop(client.wait());
        let good = said.matches("HTTP/1.1 200 OK").count();
        assert_eq!(good, count + 1, "every request succeeds: {said:.2000}");
    }

    /// Writes the network's configuration, with these keys beside the usual ones.
    pub fn configure(&self, more: &Value) {
        let mut network = json!({"Network": "10.10.0.0/16", "Backend": {"Type": "host-gw"}});
        for (key, value) in more.as_object().into_iter().flatten() {
            network[key] = value.clone();
        }
        self.put("config", &network);
    }

    /// A value as it stands there; nothing where there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> String {
        let output = self.ctl(&format!("get --print-value-only '{PREFIX}/{key}'"));
        output.ok().trim().to_owned()
    }

    /// The leases: each key behind `subnets/`, and its value.
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

    /// What etcd says of a key in all words: revisions, the number of its lease.
    #[must_use]
    pub fn entry(&self, key: &str) -> Value {
        let text = self.ctl(&format!("get -w json '{PREFIX}/{key}'")).ok();
        let value: Value = serde_json::from_str(&text).expect("JSON was asked for");
        value["kvs"][0].clone()
    }

    /// Ends it, as a crash would.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Starts it again, on what it had.
    pub fn restart(&mut self) {
        self.kill();
        self.child = Self::child(self.node, DYING, &self.arguments);
    }

    /// Stops it without ending it, as a machine does that hangs; or lets it go on.
    pub fn freeze(&self, is_frozen: bool) {
        let signal = if is_frozen {
            Signal::STOP
        } else {
            Signal::CONT
        };
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child has an id"), signal).ok();
    }
}

/// A request to write one value, in etcd's JSON. A key lies below [`PREFIX`], unless it begins with a
/// slash.
#[must_use]
pub fn put(key: &str, value: &str) -> Value {
    json!({"key": text(&path(key)), "value": text(value)})
}

/// A request to delete one key, in etcd's JSON.
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

/// As JSON has bytes.
fn text(text: &str) -> String {
    STANDARD.encode(text)
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}
