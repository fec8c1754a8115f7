//! Processes: those that hold namespaces, and those that run in them and end.

use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// A process that only keeps its namespaces alive while its standard input is open.
pub(crate) struct Holder {
    child: RefCell<Child>,
}

/// How a holder sets up its root file system.
#[derive(Clone, Copy)]
pub(crate) enum Root {
    /// The existing root, with its mounts made private.
    Private,
    /// The same tree, mounted again and entered with chroot.
    Own,
}

const ENTER_OWN_ROOT: &str = "mount --rbind / /mnt && exec chroot /mnt sh \"$@\"";

impl Root {
    /// Returns the kind that works in the current environment. In a chroot, mounts cannot be made
    /// private, and iproute2 requires a root that is a mount point. If no mount is shared with
    /// other namespaces, a root of our own is enough.
    pub(crate) fn here() -> Self {
        if root_is_mount() || is_shared() {
            Self::Private
        } else {
            Self::Own
        }
    }

    /// Returns the arguments of `unshare` from the value of `--propagation` up to the shell.
    fn shell(self) -> &'static [&'static str] {
        match self {
            Self::Private => &["private", "sh"],
            Self::Own => &["unchanged", "sh", "-c", ENTER_OWN_ROOT, "sh"],
        }
    }
}

impl Holder {
    /// Runs `script` in new network, mount and UTS namespaces. `unshare` is a command that runs the
    /// program `unshare`, perhaps inside other namespaces, with the options that follow.
    pub(crate) fn start(unshare: &mut Command, root: Root, script: &str) -> Self {
        // The holder ends at the end of its input. A line of input makes it stay.
        let script =
            format!("{script} && echo ready && read line && exec sleep infinity </dev/null");
        let child = unshare
            .args(["--net", "--uts", "--mount", "--propagation"])
            .args(root.shell())
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare is installed on every Debian");
        let holder = Self {
            child: RefCell::new(child),
        };
        let stdout = holder
            .child
            .borrow_mut()
            .stdout
            .take()
            .expect("the stream is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("a pipe can be read");
        if line != "ready\n" {
            let mut child = holder.child.borrow_mut();
            drop(child.stdin.take());
            let stderr = child.stderr.take().expect("the stream is piped");
            let why = std::io::read_to_string(stderr).unwrap_or_default();
            panic!(
                "cannot create namespaces; this requires root and the Debian package iproute2 (`make packages`): {why}"
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

    /// Returns a command that runs in the holder's namespaces, which are named by nsenter's
    /// options. The caller adds the program.
    pub(crate) fn enter(&self, namespaces: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        // With `-r` for the root: in a chroot, entering only the mount namespace would leave the
        // chroot.
        command
            .args(["-t", &self.pid().to_string(), "-r", "-w"])
            .args(namespaces)
            .arg("--");
        command
    }

    pub(crate) fn keep(&self) {
        let mut child = self.child.borrow_mut();
        let mut stdin = child.stdin.take().expect("the stream is piped");
        stdin.write_all(b"keep\n").expect("the holder reads");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut child = self.child.borrow_mut();
        // Without standard input, the holder was asked to stay.
        if child.stdin.take().is_some() {
            drop(child.wait());
        }
    }
}

/// Returns true if our root is a mount point. It is not in a chroot.
fn root_is_mount() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some("/"))
}

/// Returns true if mounts made here would appear in other namespaces.
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

/// Output and exit status of a program.
#[derive(Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// True if the program exited with 0.
    pub success: bool,
    command: String,
}

impl Output {
    /// Returns the standard output of a program that must succeed.
    ///
    /// # Panics
    ///
    /// If it failed; the message includes its output.
    pub fn ok(self) -> String {
        assert!(
            self.success,
            "{}: {}{}",
            self.command, self.stdout, self.stderr
        );
        self.stdout
    }

    /// Parses standard output as JSON.
    #[must_use]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}
