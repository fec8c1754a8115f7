//! Address management for one node: which attachment holds which address.
//!
//! A [`RangeSet`] is a pool of addresses; a [`Store`] is the directory of one network's
//! reservations, in the format of the `host-local` plugin, so that both can serve the same
//! node by turns; a [`Reservation`] gives its addresses back unless it is kept.

mod files;
mod range;
mod store;

pub use range::{Range, RangeError, RangeSet, RangeSets, RangeSpec};
pub use store::{Attachment, Boot, Reservation, Store, StoreError};
