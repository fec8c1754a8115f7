//! The background task of the `kube` store: lists and watches all Nodes, for ever.

mod node_watch;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::ACCEPT;
use kube::Client;
use kube::api::{ListParams, VersionMatch};
use kube::core::Request;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::connection::{NODES, REFUSED_PAUSES, answer, ask, stream};
use super::contents::Contents;
use super::error::Error;
use super::list;
use super::publish::Publisher;
use super::{DesiredNode, Identity, KubeStoreConfig, State};
use crate::network::Addresses;
use crate::store::session::{Backoff, GOOD_SESSION};
use crate::store::task_state::TaskState;

/// How long the API server may take to start its answer to a list of all Nodes.
const LIST_TIMEOUT: Duration = Duration::from_secs(15);
/// The shortest and the longest pause after a request without an answer.
const UNAVAILABLE_PAUSES: [Duration; 2] = [Duration::from_millis(125), Duration::from_secs(4)];

/// Where the task goes on.
enum Position {
    /// All Nodes have to be listed: as of this revision or later, or from etcd itself.
    List {
        not_older_than: Option<String>,
        from_etcd: bool,
    },
    /// The watch can go on from [`State::version`].
    Watch,
}

/// Lists, watches and publishes.
pub(super) struct Session {
    config: KubeStoreConfig,
    shared: Arc<TaskState<State>>,
    desired: watch::Receiver<DesiredNode>,
    position: Position,
    /// The revision that the store had, according to this run or an earlier one.
    known_version: String,
    /// True if the server may be another one, or may have been restored: its revision has to be
    /// compared before the next watch.
    must_check_revision: bool,
    /// This node's addresses when the connection began.
    addresses: Option<Addresses>,
    backoff: Backoff,
    publisher: Publisher,
}

impl Session {
    /// A task that has not listed anything yet. An earlier run had read the store up to `version`.
    pub(super) fn new(
        config: KubeStoreConfig,
        shared: Arc<TaskState<State>>,
        desired: watch::Receiver<DesiredNode>,
        version: Option<String>,
    ) -> Self {
        let publisher = Publisher::new(&config, Arc::clone(&shared));
        Self {
            config,
            shared,
            desired,
            position: Position::List {
                not_older_than: None,
                from_etcd: false,
            },
            known_version: version.unwrap_or_default(),
            must_check_revision: false,
            addresses: None,
            backoff: Backoff::new(UNAVAILABLE_PAUSES),
            publisher,
        }
    }

    /// Connects again and again.
    pub(super) async fn run(mut self) {
        loop {
            let started = Instant::now();
            let Err(error) = self.connection().await else {
                continue;
            };
            if started.elapsed() > GOOD_SESSION {
                self.backoff.reset();
            }
            let pause = self.pause_after(error);
            sleep(pause).await;
        }
    }

    /// Decides how to go on after a failure, and how soon.
    fn pause_after(&mut self, error: Error) -> Duration {
        match error {
            Error::Expired => {
                warn!("the API server has no history from the last revision on; listing all Nodes");
                self.list_again();
                return first_pause();
            }
            Error::Stale(reason) => {
                warn!("{reason}; listing all Nodes");
                self.position = Position::List {
                    not_older_than: None,
                    from_etcd: true,
                };
                return first_pause();
            }
            _ => self.must_check_revision = true,
        }
        let (shown, range, requested) = match error {
            Error::Throttled(_, after) => (Error::Refuses(error.into()), REFUSED_PAUSES, after),
            Error::Refused(_) => {
                // If the server cannot go on from our revision, a new list helps.
                self.list_again();
                (Error::Refuses(error.into()), REFUSED_PAUSES, Duration::ZERO)
            }
            Error::Unauthorized(_) => {
                let shown = Error::RefusesLogin(error.into());
                (shown, UNAVAILABLE_PAUSES, Duration::ZERO)
            }
            other => {
                let shown = Error::Unreachable(other.into());
                (shown, UNAVAILABLE_PAUSES, Duration::ZERO)
            }
        };
        self.shared.update(|state| state.unreachable = Some(shown));
        requested + self.backoff.next_within(range)
    }

    /// Has all Nodes listed again. If even a list was refused, the server may never reach our
    /// revision, and is asked for what it has.
    fn list_again(&mut self) {
        let version = self.shared.lock().version.clone();
        let was_watching = matches!(self.position, Position::Watch);
        let must_ask_etcd = matches!(
            self.position,
            Position::List {
                from_etcd: true,
                ..
            }
        );
        self.position = Position::List {
            not_older_than: Some(version).filter(|version| was_watching && !version.is_empty()),
            from_etcd: must_ask_etcd,
        };
    }

    /// One connection, to its end. Returns without an error if the next one should start at once.
    async fn connection(&mut self) -> Result<(), Error> {
        let client = self.config.access.connect().await?;
        let name = self.node_name(&client).await?;
        if let Position::List { .. } = self.position {
            self.list(&client, &name).await?;
            self.must_check_revision = false;
        }
        self.addresses = None;
        while self.has_same_addresses() {
            if std::mem::take(&mut self.must_check_revision) {
                self.check_revision(&client).await?;
            }
            self.watch(&client).await?;
        }
        Ok(())
    }

