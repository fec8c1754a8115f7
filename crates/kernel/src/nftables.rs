//! `nf_tables`, by netlink and without any program.
//!
//! [`Masquerade`] is what the plugin has for a subnet; a [`Transaction`] replaces whole tables and
//! changes single rules among those of others, for the agent.
//!
//! Messages are written and read here by hand, because the crates for it want a C library, an
//! `nft` program or another licence. Source: the kernel's `linux/netfilter/nf_tables.h`.

mod masquerade;
mod message;
mod rule;
mod transaction;
mod verdict;

use std::io;

use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};

pub use masquerade::{Masquerade, retain_masquerade};
pub use rule::Rule;
pub use transaction::{Chain, Family, Hook, Listed, Transaction, has_table, look, rules};
pub use verdict::{BaseChain, Fate, Packet, Reading, forward_chains};

use crate::Error;
use message::{ACK, GET_GENERATION, exchange, message};

/// Whether the kernel has `nf_tables`.
pub fn is_available() -> Result<(), Error> {
    let failed = |error: io::Error| Error::new("talk to nf_tables", error);
    let socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
    let answer = exchange(&socket, &message(GET_GENERATION, ACK, &[0; 4])).map_err(failed)?;
    match answer.refusal {
        None => Ok(()),
        Some(errno) => Err(Error::new("talk to nf_tables", errno)),
    }
}
