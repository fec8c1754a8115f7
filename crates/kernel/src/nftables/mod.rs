//! `nf_tables` over netlink, without any external program.
//!
//! [`Transaction`] changes whole tables, or single rules in tables of other programs; [`Rule`] builds
//! a rule. [`chain`], [`rules`] and others read what is there. [`forward_chains`] finds the chains
//! that decide about forwarded packets, and [`BaseChain::evaluate`] what they decide.
//!
//! The messages are encoded and decoded here by hand: the available crates need a C library or the
//! `nft` program, have another licence, or lack the expressions that are needed here (masquerade,
//! counters, connection states, ranges, extensions of `iptables`). Source: the kernel's
//! `linux/netfilter/nf_tables.h`, by whose names `uapi` has its numbers.

mod base_chain;
mod evaluate;
mod expression;
mod flowtable;
mod listing;
mod map;
mod message;
mod packet;
mod reachable;
mod rule;
mod set;
mod transaction;
mod uapi;

pub use base_chain::{BaseChain, filter_chains, forward_chains};
pub use evaluate::ChainDecision;
pub use flowtable::flowtable_devices;
pub use listing::{
    ListedChain, ListedRule, chain, chains, dump_chains, fingerprint, has_table, rules,
};
pub use map::{Element, Field, Key, Set, Value, ValueType, element, elements};
pub use message::Family;
pub use packet::{MatchMode, Packet};
pub use rule::{Load, Rule};
pub use transaction::{Attempt, Chain, Existing, Hook, Pending, Transaction};

use crate::Error;
use message::{ACK, GET_GENERATION, message, request};

/// Returns an error if the kernel does not support `nf_tables`.
pub fn is_available() -> Result<(), Error> {
    let doing = "access nf_tables";
    let answer = request(&message(GET_GENERATION, ACK, &[0; 4]));
    match answer.map_err(|error| Error::new(doing, error))?.error {
        None => Ok(()),
        Some(errno) => Err(Error::new(doing, errno)),
    }
}

/// Decodes the body of an answer of any kind, for tests.
#[cfg(test)]
pub(crate) fn decode(body: &[u8]) {
    use crate::nfnetlink::attributes;

    drop(BaseChain::read(body));
    let body = body.get(4..).unwrap_or_default();
    drop(flowtable::devices(body));
    let rule = ListedRule::read(body);
    drop(rule.jump());
    for expression in rule.expressions() {
        drop((expression.comment(), expression.verdict()));
    }
    for (_, list) in attributes(body) {
        for (_, value) in attributes(list) {
            drop((Element::read(value), set::Element::read(value)));
        }
    }
}
