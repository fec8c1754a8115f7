//! Rules that the reference plugin `portmap` left for an attachment, on a node whose plugin list had that
//! plugin when the attachment was made.

use std::fs;

use kernel::nftables::{self, Family, Transaction};
use programs::iptables::Iptables;
use sha2::{Digest, Sha512};
use util::hex_128;

use crate::error::{Error, refused};

/// The chain with a jump to the chain of each container.
const JUMPS: &str = "CNI-HOSTPORT-DNAT";

/// Table and chains of its backend `nftables`.
const TABLE: &str = "cni_hostport";

/// Removes the rules of one container, of both backends. Succeeds if there are none.
pub fn remove(network: &str, container_id: &str) -> Result<(), Error> {
    let chain = chain_of(network, container_id);
    let failed = || refused("remove what the portmap plugin left");
    let has_nftables = nftables::is_available().is_ok();
    for family in [Family::Ipv4, Family::Ipv6] {
        if has_nftables {
            remove_chain(family, &chain).map_err(failed())?;
            remove_rules(family, container_id).map_err(failed())?;
        }
        remove_legacy(family, &chain)?;
    }
    Ok(())
}

/// Returns whether there are rules for a container, of either backend.
pub fn has_rules(network: &str, container_id: &str) -> Result<bool, Error> {
    let chain = chain_of(network, container_id);
    let failed = || refused("look for the portmap plugin's rules");
    let has_nftables = nftables::is_available().is_ok();
    for family in [Family::Ipv4, Family::Ipv6] {
        let is_found = has_nftables
            && (nftables::chain(family, "nat", &chain)
                .map_err(failed())?
                .is_some()
                || !rules_of(family, container_id).map_err(failed())?.is_empty());
        if is_found || legacy_chain(family, &chain)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The chain of a container.
fn chain_of(network: &str, container_id: &str) -> String {
    let hash = hex_128(&Sha512::digest(format!("{network}{container_id}")));
    format!("CNI-DN-{hash:.21}")
}

/// Removes the chains of the network's containers that are not valid, of the backend `iptables`. The
/// rules of the other backend do not tell their network.
pub fn collect(network: &str, is_valid: impl Fn(&str) -> bool) -> Result<(), Error> {
    if nftables::is_available().is_err() {
        return Ok(());
    }
    for family in [Family::Ipv4, Family::Ipv6] {
        let rules = nftables::rules(family, "nat", JUMPS);
        for rule in rules.map_err(refused("read the portmap plugin's rules"))? {
            let owner = rule.comment.as_deref().and_then(owner);
            if let Some((name, id)) = owner
                && name == network
                && !is_valid(id)
            {
                remove(network, id)?;
            }
        }
    }
    Ok(())
}

/// Reads the comment of a jump: `dnat name: "cbr0" id: "pod1"`.
fn owner(comment: &str) -> Option<(&str, &str)> {
    let rest = comment.strip_prefix("dnat name: \"")?;
    let (name, rest) = rest.split_once("\" id: \"")?;
    Some((name, rest.strip_suffix('"')?))
}

/// Removes the chain of a container in the table of iptables-nft, with the jumps to it.
fn remove_chain(family: Family, chain: &str) -> Result<(), kernel::Error> {
    if nftables::chain(family, "nat", chain)?.is_none() {
        return Ok(());
    }
    let mut transaction = Transaction::new();
    for rule in nftables::rules(family, "nat", JUMPS)? {
        if rule.jump().as_deref() == Some(chain) {
            transaction.delete_rule(family, "nat", JUMPS, rule.handle);
        }
    }
    transaction.delete_chain(family, "nat", chain);
    succeed_if_gone(transaction.commit("remove the portmap plugin's chain"))
}

/// Removes the rules of a container in the table of the backend `nftables`. Their comment is the
/// container's id.
fn remove_rules(family: Family, container_id: &str) -> Result<(), kernel::Error> {
    let mut transaction = Transaction::new();
    for (chain, handle) in rules_of(family, container_id)? {
        transaction.delete_rule(family, TABLE, &chain, handle);
    }
    succeed_if_gone(transaction.commit("remove the portmap plugin's rules"))
}

/// The rules of a container in the table of the backend `nftables`: their chains and handles.
fn rules_of(family: Family, container_id: &str) -> Result<Vec<(String, u64)>, kernel::Error> {
    let mut found = Vec::new();
    if !nftables::has_table(family, TABLE)? {
        return Ok(found);
    }
    for chain in nftables::chains(family, TABLE)? {
        let rules = nftables::rules(family, TABLE, &chain)?.into_iter();
        let of_container = rules.filter(|rule| rule.comment.as_deref() == Some(container_id));
        found.extend(of_container.map(|rule| (chain.clone(), rule.handle)));
    }
    Ok(found)
}

/// Removes the chain of a container in the tables of iptables-legacy, which only its program can
/// change.
fn remove_legacy(family: Family, chain: &str) -> Result<(), Error> {
    let Some((program, saved)) = legacy_chain(family, chain)? else {
        return Ok(());
    };
    let jump = format!("-A {JUMPS} ");
    let to_chain = format!(" -j {chain}");
    let jumps = saved.lines().filter_map(|line| {
        let rule = line.strip_prefix(&jump)?;
        line.ends_with(&to_chain)
            .then(|| format!("-D {JUMPS} {rule}\n"))
    });
    let removal: String = jumps.chain([format!("-F {chain}\n-X {chain}\n")]).collect();
    let restored = program.restore("nat", &removal);
    restored.map_err(|error| Error::Iptables(program.name, error))
}

/// The table of iptables-legacy with the chain of a container, and the program that changes it. `None`
/// if there is no such chain.
fn legacy_chain(family: Family, chain: &str) -> Result<Option<(Iptables, String)>, Error> {
    let (tables, name) = match family {
        Family::Ipv6 => ("/proc/net/ip6_tables_names", "ip6tables-legacy"),
        _ => ("/proc/net/ip_tables_names", "iptables-legacy"),
    };
    let tables = fs::read_to_string(tables).unwrap_or_default();
    let program = Iptables { name, lock_wait: 5 };
    let failed = |error| Error::Iptables(name, error);
    if !tables.lines().any(|table| table == "nat") || !program.is_installed().map_err(failed)? {
        return Ok(None);
    }
    let saved = program.save("nat").map_err(failed)?;
    let start = format!(":{chain} ");
    let has_chain = saved.lines().any(|line| line.starts_with(&start));
    Ok(has_chain.then_some((program, saved)))
}

/// Another process may remove the same rules.
fn succeed_if_gone(result: Result<(), kernel::Error>) -> Result<(), kernel::Error> {
    match result {
        Err(error) if !error.is_gone() => Err(error),
        _ => Ok(()),
    }
}
