//! A real kubelet on a node, with the containerd that it runs its pods by.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clients::tool;
use crate::holder::Output;
use crate::{Containerd, Kube, Node, Release, wait_for};

/// The image that pods of a test are made of.
pub const BUSYBOX: &str = "test.local/busybox:1";

/// A running kubelet and its containerd. They end when it is dropped, with all their pods.
pub struct Kubelet<'node> {
    /// Its containerd.
    pub containerd: Containerd<'node>,
    node: &'node Node<'node>,
}

impl<'node> Kubelet<'node> {
    /// Starts both on `node`, which has this address. With an API server, kubelet registers there;
    /// without one it runs what `/etc/kubernetes/manifests` says. `/etc/cni/net.d` is empty, and
    /// `/opt/cni/bin` has the reference plugins only.
    #[must_use]
    pub fn start(
        node: &'node Node<'node>,
        release: Release,
        address: &str,
        kube: Option<&Kube<'_>>,
    ) -> Self {
        let kubelet = Self::boot(node, release, address, kube);
        node.sh("rm /run/kubelet.hold").ok();
        kubelet.wait();
        kubelet
    }

    /// The same, but kubelet itself is only started once `/run/kubelet.hold` is gone.
    #[must_use]
    pub fn boot(
        node: &'node Node<'node>,
        release: Release,
        address: &str,
        kube: Option<&Kube<'_>>,
    ) -> Self {
        node.lab().install(&tool("kubelet"), "bin/kubelet");
        let containerd = Containerd::bare(node, release).with_image();
        let kubeconfig = kube.map(|kube| {
            let file = kube.kubeconfig(&format!("kubelet-{}", node.name));
            format!("--kubeconfig={file} ")
        });
        let flags = format!(
            "{}--hostname-override={} --node-ip={address} --v=2",
            kubeconfig.unwrap_or_default(),
            node.name
        );
        node.write("/run/kubelet.yaml", include_str!("containerd/kubelet.yaml"));
        node.write("/run/kubelet.flags", flags);
        Self { containerd, node }
    }

    /// Waits until it answers.
    pub fn wait(&self) {
        wait_for("kubelet answers", || {
            let healthz = "busybox wget -q -O - http://127.0.0.1:10248/healthz";
            self.node.sh(healthz).stdout == "ok"
        });
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.node.sh("cat /run/kubelet.log").stdout
    }

    /// Ends it, as a crash does, and waits until it is there again.
    pub fn restart(&self) {
        self.containerd.end("kubelet");
        self.wait();
    }

    /// The sandbox of a pod that is ready; empty where there is none.
    #[must_use]
    pub fn sandbox(&self, pod: &str) -> String {
        let args = format!("pods -q --state Ready --label io.kubernetes.pod.name={pod}");
        let ids = self.containerd.crictl(&args).stdout;
        ids.lines().next().unwrap_or_default().to_owned()
    }

    /// How many sandboxes there are that are ready.
    #[must_use]
    pub fn sandboxes(&self) -> usize {
        let all = self.containerd.crictl("pods -q --state Ready").ok();
        all.lines().count()
    }

    /// Runs a script in a pod's network, with the node's programs.
    #[must_use]
    pub fn in_pod(&self, pod: &str, script: &str) -> Output {
        self.node.sh(&format!(
            "nsenter --net={} sh -c '{script}'",
            self.netns(pod)
        ))
    }

    /// Where the node sees a pod's network namespace.
    ///
    /// # Panics
    ///
    /// When it has none.
    #[must_use]
    pub fn netns(&self, pod: &str) -> String {
        let sandbox = self.sandbox(pod);
        let status = self
            .containerd
            .crictl(&format!("inspectp {sandbox}"))
            .json();
        let namespaces = &status["info"]["runtimeSpec"]["linux"]["namespaces"];
        let all = namespaces.as_array().expect("a sandbox has namespaces");
        let network = all.iter().find(|namespace| namespace["type"] == "network");
        let path = network.and_then(|network| network["path"].as_str());
        path.expect("it has a network").to_owned()
    }
}

/// A pod of busybox on a node, which runs a shell script; `more` goes into its container.
#[must_use]
pub fn pod(name: &str, node: &str, script: &str, more: &Value) -> Value {
    let mut container = json!({
        "name": "c", "image": BUSYBOX, "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", script],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
        },
    })
}

/// Waits for what takes its time, such as many pods; `is_so` is asked ten times a second.
///
/// # Panics
///
/// When it is not within `seconds`.
pub fn wait_long(what: &str, seconds: u32, mut is_so: impl FnMut() -> bool) {
    for _ in 0..seconds * 10 {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("not within {seconds} seconds: {what}");
}
