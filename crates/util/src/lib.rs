//! Helpers that all crates share: files, file locks, interrupted system calls, hashes.

mod lock;

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub use lock::{FileLock, LockTimeout};

/// Replaces a file atomically, or creates it and its directory. A reader, and a crash, see either
/// the old or the new content: the new one is on the disk before it gets the name of the old one.
/// `mode` contains the permission bits, whatever the umask is.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Returns `None` if the error says that the file does not exist. All other errors are returned.
pub fn none_if_not_found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// True if the file does not exist, or cannot exist because of its name.
fn is_not_found(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename
    )
}

/// Calls `call` again as long as a signal interrupts it (EINTR). Gives up after 1,000 tries.
pub fn retry_on_eintr<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const TRIES: usize = 1000;
    for _ in 1..TRIES {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    call()
}

/// Hashes with FNV-1a, 32 bits. The result is the same for all builds and machines, which the hasher
/// of std does not guarantee.
#[must_use]
pub fn fnv1a_32(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

/// Hashes with FNV-1a, 64 bits.
#[must_use]
pub fn fnv1a_64(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Returns the first 32 hexadecimal digits of a hash of at least 16 bytes.
#[must_use]
pub fn hex_128(hash: &[u8]) -> String {
    let first = hash.first_chunk().expect("a hash has at least 16 bytes");
    format!("{:032x}", u128::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_created_with_its_directory_and_replaced_with_its_mode() {
        let dir = tempfile::tempdir().expect("the system has a temporary directory");
        let path = dir.path().join("a/b");
        for (content, mode) in [("old and long", 0o644), ("new", 0o600)] {
            replace(&path, content.as_bytes(), mode).expect("writable");
            assert_eq!(fs::read_to_string(&path).expect("exists"), content);
            let metadata = fs::metadata(&path).expect("exists");
            assert_eq!(metadata.permissions().mode() & 0o7777, mode);
        }
        let names = fs::read_dir(dir.path().join("a")).expect("exists");
        assert_eq!(names.count(), 1, "no temporary file is left");
    }

    #[test]
    fn hashes_are_those_of_the_definition() {
        // Test vectors of the FNV reference code.
        assert_eq!(fnv1a_32(b"foobar"), 0xbf9c_f968);
        assert_eq!(fnv1a_64(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(
            hex_128(&[0, 1, 0xab, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 9]),
            "0001ab000000000000000000000000ff"
        );
    }

    #[test]
    fn only_errors_that_mean_an_absent_file_become_none() {
        let missing = none_if_not_found(fs::metadata("/proc/none"));
        assert!(missing.expect("not an error").is_none());
        let below_a_file = none_if_not_found(fs::metadata("/proc/self/status/none"));
        assert!(below_a_file.expect("not an error").is_none());
        let too_long = none_if_not_found(fs::metadata("n".repeat(300)));
        assert!(too_long.expect("not an error").is_none());
        let other = none_if_not_found::<()>(Err(ErrorKind::PermissionDenied.into()));
        assert_eq!(
            other.expect_err("an error").kind(),
            ErrorKind::PermissionDenied
        );
    }

    #[test]
    fn interrupted_calls_are_repeated_but_not_for_ever() {
        let mut calls = 0;
        let outcome = retry_on_eintr(|| {
            calls += 1;
            if calls < 3 {
                Err(ErrorKind::Interrupted.into())
            } else {
                Ok(calls)
            }
        });
        assert_eq!(outcome.expect("the third call succeeds"), 3);
        let always = retry_on_eintr::<()>(|| Err(ErrorKind::Interrupted.into()));
        assert_eq!(always.expect_err("gives up").kind(), ErrorKind::Interrupted);
    }
}
