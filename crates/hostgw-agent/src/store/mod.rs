//! Stores: where the network's configuration and every node's lease come from.
//!
//! Each store has the same shape: [`Store::changed`] waits for news, and [`Store::view`] says what
//! the store knows now. [`resolve`] combines that with the saved state of an earlier run, in the same
//! way for all of them.

pub(crate) mod etcd;
pub(crate) mod file;
pub(crate) mod kube;
mod session;
mod task_state;

use std::path::Path;
use std::sync::Arc;

use kernel::{Route, Rtnl};

use crate::agent::saved_state::SavedState;
use crate::network::{Addresses, NetConf};
use crate::node::{Interfaces, Node, Selection, Uplink, UplinkHints, uplink};
use crate::observe::StoreState;
use cni::causes;

/// Which store to use, and how to reach it.
pub(crate) enum StoreConfig {
    File(file::FileStoreConfig),
    Etcd(Box<etcd::EtcdStoreConfig>),
    Kube(Box<kube::KubeStoreConfig>),
}

/// A store in use.
pub(crate) enum Store {
    File(Box<file::FileStore>),
    Etcd(Box<etcd::EtcdStore>),
    Kube(Box<kube::KubeStore>),
}

/// Why a store gives no state for this node.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    File(#[from] Arc<file::Error>),
    #[error(transparent)]
    Etcd(#[from] etcd::Error),
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Uplink(#[from] Arc<uplink::Error>),
}

/// The result of most functions of the stores.
type Result<T, E = Error> = std::result::Result<T, E>;

/// Facts that a store may use to find this node.
#[derive(Clone, Copy)]
pub(crate) struct ViewContext<'a> {
    pub(crate) kernel: &'a Rtnl,
    /// The routes of the main table.
    pub(crate) routes: &'a [Route],
    pub(crate) selection: &'a Selection,
    /// The state that an earlier run of this node saved.
    pub(crate) saved: Option<&'a SavedState>,
    /// The uplink so far.
    pub(crate) current_uplink: Option<&'a Uplink>,
    /// The addresses by which other nodes reach this one so far.
    pub(crate) own_addresses: Option<Addresses>,
    /// True if links, addresses or routes may have changed since the last view.
    pub(crate) network_changed: bool,
    /// True if the store also reads again what causes no event.
    pub(crate) is_resync: bool,
}

/// The content of a store at one moment.
pub(crate) struct View {
    /// This node, or why there is none. `None` before the first answer.
    pub(crate) node: Option<Result<Node>>,
    /// Problems with this node's lease.
    pub(crate) problems: Vec<Error>,
    /// Facts that should be corrected, although pods have their network.
    pub(crate) warnings: Vec<String>,
    pub(crate) state: StoreState,
}

/// The status of this node's network, for stores that publish it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetworkStatus {
    Ready,
    /// With the reason.
    NotReady(String),
}

impl StoreConfig {
    /// A name that distinguishes it from other stores. State that was saved from another store is
    /// ignored.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::File(config) => config.name(),
            Self::Etcd(config) => config.name(),
            Self::Kube(config) => config.name(),
        }
    }
}

impl Store {
    /// Opens a store. This node asks for the subnet that it had before, according to the subnet file
    /// and the saved state. Needs a tokio runtime.
    pub(crate) fn open(
        config: &StoreConfig,
        subnet_file: &Path,
        saved: Option<&SavedState>,
    ) -> Result<Self> {
        Ok(match config {
            StoreConfig::File(config) => {
                Self::File(Box::new(file::FileStore::open(config.clone())?))
            }
            StoreConfig::Etcd(config) => {
                let store = etcd::EtcdStore::start((**config).clone(), subnet_file, saved);
                Self::Etcd(Box::new(store))
            }
            StoreConfig::Kube(config) => {
                let store = kube::KubeStore::start((**config).clone(), saved)?;
                Self::Kube(Box::new(store))
            }
        })
    }

    /// Waits until the store may know something new.
    pub(crate) async fn changed(&self) {
        match self {
            Self::File(store) => store.changed().await,
            Self::Etcd(store) => store.changed().await,
            Self::Kube(store) => store.changed().await,
        }
    }

    /// Returns the store's present content.
    pub(crate) fn view(&mut self, context: ViewContext<'_>) -> View {
        match self {
            Self::File(store) => store.view(context),
            Self::Etcd(store) => store.view(context),
            Self::Kube(store) => store.view(context),
        }
    }

    /// Publishes whether pods of this node have their network, in stores that have a place for it.
    pub(crate) fn report_status(&self, status: Option<NetworkStatus>) {
        if let Self::Kube(store) = self {
            store.report_status(status);
        }
    }
}

