//! The benchmark of the plugin and of the agent. The plugin's part compares ADD and DEL of our
//! plugin with the reference plugins and with the floor in one run, as ratios, each with a target.
//!
//! It times whole processes from start to end, as a runtime sees them. The contenders take turns at
//! each pod, each time in another order, so that disturbances by the machine affect all of them
//! alike.

mod agent;
mod cluster;
mod contender;
mod count;
mod etcd;
mod instruments;
mod kube;
mod ports;
mod table;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use conformance::{Lab, dist, reference, repository};

use crate::contender::{Contender, Timed, bridge_conf, flannel_conf};
use crate::count::{counts, peak};
use crate::table::{Targets, columns, head, row};

/// Minimum number of attachments for each median.
const SERIAL: usize = 150;
/// Number of other pods on the bridge in the test with a full bridge.
const OTHER_PODS: usize = 200;
/// Number of other reservations in the test with a full store.
const RESERVATIONS: u32 = 30_000;
/// Number of routes in the test with a full routing table.
const ROUTES: u32 = 5000;
/// Number of concurrent attachments, and number of rounds.
const CONCURRENT: usize = 16;
const ROUNDS: usize = 10;

fn main() -> ExitCode {
    let args: Vec<_> = env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--inside"] => inside(),
        ["--inside-ports"] => ports::inside(),
        ["agent"] => agent::bench(&mut io::stdout()),
        ["agent", "kube"] => agent::bench_on_kube(&mut io::stdout()),
        ["agent", count] if count.parse::<u32>().is_ok() => {
            let count = count.parse().expect("just tried");
            agent::bench_of(count, &mut io::stdout())
        }
        ["plugin", floor] => outside(Path::new(floor), "--inside"),
        ["ports", floor] => outside(Path::new(floor), "--inside-ports"),
        _ => {
            eprintln!(
                "usage: bench agent [NODES|kube] | bench plugin FLOOR | bench ports FLOOR, where FLOOR is the static executable of that name"
            );
            return ExitCode::FAILURE;
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Creates a node with its pods, and runs this program in it, because entering the node for each
/// request would cost more than the request.
fn outside(floor: &Path, part: &str) -> io::Result<()> {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24", "fd00:192:168:2::16/64"]);
    let count = SERIAL.max(CONCURRENT * ROUNDS) + OTHER_PODS;
    let pods = (0..count).map(|i| format!("ip netns add p{i}"));
    node.sh(&pods.collect::<Vec<_>>().join(" && ")).ok();
    node.write_subnet_env(true);
    lab.install(floor, "bin/floor");
    lab.install(&dist().join("cni-hostgw"), "bin/cni-hostgw");
    let flannel = repository().join("target/tools/flannel");
    if flannel.exists() {
        lab.install(&flannel, "bin/flannel");
    }
    let bench = env::current_exe().expect("a running program has a path");
    lab.install(&bench, "bin/bench");
    let status = node.command(Lab::path("bin/bench")).arg(part).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(
            "the benchmark in the node failed, see above",
        ))
    }
}

/// Returns the contenders of the first table, in its order. The flannel plugin is included if it
/// has been built.
fn contenders() -> Vec<Contender> {
    let subnet = ["10.10.1.0/24"];
    let bin = Lab::path("bin");
    let mut all = vec![
        Contender::new("floor", bin.join("floor"), bridge_conf("floor", &subnet)),
        ours("bench", &subnet),
        theirs("bench", &subnet),
    ];
    let flannel = bin.join("flannel");
    if flannel.exists() {
        all.push(Contender::new(
            "flannel",
            flannel,
            flannel_conf("bench-flannel"),
        ));
    }
    all
}

fn ours(network: &str, subnets: &[&str]) -> Contender {
    let path = Lab::path("bin/cni-hostgw");
    Contender::new(
        "ours",
        path,
        bridge_conf(&format!("{network}-ours"), subnets),
    )
}

fn theirs(network: &str, subnets: &[&str]) -> Contender {
    let path = reference().join("bridge");
    Contender::new(
        "bridge",
        path,
        bridge_conf(&format!("{network}-bridge"), subnets),
    )
}

