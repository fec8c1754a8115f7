//! The agent: reconciles the node's routes, firewall, sysctls and subnet file with what its store
//! says, for as long as it runs.

mod rate_limiter;
mod reconcile;
mod reporter;
pub(crate) mod saved_state;
mod scheduler;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use kernel::{Route, Rtnl};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::commands::install::Install;
use crate::error::{Error, Result};
use crate::fast_path::{self, FastPath};
use crate::firewall::{self, Firewall};
use crate::node::{Node, Selection};
use crate::observe::{SharedState, lock, systemd};
use crate::routes::{Diversions, RouteOptions};
use crate::store::{self, Store};
use reconcile::Outcome;
use reporter::Reporter;
use saved_state::{RestoredState, StateSaver};
use scheduler::{Scheduler, Timing, Trigger};

/// Everything the agent needs to start.
pub(crate) struct AgentConfig {
    pub(crate) store: store::StoreConfig,
    pub(crate) selection: Selection,
    pub(crate) routes: RouteOptions,
    pub(crate) subnet_file: PathBuf,
    pub(crate) state_file: PathBuf,
    pub(crate) firewall: firewall::FirewallConfig,
    pub(crate) fast_path: fast_path::Mode,
    /// Files to install for the container runtime. `None` if the user did not ask for it.
    pub(crate) install: Option<Install>,
}

/// The agent of this node.
pub(crate) struct Agent {
    config: AgentConfig,
    kernel: Rtnl,
    store: Store,
    firewall: Firewall,
    fast_path: FastPath,
    saver: StateSaver,
    /// The state that an earlier run saved.
    restored: RestoredState,
    /// The last good state.
    node: Option<Arc<Node>>,
    /// True if this node's own lease or uplink changed since the state was saved.
    identity_changed: bool,
    /// True if the runtime has its CNI configuration list.
    has_installed_list: bool,
    /// The routes of the main table after the last reconcile. `None` if others may have changed
    /// them since.
    present_routes: Option<Vec<Route>>,
    diversions: Diversions,
    /// The number of peers for which the limits on neighbour entries were raised.
    counted_peers: usize,
    /// Why they could not be raised.
    neighbour_warning: Option<String>,
    /// True if all sysctls were right at the last reconcile.
    sysctls_are_right: bool,
    reporter: Reporter,
    shared: SharedState,
}

impl Agent {
    /// Connects to the kernel and to the store. Needs a tokio runtime.
    pub(crate) fn new(config: AgentConfig, shared: SharedState) -> Result<Self> {
        let store_name = config.store.name();
        let saved = saved_state::read(&config.state_file, &store_name).unwrap_or_else(|error| {
            warn!(
                "{}; starting without the saved state",
                Error::from(error).text()
            );
            None
        });
        Ok(Self {
            kernel: Rtnl::connect()?,
            store: Store::open(&config.store, &config.subnet_file, saved.as_ref())?,
            firewall: Firewall::new(config.firewall.clone()),
            fast_path: FastPath::new(config.fast_path),
            saver: StateSaver::new(config.state_file.clone(), store_name),
            restored: RestoredState::new(saved),
            config,
            node: None,
            identity_changed: false,
            has_installed_list: false,
            present_routes: None,
            diversions: Diversions::default(),
            counted_peers: 0,
            neighbour_warning: None,
            sysctls_are_right: false,
            reporter: Reporter::default(),
            shared,
        })
    }

    /// Reconciles until SIGTERM or SIGINT. Routes, firewall and subnet file stay on exit: pods keep
    /// their network while there is no agent.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut scheduler = Scheduler::new(&self.kernel)?;
        info!("started");
        let mut trigger = Trigger::resync();
        loop {
            let started = Instant::now();
            let outcome = self.reconcile(trigger);
            let timing = Timing {
                started,
                cost: outcome.cost,
                needs_retry: !outcome.findings.problems.is_empty(),
                poll: self.firewall.poll(),
                is_routing: self.node.is_some(),
            };
            self.publish(outcome, started);
            self.save(trigger);
            trigger = match scheduler
                .next(&self.store, &mut self.fast_path, &timing)
                .await?
            {
                Some(trigger) => trigger,
                None => break,
            };
        }
        systemd::notify_stopping();
        if let Some(node) = &self.node {
            self.reporter.report_save(self.saver.save_now(node));
        }
        info!("stopped; routes, firewall rules and the subnet file stay in place");
        Ok(())
    }

    /// Saves the state: at once if this node's identity changed, else with the next resync.
    fn save(&mut self, trigger: Trigger) {
        let identity_changed = std::mem::take(&mut self.identity_changed);
        if !trigger.is_resync && !identity_changed {
            return;
        }
        if let Some(node) = &self.node {
            self.reporter.report_save(self.saver.save(node));
        }
    }

    /// Makes the outcome of a reconcile visible: in the log, over HTTP, in the store, to systemd.
    fn publish(&mut self, outcome: Outcome, started: Instant) {
        self.reporter.report(&outcome);
        let mut state = lock(&self.shared);
        state.reconciled(started.elapsed(), SystemTime::now());
        state.problems = self.reporter.problems().iter().cloned().collect();
        state.warnings = self.reporter.warnings().iter().cloned().collect();
        state.firewall = self.firewall.backend();
        state.firewall_restored = self.firewall.restored();
        state.fast_path_flushes = self.fast_path.flushes();
        state.peers = outcome.peers;
        state.store = outcome.store;
        state.store.name = self.config.store.name();
        if let Some(node) = &self.node {
            state.set_node(node);
            state.fast_path = Some(self.fast_path.status().clone());
        }
        let is_ready = state.is_ready();
        let (total, routed) = state.counts();
        drop(state);
        self.reporter.report_ready(is_ready, routed, total);
        self.store.report_status(self.reporter.network_status());
        systemd::notify_state(is_ready, self.reporter.problems());
    }
}
