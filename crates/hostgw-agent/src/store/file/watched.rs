//! A file that is read again when it changes: `cluster.json`, or the `net-conf.json` of Kubernetes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// The parsed content of a file, or why it cannot be used.
type Parsed<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A file, and a watch on its folder.
pub(crate) struct WatchedFile<T> {
    path: PathBuf,
    parse: fn(&[u8]) -> Parsed<T>,
    watcher: RecommendedWatcher,
    touched: Arc<Notify>,
    /// True if the file may have changed since it was read.
    is_stale: Arc<AtomicBool>,
    latest: Option<Result<T, Arc<Error>>>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}")]
    Content {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("watch files for changes")]
    Watch(#[source] notify::Error),
}

impl Error {
    /// True if the file could not be read.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Read { .. })
    }
}

impl<T> WatchedFile<T> {
    /// Watches a file, which `parse` reads.
    pub(crate) fn new(path: PathBuf, parse: fn(&[u8]) -> Parsed<T>) -> Result<Self, Error> {
        let touched = Arc::new(Notify::new());
        let is_stale = Arc::new(AtomicBool::new(true));
        let (notice, stale) = (Arc::clone(&touched), Arc::clone(&is_stale));
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reads cause events, too. An event that cannot be decoded counts as a change.
            if event.is_ok_and(|event| is_read(event.kind)) {
                return;
            }
            stale.store(true, Ordering::Relaxed);
            notice.notify_one();
        });
        let mut file = Self {
            path,
            parse,
            watcher: watcher.map_err(Error::Watch)?,
            touched,
            is_stale,
            latest: None,
        };
        file.watch();
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Watches the folder, because editors and configuration managers replace the file. Called
    /// again at each resync: the folder may be created late, or be replaced itself.
    pub(crate) fn watch(&mut self) {
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        // If the folder is missing, reading the file fails later, with a reason.
        drop(self.watcher.watch(folder, RecursiveMode::NonRecursive));
    }

    /// Waits until something changes in the directory.
    pub(crate) async fn changed(&self) {
        self.touched.notified().await;
    }

    /// The file's content. It is read if something was touched since the last time, or with
    /// `reread`.
    pub(crate) fn latest(&mut self, reread: bool) -> &Result<T, Arc<Error>> {
        let is_stale = self.is_stale.swap(false, Ordering::Relaxed) || reread;
        let latest = self.latest.take().filter(|_| !is_stale);
        let latest = latest.unwrap_or_else(|| self.read().map_err(Arc::new));
        self.latest.insert(latest)
    }

    fn read(&self) -> Result<T, Error> {
        let path = || self.path.clone();
        let text = fs::read(&self.path).map_err(|source| Error::Read {
            path: path(),
            source,
        })?;
        (self.parse)(&text).map_err(|source| Error::Content {
            path: path(),
            source,
        })
    }
}

fn is_read(kind: EventKind) -> bool {
    let written = AccessKind::Close(AccessMode::Write);
    matches!(kind, EventKind::Access(access) if access != written)
}
