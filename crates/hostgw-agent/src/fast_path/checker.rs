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
/// The exit code of a check that failed.
const FAILS: i32 = 1;
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

/// Notes a finding. A check that cannot run says nothing new if one could before.
fn set(sender: &watch::Sender<Option<Finding>>, finding: &Finding) {
    let keeps = |known: &Option<Finding>| {
        matches!(known, Some(Finding::Works | Finding::Fails(_)))
            && matches!(finding, Finding::Unknown(_))
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
        Some(FAILS) => Finding::Fails(text),
        Some(code) if code == i32::from(CANNOT_RUN) => Finding::Unknown(text),
        _ => Finding::Unknown(format!("the check ended with {}", output.status)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn ended(status: i32) -> Finding {
        let output = Output {
            status: ExitStatus::from_raw(status),
            stdout: Vec::new(),
            stderr: b"hostgw-agent: why\n".to_vec(),
        };
        read(&output)
    }

    #[test]
    fn only_the_exit_code_of_a_failure_is_one() {
        let exit = |code: u8| ended(i32::from(code) << 8);
        assert_eq!(exit(0), Finding::Works);
        assert_eq!(exit(1), Finding::Fails("why".to_owned()));
        assert_eq!(exit(CANNOT_RUN), Finding::Unknown("why".to_owned()));
        // A panic, and the signal with which the kernel frees memory.
        assert!(matches!(exit(101), Finding::Unknown(_)));
        assert!(matches!(ended(9), Finding::Unknown(_)));
    }

    #[test]
    fn a_check_that_cannot_run_says_nothing_new() {
        let unknown = Finding::Unknown("no processes".to_owned());
        let fails = Finding::Fails("packets do not arrive".to_owned());
        let (sender, findings) = watch::channel(None);
        let after = |finding: &Finding| {
            set(&sender, finding);
            findings.borrow().clone().expect("a finding")
        };
        assert_eq!(after(&unknown), unknown);
        for known in [fails, Finding::Works] {
            assert_eq!(after(&known), known);
            assert_eq!(after(&unknown), known);
        }
    }
}
