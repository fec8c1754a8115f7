//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, NSFS_MAGIC, fstatfs};
use nix::unistd::{getpid, gettid};
use util::retry_on_eintr;

use crate::Error;
use crate::error::NotNamespace;

// Each thread has its own namespace, but `/proc/self` is that of the main thread. For the main
// thread, it saves the kernel two directories to look up, about 10 µs.
const MAIN_THREAD_NETNS: &str = "/proc/self/ns/net";
const CURRENT_THREAD_NETNS: &str = "/proc/thread-self/ns/net";

/// An open network namespace. It exists at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: File,
    id: (u64, u64),
    name: String,
}

/// The namespace of this thread. The thread returns to it after it entered another one.
#[derive(Debug)]
pub struct HostNetns(Netns);

impl Netns {
    /// Opens the namespace at `path`: a bind mount, or a process's `/proc/<pid>/ns/net`.
    ///
    /// Fails if the file is not on the namespace file system (nsfs), so is not a namespace.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let failed = |error| Error::new(format!("open the network namespace {name}"), error);
        // Opening must never block, whatever kind of file is at the path.
        let mut options = File::options();
        options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = options.open(path).map_err(failed)?;
        let kind = retry_on_eintr(|| Ok(fstatfs(&file)?))
            .map_err(|error| {
                Error::new(
                    format!("check the file system of the network namespace {name}"),
                    error,
                )
            })?
            .filesystem_type();
        if kind != NSFS_MAGIC {
            let FsType(magic) = kind;
            return Err(Error::new(
                format!("open the network namespace {name}"),
                NotNamespace(magic),
            ));
        }
        let metadata = retry_on_eintr(|| file.metadata()).map_err(failed)?;
        Ok(Self {
            file,
            id: (metadata.dev(), metadata.ino()),
            name,
        })
    }

    /// Creates a namespace, which is deleted with this value. The thread stays in `home`.
    pub fn create(home: &HostNetns) -> Result<Self, Error> {
        let failed = |errno| Error::new("create a network namespace", errno);
        unshare(CloneFlags::CLONE_NEWNET).map_err(failed)?;
        let _back = ReturnGuard(&home.0.file);
        Self::open(Path::new(CURRENT_THREAD_NETNS))
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl HostNetns {
    /// Opens the namespace of this thread. The value must not be used on another thread.
    pub fn current() -> Result<Self, Error> {
        let is_main = getpid() == gettid();
        let path = if is_main {
            MAIN_THREAD_NETNS
        } else {
            CURRENT_THREAD_NETNS
        };
        Netns::open(Path::new(path)).map(Self)
    }

    /// True if `netns` is the same namespace.
    #[must_use]
    pub fn is(&self, netns: &Netns) -> bool {
        self.0.id == netns.id
    }

    /// Runs the closure with this thread in `netns`, and always returns to this namespace
    /// afterwards, even after a panic.
    ///
    /// Use it to open a socket or to write a sysctl. The closure is deliberately not async: at an
    /// await, another task would run in the wrong namespace.
    pub fn enter<T>(&self, netns: &Netns, enter: impl FnOnce() -> T) -> Result<T, Error> {
        set_netns(&netns.file).map_err(|error| {
            Error::new(format!("enter the network namespace {}", netns.name), error)
        })?;
        let _back = ReturnGuard(&self.0.file);
        Ok(enter())
    }
}

/// Moves this thread to a new network namespace for good, with a `/proc` of its own. Without the capability
/// `SYS_ADMIN`, the namespaces belong to a new user namespace, which requires that the process has no other thread.
pub fn isolate() -> Result<(), Error> {
    let namespaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let unshared = match unshare(namespaces) {
        Err(Errno::EPERM) => unshare(namespaces | CloneFlags::CLONE_NEWUSER),
        other => other,
    };
    unshared.map_err(|errno| Error::new("create a network namespace", errno))?;
    // In a container, sysctls are read-only below the `/proc` that it got. If a new one is refused, writing them
    // fails, unless the first one was enough.
    mount_proc().ok();
    Ok(())
}

/// Mounts `/proc` anew, in this thread's mount namespace only.
fn mount_proc() -> nix::Result<()> {
    let none = None::<&str>;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, flags, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)
}

struct ReturnGuard<'a>(&'a File);

impl Drop for ReturnGuard<'_> {
    fn drop(&mut self) {
        const TRIES: usize = 10;
        let returned = (0..TRIES).any(|_| set_netns(self.0).is_ok());
        // In the wrong namespace, every further step would do damage.
        assert!(returned, "cannot return to the node's network namespace");
    }
}

fn set_netns(namespace: &File) -> io::Result<()> {
    retry_on_eintr(|| Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?))
}
