//! A real kube-apiserver on a node, with an etcd of its own.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::clients::tool;
use crate::{Etcd, Lab, Node};

/// Who may do everything.
const ADMIN: &str = "the-admin";
/// Where the cluster's keys and certificates lie on the API server's node.
const KEYS: &str = "/run/kube";

/// A running API server. It ends when it is dropped, and with the program that started it.
pub struct Kube<'a> {
    node: &'a Node<'a>,
    address: String,
    port: u16,
    etcd: Option<Etcd<'a>>,
    child: Child,
    is_for_good: bool,
}

/// What the API server answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub code: u16,
    /// The body; a text where it is no JSON.
    pub body: Value,
}

impl<'a> Kube<'a> {
    /// Starts both on `node`, which has this address.
    #[must_use]
    pub fn start(node: &'a Node<'a>, address: &str) -> Self {
        let etcd = Etcd::start(node, &in_url(address));
        Self::begin(node, address, Some(etcd), 6443, false)
    }

    /// The same, but once it is left it outlives this program.
    #[must_use]
    pub fn start_for_good(node: &'a Node<'a>, address: &str) -> Self {
        let etcd = Etcd::start_for_good(node, address);
        Self::begin(node, address, Some(etcd), 6443, true)
    }

    /// Another API server on the same etcd, at another port.
    #[must_use]
    pub fn second(&self) -> Self {
        Self::begin(self.node, &self.address, None, 6444, false)
    }

    fn begin(
        node: &'a Node<'a>,
        address: &str,
        etcd: Option<Etcd<'a>>,
        port: u16,
        is_for_good: bool,
    ) -> Self {
        node.lab()
            .install(&tool("kube-apiserver"), "bin/kube-apiserver");
        if etcd.is_some() {
            node.write("/run/certificates.sh", include_str!("kube/certificates.sh"));
            node.sh(&format!("sh /run/certificates.sh {KEYS} {address}"))
                .ok();
            // Who is who: token, user, number, groups.
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
            let ca = std::fs::read(node.path(&format!("{KEYS}/ca.crt"))).expect("it was made");
            node.lab().write("kube/ca.crt", ca);
        }
        let child = Self::child(node, address, port, is_for_good);
        let kube = Self {
            node,
            address: address.to_owned(),
            port,
            etcd,
            child,
            is_for_good,
        };
        kube.wait();
        kube
    }

