//! One reconcile: compares the node with what it should be, and corrects what differs.

use std::sync::Arc;
use std::time::Duration;

use kernel::{Link, Route};
use tokio::time::Instant;

use super::Agent;
use super::scheduler::Trigger;
use crate::error::{Error, Result};
use crate::fast_path::PodNetwork;
use crate::firewall::{FirewallRules, PodPath};
use crate::node::{NeighbourStatus, Node, disable_ra, pod_bridges};
use crate::observe::{StoreState, lock};
use crate::routes::apply::{delete_unused_nexthops, take_over_flannel_routes};
use crate::routes::{self, Applied, Peer, Refusal, apply};
use crate::store::{View, ViewContext};

/// The result of a reconcile.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) findings: Findings,
    /// Every other node's subnets.
    pub(super) peers: Vec<Peer>,
    pub(super) store: StoreState,
    /// How long comparing and changing routes took.
    pub(super) cost: Duration,
}

/// Problems of this node.
#[derive(Default)]
pub(super) struct Findings {
    /// Reasons why pods of this node do not have their network. With one, the node is not ready.
    pub(super) problems: Vec<Error>,
    /// Facts that should be corrected, although pods have their network.
    pub(super) warnings: Vec<String>,
}

impl Findings {
    /// Notes an error, or returns the value.
    fn check<T, E: Into<Error>>(&mut self, result: Result<T, E>) -> Option<T> {
        result
            .map_err(|error| self.problems.push(error.into()))
            .ok()
    }
}

impl Agent {
    /// Compares everything that `trigger` names with what it should be, and corrects it.
    pub(super) fn reconcile(&mut self, trigger: Trigger) -> Outcome {
        let started = Instant::now();
        let mut outcome = Outcome::default();
        let findings = &mut outcome.findings;
        if let Some((present, view)) = findings.check(self.read_store(trigger)) {
            let problems = view.problems.into_iter().map(Error::from);
            findings.problems.extend(problems);
            findings.warnings.extend(view.warnings);
            outcome.store = view.state;
            if let Some(node) = view.node {
                findings.check(self.adopt(node.map_err(Error::from)));
            }
            if let Some(node) = self.node.clone() {
                outcome.peers = self.reconcile_routes(&node, present, trigger, findings);
            } else {
                self.present_routes = Some(present);
            }
        }
        outcome.cost = started.elapsed();
        self.reconcile_install(trigger, findings);
        if trigger.kernel.firewall || trigger.is_resync {
            let limiter = &mut self.reporter.limiter;
            findings.check(self.firewall.restore_host_ports(&self.kernel, limiter));
        }
        if let Some(node) = self.node.clone() {
            self.write_files(&node, trigger, findings);
            let links = findings.check(self.kernel.links());
            let bridges = links.as_deref().map(pod_bridges).unwrap_or_default();
            self.reconcile_sysctls(&node, &bridges, trigger, findings);
            self.reconcile_neighbour_limits(&node, &outcome.peers, trigger, findings);
            self.reconcile_firewall(&node, &bridges, &outcome.peers, trigger, findings);
            if let Some(links) = links {
                self.reconcile_fast_path(&node, &links, &bridges, trigger, findings);
            }
        }
        if trigger.is_resync {
            self.reporter.limiter.summarize();
        }
        outcome
    }

    /// Reads the kernel's routes, unless they are known, and what the store says.
    fn read_store(&mut self, trigger: Trigger) -> Result<(Vec<Route>, View)> {
        let known = self.present_routes.take();
        let known = known.filter(|_| !trigger.kernel.network && !trigger.is_resync);
        let present = match known {
            Some(present) => present,
            None => self.kernel.routes()?,
        };
        if trigger.kernel.network {
            self.restored.verify(&self.kernel)?;
        }
        let view = self.store.view(ViewContext {
            kernel: &self.kernel,
            routes: &present,
            selection: &self.config.selection,
            saved: self.restored.get(),
            current_uplink: self.node.as_ref().map(|node| &node.uplink),
            own_addresses: self.node.as_ref().map(|node| node.own.addresses()),
            network_changed: trigger.kernel.network,
            is_resync: trigger.is_resync,
        });
        Ok((present, view))
    }

