//! The scratch files of the `flannel` plugin, for the pods that it attached before us: one for
//! each container, with the configuration that it gave to `bridge`.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use cni::{Call, ContainerId, Json};

use crate::error::Error;

const DEFAULT_DIR: &str = "/var/lib/cni/flannel";

/// Removes the file of one container of the call's network. None is fine.
pub(crate) fn remove(call: &Call, container_id: &str) -> Result<(), Error> {
    let Some(dir) = dir(call) else {
        return Ok(());
    };
    remove_file(call, dir.join(container_id))
}

/// Removes the files of the network's containers that are not valid. Says of each failure.
pub(crate) fn collect(call: &Call, is_valid: impl Fn(&str) -> bool) -> Vec<Error> {
    let Some(dir) = dir(call) else {
        return Vec::new();
    };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![Error::Scratch(dir, error)],
    };
    let mut errors = Vec::new();
    for entry in entries {
        let removed = match entry {
            Ok(entry) => match entry.file_name().to_str() {
                Some(name) if ContainerId::new(name).is_ok() && !is_valid(name) => {
                    remove_file(call, entry.path())
                }
                _ => Ok(()),
            },
            Err(error) => Err(Error::Scratch(dir.clone(), error)),
        };
        errors.extend(removed.err());
    }
    errors
}

/// Where they are, for a network in flannel's form.
fn dir(call: &Call) -> Option<PathBuf> {
    call.config.get("delegate")?;
    let configured = call.config.get("dataDir").and_then(|dir| dir.as_str());
    let configured = configured.filter(|dir| !dir.is_empty());
    Some(Path::new(configured.unwrap_or(DEFAULT_DIR)).to_owned())
}

/// Removes a file, unless it is of another network. One that is torn is of no use to anybody.
fn remove_file(call: &Call, path: PathBuf) -> Result<(), Error> {
    let remove = || -> io::Result<()> {
        let text = fs::read(&path)?;
        let conf = Json::parse(&text).ok();
        let name = conf.as_ref().and_then(|conf| conf.get("name")?.as_str());
        if name.is_some_and(|name| name != call.network.as_str()) {
            return Ok(());
        }
        fs::remove_file(&path)
    };
    match remove() {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::Scratch(path, error)),
        _ => Ok(()),
    }
}