    fn child(node: &Node<'_>, address: &str, port: u16, is_for_good: bool) -> Child {
        let inner = node.command(Lab::path("bin/kube-apiserver"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(node.path(&format!("/run/kube-apiserver-{port}.log")));
        let mut command = if is_for_good {
            Command::new("setsid")
        } else {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]);
            command
        };
        command
            .arg(inner.get_program())
            .args(inner.get_args())
            .args([
                &format!("--etcd-servers=http://{}:2379", in_url(address)),
                // Both families.
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
                if address.contains(':') {
                    "--service-cluster-ip-range=fd00:10:96::/112"
                } else {
                    "--service-cluster-ip-range=10.96.0.0/16"
                },
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--endpoint-reconciler-type=none",
                "--kubelet-preferred-address-types=InternalIP",
                // So that a test can put many objects straight into etcd.
                "--storage-media-type=application/json",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the node's /run takes files"))
            .spawn()
            .expect("setpriv and setsid are part of every Debian")
    }

    /// Waits until it answers, with its own roles in place: on a busy machine that is half a minute.
    ///
    /// # Panics
    ///
    /// When it does not within a minute, with its log.
    pub fn wait(&self) {
        for _ in 0..600 {
            if self.call("GET", "/readyz", "").code == 200 {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let tail = format!("tail -20 /run/kube-apiserver-{}.log", self.port);
        panic!(
            "kube-apiserver does not answer: {}",
            self.node.sh(&tail).stdout
        );
    }

    /// Where clients find it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}:{}", in_url(&self.address), self.port)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its etcd.
    ///
    /// # Panics
    ///
    /// When it is a second one, which has none of its own.
    #[must_use]
    pub fn etcd(&self) -> &Etcd<'a> {
        self.etcd.as_ref().expect("the first has an etcd")
    }

    /// Lets both go on after this program.
    pub fn leave(mut self) {
        if let Some(etcd) = self.etcd.take() {
            etcd.leave();
        }
        std::mem::forget(self);
    }

    /// Asks, as the administrator. A body is JSON, or YAML where it does not begin with a brace; a
    /// patch is a strategic one.
    ///
    /// # Panics
    ///
    /// When curl is not there.
    #[must_use]
    pub fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        self.call_as(ADMIN, method, path, body)
    }

    /// The same as who has `token`.
    #[must_use]
    pub fn call_as(&self, token: &str, method: &str, path: &str, body: &str) -> Answer {
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
        let output = output.expect("curl: make packages installs it");
        let text = String::from_utf8_lossy(&output.stdout);
        let (body, code) = text.rsplit_once('\n').unwrap_or_default();
        Answer {
            code: code.parse().unwrap_or_default(),
            body: serde_json::from_str(body).unwrap_or_else(|_| body.into()),
        }
    }

    /// Reads an object.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, "").ok()
    }

    /// Makes an object.
    pub fn create(&self, path: &str, object: &Value) {
        self.call("POST", path, &object.to_string()).ok();
    }

    /// Changes a part of an object.
    pub fn patch(&self, path: &str, change: &Value) {
        self.call("PATCH", path, &change.to_string()).ok();
    }

    /// Takes an object away, at once.
    pub fn delete(&self, path: &str) {
        self.call("DELETE", &format!("{path}?gracePeriodSeconds=0"), "")
            .ok();
    }

    /// Makes what a controller manager makes of a namespace: who its pods are, and whom they trust.
    pub fn prepare(&self, namespace: &str) {
        let path = format!("/api/v1/namespaces/{namespace}");
        if namespace != "default" && self.call("GET", &path, "").code == 404 {
            self.create(
                "/api/v1/namespaces",
                &json!({
                    "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
                }),
            );
        }
        self.create(
            &format!("{path}/serviceaccounts"),
            &json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
            }),
        );
        let ca = std::fs::read_to_string(self.node.path(&format!("{KEYS}/ca.crt")));
        self.create(
            &format!("{path}/configmaps"),
            &json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"},
                "data": {"ca.crt": ca.expect("it was made")},
            }),
        );
    }

    /// Makes a Node as kubelet and the control plane would: with these podCIDRs and these
    /// `InternalIP`s.
    pub fn create_node(&self, name: &str, cidrs: &[&str], addresses: &[&str]) {
        self.create(
            "/api/v1/nodes",
            &json!({
                "apiVersion": "v1", "kind": "Node",
                // Without any annotation flanneld panics.
                "metadata": {"name": name, "annotations": {
                    "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                }},
                "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
            }),
        );
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let status = json!({"status": {"addresses": addresses}});
        self.patch(&format!("/api/v1/nodes/{name}/status"), &status);
    }

    /// A Node.
    #[must_use]
    pub fn node(&self, name: &str) -> Value {
        self.get(&format!("/api/v1/nodes/{name}"))
    }

    /// flannel's annotation of a Node; empty where there is none.
    #[must_use]
    pub fn annotation(&self, node: &str, name: &str) -> String {
        let key = format!("flannel.alpha.coreos.com/{name}");
        let node = self.node(node);
        let value = node["metadata"]["annotations"][&key].as_str();
        value.unwrap_or_default().to_owned()
    }

    /// Writes flannel's annotations of a Node.
    pub fn annotate(&self, node: &str, annotations: &[(&str, &str)]) {
        let annotations: serde_json::Map<_, _> = annotations
            .iter()
            .map(|(name, value)| (format!("flannel.alpha.coreos.com/{name}"), json!(value)))
            .collect();
        let change = json!({"metadata": {"annotations": annotations}});
        self.patch(&format!("/api/v1/nodes/{node}"), &change);
    }

    /// A Node's condition of this type; null where there is none.
    #[must_use]
    pub fn condition(&self, node: &str, kind: &str) -> Value {
        let node = self.node(node);
        let mut all = node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten();
        let found = all.find(|condition| condition["type"] == kind);
        found.cloned().unwrap_or_default()
    }

    /// What the events about a Node say.
    #[must_use]
    pub fn events(&self, node: &str) -> Vec<String> {
        let all = self.get("/api/v1/namespaces/default/events");
        let events = all["items"].as_array().into_iter().flatten();
        let about = events.filter(|event| event["involvedObject"]["name"] == node);
        about
            .map(|event| event["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// A kubeconfig file for who has `token`, where every node sees it.
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

    /// The kubeconfig file of who may do everything.
    #[must_use]
    pub fn admin(&self) -> String {
        self.kubeconfig(ADMIN)
    }

    /// Ends it, as a crash would.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Starts it again, on what etcd has.
    pub fn restart(&mut self) {
        self.kill();
        self.child = Self::child(self.node, &self.address, self.port, self.is_for_good);
        self.wait();
    }

    /// Ends both, as a crash would, and starts them again when that is done.
    ///
    /// # Panics
    ///
    /// When it is a second one, which has no etcd of its own.
    pub fn stopped(&mut self, doing: impl FnOnce()) {
        self.kill();
        let etcd = self.etcd.as_mut().expect("a first one has one");
        etcd.kill();
        doing();
        etcd.restart();
        self.restart();
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

/// An address as a URL has it.
fn in_url(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

/// Where etcd has a Node of the API server's.
#[must_use]
pub fn node_key(name: &str) -> String {
    format!("/registry/minions/{name}")
}

/// A Node as etcd has it, with all that a kubelet and a kube-flannel write there: some 12 kB.
#[must_use]
pub fn full_node(name: &str, cidr: &str, public_ip: &str) -> String {
    let images: Vec<_> = (0..50)
        .map(|i| {
            json!({
                "names": [
                    format!("registry.example.com/a/team/some-application-{i}@sha256:{i:064}"),
                    format!("registry.example.com/a/team/some-application-{i}:v1.{i}.0"),
                ],
                "sizeBytes": 100_000_000 + i,
            })
        })
        .collect();
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(|kind| json!({
        "type": kind, "status": "False", "reason": "KubeletHasSufficientMemory",
        "message": "kubelet has sufficient memory available",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }));
    let fields: serde_json::Map<_, _> = (0..40)
        .map(|i| (format!("f:a-field-of-a-node-{i}"), json!({"f:type": {}})))
        .collect();
    let managed = json!({
        "manager": "kubelet", "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:status": fields},
    });
    let flannel = "flannel.alpha.coreos.com";
    let node = json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
                "kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": "a-zone-of-some-region",
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                format!("{flannel}/kube-subnet-manager"): "true",
                format!("{flannel}/backend-type"): "host-gw",
                format!("{flannel}/backend-data"): "null",
                format!("{flannel}/public-ip"): public_ip,
            },
            "managedFields": [managed],
        },
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": public_ip},
                {"type": "Hostname", "address": name},
            ],
            "conditions": conditions,
            "images": images,
        },
    });
    node.to_string()
}

impl Answer {
    /// The body of an answer that must be a good one.
    ///
    /// # Panics
    ///
    /// When it is not, with all it said.
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{self:?}");
        self.body
    }
}

impl Drop for Kube<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}
