//! The old `iptables` in the kernel, which only its own programs can talk to. They are started
//! where it is in use, and nowhere else.

use std::fs;

use ipnetwork::IpNetwork;

use super::{COMMENT, Rules};
use crate::programs::run;

/// Seconds for which the programs wait for the lock that they share. Everything else waits, too.
pub(super) const WAIT: &str = "2";

/// One family's programs, and where the kernel says which of its tables are in use.
pub(crate) struct Legacy {
    pub(super) program: &'static str,
    names: &'static str,
    is_ipv4: bool,
}

pub(super) static FAMILIES: [Legacy; 2] = [
    Legacy {
        program: "iptables-legacy",
        names: "/proc/net/ip_tables_names",
        is_ipv4: true,
    },
    Legacy {
        program: "ip6tables-legacy",
        names: "/proc/net/ip6_tables_names",
        is_ipv4: false,
    },
];

impl Legacy {
    /// Whether a table is in use.
    pub(super) fn has(&self, table: &str) -> bool {
        let names = fs::read_to_string(self.names);
        names.is_ok_and(|names| names.lines().any(|name| name == table))
    }

    /// The rules of a chain, as the program would take them. None where there is no chain.
    pub(super) fn rules(&self, table: &str, chain: &str) -> Result<Vec<String>, String> {
        let policy = format!("-P {chain} ");
        let rule = format!("-A {chain} ");
        let mut lines = self.lines(table)?;
        lines.retain(|line| line.starts_with(&policy) || line.starts_with(&rule));
        Ok(lines)
    }

    /// Everything of a table, as the program would take it.
    fn lines(&self, table: &str) -> Result<Vec<String>, String> {
        let all = run(self.program, &["-w", WAIT, "-t", table, "-S"], "")?;
        Ok(all.lines().map(str::to_owned).collect())
    }

    /// Changes a table in one transaction.
    pub(super) fn change(&self, table: &str, lines: &[String]) -> Result<(), String> {
        let program = format!("{}-restore", self.program);
        let text = format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"));
        run(&program, &["-w", WAIT, "--noflush"], &text).map(drop)
    }
}

/// Whether somebody filters by it.
pub(super) fn is_in_use() -> bool {
    FAMILIES.iter().any(|legacy| legacy.has("filter"))
}

/// Accepts what the FORWARD chain would refuse: before the first rule that refuses whatever comes. Says
/// how many rules were added.
pub(super) fn ensure_forward(rules: &Rules) -> Result<usize, String> {
    let mut added = 0;
    for legacy in FAMILIES.iter().filter(|legacy| legacy.has("filter")) {
        let all = legacy.lines("filter")?;
        let (ours, others): (Vec<_>, Vec<_>) =
            of_chain(&all, "FORWARD").partition(|line| is_ours(line));
        let refusing = others.iter().position(|line| refuses(line, &all, 0));
        let drops = all.iter().any(|line| line == "-P FORWARD DROP");
        let networks = rules
            .networks()
            .filter(|network| network.is_ipv4() == legacy.is_ipv4);
        let is_refused = drops || refusing.is_some();
        let wanted: Vec<_> = networks.filter(|_| is_refused).flat_map(accepts).collect();
        let lines: Vec<_> = of_chain(&all, "FORWARD").collect();
        let is_early = |line: &&String| {
            let place = |one: &String| lines.iter().position(|other| *other == one);
            let before = refusing.and_then(|at| place(others[at]));
            before.is_none_or(|before| place(line) < Some(before))
        };
        if ours
            .iter()
            .map(|line| line.as_str())
            .eq(wanted.iter().map(String::as_str))
            && ours.iter().all(is_early)
        {
            continue;
        }
        let mut changes: Vec<_> = ours
            .iter()
            .map(|line| line.replacen("-A", "-D", 1))
            .collect();
        changes.extend(wanted.iter().enumerate().map(|(i, line)| match refusing {
            // Ours are gone by then: places are those among the others.
            Some(at) => line.replacen("-A FORWARD", &format!("-I FORWARD {}", at + i + 1), 1),
            None => line.clone(),
        }));
        legacy.change("filter", &changes)?;
        added += wanted.len().saturating_sub(ours.len());
    }
    Ok(added)
}

/// The rules of a chain among all lines.
fn of_chain<'a>(all: &'a [String], chain: &str) -> impl Iterator<Item = &'a String> {
    let begin = format!("-A {chain} ");
    all.iter().filter(move |line| line.starts_with(&begin))
}

/// Whether a rule drops or rejects whatever comes, or leads to a chain with such a rule.
fn refuses(line: &str, all: &[String], depth: usize) -> bool {
    const DEEPEST: usize = 16;
    let mut words = line.split_whitespace().skip(2);
    let mut target = "";
    while let Some(word) = words.next() {
        match word {
            "-j" | "-g" => target = words.next().unwrap_or_default(),
            // What refusing is like decides nothing.
            "--reject-with" => drop(words.next()),
            // A comment may have several words.
            "-m" if words.clone().next() == Some("comment") => {
                words.nth(1);
                let first = words.next().unwrap_or_default();
                if first.starts_with('"') && !first.ends_with('"') {
                    words.by_ref().find(|word| word.ends_with('"'));
                }
            }
            _ => return false,
        }
    }
    match target {
        "DROP" | "REJECT" => true,
        chain if depth < DEEPEST => {
            // What is accepted or left before is not refused.
            let mut rules = of_chain(all, chain);
            rules.any(|line| refuses(line, all, depth + 1))
        }
        _ => false,
    }
}

/// Takes our rules away. Says how many there were; with `is_dry`, how many there are.
pub(super) fn remove_forward(is_dry: bool) -> Result<usize, String> {
    let mut count = 0;
    for legacy in FAMILIES.iter().filter(|legacy| legacy.has("filter")) {
        let present = legacy.rules("filter", "FORWARD")?;
        let ours = present.iter().filter(|line| is_ours(line));
        let lines: Vec<_> = ours.map(|line| line.replacen("-A", "-D", 1)).collect();
        count += lines.len();
        if !is_dry && !lines.is_empty() {
            legacy.change("filter", &lines)?;
        }
    }
    Ok(count)
}

/// As the program prints them.
fn accepts(network: IpNetwork) -> [String; 2] {
    ["-s", "-d"]
        .map(|side| format!("-A FORWARD {side} {network} -m comment --comment {COMMENT} -j ACCEPT"))
}

/// In the form of this program, and of the other one, whose rules were restored by it.
fn is_ours(line: &str) -> bool {
    line.contains(&format!("--comment {COMMENT} "))
        || line.contains(&format!("--comment \"{COMMENT} "))
}
