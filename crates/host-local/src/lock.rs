//! flock(2) with a limit to the wait.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::files::{uninterrupted, unless_absent};

/// A lock that is held until the value goes. The kernel lets go of one whose holder is killed.
#[derive(Debug)]
#[must_use = "a lock that is dropped is let go"]
pub struct FileLock(File);

/// Somebody else holds the lock for too long.
#[derive(Debug, thiserror::Error)]
#[error("held for more than {waited:?} by {holder}")]
pub struct StillLocked {
    /// How long we waited.
    waited: Duration,
    /// Which process holds it, as far as the kernel tells.
    holder: String,
}

impl FileLock {
    /// How long to wait for a holder. Everything under a lock takes milliseconds, so one that is
    /// this slow is stuck, and the runtime had better hear of it.
    pub const WAIT: Duration = Duration::from_secs(10);

    /// Takes the lock on the file at `path`, which is made where it is missing, for nobody but its
    /// owner to open.
    pub fn open(path: &Path) -> io::Result<Result<Self, StillLocked>> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                options.open(path)?
            }
            other => other?,
        };
        Self::take(file)
    }

    /// The same on a file that is there; nothing where there is none. Nothing is written.
    pub fn open_existing(path: &Path) -> io::Result<Option<Result<Self, StillLocked>>> {
        unless_absent(File::open(path))?.map(Self::take).transpose()
    }

    /// Takes the lock on `file`, waiting no longer than [`FileLock::WAIT`].
    pub fn take(file: File) -> io::Result<Result<Self, StillLocked>> {
        let metadata = uninterrupted(|| file.metadata())?;
        let waited = Self::WAIT;
        Ok(match wait(file, waited)? {
            Some(file) => Ok(Self(file)),
            None => Err(StillLocked {
                waited,
                holder: holder(&metadata),
            }),
        })
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Others may have the same file open, and the lock is the file's.
        drop(uninterrupted(|| self.0.unlock()));
    }
}

/// Waits for the lock no longer than `patience`; nothing when that is over.
fn wait(file: File, patience: Duration) -> io::Result<Option<File>> {
    if try_lock(&file)? {
        return Ok(Some(file));
    }
    // flock(2) has no time limit, and asking again and again would come last in a queue of
    // many; so a thread waits in the kernel's queue, and we wait for the thread. If it does not
    // come back in time, the process is about to end, and the thread with it.
    let (locked, result) = mpsc::channel();
    let waiting = file.try_clone()?;
    let thread = thread::Builder::new().spawn(move || {
        let outcome = uninterrupted(|| waiting.lock());
        drop(locked.send(outcome));
    });
    if thread.is_ok() {
        let outcome = result.recv_timeout(patience).ok().transpose();
        return Ok(outcome?.map(|()| file));
    }
    // Where no thread can be had, to come last is better than not to come.
    let until = Instant::now() + patience;
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
        if try_lock(&file)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn try_lock(file: &File) -> io::Result<bool> {
    uninterrupted(|| match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    })
}

/// Which process holds the lock on `file`: its number and its program's name.
fn holder(file: &fs::Metadata) -> String {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    // "1: FLOCK  ADVISORY  WRITE 4242 00:1b:1177 0 EOF"; who waits has an arrow behind the number.
    // The device is not compared: some file systems name another one here than stat(2) does.
    let pid = locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = words[..] else {
            return None;
        };
        let inode = place.rsplit(':').next()?.parse::<u64>().ok()?;
        (inode == file.ino()).then_some(pid)
    });
    let Some(pid) = pid else {
        return "a process that cannot be seen from here".to_owned();
    };
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("process {pid} ({})", name.trim_end()),
        Err(_) => format!("process {pid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let metadata = file.as_file().metadata().expect("is there");
        assert!(holder(&metadata).starts_with("a process that cannot be seen"));
        let lock = FileLock::take(file.reopen().expect("is there")).expect("can be locked");
        let lock = lock.expect("nobody holds it");
        let said = holder(&metadata);
        let pid = format!("process {} (", std::process::id());
        assert!(said.starts_with(&pid), "{said}");
        drop(lock);
        assert!(holder(&metadata).starts_with("a process that cannot be seen"));
    }
}