fn inside() -> io::Result<()> {
    let mut out = io::stdout();
    let all = contenders();
    let [floor, ours_v4, bridge] = &all[..3] else {
        unreachable!("there are three or four of them");
    };
    // One request of each first, so that the bridge and the stores exist and the files are cached.
    // The floor comes last, because it needs the bridge.
    for contender in all[1..].iter().chain(&all[..1]) {
        contender.call("ADD", 0);
        contender.call("DEL", 0);
    }
    let serial = Timed::serial(&all, SERIAL);
    let concurrent = Timed::concurrent(&all, CONCURRENT, ROUNDS);
    let names = all.iter().map(|contender| contender.name);
    writeln!(out, "{:25}{}", "milliseconds, median", columns(names))?;
    for (name, times) in [
        ("ADD, one at a time", &serial.add),
        ("DEL, one at a time", &serial.del),
        ("ADD, 16 at once, each", &concurrent.add),
        ("DEL, 16 at once, each", &concurrent.del),
    ] {
        row(&mut out, name, times)?;
    }
    let mut marks = Targets::default();
    compare(&serial, &concurrent, &mut marks);
    full_store(&mut out, &mut marks)?;
    variants(&mut out, &mut marks, ours_v4)?;
    full_bridge(&mut out, &mut marks, ours_v4, floor)?;
    full_routing_table(&mut out, &mut marks, ours_v4)?;
    let size = fs::metadata(Lab::path("bin/cni-hostgw"))?.len();
    marks.at_most("executable, MB", megabytes(size), 3.0);
    marks.at_most(
        "peak resident memory of ADD, MB",
        megabytes(peak(ours_v4)),
        6.0,
    );

    head(&mut out, "per ADD", &["ours", "bridge"])?;
    for (ours, theirs) in counts(ours_v4).into_iter().zip(counts(bridge)) {
        writeln!(out, "{:25}{:>10}{:>10}", ours.0, ours.1, theirs.1)?;
    }
    marks.write(&mut out)
}

/// Compares the contenders: floor, ours, bridge, and flannel, if it has been built.
fn compare(serial: &Timed, concurrent: &Timed, marks: &mut Targets) {
    let first = serial.add[1];
    marks.at_most("ADD / floor", ratio(first, serial.add[0]), 1.5);
    marks.at_least(
        "bridge + host-local / ADD",
        ratio(serial.add[2], first),
        4.5,
    );
    if let Some(flannel) = serial.add.get(3) {
        marks.at_least("flannel's chain / ADD", ratio(*flannel, first), 6.0);
    }
    let [floor_at_once, ours_at_once, bridge_at_once] = [0, 1, 2].map(|i| concurrent.add[i]);
    marks.at_least(
        "ADD, 16 at once: throughput / bridge's",
        ratio(bridge_at_once, ours_at_once),
        4.0,
    );
    marks.at_least(
        "ADD, 16 at once: throughput / floor's",
        ratio(floor_at_once, ours_at_once),
        0.75,
    );
    marks.at_most("DEL / floor", ratio(serial.del[1], serial.del[0]), 1.1);
    marks.at_least(
        "DEL, 16 at once: throughput / floor's",
        ratio(concurrent.del[0], concurrent.del[1]),
        0.85,
    );
}

/// The reference's 30,000 addresses are where our plugin does not look. A node has them once.
const THEIR_DATA_DIR: &str = "/var/lib/cni/theirs";

/// Measures with 30,000 addresses reserved in a /16.
fn full_store(out: &mut impl Write, marks: &mut Targets) -> io::Result<()> {
    // Our plugin refuses a subnet in which another network has addresses.
    let pair = [
        ours("full", &["10.20.0.0/16"]).on("cni1"),
        theirs("full", &["10.21.0.0/16"])
            .on("cni5")
            .with_data_dir(THEIR_DATA_DIR),
    ];
    for contender in &pair {
        contender.call("ADD", 0);
        contender.call("DEL", 0);
    }
    let empty = Timed::serial(&pair, SERIAL);
    for (contender, data_dir, second) in [
        (&pair[0], "/var/lib/cni/networks", 20),
        (&pair[1], THEIR_DATA_DIR, 21),
    ] {
        let store = Path::new(data_dir).join(contender.network());
        fill(&store, Ipv4Addr::new(10, second, 1, 0))?;
    }
    let full = Timed::serial(&pair, SERIAL);
    head(out, "30,000 addresses held", &["empty", "full"])?;
    for (i, contender) in pair.iter().enumerate() {
        for (verb, empty, full) in [
            ("ADD", empty.add[i], full.add[i]),
            ("DEL", empty.del[i], full.del[i]),
        ] {
            row(out, &format!("{verb}, {}", contender.name), &[empty, full])?;
        }
    }
    marks.at_most(
        "ADD, 30,000 held / empty",
        ratio(full.add[0], empty.add[0]),
        1.2,
    );
    marks.at_most(
        "DEL, 30,000 held / empty",
        ratio(full.del[0], empty.del[0]),
        1.2,
    );
    Ok(())
}

