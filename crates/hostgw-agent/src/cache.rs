//! The last good state, on disk: a node that boots while its store is away comes up with its
//! subnet and its routes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::files;
use crate::lease::{Addresses, Held, Lease, Snapshot};
use crate::net_conf::NetConf;
use crate::node::Node;
use crate::uplink::Uplink;

/// What is kept.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Which store said so: another one's word does not count.
    store: String,
    /// On which machine: an image that is copied to another is not this node.
    machine: Option<String>,
    network: NetConf,
    leases: Vec<Lease>,
    /// This node's lease.
    own: Lease,
    /// The same, as etcd has it.
    pub(crate) held: Option<Held>,
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
            machine: machine(),
            network: node.snapshot.network,
            leases: leases.map(|lease| (**lease).clone()).collect(),
            own: node.own.clone(),
            held: node.held.clone(),
        }
    }
}

/// What systemd calls the machine.
fn machine() -> Option<String> {
    fs::read_to_string("/etc/machine-id").ok()
}

/// What is kept in `path` of what `store` said.
pub(crate) fn read(path: &Path, store: &str) -> Result<Option<Kept>, String> {
    let Some(text) = files::read(path)? else {
        return Ok(None);
    };
    let kept: Kept =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(kept).filter(|kept| kept.store == store && kept.machine == machine()))
}

impl Kept {
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
            is_kept: true,
        }
    }
}

fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    files::replace(path, &serde_json::to_vec(kept)?, 0o600)
}
