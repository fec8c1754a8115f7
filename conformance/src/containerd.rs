//! The real containerd on a node, with the processes that it starts.

use serde_json::{Value, json};

use crate::clients::tool;
use crate::holder::{Output, run};
use crate::kubelet::BUSYBOX;
use crate::process::Process;
use crate::supervisor::Supervisor;
use crate::{Lab, Node, Plugin, wait_for};

/// URL of the socket of CRI.
pub(crate) const SOCKET: &str = "unix:///run/containerd-test/containerd.sock";

/// A running containerd, with its shims and pods, in their own PID namespace. All of them end when
/// this value is dropped, or when the program that started it ends.
pub struct Containerd<'node> {
    node: &'node Node<'node>,
    supervisor: Supervisor<'node>,
    snapshotter: &'static str,
}

/// The containerd release to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian's package.
    Debian,
    /// The release that `make tools` builds. It sends STATUS to plugins.
    Newest,
}

/// A pod sandbox that containerd runs.
pub struct Sandbox {
    /// Sandbox id, which is also `CNI_CONTAINERID`.
    pub id: String,
    /// Address that the runtime reports.
    pub address: String,
    /// Path of its network namespace on the node.
    pub netns: String,
}

impl<'node> Containerd<'node> {
    /// Starts containerd on `node` with a network configuration list. Our plugin and the reference
    /// plugins are in `/opt/cni/bin`.
    ///
    /// # Panics
    ///
    /// If containerd does not start; it requires the Debian packages containerd and runc.
    #[must_use]
    pub fn start(node: &'node Node<'node>, release: Release, list: &Value) -> Self {
        let containerd = Self::start_unconfigured(node, release);
        let plugin = Plugin::ours(node.lab()).0.display().to_string();
        node.sh(&format!(
            "cp {plugin} /opt/cni/bin/ && cp {plugin} /opt/cni/bin/flannel"
        ))
        .ok();
        containerd.configure(list);
        containerd
    }

    /// Starts containerd without a network configuration list and without our plugin, which someone
    /// else installs.
    ///
    /// # Panics
    ///
    /// If containerd does not start.
    #[must_use]
    pub fn start_unconfigured(node: &'node Node<'node>, release: Release) -> Self {
        Self::start_with_pause(node, release, BUSYBOX)
    }

    /// The same, with the image `pause` for sandboxes.
    pub(crate) fn start_with_pause(
        node: &'node Node<'node>,
        release: Release,
        pause: &str,
    ) -> Self {
        let lab = node.lab();
        let mut config = include_str!("containerd/config.toml");
        let mut path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        if release == Release::Newest {
            for name in ["containerd", "containerd-shim-runc-v2"] {
                lab.install(&tool(name), &format!("newest/{name}"));
            }
            path = format!("{}:{path}", Lab::path("newest").display());
            config = include_str!("containerd/newest.toml");
        }
        Supervisor::prepare(node);
        node.write("/run/containerd.toml", config.replace(BUSYBOX, pause));
        let command = ["containerd", "containerd", "-c", "/run/containerd.toml"];
        let containerd = Self {
            node,
            supervisor: Supervisor::start(node, &path, &command),
            snapshotter: match release {
                Release::Debian => "native",
                Release::Newest => "overlayfs",
            },
        };
        wait_for(
            "containerd answers: are containerd and runc installed?",
            || containerd.ctr("version").success,
        );
        containerd
    }

    /// Replaces the network configuration list.
    pub fn configure(&self, list: &Value) {
        // containerd does not notice a file that is moved into the directory from another one.
        self.node.write("/etc/cni/net.d/.new", list.to_string());
        let script = "cd /etc/cni/net.d && mv .new 10-test.conflist";
        self.node.sh(script).ok();
    }

    /// Builds and imports a busybox image for sandboxes and containers, and waits for CRI.
    #[must_use]
    pub fn with_image(self) -> Self {
        let lab = self.node.lab();
        lab.install(&tool("crictl"), "bin/crictl");
        self.node.sh(include_str!("containerd/image.sh")).ok();
        self.import("/run/image.tar".as_ref());
        self.wait_for_cri();
        self
    }

    /// Runs `ctr` with these arguments. It must share containerd's PID namespace because `ctr`
    /// passes its own process id to containerd.
    #[must_use]
    pub fn ctr(&self, args: &str) -> Output {
        self.sh(&format!(
            "ctr -a {} {args}",
            SOCKET.trim_start_matches("unix://")
        ))
    }

    /// Imports an image archive.
    pub fn import(&self, archive: &std::path::Path) {
        let archive = archive.display();
        let snapshotter = self.snapshotter;
        self.ctr(&format!(
            "-n k8s.io images import --snapshotter {snapshotter} {archive}"
        ))
        .ok();
    }

