//! The results as a table in Markdown.

use std::fmt::Write;

use crate::{Results, Spread, TESTS};

/// Two tables: rates, and processor time for each unit.
pub(crate) fn text(results: &[Results]) -> String {
    let mut text = String::new();
    let rates = |results: &Results, test| results.rate(test);
    let costs = |results: &Results, test| results.cost(test);
    part(&mut text, "rate: median (middle half)", 0, results, rates);
    text.push('\n');
    part(
        &mut text,
        "processor time: median (middle half)",
        1,
        results,
        costs,
    );
    text
}

fn part(
    text: &mut String,
    title: &str,
    unit: usize,
    results: &[Results],
    value: impl Fn(&Results, usize) -> Spread,
) {
    let names = TESTS
        .iter()
        .map(|test| format!("{}, {}", test.name, test.units[unit]));
    let names: Vec<_> = names.collect();
    line(text, &format!("| {title} | {} |", names.join(" | ")));
    line(text, &format!("|---|{}", "--:|".repeat(TESTS.len())));
    for results in results {
        let cells = (0..TESTS.len()).map(|test| {
            let Spread { median, from, to } = value(results, test);
            format!("{} ({}–{})", short(median), short(from), short(to))
        });
        let cells: Vec<_> = cells.collect();
        line(
            text,
            &format!("| {} | {} |", results.name, cells.join(" | ")),
        );
    }
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a String takes everything");
}

/// A number with three digits.
pub(crate) fn short(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
