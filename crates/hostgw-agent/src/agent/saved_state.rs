//! The last good state, saved on disk: a node that boots while its store is away gets its subnet and
//! its routes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kernel::Rtnl;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::files;
use crate::network::{Addresses, EtcdLease, Lease, NetConf, Snapshot};
use crate::node::{Node, Uplink, UplinkHints};

/// The content of the file.
#[derive(Serialize, Deserialize)]
pub(crate) struct SavedState {
    /// The store that it comes from. State of another store is ignored.
    store: String,
    /// The machine that saved it. State of another machine is ignored.
    #[serde(flatten)]
    machine: Machine,
    /// The hardware address of the uplink.
    #[serde(default)]
    mac: Option<String>,
    /// The revision up to which the store was read, if the store has one.
    #[serde(default)]
    pub(crate) version: Option<String>,
    network: NetConf,
    leases: Vec<Lease>,
    /// This node's lease.
    own: Lease,
    /// This node's lease as etcd has it.
    #[serde(rename = "held")]
    pub(crate) etcd_lease: Option<EtcdLease>,
}

/// The identity of a machine. A copy of a virtual machine often has the same `machine`, but another
/// `product`.
#[derive(Serialize, Deserialize)]
struct Machine {
    /// `/etc/machine-id`
    machine: Option<String>,
    /// The UUID of the board or of the hypervisor.
    #[serde(default)]
    product: Option<String>,
}

/// Reads the state that `store` had, if it was saved on this machine. `None` without a file.
pub(crate) fn read(path: &Path, store: &str) -> Result<Option<SavedState>, files::Error> {
    let saved: Option<SavedState> = files::read_json(path)?;
    let is_ours =
        |saved: &SavedState| saved.store == store && saved.machine.matches(&Machine::this());
    Ok(saved.filter(is_ours))
}

impl SavedState {
    fn new(store: &str, node: &Node) -> Self {
        let leases = node.snapshot.leases.iter();
        Self {
            store: store.to_owned(),
            machine: Machine::this(),
            mac: node.uplink.link.mac.map(|mac| mac.to_string()),
            version: node.version.clone(),
            network: node.snapshot.network,
            leases: leases.map(|lease| (**lease).clone()).collect(),
            own: node.own.clone(),
            etcd_lease: node.etcd_lease.clone(),
        }
    }

    fn write(&self, path: &Path) -> Result<(), files::Error> {
        let text = serde_json::to_vec(self).expect("texts, numbers and lists");
        files::replace(path, &text, 0o600)
    }

    /// True if this node has one of the saved addresses, or an interface with the saved hardware
    /// address.
    pub(crate) fn is_of_this_node(&self, kernel: &Rtnl) -> Result<bool, kernel::Error> {
        let links = kernel.links()?;
        let mut macs = links.iter().filter_map(|link| link.mac);
        if macs.any(|mac| self.mac.as_ref() == Some(&mac.to_string())) {
            return Ok(true);
        }
        let addresses = kernel.all_addresses()?;
        let mut ours = self.addresses().all();
        Ok(ours.any(|ip| addresses.iter().any(|address| address.network.ip() == ip)))
    }

    /// The uplink that it contains.
    pub(crate) fn uplink_hints(&self) -> UplinkHints<'_> {
        UplinkHints {
            network: Some(&self.network),
            announced: self.addresses(),
            ..UplinkHints::default()
        }
    }

    /// The addresses by which this node was reached.
    pub(crate) fn addresses(&self) -> Addresses {
        self.own.addresses()
    }

    /// The saved node, with its present uplink.
    pub(crate) fn node(&self, uplink: Uplink) -> Node {
        Node {
            snapshot: Snapshot {
                network: self.network,
                leases: self.leases.iter().cloned().map(Arc::new).collect(),
            },
            own: self.own.clone(),
            uplink,
            etcd_lease: self.etcd_lease.clone(),
            version: self.version.clone(),
            from_saved_state: true,
        }
    }
}

impl Machine {
    /// The machine that we run on. A container may have no machine ID.
    fn this() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok();
        Self {
            machine: text("/etc/machine-id"),
            product: text("/sys/class/dmi/id/product_uuid"),
        }
    }

    /// True if no ID differs. An ID that is missing on one side is not compared: an earlier
    /// release did not save all IDs, and a container may not see all of them.
    fn matches(&self, other: &Self) -> bool {
        let differ = |own: &Option<String>, other: &Option<String>| {
            own.is_some() && other.is_some() && own != other
        };
        !differ(&self.machine, &other.machine) && !differ(&self.product, &other.product)
    }
}

/// The state that an earlier run saved, until the store has given a newer one.
pub(crate) struct RestoredState {
    saved: Option<SavedState>,
    /// True if it is of this node, as of the last change of its interfaces.
    is_of_this_node: bool,
}

impl RestoredState {
    pub(crate) fn new(saved: Option<SavedState>) -> Self {
        Self {
            saved,
            is_of_this_node: false,
        }
    }

    /// Checks again whether it is of this node.
    pub(crate) fn verify(&mut self, kernel: &Rtnl) -> Result<(), kernel::Error> {
        if let Some(saved) = &self.saved {
            self.is_of_this_node = saved.is_of_this_node(kernel)?;
        }
        Ok(())
    }

    /// The state, if it is of this node.
    pub(crate) fn get(&self) -> Option<&SavedState> {
        self.saved.as_ref().filter(|_| self.is_of_this_node)
    }

    /// Forgets the state: there is a newer one.
    pub(crate) fn discard(&mut self) {
        self.saved = None;
    }
}

/// Saves the state, on a thread of its own: a slow disk does not delay routes.
pub(crate) struct StateSaver {
    path: PathBuf,
    store: String,
    /// True if something changed since the last write began.
    is_dirty: bool,
    is_writing: bool,
    /// The result of the write in the background.
    result: Arc<Mutex<Option<Result<(), files::Error>>>>,
}

impl StateSaver {
    pub(crate) fn new(path: PathBuf, store: String) -> Self {
        Self {
            path,
            store,
            is_dirty: false,
            is_writing: false,
            result: Arc::default(),
        }
    }

    /// Notes that there is something new to save.
    pub(crate) fn mark_dirty(&mut self) {
        self.is_dirty = true;
    }

    /// Starts to write the state if it changed and no write is under way. Fails if the last write
    /// failed, and then writes again.
    pub(crate) fn save(&mut self, node: &Node) -> Result<(), files::Error> {
        let last = self
            .result
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.is_writing &= last.is_none();
        self.is_dirty |= matches!(last, Some(Err(_)));
        if self.is_dirty && !self.is_writing {
            self.is_dirty = false;
            self.is_writing = true;
            let (path, state) = (self.path.clone(), SavedState::new(&self.store, node));
            let result = Arc::clone(&self.result);
            spawn_blocking(move || {
                let written = state.write(&path);
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
            });
        }
        last.unwrap_or(Ok(()))
    }

    /// Writes the state and waits for it, before the agent exits.
    pub(crate) fn save_now(&self, node: &Node) -> Result<(), files::Error> {
        SavedState::new(&self.store, node).write(&self.path)
    }
}
