//! The `kube` store: Node objects, with the annotations that flannel writes, so that kube-flannel's
//! nodes and ours share a cluster.
//!
//! One task lists all Nodes, watches from there on, and sees to it that this node's own Node says
//! what others and the scheduler go by: annotations and the condition `NetworkUnavailable`. It
//! compares them with what they should be, whoever wrote them.

mod connection;
mod contents;
mod format;
mod list;
mod object;
mod own;
mod proxy;
mod view;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{AsyncBufReadExt, TryStreamExt};
use http::HeaderValue;
use http::header::ACCEPT;
use kube::Client;
use kube::api::{ListParams, VersionMatch, WatchEvent, WatchParams};
use kube::core::Request;
use rand::RngExt;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep};
use tracing::warn;

pub(crate) use connection::Access;
pub(crate) use format::Prefix;
pub(crate) use own::Verdict;
pub(crate) use view::Kube;

use crate::lease::{Addresses, Lease};
use crate::store::shared::Shared;
use connection::{Failure, PATIENCE, answer, ask, stream};
use contents::Contents;
use format::Node;
use object::Object;
use write::Retry;

const NODES: &str = "/api/v1/nodes";
/// How long a list of all Nodes may take to begin.
const LIST_PATIENCE: Duration = Duration::from_secs(15);
/// A watch is begun anew after a time between these, in seconds, and not by all nodes at once.
const WATCH: std::ops::Range<u32> = 200..290;
/// How often we look at what makes no notice: due dates, silence.
const TICK: Duration = Duration::from_secs(1);
/// A server that has not told anything for so long is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(10);
/// A watch that has not told anything for so long is begun anew: a bookmark comes each minute.
const SILENT: Duration = Duration::from_secs(150);
/// A session that lasted longer than this was a good one.
const LASTING: Duration = Duration::from_secs(5);
/// How soon we try again where there was no answer, at first and at last.
const AWAY: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// The same where the answer was no.
const REFUSED: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// What is wrong for no longer than this is not worth a condition: the scheduler would turn away.
const STEADY: Duration = Duration::from_secs(3);
/// There is no more than one event in this time.
const EVENTS: Duration = Duration::from_secs(10);

/// What is to be known to begin.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) access: Access,
    pub(crate) node: Identity,
    pub(crate) prefix: Prefix,
    /// Whether nodes without annotations are routed to, by their `InternalIP`.
    pub(crate) peers_without_annotations: bool,
    /// Whether the Node's condition `NetworkUnavailable` is ours.
    pub(crate) sets_condition: bool,
    /// The network's configuration.
    pub(crate) net_conf: PathBuf,
}

impl Options {
    /// What tells it from other stores: what was kept of another Node is not this one's.
    pub(crate) fn name(&self) -> String {
        match &self.node {
            Identity::Named(name) => format!("kube {name}"),
            Identity::OfPod { .. } => "kube".to_owned(),
        }
    }
}

/// Which Node this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Named(String),
    /// The one that this pod runs on.
    OfPod {
        namespace: String,
        name: String,
    },
}

/// A running store. It ends when it is dropped; what it wrote stays.
struct KubeStore {
    shared: Arc<Shared<State>>,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

/// What this node's Node is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wish {
    /// By which addresses others reach its pods. Nothing while it has no subnet.
    addresses: Option<Addresses>,
    /// Nothing before anything was tried.
    verdict: Option<Verdict>,
}

/// What the store knows.
struct Report {
    /// Every node's lease, the oldest first. Nothing before the first contact.
    leases: Option<Vec<Arc<Lease>>>,
    /// This node's Node, or its name where there is none.
    own: Option<Result<Arc<Node>, String>>,
    /// Why this node's Node does not say what it should.
    unwritten: Option<Unwritten>,
    /// Why nothing can be heard.
    unreachable: Option<String>,
    /// How far the store was read.
    version: Option<String>,
    /// When something was last heard.
    heard: Option<Instant>,
}

/// Why this node's Node does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unwritten {
    reason: String,
    /// Whether others do not find this node for it.
    hides_node: bool,
}

#[derive(Default)]
struct State {
    name: String,
    contents: Option<Contents>,
    version: String,
    unwritten: Option<Unwritten>,
    unreachable: Option<String>,
    heard: Option<Instant>,
}

