//! The FORWARD chains of `iptables`, and the forward chains of others. In the former, our rules accept
//! packets of pods before others refuse them. For the latter, a warning has the command that opens
//! them.

use ipnetwork::IpNetwork;
use kernel::nftables::{
    self, BaseChain, ChainDecision, Family, ListedRule, MatchMode, Rule, Transaction,
    forward_chains,
};

use super::rules::{FirewallRules, Flow};
use super::table::TABLE as OUR_TABLE;
use super::{COMMENT, legacy};
use crate::error::{Error, Result};

/// The table and the chain of `iptables`, and the families that have them.
const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// The result of [`ensure`].
#[derive(Default)]
pub(super) struct Outcome {
    /// The number of rules that were added.
    pub(super) added: usize,
    /// Directions in which packets to or from all other nodes are still refused.
    pub(super) problems: Vec<Error>,
    /// Other nodes to or from which packets are still refused.
    pub(super) warnings: Vec<String>,
}

/// Accepts packets of pods in a FORWARD chain that would refuse them, and only there: before the rule
/// that refuses all packets. A rule that refuses some addresses stays in front, because someone wants
/// it; if it is about pods of this node, the outcome says so.
pub(super) fn ensure(rules: &FirewallRules, flows: &[Flow]) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let chains = forward_chains()?;
    for family in FAMILIES {
        let is_forward = |chain: &&BaseChain| is_iptables(chain) && chain.family == family;
        let networks: Vec<_> = rules
            .networks()
            .filter(|network| is_of_family(family, *network))
            .collect();
        let Some(chain) = chains.iter().find(is_forward) else {
            continue;
        };
        let flows = flows.iter().filter(|flow| is_of_family(family, flow.from));
        let flows: Vec<_> = flows.collect();
        outcome.added += ensure_in(chain, &networks, &flows)?;
        let chains = forward_chains()?;
        if let Some(chain) = chains.iter().find(is_forward) {
            outcome.evaluate(chain, &flows)?;
        }
    }
    Ok(outcome)
}

impl Outcome {
    /// Finds flows that a chain still refuses.
    fn evaluate(&mut self, chain: &BaseChain, flows: &[&Flow]) -> Result<()> {
        for is_outgoing in [true, false] {
            let all = || flows.iter().filter(|flow| flow.is_outgoing == is_outgoing);
            let mut refused = Vec::new();
            for flow in all() {
                if is_refused(chain, flow)? {
                    refused.push(Error::ForwardRefused {
                        program: program(chain.family),
                        from: flow.from,
                        to: flow.to,
                    });
                }
            }
            if refused.len() == all().count() {
                self.problems.extend(refused.into_iter().take(1));
            } else {
                self.warnings.extend(refused.iter().map(Error::text));
            }
        }
        Ok(())
    }
}

/// Returns true if a chain certainly refuses all packets of a flow.
fn is_refused(base: &BaseChain, flow: &Flow) -> Result<bool, kernel::Error> {
    for packet in &flow.packets {
        let (fate, is_sure) = base.evaluate(packet, MatchMode::Full, |_| false)?;
        if fate == ChainDecision::Passes || !is_sure {
            return Ok(false);
        }
    }
    Ok(!flow.packets.is_empty())
}

/// The place of our rules in a FORWARD chain.
#[derive(Default)]
struct Placement {
    /// True if the chain refuses packets of pods.
    is_needed: bool,
    /// The index of the rule that must come after ours.
    before: Option<usize>,
}

/// Finds the place of our rules among all rules of the chain: before the rule that refuses all
/// packets, and after rules about addresses.
fn placement(base: &BaseChain, flows: &[&Flow], all: &[ListedRule]) -> Result<Placement> {
    let place = |handle: u64| all.iter().position(|rule| rule.handle == handle);
    let is_left_out = |rule: &ListedRule| name(rule).is_some();
    let mut placement = Placement::default();
    for packet in flows.iter().flat_map(|flow| &flow.packets) {
        let with_addresses = base.evaluate(packet, MatchMode::Full, is_left_out);
        let without_addresses = base.evaluate(packet, MatchMode::WithoutAddresses, is_left_out);
        match (with_addresses?.0, without_addresses?.0) {
            (ChainDecision::DeniedByPolicy, _) => placement.is_needed = true,
            (
                ChainDecision::DeniedByRule(with_addresses),
                ChainDecision::DeniedByRule(without_addresses),
            ) => {
                placement.is_needed = true;
                let refusing = place(with_addresses).max(place(without_addresses));
                placement.before = [placement.before, refusing].into_iter().flatten().min();
            }
            _ => {}
        }
    }
    Ok(placement)
}

