//! What we ask of the Linux kernel, in our words.
//!
//! [`Netns`] is a network namespace as a value, [`Rtnl`] a conversation with the kernel about
//! one; [`sysctl`] reads and writes settings of the namespace that the thread is in. Nothing
//! here knows what a pod is, and nothing outside knows what a netlink attribute is.

mod address;
mod error;
mod link;
mod mac;
#[cfg(feature = "monitor")]
mod monitor;
mod neighbour;
mod netns;
mod nexthop;
pub mod nftables;
mod path;
mod route;
mod rtnl;
pub mod sysctl;
mod watch;

pub use address::{Address, Furnishing};
pub use error::Error;
pub use link::{ALIAS_MAX, Bridge, Kind, Link, Port, Veth};
pub use mac::{InvalidMac, Mac};
#[cfg(feature = "monitor")]
pub use monitor::{Monitor, Notice};
pub use netns::{Home, Netns};
pub use nexthop::has_nexthops;
pub use path::Path;
pub use route::{Protocol, Route, RouteChange, RouteOptions};
pub use rtnl::Rtnl;
pub use watch::Watch;
