//! IP address management (IPAM) for one node: which attachment holds which address.
//!
//! A [`RangeSet`] is a pool of addresses. A [`Store`] is the directory with the reservations of one
//! network, in the format of the `host-local` plugin, so that both plugins can be used in turn on
//! the same node. A [`Reservation`] releases its addresses when it is dropped, unless
//! [`Reservation::keep`] was called.

mod attachment;
mod error;
mod files;
mod range;
mod store;

pub use attachment::{Attachment, Boot, Holder};
pub use error::StoreError;
pub use range::{Range, RangeError, RangeSet, RangeSets, RangeSpec};
pub use store::{Collected, EmptyNetwork, Freed, Overlap, Released, Reservation, Store};
