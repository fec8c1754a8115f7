//! Processes that a test starts, and waiting for what they do.

use std::fs::File;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Starts a command again and again. All of its processes end with the shell.
const RESTARTING: &str = "while true; do setpriv --pdeathsig KILL -- timeout -s KILL 25 setpriv --pdeathsig KILL -- \"$@\"; \
     echo restarted >&2; done";

/// When a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Together with the thread that started it, however that ends: the kernel sends SIGTERM.
    Terminated,
    /// The same with SIGKILL.
    Killed,
    /// The same, but it is killed every 25 seconds, and started again. That is noted on standard error.
    Restarting,
    /// It outlives this program, once [`Process::detach`] is called.
    Detached,
}

impl Lifetime {
    /// The program and its arguments that give the process this lifetime.
    fn wrapper(self) -> &'static [&'static str] {
        match self {
            Self::Terminated => &["setpriv", "--pdeathsig", "TERM", "--"],
            Self::Killed => &["setpriv", "--pdeathsig", "KILL", "--"],
            Self::Restarting => &[
                "setpriv",
                "--pdeathsig",
                "KILL",
                "--",
                "sh",
                "-c",
                RESTARTING,
                "sh",
            ],
            Self::Detached => &["setsid", "--"],
        }
    }
}

/// A running process. It ends when this value is dropped.
pub(crate) struct Process {
    child: Child,
    lifetime: Lifetime,
}

impl Process {
    /// Starts a command with its arguments and environment variables. Its standard error goes to
    /// `stderr`, and its standard output is discarded.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub(crate) fn start(command: &Command, lifetime: Lifetime, stderr: impl Into<Stdio>) -> Self {
        let [wrapper, arguments @ ..] = lifetime.wrapper() else {
            unreachable!("each lifetime has a program");
        };
        let variables = command.get_envs();
        let variables = variables.filter_map(|(name, value)| Some((name, value?)));
        let child = Command::new(wrapper)
            .args(arguments)
            .arg(command.get_program())
            .args(command.get_args())
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("setpriv and setsid are installed on every Debian");
        Self { child, lifetime }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its standard error, if that is piped and was not taken before.
    pub(crate) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Lets the process run on after this program ends.
    pub(crate) fn detach(self) {
        std::mem::forget(self);
    }

    /// Stops the process with SIGSTOP, as on a machine that hangs, or continues it.
    pub(crate) fn freeze(&self, is_frozen: bool) {
        self.signal(if is_frozen {
            Signal::STOP
        } else {
            Signal::CONT
        });
    }

    /// Kills the process, as a crash would, and waits for its end.
    pub(crate) fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Sends SIGTERM, and waits up to five seconds for the process to end. Then it is killed, and
    /// the result is `None`.
    pub(crate) fn terminate(&mut self) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        self.signal(Signal::TERM);
        let mut status = None;
        let ended = poll(Duration::from_secs(5), || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        if ended.is_none() {
            self.kill();
        }
        status
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child process has an id"), signal).ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        match self.lifetime {
            Lifetime::Terminated => drop(self.terminate()),
            Lifetime::Killed | Lifetime::Restarting | Lifetime::Detached => self.kill(),
        }
    }
}

/// Opens a log file, to which a process appends.
///
/// # Panics
///
/// If it is not writable.
pub(crate) fn log_file(path: &Path) -> File {
    let file = File::options().create(true).append(true).open(path);
    file.expect("the node's /run is writable")
}

/// Polls a condition until it holds. Returns how long that took, or `None` after `timeout`. At first
/// it polls every 2 ms, and less often later.
pub fn poll(timeout: Duration, mut condition: impl FnMut() -> bool) -> Option<Duration> {
    let begin = Instant::now();
    while !condition() {
        let elapsed = begin.elapsed();
        if elapsed >= timeout {
            return None;
        }
        sleep((elapsed / 20).clamp(Duration::from_millis(2), Duration::from_millis(100)));
    }
    Some(begin.elapsed())
}

/// Waits until a condition holds, and returns how long that took. `what` describes the condition.
///
/// # Panics
///
/// If the condition does not hold within `timeout`.
#[track_caller]
pub fn wait_within(what: &str, timeout: Duration, condition: impl FnMut() -> bool) -> Duration {
    match poll(timeout, condition) {
        Some(took) => took,
        None => panic!("not within {timeout:?}: {what}"),
    }
}

/// Waits until a condition holds, for at most ten seconds.
///
/// # Panics
///
/// If the condition does not hold by then.
#[track_caller]
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) -> Duration {
    wait_within(what, Duration::from_secs(10), condition)
}
