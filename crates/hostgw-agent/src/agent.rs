//! The agent's one loop: whatever happened, compare and put right.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use kernel::{Monitor, Notice, Route, Rtnl};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::apply::{How, apply, sweep, take_over};
use crate::cache::{Cache, Memory};
use crate::diverted::Diversions;
use crate::error::chain;
use crate::firewall::{self, Firewall, Place};
use crate::install::{self, Install};
use crate::node::{Node, bridges_of_pods, protect_from_routers};
use crate::pace::Pace;
use crate::peers::Peer;
use crate::plan::Change;
use crate::repeats::Repeats;
use crate::serve;
use crate::state::{Shared, State, StoreState, lock};
use crate::store::kube::Verdict;
use crate::store::{self, Store, Surroundings};
use crate::uplink::Selection;

/// Everything is compared this often even when nobody said that something changed.
const SLOW: Duration = Duration::from_secs(10);
/// What could not be done is tried again this soon.
const RETRY: Duration = Duration::from_secs(1);
/// One edit or one flap tells of itself many times within this.
const SETTLE: Duration = Duration::from_millis(3);
/// What somebody did to the kernel's routes waits no longer than this, whatever the pace.
const SHORT_REST: Duration = Duration::from_millis(25);

/// What is to be known to begin.
pub(crate) struct Settings {
    pub(crate) store: store::Settings,
    pub(crate) selection: Selection,
    pub(crate) how: How,
    pub(crate) subnet_file: PathBuf,
    pub(crate) state_file: PathBuf,
    pub(crate) firewall: firewall::Settings,
    /// What of ours the runtime is to find.
    pub(crate) install: Option<Install>,
}

/// The agent of this node.
pub(crate) struct Agent {
    kernel: Rtnl,
    monitor: Monitor,
    store: Store,
    settings: Settings,
    firewall: Firewall,
    cache: Cache,
    /// The last good state of an earlier run.
    kept: Memory,
    /// The last good state.
    node: Option<Node>,
    /// Whether this node itself is another since that was written to disk.
    is_new: bool,
    /// Whether the runtime has its list of plugins.
    is_listed: bool,
    /// The kernel's routes as we last saw and left them. Nothing where somebody else may have touched
    /// them since.
    present: Option<Vec<Route>>,
    told: Told,
    /// What happens again and again.
    repeats: Repeats,
    /// What leads packets to other nodes elsewhere.
    diversions: Diversions,
    /// Whether this node forwarded as it should when we looked last.
    is_settled: bool,
    shared: Shared,
}

/// What was said, each said once.
#[derive(Default)]
struct Told {
    /// Whether pods of this node have their network.
    is_ready: bool,
    /// What is wrong with this node.
    troubles: BTreeSet<String>,
    /// What is to be put right, and does not keep pods from having their network.
    warnings: BTreeSet<String>,
    /// The same of the store.
    warning: Option<String>,
    /// Which subnets are not routed.
    refusals: BTreeSet<String>,
    /// Why the good state is not on disk.
    unwritten: Option<String>,
    /// Which configuration the runtime takes instead of ours.
    rival: Option<PathBuf>,
}

