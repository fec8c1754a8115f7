//! Atomic changes to `nf_tables`: whole tables, and single rules in tables of other programs.

use rtnetlink::sys::Socket;

use super::map::{Element, Set};
use super::message::{
    ACK, APPEND, CREATE, DELETE_CHAIN, DELETE_ELEMENT, DELETE_RULE, DELETE_SET, DELETE_TABLE, EXCL,
    Family, NEW_CHAIN, NEW_ELEMENT, NEW_RULE, NEW_SET, NEW_TABLE, attribute, comment, connect,
    message, nest, number, object, request, request_on, text, transaction,
};
use super::rule::Rule;
use super::uapi::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_TABLE, CHAIN_TYPE, CHAIN_USERDATA, HOOK_HOOKNUM, HOOK_PRIORITY,
    LIST_ELEM, RULE_CHAIN, RULE_HANDLE, RULE_POSITION, RULE_TABLE, SET_ELEM_LIST_ELEMENTS,
    SET_ELEM_LIST_SET, SET_ELEM_LIST_TABLE, SET_NAME, SET_TABLE, TABLE_NAME, hook,
};
use crate::Error;

/// Netfilter hook that a chain is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Outgoing packets, for translation of the source address (chain type nat).
    Postrouting,
    /// Forwarded packets, for filtering (chain type filter).
    Forward,
    /// Forwarded packets that the usual filters accepted: after those of priority 0.
    ForwardAccepted,
    /// Outgoing packets that all filters accepted: after translation of the source address.
    PostroutingAccepted,
    /// Incoming packets, for translation of the destination address (chain type nat). Chains of
    /// kube-proxy and Docker, with the usual priority, come first.
    PreroutingDnat,
    /// Packets of the node itself, likewise.
    OutputDnat,
    /// Incoming packets before connection tracking, for filtering (chain type filter).
    PreroutingRaw,
}

impl Hook {
    /// Returns the number of the hook, the priority and the type of a chain.
    fn numbers(self) -> (u32, i32, &'static str) {
        match self {
            Self::Postrouting => (hook::POST_ROUTING, hook::PRIORITY_NAT_SRC, "nat"),
            Self::Forward => (hook::FORWARD, hook::PRIORITY_FILTER, "filter"),
            Self::ForwardAccepted => (hook::FORWARD, hook::PRIORITY_FILTER + 10, "filter"),
            Self::PostroutingAccepted => {
                let priority = hook::PRIORITY_CONNTRACK_HELPER;
                (hook::POST_ROUTING, priority, "filter")
            }
            Self::PreroutingDnat => (hook::PRE_ROUTING, hook::PRIORITY_NAT_DST + 1, "nat"),
            Self::OutputDnat => (hook::LOCAL_OUT, hook::PRIORITY_NAT_DST + 1, "nat"),
            Self::PreroutingRaw => (hook::PRE_ROUTING, hook::PRIORITY_RAW, "filter"),
        }
    }
}

/// A chain with its rules.
#[derive(Clone, Debug)]
pub struct Chain<'a> {
    /// Name of the chain.
    pub name: &'a str,
    /// Hook of a base chain. `None` if only rules lead to the chain.
    pub hook: Option<Hook>,
    /// Comment that listings show for the chain, of less than 120 bytes; none if empty.
    pub comment: &'a str,
    /// Rules of the chain, in order.
    pub rules: Vec<Rule>,
}

/// A list of changes that the kernel applies completely or not at all, in the namespace of the
/// calling thread.
#[derive(Debug, Default)]
pub struct Transaction {
    messages: Vec<u8>,
    /// Where the last message starts.
    last: usize,
    /// Number of new sets: each needs an id within the transaction.
    sets: u32,
}

/// Number of elements in one message. The length of a list is limited to 64 kB, and an element has
/// at most 256 bytes.
const ELEMENTS_IN_MESSAGE: usize = 200;

/// Outcome if an element to add exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// The transaction fails.
    Fails,
    /// The element stays as it is. The transaction fails if its value is another one.
    Stays,
}

