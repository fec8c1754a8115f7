//! What is written to this node's own Node: annotations, the condition, events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, info};

use super::connection::{Failure, answer};
use super::contents::Contents;
use super::format::Node;
use super::object::Object;
use super::own::Verdict;
use super::{EVENTS, Keeper, NODES, REFUSED, STEADY, Unwritten, Wish, built, jitter};

/// What is to be written, and what there is.
struct Subject {
    wish: Wish,
    own: Option<Arc<Node>>,
}

/// When to try again what the API server refused to write.
pub(super) struct Retry {
    at: Instant,
    /// The same, where it is another matter by then.
    at_least: Instant,
    /// How long that is, without chance.
    pause: Duration,
    subject: Subject,
}

impl Retry {
    /// After a refusal; the pause before it; how long the server wants to be left alone.
    fn new(before: Option<Duration>, after: Duration, subject: Subject) -> Self {
        let [least, most] = REFUSED;
        let now = Instant::now();
        let pause = before.map_or(least, |before| (before * 2).min(most));
        Self {
            at: now + after + jitter(pause),
            at_least: now + after + jitter(least),
            pause,
            subject,
        }
    }

    /// Whether it is too early for this.
    fn waits(&self, subject: &Subject) -> bool {
        let is_same = self.subject.wish == subject.wish
            && match (&self.subject.own, &subject.own) {
                (Some(old), Some(new)) => old.says_as_much_as(new),
                (old, new) => old.is_none() == new.is_none(),
            };
        let at = if is_same { self.at } else { self.at_least };
        Instant::now() < at
    }
}

impl Keeper {
    /// Sees to it that this node's Node says what it should. Where the API server lets Nodes be
    /// read and not be written, the others are followed all the same.
    pub(super) async fn hold(&mut self, client: &Client) -> Result<(), Failure> {
        let wish = self.wishes.borrow_and_update().clone();
        match &wish.verdict {
            Some(Err(_)) => self.bad_since = self.bad_since.or(Some(Instant::now())),
            _ => self.bad_since = None,
        }
        let subject = Subject {
            wish: wish.clone(),
            own: self.own(),
        };
        if self
            .retry
            .as_ref()
            .is_some_and(|retry| retry.waits(&subject))
        {
            return Ok(());
        }
        // People look at the condition first: it has the reason where the annotations are refused.
        let announced = self.announce(client, &wish).await;
        let told = self.tell(client, &wish).await;
        let hides_node = matches!(announced, Err(Failure::Refused(_) | Failure::Busy(..)));
        let unwritten = match announced.and(told) {
            Ok(()) => {
                self.retry = None;
                None
            }
            Err(failure @ (Failure::Gone | Failure::Older(_) | Failure::Unknown(_))) => {
                return Err(failure);
            }
            // A write that hangs keeps nobody from following the others; whether the server is there
            // at all, the watch shows.
            Err(Failure::Refused(reason) | Failure::Away(reason)) => Some((reason, Duration::ZERO)),
            Err(Failure::Busy(reason, after)) => Some((reason, after)),
        };
        let unwritten = unwritten.map(|(reason, after)| {
            let before = self.retry.as_ref().map(|retry| retry.pause);
            self.retry = Some(Retry::new(before, after, subject));
            Unwritten { reason, hides_node }
        });
        if self.shared.state().unwritten != unwritten {
            self.shared.update(|state| state.unwritten = unwritten);
        }
        Ok(())
    }

    /// This node's Node, if there is one.
    fn own(&self) -> Option<Arc<Node>> {
        let state = self.shared.state();
        state.contents.as_ref().and_then(Contents::own)
    }

    /// Has the Node say where this node is, by its annotations.
    async fn announce(&self, client: &Client, wish: &Wish) -> Result<(), Failure> {
        let (Some(node), Some(addresses)) = (self.own(), wish.addresses) else {
            return Ok(());
        };
        let what = format!("write the annotations of Node {}", node.name);
        // An overwrite that says nothing of use is put right by people.
        let changes = node
            .announcement(&self.options.prefix, addresses)
            .map_err(Failure::Refused)?;
        if changes.is_empty() {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": changes}});
        self.patch(client, &node.name, patch)
            .await
            .map_err(|failure| failure.about(&what))?;
        info!("Node {} says now: {}", node.name, said(&changes));
        Ok(())
    }

    /// Has the Node say whether its pods have a network, by its condition; and tells by an event.
    async fn tell(&mut self, client: &Client, wish: &Wish) -> Result<(), Failure> {
        let (Some(node), Some(verdict)) = (self.own(), self.steady(wish)) else {
            return Ok(());
        };
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        if self.options.sets_condition
            && let Some(condition) = node.condition(&verdict, &now)
        {
            let patch = json!({"status": {"conditions": [condition]}});
            let what = format!("set NetworkUnavailable of Node {}", node.name);
            self.patch(client, &node.name, patch)
                .await
                .map_err(|failure| failure.about(&what))?;
            let status = condition["status"].as_str().unwrap_or_default();
            info!("Node {} has NetworkUnavailable={status} now", node.name);
        }
        self.publish(client, &node, verdict, &now).await;
        Ok(())
    }

    /// What this node's state is, where that is not a matter of a moment.
    fn steady(&self, wish: &Wish) -> Option<Verdict> {
        let is_steady = self.bad_since.is_none_or(|since| since.elapsed() > STEADY);
        wish.verdict.clone().filter(|_| is_steady)
    }

    /// Changes this node's Node, and takes in what becomes of it.
    async fn patch(&self, client: &Client, name: &str, patch: Value) -> Result<(), Failure> {
        let request = Request::new(NODES).patch_subresource(
            "status",
            name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        );
        let object: Object = answer(client, built(request)?).await?;
        self.shared.update(|state| {
            if let Some(contents) = &mut state.contents {
                contents.put(object);
            }
        });
        Ok(())
    }

    /// Tells of a change for the worse, and of its end. Nobody depends on it.
    async fn publish(&mut self, client: &Client, node: &Node, verdict: Verdict, now: &str) {
        let is_news = match &self.told {
            None => verdict.is_err(),
            Some((told, when)) => *told != verdict && when.elapsed() > EVENTS,
        };
        if !is_news {
            return;
        }
        let body = node.event(&verdict, now).to_string().into_bytes();
        let request = Request::new("/api/v1/namespaces/default/events");
        let created = match built(request.create(&PostParams::default(), body)) {
            Ok(request) => answer::<Value>(client, request).await.map(drop),
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &created {
            debug!("write an event about Node {}: {failure}", node.name);
        }
        // Where there was no answer, it is told later.
        if !matches!(created, Err(Failure::Away(_))) {
            self.told = Some((verdict, Instant::now()));
        }
    }
}

fn said(changes: &BTreeMap<String, Option<String>>) -> String {
    let one = |(key, value): (&String, &Option<String>)| match value {
        Some(value) => format!("{key}={value}"),
        None => format!("no {key}"),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}