    /// True if this node has the addresses that it had when the connection began. Otherwise, the
    /// connection may use an address that is gone.
    fn has_same_addresses(&mut self) -> bool {
        let now = self.desired.borrow().addresses;
        self.addresses = self.addresses.or(now);
        now == self.addresses
    }

    async fn node_name(&self, client: &Client) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Pod {
            spec: PodSpec,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct PodSpec {
            node_name: String,
        }
        match &self.config.node {
            Identity::Named(name) => Ok(name.clone()),
            Identity::OfPod { namespace, name } => {
                let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
                let request = request.get(name, &kube::api::GetParams::default());
                let pod: Pod = answer(client, request?).await?;
                Ok(pod.spec.node_name)
            }
        }
    }

    /// Lists all Nodes, from the API server's cache: a whole cluster that starts asks etcd for
    /// nothing. The cache may be a moment old; the watch goes on from there. If it is older than
    /// what was known, etcd is asked, and its answer counts even if that is older, too.
    async fn list(&mut self, client: &Client, name: &str) -> Result<(), Error> {
        let Position::List {
            not_older_than,
            from_etcd,
        } = &self.position
        else {
            return Ok(());
        };
        let mut cached = None;
        if !from_etcd {
            let version = not_older_than.as_deref().unwrap_or("0");
            let list = self.request_list(client, name, Some(version)).await?;
            cached = Some(list).filter(|(_, version)| !is_older(version, &self.known_version));
        }
        let (contents, version) = match cached {
            Some(list) => list,
            None => self.list_from_etcd(client, name).await?,
        };
        if is_older(&version, &self.known_version) {
            warn!(
                "the API server's store went back in time, from revision {} to {version}: it was restored from a backup, or is another one; using what it says now",
                self.known_version
            );
        }
        self.position = Position::Watch;
        self.known_version.clone_from(&version);
        self.shared.update(|state| {
            name.clone_into(&mut state.name);
            state.contents = Some(contents);
            state.version = version;
            state.last_heard = Some(Instant::now());
        });
        Ok(())
    }

    async fn list_from_etcd(
        &mut self,
        client: &Client,
        name: &str,
    ) -> Result<(Contents, String), Error> {
        // The cache stays too old until etcd has answered.
        self.position = Position::List {
            not_older_than: None,
            from_etcd: true,
        };
        let list = self.request_list(client, name, None).await;
        list.map_err(|error| {
            error.during(&format!(
                "the API server's cache is older than revision {}, which was known, and etcd does not answer",
                self.known_version
            ))
        })
    }

    /// All Nodes as of a revision or later; with `None`, as etcd has them. Returns the revision, too.
    async fn request_list(
        &self,
        client: &Client,
        name: &str,
        not_older_than: Option<&str>,
    ) -> Result<(Contents, String), Error> {
        let mut contents = Contents::new(&self.config, name);
        let mut parameters = ListParams::default();
        if let Some(version) = not_older_than {
            parameters = parameters.at(version).matching(VersionMatch::NotOlderThan);
        }
        let mut request = Request::new(NODES).list(&parameters)?;
        let protobuf = HeaderValue::from_static("application/vnd.kubernetes.protobuf");
        request.headers_mut().insert(ACCEPT, protobuf);
        let body = ask(client, request, LIST_TIMEOUT).await?;
        let list = list::read(stream(body), |object| {
            contents.put(object);
        })
        .await?;
        Ok((contents, list.resource_version))
    }

    /// Asks for the store's revision. A store that was restored from a backup would send nothing to
    /// a watch until it had reached our revision again. If the server does not answer, the watch
    /// goes on.
    async fn check_revision(&self, client: &Client) -> Result<(), Error> {
        let request = Request::new(NODES).list(&ListParams::default().limit(1))?;
        let Ok(list) = answer::<Revision>(client, request).await else {
            return Ok(());
        };
        self.check_not_older(&list.metadata.resource_version)
    }

    /// Fails if `version` is older than the known one.
    fn check_not_older(&self, version: &str) -> Result<(), Error> {
        let known = &self.known_version;
        if is_older(version, known) {
            return Err(Error::Stale(format!(
                "the API server is at revision {version} and was at {known}"
            )));
        }
        Ok(())
    }
}

/// The shortest pause, random, so that not all nodes list at the same moment.
fn first_pause() -> Duration {
    Backoff::new(UNAVAILABLE_PAUSES).next()
}

/// The part of a list that has its revision.
#[derive(Deserialize)]
struct Revision {
    metadata: RevisionMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RevisionMetadata {
    resource_version: String,
}

/// True if a revision is older than another. Revisions that are not numbers cannot be compared.
fn is_older(version: &str, known: &str) -> bool {
    match (version.parse::<u64>(), known.parse::<u64>()) {
        (Ok(version), Ok(known)) => version < known,
        _ => false,
    }
}
