//! Network namespaces as values.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, NSFS_MAGIC, fstatfs};
use nix::unistd::{getpid, gettid};

use crate::Error;
use crate::error::{NotNamespace, uninterrupted};

// Each thread has a namespace of its own, and `/proc/self` is the main thread: two folders less
// for the kernel to make up, some 10 µs.
const OF_MAIN_THREAD: &str = "/proc/self/ns/net";
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// A network namespace, held open: it lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: (u64, u64),
    name: String,
}

/// The namespace that this thread is in, and comes back to.
#[derive(Debug)]
pub struct Home(Netns);

impl Netns {
    /// The namespace at `path`: a bind mount, or a process's `/proc/<pid>/ns/net`.
    ///
    /// Whatever is not a namespace is refused by its file system.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let failed = |error| Error::new(format!("open the network namespace {name}"), error);
        // Whatever stands at the path, opening it must not wait for anybody.
        let mut options = File::options();
        options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = options.open(path).map_err(failed)?;
        let kind = uninterrupted(|| Ok(fstatfs(&file)?))
            .map_err(|error| Error::new(format!("look at the network namespace {name}"), error))?
            .filesystem_type();
        if kind != NSFS_MAGIC {
            let FsType(magic) = kind;
            return Err(Error::new(
                format!("open the network namespace {name}"),
                NotNamespace(magic),
            ));
        }
        let metadata = uninterrupted(|| file.metadata()).map_err(failed)?;
        Ok(Self {
            file,
            id: (metadata.dev(), metadata.ino()),
            name,
        })
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Home {
    /// The namespace of this thread, which no other thread is to use.
    pub fn current() -> Result<Self, Error> {
        let is_main = getpid() == gettid();
        let path = if is_main {
            OF_MAIN_THREAD
        } else {
            OF_THIS_THREAD
        };
        Netns::open(Path::new(path)).map(Self)
    }

    /// Whether `netns` is this one.
    #[must_use]
    pub fn is(&self, netns: &Netns) -> bool {
        self.0.id == netns.id
    }

    /// Runs `visit` with this thread in `netns`, and comes back whatever happens.
    ///
    /// Meant for opening a socket or writing a sysctl. `visit` is no async function on
    /// purpose: at an await, another task would find itself in a foreign namespace.
    pub fn visit<T>(&self, netns: &Netns, visit: impl FnOnce() -> T) -> Result<T, Error> {
        switch(&netns.file).map_err(|error| {
            Error::new(format!("enter the network namespace {}", netns.name), error)
        })?;
        let _back = Back(&self.0.file);
        Ok(visit())
    }
}

struct Back<'a>(&'a File);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        const TRIES: usize = 10;
        let went = (0..TRIES).any(|_| switch(self.0).is_ok());
        // In a namespace that is not ours, every further step would do harm.
        assert!(went, "cannot return to the node's network namespace");
    }
}

fn switch(namespace: &File) -> io::Result<()> {
    uninterrupted(|| Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?))
}
