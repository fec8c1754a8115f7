//! Keeps this node's own Node object: its annotations, its condition, and events about it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, info};

use super::connection::answer;
use super::connection::{NODES, REFUSED_PAUSES};
use super::contents::Contents;
use super::error::Error;
use super::format::{Node, Prefix};
use super::object::Object;
use super::{DesiredNode, KubeStoreConfig, PublishError, State};
use crate::store::NetworkStatus;
use crate::store::session::Backoff;
use crate::store::task_state::TaskState;

/// A problem that lasts no longer than this does not change the condition: the scheduler would send
/// pods to other nodes.
const STEADY: Duration = Duration::from_secs(3);
/// There is at most one event in this time.
const EVENT_INTERVAL: Duration = Duration::from_secs(10);

/// Updates this node's Node object when it differs from the desired one.
pub(super) struct Publisher {
    shared: Arc<TaskState<State>>,
    prefix: Prefix,
    sets_condition: bool,
    /// State of the retry after a refused write.
    refused: Option<RefusedWrite>,
    backoff: Backoff,
    /// When this node's problem began.
    problem_since: Option<Instant>,
    /// The status in the last event, and when it was written.
    last_event: Option<(NetworkStatus, Instant)>,
}

/// The values to write, and the present ones.
#[derive(Clone)]
struct Write {
    desired: DesiredNode,
    own: Option<Arc<Node>>,
}

/// A write that was refused, and when to try again.
struct RefusedWrite {
    write: Write,
    retry_at: Instant,
    /// When to try again if other values have to be written by then.
    retry_other_at: Instant,
}

impl RefusedWrite {
    /// True if it is too early for this write.
    fn delays(&self, write: &Write) -> bool {
        let is_same = self.write.desired == write.desired
            && match (&self.write.own, &write.own) {
                (Some(old), Some(new)) => old.differs_only_in_version(new),
                (old, new) => old.is_none() == new.is_none(),
            };
        let at = if is_same {
            self.retry_at
        } else {
            self.retry_other_at
        };
        Instant::now() < at
    }
}

impl Publisher {
    pub(super) fn new(config: &KubeStoreConfig, shared: Arc<TaskState<State>>) -> Self {
        Self {
            shared,
            prefix: config.prefix.clone(),
            sets_condition: config.sets_condition,
            refused: None,
            backoff: Backoff::new(REFUSED_PAUSES),
            problem_since: None,
            last_event: None,
        }
    }

    /// Writes the desired annotations and condition. If the API server refuses, or does not answer
    /// it, the other Nodes are watched all the same.
    pub(super) async fn publish(
        &mut self,
        client: &Client,
        desired: DesiredNode,
    ) -> Result<(), Error> {
        match &desired.status {
            Some(NetworkStatus::NotReady(_)) => {
                self.problem_since.get_or_insert(Instant::now());
            }
            _ => self.problem_since = None,
        }
        let write = Write {
            own: self.own(),
            desired,
        };
        if self.refused.as_ref().is_some_and(|old| old.delays(&write)) {
            return Ok(());
        }
        // The condition is written even if the annotations are refused: it has the reason.
        let annotated = self.annotate(client, &write.desired).await;
        let reported = self.report(client, &write.desired).await;
        let hides_node = matches!(
            annotated,
            Err(Error::Refused(_) | Error::Throttled(..) | Error::InvalidAnnotation { .. })
        );
        let failed = match annotated.and(reported) {
            Ok(()) => {
                self.refused = None;
                self.backoff.reset();
                None
            }
            // The session has to end.
            Err(error @ (Error::Expired | Error::Stale(_) | Error::Unauthorized(_))) => {
                return Err(error);
            }
            Err(error) => {
                self.delay(write, &error);
                Some(PublishError { error, hides_node })
            }
        };
        if self.shared.lock().publish_error != failed {
            self.shared.update(|state| state.publish_error = failed);
        }
        Ok(())
    }

