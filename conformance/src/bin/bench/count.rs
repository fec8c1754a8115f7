//! Counts the system calls and memory of a contender, not its time.

use std::fs;

use crate::contender::Contender;

/// File of the trace.
const TRACE: &str = "/run/trace";

/// Counts the system calls, netlink requests and processes of one ADD with strace.
pub(crate) fn counts(contender: &Contender) -> [(&'static str, usize); 3] {
    contender.call_under(&["strace", "-f", "-qq", "-o", TRACE], "ADD", 0);
    contender.call("DEL", 0);
    let trace = fs::read_to_string(TRACE).expect("strace wrote it");
    // A call that was interrupted by another thread's call is on two lines.
    let is_begun = |line: &&str| !line.contains(" resumed>") && !line.contains(" +++ ");
    let calls: Vec<_> = trace.lines().filter(is_begun).collect();
    let sends = calls.iter().filter(|line| {
        line.contains(" sendto(") || line.contains(" sendmsg(") || line.contains(" write(")
    });
    let requests = sends.map(|line| line.matches("nlmsg_len=").count()).sum();
    let started = |line: &&str| line.contains("execve") && line.trim_end().ends_with("= 0");
    let processes = trace.lines().filter(started).count();
    [
        ("system calls", calls.len()),
        ("netlink requests", requests),
        ("processes", processes),
    ]
}

/// Returns the peak resident memory of one ADD in bytes.
pub(crate) fn peak(contender: &Contender) -> u64 {
    let output = contender.call_under(&["/usr/bin/time", "-v"], "ADD", 0);
    contender.call("DEL", 0);
    let kilobytes = output
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("Maximum resident set size (kbytes): ")
        })
        .and_then(|number| number.parse::<u64>().ok());
    kilobytes.expect("GNU time prints the maximum resident set size") * 1024
}
