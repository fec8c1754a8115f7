//! Access to the Linux kernel's networking: links, addresses, routes, neighbours, `nf_tables` and
//! sysctls.
//!
//! [`Netns`] is an open network namespace. [`Rtnl`] is an rtnetlink socket in one namespace.
//! [`sysctl`] reads and writes settings in the namespace of the calling thread. This crate knows
//! nothing about pods, and its callers know nothing about netlink attributes.

mod address;
mod bridge;
pub mod conntrack;
mod error;
mod forwarding;
mod link;
mod mac;
#[cfg(feature = "monitor")]
mod monitor;
mod neighbour;
mod neighbour_limits;
mod netns;
mod nexthop;
mod nfnetlink;
pub mod nftables;
mod path;
mod route;
mod route_change;
mod rtnl;
mod shaping;
pub mod sysctl;
mod veth;
mod watch;

pub use address::{Address, InterfaceSetup};
pub use bridge::Bridge;
pub use error::Error;
pub use link::{ALIAS_MAX, Kind, Link, Port};
pub use mac::{InvalidMac, Mac};
#[cfg(feature = "monitor")]
pub use monitor::{ChangeEvent, Monitor};
pub use neighbour_limits::NeighbourLimits;
pub use netns::{HostNetns, Netns, isolate};
pub use nexthop::has_nexthop_objects;
pub use path::Path;
pub use route::{Protocol, Route, RouteIdentity};
pub use route_change::{RouteChange, RouteOptions};
pub use rtnl::Rtnl;
pub use shaping::{Rate, RemoteAddress, ShapedSubnets, Shaping};
pub use veth::Veth;
pub use watch::Watch;
