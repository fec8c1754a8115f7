//! The real CRI-O on a node.

use serde_json::{Value, json};

use crate::clients::tool;
use crate::holder::Output;
use crate::kubelet::BUSYBOX;
use crate::process::Process;
use crate::supervisor::Supervisor;
use crate::{Node, Plugin, wait_for};

/// URL of the socket of CRI.
pub(crate) const SOCKET: &str = "unix:///run/crio/crio.sock";

/// A running CRI-O with its pods, in their own PID namespace. All of them end when this value is
/// dropped, or when the program that started it ends.
pub struct Crio<'node> {
    node: &'node Node<'node>,
    supervisor: Supervisor<'node>,
}

impl<'node> Crio<'node> {
    /// Starts CRI-O on `node` with a network configuration list, which is the file `name` in
    /// `/etc/cni/net.d`. Our plugin is in `/opt/cni/bin` as `cni-hostgw` and as `bridge`.
    ///
    /// # Panics
    ///
    /// If CRI-O does not start; it requires the Debian packages conmon, runc and buildah.
    #[must_use]
    pub fn start(node: &'node Node<'node>, name: &str, list: &Value) -> Self {
        Self::prepare(node, BUSYBOX);
        let plugin = Plugin::ours(node.lab()).0.display().to_string();
        node.sh(&format!(
            "cd /opt/cni/bin && rm bridge && cp {plugin} cni-hostgw && cp {plugin} bridge"
        ))
        .ok();
        node.write(&format!("/etc/cni/net.d/{name}"), list.to_string());
        node.sh(include_str!("containerd/image.sh")).ok();
        pull(node, "/run/image.tar");
        let crio = Self::run(node);
        crio.wait();
        crio
    }

    /// Starts CRI-O for kubelet, with the image `pause` for sandboxes and these image archives, each
    /// a path, or a path and the name of one image in it after a colon. Somebody else installs the
    /// plugin and its list.
    pub(crate) fn start_for_kubernetes(
        node: &'node Node<'node>,
        pause: &str,
        archives: &[String],
    ) -> Self {
        Self::prepare(node, pause);
        for archive in archives {
            pull(node, archive);
        }
        let crio = Self::run(node);
        wait_for("CRI-O answers", || crio.crictl("version").success);
        crio
    }

    /// Installs CRI-O and its configuration.
    fn prepare(node: &Node<'_>, pause: &str) {
        let lab = node.lab();
        for program in ["crio", "pinns", "crictl"] {
            lab.install(&tool(program), &format!("bin/{program}"));
        }
        lab.write("bin/runc-for-crio", include_str!("crio/runc.sh"));
        lab.make_executable("bin/runc-for-crio");
        Supervisor::prepare(node);
        let config = include_str!("crio/crio.conf").replace(BUSYBOX, pause);
        node.write("/etc/crio/crio.conf", config);
    }

    /// Starts a script in CRI-O's namespaces.
    pub(crate) fn start_script(&self, script: &str) -> Process {
        self.supervisor.start_script(script)
    }

    fn run(node: &'node Node<'node>) -> Self {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let supervisor = Supervisor::start(node, path, &["crio", "/mnt/bin/crio"]);
        Self { node, supervisor }
    }

    /// Waits until CRI-O and its network are ready.
    pub fn wait(&self) {
        wait_for("CRI-O's network is ready", || {
            let info = self.crictl("info");
            info.success && {
                let info = info.json();
                let conditions = info["status"]["conditions"].as_array();
                conditions.is_some_and(|all| all.iter().all(|one| one["status"] == true))
            }
        });
    }

    /// Kills CRI-O, as a crash would, and waits until it has been restarted.
    pub fn restart(&self) {
        self.supervisor.end("crio");
        self.wait();
    }

    /// Ends CRI-O and all its pods and empties `/run/netns`, as a boot does, and starts it again.
    #[must_use]
    pub fn boot(self) -> Self {
        let node = self.node;
        drop(self);
        node.sh(
            "for mount in $(cut -d ' ' -f 5 /proc/self/mountinfo | grep -E '^/run/(netns|utsns|ipcns|crio|containers)/' | sort -r); do umount -l $mount; done; \
             rm -rf /run/netns/* /run/utsns /run/ipcns /run/crio /run/containers",
        )
        .ok();
        let crio = Self::run(node);
        crio.wait();
        crio
    }

    /// Runs `crictl` with these arguments.
    #[must_use]
    pub fn crictl(&self, args: &str) -> Output {
        self.node.sh(&format!(
            "/mnt/bin/crictl -r {SOCKET} -i {SOCKET} -t 60s {args}"
        ))
    }

    /// Runs a pod sandbox whose container answers with its name on port 80. With `host_port`, this
    /// port of the node is mapped to it. Returns its id and its addresses.
    #[must_use]
    pub fn run_pod(&self, name: &str, host_port: Option<u16>) -> (String, Vec<String>) {
        let ports: Vec<_> = host_port
            .iter()
            .map(|port| json!({"container_port": 80, "host_port": port}))
            .collect();
        // Pods without a PID namespace of their own need no pause process.
        let namespaces = json!({"namespace_options": {"pid": 1}});
        let sandbox = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "hostname": name, "log_directory": "/run/logs", "port_mappings": ports,
            "linux": {"cgroup_parent": "/", "security_context": namespaces},
        });
        let script = format!("echo {name} >/tmp/index.html; exec httpd -f -p 80 -h /tmp");
        let container = json!({
            "metadata": {"name": "web"}, "image": {"image": BUSYBOX},
            "command": ["/bin/sh", "-c", script], "log_path": "web.log",
            "linux": {"security_context": namespaces},
        });
        let file = |kind: &str| format!("/run/{name}-{kind}.json");
        self.node.write(&file("pod"), sandbox.to_string());
        self.node.write(&file("container"), container.to_string());
        let id = self.crictl(&format!("runp {}", file("pod"))).ok();
        let id = id.trim().to_owned();
        let create = format!("create {id} {} {}", file("container"), file("pod"));
        let web = self.crictl(&create).ok();
        self.crictl(&format!("start {web}")).ok();
        let addresses = self.addresses(&id);
        (id, addresses)
    }

    /// Returns the addresses that CRI-O reports for a pod sandbox.
    #[must_use]
    pub fn addresses(&self, id: &str) -> Vec<String> {
        let status = self.crictl(&format!("inspectp {id}")).json();
        let network = &status["status"]["network"];
        let more = network["additionalIps"].as_array().into_iter().flatten();
        let all = [&network["ip"]]
            .into_iter()
            .chain(more.map(|more| &more["ip"]));
        let all = all.filter_map(|address| address.as_str());
        all.filter(|address| !address.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Stops and removes a pod sandbox.
    pub fn remove(&self, id: &str) {
        // CRI-O would wait for the end of the container after DEL.
        self.crictl(&format!(
            "stop -t 0 $(/mnt/bin/crictl -r {SOCKET} ps -q --pod {id})"
        ))
        .ok();
        self.crictl(&format!("stopp {id}")).ok();
        self.crictl(&format!("rmp {id}")).ok();
    }
}

/// Imports an image from an archive into the storage of CRI-O.
fn pull(node: &Node<'_>, archive: &str) {
    node.sh(&format!(
        "buildah --root /var/lib/containers/storage --runroot /run/containers/storage \
         --storage-driver overlay pull -q oci-archive:{archive}"
    ))
    .ok();
}
