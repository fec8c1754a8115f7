//! Address management for one node: which attachment holds which address.
//!
//! A [`RangeSet`] is a pool of addresses; a [`Store`] is the directory of one network's
//! reservations, in the format of the `host-local` plugin, so that both can serve the same
//! node by turns; a [`Reservation`] gives its addresses back unless it is kept.

mod attachment;
mod error;
mod files;
mod lock;
mod range;
mod store;

pub use attachment::{Attachment, Boot, Holder};
pub use error::StoreError;
pub use range::{Range, RangeError, RangeSet, RangeSets, RangeSpec};
pub use store::{Collected, Released, Reservation, Store, Vacant};
