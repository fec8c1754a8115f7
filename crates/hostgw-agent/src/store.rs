//! Where leases come from, and how this node is found among them.

mod cluster;
pub(crate) mod etcd;
pub(crate) mod file;
pub(crate) mod kube;
mod shared;

use std::path::{Path, PathBuf};

use kernel::{Route, Rtnl};
use subnet_env::SubnetEnv;
use tokio::time::Instant;

pub(crate) use cluster::parse as parse_cluster;

use crate::cache::Kept;
use crate::error::chain;
use crate::lease::{Addresses, Snapshot};
use crate::node::Node;
use crate::state::StoreState;
use crate::uplink::{Interfaces, Knowledge, Selection, Uplink};
use etcd::{EtcdStore, Options, Place, Subnets};
use file::Watched;
use kube::{Kube, Verdict};

/// Which store, and where it is.
pub(crate) enum Settings {
    File {
        path: PathBuf,
        /// This node's name there.
        node_name: Option<String>,
    },
    Etcd(Box<Options>),
    Kube(Box<kube::Options>),
}

/// A store in use.
pub(crate) enum Store {
    File {
        cluster: Box<Watched<Snapshot>>,
        node_name: Option<String>,
    },
    Etcd {
        store: EtcdStore,
        /// This node's interface, as of the last notice of a change there.
        uplink: Option<Result<Uplink, String>>,
    },
    Kube(Box<Kube>),
}

/// What there is to be known beside the store.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) kernel: &'a Rtnl,
    /// Those of the main table.
    pub(crate) routes: &'a [Route],
    pub(crate) selection: &'a Selection,
    /// The last good state of an earlier run of this node.
    pub(crate) kept: Option<&'a Kept>,
    /// The interface so far.
    pub(crate) before: Option<&'a Uplink>,
    /// The addresses by which the others reach this node so far.
    pub(crate) own: Option<Addresses>,
    /// Whether links, addresses or routes may have changed since the last time.
    pub(crate) has_moved: bool,
    /// Whether what makes no notice is worth a look.
    pub(crate) is_slow: bool,
}

impl<'a> Surroundings<'a> {
    /// The interface to the other nodes, by what is known of it beside the last one.
    fn uplink(self, selection: &Selection, known: Knowledge<'_>) -> Result<Uplink, String> {
        let known = Knowledge {
            before: self.before,
            ..known
        };
        let found = selection.uplink(&self.interfaces()?, known);
        found.map_err(|error| chain(&error))
    }

    /// The node's interfaces, asked for anew.
    fn interfaces(self) -> Result<Interfaces<'a>, String> {
        Interfaces::list(self.kernel, self.routes).map_err(|error| chain(&error))
    }
}

/// What a store says at one moment.
pub(crate) struct View {
    /// This node, or why there is none. Nothing before the store has said anything.
    pub(crate) node: Option<Result<Node, String>>,
    /// What is wrong with this node's lease.
    pub(crate) troubles: Vec<String>,
    /// What is to be put right, and does not keep pods from having their network.
    pub(crate) warnings: Vec<String>,
    pub(crate) state: StoreState,
}

impl Settings {
    /// What tells it from other stores.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::File { path, .. } => format!("file {}", path.display()),
            Self::Etcd(options) => format!("etcd {}", options.prefix.trim_end_matches('/')),
            Self::Kube(options) => options.name(),
        }
    }
}

impl Store {
    /// Begins. What this node had before it is to have again: by the subnet file, and by what was
    /// kept. Needs a tokio runtime.
    pub(crate) fn open(
        settings: &Settings,
        subnet_file: &Path,
        kept: Option<&Kept>,
    ) -> Result<Self, file::Error> {
        Ok(match settings {
            Settings::File { path, node_name } => Self::File {
                cluster: Box::new(Watched::new(path.clone(), cluster::parse)?),
                node_name: node_name.clone(),
            },
            Settings::Etcd(options) => {
                let held = kept.and_then(|kept| kept.held.as_ref());
                let file = SubnetEnv::read(subnet_file).ok();
                let before = file.iter().map(Subnets::of_file);
                let cached = held.iter().filter_map(|held| held.name.parse().ok());
                let previous = before.chain(cached).collect();
                Self::Etcd {
                    store: EtcdStore::start((**options).clone(), previous),
                    uplink: None,
                }
            }
            Settings::Kube(options) => {
                let version = kept.and_then(|kept| kept.version.clone());
                Self::Kube(Box::new(Kube::start((**options).clone(), version)?))
            }
        })
    }

    /// Waits until something changed.
    pub(crate) async fn changed(&self) {
        match self {
            Self::File { cluster, .. } => cluster.changed().await,
            Self::Etcd { store, .. } => store.changed().await,
            Self::Kube(kube) => kube.changed().await,
        }
    }