/// Writes reservations of attachments that do not exist, in the format of both plugins. The index
/// is our plugin's only; the reference ignores it.
fn fill(store: &Path, first: Ipv4Addr) -> io::Result<()> {
    let first = u32::from(first);
    for i in 0..RESERVATIONS {
        let address = Ipv4Addr::from(first + i).to_string();
        let id = format!("{i:064x}");
        fs::write(store.join(&address), format!("{id}\r\neth0"))?;
        if store.join(".attachments").exists() {
            fs::write(
                store.join(format!(".attachments/{id}:eth0")),
                format!("{address}\n"),
            )?;
        }
    }
    let last = Ipv4Addr::from(first + RESERVATIONS - 1);
    fs::write(store.join("last_reserved_ip.0"), last.to_string())
}

/// Measures masquerading and dual stack, each next to the plain configuration in the same turns.
fn variants(out: &mut impl Write, marks: &mut Targets, plain: &Contender) -> io::Result<()> {
    let dual = ["10.10.1.0/24", "fd00:10:10:1::/64"];
    let subnet = ["10.10.1.0/24"];
    let all = [
        plain.clone(),
        // It holds an address all the time, so that the others cannot have its subnet.
        ours("masq", &["10.10.3.0/24"]).on("cni6").with_masquerade(),
        ours("dual", &dual).on("cni3"),
        theirs("bench", &subnet),
        theirs("masq", &subnet).with_masquerade(),
        theirs("dual", &dual).on("cni4"),
    ];
    // With one pod first, so that the rules exist, as they do for all but the first pod of a node.
    all[1].call("ADD", SERIAL);
    let times = Timed::serial(&all, SERIAL).add;
    all[1].call("DEL", SERIAL);
    writeln!(
        out,
        "\nADD                           plain    ipMasq      dual"
    )?;
    for (name, times) in [("ours", &times[..3]), ("bridge", &times[3..])] {
        row(out, name, times)?;
    }
    marks.at_most("ADD with ipMasq / without", ratio(times[1], times[0]), 1.25);
    marks.at_most("ADD, dual stack / IPv4", ratio(times[2], times[0]), 1.3);
    Ok(())
}

/// Measures with 200 pods on the bridge, next to a bridge without other pods.
fn full_bridge(
    out: &mut impl Write,
    marks: &mut Targets,
    plain: &Contender,
    floor: &Contender,
) -> io::Result<()> {
    let crowded = ours("crowd", &["10.10.2.0/24"]).on("cni2");
    let base = SERIAL.max(CONCURRENT * ROUNDS);
    for i in 0..OTHER_PODS {
        crowded.call("ADD", base + i);
    }
    let all = [
        plain.clone(),
        crowded.clone(),
        floor.clone(),
        floor.on("cni2"),
    ];
    let times = Timed::serial(&all, SERIAL).add;
    head(out, "ADD", &["first", "with 200"])?;
    for (name, times) in [("ours", &times[..2]), ("floor", &times[2..])] {
        row(out, name, times)?;
    }
    marks.at_most(
        "ADD with 200 pods / the first",
        ratio(times[1], times[0]),
        1.3,
    );
    Ok(())
}

/// Measures with the routes of a large cluster, between two measurements without them.
fn full_routing_table(
    out: &mut impl Write,
    marks: &mut Targets,
    plain: &Contender,
) -> io::Result<()> {
    let pair = [plain.clone(), theirs("bench", &["10.10.1.0/24"])];
    let change = |verb: &str| {
        let line = |i: u32| {
            let to = Ipv4Addr::from(0x0a40_0000 + (i << 8));
            format!("route {verb} {to}/24 via 192.168.2.15 dev enp0s5\n")
        };
        fs::write("/run/routes", (0..ROUTES).map(line).collect::<String>())?;
        let status = Command::new("ip")
            .args(["-batch", "/run/routes"])
            .status()?;
        let failed = || io::Error::other(format!("ip route {verb} failed"));
        status.success().then_some(()).ok_or_else(failed)
    };
    let before = Timed::serial(&pair, SERIAL).add;
    change("add")?;
    let full = Timed::serial(&pair, SERIAL).add;
    change("del")?;
    let after = Timed::serial(&pair, SERIAL).add;
    head(out, "ADD, 5,000 routes", &["none", "5,000", "none"])?;
    for (i, contender) in pair.iter().enumerate() {
        row(out, contender.name, &[before[i], full[i], after[i]])?;
    }
    let none = (before[0] + after[0]) / 2;
    marks.at_most("ADD with 5,000 routes / none", ratio(full[0], none), 1.05);
    Ok(())
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
