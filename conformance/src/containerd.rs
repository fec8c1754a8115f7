//! The real containerd in a node, with all that it starts.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::clients::tool;
use crate::holder::{Output, run};
use crate::{Lab, Node, Plugin, wait_for};

const SOCKET: &str = "unix:///run/containerd-test/containerd.sock";

/// A running containerd, its shims and its pods, in a PID namespace of their own: all of it ends
/// when it is dropped, and with the program that started it.
pub struct Containerd<'node> {
    node: &'node Node<'node>,
    child: Child,
    init: u32,
}

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian's.
    Debian,
    /// The one that `make tools` builds, which asks for STATUS.
    Newest,
}

/// A pod sandbox that containerd runs.
pub struct Sandbox {
    /// Its id, which is `CNI_CONTAINERID`.
    pub id: String,
    /// Its address, as the runtime reports it.
    pub address: String,
    /// Its network namespace, as the node sees it.
    pub netns: String,
}

impl<'node> Containerd<'node> {
    /// Starts containerd in `node`, with a network configuration list, and our plugin beside the
    /// reference's in `/opt/cni/bin`.
    ///
    /// # Panics
    ///
    /// When it does not start: it takes the Debian packages containerd and runc.
    #[must_use]
    pub fn start(node: &'node Node<'node>, release: Release, list: &Value) -> Self {
        let containerd = Self::bare(node, release);
        let plugin = Plugin::ours(node.lab()).0.display().to_string();
        node.sh(&format!(
            "cp {plugin} /opt/cni/bin/ && cp {plugin} /opt/cni/bin/flannel"
        ))
        .ok();
        containerd.configure(list);
        containerd
    }

    /// The same without a list and without our plugin: somebody else installs them.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn bare(node: &'node Node<'node>, release: Release) -> Self {
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
        node.sh(include_str!("containerd/node.sh")).ok();
        node.write("/run/containerd.toml", config);
        node.write("/run/supervise.sh", include_str!("containerd/supervise.sh"));
        node.write("/run/cgroups.sh", include_str!("containerd/cgroups.sh"));
        node.write("/run/enter.sh", include_str!("containerd/enter.sh"));
        let log = fs::File::create(node.path("/run/supervise.log"));
        let inner = node.command("sh");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .args([
                "/run/enter.sh",
                &format!("hostgw-{}-{}", node.name, node.pid()),
            ])
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount"])
            .args(["--propagation", "unchanged", "sh", "/run/supervise.sh"])
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the node's /run takes files"))
            .spawn()
            .expect("setpriv is part of every Debian");
        // The cgroups are made first, by processes of their own.
        let proc = format!("/proc/{0}/task/{0}", child.id());
        let mut init = 0;
        wait_for("the PID namespace of containerd", || {
            let read =
                |name: &str| fs::read_to_string(format!("{proc}/{name}")).unwrap_or_default();
            if read("comm").trim() == "unshare" {
                init = read("children").trim().parse().unwrap_or_default();
            }
            init != 0
        });
        let containerd = Self { node, child, init };
        wait_for(
            "containerd answers: are containerd and runc installed?",
            || containerd.ctr("version").success,
        );
        containerd
    }

    /// Puts another network configuration list in the place of the one that is there.
    pub fn configure(&self, list: &Value) {
        // containerd does not see what is moved there from another folder.
        self.node.write("/etc/cni/net.d/.new", list.to_string());
        let script = "cd /etc/cni/net.d && mv .new 10-test.conflist";
        self.node.sh(script).ok();
    }

    /// Makes an image of busybox, for sandboxes and containers, and waits for CRI.
    #[must_use]
    pub fn with_image(self) -> Self {
        let lab = self.node.lab();
        lab.install(&tool("crictl"), "bin/crictl");
        self.node.sh(include_str!("containerd/image.sh")).ok();
        self.import("/run/image.tar".as_ref());
        self.wait_for_cri();
        self
    }

    /// `ctr` with these arguments, as a process beside containerd: it names its own by number.
    #[must_use]
    pub fn ctr(&self, args: &str) -> Output {
        let script = format!("ctr -a {} {args}", SOCKET.trim_start_matches("unix://"));
        run(self.inside().args(["sh", "-c", &script]))
    }

    /// Has it know an image by its archive.
    pub fn import(&self, archive: &std::path::Path) {
        let archive = archive.display();
        self.ctr(&format!(
            "-n k8s.io images import --snapshotter native {archive}"
        ))
        .ok();
    }

    /// `crictl` with these arguments.
    #[must_use]
    pub fn crictl(&self, args: &str) -> Output {
        let crictl = Lab::path("bin/crictl");
        self.node.sh(&format!(
            "{} -r {SOCKET} -i {SOCKET} -t 60s {args}",
            crictl.display()
        ))
    }

    /// Runs a pod sandbox; with a port of the node's that leads to its port 80.
    #[must_use]
    pub fn run_sandbox(&self, name: &str, host_port: Option<u16>) -> Sandbox {
        let path = self.describe(name, host_port);
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

    /// Asks for a pod sandbox and does not wait for the answer.
    pub fn begin_sandbox(&self, name: &str) {
        let path = self.describe(name, None);
        let begun = self.crictl(&format!("runp {path} >/run/{name}.log 2>&1 </dev/null &"));
        begun.ok();
    }

    /// Writes the description of a pod sandbox.
    fn describe(&self, name: &str, host_port: Option<u16>) -> String {
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

    /// A web server in the sandbox, at port 80, that answers with `text`.
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

    /// Runs a script in the network of a sandbox.
    #[must_use]
    pub fn in_sandbox(&self, sandbox: &Sandbox, script: &str) -> Output {
        let net = format!("--net={}", sandbox.netns);
        run(self
            .node
            .command("nsenter")
            .args([&net, "sh", "-c", script]))
    }

    /// Kills containerd, as the kernel does when memory is short. With `hold` it is not started
    /// again before [`Self::let_go`].
    pub fn kill(&self, hold: bool) {
        if hold {
            self.node.write("/run/containerd.hold", "");
        }
        self.end("containerd");
    }

    /// Kills what is kept running beside it, by its name; it is started again.
    pub(crate) fn end(&self, name: &str) {
        self.sh(&format!("kill -9 $(cat /run/{name}.pid)")).ok();
    }

    /// Runs a script among its processes.
    #[must_use]
    pub fn sh(&self, script: &str) -> Output {
        run(self.inside().args(["sh", "-c", script]))
    }

    /// Lets it start again, and waits until it answers.
    pub fn let_go(&self) {
        self.node.sh("rm -f /run/containerd.hold").ok();
        self.wait_for_cri();
    }

    /// Waits until CRI answers.
    pub fn wait_for_cri(&self) {
        let log = || self.node.sh("tail -5 /run/containerd.log").stdout;
        let what = format!("CRI answers: {}", log());
        wait_for(&what, || self.crictl("version").success);
    }

    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        let init = self.init.to_string();
        command.args(["-t", &init, "-r", "-w", "-m", "-n", "-p", "-C", "--"]);
        command
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        // The cgroups are the machine's; those of what was killed are empty folders.
        let remove = "for own in $(cat /run/cgroups); do find $own -depth -type d -exec rmdir {} +; done 2>/dev/null; \
             for own in $(cat /run/cgroups); do test ! -e $own || exit 1; done";
        wait_for("the pods end with containerd", || {
            self.node.sh(remove).success
        });
    }
}
