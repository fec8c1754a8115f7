//! The `file` store: one `cluster.json` with the network and its nodes, watched.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::lease::Snapshot;
use crate::store::cluster;

/// A cluster file and the kernel's notices about its folder.
pub(crate) struct FileStore {
    path: PathBuf,
    watcher: RecommendedWatcher,
    touched: Arc<Notify>,
}

/// Why a cluster file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    Content { path: PathBuf, reason: String },
    #[error("watch for changes of files")]
    Watch(#[source] notify::Error),
}

impl FileStore {
    pub(crate) fn new(path: PathBuf) -> Result<Self, Error> {
        let touched = Arc::new(Notify::new());
        let notice = Arc::clone(&touched);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an event too; what could not be read may be anything.
            if event.is_ok_and(|event| is_reading(event.kind)) {
                return;
            }
            notice.notify_one();
        });
        let watcher = watcher.map_err(Error::Watch)?;
        let mut store = Self {
            path,
            watcher,
            touched,
        };
        store.watch();
        Ok(store)
    }

    /// Watches the folder, because editors and configuration managers replace the file. Asked
    /// again and again: the folder may come late, or be replaced itself.
    pub(crate) fn watch(&mut self) {
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        // Where there is no folder yet, reading the file says so.
        drop(self.watcher.watch(
            folder.unwrap_or(Path::new(".")),
            RecursiveMode::NonRecursive,
        ));
    }

    /// Waits until something in the folder was touched.
    pub(crate) async fn changed(&self) {
        self.touched.notified().await;
    }

    /// Reads the whole file.
    pub(crate) fn read(&self) -> Result<Snapshot, Error> {
        let path = || self.path.clone();
        let text = fs::read_to_string(&self.path);
        let text = text.map_err(|source| Error::Read {
            path: path(),
            source,
        })?;
        cluster::parse(&text).map_err(|reason| Error::Content {
            path: path(),
            reason,
        })
    }
}

fn is_reading(kind: EventKind) -> bool {
    let written = AccessKind::Close(AccessMode::Write);
    matches!(kind, EventKind::Access(access) if access != written)
}
