//! Firewall rules for pods: what leaves the cluster's network is masqueraded, and what is
//! forwarded from and to pods is accepted.
//!
//! All of ours is one `nf_tables` table. An accept there does not help against a FORWARD chain of
//! `iptables` that refuses (Docker), so there it stands in that chain, too; and against others it is
//! said what opens them.

mod flannel;
mod forward;
mod iptables;
mod legacy;

use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kernel::Link;
use kernel::nftables::{self, Chain, Family, Hook, Packet, Rule, Transaction};
use tokio::time::Instant;
use tracing::{info, warn};

pub(crate) use flannel::{Remain, remains as flannels_remains};
pub(crate) use forward::remove as remove_forward;
pub(crate) use iptables::remove as remove_iptables;

use crate::error::chain;
use crate::lease::{Lease, address};
use crate::net_conf::NetConf;
use crate::node::BRIDGE;
use crate::repeats::Repeats;

/// Our table, and its chains.
pub(crate) const TABLE: &str = "hostgw";
const CHAINS: [&str; 2] = ["postrouting", "forward"];

/// What our rules among those of others say of themselves.
pub(crate) const COMMENT: &str = "hostgw-agent";

/// By what rules are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// `nf_tables` where the kernel has it, else the programs `iptables` and `ip6tables`.
    Auto,
    /// `nf_tables`, by netlink.
    Nftables,
    /// The programs `iptables` and `ip6tables`.
    Iptables,
    /// No rules at all.
    None,
}

/// What the user decides.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) backend: Backend,
    pub(crate) masquerade: bool,
    /// Whether ports are chosen at random where two would else want the same.
    pub(crate) is_random: bool,
    /// Where pods keep their addresses outside the cluster's network, too.
    pub(crate) keep: Vec<IpNetwork>,
    /// Whether what pods send and get is accepted where it is forwarded.
    pub(crate) forward: bool,
    /// How often rules are looked at that make no notice.
    pub(crate) poll: Duration,
}

impl Settings {
    /// Whether the agent masquerades, so that the plugin need not.
    pub(crate) fn masquerades(&self) -> bool {
        self.masquerade && self.backend != Backend::None
    }
}

/// What the rules are about: in each family, the cluster's network and this node's subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules(Vec<(IpNetwork, IpNetwork)>);

impl Rules {
    pub(crate) fn new(network: &NetConf, own: &Lease) -> Self {
        let pair = |subnet: IpNetwork| Some((network.space(subnet)?.network, subnet));
        Self(own.subnets().filter_map(pair).collect())
    }

    /// What goes between pods of this node and of others, in both directions: of some of `peers`, since a
    /// rule for all shows with those. Where there are none, somewhere else in the network.
    fn flows(&self, uplink: &Link, bridge: Option<&Link>, peers: &[IpNetwork]) -> Vec<Flow> {
        const SOME: usize = 8;
        let inner = bridge.map_or(BRIDGE, |bridge| &bridge.name);
        let (outer_link, inner_link) = (uplink.index, bridge.map_or(0, |bridge| bridge.index));
        let mut flows = Vec::new();
        for (cluster, own) in &self.0 {
            let is_of_family = |peer: &IpNetwork| peer.is_ipv4() == own.is_ipv4();
            let mut others: Vec<_> = peers
                .iter()
                .copied()
                .filter(is_of_family)
                .take(SOME)
                .collect();
            if others.is_empty() {
                let ends = [address(*cluster, 2), address(*cluster, u128::MAX)];
                let end = ends.into_iter().find(|end| !own.contains(*end));
                others.extend(end.map(IpNetwork::from));
            }
            for other in others {
                let ends = pods(*own)
                    .into_iter()
                    .flat_map(|pod| pods(other).map(|far| (pod, far)));
                let (mut out, mut back) = (Vec::new(), Vec::new());
                for (pod, far) in ends {
                    let packet = |from: &str, to: &str, links, source, destination| Packet {
                        from: from.to_owned(),
                        to: to.to_owned(),
                        links,
                        source,
                        destination,
                    };
                    let outer = &uplink.name;
                    out.push(packet(inner, outer, [inner_link, outer_link], pod, far));
                    back.push(packet(outer, inner, [outer_link, inner_link], far, pod));
                }
                let flow = |from, to, is_out, packets| Flow {
                    from,
                    to,
                    is_out,
                    packets,
                };
                flows.push(flow(*own, other, true, out));
                flows.push(flow(other, *own, false, back));
            }
        }
        flows
    }