/// Why the agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Store(#[from] store::file::Error),
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
        let cache = Cache::new(settings.state_file.clone(), settings.store.name());
        let kept = cache.read().unwrap_or_else(|reason| {
            warn!("{reason}; going on without it");
            None
        });
        Ok(Self {
            monitor: Monitor::open(&kernel)?,
            store: Store::open(&settings.store, &settings.subnet_file, kept.as_ref())?,
            firewall: Firewall::new(settings.firewall.clone()),
            kernel,
            settings,
            cache,
            kept: Memory::new(kept),
            node: None,
            is_new: false,
            is_listed: false,
            present: None,
            told: Told::default(),
            repeats: Repeats::default(),
            diversions: Diversions::default(),
            is_settled: false,
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
        let mut pace = Pace::new(Instant::now());
        loop {
            let begin = Instant::now();
            let took = self.reconcile(wake);
            let end = Instant::now();
            if wake.is_slow || self.is_new {
                self.is_new = false;
                if let Some(node) = &self.node {
                    self.told.kept(self.cache.write(node));
                }
            }
            if !self.told.troubles.is_empty() {
                slow = slow.min(begin + RETRY);
            }
            if let Some(poll) = self.firewall.poll() {
                slow = slow.min(begin + poll);
            }
            wake = tokio::select! {
                () = self.store.changed() => Wake::store(),
                notice = self.monitor.changed() => Wake { notice: notice?, is_slow: false },
                () = sleep_until(slow) => Wake::everything(),
                _ = hangup.recv() => Wake::everything(),
                () = either(&mut terminate, &mut interrupt) => break,
            };
            if wake.is_slow {
                slow = Instant::now() + SLOW;
            }
            // Until there is anything to lose, nothing waits.
            let late = if self.node.is_some() {
                pace.after(took, end)
            } else {
                end
            };
            let soon = late.min(end + SHORT_REST);
            let late = if wake.notice.network { soon } else { late };
            tokio::select! {
                more = self.settle(late, soon) => wake.notice |= more?,
                () = either(&mut terminate, &mut interrupt) => break,
            }
        }
        serve::tell_systemd_the_end();
        if let Some(node) = &self.node {
            self.told.kept(self.cache.finish(node));
        }
        info!("stopped; routes, firewall and subnet file stay");
        Ok(())
    }

    /// Takes in the notices that come with the one that woke us, until `late`; where somebody did
    /// something to the kernel's routes meanwhile, until `soon`.
    async fn settle(&mut self, late: Instant, soon: Instant) -> Result<Notice, Error> {
        let mut notice = Notice::default();
        let settled = Instant::now() + SETTLE;
        loop {
            let until = if notice.network { soon.min(late) } else { late };
            tokio::select! {
                () = sleep_until(until.max(settled)) => return Ok(notice),
                () = self.store.changed() => {}
                more = self.monitor.changed() => notice |= more?,
            }
        }
    }

    /// Compares everything with what it should be, and puts it right. Says how long comparing
    /// took: programs of others and the disk do not count.
    fn reconcile(&mut self, wake: Wake) -> Duration {
        let begin = Instant::now();
        let mut troubles = BTreeSet::new();
        let mut warnings = BTreeSet::new();
        let mut peers = Vec::new();
        let store = match self.route(wake, &mut peers, &mut troubles, &mut warnings) {
            Ok(store) => store,
            Err(reason) => {
                troubles.insert(reason);
                StoreState::default()
            }
        };
        let took = begin.elapsed();
        if let Some(install) = self.settings.install.as_ref().filter(|_| wake.is_slow) {
            troubles.extend(install.put_plugin().err());
            self.told.rival(install.rival());
        }
        if let Some(node) = &self.node {
            let masquerades = self.settings.firewall.masquerades();
            let written = node.write_subnet_file(&self.settings.subnet_file, masquerades);
            let is_listed = self.is_listed && !wake.is_slow;
            if let Some(install) = self
                .settings
                .install
                .as_ref()
                .filter(|_| !is_listed && written.is_ok())
            {
                let listed = install.put_list();
                self.is_listed = listed.is_ok();
                troubles.extend(listed.err());
            }
            troubles.extend(written.err());
            let bridges = bridges_of_pods(&self.kernel).unwrap_or_else(|reason| {
                troubles.insert(reason);
                Vec::new()
            });
            let settled = node.forward(&self.kernel, &bridges);
            for mended in &settled.mended {
                self.repeats.info("set forwarding", mended);
            }
            if self.is_settled {
                let count = u64::try_from(settled.mended.len()).unwrap_or_default();
                lock(&self.shared).forwarding_mended += count;
            }
            self.is_settled = settled.troubles.is_empty();
            troubles.extend(settled.troubles);
            if wake.notice.network || wake.is_slow {
                troubles.extend(protect_from_routers(&self.kernel, &bridges).err());
            }
            if !node.uplink.link.is_up {
                troubles.insert(format!("interface {} is down", node.uplink.link.name));
            }
            let rules = firewall::Rules::new(&node.snapshot.network, &node.own);
            if wake.notice.firewall || wake.is_slow || !self.firewall.is_for(&rules) {
                let peers = peers.iter().filter_map(Peer::wanted);
                let peers: Vec<_> = peers.map(|hop| hop.subnet).collect();
                let place = Place {
                    uplink: &node.uplink.link,
                    bridge: bridges.first(),
                    peers: &peers,
                };
                self.firewall
                    .ensure(&rules, wake.is_slow, place, &mut self.repeats);
            }
            warnings.extend(self.firewall.warnings().cloned());
            warnings.extend(node.uplink.warning.clone());
            troubles.extend(self.firewall.troubles().iter().cloned());
            if self.firewall.found_flannel() {
                troubles.extend(take_over(&self.kernel, node, &peers).err());
                self.present = None;
            }
        }
        if wake.is_slow {
            self.repeats.sum_up();
        }
        self.told.tell(
            troubles,
            warnings,
            store.warning.as_ref(),
            &peers,
            &mut self.repeats,
        );
        self.show(begin.elapsed(), store, peers);
        took
    }

    /// Asks the store and the kernel, and makes the routes the wanted ones.
    fn route(
        &mut self,
        wake: Wake,
        peers: &mut Vec<Peer>,
        troubles: &mut BTreeSet<String>,
        warnings: &mut BTreeSet<String>,
    ) -> Result<StoreState, String> {
        let known = self.present.take();
        let known = known.filter(|_| !wake.notice.network && !wake.is_slow);
        let mut present = match known {
            Some(present) => present,
            None => self.kernel.routes().map_err(|error| chain(&error))?,
        };
        if wake.notice.network {
            let compared = self.kept.compare(&self.kernel);
            compared.map_err(|error| chain(&error))?;
        }
        let view = self.store.view(Surroundings {
            kernel: &self.kernel,
            routes: &present,
            selection: &self.settings.selection,
            kept: self.kept.get(),
            before: self.node.as_ref().map(|node| &node.uplink),
            own: self.node.as_ref().map(|node| node.own.addresses()),
            has_moved: wake.notice.network,
            is_slow: wake.is_slow,
        });
        troubles.extend(view.troubles);
        warnings.extend(view.warnings);
        match view.node {
            Some(Ok(node)) => self.adopt(node),
            Some(Err(reason)) => {
                let is_kept = self.node.is_some();
                let kept = if is_kept {
                    "; the last good state stays"
                } else {
                    ""
                };
                troubles.insert(format!("{reason}{kept}"));
            }
            None => {}
        }
        if let Some(node) = &self.node {
            let how = self.settings.how;
            *peers = node.peers(how.is_onlink);
            let is_mending = wake.notice.network && !wake.is_slow;
            let repeats = &mut self.repeats;
            let mut tell = |change: &Change, are_many: bool| {
                if change.is_against_foreign() {
                    repeats.warn(change.kind(), &change.to_string());
                } else if are_many {
                    debug!("{change}");
                } else if is_mending {
                    repeats.info(change.kind(), &change.to_string());
                } else {
                    info!("{change}");
                }
            };
            let done = apply(&self.kernel, node, how, peers, &mut present, &mut tell)?;
            lock(&self.shared).count_routes(done.written, done.deleted, is_mending);
            troubles.extend(done.troubles);
            if wake.is_slow && kernel::has_nexthops() {
                sweep(&self.kernel)?;
            }
            if wake.is_slow || wake.notice.network {
                let own: Vec<_> = node.own.subnets().collect();
                let bridges = bridges_of_pods(&self.kernel)?;
                let bridge = bridges.first();
                let diversions = &mut self.diversions;
                let bridge = bridge.filter(|_| self.is_settled);
                let looked = diversions.look(&self.kernel, peers, &node.uplink, &own, bridge);
                warnings.extend(looked.err());
            }
            self.diversions.tell(peers, &present, &node.uplink);
        }
        self.present = Some(present);
        Ok(view.state)
    }

    /// Makes a state the good one.
    fn adopt(&mut self, node: Node) {
        let old = self.node.as_ref();
        let is_same_node = old.is_some_and(|old| old.is_as(&node));
        let others = |node: &Node| {
            let leases = node.snapshot.leases.iter();
            leases.filter(|lease| lease.node != node.own.node).count()
        };
        let count = others(&node);
        if !is_same_node {
            let subnets: Vec<_> = node
                .own
                .subnets()
                .map(|subnet| subnet.to_string())
                .collect();
            let subnets = subnets.join(", ");
            let (name, uplink) = (&node.own.node, &node.uplink);
            let (link, because) = (&uplink.link.name, &uplink.because);
            let text = format!("this is {name} with {subnets} on {link}, because {because}");
            self.repeats.info("changes of this node", &text);
        }
        if !is_same_node || old.is_some_and(|old| others(old) != count) {
            info!("the cluster has {count} other node(s)");
        }
        let is_same = |old: &Node| old.snapshot == node.snapshot && old.held == node.held;
        if !is_same_node || !old.is_some_and(is_same) {
            self.cache.touch();
        }
        self.is_new |= !is_same_node;
        if !node.is_kept {
            // What is known now is newer, whatever the store says next.
            self.kept.forget();
        }
        self.node = Some(node);
    }

    /// Shows who asks how things are now.
    fn show(&mut self, duration: Duration, store: StoreState, peers: Vec<Peer>) {
        let mut state = lock(&self.shared);
        state.took(duration, SystemTime::now());
        state.troubles = self.told.troubles.iter().cloned().collect();
        state.warnings = self.told.warnings.iter().cloned().collect();
        state.firewall = self.firewall.backend();
        state.firewall_mended = self.firewall.mended();
        state.peers = peers;
        state.store = store;
        state.store.name = self.settings.store.name();
        if let Some(node) = &self.node {
            state.set_node(&node.snapshot.network, &node.own, &node.uplink);
        }
        let is_ready = state.is_ready();
        let (wanted, routed) = state.counts();
        drop(state);
        if is_ready && !self.told.is_ready {
            let text = format!("ready: {routed} of {wanted} subnets of other nodes are routed");
            self.repeats.info("ready", &text);
        }
        self.told.is_ready = is_ready;
        self.store.tell(self.told.verdict());
        serve::tell_systemd(is_ready, &self.told.troubles);
    }
}

