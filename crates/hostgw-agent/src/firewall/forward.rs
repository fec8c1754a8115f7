//! FORWARD chains of `iptables` that drop by default: there, what pods send and get is accepted.

use ipnetwork::IpNetwork;
use kernel::nftables::{self, Family, Rule, Transaction};

use super::{COMMENT, Rules, legacy};
use crate::error::chain;

/// The table and the chain, in each family of tables.
const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// Accepts where the default is to drop, and only there. Says how many rules were added.
pub(super) fn ensure(rules: &Rules) -> Result<usize, String> {
    let mut added = 0;
    for family in FAMILIES {
        let networks: Vec<_> = rules
            .networks()
            .filter(|network| is_of(family, *network))
            .collect();
        added += ensure_in(family, &networks)?;
    }
    Ok(added)
}

/// By netlink, in the words of `iptables`, so that it lists them like its own.
fn ensure_in(family: Family, networks: &[IpNetwork]) -> Result<usize, String> {
    let failed = |error: kernel::Error| chain(&error);
    let drops = nftables::drops_by_default(family, TABLE, CHAIN).map_err(failed)?;
    let present = ours(family)?;
    let wanted = if drops { networks.len() * 2 } else { 0 };
    // Each rule of ours names its network: of another network's there would be another number.
    let names: Vec<_> = networks.iter().map(|network| comment(*network)).collect();
    let are_right = present.iter().all(|(_, comment)| names.contains(comment));
    if present.len() == wanted && are_right {
        return Ok(0);
    }
    let mut transaction = Transaction::new();
    for (handle, _) in &present {
        transaction.delete_rule(family, TABLE, CHAIN, *handle);
    }
    if drops {
        for network in networks {
            for rule in [Rule::new().from(*network), Rule::new().to(*network)] {
                let rule = rule.counted().accept().commented(&comment(*network));
                transaction.add_rule(family, TABLE, CHAIN, &rule);
            }
        }
    }
    transaction
        .commit("accept in iptables' FORWARD chain")
        .map_err(failed)?;
    Ok(wanted.saturating_sub(present.len()))
}

/// Takes our rules away. Says how many there were; with `is_dry`, how many there are.
pub(crate) fn remove(is_dry: bool) -> Result<usize, String> {
    let mut count = 0;
    for family in FAMILIES {
        let present = ours(family)?;
        count += present.len();
        let mut transaction = Transaction::new();
        for (handle, _) in present {
            transaction.delete_rule(family, TABLE, CHAIN, handle);
        }
        if !is_dry {
            let doing = "take our rules from iptables' FORWARD chain";
            transaction.commit(doing).map_err(|error| chain(&error))?;
        }
    }
    Ok(count + legacy::remove_forward(is_dry)?)
}

/// The numbers of our rules, and what they say of themselves.
fn ours(family: Family) -> Result<Vec<(u64, String)>, String> {
    let rules = nftables::rules(family, TABLE, CHAIN).map_err(|error| chain(&error))?;
    let ours = rules.into_iter().filter_map(|rule| {
        let comment = rule.comment?;
        comment
            .starts_with(COMMENT)
            .then_some((rule.handle, comment))
    });
    Ok(ours.collect())
}

fn comment(network: IpNetwork) -> String {
    format!("{COMMENT} {network}")
}

fn is_of(family: Family, network: IpNetwork) -> bool {
    (family == Family::Ipv4) == network.is_ipv4()
}
