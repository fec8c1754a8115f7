//! The real flanneld on a node.

use std::fs;
use std::path::PathBuf;

use crate::clients::tool;
use crate::process::{Lifetime, Process, log_file};
use crate::{Etcd, Kube, Lab, Node};

/// A running flanneld. It ends when this value is dropped, or when the program that started it
/// ends.
pub struct Flanneld {
    process: Process,
    log: PathBuf,
}

impl Flanneld {
    /// Starts flanneld on `node` with `etcd`, and with these arguments in addition to the usual
    /// ones.
    #[must_use]
    pub fn start(node: &Node<'_>, etcd: &Etcd<'_>, more: &[&str]) -> Self {
        let endpoints = format!("--etcd-endpoints={}", etcd.url());
        let has_iface = more.iter().any(|argument| argument.starts_with("--iface="));
        let iface = if has_iface { "" } else { "--iface=enp0s5" };
        let args = [&[endpoints.as_str(), iface], more].concat();
        Self::spawn(node, &args)
    }

    /// Starts flanneld with the Nodes of an API server as its store. The network configuration is
    /// the file `net-conf.json` in the shared folder.
    #[must_use]
    pub fn start_on_kube(node: &Node<'_>, kube: &Kube<'_>) -> Self {
        Self::start_on_kube_with_interface(node, kube, "enp0s5")
    }

    /// Starts flanneld on an API server, with another interface.
    #[must_use]
    pub fn start_on_kube_with_interface(node: &Node<'_>, kube: &Kube<'_>, interface: &str) -> Self {
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
        let mut command = node.command("env");
        // Programs that the test puts into `/mnt/first` come before the system's.
        command
            .arg("PATH=/mnt/first:/usr/sbin:/usr/bin:/sbin:/bin")
            .arg(format!("NODE_NAME={}", node.name))
            .arg("/mnt/bin/flanneld")
            .args(args.iter().filter(|arg| !arg.is_empty()));
        let process = Process::start(&command, Lifetime::Killed, log_file(&log));
        Self { process, log }
    }

    /// Returns its log.
    ///
    /// # Panics
    ///
    /// When the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log was created before flanneld started")
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends SIGTERM and waits up to five seconds for the process to end.
    pub fn stop(mut self) {
        self.process.terminate();
    }
}
