//! Firewall rules for pods: packets that leave the cluster's network are masqueraded, and packets
//! that are forwarded from and to pods are accepted.
//!
//! All our rules are in one `nf_tables` table. An accept there does not help against a FORWARD chain
//! of `iptables` that drops (Docker), so there it is added to that chain, too. For other chains that
//! drop, a warning names the command that opens them.

mod flannel;
mod forward;
mod host_ports;
mod iptables;
mod legacy;
mod rules;
mod table;

use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kernel::nftables::{self, Family};
use tokio::time::Instant;
use tracing::{info, warn};

pub(crate) use flannel::{Leftover, leftovers as flannel_leftovers};
pub(crate) use forward::remove as remove_forward;
pub(crate) use iptables::remove as remove_iptables;
pub(crate) use rules::{FirewallRules, PodPath};
pub(crate) use table::{TABLE, delete as delete_table};

use crate::error::{Error, Result, causes};
use crate::observe::LogLimiter;
use rules::Flow;

/// The comment of our rules in chains of others.
const COMMENT: &str = "hostgw-agent";

/// Mark of the packets that kube-proxy masquerades itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// How rules are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Backend {
    /// `nf_tables` if the kernel has it, else the programs `iptables` and `ip6tables`.
    Auto,
    /// `nf_tables`, over netlink.
    Nftables,
    /// The programs `iptables` and `ip6tables`.
    Iptables,
    /// No rules at all.
    None,
}

/// The user's settings.
#[derive(Clone, Debug)]
pub(crate) struct FirewallConfig {
    pub(crate) backend: Backend,
    pub(crate) masquerade: bool,
    /// Choose random source ports when masquerading.
    pub(crate) random_ports: bool,
    /// Networks outside the cluster's to which pods keep their addresses.
    pub(crate) no_masquerade: Vec<IpNetwork>,
    /// Accept packets that are forwarded from and to pods.
    pub(crate) forward: bool,
    /// How often rules are compared that cause no event.
    pub(crate) poll: Duration,
}

impl FirewallConfig {
    /// True if the agent masquerades, so that the plugin need not.
    pub(crate) fn masquerades(&self) -> bool {
        self.masquerade && self.backend != Backend::None
    }
}

/// Keeps the firewall's rules as they should be.
pub(crate) struct Firewall {
    config: FirewallConfig,
    /// The backend in use. `None` before the first rules.
    backend: Option<Backend>,
    /// The rules that were written last, and the kernel's listing of our table after that.
    set: Option<(FirewallRules, Option<Vec<u8>>)>,
    /// True if something failed the last time.
    has_problems: bool,
    /// Flows between pods of this node and some others that are refused.
    refused_flows: Vec<String>,
    /// Chains of others that refuse packets of pods.
    refusing_chains: Vec<String>,
    /// When chains of others were read.
    chains_read_at: Option<Instant>,
    /// The last failure of `iptables-legacy`, which is not run at every reconcile.
    legacy_problem: Option<Arc<Error>>,
    /// How often changed rules were restored.
    restored: u64,
    has_taken_over: bool,
}

/// The result of [`Firewall::ensure`].
#[derive(Default)]
pub(crate) struct Ensured {
    pub(crate) problems: Vec<Error>,
    /// True if flannel's rules were removed: its routes may still be there.
    pub(crate) found_flannel: bool,
}

impl Firewall {
    pub(crate) fn new(config: FirewallConfig) -> Self {
        Self {
            config,
            backend: None,
            set: None,
            has_problems: false,
            refused_flows: Vec::new(),
            refusing_chains: Vec::new(),
            chains_read_at: None,
            legacy_problem: None,
            restored: 0,
            has_taken_over: false,
        }
    }

    /// How soon to compare rules again that cause no event. `None` if there are none.
    pub(crate) fn poll(&self) -> Option<Duration> {
        let is_polled = match self.backend? {
            Backend::Iptables => true,
            Backend::Nftables => self.config.forward && legacy::is_in_use(),
            Backend::Auto | Backend::None => false,
        };
        is_polled.then_some(self.config.poll)
    }