impl<'a> ViewContext<'a> {
    /// The node's interfaces, as the kernel has them now.
    fn interfaces(self) -> Result<Interfaces<'a>, kernel::Error> {
        Interfaces::list(self.kernel, self.routes)
    }

    /// Selects the uplink.
    fn uplink(self, selection: &Selection, hints: UplinkHints<'_>) -> Result<Uplink> {
        let hints = UplinkHints {
            current: self.current_uplink,
            ..hints
        };
        let uplink = || selection.uplink(&self.interfaces()?, hints);
        Ok(uplink().map_err(Arc::new)?)
    }
}

/// A store's answer about this node.
enum Answer {
    /// The store was read: this node, or why it is not in the cluster.
    Node(Result<Box<Node>>),
    /// The store's configuration cannot be used.
    Invalid(Error),
    /// The store does not answer.
    Unreachable(Error),
    /// The store was not read yet, or this node has no lease yet.
    Pending,
}

/// A store's answer, after the saved state was considered.
struct Resolved {
    node: Option<Result<Node>>,
    problem: Option<Error>,
    /// Which warning to show about the store.
    warning: StoreWarning,
}

#[derive(Debug, PartialEq, Eq)]
enum StoreWarning {
    /// The store's own warning stays.
    Own,
    /// The saved state is used instead of the store.
    UsingSavedState(String),
    /// No warning is shown: the error of the node has the same reason.
    Replaced,
}

/// Combines a store's answer with the state that an earlier run saved: a node that starts while its
/// store is away, or has a broken configuration, keeps what it had.
fn resolve(
    answer: Answer,
    saved: Option<&SavedState>,
    uplink: impl FnOnce() -> Result<Uplink>,
) -> Resolved {
    let restore =
        |saved: &SavedState, uplink: Result<Uplink>| Some(uplink.map(|uplink| saved.node(uplink)));
    let (node, problem, warning) = match (answer, saved) {
        (Answer::Node(node), _) => (Some(node.map(|node| *node)), None, StoreWarning::Own),
        (Answer::Invalid(error), Some(saved)) => {
            (restore(saved, uplink()), Some(error), StoreWarning::Own)
        }
        (Answer::Invalid(error), None) => (Some(Err(error)), None, StoreWarning::Own),
        (Answer::Unreachable(error), Some(saved)) => {
            let warning = format!("{}; using the last known state", causes(&error));
            let warning = StoreWarning::UsingSavedState(warning);
            (restore(saved, uplink()), None, warning)
        }
        (Answer::Unreachable(error), None) => (Some(Err(error)), None, StoreWarning::Replaced),
        (Answer::Pending, _) => {
            let error = uplink().err();
            (error.map(Err), None, StoreWarning::Own)
        }
    };
    Resolved {
        node,
        problem,
        warning,
    }
}

impl Resolved {
    /// The view that the agent gets.
    fn into_view(
        self,
        mut state: StoreState,
        mut problems: Vec<Error>,
        warnings: Vec<String>,
    ) -> View {
        match self.warning {
            StoreWarning::Own => {}
            StoreWarning::UsingSavedState(warning) => state.warning = Some(warning),
            StoreWarning::Replaced => state.warning = None,
        }
        problems.extend(self.problem);
        View {
            node: self.node,
            problems,
            warnings,
            state,
        }
    }
}

/// Facts that decide about the uplink, besides flags and the kernel.
#[derive(Clone, Default, PartialEq, Eq)]
struct UplinkInputs {
    network: Option<NetConf>,
    /// Addresses that an administrator's annotations ask for.
    requested: Vec<std::net::IpAddr>,
    /// The addresses of the Kubernetes Node.
    internal: Addresses,
    /// The addresses that the other nodes used last.
    announced: Addresses,
}

/// Selects the uplink, and again only after something changed that it depends on.
#[derive(Default)]
struct UplinkFinder(Option<(UplinkInputs, Uplink)>);

impl UplinkFinder {
    fn find(&mut self, inputs: &UplinkInputs, context: ViewContext<'_>) -> Result<Uplink> {
        if let Some((known, uplink)) = &self.0
            && known == inputs
        {
            return Ok(uplink.clone());
        }
        let mut selection = context.selection.clone();
        if !inputs.requested.is_empty() {
            selection.public.clone_from(&inputs.requested);
        }
        let hints = UplinkHints {
            network: inputs.network.as_ref(),
            internal: inputs.internal,
            announced: inputs.announced,
            current: None,
        };
        let uplink = context.uplink(&selection, hints)?;
        self.0 = Some((inputs.clone(), uplink.clone()));
        Ok(uplink)
    }

    /// Forgets the uplink: links, addresses or routes changed.
    fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests;
