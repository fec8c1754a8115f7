//! The agent's one loop: whatever happened, compare and put right.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use kernel::{Monitor, Protocol, Route, RouteChange, Rtnl, sysctl};
use subnet_env::SubnetEnv;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use crate::lease::Snapshot;
use crate::net_conf::NetConf;
use crate::node::{Identity, Node};
use crate::plan::{Change, plan};
use crate::store::file::{self, FileStore};

/// Everything is compared this often even when nobody said that something changed.
const SLOW: Duration = Duration::from_secs(10);
/// What could not be done is tried again this soon.
const RETRY: Duration = Duration::from_secs(1);
/// One edit or one flap tells of itself many times within this.
const SETTLE: Duration = Duration::from_millis(3);

/// The agent of this node.
pub(crate) struct Agent {
    kernel: Rtnl,
    monitor: Monitor,
    store: FileStore,
    identity: Identity,
    subnet_file: PathBuf,
    /// What the store says now, good or not.
    latest: Result<Snapshot, file::Error>,
    /// The last snapshot in which this node was found, and this node.
    adopted: Option<(Snapshot, Node)>,
    /// What is wrong, each said once.
    troubles: BTreeSet<String>,
}

/// Why the agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Store(#[from] file::Error),
    #[error("wait for signals")]
    Signal(#[source] std::io::Error),
}

impl Agent {
    pub(crate) fn new(
        cluster: PathBuf,
        name: Option<String>,
        iface: Option<String>,
        subnet_file: PathBuf,
    ) -> Result<Self, Error> {
        let store = FileStore::new(cluster)?;
        Ok(Self {
            kernel: Rtnl::connect()?,
            monitor: Monitor::open()?,
            latest: store.read(),
            store,
            identity: Identity { name, iface },
            subnet_file,
            adopted: None,
            troubles: BTreeSet::new(),
        })
    }

    /// Keeps the node's routes and subnet file right until SIGTERM or SIGINT. What was set up
    /// stays: pods go on talking while there is no agent.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signal)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
        info!("started");
        // Set anew only when it is over: events must not put it off for ever.
        let mut slow = Instant::now() + SLOW;
        loop {
            self.reconcile();
            if !self.troubles.is_empty() {
                slow = slow.min(Instant::now() + RETRY);
            }
            tokio::select! {
                () = self.store.changed() => {
                    sleep(SETTLE).await;
                    self.latest = self.store.read();
                }
                changed = self.monitor.changed() => {
                    changed?;
                    self.settle().await?;
                }
                () = sleep_until(slow) => {
                    slow = Instant::now() + SLOW;
                    self.store.watch();
                    self.latest = self.store.read();
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        info!("stopped; routes and subnet file stay");
        Ok(())
    }

    /// Takes in the notices that come with the one that woke us.
    async fn settle(&mut self) -> Result<(), Error> {
        let deadline = sleep(SETTLE);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => return Ok(()),
                changed = self.monitor.changed() => changed?,
            }
        }
    }

    /// Compares everything with what it should be, and puts it right.
    fn reconcile(&mut self) {
        let mut troubles = BTreeSet::new();
        if let Err(trouble) = self.adopt() {
            let kept = if self.adopted.is_some() {
                "; the last good state stays"
            } else {
                ""
            };
            troubles.insert(format!("{trouble}{kept}"));
        }
        if let Some((snapshot, node)) = &self.adopted {
            for step in [
                forward(snapshot, node),
                self.write_subnet_file(snapshot, node),
            ] {
                troubles.extend(step.err());
            }
            troubles.extend(self.route(snapshot, node));
        }
        for trouble in troubles.difference(&self.troubles) {
            error!("{trouble}");
        }
        if troubles.is_empty() && !self.troubles.is_empty() {
            info!("all is well again");
        }
        self.troubles = troubles;
    }

