//! The real agent in a node.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::Node;

/// A running `hostgw-agent`. Ends when it is dropped, and with the program that started it.
pub struct Agent {
    child: Child,
    log: std::path::PathBuf,
}

impl Agent {
    /// Starts `hostgw-agent run` in `node` with these arguments. Its log goes to
    /// `/run/hostgw-agent.log` there.
    #[must_use]
    pub fn start(node: &Node<'_>, args: &[&str]) -> Self {
        Self::start_in(node, &[], args)
    }

    /// The same with these variables, each a name and a value.
    #[must_use]
    pub fn start_in(node: &Node<'_>, variables: &[(&str, &str)], args: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        // The kernel ends it when this thread does, however that happens.
        command.args(["--pdeathsig", "TERM", "--"]);
        Self::spawn(node, command, variables, args)
    }

    /// The same, but it outlives this program.
    #[must_use]
    pub fn start_for_good(node: &Node<'_>, args: &[&str]) -> Self {
        let mut command = Command::new("setsid");
        command.arg("--");
        Self::spawn(node, command, &[], args)
    }

    fn spawn(
        node: &Node<'_>,
        mut command: Command,
        variables: &[(&str, &str)],
        args: &[&str],
    ) -> Self {
        node.lab()
            .install(&crate::dist().join("hostgw-agent"), "bin/hostgw-agent");
        let log = node.path("/run/hostgw-agent.log");
        let file = File::options().create(true).append(true).open(&log);
        let file = file.expect("the node's /run takes files");
        let inner = node.command("/mnt/bin/hostgw-agent");
        let child = command
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(["run", "--log-format=text"])
            .envs(variables.iter().copied())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("setpriv and setsid are part of every Debian");
        Self { child, log }
    }

    /// What it logged.
    ///
    /// # Panics
    ///
    /// When the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log was made before the agent started")
    }

    /// Waits until the log holds `text`.
    ///
    /// # Panics
    ///
    /// When it does not within fifteen seconds; shows the log.
    pub fn wait_for_log(&self, text: &str) {
        for _ in 0..1500 {
            if self.log().contains(text) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!(
            "not within 15 seconds: {text:?} in the agent's log:\n{}",
            self.log()
        );
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits for the end. Says whether it ended with 0.
    #[must_use]
    pub fn stop(mut self) -> bool {
        self.terminate()
    }

    /// Lets it go on after this program.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    fn terminate(&mut self) -> bool {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            kill_process(pid.expect("a child has an id"), Signal::TERM).ok();
        }
        for _ in 0..500 {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.success();
            }
            thread::sleep(Duration::from_millis(10));
        }
        drop(self.child.kill());
        drop(self.child.wait());
        false
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.terminate();
    }
}