/// A socket with which something was deleted. The kernel frees what was deleted after a grace period
/// of up to 20 ms, and closing the socket waits for that. Other work that needs a grace period can be
/// done before this value is dropped.
#[derive(Default)]
pub struct Pending(#[expect(dead_code, reason = "dropping it closes it")] Option<Socket>);

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
        if let Some((hook, priority, kind)) = chain.hook.map(Hook::numbers) {
            nest(&mut body, CHAIN_HOOK, |inner| {
                number(inner, HOOK_HOOKNUM, hook);
                number(inner, HOOK_PRIORITY, priority.cast_unsigned());
            });
            text(&mut body, CHAIN_TYPE, kind);
        }
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

    /// Deletes all rules of a chain.
    pub fn delete_rules(&mut self, family: Family, table: &str, chain: &str) {
        self.add(DELETE_RULE, 0, &rule_object(family, table, chain));
    }

    /// Creates an empty set or map unless it exists.
    pub fn ensure_set(&mut self, family: Family, table: &str, set: &Set<'_>) {
        self.sets += 1;
        let mut body = object(family, SET_TABLE, table);
        set.write(&mut body, self.sets);
        self.add(NEW_SET, CREATE, &body);
    }

    /// Deletes a set or a map, which no rule may use any more.
    pub fn delete_set(&mut self, family: Family, table: &str, set: &str) {
        let mut body = object(family, SET_TABLE, table);
        text(&mut body, SET_NAME, set);
        self.add(DELETE_SET, 0, &body);
    }

    /// Adds elements to a set or a map. The transaction fails if one exists, unless `existing` allows
    /// that.
    pub fn add_elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        existing: Existing,
        elements: &[Element],
    ) {
        let flags = match existing {
            Existing::Fails => CREATE | EXCL,
            Existing::Stays => CREATE,
        };
        self.change_elements((NEW_ELEMENT, flags), family, table, set, elements);
    }

    /// Deletes the elements with these keys from a set or a map. The transaction fails if one does
    /// not exist.
    pub fn delete_elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        elements: &[Element],
    ) {
        let keys = elements.iter().map(|element| Element {
            key: element.key.clone(),
            ..Element::default()
        });
        let keys: Vec<_> = keys.collect();
        self.change_elements((DELETE_ELEMENT, 0), family, table, set, &keys);
    }

    fn change_elements(
        &mut self,
        (kind, flags): (u16, u16),
        family: Family,
        table: &str,
        set: &str,
        elements: &[Element],
    ) {
        for part in elements.chunks(ELEMENTS_IN_MESSAGE) {
            let mut body = object(family, SET_ELEM_LIST_TABLE, table);
            text(&mut body, SET_ELEM_LIST_SET, set);
            nest(&mut body, SET_ELEM_LIST_ELEMENTS, |list| {
                for element in part {
                    nest(list, LIST_ELEM, |body| element.write(body));
                }
            });
            self.add(kind, flags, &body);
        }
    }

    /// Deletes a base chain and its rules.
    pub fn delete_base_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.add(DELETE_CHAIN, 0, &chain_object(family, table, chain));
    }

    /// Deletes a chain and its rules. No rule may still jump to it.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.delete_rules(family, table, chain);
        self.delete_base_chain(family, table, chain);
    }

    /// Deletes a table with its chains and rules.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        self.add(DELETE_TABLE, 0, &object(family, TABLE_NAME, table));
    }

    /// True if the transaction contains no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
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
        match request(&self.batch()) {
            Ok(answer) => match answer.error {
                None => Attempt::Applied,
                Some(errno) => Attempt::Refused(Error::new(doing, errno)),
            },
            Err(error) => Attempt::Unknown(Error::new(doing, error)),
        }
    }

    /// Applies the changes, and returns what is still to be waited for. As [`commit`](Self::commit), but
    /// that waits at once if something was deleted.
    pub fn commit_pending(&self, doing: &str) -> Result<Pending, Error> {
        if self.is_empty() {
            return Ok(Pending(None));
        }
        let failed = |error: std::io::Error| Error::new(doing, error);
        let socket = connect().map_err(failed)?;
        let answer = request_on(&socket, &self.batch());
        let answer = answer.map_err(|error| failed(error).with_leftovers())?;
        match answer.error {
            None => Ok(Pending(Some(socket))),
            Some(errno) => Err(Error::new(doing, errno)),
        }
    }

    pub(super) fn add(&mut self, kind: u16, flags: u16, body: &[u8]) {
        self.last = self.messages.len();
        self.messages.extend(message(kind, flags, body));
    }

    /// Returns the batch to send. Only its last message requests a reply, because the replies to some hundred
    /// messages do not fit into the socket's buffer. The kernel reports an error of any message.
    fn batch(&self) -> Vec<u8> {
        /// Length and kind come before the flags.
        const FLAGS: std::ops::Range<usize> = 6..8;
        let mut changes = self.messages.clone();
        let flags = &mut changes[self.last..][FLAGS];
        let with_reply = u16::from_ne_bytes([flags[0], flags[1]]) | ACK;
        flags.copy_from_slice(&with_reply.to_ne_bytes());
        transaction(&changes)
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
