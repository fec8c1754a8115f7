//! Processes: those that hold namespaces, and those that run in them and end.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// A process that does nothing but keep its namespaces alive while its standard input is open.
pub(crate) struct Holder {
    child: RefCell<Child>,
}

/// The root that a holder's mounts hang on.
#[derive(Clone, Copy)]
pub(crate) enum Root {
    /// The one that is there, its mounts made private.
    Private,
    /// The same tree mounted anew, and entered.
    Own,
}

const ENTER_OWN_ROOT: &str = "mount --rbind / /mnt && exec chroot /mnt sh \"$@\"";

impl Root {
    /// What fits where we run. In a chroot, mounts cannot be made private, and iproute2 wants a
    /// root that is one; where nothing is shared, a root of our own will do.
    pub(crate) fn here() -> Self {
        if root_is_mount() || is_shared() {
            Self::Private
        } else {
            Self::Own
        }
    }

    /// What follows unshare's `--propagation`, up to the shell.
    fn shell(self) -> &'static [&'static str] {
        match self {
            Self::Private => &["private", "sh"],
            Self::Own => &["unchanged", "sh", "-c", ENTER_OWN_ROOT, "sh"],
        }
    }
}

impl Holder {
    /// Runs `script` in new namespaces for network and mounts. `unshare` runs the program of
    /// that name with the options that follow, perhaps inside other namespaces.
    pub(crate) fn start(unshare: &mut Command, root: Root, script: &str) -> Self {
        // End of input ends it; a line of input makes it stay.
        let script =
            format!("{script} && echo ready && read line && exec sleep infinity </dev/null");
        let child = unshare
            .args(["--net", "--mount", "--propagation"])
            .args(root.shell())
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare is part of every Debian");
        let holder = Self {
            child: RefCell::new(child),
        };
        let stdout = holder
            .child
            .borrow_mut()
            .stdout
            .take()
            .expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("a pipe can be read");
        if line != "ready\n" {
            let mut child = holder.child.borrow_mut();
            drop(child.stdin.take());
            let stderr = child.stderr.take().expect("it is piped");
            let why = std::io::read_to_string(stderr).unwrap_or_default();
            panic!(
                "cannot make namespaces, which takes root and the Debian package iproute2 (`make packages`): {why}"
            );
        }
        holder
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.borrow().id()
    }

    pub(crate) fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid()))
    }

    /// A command that runs in the holder's namespaces, as named by nsenter's options. It ends
    /// when we do.
    pub(crate) fn enter(&self, namespaces: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        // With its root: in a chroot, entering the mounts alone would leave it.
        command
            .args(["-t", &self.pid().to_string(), "-r", "-w"])
            .args(namespaces)
            .arg("--");
        command
    }

    pub(crate) fn keep(&self) {
        let mut child = self.child.borrow_mut();
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(b"keep\n").expect("the holder reads");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut child = self.child.borrow_mut();
        // Without a standard input it was told to stay.
        if child.stdin.take().is_some() {
            drop(child.wait());
        }
    }
}

/// Whether our root is a mount, as it is but in a chroot.
fn root_is_mount() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some("/"))
}

/// Whether other namespaces would see what is mounted here.
fn is_shared() -> bool {
    let is_shared = |path| fs::read_to_string(path).is_ok_and(|text| text.contains(" shared:"));
    ["/proc/self/mountinfo", "/proc/1/mountinfo"]
        .into_iter()
        .any(is_shared)
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    let text = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{text}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let signal = output
        .status
        .signal()
        .map(|signal| format!(" (signal {signal})"));
    Output {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: stderr + &signal.unwrap_or_default(),
        success: output.status.success(),
        command: text,
    }
}

/// What a program printed, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether it ended with 0.
    pub success: bool,
    command: String,
}

impl Output {
    /// Standard output of a program that must succeed.
    ///
    /// # Panics
    ///
    /// When it did not, with all it printed.
    pub fn ok(self) -> String {
        assert!(
            self.success,
            "{}: {}{}",
            self.command, self.stdout, self.stderr
        );
        self.stdout
    }

    /// Standard output as JSON.
    #[must_use]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}
