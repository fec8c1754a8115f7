//! Routes to the other nodes' subnets: which ones there should be, what to change, and whether
//! packets follow them.

pub(crate) mod apply;
pub(crate) mod diversions;
pub(crate) mod peers;
pub(crate) mod plan;

pub(crate) use apply::{Applied, RouteOptions, apply};
pub(crate) use diversions::Diversions;
pub(crate) use peers::{Peer, Refusal, peers};