impl KubeStore {
    /// Begins; an earlier run knew the store up to `version`. Needs a tokio runtime.
    fn start(options: Options, version: Option<String>) -> Self {
        let shared = Arc::new(Shared::default());
        let (wish, wishes) = watch::channel(Wish::default());
        let keeper = Keeper {
            options,
            shared: Arc::clone(&shared),
            wishes,
            is_current: false,
            at_least: None,
            known: version.unwrap_or_default(),
            wants_store: false,
            is_shaken: false,
            place: None,
            pause: Duration::ZERO,
            probed: Instant::now(),
            retry: None,
            bad_since: None,
            told: None,
        };
        Self {
            shared,
            wish,
            task: tokio::spawn(keeper.run()),
        }
    }

    /// Changes what this node's Node is to say.
    fn wish(&self, change: impl FnOnce(&mut Wish)) {
        self.wish.send_if_modified(|present| {
            let old = present.clone();
            change(present);
            *present != old
        });
    }

    /// Waits until something changed.
    async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// What is known now.
    fn report(&self) -> Report {
        let state = self.shared.state();
        let contents = state.contents.as_ref();
        Report {
            leases: contents.map(|contents| contents.leases().cloned().collect()),
            own: contents.map(|contents| contents.own().ok_or_else(|| state.name.clone())),
            unwritten: state.unwritten.clone(),
            unreachable: state.unreachable.clone(),
            version: (!state.version.is_empty()).then(|| state.version.clone()),
            heard: state.heard,
        }
    }
}

