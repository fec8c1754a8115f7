//! A container runtime and kubelet in their own PID namespace, restarted when they are killed.

use std::fs;
use std::process::{Command, Stdio};

use crate::holder::{Output, run};
use crate::process::{Lifetime, Process, log_file};
use crate::{Node, wait_for};

/// The first process of a PID namespace, which runs a container runtime and, once
/// `/run/kubelet.hold` is removed, kubelet. All processes in the namespace end when this value is
/// dropped, or when the program that started it ends.
pub(crate) struct Supervisor<'node> {
    node: &'node Node<'node>,
    process: Process,
    init: u32,
}

impl<'node> Supervisor<'node> {
    /// Gives the node its own `/etc` and `/opt`, with the reference plugins in `/opt/cni/bin` and
    /// no network configuration list.
    pub(crate) fn prepare(node: &Node<'_>) {
        node.make_etc_private();
        node.sh(include_str!("containerd/node.sh")).ok();
        node.write("/run/supervise.sh", include_str!("containerd/supervise.sh"));
        node.write("/run/cgroups.sh", include_str!("containerd/cgroups.sh"));
        node.write("/run/enter.sh", include_str!("containerd/enter.sh"));
    }

    /// Starts the runtime: a program with its arguments, which is found in the search path `path`.
    pub(crate) fn start(node: &'node Node<'node>, path: &str, runtime: &[&str]) -> Self {
        let mut command = node.command("sh");
        command
            .args([
                "/run/enter.sh",
                &format!("hostgw-{}-{}", node.name, node.pid()),
            ])
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount"])
            .args(["--propagation", "unchanged", "sh", "/run/supervise.sh"])
            .args(runtime)
            .env("PATH", path);
        let log = log_file(&node.path("/run/supervise.log"));
        let process = Process::start(&command, Lifetime::Killed, log);
        // The cgroups are created before `unshare` runs, by other child processes, so wait for
        // `unshare` itself.
        let proc = format!("/proc/{0}/task/{0}", process.pid());
        let mut init = 0;
        wait_for("the PID namespace of the runtime", || {
            let read =
                |name: &str| fs::read_to_string(format!("{proc}/{name}")).unwrap_or_default();
            if read("comm").trim() == "unshare" {
                init = read("children").trim().parse().unwrap_or_default();
            }
            init != 0
        });
        Self {
            node,
            process,
            init,
        }
    }

    /// Kills a supervised process by its name. The supervisor restarts it.
    pub(crate) fn end(&self, name: &str) {
        self.sh(&format!("kill -9 $(cat /run/{name}.pid)")).ok();
    }

    /// Runs a script in the runtime's namespaces.
    pub(crate) fn sh(&self, script: &str) -> Output {
        run(&mut self.command(script))
    }

    /// Starts a script in the runtime's namespaces.
    pub(crate) fn start_script(&self, script: &str) -> Process {
        Process::start(&self.command(script), Lifetime::Killed, Stdio::null())
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        let init = self.init.to_string();
        command.args(["-t", &init, "-r", "-w", "-m", "-n", "-u", "-p", "-C", "--"]);
        command.args(["sh", "-c", script]);
        command
    }
}

impl Drop for Supervisor<'_> {
    fn drop(&mut self) {
        self.process.kill();
        // The cgroups belong to the machine. After the processes have been killed, they are empty
        // directories.
        let remove = "for own in $(cat /run/cgroups); do find $own -depth -type d -exec rmdir {} +; done 2>/dev/null; \
             for own in $(cat /run/cgroups); do test ! -e $own || exit 1; done";
        wait_for("the pods end together with the runtime", || {
            self.node.sh(remove).success
        });
    }
}
