//! Watches all Nodes.

use std::time::Duration;

use futures::{AsyncBufReadExt, TryStreamExt};
use kube::Client;
use kube::api::{WatchEvent, WatchParams};
use kube::core::Request;
use rand::RngExt;
use tokio::time::{Instant, interval};

use super::Session;
use crate::store::kube::connection::{NODES, REQUEST_TIMEOUT, ask, stream};
use crate::store::kube::error::Error;
use crate::store::kube::object::Object;
use crate::store::session::{Liveness, Silence, TICK};

/// A watch is started again after a random time in this range, in seconds, so that not all nodes do
/// it at once.
const WATCH_SECONDS: std::ops::Range<u32> = 200..290;
/// A server that has not sent anything for this long is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(10);
/// A watch that has not sent anything for this long is started again: a bookmark comes each minute.
const WATCH_TIMEOUT: Duration = Duration::from_secs(150);

impl Session {
    /// Watches all Nodes and publishes this node's, until the server ends the watch, as it does
    /// from time to time, or until this node has other addresses.
    pub(super) async fn watch(&mut self, client: &Client) -> Result<(), Error> {
        let version = self.shared.lock().version.clone();
        let parameters = WatchParams::default().timeout(rand::rng().random_range(WATCH_SECONDS));
        let request = Request::new(NODES).watch(&parameters, &version)?;
        let body = ask(client, request, REQUEST_TIMEOUT).await?;
        let mut events = stream(body).lines();
        self.shared.update(|state| {
            state.unreachable = None;
            state.last_heard = Some(Instant::now());
        });
        let started = Instant::now();
        let mut liveness = Liveness::new(QUIET, WATCH_TIMEOUT);
        let mut tick = interval(TICK);
        while self.has_same_addresses() {
            let desired = self.desired.borrow_and_update().clone();
            self.publisher.publish(client, desired).await?;
            tokio::select! {
                event = events.try_next() => {
                    let Some(event) = event? else {
                        if started.elapsed() < TICK {
                            return Err(Error::Unavailable("the watch was closed immediately".to_owned()));
                        }
                        // The next server may be another one.
                        self.must_check_revision = true;
                        return Ok(());
                    };
                    liveness.heard();
                    self.handle_event(&event)?;
                }
                Ok(()) = self.desired.changed() => {}
                _ = tick.tick() => match liveness.check() {
                    Silence::None => {}
                    Silence::Ask => self.ask_for_sign_of_life(client).await?,
                    Silence::Dead => {
                        self.must_check_revision = true;
                        return Ok(());
                    }
                },
            }
        }
        Ok(())
    }

    /// Fails if the server does not answer at all, or does not know us any more.
    async fn ask_for_sign_of_life(&self, client: &Client) -> Result<(), Error> {
        let request = http::Request::get("/livez").body(Vec::new());
        let request = request.expect("a path is a request");
        match ask(client, request, REQUEST_TIMEOUT).await {
            Err(error @ (Error::Unavailable(_) | Error::Unauthorized(_))) => Err(error),
            _ => Ok(()),
        }
    }

    /// Applies one event of the watch.
    fn handle_event(&mut self, event: &str) -> Result<(), Error> {
        let event: WatchEvent<Object> = serde_json::from_str(event)
            .map_err(|error| Error::Unavailable(format!("cannot decode a watch event: {error}")))?;
        let version = match &event {
            WatchEvent::Bookmark(bookmark) => &bookmark.metadata.resource_version,
            WatchEvent::Added(object)
            | WatchEvent::Modified(object)
            | WatchEvent::Deleted(object) => object.version(),
            WatchEvent::Error(_) => "",
        };
        let version = version.to_owned();
        self.check_not_older(&version)?;
        let mut state = self.shared.lock();
        state.last_heard = Some(Instant::now());
        let is_new = match event {
            WatchEvent::Bookmark(_) => false,
            WatchEvent::Error(status) => {
                // The same watch would fail again, unless the server says when to try it.
                return Err(match Error::from(*status) {
                    Error::Throttled(reason, after) if after.is_zero() => Error::Refused(reason),
                    error => error,
                });
            }
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let contents = state.contents.as_mut();
                contents.is_some_and(|contents| contents.put(object))
            }
            WatchEvent::Deleted(object) => {
                if let Some(contents) = &mut state.contents {
                    contents.delete(object);
                }
                true
            }
        };
        state.version.clone_from(&version);
        drop(state);
        self.known_version = version;
        if is_new {
            self.shared.notify();
        }
        Ok(())
    }
}
