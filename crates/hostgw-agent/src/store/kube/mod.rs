//! The `kube` store: Node objects with the annotations that flannel writes, so that nodes of
//! kube-flannel and ours can share a cluster.
//!
//! A background task ([`session`]) lists and watches all Nodes. It also keeps this node's own Node
//! ([`publish`]) as others and the scheduler need it: its annotations and the condition
//! `NetworkUnavailable`.

mod connection;
mod contents;
mod error;
mod format;
mod list;
mod object;
mod own;
mod proxy;
mod publish;
mod session;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use connection::Access;
pub(crate) use error::Error;
pub(crate) use format::Prefix;

use super::file::WatchedFile;
use super::task_state::TaskState;
use super::{
    Answer, NetworkStatus, Result, UplinkFinder, UplinkInputs, View, ViewContext, resolve,
};
use crate::agent::saved_state::SavedState;
use crate::network::{Addresses, Hop, Lease, NetConf, Snapshot, net_conf};
use crate::node;
use crate::node::Uplink;
use crate::observe::StoreState;
use contents::Contents;
use format::Node;
use session::Session;

/// Everything the store needs to start.
#[derive(Clone, Debug)]
pub(crate) struct KubeStoreConfig {
    pub(crate) access: Access,
    pub(crate) node: Identity,
    pub(crate) prefix: Prefix,
    /// Route to Nodes without annotations by their `InternalIP`.
    pub(crate) peers_without_annotations: bool,
    /// Keep the Node's condition `NetworkUnavailable`.
    pub(crate) sets_condition: bool,
    /// The file with the network's configuration.
    pub(crate) net_conf: PathBuf,
}

/// How this node's Node is identified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Named(String),
    /// The Node that this pod runs on.
    OfPod {
        namespace: String,
        name: String,
    },
}

/// The API server, and the network's configuration. The background task ends when this is dropped;
/// what it wrote stays.
pub(crate) struct KubeStore {
    shared: Arc<TaskState<State>>,
    desired: watch::Sender<DesiredNode>,
    task: JoinHandle<()>,
    net_conf: WatchedFile<NetConf>,
    uplink: UplinkFinder,
}

/// The desired annotations and condition of this node's Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct DesiredNode {
    /// The addresses by which others reach its pods. `None` while it has no subnet.
    addresses: Option<Addresses>,
    /// `None` before anything was tried.
    status: Option<NetworkStatus>,
}

/// The state of the background task.
#[derive(Default)]
struct State {
    /// The name of this node's Node.
    name: String,
    contents: Option<Contents>,
    /// The revision up to which the Nodes were read.
    version: String,
    /// Why this node's Node does not say what it should.
    publish_error: Option<PublishError>,
    /// Why the API server cannot be read.
    unreachable: Option<Error>,
    last_heard: Option<Instant>,
}

/// Why this node's Node does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PublishError {
    error: Error,
    /// True if other nodes cannot find this one because of it.
    hides_node: bool,
}

impl KubeStoreConfig {
    pub(crate) fn name(&self) -> String {
        match &self.node {
            Identity::Named(name) => format!("kube {name}"),
            Identity::OfPod { .. } => "kube".to_owned(),
        }
    }
}

impl KubeStore {
    /// Starts the background task. `saved` says how far an earlier run had read the store.
    pub(crate) fn start(config: KubeStoreConfig, saved: Option<&SavedState>) -> Result<Self> {
        let parse = |text: &[u8]| net_conf::parse(text).map_err(Into::into);
        let net_conf = WatchedFile::new(config.net_conf.clone(), parse).map_err(Arc::new)?;
        let shared = Arc::new(TaskState::default());
        let (desired, receiver) = watch::channel(DesiredNode::default());
        let version = saved.and_then(|saved| saved.version.clone());
        let session = Session::new(config, Arc::clone(&shared), receiver, version);
        Ok(Self {
            shared,
            desired,
            task: tokio::spawn(session.run()),
            net_conf,
            uplink: UplinkFinder::default(),
        })
    }

    /// Waits until the Nodes or the network's configuration may have changed.
    pub(crate) async fn changed(&self) {
        tokio::select! {
            () = self.shared.changed() => {}
            () = self.net_conf.changed() => {}
        }
    }

    /// Publishes in the Node's condition whether its pods have their network.
    pub(crate) fn report_status(&self, status: Option<NetworkStatus>) {
        self.set_desired(|desired| desired.status = status);
    }

    fn set_desired(&self, change: impl FnOnce(&mut DesiredNode)) {
        self.desired.send_if_modified(|present| {
            let old = present.clone();
            change(present);
            *present != old
        });
    }

