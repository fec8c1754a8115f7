//! What a contender does, and not how long it takes.

use std::fs;

use crate::contender::Contender;

/// Where the trace goes.
const TRACE: &str = "/run/trace";

/// System calls, netlink requests and processes of one ADD, as strace sees them.
pub(crate) fn counts(contender: &Contender) -> [(&'static str, usize); 3] {
    contender.call_under(&["strace", "-f", "-qq", "-o", TRACE], "ADD", 0);
    contender.call("DEL", 0);
    let trace = fs::read_to_string(TRACE).expect("strace wrote it");
    // A call that was interrupted by another thread's is on two lines.
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

/// The most memory that one ADD had at a time, in bytes.
pub(crate) fn peak(contender: &Contender) -> u64 {
    let said = contender.call_under(&["/usr/bin/time", "-v"], "ADD", 0);
    contender.call("DEL", 0);
    let kilobytes = said
        .lines()
        .find_map(|line| {
            line.trim()
                .strip_prefix("Maximum resident set size (kbytes): ")
        })
        .and_then(|number| number.parse::<u64>().ok());
    kilobytes.expect("GNU time tells it") * 1024
}
