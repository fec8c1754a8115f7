//! Rules that flanneld left behind, in each of the three places where they may be.

use std::fmt;

use kernel::nftables::{self, Family, Transaction};

use super::legacy;
use crate::error::Result;

/// A part of flannel's rules, which is removed as a whole.
pub(crate) enum Leftover {
    /// A table of flannel's `nf_tables` mode.
    Table(Family, &'static str),
    /// A chain of flannel's `iptables` mode, in a table that `iptables` keeps in `nf_tables`.
    Chain(Family, &'static ChainLocation),
    /// A chain of flannel's `iptables` mode, in a table of legacy `iptables`.
    Legacy(&'static legacy::Legacy, &'static ChainLocation),
}

/// Location of a chain of flannel's: its table, and the chain that jumps to it.
pub(crate) struct ChainLocation {
    table: &'static str,
    base: &'static str,
    chain: &'static str,
}

const TABLES: [(Family, &str); 2] = [
    (Family::Ipv4, "flannel-ipv4"),
    (Family::Ipv6, "flannel-ipv6"),
];

static LOCATIONS: [ChainLocation; 2] = [
    ChainLocation {
        table: "nat",
        base: "POSTROUTING",
        chain: "FLANNEL-POSTRTG",
    },
    ChainLocation {
        table: "filter",
        base: "FORWARD",
        chain: "FLANNEL-FWD",
    },
];

/// Finds everything that flannel left behind.
pub(crate) fn leftovers() -> Result<Vec<Leftover>> {
    let mut leftovers = Vec::new();
    for (family, table) in TABLES {
        if nftables::has_table(family, table)? {
            leftovers.push(Leftover::Table(family, table));
        }
    }
    for location in &LOCATIONS {
        for family in [Family::Ipv4, Family::Ipv6] {
            let look = nftables::dump_chains(family, location.table, &[location.chain]);
            if look?.is_some() {
                leftovers.push(Leftover::Chain(family, location));
            }
        }
        for legacy in legacy::FAMILIES
            .iter()
            .filter(|legacy| legacy.has(location.table))
        {
            let rules = legacy.rules(location.table, location.base)?;
            let own = legacy.rules(location.table, location.chain)?;
            if !own.is_empty() || rules.iter().any(|rule| location.is_jump(rule)) {
                leftovers.push(Leftover::Legacy(legacy, location));
            }
        }
    }
    Ok(leftovers)
}

impl Leftover {
    /// Removes this part, in one transaction.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut transaction = Transaction::new();
        match self {
            Self::Table(family, table) => transaction.delete_table(*family, table),
            Self::Chain(family, location) => {
                let rules = nftables::rules(*family, location.table, location.base)?;
                let leads =
                    |rule: &&nftables::ListedRule| rule.jump().as_deref() == Some(location.chain);
                for rule in rules.iter().filter(leads) {
                    transaction.delete_rule(*family, location.table, location.base, rule.handle);
                }
                transaction.delete_chain(*family, location.table, location.chain);
            }
            Self::Legacy(legacy, location) => {
                let rules = legacy.rules(location.table, location.base)?;
                let jumps = rules.iter().filter(|rule| location.is_jump(rule));
                let mut lines: Vec<_> = jumps.map(|rule| rule.replacen("-A", "-D", 1)).collect();
                lines.extend([
                    format!("-F {}", location.chain),
                    format!("-X {}", location.chain),
                ]);
                return legacy.change(location.table, &lines);
            }
        }
        transaction.commit("remove flannel's rules")?;
        Ok(())
    }
}

impl ChainLocation {
    fn is_jump(&self, rule: &str) -> bool {
        rule.ends_with(&format!("-j {}", self.chain))
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(_, table) => write!(f, "nf_tables table {table}"),
            Self::Chain(family, location) => {
                let program = if *family == Family::Ipv4 {
                    "iptables"
                } else {
                    "ip6tables"
                };
                write!(
                    f,
                    "{program} chain {} of {}",
                    location.chain, location.table
                )
            }
            Self::Legacy(legacy, location) => {
                write!(
                    f,
                    "{} chain {} of {}",
                    legacy.program.name, location.chain, location.table
                )
            }
        }
    }
}
