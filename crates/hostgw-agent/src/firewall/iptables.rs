//! Our rules by the programs `iptables` and `ip6tables`, for kernels without `nf_tables`.

use ipnetwork::IpNetwork;
use kernel::nftables::{self, Family};

use super::legacy::WAIT;
use super::{COMMENT, KUBE_PROXY, Rules, Settings, legacy, multicast};
use crate::programs::{find, run};

const POSTROUTING: &str = "HOSTGW-POSTRTG";
const FORWARD: &str = "HOSTGW-FWD";

/// Puts the rules there. Says whether anything was not as it should be.
pub(super) fn ensure(rules: &Rules, settings: &Settings) -> Result<bool, String> {
    let mut changed = false;
    for (cluster, own) in &rules.0 {
        let program = program(cluster.is_ipv4());
        for (table, base, chain, wanted) in [
            (
                "nat",
                "POSTROUTING",
                POSTROUTING,
                masquerade(*cluster, *own, settings),
            ),
            ("filter", "FORWARD", FORWARD, accept(*cluster, settings)),
        ] {
            changed |= ensure_chain(program, table, base, chain, &wanted)?;
        }
    }
    Ok(changed)
}

/// One chain of ours, and the way to it, in one transaction.
fn ensure_chain(
    program: &str,
    table: &str,
    base: &str,
    chain: &str,
    wanted: &[String],
) -> Result<bool, String> {
    let listing = run(program, &["-w", WAIT, "-t", table, "-S"], "")?;
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
    let mut lines = vec![format!("*{table}"), format!(":{chain} - [0:0]")];
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
    restore(program, &lines)?;
    Ok(true)
}

/// Whether our chains are there, without a program where that can be told.
pub(super) fn are_there() -> Result<bool, String> {
    for family in [Family::Ipv4, Family::Ipv6] {
        for (table, chain) in [("nat", POSTROUTING), ("filter", FORWARD)] {
            if nftables::look(family, table, &[chain]).is_ok_and(|words| words.is_some()) {
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

/// Takes our chains away. Says how many there were; with `is_dry`, how many there are.
pub(crate) fn remove(is_dry: bool) -> Result<usize, String> {
    let mut count = 0;
    for program in ["iptables", "ip6tables"]
        .into_iter()
        .filter(|program| find(program).is_some())
    {
        for (table, base, chain) in [
            ("nat", "POSTROUTING", POSTROUTING),
            ("filter", "FORWARD", FORWARD),
        ] {
            let listing = run(program, &["-w", WAIT, "-t", table, "-S"], "")?;
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

fn restore(program: &str, lines: &[String]) -> Result<(), String> {
    let text = format!("{}\nCOMMIT\n", lines.join("\n"));
    run(
        &format!("{program}-restore"),
        &["-w", WAIT, "--noflush"],
        &text,
    )
    .map(drop)
}

fn program(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "iptables" } else { "ip6tables" }
}

/// As the programs print it.
fn jump(base: &str, chain: &str) -> String {
    format!("-A {base} -m comment --comment {COMMENT} -j {chain}")
}

fn masquerade(cluster: IpNetwork, own: IpNetwork, settings: &Settings) -> Vec<String> {
    if !settings.masquerade {
        return Vec::new();
    }
    let random = if settings.is_random {
        " --random-fully"
    } else {
        ""
    };
    let keep = settings
        .keep
        .iter()
        .filter(|network| network.is_ipv4() == cluster.is_ipv4());
    let keep = keep.map(|network| match network.prefix() {
        // The programs do not print what matches everything.
        0 => format!("-s {cluster} -j RETURN"),
        _ => format!("-s {cluster} -d {network} -j RETURN"),
    });
    let before = [
        format!("-m mark --mark {KUBE_PROXY:#x}/{KUBE_PROXY:#x} -j RETURN"),
        format!("-s {own} -d {cluster} -j RETURN"),
        format!("-s {cluster} -d {own} -j RETURN"),
        format!("! -s {cluster} -d {own} -j RETURN"),
    ];
    let behind = [
        format!(
            "-s {cluster} ! -d {} -j MASQUERADE{random}",
            multicast(cluster)
        ),
        format!("! -s {cluster} -d {cluster} -j MASQUERADE{random}"),
    ];
    let rules = before.into_iter().chain(keep).chain(behind);
    rules
        .map(|rule| format!("-A {POSTROUTING} {rule}"))
        .collect()
}

fn accept(cluster: IpNetwork, settings: &Settings) -> Vec<String> {
    let sides = ["-s", "-d"].into_iter().filter(|_| settings.forward);
    sides
        .map(|side| format!("-A {FORWARD} {side} {cluster} -j ACCEPT"))
        .collect()
}
