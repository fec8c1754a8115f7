//! The `etcd` store (v3): keys and values as flannel writes them, so that flannel's nodes and
//! ours share a cluster.
//!
//! One task reads everything in one range, watches from that revision on, and holds this node's
//! own lease. Whatever goes wrong (compaction, a leader that is lost, a watch that falls silent,
//! other certificates) ends the session, and the next one begins with everything again.

mod connection;
mod contents;
mod format;
mod own;
mod release;

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, LeaseGrantResponse, PutOptions,
    ResponseHeader, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchResponse,
};
use rand::RngExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{debug, info, warn};

pub(crate) use connection::{Access, Password};
pub(crate) use format::Subnets;
pub(crate) use release::release;

use crate::lease::{Addresses, Held, Lease, Snapshot};
use crate::store::shared::Shared;
use connection::{Failure, PATIENCE, why};
use contents::Contents;
use format::Value;
use own::{Claim, Step, Write};

/// A snapshot may be large: 50,000 leases are 12 MB.
const LARGEST: usize = 256 << 20;
/// A snapshot may take its time.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(20);
/// How often we look at what makes no notice: due dates, files, silence.
const TICK: Duration = Duration::from_secs(1);
/// A watch without news is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(2);
/// One that gives none is not believed any more.
const SILENT: Duration = Duration::from_secs(5);
/// A session that lasted longer than this was a good one.
const LASTING: Duration = Duration::from_secs(5);
/// A server that takes longer than this to say no hangs.
const HANGS: Duration = Duration::from_secs(1);
/// How soon the next server is tried.
const NEXT: Duration = Duration::from_millis(20);
/// How soon we try again what etcd refused, at first and at last.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How often somebody may get in between.
const TRIES: usize = 100;

/// What is to be known to begin.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) access: Access,
    /// Below which key everything lies, without a slash behind it.
    pub(crate) prefix: String,
    /// For how long a lease holds.
    pub(crate) ttl: Duration,
    /// How long before its end it is renewed.
    pub(crate) margin: Duration,
}

/// A running store. It ends when it is dropped; its lease stays.
pub(crate) struct EtcdStore {
    shared: Arc<Shared<State>>,
    addresses: watch::Sender<Option<Addresses>>,
    task: JoinHandle<()>,
}

/// What the store knows.
pub(crate) struct Report {
    /// Everything, or what is wrong with the configuration. Nothing before the first contact.
    pub(crate) snapshot: Option<Result<Snapshot, String>>,
    /// This node's lease, once it held one since it started.
    pub(crate) own: Option<(Arc<Lease>, Held)>,
    /// Why this node's lease is not as it should be.
    pub(crate) trouble: Option<String>,
    /// Why nothing can be heard.
    pub(crate) unreachable: Option<String>,
    /// How far the store was read.
    pub(crate) revision: i64,
    /// When something was last heard.
    pub(crate) heard: Option<Instant>,
    /// When the lease ends; nothing for a reservation.
    pub(crate) expires: Option<Instant>,
}

#[derive(Default)]
struct State {
    contents: Option<Contents>,
    own: Option<(Arc<Lease>, Held)>,
    trouble: Option<String>,
    unreachable: Option<String>,
    heard: Option<Instant>,
    expires: Option<Instant>,
}

impl EtcdStore {
    /// Begins. `held` is the lease that this node had, and `previous` are subnets that it had
    /// before, the best known first. Needs a tokio runtime.
    pub(crate) fn start(options: Options, held: Option<Held>, previous: Vec<Subnets>) -> Self {
        let shared = Arc::new(Shared::default());
        let (sender, addresses) = watch::channel(None);
        let keeper = Keeper {
            options,
            shared: Arc::clone(&shared),
            addresses,
            held,
            is_confirmed: false,
            granted: None,
            previous,
            due: None,
            retry: None,
        };
        Self {
            shared,
            addresses: sender,
            task: tokio::spawn(keeper.run()),
        }
    }

    /// Says by which addresses this node is reached now.
    pub(crate) fn set_addresses(&self, addresses: Addresses) {
        self.addresses.send_if_modified(|present| {
            let is_new = *present != Some(addresses);
            *present = Some(addresses);
            is_new
        });
    }

