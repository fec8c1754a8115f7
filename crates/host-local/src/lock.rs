//! The lock of a store: flock(2) on a file that host-local takes too.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::time::Duration;

/// Takes the lock, waiting for it no longer than `patience`; nothing when that is over.
///
/// A holder that is killed lets go: the kernel sees to it.
pub(crate) fn lock(file: File, patience: Duration) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => return Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => {}
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    // flock(2) has no time limit, and asking again and again would come last in a queue of
    // many; so a thread waits in the kernel's queue, and we wait for the thread. If it does not
    // come back in time, the process is about to end, and the thread with it.
    let (locked, result) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = file.lock().map(|()| file);
        drop(locked.send(outcome));
    });
    result.recv_timeout(patience).ok().transpose()
}

/// Which process holds the lock on `file`: its number and its program's name.
pub(crate) fn holder(file: &fs::Metadata) -> String {
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
