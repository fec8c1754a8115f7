//! Tables, chains and rules, as the kernel lists them, in the namespace of the calling thread.

use std::io;

use nix::errno::Errno;
use rtnetlink::sys::Socket;

use super::expression::{Expression, Verdict};
use super::message::{
    ACK, Answer, DUMP, Family, GET_CHAIN, GET_RULE, GET_TABLE, NEW_CHAIN, NEW_RULE, NEW_TABLE,
    attributes, comment_in, connect, message, messages, object, read_u32, request, request_on,
    text_in, was_interrupted,
};
use super::transaction::{chain_object, rule_object};
use super::uapi::{
    CHAIN_NAME, CHAIN_TABLE, CHAIN_USE, CHAIN_USERDATA, RULE_CHAIN, RULE_EXPRESSIONS, RULE_HANDLE,
    RULE_TABLE, RULE_USERDATA, TABLE_NAME,
};
use crate::Error;

/// How often a dump is repeated if the list changes while it is read.
const MAX_TRIES: usize = 8;

/// A chain as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChain {
    /// Number of rules, if no rule jumps to the chain: a base chain's.
    pub rules: u32,
    /// Comment of the chain.
    pub comment: Option<String>,
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// Handle, which identifies the rule in its table.
    pub handle: u64,
    /// Comment of the rule, from its user data or from an iptables `comment` match.
    pub comment: Option<String>,
    /// The rule's expressions, encoded as the kernel reports them.
    expressions: Vec<u8>,
}

/// Returns whether a table with this name exists.
pub fn has_table(family: Family, table: &str) -> Result<bool, Error> {
    let doing = || format!("look up nf_tables table {table}");
    let answer = request(&message(GET_TABLE, ACK, &object(family, TABLE_NAME, table)));
    match answer.map_err(|error| Error::new(doing(), error))?.error {
        None => Ok(true),
        Some(Errno::ENOENT) => Ok(false),
        Some(errno) => Err(Error::new(doing(), errno)),
    }
}

/// Returns a chain, with one request. `None` if it does not exist.
pub fn chain(family: Family, table: &str, chain: &str) -> Result<Option<ListedChain>, Error> {
    let failed = |error: io::Error| Error::new(format!("look up chain {chain} of {table}"), error);
    let Some(answer) = get_chain(family, table, chain).map_err(failed)? else {
        return Ok(None);
    };
    let mut listed = ListedChain {
        rules: 0,
        comment: None,
    };
    for body in bodies(&answer, NEW_CHAIN) {
        for (kind, value) in attributes(body) {
            match kind {
                CHAIN_USE => listed.rules = read_u32(value),
                CHAIN_USERDATA => listed.comment = comment_in(value),
                _ => {}
            }
        }
    }
    Ok(Some(listed))
}

/// Returns the names of the chains of a table; none if it does not exist.
pub fn chains(family: Family, table: &str) -> Result<Vec<String>, Error> {
    let failed = |error: io::Error| Error::new(format!("list the chains of {table}"), error);
    let answer = dump(&message(GET_CHAIN, DUMP, &[family as u8, 0, 0, 0])).map_err(failed)?;
    let bodies = answer.iter().flat_map(|answer| bodies(answer, NEW_CHAIN));
    Ok(bodies
        .filter(|body| has_text(body, CHAIN_TABLE, table))
        .filter_map(|body| {
            let mut all = attributes(body);
            let (_, name) = all.find(|(kind, _)| *kind == CHAIN_NAME)?;
            Some(text_in(name))
        })
        .collect())
}

/// Returns the rules of a chain, in order; none if the chain does not exist.
pub fn rules(family: Family, table: &str, chain: &str) -> Result<Vec<ListedRule>, Error> {
    let failed = |error: io::Error| Error::new(format!("read chain {chain} of {table}"), error);
    let found = raw_rules(family, table, chain).map_err(failed)?;
    Ok(found.iter().map(|body| ListedRule::read(body)).collect())
}

/// Returns the kernel's raw listing of a table and of these chains in it. Two results are equal only
/// if the rules are. Returns `None` if one of the chains does not exist.
pub fn dump_chains(family: Family, table: &str, chains: &[&str]) -> Result<Option<Vec<u8>>, Error> {
    let failed = |error: io::Error| Error::new(format!("read nf_tables table {table}"), error);
    let mut listing = Vec::new();
    // The flags of the table, and its number of chains.
    let table_request = message(GET_TABLE, ACK, &object(family, TABLE_NAME, table));
    let answer = request(&table_request).map_err(failed)?;
    listing.extend(bodies(&answer, NEW_TABLE).flatten());
    for chain in chains {
        let Some(answer) = get_chain(family, table, chain).map_err(failed)? else {
            return Ok(None);
        };
        listing.extend(bodies(&answer, NEW_CHAIN).flatten());
        let rules = raw_rules(family, table, chain).map_err(failed)?;
        listing.extend(rules.into_iter().flatten());
    }
    Ok(Some(listing))
}