    /// What it says now.
    pub(crate) fn view(&mut self, around: Surroundings<'_>) -> View {
        match self {
            Self::File { cluster, node_name } => view_file(cluster, node_name.as_deref(), around),
            Self::Etcd { store, uplink } => view_etcd(store, uplink, around),
            Self::Kube(kube) => kube.view(around),
        }
    }

    /// Tells it how this node is, where it wants to know.
    pub(crate) fn tell(&self, verdict: Option<Verdict>) {
        if let Self::Kube(kube) = self {
            kube.tell(verdict);
        }
    }
}

fn view_file(
    cluster: &mut Watched<Snapshot>,
    node_name: Option<&str>,
    around: Surroundings<'_>,
) -> View {
    if around.is_slow {
        cluster.watch();
    }
    let latest = cluster.latest(around.is_slow);
    let is_reached = !matches!(latest, Err(file::Error::Read { .. }));
    let find = |snapshot: &Snapshot| {
        let interfaces = around.interfaces()?;
        let known = Knowledge {
            announced: around
                .own
                .or(around.kept.map(Kept::addresses))
                .unwrap_or_default(),
            before: around.before,
            ..Knowledge::default()
        };
        let found = around
            .selection
            .find(node_name, &interfaces, snapshot, known);
        let (own, uplink) = found.map_err(|error| chain(&error))?;
        Ok(Node {
            snapshot: snapshot.clone(),
            own,
            uplink,
            held: None,
            version: None,
            is_kept: false,
        })
    };
    let mut troubles = Vec::new();
    let node = match (latest, around.kept) {
        // A node that starts while the file is broken has what it had.
        (Err(error), Some(kept)) => {
            troubles.push(chain(error));
            let found = around.uplink(around.selection, kept.knowledge());
            found.map(|uplink| kept.node(uplink))
        }
        (latest, _) => latest.as_ref().map_err(|error| chain(error)).and_then(find),
    };
    View {
        node: Some(node),
        troubles,
        warnings: Vec::new(),
        state: StoreState {
            is_reached,
            ..StoreState::default()
        },
    }
}

fn view_etcd(
    store: &EtcdStore,
    uplink: &mut Option<Result<Uplink, String>>,
    around: Surroundings<'_>,
) -> View {
    let report = store.report();
    let network = report
        .snapshot
        .as_ref()
        .and_then(|snapshot| snapshot.as_ref().ok());
    let network = network.map(|snapshot| &snapshot.network);
    if around.has_moved {
        *uplink = None;
    }
    let memory = around.kept.and_then(|kept| kept.held.as_ref());
    let find = || {
        let held = report.own.as_ref().map(|(_, held)| held).or(memory);
        let known = Knowledge {
            network,
            announced: held.map(|held| held.addresses).unwrap_or_default(),
            ..Knowledge::default()
        };
        around.uplink(around.selection, known)
    };
    let uplink = uplink.get_or_insert_with(find).clone();
    if let Ok(uplink) = &uplink {
        store.set_place(Place {
            addresses: uplink.public(None),
            memory: memory.cloned(),
        });
    }
    let mut state = StoreState {
        name: String::new(),
        is_reached: report.unreachable.is_none() && report.snapshot.is_some(),
        warning: report.unreachable.clone(),
        revision: report.revision,
        heard: report.heard,
        expires: report.expires,
    };
    let mut troubles: Vec<_> = report.trouble.into_iter().collect();
    if troubles.is_empty() && report.expires.is_some_and(|end| end <= Instant::now()) {
        troubles.push("this node's lease has run out, and was not taken again yet".to_owned());
    }
    let kept = |uplink: Result<Uplink, String>| {
        let kept = around.kept?;
        Some(uplink.map(|uplink| kept.node(uplink)))
    };
    let node = match (report.snapshot, report.own, report.unreachable) {
        (Some(Ok(snapshot)), Some((own, held)), _) => Some(uplink.map(|uplink| Node {
            snapshot,
            own: (*own).clone(),
            uplink,
            held: Some(held),
            version: None,
            is_kept: false,
        })),
        // A node that starts while the configuration is broken has what it had.
        (Some(Err(reason)), None, _) if around.kept.is_some() => {
            troubles.push(reason);
            kept(uplink)
        }
        (Some(Err(reason)), ..) => Some(Err(reason)),
        (_, _, Some(reason)) if around.kept.is_some() => {
            state.warning = Some(format!("{reason}; going by what it said last"));
            kept(uplink)
        }
        (_, _, Some(reason)) => {
            state.warning = None;
            Some(Err(reason))
        }
        // Nothing was said yet, or the lease is still to be had.
        _ => uplink.err().map(Err),
    };
    View {
        node,
        troubles,
        warnings: report.warning.into_iter().collect(),
        state,
    }
}
