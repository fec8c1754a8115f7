//! File locks (flock(2)) with a timeout.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::{none_if_not_found, retry_on_eintr};

/// A lock that is held until the value is dropped. The kernel releases it if the process is killed.
#[derive(Debug)]
#[must_use = "dropping the lock releases it"]
pub struct FileLock(File);

/// The error if another process holds the lock for longer than the timeout.
#[derive(Debug, thiserror::Error)]
#[error("held for more than {waited:?} by {holder}")]
pub struct LockTimeout {
    /// How long we waited for the lock.
    waited: Duration,
    /// The process that holds the lock, if the kernel reports it.
    holder: String,
}

impl FileLock {
    /// Timeout for a lock. Everything that is done under a lock takes milliseconds, so a process
    /// that holds one this long is blocked, and the runtime should get an error.
    pub const WAIT: Duration = Duration::from_secs(10);

    /// Takes the lock on the file at `path`. Creates a missing file with mode 0600, and its
    /// directory.
    pub fn open(path: &Path) -> io::Result<Result<Self, LockTimeout>> {
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

    /// Takes the lock on an existing file, without writing anything. Returns `None` if the file
    /// does not exist.
    pub fn open_existing(path: &Path) -> io::Result<Option<Result<Self, LockTimeout>>> {
        none_if_not_found(File::open(path))?
            .map(Self::take)
            .transpose()
    }

    /// Takes the lock on `file`, and waits for it at most [`FileLock::WAIT`].
    pub fn take(file: File) -> io::Result<Result<Self, LockTimeout>> {
        let metadata = retry_on_eintr(|| file.metadata())?;
        let waited = Self::WAIT;
        Ok(match wait(file, waited)? {
            Some(file) => Ok(Self(file)),
            None => Err(LockTimeout {
                waited,
                holder: holder(&metadata),
            }),
        })
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Unlock explicitly: the lock belongs to the open file, which clones may share, and closing
        // this one would not release it.
        drop(retry_on_eintr(|| self.0.unlock()));
    }
}

/// Waits for the lock, for at most `timeout`. Returns `None` on timeout.
fn wait(file: File, timeout: Duration) -> io::Result<Option<File>> {
    if try_lock(&file)? {
        return Ok(Some(file));
    }
    // flock(2) has no timeout, and polling would let many other waiters pass. So a thread waits in
    // the kernel's queue, and this one waits for the thread. If the thread does not finish in time,
    // the process is about to exit anyway, which ends the thread.
    let (locked, result) = mpsc::channel();
    let waiting = file.try_clone()?;
    let thread = thread::Builder::new().spawn(move || {
        let outcome = retry_on_eintr(|| waiting.lock());
        drop(locked.send(outcome));
    });
    if thread.is_ok() {
        let outcome = result.recv_timeout(timeout).ok().transpose();
        return Ok(outcome?.map(|()| file));
    }
    // If no thread can be created, poll instead.
    let until = Instant::now() + timeout;
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
        if try_lock(&file)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn try_lock(file: &File) -> io::Result<bool> {
    retry_on_eintr(|| match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    })
}

/// Returns the process that holds the lock on `file`: its PID and the name of its program.
fn holder(file: &fs::Metadata) -> String {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    // "1: FLOCK  ADVISORY  WRITE 4242 00:1b:1177 0 EOF"; waiting processes have an arrow after the
    // number. The device is not compared: some file systems report another one here than in
    // stat(2).
    let pid = locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = words[..] else {
            return None;
        };
        let inode = place.rsplit(':').next()?.parse::<u64>().ok()?;
        (inode == file.ino()).then_some(pid)
    });
    let Some(pid) = pid else {
        return "a process that is not visible from here".to_owned();
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
    fn the_error_names_the_process_that_holds_the_lock() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let metadata = file.as_file().metadata().expect("the file exists");
        assert!(holder(&metadata).starts_with("a process that is not visible"));
        let lock = FileLock::take(file.reopen().expect("the file exists")).expect("can be locked");
        let lock = lock.expect("nobody holds it");
        let holder_text = holder(&metadata);
        let pid = format!("process {} (", std::process::id());
        assert!(holder_text.starts_with(&pid), "{holder_text}");
        drop(lock);
        assert!(holder(&metadata).starts_with("a process that is not visible"));
    }
}