    /// Makes a new state the current one. Fails if there is none; then the last one stays.
    fn adopt(&mut self, node: Result<Node>) -> Result<()> {
        let node = node.and_then(|node| match node.subnet_around_node() {
            Some(hop) => Err(Error::AroundNode(hop)),
            None => Ok(node),
        });
        let node = match (node, &self.node) {
            (Ok(node), _) => node,
            (Err(error), None) => return Err(error),
            (Err(error), Some(_)) => return Err(Error::LastStateStays(Box::new(error))),
        };
        let old = self.node.as_deref();
        let is_same_node = old.is_some_and(|old| old.has_same_identity(&node));
        let count = node.other_nodes();
        if !is_same_node {
            self.reporter
                .limiter
                .info("changes of this node", &describe(&node));
        }
        if !is_same_node || old.is_some_and(|old| old.other_nodes() != count) {
            let text = format!("the cluster has {count} other node(s)");
            self.reporter.limiter.info("number of other nodes", &text);
        }
        let is_unchanged =
            |old: &Node| old.snapshot == node.snapshot && old.etcd_lease == node.etcd_lease;
        if !is_same_node || !old.is_some_and(is_unchanged) {
            self.saver.mark_dirty();
        }
        self.identity_changed |= !is_same_node;
        if !node.from_saved_state {
            // What is known now is newer than the saved state, whatever the store reports next.
            self.restored.discard();
        }
        self.node = Some(Arc::new(node));
        Ok(())
    }

    /// Makes the kernel's routes the desired ones, and checks that packets follow them. Returns
    /// every peer.
    fn reconcile_routes(
        &mut self,
        node: &Node,
        present: Vec<Route>,
        trigger: Trigger,
        findings: &mut Findings,
    ) -> Vec<Peer> {
        let mut peers = routes::peers(node, self.config.routes.onlink);
        let applied = apply(&self.kernel, node, self.config.routes, &peers, present);
        let Some(mut applied) = findings.check(applied) else {
            return peers;
        };
        self.count_routes(&applied, trigger);
        for peer in &mut peers {
            if let Some(hop) = peer.wanted()
                && let Some(error) = applied.refused.remove(&hop.subnet)
            {
                peer.refused = Some(Refusal::Kernel(Error::from(error).text()));
            }
        }
        // Other refused routes, such as blackholes, are not to a peer: problems of this node.
        let refused = applied.refused.into_values().chain(applied.errors);
        findings.problems.extend(refused.map(Error::from));
        if trigger.is_resync && kernel::has_nexthop_objects() {
            findings.check(delete_unused_nexthops(&self.kernel));
        }
        if trigger.is_resync || trigger.kernel.network {
            let found = self.find_diversions(node, &peers);
            let warning = found.err().map(|error| Error::from(error).text());
            findings.warnings.extend(warning);
        }
        self.diversions
            .mark(&mut peers, &applied.present, &node.uplink);
        self.present_routes = Some(applied.present);
        peers
    }

    fn count_routes(&mut self, applied: &Applied, trigger: Trigger) {
        let is_repair = trigger.kernel.network && !trigger.is_resync;
        self.reporter.report_routes(applied, is_repair);
        lock(&self.shared).count_routes(applied, is_repair);
    }

    fn find_diversions(&mut self, node: &Node, peers: &[Peer]) -> Result<(), kernel::Error> {
        let own: Vec<_> = node.own.subnets().collect();
        let bridges = pod_bridges(&self.kernel.links()?);
        let bridge = bridges.first().filter(|_| self.sysctls_are_right);
        self.diversions
            .find(&self.kernel, peers, &node.uplink, &own, bridge)
    }

    /// Keeps the plugin where the runtime starts it, and looks for a configuration that the runtime
    /// would use instead of ours.
    fn reconcile_install(&mut self, trigger: Trigger, findings: &mut Findings) {
        if !trigger.is_resync {
            return;
        }
        if let Some(install) = &self.config.install {
            findings.check(install.install_plugin());
            self.reporter
                .report_shadowing_config(install.shadowing_config());
        }
    }

    /// Writes the subnet file, and after that the CNI configuration list: no pod must ever find the
    /// list without the file.
    fn write_files(&mut self, node: &Node, trigger: Trigger, findings: &mut Findings) {
        let masquerades = self.config.firewall.masquerades();
        let written = node.write_subnet_file(&self.config.subnet_file, masquerades);
        if findings.check(written).is_none() || (self.has_installed_list && !trigger.is_resync) {
            return;
        }
        if let Some(install) = &self.config.install {
            self.has_installed_list = findings.check(install.install_list()).is_some();
            if self.has_installed_list {
                findings.check(install.take_over_host_ports(&self.kernel));
            }
        }
    }

