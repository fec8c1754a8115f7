//! The agent's one loop: whatever happened, compare and put right.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use kernel::{Monitor, Notice, RouteChange, Rtnl, sysctl};
use subnet_env::SubnetEnv;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::cache::{Cache, Kept};
use crate::cleanup::is_of_flannel;
use crate::firewall::{self, Firewall};
use crate::lease::{Lease, Snapshot};
use crate::peers::{Own, Peer, Refusal, judge};
use crate::plan::{Change, plan};
use crate::state::{Shared, State, StoreState};
use crate::store::etcd::{EtcdStore, Held, Options, Subnets};
use crate::store::file::FileStore;
use crate::uplink::{Interfaces, Selection, Uplink};

/// Everything is compared this often even when nobody said that something changed.
const SLOW: Duration = Duration::from_secs(10);
/// What could not be done is tried again this soon.
const RETRY: Duration = Duration::from_secs(1);
/// One edit or one flap tells of itself many times within this.
const SETTLE: Duration = Duration::from_millis(3);
/// After comparing, we rest this many times as long as it took: however much changes, comparing
/// takes no more than four hundredths of one processor, and what came meanwhile is compared
/// together.
const REST: u32 = 24;
/// More changes than this at once are told as a number.
const TOLD: usize = 20;

/// What is to be known to begin.
pub(crate) struct Settings {
    pub(crate) store: StoreSettings,
    /// This node's name in the cluster file.
    pub(crate) node_name: Option<String>,
    pub(crate) selection: Selection,
    /// Whether a next hop counts as on the link whatever addresses say.
    pub(crate) is_onlink: bool,
    pub(crate) subnet_file: PathBuf,
    pub(crate) cache_file: PathBuf,
    pub(crate) firewall: firewall::Settings,
}

/// Which store, and where it is.
pub(crate) enum StoreSettings {
    File(PathBuf),
    Etcd(Box<Options>),
}

enum Store {
    File(Box<FileStore>),
    Etcd(EtcdStore),
}

/// The agent of this node.
pub(crate) struct Agent {
    kernel: Rtnl,
    monitor: Monitor,
    store: Store,
    settings: Settings,
    firewall: Firewall,
    cache: Cache,
    /// What the cache had when we began, until the store says something itself.
    kept: Option<Kept>,
    /// The last good state.
    adopted: Option<Adopted>,
    /// This node's interface to the others, as of the last notice of a change there.
    uplink: Option<Result<Uplink, String>>,
    /// What is wrong, each said once.
    troubles: BTreeSet<String>,
    /// What is wrong with the store that does not keep this node from working, said once.
    warning: Option<String>,
    /// Which subnets are not routed, each said once.
    refusals: BTreeSet<String>,
    shared: Shared,
}

/// A snapshot in which this node was found, and this node.
struct Adopted {
    snapshot: Snapshot,
    own: Lease,
    uplink: Uplink,
    held: Option<Held>,
}

/// Why the agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Store(#[from] crate::store::file::Error),
    #[error("wait for signals")]
    Signal(#[source] std::io::Error),
}

/// What made us compare.
#[derive(Clone, Copy)]
struct Wake {
    notice: Notice,
    is_slow: bool,
}

impl Agent {
    /// Connects to the kernel and to the store. Needs a tokio runtime.
    pub(crate) fn new(settings: Settings, shared: Shared) -> Result<Self, Error> {
        let kernel = Rtnl::connect()?;
        let monitor = Monitor::open(&kernel)?;
        let cache = Cache::new(settings.cache_file.clone(), settings.store.name());
        let kept = cache.read().unwrap_or_else(|reason| {
            warn!("{reason}; going on without it");
            None
        });
        let store = match &settings.store {
            StoreSettings::File(path) => Store::File(Box::new(FileStore::new(path.clone())?)),
            StoreSettings::Etcd(options) => {
                let held = kept.as_ref().and_then(|kept| kept.held.clone());
                let file = SubnetEnv::read(&settings.subnet_file).ok();
                let before = file.iter().map(Subnets::of_file);
                let cached = held.iter().filter_map(|held| held.name.parse().ok());
                let previous = before.chain(cached).collect();
                Store::Etcd(EtcdStore::start((**options).clone(), held, previous))
            }
        };
        Ok(Self {
            firewall: Firewall::new(settings.firewall.clone()),
            kernel,
            monitor,
            store,
            settings,
            cache,
            kept,
            adopted: None,
            uplink: None,
            troubles: BTreeSet::new(),
            warning: None,
            refusals: BTreeSet::new(),
            shared,
        })
    }

