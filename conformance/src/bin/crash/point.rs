//! Points: a fault at one system call of a request.

use std::collections::BTreeMap;
use std::fs;

/// A fault at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed before the call is executed.
    Kill,
    /// The call is not executed and fails with this error.
    Error(&'static str),
}

/// A fault at the `nth` call of this name, counted from the start of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) call: String,
    pub(crate) nth: usize,
    pub(crate) fault: Fault,
}

/// Errors with which calls fail.
const ERRORS: [&str; 8] = [
    "EIO", "ENOSPC", "EMFILE", "ENOMEM", "EPERM", "EINTR", "EAGAIN", "ENOBUFS",
];

/// Calls about the process itself: its memory, its signals, its end. The plugin cannot handle their
/// failure: the standard library aborts without memory.
const PROCESS_CALLS: [&str; 14] = [
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

/// The kernel closes the file even if `close` fails, and for directories the standard library
/// panics on such a failure.
const NEVER_FAILS: &str = "close";

/// Calls that only read: they fail with two errors. A call that changes something fails with all
/// errors.
const READ_ONLY_CALLS: [&str; 11] = [
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
    /// Returns all points of a request, from strace's list of its calls. Calls before the first
    /// read of standard input belong to the start of a process, and are left out.
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
            if has_begun && !PROCESS_CALLS.contains(&name) {
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
            // A kill before this call is also a kill after the previous call.
            points.push(point(Fault::Kill));
            let errors = if call == NEVER_FAILS {
                &[][..]
            } else if READ_ONLY_CALLS.contains(&call.as_str()) {
                &["EIO", "EINTR"][..]
            } else {
                &ERRORS
            };
            points.extend(errors.iter().map(|error| point(Fault::Error(error))));
        }
        points
    }

    /// Returns the fault as an argument for strace.
    pub(crate) fn injection(&self) -> String {
        let what = match self.fault {
            Fault::Kill => "signal=KILL".to_owned(),
            Fault::Error(error) => format!("error={error}"),
        };
        format!("inject={}:{what}:when={}", self.call, self.nth)
    }

    /// Returns true if the request must succeed in spite of the fault.
    pub(crate) fn must_succeed(&self) -> bool {
        // A signal may interrupt any call that waits.
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
