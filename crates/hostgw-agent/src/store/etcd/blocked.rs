//! Why this node cannot get or keep a lease.

use crate::network::{Addresses, SubnetPool};

/// Why this node cannot get or keep a lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Blocked {
    #[error("the interface has no {} address, and the network needs one", .0.join(" and no "))]
    NoAddress(Vec<&'static str>),
    #[error("no subnet is free: all {count} from {0} are leased", count = .0.count())]
    NoFreeSubnet(SubnetPool),
    #[error(
        "this node holds {0}, which the network configuration no longer allows; drain the node and restart the agent"
    )]
    NotAllowed(String),
    #[error(
        "the lease of {name} is lost, and cannot be acquired again: {other} is held by {holder}"
    )]
    Lost {
        name: String,
        other: String,
        holder: String,
    },
    #[error("the lease of {name} was taken over by {holder}: two nodes use the same subnet")]
    TakenOver { name: String, holder: String },
    #[error(
        "the lease of {name} was written by another node with this node's address {address}: two nodes use the same subnet"
    )]
    SameAddress { name: String, address: Addresses },
    #[error(
        "this node holds {name}, and {holder} has held {other} for longer: two nodes use the same subnet"
    )]
    OlderLease {
        name: String,
        other: String,
        holder: String,
    },
}
