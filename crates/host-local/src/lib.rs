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
pub use files::{uninterrupted, unless_absent};
pub use lock::{FileLock, StillLocked};
pub use range::{Range, RangeError, RangeSet, RangeSets, RangeSpec};
pub use store::{Collected, Freed, Overlap, Released, Reservation, Store, Vacant};
