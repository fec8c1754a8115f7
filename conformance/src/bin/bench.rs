//! The bench: ADD and DEL of ours beside the reference plugins and beside the floor, in one
//! run, as ratios.
//!
//! What is timed is the whole process, from start to end, as a runtime meets it. The three
//! take turns at each pod, so that whatever the machine does meanwhile meets them alike.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use conformance::{Lab, dist, reference};
use serde_json::{Value, json};

const SERIAL: usize = 100;
const AT_ONCE: usize = 16;
const ROUNDS: usize = 10;

fn main() -> ExitCode {
    let args: Vec<_> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [floor] => outside(floor),
        ["--inside", floor, ours, reference] => {
            inside(&contenders(floor, ours, reference));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: bench FLOOR, where FLOOR is the static executable of that name");
            ExitCode::FAILURE
        }
    }
}

/// Makes a node with its pods, and runs this program in it: to enter it for each request would
/// cost more than the request.
fn outside(floor: &str) -> ExitCode {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let pods = (0..SERIAL.max(AT_ONCE * ROUNDS)).map(|i| format!("ip netns add p{i}"));
    node.sh(&pods.collect::<Vec<_>>().join(" && ")).ok();
    lab.install(Path::new(floor), "bin/floor");
    lab.install(&dist().join("cni-hostgw"), "bin/cni-hostgw");
    lab.install(
        &env::current_exe().expect("a running program has a path"),
        "bin/bench",
    );
    let status = node
        .command(Lab::path("bin/bench"))
        .args(["--inside", "/mnt/bin/floor", "/mnt/bin/cni-hostgw"])
        .arg(reference().join("bridge"))
        .status()
        .expect("nsenter is part of every Debian");
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

struct Contender {
    name: &'static str,
    path: PathBuf,
    conf: Value,
}

fn contenders(floor: &str, ours: &str, reference: &str) -> [Contender; 3] {
    let conf = |kind: &str| {
        json!({
            "cniVersion": "1.0.0",
            "name": format!("bench-{kind}"),
            "type": kind,
            "isDefaultGateway": true,
            "hairpinMode": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]]},
        })
    };
    [
        Contender {
            name: "ours",
            path: ours.into(),
            conf: conf("cni-hostgw"),
        },
        Contender {
            name: "reference",
            path: reference.into(),
            conf: conf("bridge"),
        },
        // Last, because it needs the bridge to be there.
        Contender {
            name: "floor",
            path: floor.into(),
            conf: json!({}),
        },
    ]
}

fn inside(contenders: &[Contender; 3]) {
    // Once through, so that the bridge and the stores are there and the files are in memory.
    for contender in contenders {
        contender.call("ADD", 0);
        contender.call("DEL", 0);
    }
    let mut add = [const { Vec::new() }; 3];
    let mut del = [const { Vec::new() }; 3];
    for pod in 0..SERIAL {
        for (i, contender) in contenders.iter().enumerate() {
            add[i].push(contender.call("ADD", pod));
            del[i].push(contender.call("DEL", pod));
        }
    }
    let mut rows = vec![
        row("ADD, one at a time", add.map(median)),
        row("DEL, one at a time", del.map(median)),
    ];
    let mut add = [const { Vec::new() }; 3];
    let mut del = [const { Vec::new() }; 3];
    for (i, contender) in contenders.iter().enumerate() {
        for _ in 0..3 {
            add[i].push(contender.many("ADD"));
            del[i].push(contender.many("DEL"));
        }
    }
    rows.push(row("ADD, 16 at once, each", add.map(median)));
    rows.push(row("DEL, 16 at once, each", del.map(median)));
    let mut out = io::stdout();
    let head = format!(
        "{:24}{:>10}{:>10}{:>12}{:>14}{:>18}\n",
        "milliseconds, median", "floor", "ours", "reference", "ours / floor", "reference / ours"
    );
    out.write_all((head + &rows.concat()).as_bytes())
        .expect("somebody reads the result");
}

fn row(name: &str, [ours, reference, floor]: [Duration; 3]) -> String {
    let [ours, reference, floor] = [ours, reference, floor].map(|time| time.as_secs_f64() * 1e3);
    let (to_floor, to_ours) = (ours / floor, reference / ours);
    format!("{name:24}{floor:>10.2}{ours:>10.2}{reference:>12.2}{to_floor:>14.2}{to_ours:>18.2}\n")
}

impl Contender {
    /// One request for one pod: from the process's start to its end.
    fn call(&self, verb: &str, pod: usize) -> Duration {
        let mut command = Command::new(&self.path);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("p{pod}"))
            .env("CNI_NETNS", format!("/run/netns/p{pod}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env("FLOOR_VETH", format!("vethf{pod}"))
            .env("FLOOR_IP", format!("10.10.1.{}", pod + 2))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let conf = self.conf.to_string();
        let begin = Instant::now();
        let mut child = command.spawn().expect("the contender can be started");
        let mut stdin = child.stdin.take().expect("it is piped");
        // The floor does not read it.
        drop(stdin.write_all(conf.as_bytes()));
        drop(stdin);
        let output = child.wait_with_output().expect("a child can be waited for");
        let time = begin.elapsed();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{} {verb} p{pod}: {text}",
            self.name
        );
        time
    }

    /// Sixteen at once, each several in a row: the time that one took, on the whole.
    fn many(&self, verb: &str) -> Duration {
        let begin = Instant::now();
        thread::scope(|scope| {
            for lane in 0..AT_ONCE {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        self.call(verb, lane * ROUNDS + round);
                    }
                });
            }
        });
        begin.elapsed() / u32::try_from(AT_ONCE * ROUNDS).expect("a small number")
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