    /// The cluster's networks.
    fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        self.0.iter().map(|(cluster, _)| *cluster)
    }
}

/// What goes one way between two subnets: the first packets of some pods to some others. What forbids one pod
/// something is not about the subnet.
struct Flow {
    from: IpNetwork,
    to: IpNetwork,
    /// Whether it comes from pods of this node.
    is_out: bool,
    packets: Vec<Packet>,
}

/// Two addresses that pods of a subnet may have.
fn pods(subnet: IpNetwork) -> [IpAddr; 2] {
    let bits = if subnet.is_ipv4() { 32 } else { 128 };
    let half = 1u128.checked_shl(u32::from(bits - subnet.prefix()).saturating_sub(1));
    let half = half.filter(|_| subnet.prefix() < bits).unwrap_or_default();
    [address(subnet, 2), address(subnet, half + 1)]
}

/// Between which interfaces packets go, and to whom.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) uplink: &'a Link,
    /// Nothing before the first pod.
    pub(crate) bridge: Option<&'a Link>,
    /// The subnets of other nodes.
    pub(crate) peers: &'a [IpNetwork],
}

/// The rules, kept as they should be.
pub(crate) struct Firewall {
    settings: Settings,
    backend: Option<Backend>,
    /// For what they were made, and what the kernel says of our table since.
    made: Option<(Rules, Option<Vec<u8>>)>,
    troubles: Vec<String>,
    /// What is refused between pods of this node and of some others.
    partly: Vec<String>,
    /// Which chains of others refuse what pods send and get.
    foreign: Vec<String>,
    /// When they were looked at.
    looked: Option<Instant>,
    /// The same of what is looked at only now and then.
    legacy_trouble: Option<String>,
    mended: u64,
    has_taken_over: bool,
    found_flannel: bool,
}

