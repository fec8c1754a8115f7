//! Runs `hostgw-agent fast-path check` as a process of its own, which can have namespaces of its own.

use std::io;
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::lab::CANNOT_RUN;

/// A check is not repeated sooner than this.
const INTERVAL: Duration = Duration::from_secs(60);
/// After a failure, not sooner than this.
const RETRY_INTERVAL: Duration = Duration::from_secs(600);
/// A check that takes longer is killed.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The result of a check.
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
    running: Option<JoinHandle<()>>,
    is_due: bool,
}

impl Checker {
    pub(super) fn new() -> Self {
        let (sender, findings) = watch::channel(None);
        Self {
            findings,
            sender,
            started: None,
            running: None,
            is_due: true,
        }
    }

    /// The result that counts now; `None` until the first check ended.
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

    /// Starts a check that is due, unless one is running.
    pub(super) fn poll(&mut self) {
        let works = matches!(self.finding(), None | Some(Finding::Works));
        let interval = if works { INTERVAL } else { RETRY_INTERVAL };
        self.is_due |= !works;
        let is_early = self.started.is_some_and(|at| at.elapsed() < interval);
        let is_running = self.running.as_ref().is_some_and(|run| !run.is_finished());
        if !self.is_due || is_early || is_running {
            return;
        }
        self.is_due = false;
        self.started = Some(Instant::now());
        let sender = self.sender.clone();
        let thread = thread::Builder::new().spawn(move || report(&sender));
        self.running = thread.ok();
        if self.running.is_none() {
            set(
                &self.sender,
                &Finding::Unknown("start the check: no thread".to_owned()),
            );
        }
    }
}

/// Runs the check. A failure counts if it happens twice.
fn report(sender: &watch::Sender<Option<Finding>>) {
    let finding = match run() {
        Finding::Fails(_) => run(),
        other => other,
    };
    set(sender, &finding);
}

/// Notes a finding. A check that cannot run says nothing new if one succeeded before.
fn set(sender: &watch::Sender<Option<Finding>>, finding: &Finding) {
    let keeps = |known: &Option<Finding>| {
        *known == Some(Finding::Works) && matches!(finding, Finding::Unknown(_))
    };
    sender.send_modify(|known| {
        if !keeps(known) {
            *known = Some(finding.clone());
        }
    });
}

fn run() -> Finding {
    let child = Command::new("/proc/self/exe")
        .args(["fast-path", "check", "--log-format=text"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    match child.and_then(wait) {
        Ok(Some(output)) => read(&output),
        Ok(None) => Finding::Unknown("the check did not end within a minute".to_owned()),
        Err(error) => Finding::Unknown(format!("start the check: {error}")),
    }
}

/// Waits for the end of the check. `None` if it was killed because it took too long.
fn wait(mut child: Child) -> io::Result<Option<Output>> {
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > TIME_LIMIT {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().map(Some)
}

fn read(output: &Output) -> Finding {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim().trim_start_matches("hostgw-agent: ").to_owned();
    match output.status.code() {
        Some(0) => Finding::Works,
        Some(code) if code == i32::from(CANNOT_RUN) => Finding::Unknown(text),
        Some(_) => Finding::Fails(text),
        None => Finding::Unknown(format!("the check ended with {}", output.status)),
    }
}