    /// Keeps the node's routes, firewall and subnet file right until SIGTERM or SIGINT. What was
    /// set up stays: pods go on talking while there is no agent.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let listen = |kind: SignalKind| signal(kind).map_err(Error::Signal);
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut hangup = listen(SignalKind::hangup())?;
        info!("started");
        // Set anew only when it is over: events must not put it off for ever.
        let mut slow = Instant::now() + SLOW;
        let mut wake = Wake::everything();
        loop {
            let begin = Instant::now();
            self.reconcile(wake);
            if !self.troubles.is_empty() {
                slow = slow.min(begin + RETRY);
            }
            if let Some(poll) = self.firewall.poll() {
                slow = slow.min(begin + poll);
            }
            let rested = Instant::now() + SETTLE.max(begin.elapsed() * REST);
            wake = tokio::select! {
                () = self.store.changed() => Wake::store(),
                notice = self.monitor.changed() => Wake { notice: notice?, is_slow: false },
                () = sleep_until(slow) => Wake::everything(),
                _ = hangup.recv() => Wake::everything(),
                () = either(&mut terminate, &mut interrupt) => break,
            };
            let settled = rested.max(Instant::now() + SETTLE);
            tokio::select! {
                more = self.settle(settled) => wake.notice |= more?,
                () = either(&mut terminate, &mut interrupt) => break,
            }
            if wake.is_slow {
                slow = Instant::now() + SLOW;
            }
        }
        crate::serve::tell_systemd_the_end();
        self.keep();
        info!("stopped; routes, firewall and subnet file stay");
        Ok(())
    }

    /// Takes in the notices that come with the one that woke us.
    async fn settle(&mut self, until: Instant) -> Result<Notice, Error> {
        let mut notice = Notice::default();
        loop {
            tokio::select! {
                () = sleep_until(until) => return Ok(notice),
                () = self.store.changed() => {}
                more = self.monitor.changed() => notice |= more?,
            }
        }
    }

    /// Compares everything with what it should be, and puts it right.
    fn reconcile(&mut self, wake: Wake) {
        let begin = Instant::now();
        let mut troubles = BTreeSet::new();
        let mut store = StoreState::default();
        let mut peers = Vec::new();
        match self.kernel.routes() {
            Err(error) => {
                troubles.insert(chain(&error));
            }
            Ok(routes) => {
                if wake.notice.network || self.uplink.is_none() {
                    // What the interface is depends on what a cluster file says.
                    self.uplink = None;
                }
                store = self.adopt(&routes, wake, &mut troubles);
                if let Some(adopted) = &self.adopted {
                    let found = Self::judge(adopted, self.settings.is_onlink);
                    peers = self.route(found, &routes, wake, &mut troubles);
                }
            }
        }
        if let Some(adopted) = &self.adopted {
            let rules = firewall::Rules::new(&adopted.snapshot.network, &adopted.own);
            let file = write_subnet_file(&self.settings, adopted);
            troubles.extend(forward(adopted).and(file).err());
            if wake.notice.firewall || wake.is_slow || !self.firewall.is_for(&rules) {
                self.firewall.ensure(&rules, wake.is_slow);
            }
            troubles.extend(self.firewall.troubles().iter().cloned());
        }
        if self.firewall.found_flannel() {
            troubles.extend(self.take_over_routes(&peers).err());
        }
        if wake.is_slow {
            self.keep();
        }
        self.tell(troubles, store.warning.as_ref(), &peers);
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.took(begin.elapsed(), SystemTime::now());
        state.is_stopped_by = self.troubles.iter().cloned().collect();
        state.firewall_mended = self.firewall.mended();
        state.firewall = self.firewall.backend();
        state.peers = peers;
        state.store = store;
        if let Some(adopted) = &self.adopted {
            state.set_node(&adopted.snapshot.network, &adopted.own, &adopted.uplink);
        }
        let is_ready = state.is_ready();
        drop(state);
        crate::serve::tell_systemd(is_ready, &self.troubles);
    }

    /// Takes what the store says now for the good state, if it is good and has this node.
    fn adopt(
        &mut self,
        routes: &[kernel::Route],
        wake: Wake,
        troubles: &mut BTreeSet<String>,
    ) -> StoreState {
        let mut state = StoreState {
            name: self.settings.store.name(),
            ..StoreState::default()
        };
        let found = match &mut self.store {
            Store::File(store) => {
                if wake.is_slow {
                    store.watch();
                }
                let settings = &self.settings;
                let found = store
                    .read()
                    .map_err(|error| chain(&error))
                    .and_then(|snapshot| {
                        let interfaces =
                            Interfaces::list(&self.kernel, routes).map_err(|e| chain(&e))?;
                        let name = settings.node_name.as_deref();
                        let found = settings.selection.find(name, &interfaces, &snapshot);
                        let (own, uplink) = found.map_err(|error| chain(&error))?;
                        Ok(Adopted {
                            snapshot,
                            own,
                            uplink,
                            held: None,
                        })
                    });
                state.is_reached = !matches!(&found, Err(reason) if reason.contains("read "));
                Some(found)
            }
            Store::Etcd(store) => {
                let uplink = self.uplink.get_or_insert_with(|| {
                    let interfaces =
                        Interfaces::list(&self.kernel, routes).map_err(|e| chain(&e))?;
                    self.settings
                        .selection
                        .uplink(&interfaces)
                        .map_err(|error| chain(&error))
                });
                let report = store.report();
                let network = match &report.snapshot {
                    Some(Ok(snapshot)) => Some(snapshot.network),
                    _ => None,
                };
                if let Ok(uplink) = &uplink {
                    store.set_addresses(uplink.public(network.as_ref()));
                }
                state.is_reached = report.unreachable.is_none() && report.snapshot.is_some();
                state.revision = report.revision;
                state.heard = report.heard;
                state.expires = report.expires;
                troubles.extend(report.trouble);
                if report.expires.is_some_and(|end| end <= Instant::now()) {
                    let reason = "this node's lease has run out, and etcd cannot be reached to take it again";
                    troubles.insert(reason.to_owned());
                }
                let uplink = uplink.clone();
                match (report.snapshot, report.own, report.unreachable) {
                    (Some(Ok(snapshot)), Some((own, held)), unreachable) => {
                        state.warning = unreachable;
                        let own = (*own).clone();
                        Some(uplink.map(|uplink| Adopted {
                            snapshot,
                            own,
                            uplink,
                            held: Some(held),
                        }))
                    }
                    (Some(Err(reason)), ..) => Some(Err(reason)),
                    (_, _, Some(reason)) => match &self.kept {
                        // The last good state, until the store says something itself.
                        Some(kept) => {
                            state.warning = Some(format!("{reason}; going by what it said last"));
                            Some(uplink.map(|uplink| Adopted {
                                snapshot: kept.snapshot(),
                                own: kept.own.clone(),
                                uplink,
                                held: kept.held.clone(),
                            }))
                        }
                        None => Some(Err(reason)),
                    },
                    // Nothing was said yet.
                    _ => uplink.err().map(Err),
                }
            }
        };
        match found {
            Some(Ok(found)) => self.take(found),
            Some(Err(reason)) => {
                let is_kept = self.adopted.is_some();
                let kept = if is_kept {
                    "; the last good state stays"
                } else {
                    ""
                };
                troubles.insert(format!("{reason}{kept}"));
            }
            None => {}
        }
        state
    }

    /// Makes a state the good one.
    fn take(&mut self, found: Adopted) {
        let Adopted {
            snapshot,
            own,
            uplink,
            ..
        } = &found;
        let old = self.adopted.as_ref();
        let is_new_to_us = old.is_none_or(|old| old.own != *own || old.uplink != *uplink);
        if is_new_to_us || old.is_none_or(|old| old.snapshot.leases.len() != snapshot.leases.len())
        {
            let subnets: Vec<_> = own.subnets().map(|subnet| subnet.to_string()).collect();
            let (name, link) = (&own.node, &uplink.link.name);
            info!(
                "the cluster has {} node(s); this is {name} with {} on {link}",
                snapshot.leases.len(),
                subnets.join(", "),
            );
        }
        if is_new_to_us || old.is_none_or(|old| old.snapshot != *snapshot || old.held != found.held)
        {
            self.cache.touch();
        }
        let is_first = old.is_none();
        self.adopted = Some(found);
        if is_first || is_new_to_us {
            self.keep();
        }
    }

    /// Writes the good state to disk, where it changed.
    fn keep(&mut self) {
        let Some(Adopted {
            snapshot,
            own,
            held,
            ..
        }) = &self.adopted
        else {
            return;
        };
        if let Err(reason) = self.cache.write(snapshot, own, held.clone()) {
            warn!("{reason}; a boot without the store would leave this node without a subnet");
        }
    }

    fn judge(adopted: &Adopted, is_onlink: bool) -> Vec<Peer> {
        let own = Own {
            lease: &adopted.own,
            uplink: &adopted.uplink,
            is_onlink,
        };
        judge(&adopted.snapshot, own)
    }

    /// Makes the kernel's routes the wanted ones, and says of each peer what the kernel refused.
    fn route(
        &self,
        mut peers: Vec<Peer>,
        present: &[kernel::Route],
        wake: Wake,
        troubles: &mut BTreeSet<String>,
    ) -> Vec<Peer> {
        let Some(Adopted { own, uplink, .. }) = &self.adopted else {
            return peers;
        };
        let onlink = self.settings.is_onlink;
        let hops = peers.iter().filter_map(Peer::wanted);
        let wanted: Vec<_> = hops
            .map(|hop| uplink.route(hop.subnet, hop.via, onlink && !uplink.reaches(hop.via)))
            .collect();
        let subnets: Vec<_> = own.subnets().collect();
        let changes = plan(&wanted, present, &subnets);
        let requests: Vec<_> = changes.iter().map(request).collect();
        let outcomes = match self.kernel.change_routes(&requests) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                troubles.insert(chain(&error));
                return peers;
            }
        };
        let mut counts = (0, 0);
        for (outcome, change) in outcomes.into_iter().zip(&changes) {
            match (outcome, change) {
                (Ok(()), _) => {
                    tell_change(change, changes.len() > TOLD);
                    match change {
                        Change::Replace { .. } => counts.0 += 1,
                        Change::Delete { .. } => counts.1 += 1,
                    }
                }
                (Err(error), Change::Replace { route, .. }) => {
                    let of_route =
                        |peer: &&mut Peer| peer.wanted().is_some_and(|hop| hop.subnet == route.to);
                    if let Some(peer) = peers.iter_mut().find(of_route) {
                        peer.refused = Some(Refusal::Kernel(chain(&error)));
                    }
                }
                (Err(error), Change::Delete { .. }) => {
                    troubles.insert(chain(&error));
                }
            }
        }
        if changes.len() > TOLD {
            info!(
                "added or replaced {} routes, deleted {}",
                counts.0, counts.1
            );
        }
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        state.count_routes(counts.0, counts.1, wake.notice.network && !wake.is_slow);
        peers
    }

    /// Deletes what flanneld left of routes to nodes that are gone: those to others are ours by
    /// now.
    fn take_over_routes(&self, peers: &[Peer]) -> Result<(), String> {
        let Some(adopted) = &self.adopted else {
            return Ok(());
        };
        let networks: Vec<_> = adopted.snapshot.network.networks().collect();
        let routes = self.kernel.routes().map_err(|error| chain(&error))?;
        let is_peers = |to| {
            peers
                .iter()
                .any(|peer| peer.hop.is_some_and(|hop| hop.subnet == to))
        };
        let gone = routes.into_iter().filter(|route| {
            is_of_flannel(route, &networks)
                && route.dev == adopted.uplink.link.index
                && !is_peers(route.to)
        });
        let changes: Vec<_> = gone.map(RouteChange::Delete).collect();
        let outcomes = self
            .kernel
            .change_routes(&changes)
            .map_err(|error| chain(&error))?;
        for (outcome, change) in outcomes.into_iter().zip(&changes) {
            outcome.map_err(|error| chain(&error))?;
            if let RouteChange::Delete(route) = change {
                warn!("deleted flannel's route {route}: no node has this subnet");
            }
        }
        Ok(())
    }

    /// Says what is wrong that was not before.
    fn tell(&mut self, troubles: BTreeSet<String>, warning: Option<&String>, peers: &[Peer]) {
        match warning {
            Some(warning) if self.warning.as_ref() != Some(warning) => warn!("{warning}"),
            None if self.warning.is_some() => info!("the store is back"),
            _ => {}
        }
        self.warning = warning.cloned();
        for trouble in troubles.difference(&self.troubles) {
            error!("{trouble}");
        }
        if troubles.is_empty() && !self.troubles.is_empty() {
            info!("all is well again");
        }
        self.troubles = troubles;
        let refused = peers
            .iter()
            .filter_map(|peer| Some((peer, peer.refused.as_ref()?)));
        let refusals: BTreeSet<_> = refused
            .map(|(peer, reason)| format!("{peer} is not routed: {reason}"))
            .collect();
        for refusal in refusals.difference(&self.refusals) {
            warn!("{refusal}");
        }
        self.refusals = refusals;
    }
}

