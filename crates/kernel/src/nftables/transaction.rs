//! Atomic changes to `nf_tables`: whole tables, and single rules in tables of other programs.

use super::message::{
    ACK, APPEND, CREATE, DELETE_CHAIN, DELETE_RULE, DELETE_TABLE, EXCL, Family, NEW_CHAIN,
    NEW_RULE, NEW_TABLE, attribute, comment, message, nest, number, object, request, text,
    transaction,
};
use super::rule::Rule;
use super::uapi::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, CHAIN_TYPE, CHAIN_USERDATA, HOOK_HOOKNUM, HOOK_PRIORITY,
    RULE_CHAIN, RULE_HANDLE, RULE_POSITION, RULE_TABLE, TABLE_NAME, hook,
};
use crate::Error;

/// Netfilter hook that a chain is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Outgoing packets, for translation of the source address (chain type nat).
    Postrouting,
    /// Forwarded packets, for filtering (chain type filter).
    Forward,
}

/// A base chain with its rules.
#[derive(Clone, Debug)]
pub struct Chain<'a> {
    /// Name of the chain.
    pub name: &'a str,
    /// Hook of the chain.
    pub hook: Hook,
    /// Comment that listings show for the chain, of less than 120 bytes; none if empty.
    pub comment: &'a str,
    /// Rules of the chain, in order.
    pub rules: Vec<Rule>,
}

/// A list of changes that the kernel applies completely or not at all, in the namespace of the
/// calling thread.
#[derive(Debug, Default)]
pub struct Transaction(Vec<u8>);

/// The result of [`Transaction::try_commit`].
#[derive(Debug)]
pub enum Attempt {
    /// The changes were applied.
    Applied,
    /// The kernel refused a change, and applied none.
    Refused(Error),
    /// The reply was lost: the changes were applied, or they were not.
    Unknown(Error),
}

impl Transaction {
    /// Returns a transaction without changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces a table, or creates it, so that it contains exactly these chains.
    pub fn replace_table(&mut self, family: Family, table: &str, chains: &[Chain<'_>]) {
        // Deleting a table that does not exist is an error, so it is created first.
        self.ensure_table(family, table);
        self.delete_table(family, table);
        self.ensure_table(family, table);
        for chain in chains {
            self.add_chain(family, table, chain);
        }
    }

    /// Creates a table unless it exists.
    pub fn ensure_table(&mut self, family: Family, table: &str) {
        self.add(NEW_TABLE, CREATE, &object(family, TABLE_NAME, table));
    }

    /// Creates a chain with its rules. The transaction fails if the chain exists.
    pub fn add_chain(&mut self, family: Family, table: &str, chain: &Chain<'_>) {
        let mut body = chain_object(family, table, chain.name);
        let (hook, priority, kind) = match chain.hook {
            Hook::Postrouting => (hook::POST_ROUTING, hook::PRIORITY_NAT_SRC, "nat"),
            Hook::Forward => (hook::FORWARD, hook::PRIORITY_FILTER, "filter"),
        };
        nest(&mut body, CHAIN_HOOK, |inner| {
            number(inner, HOOK_HOOKNUM, hook);
            number(inner, HOOK_PRIORITY, priority);
        });
        text(&mut body, CHAIN_TYPE, kind);
        if !chain.comment.is_empty() {
            attribute(&mut body, CHAIN_USERDATA, &comment(chain.comment));
        }
        self.add(NEW_CHAIN, CREATE | EXCL, &body);
        for rule in &chain.rules {
            self.add_rule(family, table, chain.name, rule);
        }
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, family: Family, table: &str, chain: &str, rule: &Rule) {
        let mut body = rule_object(family, table, chain);
        rule.write(&mut body);
        self.add(NEW_RULE, CREATE | APPEND, &body);
    }

    /// Inserts a rule into a chain, directly before the rule with the handle `before`.
    pub fn insert_rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        rule: &Rule,
        before: u64,
    ) {
        let mut body = rule_object(family, table, chain);
        rule.write(&mut body);
        attribute(&mut body, RULE_POSITION, &before.to_be_bytes());
        self.add(NEW_RULE, CREATE, &body);
    }

    /// Deletes the rule with this handle from a chain.
    pub fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) {
        let mut body = rule_object(family, table, chain);
        attribute(&mut body, RULE_HANDLE, &handle.to_be_bytes());
        self.add(DELETE_RULE, 0, &body);
    }

    /// Deletes a base chain and its rules.
    pub fn delete_base_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.add(DELETE_CHAIN, 0, &chain_object(family, table, chain));
    }

    /// Deletes a chain and its rules. No rule may still jump to it.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.add(DELETE_RULE, 0, &rule_object(family, table, chain));
        self.delete_base_chain(family, table, chain);
    }

    /// Deletes a table with its chains and rules.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        self.add(DELETE_TABLE, 0, &object(family, TABLE_NAME, table));
    }

    /// True if the transaction contains no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Applies the changes. Fails, without changing anything, if an object to delete does not exist.
    pub fn commit(&self, doing: &str) -> Result<(), Error> {
        match self.try_commit(doing) {
            Attempt::Applied => Ok(()),
            Attempt::Refused(error) | Attempt::Unknown(error) => Err(error),
        }
    }

    /// Applies the changes, for callers that try again: it tells a refusal from a lost reply.
    #[must_use]
    pub fn try_commit(&self, doing: &str) -> Attempt {
        if self.is_empty() {
            return Attempt::Applied;
        }
        match request(&transaction(&self.0)) {
            Ok(answer) => match answer.error {
                None => Attempt::Applied,
                Some(errno) => Attempt::Refused(Error::new(doing, errno)),
            },
            Err(error) => Attempt::Unknown(Error::new(doing, error)),
        }
    }

    fn add(&mut self, kind: u16, flags: u16, body: &[u8]) {
        self.0.extend(message(kind, flags | ACK, body));
    }
}

/// Returns the start of a message about a chain.
pub(super) fn chain_object(family: Family, table: &str, chain: &str) -> Vec<u8> {
    let mut body = object(family, CHAIN_TABLE, table);
    text(&mut body, CHAIN_NAME, chain);
    body
}

/// Returns the start of a message about the rules of a chain.
pub(super) fn rule_object(family: Family, table: &str, chain: &str) -> Vec<u8> {
    let mut body = object(family, RULE_TABLE, table);
    text(&mut body, RULE_CHAIN, chain);
    body
}
