//! What flanneld left of its rules, in each of the three places where it may be.

use std::fmt;

use kernel::nftables::{self, Family, Transaction};

use super::legacy;
use crate::error::chain;

/// A part of it, which goes as a whole.
pub(crate) enum Remain {
    /// A table of its `nf_tables` mode.
    Table(Family, &'static str),
    /// A chain of its `iptables` mode, in tables that `iptables` keeps in `nf_tables`.
    Chain(Family, &'static Place),
    /// The same, where `iptables` is the old one.
    Legacy(&'static legacy::Legacy, &'static Place),
}

/// Where a chain of flannel's stands, and from where one gets there.
pub(crate) struct Place {
    table: &'static str,
    base: &'static str,
    chain: &'static str,
}

const TABLES: [(Family, &str); 2] = [
    (Family::Ipv4, "flannel-ipv4"),
    (Family::Ipv6, "flannel-ipv6"),
];

static PLACES: [Place; 2] = [
    Place {
        table: "nat",
        base: "POSTROUTING",
        chain: "FLANNEL-POSTRTG",
    },
    Place {
        table: "filter",
        base: "FORWARD",
        chain: "FLANNEL-FWD",
    },
];

/// Everything there is of it.
pub(crate) fn remains() -> Result<Vec<Remain>, String> {
    let mut remains = Vec::new();
    for (family, table) in TABLES {
        if nftables::has_table(family, table).map_err(|error| chain(&error))? {
            remains.push(Remain::Table(family, table));
        }
    }
    for place in &PLACES {
        for family in [Family::Ipv4, Family::Ipv6] {
            let look = nftables::look(family, place.table, &[place.chain]);
            if look.map_err(|error| chain(&error))?.is_some() {
                remains.push(Remain::Chain(family, place));
            }
        }
        for legacy in legacy::FAMILIES
            .iter()
            .filter(|legacy| legacy.has(place.table))
        {
            let rules = legacy.rules(place.table, place.base)?;
            let own = legacy.rules(place.table, place.chain)?;
            if !own.is_empty() || rules.iter().any(|rule| place.is_jump(rule)) {
                remains.push(Remain::Legacy(legacy, place));
            }
        }
    }
    Ok(remains)
}

impl Remain {
    /// Takes it away, in one transaction.
    pub(crate) fn remove(&self) -> Result<(), String> {
        let failed = |error: kernel::Error| chain(&error);
        let mut transaction = Transaction::new();
        match self {
            Self::Table(family, table) => transaction.delete_table(*family, table),
            Self::Chain(family, place) => {
                let rules = nftables::rules(*family, place.table, place.base).map_err(failed)?;
                let leads = |rule: &&nftables::Listed| rule.jump().as_deref() == Some(place.chain);
                for rule in rules.iter().filter(leads) {
                    transaction.delete_rule(*family, place.table, place.base, rule.handle);
                }
                transaction.delete_chain(*family, place.table, place.chain);
            }
            Self::Legacy(legacy, place) => {
                let rules = legacy.rules(place.table, place.base)?;
                let jumps = rules.iter().filter(|rule| place.is_jump(rule));
                let mut lines: Vec<_> = jumps.map(|rule| rule.replacen("-A", "-D", 1)).collect();
                lines.extend([format!("-F {}", place.chain), format!("-X {}", place.chain)]);
                return legacy.change(place.table, &lines);
            }
        }
        transaction
            .commit("take flannel's rules away")
            .map_err(failed)
    }
}

impl Place {
    fn is_jump(&self, rule: &str) -> bool {
        rule.ends_with(&format!("-j {}", self.chain))
    }
}

impl fmt::Display for Remain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(_, table) => write!(f, "nf_tables table {table}"),
            Self::Chain(family, place) => {
                let program = if *family == Family::Ipv4 {
                    "iptables"
                } else {
                    "ip6tables"
                };
                write!(f, "{program} chain {} of {}", place.chain, place.table)
            }
            Self::Legacy(legacy, place) => {
                write!(
                    f,
                    "{} chain {} of {}",
                    legacy.program, place.chain, place.table
                )
            }
        }
    }
}