    /// Waits until something changed.
    pub(crate) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// What is known now.
    pub(crate) fn report(&self) -> Report {
        let state = self.shared.state();
        let contents = state.contents.as_ref();
        Report {
            snapshot: contents.map(Contents::snapshot),
            own: state.own.clone(),
            trouble: state.trouble.clone(),
            unreachable: state.unreachable.clone(),
            revision: contents.map_or(0, |contents| contents.revision),
            heard: state.heard,
            expires: state.expires,
        }
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads everything below the prefix, in one range.
async fn read_all(client: &Client, prefix: &str) -> Result<Contents, Failure> {
    let mut contents = Contents::new(prefix);
    // A server that hangs is not worth the patience that much takes.
    let mut reader = client.kv_client().max_decoding_message_size(LARGEST);
    let word = GetOptions::new().with_count_only();
    within(PATIENCE, reader.get(format!("{prefix}/config"), Some(word))).await?;
    let all = reader.get(contents.folder(), Some(GetOptions::new().with_prefix()));
    let all = within(SNAPSHOT_PATIENCE, all).await?;
    contents.revision = all.header().map_or(0, ResponseHeader::revision);
    contents.seen = contents.revision;
    for pair in all.kvs() {
        contents.put(pair);
    }
    Ok(contents)
}

/// What is at some keys of etcd.
type Found = Vec<(String, Option<KeyValue>)>;

/// Makes changes if all comparisons hold. Says whether it did, and what is at `paths` afterwards,
/// however it went.
async fn commit(
    client: &mut Client,
    when: Vec<Compare>,
    mut changes: Vec<TxnOp>,
    paths: Vec<String>,
) -> Result<(bool, Found), Failure> {
    let look: Vec<_> = paths
        .iter()
        .map(|path| TxnOp::get(path.as_str(), None))
        .collect();
    changes.extend(look.clone());
    let txn = Txn::new().when(when).and_then(changes).or_else(look);
    let answer = within(PATIENCE, client.txn(txn)).await?;
    let pairs = answer
        .op_responses()
        .into_iter()
        .filter_map(|answer| match answer {
            TxnOpResponse::Get(found) => Some(found.kvs().first().cloned()),
            _ => None,
        });
    Ok((answer.succeeded(), paths.into_iter().zip(pairs).collect()))
}

async fn within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Failure> {
    match timeout(patience, answer).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::Away(format!(
            "no answer within {} s",
            patience.as_secs()
        ))),
    }
}

/// Reads, watches and holds, for ever.
struct Keeper {
    options: Options,
    shared: Arc<Shared<State>>,
    addresses: watch::Receiver<Option<Addresses>>,
    held: Option<Held>,
    is_confirmed: bool,
    previous: Vec<Subnets>,
    /// The number of etcd's lease that was granted last.
    granted: Option<i64>,
    /// When the lease is to be renewed.
    due: Option<Instant>,
    /// When to try again what etcd refused, and how long that is from the time before.
    retry: Option<(Instant, Duration)>,
}