    /// Takes the store's latest snapshot for the good one, if it is good and has this node.
    fn adopt(&mut self) -> Result<(), String> {
        let snapshot = self.latest.as_ref().map_err(|error| chain(error))?;
        let node = self.identity.find(&self.kernel, snapshot);
        let node = node.map_err(|error| chain(&error))?;
        if self
            .adopted
            .as_ref()
            .is_none_or(|(old, this)| old != snapshot || *this != node)
        {
            let subnets: Vec<_> = node
                .lease
                .hops
                .iter()
                .map(|hop| hop.subnet.to_string())
                .collect();
            let (name, link) = (&node.lease.node, &node.link.name);
            let subnets = subnets.join(", ");
            info!(
                "the cluster has {} node(s); this is {name} with {subnets} on {link}",
                snapshot.leases.len()
            );
            self.adopted = Some((snapshot.clone(), node));
        }
        Ok(())
    }

    /// Says in the node's subnet file which subnet is its own, unless it says so already.
    fn write_subnet_file(&self, snapshot: &Snapshot, node: &Node) -> Result<(), String> {
        let wanted = subnet_env(snapshot, node).map_err(|error| chain(&error))?;
        if SubnetEnv::read(&self.subnet_file).is_ok_and(|present| present == wanted) {
            return Ok(());
        }
        wanted
            .write(&self.subnet_file)
            .map_err(|error| chain(&error))?;
        info!("wrote {}", self.subnet_file.display());
        Ok(())
    }

    /// Makes the kernel's routes the wanted ones. Says what could not be done.
    fn route(&self, snapshot: &Snapshot, node: &Node) -> Vec<String> {
        let present = match self.kernel.routes() {
            Ok(present) => present,
            Err(error) => return vec![chain(&error)],
        };
        let own: Vec<_> = node.lease.hops.iter().map(|hop| hop.subnet).collect();
        let changes = plan(&wanted(snapshot, node), &present, &own);
        let requests: Vec<_> = changes.iter().map(request).collect();
        let outcomes = match self.kernel.change_routes(&requests) {
            Ok(outcomes) => outcomes,
            Err(error) => return vec![chain(&error)],
        };
        let mut troubles = Vec::new();
        for (outcome, change) in outcomes.into_iter().zip(&changes) {
            match outcome {
                Ok(()) if change.is_against_foreign() => warn!("{change}"),
                Ok(()) => info!("{change}"),
                Err(error) => troubles.push(chain(&error)),
            }
        }
        troubles
    }
}

/// A route to every other node's subnets.
fn wanted(snapshot: &Snapshot, node: &Node) -> Vec<Route> {
    let others = snapshot
        .leases
        .iter()
        .filter(|lease| lease.node != node.lease.node);
    let hops = others.flat_map(|lease| &lease.hops);
    hops.map(|hop| Route::new(hop.subnet, Some(hop.via), node.link.index, Protocol::HOSTGW))
        .collect()
}

fn request(change: &Change) -> RouteChange {
    match change {
        Change::Replace { route, .. } => RouteChange::Replace(route.clone()),
        Change::Delete { route, .. } => RouteChange::Delete(route.clone()),
    }
}

/// A node that routes for its pods forwards.
fn forward(snapshot: &Snapshot, node: &Node) -> Result<(), String> {
    let set = |name: &str, value| sysctl::set(name, value).map_err(|error| chain(&error));
    if snapshot.network.ipv4.is_some() {
        set("net/ipv4/ip_forward", "1")?;
    }
    if snapshot.network.ipv6.is_some() {
        // A node that forwards hears no router any more unless it insists (2), and loses the
        // default route that one gave it.
        let accept_ra = format!("net/ipv6/conf/{}/accept_ra", node.link.name);
        if sysctl::get(&accept_ra).is_ok_and(|value| value == "1") {
            set(&accept_ra, "2")?;
        }
        set("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn subnet_env(snapshot: &Snapshot, node: &Node) -> Result<SubnetEnv, subnet_env::Error> {
    let NetConf { ipv4, ipv6 } = snapshot.network;
    let networks = ipv4
        .map(IpNetwork::V4)
        .into_iter()
        .chain(ipv6.map(IpNetwork::V6));
    let networks: Vec<_> = networks.collect();
    let subnets: Vec<_> = node.lease.hops.iter().map(|hop| hop.subnet).collect();
    // The agent does not masquerade, so the plugin is told to.
    SubnetEnv::new(&networks, &subnets, node.link.mtu, false)
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