    /// Rules of others that refuse packets of pods, for people to change.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = &String> {
        self.refused_flows.iter().chain(&self.refusing_chains)
    }

    /// How often changed rules were restored.
    pub(crate) fn restored(&self) -> u64 {
        self.restored
    }

    /// The name of the backend in use; empty before the first rules.
    pub(crate) fn backend(&self) -> &'static str {
        match self.backend {
            Some(Backend::Nftables) => "nftables",
            Some(Backend::Iptables) => "iptables",
            Some(Backend::None) => "none",
            Some(Backend::Auto) | None => "",
        }
    }

    /// True if these rules were set without a problem.
    pub(crate) fn is_set_for(&self, rules: &FirewallRules) -> bool {
        self.was_set_for(rules) && !self.has_problems
    }

    fn was_set_for(&self, rules: &FirewallRules) -> bool {
        self.set.as_ref().is_some_and(|(set, _)| set == rules)
    }

    /// Makes the rules what they should be. With `is_resync`, rules that cause no event are compared,
    /// too.
    pub(crate) fn ensure(
        &mut self,
        rules: &FirewallRules,
        is_resync: bool,
        path: PodPath<'_>,
        log: &mut LogLimiter,
    ) -> Ensured {
        let mut ensured = Ensured::default();
        let problems = &mut ensured.problems;
        let is_first = self.backend.is_none();
        let backend = *self
            .backend
            .get_or_insert_with(|| choose(self.config.backend));
        if is_first {
            problems.extend(self.remove_unwanted(backend).err());
        }
        let own = match backend {
            Backend::Nftables | Backend::Auto => self.ensure_table(rules, log),
            Backend::Iptables => self.ensure_iptables(rules, is_resync, log),
            Backend::None => Ok(()),
        };
        problems.extend(own.err());
        let flows = rules.flows(path);
        self.refused_flows.clear();
        if self.accepts_in_forward(backend) {
            self.ensure_forward(rules, &flows, is_resync, log, problems);
        }
        problems.extend(self.read_chains_of_others(rules, &flows, is_resync).err());
        self.has_problems = !problems.is_empty();
        if !self.has_problems && !self.has_taken_over && backend != Backend::None {
            ensured.found_flannel = self.take_over();
        }
        ensured
    }

    /// True if our rules are also in the FORWARD chains of `iptables`.
    fn accepts_in_forward(&self, backend: Backend) -> bool {
        backend == Backend::Nftables && self.config.forward
    }

    /// Removes what an earlier run set and this one does not want.
    fn remove_unwanted(&self, backend: Backend) -> Result<()> {
        let has_nftables = nftables::is_available().is_ok();
        if backend != Backend::Nftables && has_nftables && nftables::has_table(Family::Inet, TABLE)?
        {
            delete_table()?;
        }
        if backend != Backend::Iptables && iptables::exist()? {
            iptables::remove(false)?;
        }
        if !self.accepts_in_forward(backend) && has_nftables {
            forward::remove(false)?;
        }
        Ok(())
    }

    /// Sets our table in one transaction. Afterwards, the kernel's own listing of it shows whether
    /// someone else changed it.
    fn ensure_table(&mut self, rules: &FirewallRules, log: &mut LogLimiter) -> Result<()> {
        let was_set = self.was_set_for(rules);
        if let Some((_, listing)) = self.set.as_ref().filter(|_| was_set)
            && table::list()? == *listing
        {
            return Ok(());
        }
        table::replace(rules, &self.config)?;
        if was_set {
            self.restored += 1;
            let text = format!("restored table inet {TABLE} after an external change");
            log.warn("restored our firewall table", &text);
        } else {
            info!("wrote table inet {TABLE}");
        }
        self.set = Some((rules.clone(), table::list()?));
        Ok(())
    }

    fn ensure_iptables(
        &mut self,
        rules: &FirewallRules,
        is_resync: bool,
        log: &mut LogLimiter,
    ) -> Result<()> {
        let was_set = self.was_set_for(rules);
        if was_set && !is_resync {
            return Ok(());
        }
        if iptables::ensure(rules, &self.config)? && was_set {
            self.restored += 1;
            let text = "restored our iptables rules after an external change";
            log.warn("restored our iptables rules", text);
        }
        self.set = Some((rules.clone(), None));
        Ok(())
    }

    /// Accepts packets of pods in the FORWARD chains of `iptables`.
    fn ensure_forward(
        &mut self,
        rules: &FirewallRules,
        flows: &[Flow],
        is_resync: bool,
        log: &mut LogLimiter,
        problems: &mut Vec<Error>,
    ) {
        let mut log_added = |added| {
            if added > 0 {
                let text = format!("added {added} rule(s) to FORWARD that accept packets of pods");
                log.info("added rules to FORWARD", &text);
            }
        };
        match forward::ensure(rules, flows) {
            Ok(outcome) => {
                log_added(outcome.added);
                problems.extend(outcome.problems);
                self.refused_flows = outcome.warnings;
            }
            Err(error) => problems.push(error),
        }
        if is_resync {
            let ensured = legacy::ensure_forward(rules).map(log_added);
            self.legacy_problem = ensured.err().map(Arc::new);
        }
        problems.extend(self.legacy_problem.clone().map(Error::from));
    }

    /// Finds chains of others that refuse packets of pods, with every backend. At most once a second.
    fn read_chains_of_others(
        &mut self,
        rules: &FirewallRules,
        flows: &[Flow],
        is_resync: bool,
    ) -> Result<()> {
        let is_old = |read_at: Instant| read_at.elapsed() > Duration::from_secs(1);
        if nftables::is_available().is_err()
            || !(is_resync || self.chains_read_at.is_none_or(is_old))
        {
            return Ok(());
        }
        self.chains_read_at = Some(Instant::now());
        self.refusing_chains = forward::refusing_chains(rules, flows)?;
        Ok(())
    }

    /// Removes flannel's rules once ours are set. Returns true if there were any.
    fn take_over(&mut self) -> bool {
        self.has_taken_over = true;
        let leftovers = flannel::leftovers().unwrap_or_else(|error| {
            warn!("look for flannel's rules: {}", error.text());
            Vec::new()
        });
        for leftover in &leftovers {
            match leftover.remove() {
                Ok(()) => info!("replaced flannel's {leftover} by our rules"),
                Err(error) => warn!("remove flannel's {leftover}: {}", error.text()),
            }
        }
        !leftovers.is_empty()
    }
}

fn choose(backend: Backend) -> Backend {
    if backend != Backend::Auto {
        return backend;
    }
    match nftables::is_available() {
        Ok(()) => Backend::Nftables,
        Err(error) => {
            warn!(
                "{}; using the programs iptables and ip6tables",
                causes(&error)
            );
            Backend::Iptables
        }
    }
}
