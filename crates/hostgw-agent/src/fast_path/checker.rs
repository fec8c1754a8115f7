//! Runs `hostgw-agent fast-path check` as a process of its own, which can have namespaces of its own.

use std::io;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::lab::CANNOT_RUN;

/// A check is not repeated sooner than this.
const INTERVAL: Duration = Duration::from_secs(30);

/// After a failure, not sooner than this.
const RETRY_INTERVAL: Duration = Duration::from_secs(600);

/// What the last check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Packets on the fast path arrive.
    Works,
    /// They do not, or the kernel has no fast path. Contains the reason.
    Fails(String),
    /// The check cannot run here. Contains the reason.
    Unknown(String),
}

/// Runs the check beside everything else.
pub(super) struct Checker {
    findings: watch::Receiver<Option<Finding>>,
    sender: watch::Sender<Option<Finding>>,
    /// When the last check started.
    started: Option<Instant>,
    is_due: bool,
}

impl Checker {
    pub(super) fn new() -> Self {
        let (sender, findings) = watch::channel(None);
        Self {
            findings,
            sender,
            started: None,
            is_due: true,
        }
    }

    /// What the last check found; `None` until the first one ended.
    pub(super) fn finding(&self) -> Option<Finding> {
        self.findings.borrow().clone()
    }

    /// Waits until a check ends, unless one ended since the last call.
    pub(super) async fn ended(&mut self) {
        let changed = self.findings.changed().await;
        changed.expect("we have the sender, too");
    }

    /// Asks for another check.
    pub(super) fn request(&mut self) {
        self.is_due = true;
    }

    /// Starts a check that is due.
    pub(super) fn poll(&mut self) {
        let is_failure = matches!(
            self.finding(),
            Some(Finding::Fails(_) | Finding::Unknown(_))
        );
        let interval = if is_failure { RETRY_INTERVAL } else { INTERVAL };
        self.is_due |= is_failure;
        let is_early = self.started.is_some_and(|at| at.elapsed() < interval);
        if !self.is_due || is_early {
            return;
        }
        self.is_due = false;
        self.started = Some(Instant::now());
        let sender = self.sender.clone();
        std::thread::spawn(move || sender.send_replace(Some(run())));
    }
}

fn run() -> Finding {
    let child = Command::new("/proc/self/exe")
        .args(["fast-path", "check", "--log-format=text"])
        .env_clear()
        .stdin(Stdio::null())
        .output();
    read(child)
}

fn read(child: io::Result<Output>) -> Finding {
    let output = match child {
        Ok(output) => output,
        Err(error) => return Finding::Unknown(format!("start the check: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim().trim_start_matches("hostgw-agent: ").to_owned();
    match output.status.code() {
        Some(0) => Finding::Works,
        Some(code) if code == i32::from(CANNOT_RUN) => Finding::Unknown(text),
        Some(_) => Finding::Fails(text),
        None => Finding::Unknown(format!("the check ended with {}", output.status)),
    }
}
