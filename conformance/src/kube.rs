//! A real kube-apiserver on a node, with its own etcd.

mod objects;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clients::tool;
use crate::process::{Lifetime, Process, log_file, poll};
use crate::{Etcd, Lab, Node};

pub use objects::{full_node, node_key};

/// Bearer token of the administrator.
const ADMIN: &str = "the-admin";
/// Folder of the cluster's keys and certificates on the API server's node.
pub(crate) const KEYS: &str = "/run/kube";

/// A running API server. It ends when this value is dropped, or when the program that started it
/// ends.
pub struct Kube<'a> {
    node: &'a Node<'a>,
    address: String,
    port: u16,
    etcd: Option<Etcd<'a>>,
    process: Process,
    lifetime: Lifetime,
    flags: Vec<String>,
}

/// A response of the API server.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub code: u16,
    /// The body; a string if it is not JSON.
    pub body: Value,
}

impl<'a> Kube<'a> {
    /// Starts etcd and the API server on `node`, which has this address.
    #[must_use]
    pub fn start(node: &'a Node<'a>, address: &str) -> Self {
        let etcd = Etcd::start(node, &in_url(address));
        let flags = store_flags(address);
        Self::begin(node, address, Some(etcd), 6443, Lifetime::Killed, flags)
    }

    /// Starts etcd and the API server of a whole cluster, whose services have addresses of the
    /// ranges `services`, separated by a comma. etcd has a member on each node of `spares`, too.
    #[must_use]
    pub fn start_for_cluster(
        node: &'a Node<'a>,
        address: &str,
        services: &str,
        spares: &[(&'a Node<'a>, &str)],
    ) -> (Self, Vec<Etcd<'a>>) {
        let address_in_url = in_url(address);
        let mut members = vec![(node, address_in_url.as_str())];
        members.extend_from_slice(spares);
        let mut members = Etcd::cluster(&members);
        let etcd = members.remove(0);
        let urls = members.iter().map(Etcd::url);
        let urls = urls.map(|url| format!("--etcd-servers={url}"));
        let mut flags = vec![
            format!("--service-cluster-ip-range={services}"),
            format!("--client-ca-file={KEYS}/ca.crt"),
            format!("--requestheader-client-ca-file={KEYS}/ca.crt"),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        ];
        flags.extend(urls);
        let kube = Self::begin(node, address, Some(etcd), 6443, Lifetime::Killed, flags);
        (kube, members)
    }

    /// Starts etcd and an API server that outlive this program once [`Self::detach`] is called.
    #[must_use]
    pub fn start_detached(node: &'a Node<'a>, address: &str) -> Self {
        let etcd = Etcd::start_detached(node, address);
        let flags = store_flags(address);
        Self::begin(node, address, Some(etcd), 6443, Lifetime::Detached, flags)
    }

    /// Starts another API server on the same etcd, at another port.
    #[must_use]
    pub fn second(&self) -> Self {
        self.another(Lifetime::Killed)
    }

    /// The same, but it is killed every 25 seconds, and restarted.
    #[must_use]
    pub fn restarting_second(&self) -> Self {
        self.another(Lifetime::Restarting)
    }

    fn another(&self, lifetime: Lifetime) -> Self {
        let mut flags = self.flags.clone();
        // The service of the API server leads to the first one.
        flags.push("--endpoint-reconciler-type=none".to_owned());
        Self::begin(self.node, &self.address, None, 6444, lifetime, flags)
    }

    fn begin(
        node: &'a Node<'a>,
        address: &str,
        etcd: Option<Etcd<'a>>,
        port: u16,
        lifetime: Lifetime,
        flags: Vec<String>,
    ) -> Self {
        node.lab()
            .install(&tool("kube-apiserver"), "bin/kube-apiserver");
        if etcd.is_some() {
            node.write("/run/certificates.sh", include_str!("kube/certificates.sh"));
            node.sh(&format!("sh /run/certificates.sh {KEYS} {address}"))
                .ok();
            // Each line: token, user name, user id, groups.
            let mut tokens = format!("{ADMIN},admin,1,system:masters\nslow,slow,2\n");
            for name in ["master", "worker1", "worker2"] {
                tokens.extend([
                    "kubelet-",
                    name,
                    ",system:node:",
                    name,
                    ",",
                    name,
                    ",system:nodes\n",
                ]);
            }
            node.write(&format!("{KEYS}/tokens.csv"), tokens);
            let ca = std::fs::read(node.path(&format!("{KEYS}/ca.crt")))
                .expect("certificates.sh has created the file");
            node.lab().write("kube/ca.crt", ca);
        }
        let process = Self::process(node, address, port, lifetime, &flags);
        let kube = Self {
            node,
            address: address.to_owned(),
            port,
            etcd,
            process,
            lifetime,
            flags,
        };
        kube.wait();
        kube
    }

