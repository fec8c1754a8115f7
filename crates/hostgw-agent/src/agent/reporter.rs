//! Logs problems, warnings and changes, each of them once.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tracing::{debug, info, warn};

use super::reconcile::Outcome;
use crate::commands::install;
use crate::error::Error;
use crate::files;
use crate::observe::LogLimiter;
use crate::routes::plan::Change;
use crate::routes::{Applied, Peer};
use crate::store::NetworkStatus;

/// More route changes than this at once are logged as a number.
const MAX_ROUTE_LINES: usize = 20;

/// The messages that were logged last.
#[derive(Default)]
pub(super) struct Reporter {
    /// True if pods of this node have their network.
    is_ready: bool,
    /// Reasons why pods of this node do not have their network.
    problems: BTreeSet<String>,
    /// Facts that should be corrected, although pods have their network.
    warnings: BTreeSet<String>,
    store_warning: Option<String>,
    /// The subnets that are not routed, or whose packets go elsewhere.
    unroutable: BTreeSet<String>,
    /// Why the state could not be saved.
    save_error: Option<String>,
    /// The CNI configuration that the runtime uses instead of ours.
    shadowing_config: Option<PathBuf>,
    pub(super) limiter: LogLimiter,
}

impl Reporter {
    pub(super) fn problems(&self) -> &BTreeSet<String> {
        &self.problems
    }

    pub(super) fn warnings(&self) -> &BTreeSet<String> {
        &self.warnings
    }

    /// The status of this node for other parts of the cluster. `None` before anything was tried.
    pub(super) fn network_status(&self) -> Option<NetworkStatus> {
        if self.is_ready {
            return Some(NetworkStatus::Ready);
        }
        let problems: Vec<_> = self.problems.iter().map(String::as_str).collect();
        (!problems.is_empty()).then(|| NetworkStatus::NotReady(problems.join("; ")))
    }

    /// Logs the problems, warnings and peers that are new in `outcome`.
    pub(super) fn report(&mut self, outcome: &Outcome) {
        let warnings = outcome.findings.warnings.iter().cloned().collect();
        for new in difference(&warnings, &self.warnings) {
            self.limiter.warn_in("warnings", new);
        }
        self.warnings = warnings;
        let problems = outcome.findings.problems.iter().map(Error::text).collect();
        for new in difference(&problems, &self.problems) {
            self.limiter.error_in("problems of this node", new);
        }
        self.problems = problems;
        self.report_store(outcome.store.warning.as_ref());
        let unroutable = outcome.peers.iter().flat_map(unroutable).collect();
        for new in difference(&unroutable, &self.unroutable) {
            self.limiter.warn_in("subnets that are not routed", new);
        }
        self.unroutable = unroutable;
    }

    fn report_store(&mut self, warning: Option<&String>) {
        match warning {
            Some(warning) if self.store_warning.as_ref() != Some(warning) => warn!("{warning}"),
            None if self.store_warning.is_some() => info!("the store can be reached again"),
            _ => {}
        }
        self.store_warning = warning.cloned();
    }

    /// Logs that this node became ready. `routed` of `total` subnets of other nodes have routes.
    pub(super) fn report_ready(&mut self, is_ready: bool, routed: usize, total: usize) {
        if is_ready && !self.is_ready {
            let text = format!("ready: {routed} of {total} subnets of other nodes are routed");
            self.limiter.info("ready", &text);
        }
        self.is_ready = is_ready;
    }

    /// Logs route changes: many as a number, repairs and changes of others' routes with a limit.
    pub(super) fn report_routes(&mut self, applied: &Applied, is_repair: bool) {
        let is_many = applied.changes.len() > MAX_ROUTE_LINES;
        for change in &applied.changes {
            if change.is_against_foreign() {
                self.limiter.warn(change.kind(), &change.to_string());
            } else if is_many {
                debug!("{change}");
            } else if is_repair {
                self.limiter.info(change.kind(), &change.to_string());
            } else {
                self.limiter
                    .info_in("changes of routes", &change.to_string());
            }
        }
        if is_many {
            let (written, deleted) = applied.counts();
            let millis = applied.duration.as_secs_f64() * 1e3;
            info!(
                "added or replaced {written} routes, deleted {deleted}; the kernel took {millis:.1} ms"
            );
        }
    }

    /// Logs why the state could not be saved, if that is new.
    pub(super) fn report_save(&mut self, saved: Result<(), files::Error>) {
        let error = saved.map_err(|error| Error::from(error).text()).err();
        if let Some(reason) = &error
            && self.save_error.as_ref() != Some(reason)
        {
            warn!("{reason}; if this node boots while the store is unreachable, it has no subnet");
        }
        self.save_error = error;
    }

    /// Logs that the runtime uses another CNI configuration than ours.
    pub(super) fn report_shadowing_config(&mut self, path: Option<PathBuf>) {
        if let Some(path) = path.as_ref().filter(|_| path != self.shadowing_config) {
            warn!("{}", install::shadow_warning(path));
        }
        self.shadowing_config = path;
    }
}

impl Change {
    /// True if a route of someone else is replaced or deleted.
    fn is_against_foreign(&self) -> bool {
        self.removed()
            .is_some_and(|route| route.protocol != kernel::Protocol::HOSTGW)
    }
}

fn difference<'a>(
    new: &'a BTreeSet<String>,
    old: &'a BTreeSet<String>,
) -> impl Iterator<Item = &'a String> {
    new.difference(old)
}

/// Why a peer is not routed, and why its packets go elsewhere.
fn unroutable(peer: &Peer) -> impl Iterator<Item = String> {
    let refused = peer.refused.as_ref();
    let refused = refused.map(|reason| format!("{peer} is not routed: {reason}"));
    let diverted = peer.diverted.as_ref();
    let diverted = diverted.map(|reason| format!("{peer}: {reason}"));
    refused.into_iter().chain(diverted)
}
