//! The long run: workers add, delete, check and collect attachments in one small range, at random,
//! for as long as wanted. Requests are killed, the reference plugins use the same store, and the
//! node's subnet file changes. The outcome is compared with a model.
//!
//! `soak --minutes N --seed S`: with the same seed, every worker chooses the same operations,
//! though not at the same moments.

mod model;
mod worker;

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use conformance::Lab;

use crate::model::World;
use crate::worker::Worker;

/// More workers than processors, because a DEL mostly waits for the kernel.
const WORKERS: usize = 8;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["inside", minutes, seed] => inside(number(minutes), number(seed)),
        ["--minutes", minutes, "--seed", seed] => supervise(minutes, seed),
        _ => {
            eprintln!("usage: soak --minutes N --seed S");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u64 {
    let parsed = text.parse();
    parsed.unwrap_or_else(|_| panic!("{text:?} is not a whole number"))
}

/// Runs this program again, in a new node.
fn supervise(minutes: &str, seed: &str) -> ExitCode {
    let lab = Lab::new();
    lab.install(&conformance::dist().join("cni-hostgw"), "bin/cni-hostgw");
    assert!(conformance::reference().join("host-local").exists());
    let node = lab.node("worker1", &[]);
    let this = env::current_exe().expect("the process is running");
    let status = node
        .command(Path::new(&this))
        .args(["inside", minutes, seed])
        .stdin(Stdio::null())
        .status()
        .expect("nsenter is part of every Debian");
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs the workers in the current node.
#[expect(clippy::print_stdout, reason = "the output is the program's result")]
fn inside(minutes: u64, seed: u64) -> ExitCode {
    let world = &World::new();
    let begin = Instant::now();
    let until = begin + Duration::from_secs(60 * minutes);
    thread::scope(|scope| {
        for i in 0..WORKERS {
            let mut worker = Worker::new(world, i, seed);
            scope.spawn(move || {
                while Instant::now() < until && !world.is_broken() {
                    worker.step();
                }
            });
        }
        let mut next = begin;
        while Instant::now() < until && !world.is_broken() {
            thread::sleep(Duration::from_millis(500));
            if Instant::now() >= next {
                println!("{} s: {}", begin.elapsed().as_secs(), world.counts());
                next += Duration::from_secs(60);
            }
        }
    });
    world.finish();
    world.check_activity();
    println!(
        "{} s, seed {seed}: {}",
        begin.elapsed().as_secs(),
        world.counts()
    );
    if world.is_broken() {
        for problem in world.problems() {
            println!("{problem}");
        }
        // The remaining files and links explain more than the problem's message.
        let look =
            "ls -la /var/lib/cni/networks/cbr0 /var/lib/cni/networks/cbr0/.attachments; ip -o link";
        drop(Command::new("sh").args(["-c", look]).status());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
