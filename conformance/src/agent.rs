//! The real agent on a node.

use std::fs;
use std::time::Duration;

use crate::Node;
use crate::process::{Lifetime, Process, log_file, poll};

/// A running `hostgw-agent`. It ends when this value is dropped, or when the program that started
/// it ends.
pub struct Agent {
    process: Process,
    log: std::path::PathBuf,
}

impl Agent {
    /// Starts `hostgw-agent run` on `node` with these arguments. Its log goes to
    /// `/run/hostgw-agent.log` there.
    #[must_use]
    pub fn start(node: &Node<'_>, args: &[&str]) -> Self {
        Self::start_with_env(node, &[], args)
    }

    /// Starts the agent with these environment variables, each a name and a value.
    #[must_use]
    pub fn start_with_env(node: &Node<'_>, variables: &[(&str, &str)], args: &[&str]) -> Self {
        Self::spawn(node, Lifetime::Terminated, variables, args)
    }

    /// Starts an agent that outlives this program.
    #[must_use]
    pub fn start_detached(node: &Node<'_>, args: &[&str]) -> Self {
        Self::spawn(node, Lifetime::Detached, &[], args)
    }

    fn spawn(
        node: &Node<'_>,
        lifetime: Lifetime,
        variables: &[(&str, &str)],
        args: &[&str],
    ) -> Self {
        node.lab()
            .install(&crate::dist().join("hostgw-agent"), "bin/hostgw-agent");
        let log = node.path("/run/hostgw-agent.log");
        let mut command = node.command("/mnt/bin/hostgw-agent");
        command
            .args(["run", "--log-format=text"])
            .args(args)
            .envs(variables.iter().copied());
        let process = Process::start(&command, lifetime, log_file(&log));
        Self { process, log }
    }

    /// Returns its log.
    ///
    /// # Panics
    ///
    /// When the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log was created before the agent started")
    }

    /// Waits until the log contains `text`.
    ///
    /// # Panics
    ///
    /// If it does not within twenty seconds; the message includes the log.
    pub fn wait_for_log(&self, text: &str) {
        let found = poll(Duration::from_secs(20), || self.log().contains(text));
        assert!(
            found.is_some(),
            "not within 20 seconds: {text:?} in the agent's log:\n{}",
            self.log()
        );
    }

    /// Returns its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the CPU time that it has used.
    ///
    /// # Panics
    ///
    /// If it does not run any more.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/schedstat", self.pid());
        let text = fs::read_to_string(path).expect("the agent is running");
        let nanos = text
            .split(' ')
            .next()
            .and_then(|number| number.parse().ok());
        Duration::from_nanos(nanos.expect("the first number is the CPU time"))
    }

    /// Returns the most memory that it has used, in KiB.
    ///
    /// # Panics
    ///
    /// If it does not run any more.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let text = fs::read_to_string(path).expect("the agent is running");
        let line = text.lines().find(|line| line.starts_with("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        number.expect("the kernel shows KiB")
    }

    /// Sends SIGTERM and waits for the process to end. Returns true if it exited with 0.
    #[must_use]
    pub fn stop(mut self) -> bool {
        self.process
            .terminate()
            .is_some_and(|status| status.success())
    }

    /// Lets the agent run on after this program ends.
    pub fn detach(self) {
        self.process.detach();
    }
}
