//! Our own `nf_tables` table.

use ipnetwork::IpNetwork;
use kernel::nftables::{self, Chain, Family, Hook, Rule, Transaction};
use subnet::Subnet;

use super::rules::FirewallRules;
use super::{FirewallConfig, KUBE_PROXY_MARK};

/// Its name; its family is `inet`.
pub(crate) const TABLE: &str = "hostgw";
const POSTROUTING: &str = "postrouting";
const FORWARD: &str = "forward";

/// The table as the kernel lists it. `None` if there is none.
pub(super) fn list() -> Result<Option<Vec<u8>>, kernel::Error> {
    nftables::dump_chains(Family::Inet, TABLE, &[POSTROUTING, FORWARD])
}

/// Replaces the table in one transaction.
pub(super) fn replace(rules: &FirewallRules, config: &FirewallConfig) -> Result<(), kernel::Error> {
    let postrouting = Chain {
        name: POSTROUTING,
        hook: Some(Hook::Postrouting),
        comment: "",
        rules: rules
            .0
            .iter()
            .filter(|_| config.masquerade)
            .flat_map(|(cluster, own)| masquerade(*cluster, *own, config))
            .collect(),
    };
    let accept = |cluster| {
        let rule = || Rule::new().match_family(cluster);
        [rule().from(cluster).accept(), rule().to(cluster).accept()]
    };
    let forward = Chain {
        name: FORWARD,
        hook: Some(Hook::Forward),
        comment: "",
        rules: rules
            .networks()
            .filter(|_| config.forward)
            .flat_map(accept)
            .collect(),
    };
    let mut transaction = Transaction::new();
    transaction.replace_table(Family::Inet, TABLE, &[postrouting, forward]);
    transaction.commit("write the firewall's table")
}

/// Deletes the table.
pub(crate) fn delete() -> Result<(), kernel::Error> {
    let mut transaction = Transaction::new();
    transaction.delete_table(Family::Inet, TABLE);
    transaction.commit("delete our table")
}

/// flannel's rules in flannel's order. Not masqueraded: packets that kube-proxy marked, packets of
/// this node's pods within the cluster, and packets from elsewhere to this node's pods. Masqueraded:
/// other packets of pods, unless they go to multicast addresses, and packets of the node itself to
/// pods.
fn masquerade(cluster: IpNetwork, own: IpNetwork, config: &FirewallConfig) -> Vec<Rule> {
    let rule = || Rule::new().match_family(cluster);
    let random = config.random_ports;
    let excepted = config
        .no_masquerade
        .iter()
        .filter(|network| network.is_ipv4() == cluster.is_ipv4());
    let mut rules = vec![
        rule().marked(KUBE_PROXY_MARK).return_from_chain(),
        rule().from(own).to(cluster).return_from_chain(),
        rule().from(cluster).to(own).return_from_chain(),
        rule().not_from(cluster).to(own).return_from_chain(),
    ];
    rules.extend(excepted.map(|network| rule().from(cluster).to(*network).return_from_chain()));
    rules.extend([
        rule()
            .from(cluster)
            .not_to(Subnet::of(cluster).multicast())
            .masquerade(random),
        rule().not_from(cluster).to(cluster).masquerade(random),
    ]);
    rules
}
