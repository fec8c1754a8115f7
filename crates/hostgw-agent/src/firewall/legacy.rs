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
        let all = run(self.program, &["-w", WAIT, "-t", table, "-S"], "")?;
        let policy = format!("-P {chain} ");
        let rule = format!("-A {chain} ");
        let of_chain = all
            .lines()
            .filter(|line| line.starts_with(&policy) || line.starts_with(&rule));
        Ok(of_chain.map(str::to_owned).collect())
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

/// Accepts where the default is to drop. Says how many rules were added.
pub(super) fn ensure_forward(rules: &Rules) -> Result<usize, String> {
    let mut added = 0;
    for legacy in FAMILIES.iter().filter(|legacy| legacy.has("filter")) {
        let present = legacy.rules("filter", "FORWARD")?;
        let drops = present.iter().any(|line| line == "-P FORWARD DROP");
        let networks = rules
            .networks()
            .filter(|network| network.is_ipv4() == legacy.is_ipv4);
        let wanted: Vec<_> = networks.filter(|_| drops).flat_map(accepts).collect();
        let old = present
            .iter()
            .filter(|line| is_ours(line) && !wanted.contains(line));
        let new = wanted.iter().filter(|line| !present.contains(line));
        let lines: Vec<_> = old
            .map(|line| line.replacen("-A", "-D", 1))
            .chain(new.cloned())
            .collect();
        if !lines.is_empty() {
            legacy.change("filter", &lines)?;
            added += lines.iter().filter(|line| line.starts_with("-A")).count();
        }
    }
    Ok(added)
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

fn is_ours(line: &str) -> bool {
    line.contains(&format!("--comment {COMMENT} "))
}
