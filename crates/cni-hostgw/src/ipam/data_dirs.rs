//! The folders that have stores of this node: networks with a `dataDir` of their own note it here, so that
//! other networks find their reservations.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use host_local::Store;
use util::none_if_not_found;

use crate::error::Error;

/// The default of `ipam.dataDir`.
pub(super) const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// The file with a line for each folder. It is gone after a boot, as reservations are.
const DATA_DIRS_FILE: &str = "/run/cni-hostgw/data-dirs";

/// The folder that a store is in.
fn data_dir(store: &Store) -> &Path {
    store.dir().parent().unwrap_or(Path::new("/"))
}

/// All folders with stores: the default one, that of `store`, and those that were noted.
pub(super) fn all(store: &Store) -> Result<Vec<PathBuf>, Error> {
    let noted = none_if_not_found(fs::read(DATA_DIRS_FILE)).map_err(Error::DataDirs)?;
    let noted = String::from_utf8_lossy(&noted.unwrap_or_default()).into_owned();
    // A line that cannot be a path is not ours.
    let paths = noted.lines().filter(|line| !line.contains('\0'));
    let mut all: Vec<_> = paths.map(PathBuf::from).collect();
    for known in [Path::new(DEFAULT_DATA_DIR), data_dir(store)] {
        if !all.iter().any(|dir| dir == known) {
            all.push(known.to_owned());
        }
    }
    Ok(all)
}

/// Notes the folder of a store, if it is not the default one. Must be called under the lock of the node's
/// bridges.
pub(super) fn note(store: &Store) -> Result<(), Error> {
    let own = data_dir(store);
    if own == Path::new(DEFAULT_DATA_DIR) {
        return Ok(());
    }
    let note = || -> io::Result<()> {
        let noted = none_if_not_found(fs::read(DATA_DIRS_FILE))?.unwrap_or_default();
        let noted = String::from_utf8_lossy(&noted);
        if noted.lines().any(|line| Path::new(line) == own) {
            return Ok(());
        }
        let path = Path::new(DATA_DIRS_FILE);
        fs::create_dir_all(path.parent().expect("a file lies in a folder"))?;
        let mut file = File::options().append(true).create(true).open(path)?;
        file.write_all(format!("{}\n", own.display()).as_bytes())
    };
    note().map_err(Error::DataDirs)
}
