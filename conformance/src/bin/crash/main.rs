//! The crash test: kills a request before and after each of its system calls, and makes each call
//! fail with every error that matters, one at a time. Whatever happens, the outcome must obey the
//! same rules.
//!
//! The calls are taken from strace of a real request, so new calls are covered automatically.
//! `--tenth` tries a fixed tenth of all points. With a word, only the scenarios are tried whose name
//! contains it: `crash Ports`, `crash 'GC Masquerade'`.

mod point;
mod scenario;
mod trial;

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use conformance::Lab;

use crate::scenario::Scenario;
use crate::trial::Tally;

/// More workers than processors, because a point mostly waits for the kernel to delete links.
const WORKERS: usize = 6;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["worker", worker, every, only] => {
            let number = |text: &str| text.parse().expect("a number");
            work(number(worker), number(every), only);
            ExitCode::SUCCESS
        }
        [] => supervise(1, ""),
        ["--tenth"] => supervise(10, ""),
        ["--tenth", only] => supervise(10, only),
        [only] if !only.starts_with('-') => supervise(1, only),
        _ => {
            eprintln!("usage: crash [--tenth] [PART OF A SCENARIO'S NAME]");
            ExitCode::FAILURE
        }
    }
}

/// Tries every `every`th point, with each worker in its own node.
fn supervise(every: usize, only: &str) -> ExitCode {
    let begin = Instant::now();
    let lab = Lab::new();
    lab.install(&conformance::dist().join("cni-hostgw"), "bin/cni-hostgw");
    // The real host-local, under another name so that our plugin delegates to it. Debian's release
    // does not support 1.1.0, the version with GC.
    let host_local = conformance::reference().join("host-local");
    let script = format!(
        "#!/bin/sh\ncase $CNI_COMMAND in GC|STATUS) exit 0;; esac\n\
         sed 's/\"cniVersion\":\"1.1.0\"/\"cniVersion\":\"1.0.0\"/g' | {}\n",
        host_local.display()
    );
    lab.write("bin/other-ipam", script);
    lab.make_executable("bin/other-ipam");
    let this = env::current_exe().expect("the process is running");
    let names: Vec<_> = (0..WORKERS).map(|i| format!("n{i}")).collect();
    let nodes: Vec<_> = names.iter().map(|name| lab.node(name, &[])).collect();
    let tallies: Vec<_> = thread::scope(|scope| {
        let start = |(i, node): (usize, &conformance::Node<'_>)| {
            let arguments = ["worker", &i.to_string(), &every.to_string(), only];
            let arguments = arguments.map(str::to_owned);
            let child = node
                .command(Path::new(&this))
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("nsenter is part of every Debian");
            scope.spawn(move || child.wait_with_output().expect("a child can be waited for"))
        };
        let running: Vec<_> = nodes.iter().enumerate().map(start).collect();
        let outputs = running.into_iter().map(thread::ScopedJoinHandle::join);
        outputs
            .map(|output| {
                let output = output.expect("the thread does not panic");
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success(), "a worker failed: {text}");
                Tally::parse(&text)
            })
            .collect()
    });
    let total = tallies.into_iter().fold(Tally::default(), Tally::and);
    total.print(begin.elapsed());
    if total.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Tries this worker's share of the points, in the current node.
fn work(worker: usize, every: usize, only: &str) {
    assert!(
        Command::new("strace").arg("-V").output().is_ok(),
        "strace is missing: run `make packages` as root first"
    );
    let mut tally = Tally::default();
    let mut scenarios = Scenario::all();
    scenarios.retain(|scenario| scenario.name().contains(only));
    for scenario in scenarios {
        trial::run(&scenario, (worker, WORKERS), every, &mut tally);
    }
    tally.write();
}
