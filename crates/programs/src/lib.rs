//! Runs other programs. A plain ADD does not need any.

pub mod iptables;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::fs::{MemfdFlags, memfd_create};
use util::{none_if_not_found, retry_on_eintr};

/// Finds the executable `name` in `directories`, a list separated by `:`. Returns an error if a
/// directory cannot be searched.
pub fn find(name: &str, directories: &str) -> io::Result<Option<PathBuf>> {
    for directory in directories.split(':').filter(|dir| !dir.is_empty()) {
        let path = Path::new(directory).join(name);
        match retry_on_eintr(|| fs::metadata(&path)) {
            Ok(metadata) if metadata.is_file() => return Ok(Some(path)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            other => {
                none_if_not_found(other)?;
            }
        }
    }
    Ok(None)
}

/// Exit status and output of a program.
#[derive(Debug)]
pub struct Output {
    /// How the program exited.
    pub status: ExitStatus,
    /// The standard output.
    pub stdout: Vec<u8>,
    /// The standard error, if it was [`Stderr::Captured`].
    pub stderr: Vec<u8>,
}

/// Destination of a program's standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stderr {
    /// The standard error of this process.
    Inherited,
    /// [`Output::stderr`], so that the caller gets it.
    Captured,
}

/// How often a failed wait for a program is repeated.
const WAIT_ATTEMPTS: usize = 10;

/// Runs a program until it exits, with `stdin` as its standard input.
///
/// Its standard input and output are files in memory. Unlike pipes, they never fill up, so reading
/// and writing need not be concurrent.
pub fn run(command: &mut Command, stdin: &[u8], stderr: Stderr) -> io::Result<Output> {
    let mut input = memory_file()?;
    input.write_all(stdin)?;
    input.rewind()?;
    let (mut stdout_file, mut stderr_file) = (memory_file()?, memory_file()?);
    command.stdin(input).stdout(stdout_file.try_clone()?);
    if stderr == Stderr::Captured {
        command.stderr(stderr_file.try_clone()?);
    }
    let mut child = command.spawn()?;
    // Retry a failed wait: while the program runs, its effects are not complete.
    let mut status = child.wait();
    for _ in 0..WAIT_ATTEMPTS {
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
        stdout: read(&mut stdout_file)?,
        stderr: read(&mut stderr_file)?,
    })
}

fn memory_file() -> io::Result<File> {
    let create = |flags| memfd_create("program", MemfdFlags::CLOEXEC | flags);
    // Some nodes allow only NOEXEC_SEAL. Kernels before 6.3 do not support it.
    let file = create(MemfdFlags::NOEXEC_SEAL).or_else(|_| create(MemfdFlags::empty()));
    Ok(file?.into())
}
