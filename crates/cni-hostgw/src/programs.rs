//! Other programs, where they are needed: never for a plain ADD.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use host_local::{uninterrupted, unless_absent};
use rustix::fs::{MemfdFlags, memfd_create};

/// The executable called `name` in one of `folders`, which are joined by `:`. Errors where it cannot be
/// said whether it is there.
pub(crate) fn find(name: &str, folders: &str) -> io::Result<Option<PathBuf>> {
    for folder in folders.split(':').filter(|folder| !folder.is_empty()) {
        let path = Path::new(folder).join(name);
        match uninterrupted(|| fs::metadata(&path)) {
            Ok(metadata) if metadata.is_file() => return Ok(Some(path)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            other => {
                unless_absent(other)?;
            }
        }
    }
    Ok(None)
}

/// How a program ended, and what it printed.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// What becomes of what a program says on its standard error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stderr {
    /// It goes where ours goes.
    Inherited,
    /// It is part of the output.
    Captured,
}

/// How often a wait for a program is begun anew.
const WAITS: usize = 10;

/// Runs a program to its end, with `stdin` as its standard input.
///
/// What it reads and prints are files in memory. Unlike pipes, they never fill, and nobody has to
/// read and write at the same time.
pub(crate) fn run(command: &mut Command, stdin: &[u8], stderr: Stderr) -> io::Result<Output> {
    let mut input = memory()?;
    input.write_all(stdin)?;
    input.rewind()?;
    let (mut printed, mut said) = (memory()?, memory()?);
    command.stdin(input).stdout(printed.try_clone()?);
    if stderr == Stderr::Captured {
        command.stderr(said.try_clone()?);
    }
    let mut child = command.spawn()?;
    // While it runs, nobody knows what it still does.
    let mut status = child.wait();
    for _ in 0..WAITS {
        if status.is_err() {
            status = child.wait();
        }
    }
    let status = status?;
    let read = |file: &mut File| -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut text)?;
        Ok(text)
    };
    Ok(Output {
        status,
        stdout: read(&mut printed)?,
        stderr: read(&mut said)?,
    })
}

fn memory() -> io::Result<File> {
    let create = |flags| memfd_create("cni-hostgw", MemfdFlags::CLOEXEC | flags);
    // Some nodes allow no other; kernels before 6.3 do not know it.
    let file = create(MemfdFlags::NOEXEC_SEAL).or_else(|_| create(MemfdFlags::empty()));
    Ok(file?.into())
}