    /// Runs `crictl` with these arguments.
    #[must_use]
    pub fn crictl(&self, args: &str) -> Output {
        let crictl = Lab::path("bin/crictl");
        self.node.sh(&format!(
            "{} -r {SOCKET} -i {SOCKET} -t 60s {args}",
            crictl.display()
        ))
    }

    /// Runs a pod sandbox. With `host_port`, this port of the node is mapped to port 80 of the pod.
    #[must_use]
    pub fn run_sandbox(&self, name: &str, host_port: Option<u16>) -> Sandbox {
        let path = self.write_sandbox_config(name, host_port);
        let id = self.crictl(&format!("runp {path}")).ok().trim().to_owned();
        let status = self.crictl(&format!("inspectp {id}")).json();
        let namespaces = &status["info"]["runtimeSpec"]["linux"]["namespaces"];
        let all = namespaces.as_array().expect("a sandbox has namespaces");
        let network = all.iter().find(|namespace| namespace["type"] == "network");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Sandbox {
            id,
            address: text(&status["status"]["network"]["ip"]),
            netns: network.map(|n| text(&n["path"])).unwrap_or_default(),
        }
    }

    /// Requests a pod sandbox without waiting for the response.
    pub fn begin_sandbox(&self, name: &str) {
        let path = self.write_sandbox_config(name, None);
        let begun = self.crictl(&format!("runp {path} >/run/{name}.log 2>&1 </dev/null &"));
        begun.ok();
    }

    /// Writes the configuration of a pod sandbox and returns its path.
    fn write_sandbox_config(&self, name: &str, host_port: Option<u16>) -> String {
        let ports: Vec<_> = host_port
            .iter()
            .map(|port| json!({"container_port": 80, "host_port": port}))
            .collect();
        let config = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "hostname": name,
            "log_directory": "/run/logs",
            "linux": {"cgroup_parent": "/"},
            "port_mappings": ports,
            // For lists that declare the capability `bandwidth`.
            "annotations": {
                "kubernetes.io/ingress-bandwidth": "100M",
                "kubernetes.io/egress-bandwidth": "100M",
            },
        });
        let path = format!("/run/{name}.json");
        self.node.write(&path, config.to_string());
        path
    }

    /// Stops and removes a sandbox, as kubelet does.
    pub fn remove(&self, sandbox: &Sandbox) {
        self.crictl(&format!("stopp {}", sandbox.id)).ok();
        self.crictl(&format!("rmp {}", sandbox.id)).ok();
    }

    /// Starts a web server in the sandbox that answers with `text` on port 80.
    pub fn serve(&self, sandbox: &Sandbox, name: &str, text: &str) {
        let script = format!("echo {text} >/tmp/index.html; exec httpd -f -p 80 -h /tmp");
        let config = json!({
            "metadata": {"name": "web"},
            "image": {"image": "test.local/busybox:1"},
            "command": ["/bin/sh", "-c", script],
            "log_path": "web.log",
            "linux": {},
        });
        let path = format!("/run/{name}-web.json");
        self.node.write(&path, config.to_string());
        let create = format!("create {} {path} /run/{name}.json", sandbox.id);
        let id = self.crictl(&create).ok();
        self.crictl(&format!("start {id}")).ok();
    }

    /// Runs a script in the network namespace of a sandbox.
    #[must_use]
    pub fn in_sandbox(&self, sandbox: &Sandbox, script: &str) -> Output {
        let net = format!("--net={}", sandbox.netns);
        run(self
            .node
            .command("nsenter")
            .args([&net, "sh", "-c", script]))
    }

    /// Kills containerd, as the kernel does when memory is short. With `hold`, it is not restarted
    /// before [`Self::release_hold`] is called.
    pub fn kill(&self, hold: bool) {
        if hold {
            self.node.write("/run/containerd.hold", "");
        }
        self.end("containerd");
    }

    /// Kills a supervised process by its name. The supervisor restarts it.
    pub(crate) fn end(&self, name: &str) {
        self.supervisor.end(name);
    }

    /// Runs a script in containerd's namespaces.
    #[must_use]
    pub fn sh(&self, script: &str) -> Output {
        self.supervisor.sh(script)
    }

    /// Starts a script in containerd's namespaces.
    pub(crate) fn start_script(&self, script: &str) -> Process {
        self.supervisor.start_script(script)
    }

    /// Lets the supervisor restart containerd, and waits until CRI answers.
    pub fn release_hold(&self) {
        self.node.sh("rm -f /run/containerd.hold").ok();
        self.wait_for_cri();
    }

    /// Waits until CRI answers.
    pub fn wait_for_cri(&self) {
        let log = || self.node.sh("tail -5 /run/containerd.log").stdout;
        let what = format!("CRI answers: {}", log());
        wait_for(&what, || self.crictl("version").success);
    }
}
