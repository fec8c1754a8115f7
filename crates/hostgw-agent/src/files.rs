//! Small files that are read whole, and replaced atomically.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use util::none_if_not_found;

/// Why a file cannot be used. It names the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{action} {path}")]
    Io {
        /// "read", "write", "remove".
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path}")]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Replaces a file, or creates it and its folder. The new content is on the disk before the old one
/// is gone. `mode` has the permission bits.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    util::replace(path, content, mode).map_err(|source| Error::io("write", path, source))
}

/// Reads a file. `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    none_if_not_found(fs::read(path)).map_err(|source| Error::io("read", path, source))
}

/// Reads a JSON file. `None` if there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}

/// Removes a file. One that does not exist is no error.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let removed = none_if_not_found(fs::remove_file(path));
    removed
        .map(drop)
        .map_err(|source| Error::io("remove", path, source))
}
