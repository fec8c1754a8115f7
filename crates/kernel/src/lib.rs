//! What we ask of the Linux kernel, in our words.
//!
//! [`Netns`] is a network namespace as a value, [`Rtnl`] a conversation with the kernel about
//! one; [`sysctl`] reads and writes settings of the namespace that the thread is in. Nothing
//! here knows what a pod is, and nothing outside knows what a netlink attribute is.

mod address;
mod error;
mod link;
mod mac;
mod monitor;
mod neighbour;
mod netns;
pub mod nftables;
mod route;
mod rtnl;
pub mod sysctl;

pub use error::Error;
pub use link::{Bridge, Kind, Link, Veth};
pub use mac::{InvalidMac, Mac};
pub use monitor::Monitor;
pub use netns::Netns;
pub use route::{Protocol, Route, RouteChange};
pub use rtnl::Rtnl;
