//! Chains of others that refuse what pods send and get. In the FORWARD chains of `iptables` it is
//! accepted before they do; of all others it is said, with the command that opens them.

use ipnetwork::IpNetwork;
use kernel::nftables::{
    self, BaseChain, Family, Fate, Listed, Reading, Rule, Transaction, forward_chains,
};

use super::{COMMENT, Flow, Rules, TABLE as OURS, legacy};
use crate::error::chain;

/// The table and the chain, in each family of tables.
const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// What became of it.
#[derive(Default)]
pub(super) struct Outcome {
    /// How many rules were added.
    pub(super) added: usize,
    /// What is refused all the same, to and from all other nodes.
    pub(super) troubles: Vec<String>,
    /// The same of some.
    pub(super) warnings: Vec<String>,
}

/// Accepts what a FORWARD chain would refuse, and only there: before the rule that refuses whatever comes.
/// One that refuses some addresses is somebody's wish, and is said where it is about pods of this node.
pub(super) fn ensure(rules: &Rules, flows: &[Flow]) -> Result<Outcome, String> {
    let failed = |error: kernel::Error| chain(&error);
    let mut outcome = Outcome::default();
    let chains = forward_chains().map_err(failed)?;
    for family in FAMILIES {
        let is_it = |chain: &&BaseChain| is_iptables(chain) && chain.family == family;
        let networks: Vec<_> = rules
            .networks()
            .filter(|network| is_of(family, *network))
            .collect();
        let Some(base) = chains.iter().find(is_it) else {
            continue;
        };
        let flows = flows.iter().filter(|flow| is_of(family, flow.from));
        let flows: Vec<_> = flows.collect();
        outcome.added += ensure_in(base, &networks, &flows)?;
        // As it is now.
        let chains = forward_chains().map_err(failed)?;
        let Some(base) = chains.iter().find(is_it) else {
            continue;
        };
        for is_out in [true, false] {
            let all: Vec<_> = flows.iter().filter(|flow| flow.is_out == is_out).collect();
            let mut refused = Vec::new();
            for flow in &all {
                if is_refused(base, flow).map_err(failed)? {
                    refused.push(flow);
                }
            }
            let said = refused.iter().map(|flow| {
                format!(
                    "{0} refuses what goes from {1} to {2}: a rule for such addresses stands before ours (`{0} -S {CHAIN}` shows it)",
                    program(family),
                    flow.from,
                    flow.to,
                )
            });
            if refused.len() == all.len() {
                outcome.troubles.extend(said.take(1));
            } else {
                outcome.warnings.extend(said);
            }
        }
    }
    Ok(outcome)
}

/// Whether a chain refuses everything of a flow, for sure.
fn is_refused(base: &BaseChain, flow: &Flow) -> Result<bool, kernel::Error> {
    for packet in &flow.packets {
        let (fate, is_sure) = base.judge(packet, Reading::Whole, |_| false)?;
        if fate == Fate::Passes || !is_sure {
            return Ok(false);
        }
    }
    Ok(!flow.packets.is_empty())
}

/// By netlink, in the words of `iptables`, so that it lists them like its own.
fn ensure_in(base: &BaseChain, networks: &[IpNetwork], flows: &[&Flow]) -> Result<usize, String> {
    let failed = |error: kernel::Error| chain(&error);
    let family = base.family;
    let all = nftables::rules(family, TABLE, CHAIN).map_err(failed)?;
    let place = |handle: u64| all.iter().position(|rule| rule.handle == handle);
    let is_left_out = |rule: &Listed| name(rule).is_some();
    let mut is_needed = false;
    let mut before = None;
    for packet in flows.iter().flat_map(|flow| &flow.packets) {
        let whole = base.judge(packet, Reading::Whole, is_left_out);
        let blind = base.judge(packet, Reading::WithoutAddresses, is_left_out);
        match (whole.map_err(failed)?.0, blind.map_err(failed)?.0) {
            (Fate::RefusedByPolicy, _) => is_needed = true,
            // The one that refuses whatever comes, and behind what is said of addresses.
            (Fate::RefusedBy(whole), Fate::RefusedBy(blind)) => {
                is_needed = true;
                let refusing = place(whole).max(place(blind));
                before = [before, refusing].into_iter().flatten().min();
            }
            _ => {}
        }
    }
    let mut wanted: Vec<_> = networks
        .iter()
        .filter(|_| is_needed)
        .flat_map(|network| [comment(*network), comment(*network)])
        .collect();
    let present: Vec<_> = all
        .iter()
        .enumerate()
        .filter_map(|(place, rule)| Some((place, rule.handle, name(rule)?)))
        .collect();
    let mut names: Vec<_> = present.iter().map(|(.., name)| name.clone()).collect();
    names.sort();
    wanted.sort();
    let are_early = before.is_none_or(|before| present.iter().all(|(place, ..)| *place < before));
    if names == wanted && are_early {
        return Ok(0);
    }
    let mut transaction = Transaction::new();
    for (_, handle, _) in &present {
        transaction.delete_rule(family, TABLE, CHAIN, *handle);
    }
    let before = before
        .and_then(|place| all.get(place))
        .map(|rule| rule.handle);
    for network in networks.iter().filter(|_| is_needed) {
        for rule in [Rule::new().from(*network), Rule::new().to(*network)] {
            let rule = rule.counted().accept().commented(&comment(*network));
            match before {
                Some(before) => transaction.insert_rule(family, TABLE, CHAIN, &rule, before),
                None => transaction.add_rule(family, TABLE, CHAIN, &rule),
            }
        }
    }
    transaction
        .commit("accept in iptables' FORWARD chain")
        .map_err(failed)?;
    Ok(wanted.len().saturating_sub(present.len()))
}

