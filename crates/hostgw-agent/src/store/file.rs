//! A file that is watched: `cluster.json`, which is a store by itself, and `net-conf.json`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// A file, and the kernel's notices about its folder.
pub(crate) struct Watched<T> {
    path: PathBuf,
    parse: fn(&str) -> Result<T, String>,
    watcher: RecommendedWatcher,
    touched: Arc<Notify>,
    /// Whether the file may say something else than when it was last read.
    is_stale: Arc<AtomicBool>,
    latest: Option<Result<T, Error>>,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {reason}")]
    Content { path: PathBuf, reason: String },
    #[error("watch for changes of files")]
    Watch(#[source] notify::Error),
}

impl<T> Watched<T> {
    /// A file that is read by `parse`, which says what is wrong with a text.
    pub(crate) fn new(path: PathBuf, parse: fn(&str) -> Result<T, String>) -> Result<Self, Error> {
        let touched = Arc::new(Notify::new());
        let is_stale = Arc::new(AtomicBool::new(true));
        let (notice, stale) = (Arc::clone(&touched), Arc::clone(&is_stale));
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an event too; what could not be read may be anything.
            if event.is_ok_and(|event| is_reading(event.kind)) {
                return;
            }
            stale.store(true, Ordering::Relaxed);
            notice.notify_one();
        });
        let watcher = watcher.map_err(Error::Watch)?;
        let mut store = Self {
            path,
            parse,
            watcher,
            touched,
            is_stale,
            latest: None,
        };
        store.watch();
        Ok(store)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
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

    /// What the file says. It is read where something was touched since, or where `anew` says so.
    pub(crate) fn latest(&mut self, anew: bool) -> &Result<T, Error> {
        let is_stale = self.is_stale.swap(false, Ordering::Relaxed) || anew;
        let latest = self.latest.take().filter(|_| !is_stale);
        let latest = latest.unwrap_or_else(|| self.read());
        self.latest.insert(latest)
    }

    fn read(&self) -> Result<T, Error> {
        let path = || self.path.clone();
        let text = fs::read_to_string(&self.path);
        let text = text.map_err(|source| Error::Read {
            path: path(),
            source,
        })?;
        (self.parse)(&text).map_err(|reason| Error::Content {
            path: path(),
            reason,
        })
    }
}

fn is_reading(kind: EventKind) -> bool {
    let written = AccessKind::Close(AccessMode::Write);
    matches!(kind, EventKind::Access(access) if access != written)
}
