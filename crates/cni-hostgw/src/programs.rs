//! Other programs, where they are needed: never for a plain ADD.

use std::path::{Path, PathBuf};

/// The executable called `name` in one of `folders`, which are joined by `:`.
pub(crate) fn find(name: &str, folders: &str) -> Option<PathBuf> {
    folders
        .split(':')
        .filter(|folder| !folder.is_empty())
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}