/// Writes the rules over netlink, in the form that `iptables` uses, so that it lists them like its
/// own. Returns how many rules were added.
fn ensure_in(base: &BaseChain, networks: &[IpNetwork], flows: &[&Flow]) -> Result<usize> {
    let family = base.family;
    let all = nftables::rules(family, TABLE, CHAIN)?;
    let Placement { is_needed, before } = placement(base, flows, &all)?;
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
            let rule = rule.counted().accept().with_comment(&comment(*network));
            match before {
                Some(before) => transaction.insert_rule(family, TABLE, CHAIN, &rule, before),
                None => transaction.add_rule(family, TABLE, CHAIN, &rule),
            }
        }
    }
    transaction.commit("add accept rules to the FORWARD chain of iptables")?;
    Ok(wanted.len().saturating_sub(present.len()))
}

/// The chains of others that refuse packets of pods, each in a sentence with the command that opens it.
pub(super) fn refusing_chains(rules: &FirewallRules, flows: &[Flow]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for base in forward_chains()? {
        if is_iptables(&base) || base.family == Family::Inet && base.table == OUR_TABLE {
            continue;
        }
        let is_judged =
            |flow: &&Flow| base.family == Family::Inet || is_of_family(base.family, flow.from);
        for flow in flows.iter().filter(is_judged) {
            if is_refused(&base, flow)? {
                warnings.push(refusal_warning(&base, rules));
                break;
            }
        }
    }
    Ok(warnings)
}

/// Returns the warning about a chain that refuses pod traffic, with the command that opens it.
fn refusal_warning(base: &BaseChain, rules: &FirewallRules) -> String {
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
            "firewalld refuses packets of pods; `{}; firewall-cmd --permanent --new-policy=pods; firewall-cmd --permanent --policy=pods --add-ingress-zone=ANY --add-egress-zone=trusted --set-target=ACCEPT; firewall-cmd --reload` opens it",
            sources.join("; ")
        );
    }
    let family = match base.family {
        Family::Inet => "inet",
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    };
    let is_of_table =
        |network: &&IpNetwork| base.family == Family::Inet || is_of_family(base.family, **network);
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
        "the nf_tables chain {family} {table} {chain} refuses packets of pods; `{}` opens it",
        commands.join("; ")
    )
}

/// Returns true if this is the chain that `iptables` calls FORWARD.
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

/// Removes our rules and returns how many there were. With `is_dry`, only counts them.
pub(crate) fn remove(is_dry: bool) -> Result<usize> {
    let mut count = 0;
    for family in FAMILIES {
        let present = ours(family)?;
        count += present.len();
        let mut transaction = Transaction::new();
        for handle in present {
            transaction.delete_rule(family, TABLE, CHAIN, handle);
        }
        if !is_dry {
            let doing = "remove our rules from the FORWARD chain of iptables";
            transaction.commit(doing)?;
        }
    }
    Ok(count + legacy::remove_forward(is_dry)?)
}

/// Returns the handles of our rules.
fn ours(family: Family) -> Result<Vec<u64>> {
    let rules = nftables::rules(family, TABLE, CHAIN)?;
    let ours = rules.iter().filter(|rule| name(rule).is_some());
    Ok(ours.map(|rule| rule.handle).collect())
}

/// Returns the comment of a rule if the rule is ours, whatever the rule looks like by now; none if
/// it is of another program.
fn name(rule: &ListedRule) -> Option<String> {
    let comment = rule.comment.as_ref()?;
    let rest = comment.strip_prefix(COMMENT)?;
    (rest.is_empty() || rest.starts_with(' ')).then(|| comment.clone())
}

fn comment(network: IpNetwork) -> String {
    format!("{COMMENT} {network}")
}

fn is_of_family(family: Family, network: IpNetwork) -> bool {
    (family == Family::Ipv4) == network.is_ipv4()
}
