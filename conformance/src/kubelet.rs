//! A real kubelet on a node, with the containerd that runs its pods.

use serde_json::{Value, json};

use crate::clients::tool;
use crate::holder::Output;
use crate::{Containerd, Kube, Node, Release, wait_for};

/// Image of the test pods.
pub const BUSYBOX: &str = "test.local/busybox:1";

/// A running kubelet and its containerd. Both end when this value is dropped, with all their pods.
pub struct Kubelet<'node> {
    /// The containerd of this kubelet.
    pub containerd: Containerd<'node>,
    node: &'node Node<'node>,
}

impl<'node> Kubelet<'node> {
    /// Starts kubelet and containerd on `node`, which has this address. With an API server, kubelet
    /// registers there; without one it runs the static pods in `/etc/kubernetes/manifests`.
    /// `/etc/cni/net.d` is empty, and `/opt/cni/bin` contains only the reference plugins.
    #[must_use]
    pub fn start(
        node: &'node Node<'node>,
        release: Release,
        address: &str,
        kube: Option<&Kube<'_>>,
    ) -> Self {
        let kubelet = Self::start_on_hold(node, release, address, kube);
        node.sh("rm /run/kubelet.hold").ok();
        kubelet.wait();
        kubelet
    }

    /// Like [`Self::start`], but kubelet itself only starts when `/run/kubelet.hold` has been
    /// removed.
    #[must_use]
    pub fn start_on_hold(
        node: &'node Node<'node>,
        release: Release,
        address: &str,
        kube: Option<&Kube<'_>>,
    ) -> Self {
        let containerd = Containerd::start_unconfigured(node, release).with_image();
        configure(node, address, kube, str::to_owned, "");
        Self { containerd, node }
    }

    /// Waits until kubelet is healthy.
    pub fn wait(&self) {
        wait(self.node);
    }

    /// Returns kubelet's log.
    #[must_use]
    pub fn log(&self) -> String {
        self.node.sh("cat /run/kubelet.log").stdout
    }

    /// Kills kubelet, as a crash would, and waits until it has been restarted.
    pub fn restart(&self) {
        self.containerd.end("kubelet");
        self.wait();
    }

    /// Returns the id of a pod's ready sandbox; empty if there is none.
    #[must_use]
    pub fn sandbox(&self, pod: &str) -> String {
        let args = format!("pods -q --state Ready --label io.kubernetes.pod.name={pod}");
        let ids = self.containerd.crictl(&args).stdout;
        ids.lines().next().unwrap_or_default().to_owned()
    }

    /// Returns the number of ready sandboxes.
    #[must_use]
    pub fn sandboxes(&self) -> usize {
        let all = self.containerd.crictl("pods -q --state Ready").ok();
        all.lines().count()
    }

    /// Runs a script in a pod's network namespace, with the node's programs.
    #[must_use]
    pub fn in_pod(&self, pod: &str, script: &str) -> Output {
        self.node.sh(&format!(
            "nsenter --net={} sh -c '{script}'",
            self.netns(pod)
        ))
    }

    /// Returns the path of a pod's network namespace on the node.
    ///
    /// # Panics
    ///
    /// If the pod has no network namespace.
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
        path.expect("the sandbox has a network namespace")
            .to_owned()
    }
}

/// Writes kubelet's files on a node, which has this address, or one of each family separated by a
/// comma. `change` edits the configuration file, and `more` is added to the command line.
pub(crate) fn configure(
    node: &Node<'_>,
    address: &str,
    kube: Option<&Kube<'_>>,
    change: impl Fn(&str) -> String,
    more: &str,
) {
    node.lab().install(&tool("kubelet"), "bin/kubelet");
    let kubeconfig = kube.map(|kube| {
        let file = kube.kubeconfig(&format!("kubelet-{}", node.name));
        format!("--kubeconfig={file} ")
    });
    let flags = format!(
        "{}--hostname-override={} --node-ip={address} --v=2 {more}",
        kubeconfig.unwrap_or_default(),
        node.name
    );
    let yaml = change(include_str!("containerd/kubelet.yaml"));
    node.write("/run/kubelet.yaml", yaml);
    node.write("/run/kubelet.flags", flags);
}

/// Waits until a node's kubelet is healthy.
pub(crate) fn wait(node: &Node<'_>) {
    wait_for("kubelet answers", || {
        let healthz = "busybox wget -q -O - http://127.0.0.1:10248/healthz";
        node.sh(healthz).stdout == "ok"
    });
}

/// Returns a busybox pod on a node that runs a shell script. The fields of `more` are added to its
/// container.
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