    fn reconcile_sysctls(
        &mut self,
        node: &Node,
        bridges: &[Link],
        trigger: Trigger,
        findings: &mut Findings,
    ) {
        let outcome = node.forwarding(bridges).ensure(&self.kernel);
        for corrected in &outcome.corrected {
            self.reporter.limiter.info("set forwarding", corrected);
        }
        if self.sysctls_are_right {
            let count = u64::try_from(outcome.corrected.len()).unwrap_or_default();
            lock(&self.shared).forwarding_restored += count;
        }
        self.sysctls_are_right = outcome.problems.is_empty();
        let problems = outcome.problems.into_iter().map(Error::from);
        findings.problems.extend(problems);
        if trigger.kernel.network || trigger.is_resync {
            findings.check(disable_ra(&self.kernel, bridges));
        }
    }

    /// Raises the kernel's limits on neighbour entries if there are more peers, and looks at them with each
    /// resync. A limit that cannot be raised is a warning: smaller clusters work with it.
    fn reconcile_neighbour_limits(
        &mut self,
        node: &Node,
        peers: &[Peer],
        trigger: Trigger,
        findings: &mut Findings,
    ) {
        if peers.len() > self.counted_peers || trigger.is_resync {
            self.counted_peers = peers.len();
            let hops = peers.iter().filter_map(Peer::wanted);
            let subnets: Vec<_> = hops.map(|hop| hop.subnet).collect();
            let own: Vec<_> = node.own.subnets().collect();
            let ensured = NeighbourStatus::ensure(&self.kernel, &own, &subnets);
            if let Ok(status) = &ensured {
                lock(&self.shared).neighbours = *status;
            }
            self.neighbour_warning = ensured.err().map(|error| Error::from(error).text());
        }
        findings.warnings.extend(self.neighbour_warning.clone());
    }

    fn reconcile_firewall(
        &mut self,
        node: &Node,
        bridges: &[Link],
        peers: &[Peer],
        trigger: Trigger,
        findings: &mut Findings,
    ) {
        if !node.uplink.link.is_up {
            let name = node.uplink.link.name.clone();
            findings.problems.push(Error::InterfaceDown(name));
        }
        let rules = FirewallRules::new(&node.snapshot.network, &node.own);
        if trigger.kernel.firewall || trigger.is_resync || !self.firewall.is_set_for(&rules) {
            let subnets = peers.iter().filter_map(Peer::wanted);
            let subnets: Vec<_> = subnets.map(|hop| hop.subnet).collect();
            let path = PodPath {
                uplink: &node.uplink.link,
                bridge: bridges.first(),
                peers: &subnets,
            };
            let limiter = &mut self.reporter.limiter;
            let ensured = self
                .firewall
                .ensure(&rules, trigger.is_resync, path, limiter);
            findings.problems.extend(ensured.problems);
            if ensured.found_flannel {
                findings.check(take_over_flannel_routes(&self.kernel, node, peers));
                self.present_routes = None;
            }
        }
        findings.warnings.extend(self.firewall.warnings().cloned());
        findings.warnings.extend(node.uplink.warning.clone());
    }

    /// A fast path that is not available is a warning at most: packets take the usual way.
    fn reconcile_fast_path(
        &mut self,
        node: &Node,
        links: &[Link],
        bridges: &[Link],
        trigger: Trigger,
        findings: &mut Findings,
    ) {
        if trigger.kernel.network || trigger.kernel.firewall || trigger.is_resync {
            let rules = FirewallRules::new(&node.snapshot.network, &node.own);
            let pods = PodNetwork {
                rules: &rules,
                uplink: &node.uplink.link,
                links,
                bridges,
            };
            let limiter = &mut self.reporter.limiter;
            let (is_event, is_resync) = (trigger.kernel.firewall, trigger.is_resync);
            self.fast_path.ensure(pods, is_event, is_resync, limiter);
        }
        findings.warnings.extend(self.fast_path.warning());
    }
}

/// A line for the log about this node.
fn describe(node: &Node) -> String {
    let subnets: Vec<_> = node.own.subnets().map(|net| net.to_string()).collect();
    let (name, uplink) = (&node.own.node, &node.uplink);
    let (link, because) = (&uplink.link.name, &uplink.because);
    let subnets = subnets.join(", ");
    format!("this node is {name} with {subnets} on {link}, because {because}")
}
