//! The throughput of the pod network, and its cost in processor time: node to node, our network without and with the fast path, the
//! reference's `bridge` with flanneld's host-gw, and the same with its vxlan.
//!
//! All take turns in one run, in another order each round, so that disturbances by the machine affect all of them
//! alike. Each pair of pods is on two nodes of its own; all nodes are on one switch.

mod chart;
mod contender;
mod table;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use conformance::repository;
use conformance::traffic::{Load, Sample};

use crate::contender::{Contender, in_lab};

/// A column of the table.
struct Test {
    name: &'static str,
    /// The unit of its rate, and that of its cost.
    units: [&'static str; 2],
    load: Load,
    /// True if packets have at most 1,500 bytes between the nodes.
    is_segmented: bool,
    /// The cost's unit in seconds.
    cost_unit: f64,
}

const TESTS: [Test; 5] = [
    Test {
        name: "TCP, 64 KiB segments",
        units: ["Gbit/s", "ms per Gbit"],
        load: Load::Stream,
        is_segmented: false,
        cost_unit: 1e-3,
    },
    Test {
        name: "TCP, 1,500-byte packets",
        units: ["Gbit/s", "ms per Gbit"],
        load: Load::Stream,
        is_segmented: true,
        cost_unit: 1e-3,
    },
    Test {
        name: "UDP, 64 bytes",
        units: ["thousand packets/s", "µs per packet"],
        load: Load::Datagrams,
        is_segmented: false,
        cost_unit: 1e-3,
    },
    Test {
        name: "request and response",
        units: ["thousand/s", "µs each"],
        load: Load::Requests,
        is_segmented: false,
        cost_unit: 1e-3,
    },
    Test {
        name: "connect, request, response",
        units: ["thousand/s", "µs each"],
        load: Load::Connections,
        is_segmented: false,
        cost_unit: 1e-3,
    },
];

/// The samples of a contender: for each test, one of each round.
struct Results {
    name: &'static str,
    samples: Vec<Vec<Sample>>,
}

/// The median of some values, and the middle half of them.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    from: f64,
    to: f64,
}

impl Results {
    fn rate(&self, test: usize) -> Spread {
        Spread::of(self.samples[test].iter().map(|sample| sample.rate))
    }

    /// The cost in the unit of the test.
    fn cost(&self, test: usize) -> Spread {
        let unit = TESTS[test].cost_unit;
        Spread::of(self.samples[test].iter().map(|sample| sample.cost / unit))
    }
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        Self {
            median: values[values.len() / 2],
            from: values[values.len() / 4],
            to: values[values.len() * 3 / 4],
        }
    }
}

fn main() -> ExitCode {
    let numbers: Vec<_> = env::args()
        .skip(1)
        .map(|text| text.parse::<u32>())
        .collect();
    let (rounds, millis) = match numbers[..] {
        [] => (15, 500),
        [Ok(rounds @ 1..), Ok(millis @ 1..)] => (rounds, millis),
        _ => {
            eprintln!("usage: dataplane [ROUNDS MILLISECONDS]");
            return ExitCode::FAILURE;
        }
    };
    let duration = Duration::from_millis(millis.into());
    let results = in_lab(|contenders| measure(contenders, rounds, duration));
    match write(&results, &mut io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dataplane: write the results: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(results: &[Results], out: &mut impl Write) -> io::Result<()> {
    let path = repository().join("target/dataplane.svg");
    fs::write(&path, chart::svg(results))?;
    let table = table::text(results);
    writeln!(out, "{table}\nThe same as a picture: {}", path.display())
}

fn measure(contenders: &[Contender<'_>], rounds: u32, duration: Duration) -> Vec<Results> {
    let results = |contender: &Contender<'_>| Results {
        name: contender.name,
        samples: TESTS.iter().map(|_| Vec::new()).collect(),
    };
    let mut results: Vec<_> = contenders.iter().map(results).collect();
    let count = contenders.len();
    // The first round only warms up.
    for round in 0..=usize::try_from(rounds).expect("fits") {
        for (test, wanted) in TESTS.iter().enumerate() {
            for turn in 0..count {
                let index = (turn + round) % count;
                let contender = &contenders[index];
                contender.set_segmented(wanted.is_segmented);
                let sample = contender.measure(wanted.load, duration);
                contender.set_segmented(false);
                if round > 0 {
                    results[index].samples[test].push(sample);
                }
            }
        }
        eprintln!("round {round} of {rounds}");
    }
    results
}