impl Told {
    /// What is to be said of this node, once there is anything to say.
    fn verdict(&self) -> Option<Verdict> {
        if self.is_ready {
            return Some(Ok(()));
        }
        let troubles: Vec<_> = self.troubles.iter().map(String::as_str).collect();
        (!troubles.is_empty()).then(|| Err(troubles.join("; ")))
    }

    /// Says what became of writing the good state to disk.
    fn kept(&mut self, written: Result<(), String>) {
        let unwritten = written.err();
        if let Some(reason) = &unwritten
            && self.unwritten.as_ref() != Some(reason)
        {
            warn!("{reason}; a boot without the store would leave this node without a subnet");
        }
        self.unwritten = unwritten;
    }

    /// Says that the runtime takes another configuration than ours.
    fn rival(&mut self, rival: Option<PathBuf>) {
        if let Some(path) = rival.as_ref().filter(|_| rival != self.rival) {
            warn!("{}", install::beats(path));
        }
        self.rival = rival;
    }

    /// Says what is wrong that was not before.
    fn tell(
        &mut self,
        troubles: BTreeSet<String>,
        warnings: BTreeSet<String>,
        warning: Option<&String>,
        peers: &[Peer],
        repeats: &mut Repeats,
    ) {
        for new in warnings.difference(&self.warnings) {
            repeats.warn(new, new);
        }
        self.warnings = warnings;
        for trouble in troubles.difference(&self.troubles) {
            repeats.error(trouble, trouble);
        }
        self.troubles = troubles;
        match warning {
            Some(warning) if self.warning.as_ref() != Some(warning) => warn!("{warning}"),
            None if self.warning.is_some() => info!("the store is back"),
            _ => {}
        }
        self.warning = warning.cloned();
        let refused = peers
            .iter()
            .filter_map(|peer| Some((peer, peer.refused.as_ref()?)));
        let refused = refused.map(|(peer, reason)| format!("{peer} is not routed: {reason}"));
        let diverted = peers
            .iter()
            .filter_map(|peer| Some(format!("{peer}: {}", peer.diverted.as_ref()?)));
        let refusals: BTreeSet<_> = refused.chain(diverted).collect();
        for refusal in refusals.difference(&self.refusals) {
            repeats.warn(refusal, refusal);
        }
        self.refusals = refusals;
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

/// The state that others are shown, before there is any.
pub(crate) fn shared() -> Shared {
    Arc::new(Mutex::new(State::default()))
}