    /// Puts a refused write off.
    fn delay(&mut self, write: Write, error: &Error) {
        let requested = match error {
            Error::Throttled(_, after) => *after,
            _ => Duration::ZERO,
        };
        let earliest = Instant::now() + requested;
        self.refused = Some(RefusedWrite {
            write,
            retry_at: earliest + self.backoff.next(),
            retry_other_at: earliest + Backoff::new(REFUSED_PAUSES).next(),
        });
    }

    fn own(&self) -> Option<Arc<Node>> {
        let state = self.shared.lock();
        state.contents.as_ref().and_then(Contents::own)
    }

    /// Writes the annotations by which other nodes find this one.
    async fn annotate(&self, client: &Client, desired: &DesiredNode) -> Result<(), Error> {
        let (Some(node), Some(addresses)) = (self.own(), desired.addresses) else {
            return Ok(());
        };
        let changes = node.annotation_changes(&self.prefix, addresses)?;
        if changes.is_empty() {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": changes}});
        self.patch(client, &node.name, patch)
            .await
            .map_err(|error| {
                error.during(&format!("write the annotations of Node {}", node.name))
            })?;
        info!("Node {} now has {}", node.name, describe(&changes));
        Ok(())
    }

    /// Writes the condition, and an event if the status changed.
    async fn report(&mut self, client: &Client, desired: &DesiredNode) -> Result<(), Error> {
        let (Some(node), Some(status)) = (self.own(), self.steady_status(desired)) else {
            return Ok(());
        };
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        if self.sets_condition
            && let Some(condition) = node.condition(&status, &now)
        {
            let patch = json!({"status": {"conditions": [condition]}});
            self.patch(client, &node.name, patch)
                .await
                .map_err(|error| {
                    error.during(&format!("set NetworkUnavailable of Node {}", node.name))
                })?;
            let status = condition["status"].as_str().unwrap_or_default();
            info!("Node {} now has NetworkUnavailable={status}", node.name);
        }
        self.write_event(client, &node, status, &now).await;
        Ok(())
    }

    /// This node's status, unless it has had a problem for a short time only.
    fn steady_status(&self, desired: &DesiredNode) -> Option<NetworkStatus> {
        let since = self.problem_since;
        let is_steady = since.is_none_or(|since| since.elapsed() > STEADY);
        desired.status.clone().filter(|_| is_steady)
    }

    /// Changes this node's Node, and reads the result.
    async fn patch(&self, client: &Client, name: &str, patch: Value) -> Result<(), Error> {
        let request = Request::new(NODES).patch_subresource(
            "status",
            name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        );
        let object: Object = answer(client, request?).await?;
        self.shared.update(|state| {
            if let Some(contents) = &mut state.contents {
                contents.put(object);
            }
        });
        Ok(())
    }

    /// Writes an event about a new problem, and about its end. Nothing depends on events, so that a
    /// failure is only logged.
    async fn write_event(
        &mut self,
        client: &Client,
        node: &Node,
        status: NetworkStatus,
        now: &str,
    ) {
        let is_due = match &self.last_event {
            None => status != NetworkStatus::Ready,
            Some((last, when)) => *last != status && when.elapsed() > EVENT_INTERVAL,
        };
        if !is_due {
            return;
        }
        let body = node.event(&status, now).to_string().into_bytes();
        let request = Request::new("/api/v1/namespaces/default/events");
        let created = match request.create(&PostParams::default(), body) {
            Ok(request) => answer::<Value>(client, request).await.map(drop),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = &created {
            debug!("write an event about Node {}: {error}", node.name);
        }
        // Without an answer, it is tried again.
        if !matches!(created, Err(Error::Unavailable(_))) {
            self.last_event = Some((status, Instant::now()));
        }
    }
}

/// Annotations in one line.
fn describe(changes: &BTreeMap<String, Option<String>>) -> String {
    let one = |(key, value): (&String, &Option<String>)| match value {
        Some(value) => format!("{key}={value}"),
        None => format!("removed {key}"),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}