/// Returns a hash of a table and of these chains in it, with their rules and the handles of the rules.
/// It changes if someone changes, replaces or adds a rule or a chain, but not with the elements of
/// sets. `None` if the table or one of the chains does not exist.
pub fn fingerprint(
    family: Family,
    table: &str,
    chains: &[impl AsRef<str>],
) -> Result<Option<u64>, Error> {
    let failed = |error: io::Error| Error::new(format!("read nf_tables table {table}"), error);
    let mut listing = Vec::new();
    let table_request = message(GET_TABLE, ACK, &object(family, TABLE_NAME, table));
    let answer = request(&table_request).map_err(failed)?;
    if answer.error == Some(Errno::ENOENT) {
        return Ok(None);
    }
    listing.extend(bodies(&answer, NEW_TABLE).flatten());
    for chain in chains {
        let chain = chain.as_ref();
        let Some(answer) = get_chain(family, table, chain).map_err(failed)? else {
            return Ok(None);
        };
        for body in bodies(&answer, NEW_CHAIN) {
            // The elements of maps lead to chains, and count as uses.
            let fixed = attributes(body).filter(|(kind, _)| *kind != CHAIN_USE);
            listing.extend(fixed.flat_map(|(_, value)| value));
        }
        let rules = raw_rules(family, table, chain).map_err(failed)?;
        listing.extend(rules.into_iter().flatten());
    }
    Ok(Some(util::fnv1a_64(&listing)))
}

/// Returns the attributes of each rule of a chain.
fn raw_rules(family: Family, table: &str, chain: &str) -> io::Result<Vec<Vec<u8>>> {
    let Some(answer) = dump(&message(GET_RULE, DUMP, &rule_object(family, table, chain)))? else {
        return Ok(Vec::new());
    };
    // Older kernels also list the rules of other chains.
    let is_of_chain =
        |body: &&[u8]| has_text(body, RULE_TABLE, table) && has_text(body, RULE_CHAIN, chain);
    let rules = bodies(&answer, NEW_RULE).filter(is_of_chain);
    Ok(rules.map(<[u8]>::to_vec).collect())
}

fn get_chain(family: Family, table: &str, chain: &str) -> io::Result<Option<Answer>> {
    let answer = request(&message(
        GET_CHAIN,
        ACK,
        &chain_object(family, table, chain),
    ))?;
    match answer.error {
        None => Ok(Some(answer)),
        Some(Errno::ENOENT) => Ok(None),
        Some(errno) => Err(errno.into()),
    }
}

/// Sends a dump request, and again if the list changed while it was read. Returns `None` if the
/// object does not exist.
pub(super) fn dump(dump_request: &[u8]) -> io::Result<Option<Answer>> {
    dump_on(&connect()?, dump_request)
}

/// The same on a socket that was used before.
pub(super) fn dump_on(socket: &Socket, dump_request: &[u8]) -> io::Result<Option<Answer>> {
    for _ in 0..MAX_TRIES {
        let answer = request_on(socket, dump_request)?;
        match answer.error {
            None if was_interrupted(&answer) => {}
            None => return Ok(Some(answer)),
            Some(Errno::ENOENT) => return Ok(None),
            Some(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::EINTR.into())
}

/// Returns the attributes of each message of one kind.
pub(super) fn bodies(answer: &Answer, kind: u16) -> impl Iterator<Item = &[u8]> {
    let of_kind = messages(&answer.text).filter(move |(other, ..)| *other == kind);
    of_kind.map(|(_, _, body)| body.get(4..).unwrap_or_default())
}

pub(super) fn has_text(body: &[u8], key: u16, text: &str) -> bool {
    attributes(body).any(|(kind, value)| kind == key && text_in(value) == text)
}

impl ListedRule {
    pub(super) fn read(body: &[u8]) -> Self {
        let mut listed = Self {
            handle: 0,
            comment: None,
            expressions: Vec::new(),
        };
        for (kind, value) in attributes(body) {
            match kind {
                RULE_HANDLE => {
                    listed.handle = value.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
                }
                RULE_EXPRESSIONS => listed.expressions = value.to_vec(),
                RULE_USERDATA => listed.comment = comment_in(value).or(listed.comment),
                _ => {}
            }
        }
        // A rule that was saved and restored with iptables has the comment as a match.
        if listed.comment.is_none() {
            let comment = listed.expressions().find_map(|found| found.comment());
            listed.comment = comment;
        }
        listed
    }

    /// Returns the chain that the rule jumps to, if any.
    #[must_use]
    pub fn jump(&self) -> Option<String> {
        self.expressions()
            .find_map(|expression| match expression.verdict()? {
                Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
                _ => None,
            })
    }

    /// Returns what the rule does, as the kernel reports it: the same for rules with the same matches and
    /// actions, whatever their handles are.
    #[must_use]
    pub fn into_expressions(self) -> Vec<u8> {
        self.expressions
    }

    pub(super) fn expressions(&self) -> impl Iterator<Item = Expression<'_>> {
        attributes(&self.expressions).map(|(_, value)| Expression::read(value))
    }
}
