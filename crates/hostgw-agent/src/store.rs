//! Where leases come from.

mod cluster;
pub(crate) mod file;