    fn process(
        node: &Node<'_>,
        address: &str,
        port: u16,
        lifetime: Lifetime,
        flags: &[String],
    ) -> Process {
        let mut command = node.command(Lab::path("bin/kube-apiserver"));
        command
            .args([
                &format!("--etcd-servers=http://{}:2379", in_url(address)),
                // Listens on both address families.
                "--bind-address=::",
                &format!("--advertise-address={address}"),
                &format!("--secure-port={port}"),
                &format!("--tls-cert-file={KEYS}/server.crt"),
                &format!("--tls-private-key-file={KEYS}/server.key"),
                &format!("--token-auth-file={KEYS}/tokens.csv"),
                &format!("--service-account-key-file={KEYS}/accounts.pub"),
                &format!("--service-account-signing-key-file={KEYS}/accounts.key"),
            ])
            .args([
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP",
                // JSON, so that a test can write many objects directly into etcd.
                "--storage-media-type=application/json",
            ])
            .args(flags);
        let log = log_file(&node.path(&format!("/run/kube-apiserver-{port}.log")));
        Process::start(&command, lifetime, log)
    }

    /// Waits until the API server is ready and its default roles exist. On a busy machine that
    /// takes half a minute.
    ///
    /// # Panics
    ///
    /// If it is not ready within a minute; the message includes its log.
    pub fn wait(&self) {
        let is_ready = || self.call("GET", "/readyz", "").code == 200;
        if poll(Duration::from_secs(60), is_ready).is_some() {
            return;
        }
        let tail = format!("tail -20 /run/kube-apiserver-{}.log", self.port);
        panic!(
            "kube-apiserver does not answer: {}",
            self.node.sh(&tail).stdout
        );
    }

