//! The real flanneld on a node.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::clients::tool;
use crate::{Etcd, Kube, Lab, Node};

/// A running flanneld. Ends when it is dropped, and with the program that started it.
pub struct Flanneld {
    child: Child,
    log: PathBuf,
}

impl Flanneld {
    /// Starts it in `node` on `etcd`, with these arguments beside the usual ones.
    #[must_use]
    pub fn start(node: &Node<'_>, etcd: &Etcd<'_>, more: &[&str]) -> Self {
        let endpoints = format!("--etcd-endpoints={}", etcd.url());
        let is_told = more.iter().any(|argument| argument.starts_with("--iface="));
        let iface = if is_told { "" } else { "--iface=enp0s5" };
        let args = [&[endpoints.as_str(), iface], more].concat();
        Self::spawn(node, &args)
    }

    /// The same on the Nodes of an API server; the network's configuration is in the shared folder's
    /// `net-conf.json`.
    #[must_use]
    pub fn start_on_kube(node: &Node<'_>, kube: &Kube<'_>) -> Self {
        Self::start_on_kube_by(node, kube, "enp0s5")
    }

    /// The same by another interface.
    #[must_use]
    pub fn start_on_kube_by(node: &Node<'_>, kube: &Kube<'_>, interface: &str) -> Self {
        let iface = format!("--iface={interface}");
        let kubeconfig = format!("--kubeconfig-file={}", kube.admin());
        let net_conf = format!("--net-config-path={}", Lab::path("net-conf.json").display());
        let args = [
            "--kube-subnet-mgr",
            &kubeconfig,
            &net_conf,
            &iface,
            "--ip-masq",
        ];
        Self::spawn(node, &args)
    }

    fn spawn(node: &Node<'_>, args: &[&str]) -> Self {
        node.lab().install(&tool("flanneld"), "bin/flanneld");
        let log = node.path("/run/flanneld.log");
        let file = File::options().create(true).append(true).open(&log);
        let inner = node.command("env");
        // Where the test put programs of its own, they come first.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .arg("PATH=/mnt/first:/usr/sbin:/usr/bin:/sbin:/bin")
            .arg(format!("NODE_NAME={}", node.name))
            .arg("/mnt/bin/flanneld")
            .args(args.iter().filter(|arg| !arg.is_empty()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file.expect("the node's /run takes files"))
            .spawn()
            .expect("setpriv is part of every Debian");
        Self { child, log }
    }

    /// What it logged.
    ///
    /// # Panics
    ///
    /// When the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log was made before it started")
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child has an id"), Signal::TERM).ok();
        for _ in 0..500 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
