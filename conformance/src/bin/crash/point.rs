//! Points: what happens to a request, at which of its system calls.

use std::collections::BTreeMap;
use std::fs;

/// A fault at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed, and the call not made.
    Kill,
    /// The call fails with this error, and is not made.
    Error(&'static str),
}

/// A fault at the `nth` call of this name, counted from the start of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) call: String,
    pub(crate) nth: usize,
    pub(crate) fault: Fault,
}

/// The errors that calls fail with.
const ERRORS: [&str; 8] = [
    "EIO", "ENOSPC", "EMFILE", "ENOMEM", "EPERM", "EINTR", "EAGAIN", "ENOBUFS",
];

/// Calls that are the process's own affair: its memory, its signals, its end. What they fail with
/// nobody could answer: the standard library gives up where there is no memory.
const OWN_AFFAIR: [&str; 14] = [
    "brk",
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "rt_sigaction",
    "rt_sigprocmask",
    "sigaltstack",
    "exit_group",
    "getrandom",
    "gettid",
    "getpid",
    "futex",
];

/// A file is closed whatever the kernel says, and of a directory it says nothing: the standard
/// library panics there.
const NEVER_FAILS: &str = "close";

/// Calls that only ask: they fail with two errors. A call that changes something fails with each.
const ASKING: [&str; 11] = [
    "fcntl",
    "fstat",
    "newfstatat",
    "statx",
    "stat",
    "lstat",
    "lseek",
    "read",
    "clock_nanosleep",
    "readlink",
    "getsockname",
];

impl Point {
    /// All points of a request, from strace's list of the calls that it made. What comes before its
    /// standard input is read is the start of a process, and not ours.
    pub(crate) fn all(trace: &str) -> Vec<Self> {
        let text = fs::read_to_string(trace).expect("strace wrote it");
        let mut counts = BTreeMap::<&str, usize>::new();
        let mut calls = Vec::new();
        let mut has_begun = false;
        for line in text.lines() {
            let Some((name, rest)) = line.split_once('(') else {
                continue;
            };
            if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                continue;
            }
            let nth = counts.entry(name).or_default();
            *nth += 1;
            has_begun |= name == "read" && rest.starts_with("0,");
            if has_begun && !OWN_AFFAIR.contains(&name) {
                calls.push((name.to_owned(), *nth));
            }
        }
        let mut points = Vec::new();
        for (call, nth) in calls {
            let point = |fault| Self {
                call: call.clone(),
                nth,
                fault,
            };
            // Killed before this one is killed after the one before.
            points.push(point(Fault::Kill));
            let errors = if call == NEVER_FAILS {
                &[][..]
            } else if ASKING.contains(&call.as_str()) {
                &["EIO", "EINTR"][..]
            } else {
                &ERRORS
            };
            points.extend(errors.iter().map(|error| point(Fault::Error(error))));
        }
        points
    }

    /// strace's words for it.
    pub(crate) fn injection(&self) -> String {
        let what = match self.fault {
            Fault::Kill => "signal=KILL".to_owned(),
            Fault::Error(error) => format!("error={error}"),
        };
        format!("inject={}:{what}:when={}", self.call, self.nth)
    }

    /// Whether the request must succeed in spite of the fault.
    pub(crate) fn must_succeed(&self) -> bool {
        // A signal may interrupt every call that waits.
        let waits = [
            "flock",
            "fstatfs",
            "setns",
            "sendto",
            "recvfrom",
            "getdents64",
            "poll",
            "read",
            "write",
            "openat",
            "wait4",
        ];
        self.fault == Fault::Error("EINTR") && waits.contains(&self.call.as_str())
    }
}