    /// Returns the URL for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}:{}", in_url(&self.address), self.port)
    }

    /// Returns how often the API server of [`Self::restarting_second`] was restarted.
    #[must_use]
    pub fn restarts(&self) -> usize {
        let log = format!("/run/kube-apiserver-{}.log", self.port);
        let count = self.node.sh(&format!("grep -c '^restarted$' {log}"));
        count.stdout.trim().parse().unwrap_or_default()
    }

    /// Returns the process id of the API server.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the etcd of this API server.
    ///
    /// # Panics
    ///
    /// If this is a second API server, which has no etcd of its own.
    #[must_use]
    pub fn etcd(&self) -> &Etcd<'a> {
        self.etcd
            .as_ref()
            .expect("the first API server has an etcd")
    }

    /// Lets the API server and its etcd run on after this program ends.
    pub fn detach(mut self) {
        if let Some(etcd) = self.etcd.take() {
            etcd.detach();
        }
        self.process.detach();
    }

    /// Sends a request as the administrator. A body that begins with a brace is sent as JSON, any
    /// other as YAML. A PATCH is a strategic merge patch.
    ///
    /// # Panics
    ///
    /// If curl is not installed.
    #[must_use]
    pub fn call(&self, method: &str, path: &str, body: &str) -> Response {
        self.call_as(ADMIN, method, path, body)
    }

    /// Sends a request as the owner of `token`.
    #[must_use]
    pub fn call_as(&self, token: &str, method: &str, path: &str, body: &str) -> Response {
        let kind = match (method, body.starts_with('{')) {
            ("PATCH", _) => "application/strategic-merge-patch+json",
            (_, true) => "application/json",
            _ => "application/yaml",
        };
        let mut command = self.node.command("curl");
        command
            .args([
                "-sS",
                "--max-time",
                "30",
                "-X",
                method,
                "-w",
                "\n%{http_code}",
            ])
            .args(["--cacert", &format!("{KEYS}/ca.crt")])
            .args(["-H", &format!("Authorization: Bearer {token}")])
            .args(["-H", &format!("Content-Type: {kind}")]);
        if !body.is_empty() {
            command.args(["--data-binary", body]);
        }
        command.arg(format!("{}{path}", self.url()));
        let output = command.stdin(Stdio::null()).output();
        let output = output.expect("curl is installed (`make packages`)");
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, code) = text.rsplit_once('\n').unwrap_or_default();
        Response {
            code: code.parse().unwrap_or_default(),
            body: serde_json::from_str(body).unwrap_or_else(|_| body.into()),
        }
    }

    /// Reads an object.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, "").ok()
    }

    /// Creates an object.
    pub fn create(&self, path: &str, object: &Value) {
        self.call("POST", path, &object.to_string()).ok();
    }

    /// Patches an object.
    pub fn patch(&self, path: &str, change: &Value) {
        self.call("PATCH", path, &change.to_string()).ok();
    }

    /// Patches an object `rate` times a second with one change after the other, over one connection.
    /// Returns how long that took.
    ///
    /// # Panics
    ///
    /// If curl is not installed, or the API server refuses a change.
    pub fn patch_each(
        &self,
        path: &str,
        rate: u32,
        changes: impl IntoIterator<Item = Value>,
    ) -> Duration {
        let url = format!("{}{path}", self.url());
        let section = |change: Value| {
            let body = change.to_string().replace('"', "\\\"");
            format!(
                "url = \"{url}\"\nrequest = PATCH\ncacert = {KEYS}/ca.crt\noutput = /dev/null\n\
                 header = \"Authorization: Bearer {ADMIN}\"\n\
                 header = \"Content-Type: application/strategic-merge-patch+json\"\n\
                 data-binary = \"{body}\"\n"
            )
        };
        let sections: Vec<_> = changes.into_iter().map(section).collect();
        self.node
            .write("/run/patches.conf", sections.join("next\n"));
        let begin = Instant::now();
        let curl = format!("curl -sS --fail-early --fail --rate {rate}/s -K /run/patches.conf");
        self.node.sh(&curl).ok();
        begin.elapsed()
    }

    /// Deletes an object without a grace period.
    pub fn delete(&self, path: &str) {
        self.call("DELETE", &format!("{path}?gracePeriodSeconds=0"), "")
            .ok();
    }

    /// Reads a Node.
    #[must_use]
    pub fn node(&self, name: &str) -> Value {
        self.get(&format!("/api/v1/nodes/{name}"))
    }

    /// Writes a kubeconfig file for the owner of `token` into the shared folder, and returns its
    /// path on the nodes.
    #[must_use]
    pub fn kubeconfig(&self, token: &str) -> String {
        let name = format!("kube/{token}-{}.conf", self.port);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": {
                "server": self.url(),
                "certificate-authority": Lab::path("kube/ca.crt"),
            }}],
            "users": [{"name": "it", "user": {"token": token}}],
        });
        self.node.lab().write(&name, config.to_string());
        Lab::path(&name).display().to_string()
    }

    /// Writes the administrator's kubeconfig file and returns its path on the nodes.
    #[must_use]
    pub fn admin(&self) -> String {
        self.kubeconfig(ADMIN)
    }

    /// Kills the API server, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Restarts the API server on the same etcd data.
    pub fn restart(&mut self) {
        self.kill();
        self.process = Self::process(
            self.node,
            &self.address,
            self.port,
            self.lifetime,
            &self.flags,
        );
        self.wait();
    }

    /// Kills the API server and its etcd, calls `doing`, and starts both again.
    ///
    /// # Panics
    ///
    /// If this is a second API server, which has no etcd of its own.
    pub fn stopped(&mut self, doing: impl FnOnce()) {
        self.kill();
        let etcd = self
            .etcd
            .as_mut()
            .expect("the first API server has an etcd to stop");
        etcd.kill();
        doing();
        etcd.restart();
        self.restart();
    }

    /// Stops the process with SIGSTOP, as on a machine that hangs, or continues it.
    pub fn freeze(&self, is_frozen: bool) {
        self.process.freeze(is_frozen);
    }
}

/// Returns the flags of an API server that is only a store: no controller runs.
fn store_flags(address: &str) -> Vec<String> {
    let services = if address.contains(':') {
        "fd00:10:96::/112"
    } else {
        "10.96.0.0/16"
    };
    vec![
        format!("--service-cluster-ip-range={services}"),
        "--endpoint-reconciler-type=none".to_owned(),
    ]
}

/// Formats an address as the host part of a URL.
fn in_url(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

impl Response {
    /// Returns the body of a successful response.
    ///
    /// # Panics
    ///
    /// If the status is not 2xx; the message includes the response.
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{self:?}");
        self.body
    }
}