/// Which other chains refuse what pods send and get, and what opens them.
pub(super) fn foreign(rules: &Rules, flows: &[Flow]) -> Result<Vec<String>, String> {
    let failed = |error: kernel::Error| chain(&error);
    let mut said = Vec::new();
    for base in forward_chains().map_err(failed)? {
        if is_iptables(&base) || base.family == Family::Inet && base.table == OURS {
            continue;
        }
        let is_judged = |flow: &&Flow| base.family == Family::Inet || is_of(base.family, flow.from);
        for flow in flows.iter().filter(is_judged) {
            if is_refused(&base, flow).map_err(failed)? {
                said.push(opening(&base, rules));
                break;
            }
        }
    }
    Ok(said)
}

/// What a chain does to pods, and the command that opens it.
fn opening(base: &BaseChain, rules: &Rules) -> String {
    let (table, chain) = (&base.table, &base.name);
    let networks: Vec<_> = rules.networks().collect();
    if table == "firewalld" {
        let sources: Vec<_> = networks
            .iter()
            .map(|network| {
                format!("firewall-cmd --permanent --zone=trusted --add-source={network}")
            })
            .collect();
        return format!(
            "firewalld refuses what pods send and get; `{}; firewall-cmd --permanent --new-policy=pods; firewall-cmd --permanent --policy=pods --add-ingress-zone=ANY --add-egress-zone=trusted --set-target=ACCEPT; firewall-cmd --reload` lets it through",
            sources.join("; ")
        );
    }
    let family = match base.family {
        Family::Inet => "inet",
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    };
    let is_of_table =
        |network: &&IpNetwork| base.family == Family::Inet || is_of(base.family, **network);
    let commands: Vec<_> = networks
        .iter()
        .filter(is_of_table)
        .flat_map(|network| {
            let ip = if network.is_ipv4() { "ip" } else { "ip6" };
            ["saddr", "daddr"].map(|side| {
                format!("nft insert rule {family} {table} {chain} {ip} {side} {network} accept")
            })
        })
        .collect();
    format!(
        "the nf_tables chain {family} {table} {chain} refuses what pods send and get; `{}` lets it through",
        commands.join("; ")
    )
}

/// Whether it is the chain that `iptables` calls FORWARD.
fn is_iptables(chain: &BaseChain) -> bool {
    FAMILIES.contains(&chain.family) && chain.table == TABLE && chain.name == CHAIN
}

fn program(family: Family) -> &'static str {
    if family == Family::Ipv4 {
        "iptables"
    } else {
        "ip6tables"
    }
}

/// Takes our rules away. Says how many there were; with `is_dry`, how many there are.
pub(crate) fn remove(is_dry: bool) -> Result<usize, String> {
    let mut count = 0;
    for family in FAMILIES {
        let present = ours(family)?;
        count += present.len();
        let mut transaction = Transaction::new();
        for handle in present {
            transaction.delete_rule(family, TABLE, CHAIN, handle);
        }
        if !is_dry {
            let doing = "take our rules from iptables' FORWARD chain";
            transaction.commit(doing).map_err(|error| chain(&error))?;
        }
    }
    Ok(count + legacy::remove_forward(is_dry)?)
}

/// The numbers of our rules.
fn ours(family: Family) -> Result<Vec<u64>, String> {
    let rules = nftables::rules(family, TABLE, CHAIN).map_err(|error| chain(&error))?;
    let ours = rules.iter().filter(|rule| name(rule).is_some());
    Ok(ours.map(|rule| rule.handle).collect())
}

/// What a rule of ours says of itself, in whatever form it is by now; nothing where it is another's.
fn name(rule: &Listed) -> Option<String> {
    let comment = rule.comment.as_ref()?;
    let rest = comment.strip_prefix(COMMENT)?;
    (rest.is_empty() || rest.starts_with(' ')).then(|| comment.clone())
}

fn comment(network: IpNetwork) -> String {
    format!("{COMMENT} {network}")
}

fn is_of(family: Family, network: IpNetwork) -> bool {
    (family == Family::Ipv4) == network.is_ipv4()
}
