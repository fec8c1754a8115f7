//! Firewall rules for pods: what leaves the cluster's network is masqueraded, and what is
//! forwarded from and to pods is accepted.
//!
//! All of ours is one `nf_tables` table. An accept there does not help against a FORWARD chain of
//! `iptables` that drops by default (Docker), so there it stands in that chain, too.

mod flannel;
mod forward;
mod iptables;
mod legacy;

use std::time::Duration;

use ipnetwork::IpNetwork;
use kernel::nftables::{self, Chain, Family, Hook, Rule, Transaction};
use tracing::{info, warn};

pub(crate) use flannel::{Remain, remains as flannels_remains};
pub(crate) use forward::remove as remove_forward;
pub(crate) use iptables::remove as remove_iptables;

use crate::error::chain;
use crate::lease::Lease;
use crate::net_conf::NetConf;

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

    /// The cluster's networks.
    fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        self.0.iter().map(|(cluster, _)| *cluster)
    }
}

/// The rules, kept as they should be.
pub(crate) struct Firewall {
    settings: Settings,
    backend: Option<Backend>,
    /// For what they were made, and what the kernel says of our table since.
    made: Option<(Rules, Option<Vec<u8>>)>,
    troubles: Vec<String>,
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
    pub(crate) fn ensure(&mut self, rules: &Rules, is_slow: bool) {
        self.troubles.clear();
        let is_first = self.backend.is_none();
        let backend = *self
            .backend
            .get_or_insert_with(|| choose(self.settings.backend));
        if is_first {
            self.troubles.extend(self.clear(backend).err());
        }
        let done = match backend {
            Backend::Nftables | Backend::Auto => self.ensure_table(rules),
            Backend::Iptables => self.ensure_iptables(rules, is_slow),
            Backend::None => Ok(()),
        };
        self.troubles.extend(done.err());
        if self.accepts(backend) {
            let told = |added| {
                if added > 0 {
                    info!("accepted what pods forward: {added} rule(s) in FORWARD");
                }
            };
            self.troubles.extend(forward::ensure(rules).map(told).err());
            if is_slow {
                self.legacy_trouble = legacy::ensure_forward(rules).map(told).err();
            }
            self.troubles.extend(self.legacy_trouble.clone());
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
    fn ensure_table(&mut self, rules: &Rules) -> Result<(), String> {
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
            warn!("somebody changed the table inet {TABLE}; put it right");
        } else {
            info!("wrote the table inet {TABLE}");
        }
        self.made = Some((rules.clone(), look()?));
        Ok(())
    }

    fn ensure_iptables(&mut self, rules: &Rules, is_slow: bool) -> Result<(), String> {
        let is_made = self.made.as_ref().is_some_and(|(made, _)| made == rules);
        if is_made && !is_slow {
            return Ok(());
        }
        if iptables::ensure(rules, &self.settings)? && is_made {
            self.mended += 1;
            warn!("somebody changed the iptables rules; put them right");
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
