//! The lock of the node's bridges.

use std::path::Path;

use util::FileLock;

use crate::error::Error;

/// The file with the lock of the node's bridges. It is beside the stores of all networks, and only root
/// can open it.
const LOCK_FILE: &str = "/var/lib/cni/hostgw.lock";

/// Locks the node's bridges against other requests. The lock of a store is always taken after this
/// one.
pub(crate) fn lock() -> Result<FileLock, Error> {
    let lock = FileLock::open(Path::new(LOCK_FILE)).map_err(Error::LockBridges)?;
    lock.map_err(Error::BridgesLocked)
}

/// The same for a request that creates nothing. `None` if there was never an ADD on this node.
pub(crate) fn lock_existing() -> Result<Option<FileLock>, Error> {
    let lock = FileLock::open_existing(Path::new(LOCK_FILE)).map_err(Error::LockBridges)?;
    lock.transpose().map_err(Error::BridgesLocked)
}
