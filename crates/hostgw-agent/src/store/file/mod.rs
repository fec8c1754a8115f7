//! The `file` store: `cluster.json` has the network and every node.

pub(crate) mod cluster;
mod watched;

use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use watched::{Error, WatchedFile};

use super::{Answer, Result, View, ViewContext, resolve};
use crate::agent::saved_state::SavedState;
use crate::network::Snapshot;
use crate::node::{Node, UplinkHints};
use crate::observe::StoreState;

/// Where the cluster file is, and which node this is.
#[derive(Clone)]
pub(crate) struct FileStoreConfig {
    pub(crate) path: PathBuf,
    /// This node's name in the file. Without it, the node is found by its addresses.
    pub(crate) node_name: Option<String>,
}

/// The cluster file, watched.
pub(crate) struct FileStore {
    cluster: WatchedFile<Snapshot>,
    node_name: Option<String>,
}

impl FileStoreConfig {
    pub(crate) fn name(&self) -> String {
        format!("file {}", self.path.display())
    }
}

impl FileStore {
    pub(crate) fn open(config: FileStoreConfig) -> Result<Self> {
        let parse = |text: &[u8]| cluster::parse(text).map_err(Into::into);
        Ok(Self {
            cluster: WatchedFile::new(config.path, parse).map_err(Arc::new)?,
            node_name: config.node_name,
        })
    }

    /// Waits until something in the file's folder changed.
    pub(crate) async fn changed(&self) {
        self.cluster.changed().await;
    }

    /// Returns the view of the file's present content.
    pub(crate) fn view(&mut self, context: ViewContext<'_>) -> View {
        if context.is_resync {
            self.cluster.watch();
        }
        let latest = self.cluster.latest(context.is_resync);
        let is_reached = !latest.as_ref().is_err_and(|error| error.is_unreadable());
        let answer = match latest {
            Ok(snapshot) => {
                let node = find(snapshot, self.node_name.as_deref(), context);
                Answer::Node(node.map(Box::new))
            }
            Err(error) => Answer::Invalid(Arc::clone(error).into()),
        };
        let hints = context.saved.map(SavedState::uplink_hints);
        let uplink = || context.uplink(context.selection, hints.unwrap_or_default());
        let state = StoreState {
            is_reached,
            ..StoreState::default()
        };
        resolve(answer, context.saved, uplink).into_view(state, Vec::new(), Vec::new())
    }
}

/// Finds this node in the cluster.
fn find(snapshot: &Snapshot, name: Option<&str>, context: ViewContext<'_>) -> Result<Node> {
    let announced = context
        .own_addresses
        .or(context.saved.map(SavedState::addresses));
    let hints = UplinkHints {
        announced: announced.unwrap_or_default(),
        current: context.current_uplink,
        ..UplinkHints::default()
    };
    let find = || {
        let interfaces = context.interfaces()?;
        context.selection.find(name, &interfaces, snapshot, hints)
    };
    let (own, uplink) = find().map_err(Arc::new)?;
    Ok(Node {
        snapshot: snapshot.clone(),
        own,
        uplink,
        etcd_lease: None,
        version: None,
        from_saved_state: false,
    })
}
