//! The cluster's network: its configuration, and which node holds which subnet.

mod error;
mod excerpt;
mod lease;
pub(crate) mod net_conf;
mod subnet_map;
mod subnet_pool;

pub(crate) use error::Error;
pub(crate) use excerpt::{excerpt, excerpt_of_sentence};
pub(crate) use lease::{Addresses, BootTime, EtcdLease, Hop, Lease, Snapshot};
pub(crate) use net_conf::NetConf;
pub(crate) use subnet_map::SubnetMap;
pub(crate) use subnet_pool::SubnetPool;
