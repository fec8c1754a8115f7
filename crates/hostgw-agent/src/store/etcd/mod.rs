//! The `etcd` store (v3): keys and values as flannel writes them, so that flannel's nodes and ours
//! can share a cluster.
//!
//! A background task ([`session`]) reads everything in one range, watches from that revision on, and
//! holds this node's own lease ([`holder`]). After any failure (compaction, a lost leader, a silent
//! watch, new certificates) the connection ends, and the next one reads everything again.

mod blocked;
mod connection;
mod contents;
mod error;
mod format;
mod holder;
mod release;
mod requests;
mod session;
mod step;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use subnet_env::SubnetEnv;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use connection::{Access, Password};
pub(crate) use error::Error;
pub(crate) use release::release;

use super::task_state::TaskState;
use super::{Answer, Result, UplinkFinder, UplinkInputs, View, ViewContext, resolve};
use crate::agent::saved_state::SavedState;
use crate::network::{Addresses, EtcdLease, Lease, Snapshot};
use crate::node::{Node, Uplink};
use crate::observe::StoreState;
use contents::Contents;
use format::Subnets;
use session::Session;

/// Everything the store needs to start.
#[derive(Clone, Debug)]
pub(crate) struct EtcdStoreConfig {
    pub(crate) access: Access,
    /// The start of every key, such as `/coreos.com/network/`.
    pub(crate) prefix: String,
    /// The time to live of a lease.
    pub(crate) ttl: Duration,
    /// How long before its end a lease is renewed.
    pub(crate) margin: Duration,
}

/// A running store. Its background task ends when it is dropped; the lease stays.
pub(crate) struct EtcdStore {
    shared: Arc<TaskState<State>>,
    identity: watch::Sender<Option<NodeIdentity>>,
    task: JoinHandle<()>,
    uplink: UplinkFinder,
}

/// The facts that identify this node in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NodeIdentity {
    /// The present addresses of the uplink.
    addresses: Addresses,
    /// The lease in the saved state, if that is of this node for sure.
    saved_lease: Option<EtcdLease>,
}

/// The state of the background task.
#[derive(Default)]
struct State {
    contents: Option<Contents>,
    /// This node's lease, once it has held one since the start.
    own: Option<(Arc<Lease>, EtcdLease)>,
    /// Why this node's lease is missing or wrong.
    lease_problem: Option<Error>,
    /// The same, if other nodes can still find this one by its lease.
    lease_warning: Option<String>,
    /// Why etcd cannot be read.
    unreachable: Option<Error>,
    last_heard: Option<Instant>,
    /// When the lease expires. `None` for a reservation.
    expires: Option<Instant>,
}

impl EtcdStoreConfig {
    pub(crate) fn name(&self) -> String {
        format!("etcd {}", self.prefix.trim_end_matches('/'))
    }
}

impl EtcdStore {
    /// Starts the background task. This node asks for the subnet in its subnet file, or else for the
    /// one in its saved state.
    pub(crate) fn start(
        config: EtcdStoreConfig,
        subnet_file: &Path,
        saved: Option<&SavedState>,
    ) -> Self {
        let file = SubnetEnv::read(subnet_file).ok();
        let in_file = file.iter().map(Subnets::from_subnet_file);
        let saved = saved.and_then(|saved| saved.etcd_lease.as_ref());
        let in_saved_state = saved.and_then(|lease| lease.name.parse().ok());
        let previous = in_file.chain(in_saved_state).collect();
        let shared = Arc::new(TaskState::default());
        let (identity, receiver) = watch::channel(None);
        let session = Session::new(config, Arc::clone(&shared), receiver, previous);
        Self {
            shared,
            identity,
            task: tokio::spawn(session.run()),
            uplink: UplinkFinder::default(),
        }
    }

    /// Waits until something changed.
    pub(crate) async fn changed(&self) {
        self.shared.changed().await;
    }

    /// Returns the view of etcd's present content.
    pub(crate) fn view(&mut self, context: ViewContext<'_>) -> View {
        if context.network_changed {
            self.uplink.forget();
        }
        let report = Report::new(&self.shared.lock());
        let saved_lease = context.saved.and_then(|saved| saved.etcd_lease.as_ref());
        let held = report.own.as_ref().map(|(_, held)| held).or(saved_lease);
        let uplink = self.find_uplink(&report, held, context);
        if let Ok(uplink) = &uplink {
            self.set_identity(NodeIdentity {
                addresses: uplink.public(None),
                saved_lease: saved_lease.cloned(),
            });
        }
        let state = report.store_state();
        let mut problem = report.lease_problem;
        if problem.is_none() && report.expires.is_some_and(|end| end <= Instant::now()) {
            problem = Some(Error::Expired);
        }
        let problems = problem.into_iter().map(Into::into).collect();
        let warnings = report.lease_warning.into_iter().collect();
        let answer = match (report.snapshot, report.own, report.unreachable) {
            (Some(Ok(snapshot)), Some((own, held)), _) => {
                let node = uplink.clone().map(|uplink| Node {
                    snapshot,
                    own: (*own).clone(),
                    uplink,
                    etcd_lease: Some(held),
                    version: None,
                    from_saved_state: false,
                });
                Answer::Node(node.map(Box::new))
            }
            (Some(Err(error)), ..) => Answer::Invalid(error.into()),
            (.., Some(error)) => Answer::Unreachable(error.into()),
            _ => Answer::Pending,
        };
        resolve(answer, context.saved, || uplink).into_view(state, problems, warnings)
    }

    fn find_uplink(
        &mut self,
        report: &Report,
        held: Option<&EtcdLease>,
        context: ViewContext<'_>,
    ) -> Result<Uplink> {
        let snapshot = report.snapshot.as_ref();
        let snapshot = snapshot.and_then(|snapshot| snapshot.as_ref().ok());
        let inputs = UplinkInputs {
            network: snapshot.map(|snapshot| snapshot.network),
            announced: held.map(|held| held.addresses).unwrap_or_default(),
            ..UplinkInputs::default()
        };
        self.uplink.find(&inputs, context)
    }

    fn set_identity(&self, identity: NodeIdentity) {
        self.identity.send_if_modified(|present| {
            let is_new = present.as_ref() != Some(&identity);
            *present = Some(identity);
            is_new
        });
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A copy of the background task's state.
struct Report {
    /// Everything, or why the configuration cannot be used. `None` before the first read.
    snapshot: Option<Result<Snapshot, Error>>,
    own: Option<(Arc<Lease>, EtcdLease)>,
    lease_problem: Option<Error>,
    lease_warning: Option<String>,
    unreachable: Option<Error>,
    revision: i64,
    last_heard: Option<Instant>,
    expires: Option<Instant>,
}

impl Report {
    fn new(state: &State) -> Self {
        let contents = state.contents.as_ref();
        Self {
            snapshot: contents.map(Contents::snapshot),
            own: state.own.clone(),
            lease_problem: state.lease_problem.clone(),
            lease_warning: state.lease_warning.clone(),
            unreachable: state.unreachable.clone(),
            revision: contents.map_or(0, |contents| contents.revision),
            last_heard: state.last_heard,
            expires: state.expires,
        }
    }

    fn store_state(&self) -> StoreState {
        StoreState {
            name: String::new(),
            is_reached: self.unreachable.is_none() && self.snapshot.is_some(),
            warning: self.unreachable.as_ref().map(ToString::to_string),
            revision: self.revision,
            last_heard: self.last_heard,
            expires: self.expires,
        }
    }
}
