//! The layout of the table: its sets, chains and rules.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use kernel::nftables::{
    Chain, Element, Existing, Field, Hook, Key, Load, Rule, Set, Transaction, Value, ValueType,
};

use crate::elements::{Elements, IPV4, IPV6, names, subnet_chain};
use crate::record::Record;
use crate::table::{FAMILY, TABLE};

const PORTS: &str = "ports";
const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";
const LOOPBACK: &str = "loopback";
/// Chain that masquerades all connections.
pub(crate) const MASQUERADE_ALL: &str = "masquerade-all";
/// Names of bridges from which packets to and from loopback addresses are dropped.
pub(crate) const BRIDGES: &str = "bridges";

/// The subnets and bridges for which the table has chains and elements.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    subnets: BTreeSet<IpNetwork>,
    bridges: BTreeSet<String>,
}

impl Places {
    /// Adds those of a record.
    pub(crate) fn add(&mut self, record: &Record) {
        let subnet = |address: &IpNetwork| IpNetwork::new(address.network(), address.prefix());
        let subnets = record.addresses.iter().map(subnet);
        self.subnets.extend(subnets.filter_map(Result::ok));
        self.bridges.insert(record.bridge.clone());
    }

    /// Adds bridges.
    pub(crate) fn add_bridges(&mut self, bridges: Vec<String>) {
        self.bridges.extend(bridges);
    }
}

/// The changes that replace the whole table, so that it has exactly these elements.
pub(crate) fn replacement(elements: &Elements, places: &Places) -> Transaction {
    let mut transaction = Transaction::new();
    transaction.ensure_table(FAMILY, TABLE);
    transaction.delete_table(FAMILY, TABLE);
    transaction.ensure_table(FAMILY, TABLE);
    for set in sets() {
        transaction.ensure_set(FAMILY, TABLE, &set);
    }
    // A chain must exist before a rule or an element leads to it.
    let masquerade = places
        .subnets
        .iter()
        .map(|subnet| (subnet_chain(*subnet), *subnet));
    let masquerade: Vec<_> = masquerade.collect();
    for (name, subnet) in &masquerade {
        add_chain(&mut transaction, name, None, masquerade_subnet(*subnet));
    }
    let all = vec![Rule::new().masquerade(false)];
    add_chain(&mut transaction, MASQUERADE_ALL, None, all);
    add_chain(&mut transaction, PORTS, None, translations());
    let to_ports = || vec![Rule::new().to_local().jump(PORTS)];
    add_chain(
        &mut transaction,
        PREROUTING,
        Some(Hook::PreroutingDnat),
        to_ports(),
    );
    add_chain(&mut transaction, OUTPUT, Some(Hook::OutputDnat), to_ports());
    add_chain(
        &mut transaction,
        POSTROUTING,
        Some(Hook::Postrouting),
        masquerades(),
    );
    add_chain(
        &mut transaction,
        LOOPBACK,
        Some(Hook::PreroutingRaw),
        loopback_drops(),
    );
    let bridges = places.bridges.iter().map(|bridge| Element {
        key: Key::new().interface(bridge),
        ..Element::default()
    });
    let bridges: Vec<_> = bridges.collect();
    transaction.add_elements(FAMILY, TABLE, BRIDGES, Existing::Stays, &bridges);
    for names in [IPV4, IPV6] {
        for set in names.sets() {
            let known = elements.in_set(set).into_iter();
            // The chain of an element without a record may be gone.
            let has_chain = |element: &Element| match &element.value {
                Value::Goto(chain) => {
                    chain == MASQUERADE_ALL || masquerade.iter().any(|(name, _)| name == chain)
                }
                _ => true,
            };
            let added: Vec<_> = known.filter(has_chain).collect();
            transaction.add_elements(FAMILY, TABLE, set, Existing::Fails, &added);
        }
        let shared = elements.shared_claims(&names);
        transaction.add_elements(FAMILY, TABLE, names.claim, Existing::Fails, &shared);
    }
    transaction
}

