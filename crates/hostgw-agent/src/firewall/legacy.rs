//! Legacy `iptables` in the kernel, which only its own programs can access. They are run only if it
//! is in use.

use std::fs;

use ipnetwork::IpNetwork;
use programs::iptables::Iptables;

use super::COMMENT;
use super::rules::FirewallRules;
use crate::error::Result;

/// How many seconds the programs wait for the xtables lock. The agent does nothing else
/// meanwhile.
pub(super) const LOCK_WAIT: u8 = 2;

/// Programs of one family, and the file in which the kernel lists the tables in use.
pub(crate) struct Legacy {
    pub(super) program: Iptables,
    names: &'static str,
    is_ipv4: bool,
}

pub(super) static FAMILIES: [Legacy; 2] = [
    Legacy {
        program: Iptables {
            name: "iptables-legacy",
            lock_wait: LOCK_WAIT,
        },
        names: "/proc/net/ip_tables_names",
        is_ipv4: true,
    },
    Legacy {
        program: Iptables {
            name: "ip6tables-legacy",
            lock_wait: LOCK_WAIT,
        },
        names: "/proc/net/ip6_tables_names",
        is_ipv4: false,
    },
];

impl Legacy {
    /// Returns true if a table is in use.
    pub(super) fn has(&self, table: &str) -> bool {
        let names = fs::read_to_string(self.names);
        names.is_ok_and(|names| names.lines().any(|name| name == table))
    }

    /// Returns the rules of a chain in the form that the program reads; empty if there is no such
    /// chain.
    pub(super) fn rules(&self, table: &str, chain: &str) -> Result<Vec<String>> {
        let policy = format!("-P {chain} ");
        let rule = format!("-A {chain} ");
        let mut lines = self.lines(table)?;
        lines.retain(|line| line.starts_with(&policy) || line.starts_with(&rule));
        Ok(lines)
    }

    /// Returns all lines of a table in the form that the program reads.
    fn lines(&self, table: &str) -> Result<Vec<String>> {
        let all = self.program.rules(table)?;
        Ok(all.lines().map(str::to_owned).collect())
    }

    /// Changes a table in one transaction.
    pub(super) fn change(&self, table: &str, lines: &[String]) -> Result<()> {
        let lines = lines.join("\n") + "\n";
        Ok(self.program.restore(table, &lines)?)
    }
}

/// Returns true if packets are filtered with legacy `iptables`.
pub(super) fn is_in_use() -> bool {
    FAMILIES.iter().any(|legacy| legacy.has("filter"))
}

/// Accepts pod traffic that the FORWARD chain would refuse. Our rules are inserted before the first
/// rule that refuses all packets. Returns how many rules were added.
pub(super) fn ensure_forward(rules: &FirewallRules) -> Result<usize> {
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
        let wanted: Vec<_> = networks
            .filter(|_| is_refused)
            .flat_map(accept_rules)
            .collect();
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
            // Our old rules are deleted before, so only the other rules count for the position.
            Some(at) => line.replacen("-A FORWARD", &format!("-I FORWARD {}", at + i + 1), 1),
            None => line.clone(),
        }));
        legacy.change("filter", &changes)?;
        added += wanted.len().saturating_sub(ours.len());
    }
    Ok(added)
}

/// Returns the rules of a chain among all lines.
fn of_chain<'a>(all: &'a [String], chain: &str) -> impl Iterator<Item = &'a String> {
    let begin = format!("-A {chain} ");
    all.iter().filter(move |line| line.starts_with(&begin))
}

/// Returns true if a rule drops or rejects all packets, or jumps to a chain with such a rule.
fn refuses(line: &str, all: &[String], depth: usize) -> bool {
    const MAX_DEPTH: usize = 16;
    let mut words = line.split_whitespace().skip(2);
    let mut target = "";
    while let Some(word) = words.next() {
        match word {
            "-j" | "-g" => target = words.next().unwrap_or_default(),
            // How packets are rejected does not matter.
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
        chain if depth < MAX_DEPTH => {
            // Earlier rules may accept or return packets; all other packets are refused.
            let mut rules = of_chain(all, chain);
            rules.any(|line| refuses(line, all, depth + 1))
        }
        _ => false,
    }
}

/// Removes our rules and returns how many there were. With `is_dry`, only counts them.
pub(super) fn remove_forward(is_dry: bool) -> Result<usize> {
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

/// Returns the accept rules for a network, as the program prints them.
fn accept_rules(network: IpNetwork) -> [String; 2] {
    ["-s", "-d"]
        .map(|side| format!("-A FORWARD {side} {network} -m comment --comment {COMMENT} -j ACCEPT"))
}

/// Returns true if a rule is ours, in the format of this program or of the other variant of
/// `iptables`: rules that were saved with one may have been restored with the other.
fn is_ours(line: &str) -> bool {
    line.contains(&format!("--comment {COMMENT} "))
        || line.contains(&format!("--comment \"{COMMENT} "))
}