impl Firewall {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            backend: None,
            made: None,
            troubles: Vec::new(),
            partly: Vec::new(),
            foreign: Vec::new(),
            looked: None,
            legacy_trouble: None,
            mended: 0,
            has_taken_over: false,
            found_flannel: false,
        }
    }

    /// Whether rules of flannel were there just now, and so may routes be.
    pub(crate) fn found_flannel(&mut self) -> bool {
        std::mem::take(&mut self.found_flannel)
    }

    /// How soon to look again at rules that make no notice, where there are such.
    pub(crate) fn poll(&self) -> Option<Duration> {
        let is_polled = match self.backend? {
            Backend::Iptables => true,
            Backend::Nftables => self.settings.forward && legacy::is_in_use(),
            Backend::Auto | Backend::None => false,
        };
        is_polled.then_some(self.settings.poll)
    }

    /// What is wrong.
    pub(crate) fn troubles(&self) -> &[String] {
        &self.troubles
    }

    /// What is to be put right by people: chains of others that refuse.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = &String> {
        self.partly.iter().chain(&self.foreign)
    }

    /// How often rules were put right.
    pub(crate) fn mended(&self) -> u64 {
        self.mended
    }

    /// By what rules are made.
    pub(crate) fn backend(&self) -> &'static str {
        match self.backend {
            Some(Backend::Nftables) => "nftables",
            Some(Backend::Iptables) => "iptables",
            Some(Backend::None) => "none",
            Some(Backend::Auto) | None => "",
        }
    }

    /// Whether these are the rules that were made.
    pub(crate) fn is_for(&self, rules: &Rules) -> bool {
        self.made.as_ref().is_some_and(|(made, _)| made == rules) && self.troubles.is_empty()
    }

    /// Puts right what is not as it should be. `is_slow` says that a while has passed, and that
    /// what makes no notice is worth a look.
    pub(crate) fn ensure(
        &mut self,
        rules: &Rules,
        is_slow: bool,
        place: Place<'_>,
        repeats: &mut Repeats,
    ) {
        self.troubles.clear();
        let is_first = self.backend.is_none();
        let backend = *self
            .backend
            .get_or_insert_with(|| choose(self.settings.backend));
        if is_first {
            self.troubles.extend(self.clear(backend).err());
        }
        let done = match backend {
            Backend::Nftables | Backend::Auto => self.ensure_table(rules, repeats),
            Backend::Iptables => self.ensure_iptables(rules, is_slow, repeats),
            Backend::None => Ok(()),
        };
        self.troubles.extend(done.err());
        let flows = rules.flows(place.uplink, place.bridge, place.peers);
        self.partly.clear();
        if self.accepts(backend) {
            let mut told = |added| {
                if added > 0 {
                    let text = format!("accepted what pods forward: {added} rule(s) in FORWARD");
                    repeats.info("accepted what pods forward", &text);
                }
            };
            match forward::ensure(rules, &flows) {
                Ok(outcome) => {
                    told(outcome.added);
                    self.troubles.extend(outcome.troubles);
                    self.partly = outcome.warnings;
                }
                Err(reason) => self.troubles.push(reason),
            }
            if is_slow {
                self.legacy_trouble = legacy::ensure_forward(rules).map(told).err();
            }
            self.troubles.extend(self.legacy_trouble.clone());
        }
        // Whoever makes the rules, and whether anybody does.
        let is_old = |looked: Instant| looked.elapsed() > Duration::from_secs(1);
        if nftables::is_available().is_ok() && (is_slow || self.looked.is_none_or(is_old)) {
            self.looked = Some(Instant::now());
            match forward::foreign(rules, &flows) {
                Ok(foreign) => self.foreign = foreign,
                Err(reason) => self.troubles.push(reason),
            }
        }
        if self.troubles.is_empty() && !self.has_taken_over && backend != Backend::None {
            self.take_over();
        }
    }

    /// Whether rules of ours stand in the FORWARD chains of others.
    fn accepts(&self, backend: Backend) -> bool {
        backend == Backend::Nftables && self.settings.forward
    }

    /// Takes away what an earlier run made and this one does not want.
    fn clear(&self, backend: Backend) -> Result<(), String> {
        let failed = |error: kernel::Error| chain(&error);
        if backend != Backend::Nftables
            && nftables::is_available().is_ok()
            && nftables::has_table(Family::Inet, TABLE).map_err(failed)?
        {
            let mut transaction = Transaction::new();
            transaction.delete_table(Family::Inet, TABLE);
            transaction.commit("delete our table").map_err(failed)?;
        }
        if backend != Backend::Iptables && iptables::are_there()? {
            iptables::remove(false)?;
        }
        if !self.accepts(backend) && nftables::is_available().is_ok() {
            forward::remove(false)?;
        }
        Ok(())
    }

    /// Our table as it should be, in one transaction. Whatever was there before is replaced once;
    /// afterwards the kernel's own words of it tell whether somebody changed it.
    fn ensure_table(&mut self, rules: &Rules, repeats: &mut Repeats) -> Result<(), String> {
        let look = || nftables::look(Family::Inet, TABLE, &CHAINS).map_err(|error| chain(&error));
        let is_made = self.made.as_ref().is_some_and(|(made, _)| made == rules);
        if let Some((_, words)) = self.made.as_ref().filter(|_| is_made)
            && look()? == *words
        {
            return Ok(());
        }
        let mut transaction = Transaction::new();
        transaction.replace_table(Family::Inet, TABLE, &self.chains(rules));
        transaction
            .commit("write the firewall's table")
            .map_err(|error| chain(&error))?;
        if is_made {
            self.mended += 1;
            let text = format!("somebody changed the table inet {TABLE}; put it right");
            repeats.warn("put our firewall table right", &text);
        } else {
            info!("wrote the table inet {TABLE}");
        }
        self.made = Some((rules.clone(), look()?));
        Ok(())
    }

    fn ensure_iptables(
        &mut self,
        rules: &Rules,
        is_slow: bool,
        repeats: &mut Repeats,
    ) -> Result<(), String> {
        let is_made = self.made.as_ref().is_some_and(|(made, _)| made == rules);
        if is_made && !is_slow {
            return Ok(());
        }
        if iptables::ensure(rules, &self.settings)? && is_made {
            self.mended += 1;
            let text = "somebody changed the iptables rules; put them right";
            repeats.warn("put our iptables rules right", text);
        }
        self.made = Some((rules.clone(), None));
        Ok(())
    }

    /// What flannel left goes once ours stands.
    fn take_over(&mut self) {
        self.has_taken_over = true;
        match flannel::remains() {
            Ok(remains) => {
                self.found_flannel = !remains.is_empty();
                for part in &remains {
                    match part.remove() {
                        Ok(()) => info!("took flannel's {part} over"),
                        Err(reason) => warn!("flannel's {part} stays: {reason}"),
                    }
                }
            }
            Err(reason) => warn!("look for flannel's rules: {reason}"),
        }
    }

    /// flannel's rules, in its order: kube-proxy's marked packets, the node's own, and what comes
    /// from elsewhere to its pods are left alone; the rest that pods send is masqueraded, but not
    /// within the cluster and not to many; and what the node itself sends to pods is.
    fn chains(&self, rules: &Rules) -> [Chain; 2] {
        let mut postrouting = Vec::new();
        let mut forward = Vec::new();
        for (cluster, own) in &rules.0 {
            let (cluster, own) = (*cluster, *own);
            let rule = || Rule::new().of_family(cluster);
            if self.settings.masquerade {
                postrouting.extend([
                    rule().marked(KUBE_PROXY).leave(),
                    rule().from(own).to(cluster).leave(),
                    rule().from(cluster).to(own).leave(),
                    rule().not_from(cluster).to(own).leave(),
                ]);
                let keep = self
                    .settings
                    .keep
                    .iter()
                    .filter(|n| n.is_ipv4() == cluster.is_ipv4());
                postrouting.extend(keep.map(|network| rule().from(cluster).to(*network).leave()));
                let random = self.settings.is_random;
                postrouting.extend([
                    rule()
                        .from(cluster)
                        .not_to(multicast(cluster))
                        .masquerade(random),
                    rule().not_from(cluster).to(cluster).masquerade(random),
                ]);
            }
            if self.settings.forward {
                forward.extend([rule().from(cluster).accept(), rule().to(cluster).accept()]);
            }
        }
        let [first, second] = CHAINS;
        [
            Chain {
                name: first,
                hook: Hook::Postrouting,
                rules: postrouting,
            },
            Chain {
                name: second,
                hook: Hook::Forward,
                rules: forward,
            },
        ]
    }
}

/// What kube-proxy marks for masquerading, which it does itself.
const KUBE_PROXY: u32 = 0x4000;

fn multicast(network: IpNetwork) -> IpNetwork {
    let text = if network.is_ipv4() {
        "224.0.0.0/4"
    } else {
        "ff00::/8"
    };
    text.parse().expect("the multicast network")
}

fn choose(backend: Backend) -> Backend {
    if backend != Backend::Auto {
        return backend;
    }
    match nftables::is_available() {
        Ok(()) => Backend::Nftables,
        Err(error) => {
            warn!(
                "{}; going by the programs iptables and ip6tables",
                chain(&error)
            );
            Backend::Iptables
        }
    }
}
