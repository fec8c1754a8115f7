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
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
use connection::{Failure, PATIENCE, is_of_login, why};
use contents::Contents;
use format::Value;
use own::{Claim, Renew, Step, Write};

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
/// Who writes our lease again so soon after we put it back does what we do: he is another agent.
const CONTEST: Duration = Duration::from_secs(1);
/// How often somebody may get in between.
const TRIES: usize = 100;

/// What is to be known to begin.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) access: Access,
    /// What every key begins with, such as `/coreos.com/network/`.
    pub(crate) prefix: String,
    /// For how long a lease holds.
    pub(crate) ttl: Duration,
    /// How long before its end it is renewed.
    pub(crate) margin: Duration,
}

/// A running store. It ends when it is dropped; its lease stays.
pub(crate) struct EtcdStore {
    shared: Arc<Shared<State>>,
    place: watch::Sender<Option<Place>>,
    task: JoinHandle<()>,
}

/// Where this node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// By which addresses it is reached now.
    pub(crate) addresses: Addresses,
    /// The lease that it had before it started, where what was kept of that is this node's for sure.
    pub(crate) memory: Option<Held>,
}

/// What the store knows.
pub(crate) struct Report {
    /// Everything, or what is wrong with the configuration. Nothing before the first contact.
    pub(crate) snapshot: Option<Result<Snapshot, String>>,
    /// This node's lease, once it held one since it started.
    pub(crate) own: Option<(Arc<Lease>, Held)>,
    /// Why this node's lease is not as it should be.
    pub(crate) trouble: Option<String>,
    /// The same, where it is held and others find this node by it.
    pub(crate) warning: Option<String>,
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
    warning: Option<String>,
    unreachable: Option<String>,
    heard: Option<Instant>,
    expires: Option<Instant>,
}

impl EtcdStore {
    /// Begins. `previous` are subnets that this node had before, the best known first. Needs a tokio
    /// runtime.
    pub(crate) fn start(options: Options, previous: Vec<Subnets>) -> Self {
        let shared = Arc::new(Shared::default());
        let (sender, place) = watch::channel(None);
        let keeper = Keeper {
            options,
            shared: Arc::clone(&shared),
            place,
            held: None,
            granted: None,
            ended: None,
            contested: None,
            put_back: None,
            was_read: false,
            is_distrusted: false,
            revision: 0,
            previous,
            due: None,
            retry: None,
        };
        Self {
            shared,
            place: sender,
            task: tokio::spawn(keeper.run()),
        }
    }