fn add_chain(transaction: &mut Transaction, name: &str, hook: Option<Hook>, rules: Vec<Rule>) {
    let chain = Chain {
        name,
        hook,
        comment: "",
        rules,
    };
    transaction.add_chain(FAMILY, TABLE, &chain);
}

fn sets() -> Vec<Set<'static>> {
    use Field::{Interface, Ipv4, Ipv6, Number, Port, Protocol};
    let map = |name, key, value| Set {
        name,
        key,
        value,
        expires: None,
    };
    vec![
        map(BRIDGES, &[Interface], ValueType::None),
        map(
            IPV4.all,
            &[Protocol, Port],
            ValueType::Fields(&[Ipv4, Port]),
        ),
        map(
            IPV6.all,
            &[Protocol, Port],
            ValueType::Fields(&[Ipv6, Port]),
        ),
        map(
            IPV4.one,
            &[Protocol, Ipv4, Port],
            ValueType::Fields(&[Ipv4, Port]),
        ),
        map(
            IPV6.one,
            &[Protocol, Ipv6, Port],
            ValueType::Fields(&[Ipv6, Port]),
        ),
        map(IPV4.claim, &[Protocol, Port], ValueType::Fields(&[Number])),
        map(IPV6.claim, &[Protocol, Port], ValueType::Fields(&[Number])),
        map(IPV4.masquerade, &[Protocol, Port, Ipv4], ValueType::Verdict),
        map(IPV6.masquerade, &[Protocol, Port, Ipv6], ValueType::Verdict),
    ]
}

/// The rules that translate the destination. A port on one address comes first.
fn translations() -> Vec<Rule> {
    use Load::{DestinationIpv4, DestinationIpv6, DestinationPort, Protocol};
    let of_family = |is_ipv6, destination| {
        let names = names(is_ipv6);
        let rule = || Rule::new().match_ip(is_ipv6);
        [
            rule().dnat_by(
                names.one,
                &[Protocol, destination, DestinationPort],
                is_ipv6,
            ),
            rule().dnat_by(names.all, &[Protocol, DestinationPort], is_ipv6),
        ]
    };
    let ipv4 = of_family(false, DestinationIpv4);
    ipv4.into_iter()
        .chain(of_family(true, DestinationIpv6))
        .collect()
}

/// The rules that send connections to mapped ports to their masquerading chain. A connection that
/// reached the pod through a service is not in the map, and keeps its source.
fn masquerades() -> Vec<Rule> {
    use Load::{DestinationIpv4, DestinationIpv6, OriginalDestinationPort, Protocol};
    let of_family = |is_ipv6, destination| {
        let key = [Protocol, OriginalDestinationPort, destination];
        let rule = Rule::new().match_ip(is_ipv6).translated();
        rule.verdict_of(names(is_ipv6).masquerade, &key)
    };
    vec![
        of_family(false, DestinationIpv4),
        of_family(true, DestinationIpv6),
    ]
}

/// The rules of a subnet's chain.
fn masquerade_subnet(subnet: IpNetwork) -> Vec<Rule> {
    let from = |network| {
        Rule::new()
            .match_family(network)
            .from(network)
            .masquerade(false)
    };
    vec![from(subnet), from(loopback(subnet.is_ipv6()))]
}

/// The rules that drop packets to and from loopback addresses that come from a pod. A bridge that
/// may route loopback addresses would let them through (CVE-2020-8558).
fn loopback_drops() -> Vec<Rule> {
    let network = loopback(false);
    let rule = || {
        let rule = Rule::new().is_in(BRIDGES, &[Load::InputInterface]);
        rule.match_family(network)
    };
    vec![
        rule().to(network).drop_packet(),
        rule().from(network).drop_packet(),
    ]
}

fn loopback(is_ipv6: bool) -> IpNetwork {
    let text = if is_ipv6 { "::1/128" } else { "127.0.0.0/8" };
    text.parse().expect("a network")
}
