//! The last good state, on disk: a node that boots while its store is away comes up with its
//! subnet and its routes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kernel::Rtnl;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::files;
use crate::lease::{Addresses, Held, Lease, Snapshot};
use crate::net_conf::NetConf;
use crate::node::Node;
use crate::uplink::{Knowledge, Uplink};

/// What is kept.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Which store said so: another one's word does not count.
    store: String,
    /// On which machine: what is copied to another is not of this node.
    #[serde(flatten)]
    machine: Machine,
    /// The hardware address of the interface to the others.
    #[serde(default)]
    mac: Option<String>,
    /// How far the store was read, as it said.
    #[serde(default)]
    pub(crate) version: Option<String>,
    network: NetConf,
    leases: Vec<Lease>,
    /// This node's lease.
    own: Lease,
    /// The same, as etcd has it.
    pub(crate) held: Option<Held>,
}

/// What an earlier run kept, while there is nothing newer.
pub(crate) struct Memory {
    kept: Option<Kept>,
    /// Whether it is of this node, as of the last notice of a change of its interfaces.
    is_here: bool,
}

impl Memory {
    pub(crate) fn new(kept: Option<Kept>) -> Self {
        Self {
            kept,
            is_here: false,
        }
    }

    /// Looks again whether it is of this node.
    pub(crate) fn compare(&mut self, kernel: &Rtnl) -> Result<(), kernel::Error> {
        if let Some(kept) = &self.kept {
            self.is_here = kept.is_here(kernel)?;
        }
        Ok(())
    }

    /// What is kept, where it is of this node.
    pub(crate) fn get(&self) -> Option<&Kept> {
        self.kept.as_ref().filter(|_| self.is_here)
    }

    /// There is something newer.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }
}

/// What tells one machine from another. A copy of a virtual machine often has the first, and not the
/// second.
#[derive(Serialize, Deserialize)]
struct Machine {
    /// As systemd calls it.
    machine: Option<String>,
    /// As its board or its hypervisor does.
    #[serde(default)]
    product: Option<String>,
}

/// The file that it is kept in.
pub(crate) struct Cache {
    path: PathBuf,
    store: String,
    /// Whether there is news since it was written.
    is_stale: bool,
    /// Whether it is being written, off the thread that everything else is done on.
    is_writing: bool,
    /// What became of that.
    outcome: Arc<Mutex<Option<io::Result<()>>>>,
}

impl Cache {
    pub(crate) fn new(path: PathBuf, store: String) -> Self {
        Self {
            path,
            store,
            is_stale: false,
            is_writing: false,
            outcome: Arc::default(),
        }
    }

    /// What was kept, if anything of use was.
    pub(crate) fn read(&self) -> Result<Option<Kept>, String> {
        read(&self.path, &self.store)
    }

    /// Remembers that there is something new to write.
    pub(crate) fn touch(&mut self) {
        self.is_stale = true;
    }

    /// Begins to write what there is, if it is new and nothing is being written. Says why the last
    /// time failed; then it is written again.
    pub(crate) fn write(&mut self, node: &Node) -> Result<(), String> {
        let last = self
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.is_writing &= last.is_none();
        self.is_stale |= matches!(last, Some(Err(_)));
        if self.is_stale && !self.is_writing {
            self.is_stale = false;
            self.is_writing = true;
            let (path, kept) = (self.path.clone(), self.kept(node));
            let outcome = Arc::clone(&self.outcome);
            spawn_blocking(move || {
                let written = write(&path, &kept);
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
            });
        }
        self.said(last.unwrap_or(Ok(())))
    }

    /// Writes what there is, before the end.
    pub(crate) fn finish(&self, node: &Node) -> Result<(), String> {
        self.said(write(&self.path, &self.kept(node)))
    }

    fn said(&self, written: io::Result<()>) -> Result<(), String> {
        written.map_err(|error| format!("write {}: {error}", self.path.display()))
    }

    fn kept(&self, node: &Node) -> Kept {
        let leases = node.snapshot.leases.iter();
        Kept {
            store: self.store.clone(),
            machine: Machine::this(),
            mac: node.uplink.link.mac.map(|mac| mac.to_string()),
            version: node.version.clone(),
            network: node.snapshot.network,
            leases: leases.map(|lease| (**lease).clone()).collect(),
            own: node.own.clone(),
            held: node.held.clone(),
        }
    }
}

impl Machine {
    /// This one. A container may not have the first.
    fn this() -> Self {
        let text = |path: &str| fs::read_to_string(path).ok();
        Self {
            machine: text("/etc/machine-id"),
            product: text("/sys/class/dmi/id/product_uuid"),
        }
    }

    /// Whether what was kept on it may be of `other`. An earlier release knew less, and a container does.
    fn is(&self, other: &Self) -> bool {
        let are_apart = |own: &Option<String>, other: &Option<String>| {
            own.is_some() && other.is_some() && own != other
        };
        !are_apart(&self.machine, &other.machine) && !are_apart(&self.product, &other.product)
    }
}

/// What is kept in `path` of what `store` said.
pub(crate) fn read(path: &Path, store: &str) -> Result<Option<Kept>, String> {
    let Some(text) = files::read(path)? else {
        return Ok(None);
    };
    let kept: Kept =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(kept).filter(|kept| kept.store == store && kept.machine.is(&Machine::this())))
}

impl Kept {
    /// Whether it is of this node: one that has its address, or an interface with its hardware address.
    pub(crate) fn is_here(&self, kernel: &Rtnl) -> Result<bool, kernel::Error> {
        let links = kernel.links()?;
        let mut macs = links.iter().filter_map(|link| link.mac);
        if macs.any(|mac| self.mac.as_ref() == Some(&mac.to_string())) {
            return Ok(true);
        }
        let addresses = kernel.all_addresses()?;
        let mut ours = self.addresses().all();
        Ok(ours.any(|ip| addresses.iter().any(|address| address.network.ip() == ip)))
    }

    /// What it tells of the interface to the others.
    pub(crate) fn knowledge(&self) -> Knowledge<'_> {
        Knowledge {
            network: Some(&self.network),
            announced: self.addresses(),
            ..Knowledge::default()
        }
    }

    /// By which addresses this node was reached.
    pub(crate) fn addresses(&self) -> Addresses {
        self.own.addresses()
    }

    /// This node, with the interface that it has now.
    pub(crate) fn node(&self, uplink: Uplink) -> Node {
        Node {
            snapshot: Snapshot {
                network: self.network,
                leases: self.leases.iter().cloned().map(Arc::new).collect(),
            },
            own: self.own.clone(),
            uplink,
            held: self.held.clone(),
            version: self.version.clone(),
            is_kept: true,
        }
    }
}

fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    files::replace(path, &serde_json::to_vec(kept)?, 0o600)
}
