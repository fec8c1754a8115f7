//! Where leases come from.

mod cluster;
pub(crate) mod etcd;
pub(crate) mod file;

pub(crate) use cluster::parse as parse_cluster;
