//! The background task of the `etcd` store: reads everything, watches, and holds this node's lease,
//! for ever.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, ResponseHeader, WatchOptions, WatchResponse};
use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep};
use tracing::{info, warn};

use super::contents::Contents;
use super::error::Error;
use super::format::Subnets;
use super::holder::LeaseHolder;
use super::requests::{MAX_MESSAGE, REQUEST_TIMEOUT, read_all, within};
use super::{EtcdStoreConfig, NodeIdentity, State};
use crate::network::Addresses;
use crate::store::session::{GOOD_SESSION, Liveness, Silence, TICK};
use crate::store::task_state::TaskState;

/// After this time without an event, the watch is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(2);
/// After this time, the connection counts as broken.
const WATCH_TIMEOUT: Duration = Duration::from_secs(5);
/// An endpoint that takes longer than this to fail may take as long each time.
const SLOW_FAILURE: Duration = Duration::from_secs(1);
/// The pause before the next endpoint is tried.
const NEXT_ENDPOINT_PAUSE: Duration = Duration::from_millis(20);
/// The random pause in milliseconds after all endpoints failed. It has no backoff: a node should be
/// back within a second, and etcd's members are few.
const ROUND_PAUSE: std::ops::Range<u64> = 200..600;

/// Reads, watches and holds.
pub(super) struct Session {
    config: EtcdStoreConfig,
    shared: Arc<TaskState<State>>,
    identity: watch::Receiver<Option<NodeIdentity>>,
    holder: LeaseHolder,
    /// The revision of etcd when it was read last.
    revision: i64,
    /// True if the present connection has read etcd.
    has_read: bool,
}

impl Session {
    pub(super) fn new(
        config: EtcdStoreConfig,
        shared: Arc<TaskState<State>>,
        identity: watch::Receiver<Option<NodeIdentity>>,
        previous: Vec<Subnets>,
    ) -> Self {
        Self {
            holder: LeaseHolder::new(&config, Arc::clone(&shared), previous),
            config,
            shared,
            identity,
            revision: 0,
            has_read: false,
        }
    }

    /// Connects again and again, to one endpoint after the other.
    pub(super) async fn run(mut self) {
        let endpoints = self.config.access.endpoints.clone();
        let mut failures = Vec::new();
        for endpoint in endpoints.iter().cycle() {
            let started = Instant::now();
            self.has_read = false;
            let Err(error) = self.connection(endpoint).await else {
                continue;
            };
            if started.elapsed() > GOOD_SESSION {
                failures.clear();
            }
            if matches!(error, Error::Login(_)) && self.has_read {
                // The login worked until now: someone changed users or roles.
                info!("{error}; logging in to etcd again");
                failures.clear();
                sleep(NEXT_ENDPOINT_PAUSE).await;
                continue;
            }
            let is_slow = started.elapsed() > SLOW_FAILURE;
            failures.push((endpoint, error));
            let is_round = failures.len() >= endpoints.len();
            // At the start, a slow endpoint must not delay the saved state.
            if is_round || is_slow && self.shared.lock().last_heard.is_none() {
                let error = self.unreachable(&failures);
                self.shared.update(|state| state.unreachable = Some(error));
            }
            if !is_round {
                sleep(NEXT_ENDPOINT_PAUSE).await;
                continue;
            }
            failures.clear();
            let pause = rand::rng().random_range(ROUND_PAUSE);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    fn unreachable(&self, failures: &[(&String, Error)]) -> Error {
        let reasons = failures.iter().map(|(endpoint, error)| {
            let reason = self.config.access.explain(endpoint, error);
            format!("{endpoint}: {reason}")
        });
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        let is_login = |(_, error): &(&String, Error)| matches!(error, Error::Login(_));
        if failures.iter().all(is_login) {
            Error::RefusesLogin(reasons)
        } else {
            Error::Unreachable(reasons)
        }
    }

    /// One connection, to its end. Returns without an error if the next one should start at once.
    async fn connection(&mut self, endpoint: &str) -> Result<(), Error> {
        let mut addresses = self.addresses();
        let files = self.config.access.modification_times();
        let mut client = self.config.access.connect(endpoint).await?;
        let contents = self.read(&client).await?;
        let start = contents.revision + 1;
        let options = WatchOptions::new().with_prefix().with_start_revision(start);
        let mut watcher = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let watch = watcher.watch(self.config.prefix.as_str(), Some(options));
        let mut watch = within(REQUEST_TIMEOUT, watch).await?;
        // Only a store that can also be watched counts as reached.
        self.shared.update(|state| {
            state.contents = Some(contents);
            state.unreachable = None;
            state.last_heard = Some(Instant::now());
        });
        let mut liveness = Liveness::new(QUIET, WATCH_TIMEOUT);
        let mut tick = interval(TICK);
        loop {
            // The connection may use an address that is gone.
            let now = self.addresses();
            if addresses.is_some() && now != addresses {
                return Ok(());
            }
            addresses = now;
            let identity = self.identity.borrow_and_update().clone();
            self.holder.hold(&mut client, identity).await?;
            tokio::select! {
                message = watch.message() => {
                    let ended = || Error::Unavailable("the watch stream was closed".to_owned());
                    let message = message?.ok_or_else(ended)?;
                    liveness.heard();
                    if !self.handle_event(&message)? {
                        return Ok(());
                    }
                }
                Ok(()) = self.identity.changed() => {}
                _ = tick.tick() => {
                    match liveness.check() {
                        Silence::None => {}
                        Silence::Ask => within(REQUEST_TIMEOUT, watch.request_progress()).await?,
                        Silence::Dead => {
                            let seconds = WATCH_TIMEOUT.as_secs();
                            let reason = format!("nothing was heard for {seconds} s");
                            return Err(Error::Unavailable(reason));
                        }
                    }
                    if self.config.access.modification_times() != files {
                        info!("the certificate or password files changed; connecting again");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads everything.
    async fn read(&mut self, client: &Client) -> Result<Contents, Error> {
        let contents = read_all(client, &self.config.prefix).await?;
        if contents.revision < self.revision {
            warn!(
                "etcd went back in time, from revision {} to {}: it was restored from a backup, or is another one; using what it says now",
                self.revision, contents.revision
            );
        }
        self.revision = contents.revision;
        self.has_read = true;
        Ok(contents)
    }

    /// Applies what the watch sent. Returns whether it goes on.
    fn handle_event(&mut self, message: &WatchResponse) -> Result<bool, Error> {
        if message.compact_revision() > 0 {
            warn!(
                "etcd has no history before revision {}; reading everything again",
                message.compact_revision()
            );
            return Ok(false);
        }
        if message.canceled() {
            let reason = format!("the watch was cancelled: {}", message.cancel_reason());
            return Err(Error::Unavailable(reason));
        }
        let mut state = self.shared.lock();
        state.last_heard = Some(Instant::now());
        if let Some(contents) = &mut state.contents {
            let revision = message.header().map_or(0, ResponseHeader::revision);
            contents.revision = contents.revision.max(revision);
            self.revision = contents.revision;
            message
                .events()
                .iter()
                .for_each(|event| contents.apply(event));
        }
        if !message.events().is_empty() {
            self.shared.notify();
        }
        Ok(true)
    }

    fn addresses(&self) -> Option<Addresses> {
        let identity = self.identity.borrow();
        identity.as_ref().map(|identity| identity.addresses)
    }
}
