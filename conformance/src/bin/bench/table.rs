//! Output of the benchmark: tables of figures, and targets.

use std::io::{self, Write};
use std::time::Duration;

/// Targets and measured values.
#[derive(Default)]
pub(crate) struct Targets(Vec<String>);

impl Targets {
    pub(crate) fn at_most(&mut self, what: &str, value: f64, mark: f64) {
        self.push(what, value, "at most", mark, value <= mark);
    }

    pub(crate) fn at_least(&mut self, what: &str, value: f64, mark: f64) {
        self.push(what, value, "at least", mark, value >= mark);
    }

    fn push(&mut self, what: &str, value: f64, bound: &str, mark: f64, is_met: bool) {
        let verdict = if is_met { "" } else { "  MISSED" };
        let line = format!("{what:42}{value:>8.2}   {bound:8} {mark:>5}{verdict}\n");
        self.0.push(line);
    }

    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "\n{:42}{:>8}   target\n{}", "", "", self.0.concat())
    }
}

pub(crate) fn head(out: &mut impl Write, what: &str, names: &[&str]) -> io::Result<()> {
    writeln!(out, "\n{what:25}{}", columns(names))
}

pub(crate) fn row(out: &mut impl Write, name: &str, times: &[Duration]) -> io::Result<()> {
    let times = times.iter().map(|time| format!("{:.2}", millis(*time)));
    writeln!(out, "{name:25}{}", columns(times))
}

pub(crate) fn columns(cells: impl IntoIterator<Item: std::fmt::Display>) -> String {
    let cells = cells.into_iter().map(|cell| format!("{cell:>10}"));
    cells.collect::<Vec<_>>().concat()
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