impl Keeper {
    async fn run(mut self) {
        let count = self.options.access.endpoints.len();
        let mut failed = Vec::new();
        for i in 0.. {
            let endpoint = self.options.access.endpoints[i % count].clone();
            let begin = Instant::now();
            let Err(reason) = self.session(&endpoint).await else {
                continue;
            };
            if begin.elapsed() > LASTING {
                failed.clear();
            }
            failed.push(format!("{endpoint}: {reason}"));
            let is_round = failed.len() >= count;
            // Who hangs at the beginning is not waited for: there may be what was kept.
            let hangs = begin.elapsed() > HANGS && self.shared.state().heard.is_none();
            if is_round || hangs {
                let reason = format!("etcd cannot be reached: {}", failed.join("; "));
                self.shared.update(|state| state.unreachable = Some(reason));
            }
            if !is_round {
                // Another one may be well.
                sleep(NEXT).await;
                continue;
            }
            failed.clear();
            // Back in step within a second, and not all nodes at once.
            let pause = rand::rng().random_range(200..600);
            sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Everything from one range read to the end of its watch. It ends well when a new session
    /// is to begin at once.
    async fn session(&mut self, endpoint: &str) -> Result<(), String> {
        let mut place = *self.addresses.borrow();
        let files = self.options.access.age_of_files();
        let mut client = self.options.access.connect(endpoint).await?;
        let contents = read_all(&client, &self.options.prefix).await?;
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(contents.revision + 1);
        let mut watcher = client.watch_client().max_decoding_message_size(LARGEST);
        let watch = watcher.watch(contents.folder(), Some(options));
        let mut watch = within(PATIENCE, watch).await?;
        self.shared.update(|state| {
            state.contents = Some(contents);
            state.unreachable = None;
            state.heard = Some(Instant::now());
        });
        let mut tick = interval(TICK);
        loop {
            // The connection may be from an address that is gone.
            let now = *self.addresses.borrow();
            if place.is_some() && now != place {
                return Ok(());
            }
            place = now;
            self.hold(&mut client).await?;
            tokio::select! {
                word = watch.message() => {
                    let word = word.map_err(|error| why(&error))?;
                    if !self.take_in(&word.ok_or("the watch ended")?)? {
                        return Ok(());
                    }
                }
                Ok(()) = self.addresses.changed() => {}
                _ = tick.tick() => {
                    let silence = self.shared.state().heard.map_or(SILENT, |heard| heard.elapsed());
                    if silence > SILENT {
                        return Err(format!("nothing was heard for {} s", SILENT.as_secs()));
                    }
                    if silence > QUIET {
                        within(PATIENCE, watch.request_progress()).await?;
                    }
                    if self.options.access.age_of_files() != files {
                        info!("the certificates changed; connecting anew");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Takes in what the watch tells. Says whether it goes on.
    fn take_in(&self, word: &WatchResponse) -> Result<bool, String> {
        if word.compact_revision() > 0 {
            warn!(
                "etcd has forgotten what was before revision {}; reading everything anew",
                word.compact_revision()
            );
            return Ok(false);
        }
        if word.canceled() {
            return Err(format!("the watch was cancelled: {}", word.cancel_reason()));
        }
        let mut state = self.shared.state();
        state.heard = Some(Instant::now());
        if let Some(contents) = &mut state.contents {
            let revision = word.header().map_or(0, ResponseHeader::revision);
            contents.revision = contents.revision.max(revision);
            word.events().iter().for_each(|event| contents.apply(event));
        }
        if !word.events().is_empty() {
            self.shared.changed.notify_one();
        }
        Ok(true)
    }

    /// Sees to it that this node holds its lease. Where etcd lets it be read and not be written,
    /// the others' leases are followed all the same.
    async fn hold(&mut self, client: &mut Client) -> Result<(), String> {
        if self.retry.is_some_and(|(at, _)| Instant::now() < at) {
            return Ok(());
        }
        let trouble = match self.held(client).await {
            Ok(trouble) => {
                self.retry = None;
                trouble
            }
            Err(Failure::Refused(reason)) => {
                let pause = self
                    .retry
                    .map_or(RETRY, |(_, pause)| (pause * 2).min(LONGEST_RETRY));
                self.retry = Some((Instant::now() + pause, pause));
                Some(format!("write this node's lease to etcd: {reason}"))
            }
            Err(Failure::Away(reason)) => return Err(reason),
        };
        if self.shared.state().trouble != trouble {
            self.shared.update(|state| state.trouble = trouble);
        }
        Ok(())
    }

    /// The same. Gives the reason where nothing can be done.
    async fn held(&mut self, client: &mut Client) -> Result<Option<String>, Failure> {
        for _ in 0..TRIES {
            let Some(addresses) = *self.addresses.borrow_and_update() else {
                return Ok(None);
            };
            let claim = Claim {
                addresses,
                held: self.held.clone(),
                is_confirmed: self.is_confirmed,
                granted: self.granted,
                is_due: self.due.is_some_and(|due| due <= Instant::now()),
                previous: self.previous.clone(),
            };
            let step = self
                .shared
                .state()
                .contents
                .as_ref()
                .map(|contents| claim.step(contents));
            match step {
                None | Some(Step::Hold) => return Ok(None),
                Some(Step::Stuck(reason)) => return Ok(Some(reason)),
                Some(Step::Write(write)) => self.write(client, write).await?,
            }
        }
        Err(Failure::Refused(
            "others change leases all the time".to_owned(),
        ))
    }

    /// Writes the lease. Where somebody was faster, what he did is taken in.
    async fn write(&mut self, client: &mut Client, write: Write) -> Result<(), Failure> {
        let granted = if write.is_reservation {
            None
        } else {
            let ttl = i64::try_from(self.options.ttl.as_secs()).unwrap_or(i64::MAX);
            Some(within(PATIENCE, client.lease_grant(ttl, None)).await?)
        };
        let etcd_lease = granted.as_ref().map_or(0, LeaseGrantResponse::id);
        self.granted = granted.as_ref().map(LeaseGrantResponse::id);
        let done = self.transact(client, &write, etcd_lease).await;
        let is_done = matches!(done, Ok((true, _)));
        // Where nobody said what became of it, it is left to run out.
        if !is_done && !matches!(done, Err(Failure::Away(_))) && etcd_lease != 0 {
            within(PATIENCE, client.lease_revoke(etcd_lease)).await?;
        }
        let lease = self.learn(done?.1, &write.name);
        let (true, Some(lease)) = (is_done, lease) else {
            // Somebody was faster, with this subnet or with any other.
            let pause = rand::rng().random_range(0..30);
            sleep(Duration::from_millis(pause)).await;
            let contents = read_all(client, &self.options.prefix).await?;
            self.shared.update(|state| state.contents = Some(contents));
            return Ok(());
        };
        self.tell(&write);
        let held = Held {
            name: write.name,
            addresses: write.value.addresses(),
            etcd_lease,
        };
        let old = self.held.replace(held.clone());
        self.is_confirmed = true;
        let now = Instant::now();
        let ttl = granted.map(|granted| u64::try_from(granted.ttl()).unwrap_or_default());
        let ttl = ttl.map(Duration::from_secs);
        self.due = ttl.map(|ttl| now + ttl.saturating_sub(self.options.margin));
        self.shared.update(|state| {
            state.own = Some((lease, held));
            state.trouble = None;
            state.expires = ttl.map(|ttl| now + ttl);
        });
        // Only what we had granted ourselves: others may have hung more on theirs.
        if let Some(old) = old.filter(|old| old.etcd_lease != 0 && old.etcd_lease != etcd_lease) {
            drop(within(PATIENCE, client.lease_revoke(old.etcd_lease)).await);
        }
        Ok(())
    }

    /// The transaction that writes it.
    async fn transact(
        &self,
        client: &mut Client,
        write: &Write,
        etcd_lease: i64,
    ) -> Result<(bool, Found), Failure> {
        let path = |name: &str| format!("{}/subnets/{name}", self.options.prefix);
        let unchanged = |path: &str, revision| match revision {
            Some(revision) => Compare::mod_revision(path, CompareOp::Equal, revision),
            None => Compare::version(path, CompareOp::Equal, 0),
        };
        let own = path(&write.name);
        let mut when = vec![unchanged(&own, write.revision)];
        if write.revision.is_none() {
            // A subnet has more than one name, in two families and in several sizes: it is free
            // where no lease at all has changed since we looked.
            let seen = self
                .shared
                .state()
                .contents
                .as_ref()
                .map_or(0, |contents| contents.seen);
            let all = Compare::mod_revision(path(""), CompareOp::Less, seen + 1);
            when.push(all.with_prefix());
        }
        let mut changes = Vec::new();
        // A reservation that says what it should is not touched.
        if !(write.is_reservation && self.says(&write.name, &write.value)) {
            let text = serde_json::to_string(&write.value).expect("texts and numbers");
            let put = PutOptions::new().with_lease(etcd_lease);
            changes.push(TxnOp::put(own.as_str(), text, Some(put)));
        }
        let mut paths = vec![own];
        if let Some((old, revision)) = &write.instead_of {
            let old = path(old);
            when.push(unchanged(&old, Some(*revision)));
            changes.push(TxnOp::delete(old.as_str(), None));
            paths.push(old);
        }
        commit(client, when, changes, paths).await
    }

    /// Whether the lease `name` has this value.
    fn says(&self, name: &str, value: &Value) -> bool {
        let state = self.shared.state();
        let entry = state
            .contents
            .as_ref()
            .and_then(|contents| contents.get(name));
        entry.is_some_and(|entry| entry.value.as_ref() == Ok(value))
    }

    /// Takes in what was found. Gives the lease `name`, where there is one.
    fn learn(&self, found: Found, name: &str) -> Option<Arc<Lease>> {
        let mut state = self.shared.state();
        let contents = state.contents.as_mut()?;
        for (path, pair) in found {
            match pair {
                Some(pair) => contents.put(&pair),
                None => contents.delete(path.as_bytes()),
            }
        }
        let lease = contents.get(name).map(|entry| Arc::clone(&entry.lease));
        drop(state);
        lease
    }

    /// Says what became of the lease, where it is news.
    fn tell(&self, write: &Write) {
        let (name, address) = (&write.name, write.value.addresses());
        match (write.revision, &write.instead_of, &self.held) {
            (None, _, Some(held)) if self.is_confirmed && held.name == *name => {
                warn!("the lease of {name} was gone; took it again");
            }
            (None, Some((old, _)), _) => info!("took {name} for {address} instead of {old}"),
            (None, ..) => info!("took {name} for {address}"),
            (_, _, Some(held)) if held.addresses != address => {
                info!("the lease of {name} is for {address} now");
            }
            _ if !self.is_confirmed => info!("took over {name} of {address}"),
            _ => debug!("renewed the lease of {name}"),
        }
    }
}