    /// Says where this node is now.
    pub(crate) fn set_place(&self, place: Place) {
        self.place.send_if_modified(|present| {
            let is_new = present.as_ref() != Some(&place);
            *present = Some(place);
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
            warning: state.warning.clone(),
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
    within(PATIENCE, reader.get(format!("{prefix}config"), Some(word))).await?;
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
    place: watch::Receiver<Option<Place>>,
    /// The lease that this node was seen to hold since it started.
    held: Option<Held>,
    previous: Vec<Subnets>,
    /// The number of etcd's lease that was granted last.
    granted: Option<i64>,
    /// The number of one that has run out.
    ended: Option<i64>,
    /// The number of another's that took the place of ours again.
    contested: Option<i64>,
    /// When we put our lease back in the place of another's last.
    put_back: Option<Instant>,
    /// Whether somebody else keeps the lease alive that is remembered.
    is_distrusted: bool,
    /// How far etcd was when it was read last.
    revision: i64,
    /// Whether this session has read it.
    was_read: bool,
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
            self.was_read = false;
            let Err(reason) = self.session(&endpoint).await else {
                continue;
            };
            if begin.elapsed() > LASTING {
                failed.clear();
            }
            if is_of_login(&reason) && std::mem::take(&mut self.was_read) {
                // It was good until now: somebody changed users or roles.
                info!("{reason}; logging in to etcd anew");
                failed.clear();
                sleep(NEXT).await;
                continue;
            }
            let reason = self.options.access.explain(&endpoint, reason);
            failed.push(format!("{endpoint}: {reason}"));
            let is_round = failed.len() >= count;
            // Who hangs at the beginning is not waited for: there may be what was kept.
            let hangs = begin.elapsed() > HANGS && self.shared.state().heard.is_none();
            if is_round || hangs {
                let what = if failed.iter().all(|reason| is_of_login(reason)) {
                    "etcd does not accept the login"
                } else {
                    "etcd cannot be reached"
                };
                let reason = format!("{what}: {}", failed.join("; "));
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
        let mut place = self.addresses();
        let files = self.options.access.age_of_files();
        let mut client = self.options.access.connect(endpoint).await?;
        let contents = read_all(&client, &self.options.prefix).await?;
        if contents.revision < self.revision {
            warn!(
                "etcd went back in time, from revision {} to {}: it was restored, or is another one; going by what it says now",
                self.revision, contents.revision
            );
        }
        self.revision = contents.revision;
        self.was_read = true;
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
            let now = self.addresses();
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
                Ok(()) = self.place.changed() => {}
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
    fn take_in(&mut self, word: &WatchResponse) -> Result<bool, String> {
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
            self.revision = contents.revision;
            word.events().iter().for_each(|event| contents.apply(event));
        }
        if !word.events().is_empty() {
            self.shared.changed.notify_one();
        }
        Ok(true)
    }

    fn addresses(&self) -> Option<Addresses> {
        self.place.borrow().as_ref().map(|place| place.addresses)
    }

    /// Sees to it that this node holds its lease. Where etcd lets it be read and not be written,
    /// the others' leases are followed all the same, and the lease that is there is kept alive.
    async fn hold(&mut self, client: &mut Client) -> Result<(), String> {
        let now = Instant::now();
        let is_due = self.due.is_some_and(|due| due <= now);
        // What is due does not wait for long.
        let waits = |(at, pause): (Instant, Duration)| {
            let early = at - pause.saturating_sub(RETRY);
            now < if is_due { early } else { at }
        };
        if self.retry.is_some_and(waits) {
            return Ok(());
        }
        let (trouble, warning) = match self.held(client).await {
            Ok(said) => {
                self.retry = None;
                said
            }
            Err(Failure::Refused(reason)) => {
                let pause = self
                    .retry
                    .map_or(RETRY, |(_, pause)| (pause * 2).min(LONGEST_RETRY));
                self.retry = Some((Instant::now() + pause, pause));
                let reason = format!("write this node's lease to etcd: {reason}");
                if self.is_found() {
                    (None, Some(reason))
                } else {
                    (Some(reason), None)
                }
            }
            Err(Failure::Away(reason)) => return Err(reason),
        };
        let mut state = self.shared.state();
        if state.trouble != trouble || state.warning != warning {
            state.trouble = trouble;
            state.warning = warning;
            self.shared.changed.notify_one();
        }
        Ok(())
    }

    /// Whether this node holds a lease that leads others to it.
    fn is_found(&self) -> bool {
        let state = self.shared.state();
        let holds = state.expires.is_none_or(|end| end > Instant::now());
        let (Some(held), Some(addresses)) = (&self.held, self.addresses()) else {
            return false;
        };
        holds && held.addresses.are_of(addresses)
    }

    /// The same. Gives the reason where nothing can be done, and what is wrong beside.
    async fn held(
        &mut self,
        client: &mut Client,
    ) -> Result<(Option<String>, Option<String>), Failure> {
        for _ in 0..TRIES {
            let Some(place) = self.place.borrow_and_update().clone() else {
                return Ok((None, None));
            };
            let memory = place.memory.filter(|_| self.held.is_none());
            if let Some(memory) = &memory {
                self.is_distrusted = self.is_renewed_elsewhere(client, memory).await?;
            }
            let memory = memory.filter(|_| !self.is_distrusted);
            let claim = Claim {
                addresses: place.addresses,
                held: self.held.clone().or(memory),
                is_confirmed: self.held.is_some(),
                granted: self.granted,
                is_due: self.due.is_some_and(|due| due <= Instant::now()),
                ended: self.ended,
                contested: self.contested,
                previous: self.previous.clone(),
            };
            let claim = self.see_others(claim);
            let said = {
                let state = self.shared.state();
                let contents = state.contents.as_ref();
                contents.map(|contents| (claim.step(contents), claim.warning(contents)))
            };
            let Some((step, warning)) = said else {
                return Ok((None, None));
            };
            match step {
                Step::Hold => return Ok((None, warning)),
                Step::Stuck(reason) => return Ok((Some(reason), None)),
                Step::Renew(renew) => self.renew(client, renew).await?,
                Step::Write(write) => self.write_or_renew(client, write).await?,
            }
        }
        Err(Failure::Refused(
            "others change leases all the time".to_owned(),
        ))
    }

    /// Sees whether somebody else wrote this node's lease. Once is no matter, since it is put back; who does
    /// it again is another node with this node's address.
    fn see_others(&mut self, mut claim: Claim) -> Claim {
        let foreign = {
            let state = self.shared.state();
            let entry = self.held.as_ref().and_then(|held| {
                let entry = state.contents.as_ref()?.get(&held.name)?;
                Some((claim.is_foreign(held, entry), entry.stamp.etcd_lease))
            });
            entry
                .filter(|(is_foreign, _)| *is_foreign)
                .map(|(_, lease)| lease)
        };
        if foreign.is_some() && self.contested != foreign {
            if self.put_back.is_some_and(|at| at.elapsed() < CONTEST) {
                self.contested = foreign;
                claim.contested = foreign;
            } else {
                self.put_back = Some(Instant::now());
                warn!(
                    "somebody else wrote this node's lease, with this node's address; putting ours back"
                );
            }
        }
        claim
    }

    /// Whether somebody has kept the remembered lease alive since it was remembered, with another
    /// address than this node's: then the memory is a copy, and the node that it is of lives.
    async fn is_renewed_elsewhere(
        &self,
        client: &mut Client,
        memory: &Held,
    ) -> Result<bool, Failure> {
        /// What clocks and whole seconds make of one moment.
        const SLACK: u64 = 3;
        let is_ours = self
            .addresses()
            .is_none_or(|addresses| memory.addresses.are_of(addresses));
        let (Some(expires), false) = (memory.expires, is_ours || memory.etcd_lease == 0) else {
            return Ok(false);
        };
        let asked = client.lease_time_to_live(memory.etcd_lease, None);
        let answer = within(PATIENCE, asked).await?;
        let left = u64::try_from(answer.ttl()).unwrap_or_default();
        let ends = seconds_now() + left;
        if left > 0 && ends > expires + SLACK {
            if !self.is_distrusted {
                warn!(
                    "the saved state says that this node holds {}, but {} keeps renewing it: the state is a copy, and does not count",
                    memory.name, memory.addresses
                );
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Keeps a lease alive, as it stands there.
    async fn renew(&mut self, client: &mut Client, renew: Renew) -> Result<(), Failure> {
        let Renew {
            name,
            addresses,
            etcd_lease,
        } = renew;
        let ttl = if etcd_lease == 0 {
            None
        } else {
            let ttl = keep_alive(client, etcd_lease).await?;
            if ttl.is_zero() {
                self.ended = Some(etcd_lease);
                return Ok(());
            }
            Some(ttl)
        };
        let Some(lease) = self.lease(&name) else {
            return Ok(());
        };
        let is_news = self.held.as_ref().is_none_or(|held| held.name != name);
        if is_news {
            info!("took over {name} of {addresses}");
        } else {
            debug!("renewed the lease of {name}");
        }
        self.confirm(name, addresses, etcd_lease, ttl, lease);
        Ok(())
    }

    /// Writes the lease. Where etcd refuses, what stands there already is kept alive.
    async fn write_or_renew(&mut self, client: &mut Client, write: Write) -> Result<(), Failure> {
        let name = write.revision.map(|_| write.name.clone());
        let refusal = match self.write(client, write).await {
            Err(refusal @ Failure::Refused(_)) => refusal,
            other => return other,
        };
        let standing = name.and_then(|name| {
            let state = self.shared.state();
            let entry = state.contents.as_ref()?.get(&name)?;
            let addresses = entry.value.as_ref().ok()?.addresses();
            let etcd_lease = entry.stamp.etcd_lease;
            let lease = Arc::clone(&entry.lease);
            (etcd_lease != 0).then_some((name, addresses, etcd_lease, lease))
        });
        if let Some((name, addresses, etcd_lease, lease)) = standing {
            let ttl = keep_alive(client, etcd_lease).await?;
            if !ttl.is_zero() {
                self.confirm(name, addresses, etcd_lease, Some(ttl), lease);
            }
        }
        Err(refusal)
    }

    /// Takes in that this node holds a lease, for so long.
    fn confirm(
        &mut self,
        name: String,
        addresses: Addresses,
        etcd_lease: i64,
        ttl: Option<Duration>,
        lease: Arc<Lease>,
    ) {
        let held = Held {
            name,
            addresses,
            etcd_lease,
            expires: ttl.map(|ttl| seconds_now() + ttl.as_secs()),
        };
        let now = Instant::now();
        // One of a short time is not to run out before its margin.
        let margin = |ttl: Duration| self.options.margin.min(ttl / 2);
        self.due = ttl.map(|ttl| now + ttl.saturating_sub(margin(ttl)));
        self.held = Some(held.clone());
        self.shared.update(|state| {
            state.own = Some((lease, held));
            state.expires = ttl.map(|ttl| now + ttl);
        });
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
        let old = self.held.clone();
        let ttl = granted.map(|granted| u64::try_from(granted.ttl()).unwrap_or_default());
        let ttl = ttl.map(Duration::from_secs);
        self.ended = None;
        let addresses = write.value.addresses();
        self.confirm(write.name, addresses, etcd_lease, ttl, lease);
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
        let path = |name: &str| format!("{}subnets/{name}", self.options.prefix);
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
        let key = own.clone();
        let mut paths = vec![own];
        // The old one goes first: flanneld takes a new key for the same subnet's, and would then take the
        // end of the old one for the end of both.
        if let Some((old, revision)) = &write.instead_of {
            let old = path(old);
            when.push(unchanged(&old, Some(*revision)));
            changes.push(TxnOp::delete(old.as_str(), None));
            paths.push(old);
        }
        // A reservation that says what it should is not touched.
        if !(write.is_reservation && self.says(&write.name, &write.value)) {
            let text = serde_json::to_string(&write.value).expect("texts and numbers");
            let put = PutOptions::new().with_lease(etcd_lease);
            changes.push(TxnOp::put(key.as_str(), text, Some(put)));
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

    /// The lease `name`, where there is one.
    fn lease(&self, name: &str) -> Option<Arc<Lease>> {
        let state = self.shared.state();
        let entry = state.contents.as_ref()?.get(name)?;
        Some(Arc::clone(&entry.lease))
    }

    /// Says what became of the lease, where it is news.
    fn tell(&self, write: &Write) {
        let (name, address) = (&write.name, write.value.addresses());
        match (write.revision, &write.instead_of, &self.held) {
            (None, None, Some(held)) if held.name == *name => {
                warn!("the lease of {name} was gone; took it again");
            }
            (None, Some((old, _)), _) => info!("took {name} for {address} instead of {old}"),
            (None, ..) => info!("took {name} for {address}"),
            (_, _, Some(held)) if held.addresses != address => {
                info!("the lease of {name} is for {address} now");
            }
            (_, _, None) => info!("took over {name} of {address}"),
            _ => debug!("renewed the lease of {name}"),
        }
    }
}

/// Keeps a lease of etcd's alive, which takes no room there. Says for how long; zero where it has run
/// out.
async fn keep_alive(client: &mut Client, etcd_lease: i64) -> Result<Duration, Failure> {
    let ttl = async {
        let (mut keeper, mut answers) = match client.lease_keep_alive(etcd_lease).await {
            // So the library says that there is none.
            Err(etcd_client::Error::LeaseKeepAliveError(_)) => return Ok(0),
            other => other?,
        };
        // Its first answer is kept to itself.
        keeper.keep_alive().await?;
        let answer = answers.message().await?;
        Ok(answer.map_or(0, |answer| answer.ttl()))
    };
    let ttl = within(PATIENCE, ttl).await?;
    Ok(Duration::from_secs(u64::try_from(ttl).unwrap_or_default()))
}

/// Seconds since 1970.
fn seconds_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