impl Drop for KubeStore {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads, watches and writes, for ever.
struct Keeper {
    options: Options,
    shared: Arc<Shared<State>>,
    wishes: watch::Receiver<Wish>,
    /// Whether a watch can go on from what was read.
    is_current: bool,
    /// How far that has to go which is read anew.
    at_least: Option<String>,
    /// How far the store was known, by an earlier run, too.
    known: String,
    /// Whether the store itself is to be read, and not the API server's memory.
    wants_store: bool,
    /// Whether a connection was lost since the store was last seen to go on.
    is_shaken: bool,
    /// The addresses of this node as this connection began.
    place: Option<Addresses>,
    /// How long we waited last before we tried again.
    pause: Duration,
    /// When a sign of life was asked for last.
    probed: Instant,
    /// What the API server refused to write.
    retry: Option<Retry>,
    /// Since when something is wrong with this node.
    bad_since: Option<Instant>,
    /// What the last event said, and when.
    told: Option<(Verdict, Instant)>,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let begin = Instant::now();
            let Err(failure) = self.session().await else {
                continue;
            };
            if begin.elapsed() > LASTING {
                self.pause = Duration::ZERO;
            }
            let (reason, [least, most], wanted) = match failure {
                Failure::Gone => {
                    warn!(
                        "the API server has forgotten what was since we read last; reading everything anew"
                    );
                    self.forget();
                    sleep(jitter(AWAY[0])).await;
                    continue;
                }
                Failure::Older(reason) => {
                    warn!("{reason}; reading everything anew");
                    self.is_current = false;
                    self.wants_store = true;
                    sleep(jitter(AWAY[0])).await;
                    continue;
                }
                Failure::Busy(reason, after) => {
                    (format!("the API server refuses: {reason}"), REFUSED, after)
                }
                Failure::Refused(reason) => {
                    // What cannot be gone on with is worth reading anew.
                    self.forget();
                    let reason = format!("the API server refuses: {reason}");
                    (reason, REFUSED, Duration::ZERO)
                }
                Failure::Unknown(reason) => (
                    format!("the API server does not accept who we are: {reason}"),
                    AWAY,
                    Duration::ZERO,
                ),
                Failure::Away(reason) => (
                    format!("the API server cannot be reached: {reason}"),
                    AWAY,
                    Duration::ZERO,
                ),
            };
            self.is_shaken = true;
            self.shared.update(|state| state.unreachable = Some(reason));
            self.pause = (self.pause * 2).clamp(least, most);
            sleep(wanted + jitter(self.pause)).await;
        }
    }

    /// Has everything read anew. Where that itself was refused, the server never gets as far as we
    /// were, and is asked for what it has.
    fn forget(&mut self) {
        let version = self.shared.state().version.clone();
        let is_known = self.is_current && !version.is_empty();
        self.at_least = is_known.then_some(version);
        self.is_current = false;
    }

    /// One connection, to its end. It ends well when a new one is to begin at once.
    async fn session(&mut self) -> Result<(), Failure> {
        let client = self.options.access.connect().await.map_err(Failure::Away)?;
        let name = self.name(&client).await?;
        if !self.is_current {
            self.read(&client, &name).await?;
            self.is_shaken = false;
        }
        self.place = None;
        while self.is_here() {
            if std::mem::take(&mut self.is_shaken) {
                self.check_time(&client).await?;
            }
            self.watch(&client).await?;
        }
        Ok(())
    }

    /// Whether this node has the addresses that it had: the connection may be from one that is gone.
    fn is_here(&mut self) -> bool {
        let now = self.wishes.borrow().addresses;
        self.place = self.place.or(now);
        now == self.place
    }

    /// This node's name.
    async fn name(&self, client: &Client) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Pod {
            spec: PodSpec,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct PodSpec {
            node_name: String,
        }
        match &self.options.node {
            Identity::Named(name) => Ok(name.clone()),
            Identity::OfPod { namespace, name } => {
                let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
                let request = request.get(name, &kube::api::GetParams::default());
                let pod: Pod = answer(client, built(request)?).await?;
                Ok(pod.spec.node_name)
            }
        }
    }

    /// Reads all Nodes, from the API server's memory: a whole cluster that starts asks etcd for
    /// nothing. That may be a moment old, and the watch goes on from there. Where it is older than
    /// what was known, the store itself is asked, whose word counts whatever it says.
    async fn read(&mut self, client: &Client, name: &str) -> Result<(), Failure> {
        let mut list = None;
        if !self.wants_store {
            let at_least = self.at_least.as_deref().unwrap_or("0");
            let found = self.list(client, name, Some(at_least)).await?;
            self.wants_store = is_older(&found.1, &self.known);
            list = Some(found).filter(|_| !self.wants_store);
        }
        let (contents, version) = match list {
            Some(list) => list,
            None => self.list(client, name, None).await.map_err(|failure| {
                let known = &self.known;
                failure.about(&format!(
                    "what the API server remembers is older than revision {known}, which was known, and its store does not answer"
                ))
            })?,
        };
        if is_older(&version, &self.known) {
            warn!(
                "the API server's store went back in time, from revision {} to {version}: it was restored, or is another one; going by what it says now",
                self.known
            );
        }
        self.wants_store = false;
        self.is_current = true;
        self.known.clone_from(&version);
        self.shared.update(|state| {
            name.clone_into(&mut state.name);
            state.contents = Some(contents);
            state.version = version;
            state.heard = Some(Instant::now());
        });
        Ok(())
    }

    /// All Nodes, as of a revision at least, or as the store has them. Says which revision that is.
    async fn list(
        &self,
        client: &Client,
        name: &str,
        at_least: Option<&str>,
    ) -> Result<(Contents, String), Failure> {
        let mut contents = Contents::new(&self.options, name);
        let mut parameters = ListParams::default();
        if let Some(version) = at_least {
            parameters = parameters.at(version).matching(VersionMatch::NotOlderThan);
        }
        let mut request = built(Request::new(NODES).list(&parameters))?;
        let protobuf = HeaderValue::from_static("application/vnd.kubernetes.protobuf");
        request.headers_mut().insert(ACCEPT, protobuf);
        let body = ask(client, request, LIST_PATIENCE).await?;
        let list = list::read(stream(body), |object| {
            contents.put(object);
        })
        .await?;
        Ok((contents, list.resource_version))
    }

    /// After a lost connection, asks how far the store is: one that was restored from a backup would tell
    /// a watch nothing before it is as far as it was. Where it does not say, the watch goes on.
    async fn check_time(&self, client: &Client) -> Result<(), Failure> {
        let request = built(Request::new(NODES).list(&ListParams::default().limit(1)))?;
        let Ok(list) = answer::<Revision>(client, request).await else {
            return Ok(());
        };
        self.compare(&list.metadata.resource_version)
    }

    /// Fails where `version` is older than what is known.
    fn compare(&self, version: &str) -> Result<(), Failure> {
        if is_older(version, &self.known) {
            return Err(Failure::Older(format!(
                "the API server is at revision {version} and was at {}",
                self.known
            )));
        }
        Ok(())
    }

    /// Follows all Nodes from what was read on, until the server ends that, as it does from time
    /// to time, or until this node has other addresses.
    async fn watch(&mut self, client: &Client) -> Result<(), Failure> {
        let version = self.shared.state().version.clone();
        let parameters = WatchParams::default().timeout(rand::rng().random_range(WATCH));
        let request = built(Request::new(NODES).watch(&parameters, &version))?;
        let body = ask(client, request, PATIENCE).await?;
        let mut events = stream(body).lines();
        self.shared.update(|state| {
            state.unreachable = None;
            state.heard = Some(Instant::now());
        });
        let begin = Instant::now();
        let mut last = begin;
        let mut tick = interval(TICK);
        while self.is_here() {
            self.hold(client).await?;
            tokio::select! {
                event = events.try_next() => {
                    let Some(event) = event? else {
                        // One that ends at once is not to be had.
                        if begin.elapsed() < TICK {
                            return Err(Failure::Away("the watch ended at once".to_owned()));
                        }
                        // It may have been told to, and the server be another by now.
                        self.is_shaken = true;
                        return Ok(());
                    };
                    last = Instant::now();
                    self.take_in(&event)?;
                }
                Ok(()) = self.wishes.changed() => {}
                _ = tick.tick() => {
                    if last.elapsed() > SILENT {
                        self.is_shaken = true;
                        return Ok(());
                    }
                    self.probe(client).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks a server for a sign of life that has been quiet. Any answer will do.
    async fn probe(&mut self, client: &Client) -> Result<(), Failure> {
        let heard = self.shared.state().heard;
        if heard
            .max(Some(self.probed))
            .is_some_and(|last| last.elapsed() < QUIET)
        {
            return Ok(());
        }
        self.probed = Instant::now();
        let request = http::Request::get("/livez").body(Vec::new());
        let request = request.expect("a path is a request");
        match ask(client, request, PATIENCE).await {
            // Who is not known any more logs in anew.
            Err(failure @ (Failure::Away(_) | Failure::Unknown(_))) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Takes in what the watch tells.
    fn take_in(&mut self, event: &str) -> Result<(), Failure> {
        let event: WatchEvent<Object> = serde_json::from_str(event)
            .map_err(|error| Failure::Away(format!("the watch cannot be read: {error}")))?;
        let version = match &event {
            WatchEvent::Bookmark(bookmark) => &bookmark.metadata.resource_version,
            WatchEvent::Added(object)
            | WatchEvent::Modified(object)
            | WatchEvent::Deleted(object) => object.version(),
            WatchEvent::Error(_) => "",
        };
        let version = version.to_owned();
        self.compare(&version)?;
        let mut state = self.shared.state();
        state.heard = Some(Instant::now());
        let is_new = match event {
            WatchEvent::Bookmark(_) => false,
            WatchEvent::Error(status) => {
                // What it cannot go on with, it could not the next time either.
                return Err(match Failure::from(*status) {
                    Failure::Busy(reason, after) if after.is_zero() => Failure::Refused(reason),
                    failure => failure,
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
        self.known = version;
        if is_new {
            self.shared.changed.notify_one();
        }
        Ok(())
    }
}

/// A request that was put together.
fn built<T>(request: Result<T, kube::core::request::Error>) -> Result<T, Failure> {
    request.map_err(|error| Failure::Away(crate::error::chain(&error)))
}

/// How far a list goes.
#[derive(Deserialize)]
struct Revision {
    metadata: RevisionMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RevisionMetadata {
    resource_version: String,
}

/// Whether a revision is before another, as far as both are numbers.
fn is_older(version: &str, known: &str) -> bool {
    match (version.parse::<u64>(), known.parse::<u64>()) {
        (Ok(version), Ok(known)) => version < known,
        _ => false,
    }
}

/// A time between a half and one and a half of this: not all nodes at once.
fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}
