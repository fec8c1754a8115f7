//! Where leases come from.

pub(crate) mod file;