impl StoreSettings {
    /// What tells it from other stores.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::File(path) => format!("file {}", path.display()),
            Self::Etcd(options) => format!("etcd {}", options.prefix),
        }
    }
}

impl Store {
    async fn changed(&self) {
        match self {
            Self::File(store) => store.changed().await,
            Self::Etcd(store) => store.changed().await,
        }
    }
}

impl Wake {
    fn everything() -> Self {
        let notice = Notice {
            network: true,
            firewall: true,
        };
        Self {
            notice,
            is_slow: true,
        }
    }

    fn store() -> Self {
        Self {
            notice: Notice::default(),
            is_slow: false,
        }
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

fn request(change: &Change) -> RouteChange {
    match change {
        Change::Replace { route, .. } => RouteChange::Replace(route.clone()),
        Change::Delete { route, .. } => RouteChange::Delete(route.clone()),
    }
}

fn tell_change(change: &Change, are_many: bool) {
    if change.is_against_foreign() {
        warn!("{change}");
    } else if are_many {
        debug!("{change}");
    } else {
        info!("{change}");
    }
}

/// Says in the node's subnet file which subnet is its own, unless it says so already.
fn write_subnet_file(settings: &Settings, adopted: &Adopted) -> Result<(), String> {
    let networks: Vec<_> = adopted.snapshot.network.networks().collect();
    let subnets: Vec<_> = adopted.own.subnets().collect();
    let masquerades = settings.firewall.masquerades();
    let wanted = SubnetEnv::new(&networks, &subnets, adopted.uplink.link.mtu, masquerades);
    let wanted = wanted.map_err(|error| chain(&error))?;
    let path = &settings.subnet_file;
    if SubnetEnv::read(path).is_ok_and(|present| present == wanted) {
        return Ok(());
    }
    wanted.write(path).map_err(|error| chain(&error))?;
    info!("wrote {}", path.display());
    Ok(())
}

/// A node that routes for its pods forwards.
fn forward(adopted: &Adopted) -> Result<(), String> {
    let set = |name: &str, value| sysctl::set(name, value).map_err(|error| chain(&error));
    let network = &adopted.snapshot.network;
    if network.ipv4.is_some() {
        set("net/ipv4/ip_forward", "1")?;
    }
    if network.ipv6.is_some() {
        // A node that forwards hears no router any more unless it insists (2), and loses the
        // default route that one gave it.
        let accept_ra = format!("net/ipv6/conf/{}/accept_ra", adopted.uplink.link.name);
        if sysctl::get(&accept_ra).is_ok_and(|value| value == "1") {
            set(&accept_ra, "2")?;
        }
        set("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The state that others are shown, before there is any.
pub(crate) fn shared() -> Shared {
    Arc::new(std::sync::Mutex::new(State::default()))
}
