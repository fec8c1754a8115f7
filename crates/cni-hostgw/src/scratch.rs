//! The scratch files of the `flannel` plugin, for the pods that it attached before us. There is one for
//! each container, with the configuration that it passed to `bridge`.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::{Call, ContainerId, Json};
use netconf::LenientConf;
use util::retry_on_eintr;

use crate::error::Error;

const DEFAULT_DIR: &str = "/var/lib/cni/flannel";

/// Removes the file of one container. Succeeds if there is none.
pub(crate) fn remove(call: &Call, conf: &LenientConf, container_id: &str) -> Result<(), Error> {
    let Some(dir) = dir(conf) else {
        return Ok(());
    };
    remove_file(call, dir.join(container_id))
}

/// Removes the files of the network's containers that are not valid. Returns all failures.
pub(crate) fn collect(
    call: &Call,
    conf: &LenientConf,
    is_valid: impl Fn(&str) -> bool,
) -> Vec<Error> {
    let Some(dir) = dir(conf) else {
        return Vec::new();
    };
    let list = || fs::read_dir(&dir)?.collect::<io::Result<Vec<_>>>();
    let entries = match retry_on_eintr(list) {
        Ok(entries) => entries,
        Err(error) if is_missing(&error) => return Vec::new(),
        Err(error) => return vec![Error::Scratch(dir, error)],
    };
    let mut errors = Vec::new();
    for entry in entries {
        if let Some(name) = entry.file_name().to_str()
            && !is_valid(name)
        {
            errors.extend(remove_file(call, entry.path()).err());
        }
    }
    errors
}

/// The folder of the files, for a network in flannel's form.
fn dir(conf: &LenientConf) -> Option<PathBuf> {
    let dir = conf.scratch_dir.as_deref();
    conf.has_delegate
        .then(|| dir.unwrap_or(Path::new(DEFAULT_DIR)).to_owned())
}

/// Removes a scratch file of the network, and one that a crash left incomplete. Other files are left
/// alone: the folder may have been named by mistake.
fn remove_file(call: &Call, path: PathBuf) -> Result<(), Error> {
    let is_container = |name: &str| {
        ContainerId::new(name).is_ok() && name.parse::<IpAddr>().is_err() && name != "lock"
    };
    if !path
        .file_name()
        .and_then(|name| name.to_str())
        .is_some_and(is_container)
    {
        return Ok(());
    }
    let remove = || -> io::Result<()> {
        if !fs::symlink_metadata(&path)?.is_file() {
            return Ok(());
        }
        let text = fs::read(&path)?;
        let is_ours = match Json::parse(&text) {
            Ok(conf) => {
                conf.get("name").and_then(|name| name.as_str()) == Some(call.network.as_str())
            }
            Err(_) => text.is_empty() || text.starts_with(b"{"),
        };
        if is_ours {
            fs::remove_file(&path)
        } else {
            Ok(())
        }
    };
    match retry_on_eintr(remove) {
        Err(error) if !is_missing(&error) => Err(Error::Scratch(path, error)),
        _ => Ok(()),
    }
}

/// True if there is no such file, or no folder that it could be in.
fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename
    )
}