    /// Returns the view of the Nodes and the network configuration.
    pub(crate) fn view(&mut self, context: ViewContext<'_>) -> View {
        if context.is_resync {
            self.net_conf.watch();
        }
        if context.network_changed {
            self.uplink.forget();
        }
        let network = self.net_conf.latest(context.is_resync);
        let network = network.as_ref().copied().map_err(Arc::clone);
        let report = Report::new(&self.shared.lock());
        let own = report.own.as_ref().and_then(|own| own.as_deref().ok());
        let uplink = self.find_uplink(own, network.as_ref().ok(), context);
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        let mut state = report.store_state();
        match report.publish_error {
            Some(failed) if failed.hides_node => problems.push(failed.error.into()),
            Some(failed) => {
                state.warning.get_or_insert(failed.error.to_string());
            }
            None => {}
        }
        let answer = match (network, report.leases, report.own, report.unreachable) {
            (Ok(network), Some(leases), Some(Ok(own)), _) => {
                let file = self.net_conf.path().display().to_string();
                let node = uplink.clone().and_then(|uplink| {
                    let addresses = uplink.public(Some(&network));
                    let (own, missing) = own.own_lease(&network, &file, addresses)?;
                    warnings.extend(missing.iter().map(ToString::to_string));
                    Ok(own_node(network, leases, own, uplink, report.version))
                });
                Answer::Node(node.map(Box::new))
            }
            (Ok(_), _, Some(Err(name)), _) => Answer::Node(Err(Error::NoNode(name).into())),
            (Err(error), ..) => Answer::Invalid(error.into()),
            (.., Some(error)) => Answer::Unreachable(error.into()),
            _ => Answer::Pending,
        };
        let resolved = resolve(answer, context.saved, || uplink);
        self.set_desired(|desired| desired.addresses = announced(resolved.node.as_ref()));
        resolved.into_view(state, problems, warnings)
    }

    /// Selects the uplink. An administrator's annotations come before everything but flags; without
    /// any of these, the interface that has the Node's own address comes before the default route's.
    fn find_uplink(
        &mut self,
        own: Option<&Node>,
        network: Option<&NetConf>,
        context: ViewContext<'_>,
    ) -> Result<Uplink> {
        let saved = || context.saved.map(SavedState::addresses);
        let requested = own.map_or(Ok(Vec::new()), Node::requested_addresses);
        let inputs = UplinkInputs {
            network: network.copied(),
            requested: requested?,
            internal: own.map(|own| own.internal).unwrap_or_default(),
            announced: own.map(Node::announced).or_else(saved).unwrap_or_default(),
        };
        self.uplink.find(&inputs, context)
    }
}

impl Drop for KubeStore {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A copy of the background task's state.
struct Report {
    /// Every node's lease, the oldest first. `None` before the first list.
    leases: Option<Vec<Arc<Lease>>>,
    /// This node's Node, or its name if there is none.
    own: Option<Result<Arc<Node>, String>>,
    publish_error: Option<PublishError>,
    unreachable: Option<Error>,
    version: Option<String>,
    last_heard: Option<Instant>,
}

impl Report {
    fn new(state: &State) -> Self {
        let contents = state.contents.as_ref();
        Self {
            leases: contents.map(|contents| contents.leases().cloned().collect()),
            own: contents.map(|contents| contents.own().ok_or_else(|| state.name.clone())),
            publish_error: state.publish_error.clone(),
            unreachable: state.unreachable.clone(),
            version: (!state.version.is_empty()).then(|| state.version.clone()),
            last_heard: state.last_heard,
        }
    }

    fn store_state(&self) -> StoreState {
        let version = self.version.as_ref();
        StoreState {
            name: String::new(),
            is_reached: self.unreachable.is_none() && self.leases.is_some(),
            warning: self.unreachable.as_ref().map(ToString::to_string),
            revision: version
                .and_then(|version| version.parse().ok())
                .unwrap_or_default(),
            last_heard: self.last_heard,
            expires: None,
        }
    }
}

/// The addresses that the Node should announce: none without a subnet from this run, because other
/// nodes must not send packets here then.
fn announced(node: Option<&Result<node::Node>>) -> Option<Addresses> {
    match node {
        Some(Ok(node)) if !node.from_saved_state => {
            Some(node.uplink.public(Some(&node.snapshot.network)))
        }
        _ => None,
    }
}

/// This node, and all others with the families that the network has.
fn own_node(
    network: NetConf,
    leases: Vec<Arc<Lease>>,
    own: Lease,
    uplink: Uplink,
    version: Option<String>,
) -> node::Node {
    let has_family = |hop: &Hop| network.pool(hop.subnet).is_some();
    let restrict = |lease: Arc<Lease>| {
        if lease.node == own.node {
            // As this node is now, whatever its Node says yet.
            return Arc::new(own.clone());
        }
        if lease.hops.iter().all(has_family) {
            return lease;
        }
        let hops: Vec<_> = lease.hops.iter().copied().filter(has_family).collect();
        let missing =
            || "its Node has no subnet and address of a family that the network has".to_owned();
        let reason = lease.invalid_reason.clone();
        Arc::new(Lease {
            node: lease.node.clone(),
            invalid_reason: reason.or_else(|| hops.is_empty().then(missing)),
            hops,
        })
    };
    let leases = leases.into_iter().map(restrict).collect();
    node::Node {
        snapshot: Snapshot { network, leases },
        own,
        uplink,
        etcd_lease: None,
        version,
        from_saved_state: false,
    }
}
