//! Our rules, written with the programs `iptables` and `ip6tables`, for kernels without
//! `nf_tables`.

use ipnetwork::IpNetwork;
use kernel::nftables::{self, Family};
use programs::iptables::Iptables;
use subnet::Subnet;

use super::legacy::LOCK_WAIT;
use super::rules::FirewallRules;
use super::{COMMENT, FirewallConfig, KUBE_PROXY_MARK, legacy};
use crate::error::Result;

const POSTROUTING: &str = "HOSTGW-POSTRTG";
const FORWARD: &str = "HOSTGW-FWD";

const IPTABLES: Iptables = Iptables {
    name: "iptables",
    lock_wait: LOCK_WAIT,
};

const IP6TABLES: Iptables = Iptables {
    name: "ip6tables",
    lock_wait: LOCK_WAIT,
};

/// Writes the rules. Returns whether anything had to be changed.
pub(super) fn ensure(rules: &FirewallRules, config: &FirewallConfig) -> Result<bool> {
    let mut changed = false;
    for (cluster, own) in &rules.0 {
        let program = if cluster.is_ipv4() {
            IPTABLES
        } else {
            IP6TABLES
        };
        for (table, base, chain, wanted) in [
            (
                "nat",
                "POSTROUTING",
                POSTROUTING,
                masquerade(*cluster, *own, config),
            ),
            ("filter", "FORWARD", FORWARD, accept(*cluster, config)),
        ] {
            changed |= ensure_chain(program, table, base, chain, &wanted)?;
        }
    }
    Ok(changed)
}

/// Writes one of our chains and the jump to it, in one transaction, or removes both if `wanted` is
/// empty. Returns whether anything had to be changed.
fn ensure_chain(
    program: Iptables,
    table: &str,
    base: &str,
    chain: &str,
    wanted: &[String],
) -> Result<bool> {
    let listing = program.rules(table)?;
    let of_chain = format!("-A {chain} ");
    let present: Vec<_> = listing
        .lines()
        .filter(|line| line.starts_with(&of_chain))
        .collect();
    let jump = jump(base, chain);
    let jumps = listing.lines().filter(|line| **line == jump).count();
    if jumps == usize::from(!wanted.is_empty()) && present == wanted {
        return Ok(false);
    }
    let mut lines = vec![format!(":{chain} - [0:0]")];
    lines.extend((0..jumps).map(|_| jump.replacen("-A", "-D", 1)));
    if wanted.is_empty() {
        if !listing.lines().any(|line| line == format!("-N {chain}")) {
            return Ok(false);
        }
        lines.push(format!("-X {chain}"));
    } else {
        lines.extend_from_slice(wanted);
        lines.push(jump);
    }
    program.restore(table, &(lines.join("\n") + "\n"))?;
    Ok(true)
}

/// Returns true if our chains exist. Runs no program if netlink and `/proc` show it.
pub(super) fn exist() -> Result<bool> {
    for family in [Family::Ipv4, Family::Ipv6] {
        for (table, chain) in [("nat", POSTROUTING), ("filter", FORWARD)] {
            if nftables::dump_chains(family, table, &[chain]).is_ok_and(|words| words.is_some()) {
                return Ok(true);
            }
        }
    }
    for legacy in legacy::FAMILIES.iter().filter(|legacy| legacy.has("nat")) {
        let jumps = legacy.rules("nat", "POSTROUTING")?;
        if jumps.iter().any(|rule| rule.ends_with(POSTROUTING)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes our chains and returns how many there were. With `is_dry`, only counts them.
pub(crate) fn remove(is_dry: bool) -> Result<usize> {
    let mut count = 0;
    for program in [IPTABLES, IP6TABLES] {
        if !program.is_installed()? {
            continue;
        }
        for (table, base, chain) in [
            ("nat", "POSTROUTING", POSTROUTING),
            ("filter", "FORWARD", FORWARD),
        ] {
            let listing = program.rules(table)?;
            if !listing.lines().any(|line| line == format!("-N {chain}")) {
                continue;
            }
            count += 1;
            if !is_dry {
                ensure_chain(program, table, base, chain, &[])?;
            }
        }
    }
    Ok(count)
}

/// Returns the jump to a chain, as the programs print it.
fn jump(base: &str, chain: &str) -> String {
    format!("-A {base} -m comment --comment {COMMENT} -j {chain}")
}

fn masquerade(cluster: IpNetwork, own: IpNetwork, config: &FirewallConfig) -> Vec<String> {
    if !config.masquerade {
        return Vec::new();
    }
    let random = if config.random_ports {
        " --random-fully"
    } else {
        ""
    };
    let keep = config
        .no_masquerade
        .iter()
        .filter(|network| network.is_ipv4() == cluster.is_ipv4());
    let keep = keep.map(|network| match network.prefix() {
        // The programs do not print a destination that matches everything.
        0 => format!("-s {cluster} -j RETURN"),
        _ => format!("-s {cluster} -d {network} -j RETURN"),
    });
    let before = [
        format!("-m mark --mark {KUBE_PROXY_MARK:#x}/{KUBE_PROXY_MARK:#x} -j RETURN"),
        format!("-s {own} -d {cluster} -j RETURN"),
        format!("-s {cluster} -d {own} -j RETURN"),
        format!("! -s {cluster} -d {own} -j RETURN"),
    ];
    let after = [
        format!(
            "-s {cluster} ! -d {} -j MASQUERADE{random}",
            Subnet::of(cluster).multicast()
        ),
        format!("! -s {cluster} -d {cluster} -j MASQUERADE{random}"),
    ];
    let rules = before.into_iter().chain(keep).chain(after);
    rules
        .map(|rule| format!("-A {POSTROUTING} {rule}"))
        .collect()
}

fn accept(cluster: IpNetwork, config: &FirewallConfig) -> Vec<String> {
    let sides = ["-s", "-d"].into_iter().filter(|_| config.forward);
    sides
        .map(|side| format!("-A {FORWARD} {side} {cluster} -j ACCEPT"))
        .collect()
}
