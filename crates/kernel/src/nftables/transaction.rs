//! Whole tables, and single rules among those of others, changed in one step.

use std::io;

use nix::errno::Errno;
use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};

use super::message::{
    ACK, APPEND, Answer, CREATE, DELETE_CHAIN, DELETE_RULE, DELETE_TABLE, DUMP, GET_CHAIN,
    GET_RULE, GET_TABLE, NEW_CHAIN, NEW_RULE, NEW_TABLE, attributes, exchange, message, messages,
    nest, number, text, transaction,
};
use super::rule::Rule;
use super::verdict::{Expression, Verdict};
use crate::Error;

/// Which packets a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// Both families.
    Inet = 1,
    /// IPv4 alone.
    Ipv4 = 2,
    /// IPv6 alone.
    Ipv6 = 10,
}

/// Where packets pass by a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What leaves, where source addresses are translated.
    Postrouting,
    /// What is on its way through, where it is filtered.
    Forward,
}

/// A chain with its rules.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it stands.
    pub hook: Hook,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number in its table.
    pub handle: u64,
    /// What it says of itself.
    pub comment: Option<String>,
    /// What it matches and does, as the kernel has it.
    expressions: Vec<u8>,
}

/// Changes of which all are made, or none. The namespace of the calling thread is meant.
#[derive(Debug, Default)]
pub struct Transaction(Vec<u8>);

impl Transaction {
    /// Nothing to change yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has a table of this name consist of exactly these chains.
    pub fn replace_table(&mut self, family: Family, table: &str, chains: &[Chain]) {
        let add = |this: &mut Self| this.add(NEW_TABLE, CREATE, &place(family, table, None));
        // One that is not there cannot be deleted, so it is made first.
        add(self);
        self.delete_table(family, table);
        add(self);
        for chain in chains {
            let mut body = place(family, table, None);
            text(&mut body, 3, chain.name);
            let (hook, priority, kind) = match chain.hook {
                Hook::Postrouting => (4, 100, "nat"),
                Hook::Forward => (2, 0, "filter"),
            };
            nest(&mut body, 4, |place| {
                number(place, 1, hook);
                number(place, 2, priority);
            });
            text(&mut body, 7, kind);
            self.add(NEW_CHAIN, CREATE, &body);
            for rule in &chain.rules {
                self.add_rule(family, table, chain.name, rule);
            }
        }
    }

    /// Puts a rule behind the others of a chain.
    pub fn add_rule(&mut self, family: Family, table: &str, chain: &str, rule: &Rule) {
        let mut body = place(family, table, Some(chain));
        rule.write(&mut body);
        self.add(NEW_RULE, CREATE | APPEND, &body);
    }

    /// Puts a rule right before another one of a chain.
    pub fn insert_rule(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
        rule: &Rule,
        before: u64,
    ) {
        const POSITION: u16 = 6;
        let mut body = place(family, table, Some(chain));
        rule.write(&mut body);
        super::message::attribute(&mut body, POSITION, &before.to_be_bytes());
        self.add(NEW_RULE, CREATE, &body);
    }

    /// Deletes one rule of a chain.
    pub fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) {
        let mut body = place(family, table, Some(chain));
        super::message::attribute(&mut body, 3, &handle.to_be_bytes());
        self.add(DELETE_RULE, 0, &body);
    }

    /// Deletes a chain and its rules. Nothing must lead to it any more.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.add(DELETE_RULE, 0, &place(family, table, Some(chain)));
        let mut body = place(family, table, None);
        text(&mut body, 3, chain);
        self.add(DELETE_CHAIN, 0, &body);
    }

    /// Deletes a table and all that is in it.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        self.add(DELETE_TABLE, 0, &place(family, table, None));
    }

    /// Whether there is nothing to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes the changes. What was to be deleted and is gone meanwhile is an error, and then
    /// nothing is changed.
    pub fn commit(&self, doing: &str) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let answer = ask(&transaction(&self.0)).map_err(|error| Error::new(doing, error))?;
        match answer.refusal {
            None => Ok(()),
            Some(errno) => Err(Error::new(doing, errno)),
        }
    }

    fn add(&mut self, kind: u16, flags: u16, body: &[u8]) {
        self.0.extend(message(kind, flags | ACK, body));
    }
}

/// Whether there is a table of this name.
pub fn has_table(family: Family, table: &str) -> Result<bool, Error> {
    let doing = || format!("look for nf_tables table {table}");
    let answer = ask(&message(GET_TABLE, ACK, &place(family, table, None)));
    match answer.map_err(|error| Error::new(doing(), error))?.refusal {
        None => Ok(true),
        Some(Errno::ENOENT) => Ok(false),
        Some(errno) => Err(Error::new(doing(), errno)),
    }
}

/// What the kernel says of a table and of these chains in it, word for word: another text is
/// another rule set. Nothing where one of them is missing.
pub fn look(family: Family, table: &str, chains: &[&str]) -> Result<Option<Vec<u8>>, Error> {
    let failed = |error: io::Error| Error::new(format!("read nf_tables table {table}"), error);
    let mut words = Vec::new();
    // Its flags, and how many chains it has.
    let answer = ask(&message(GET_TABLE, ACK, &place(family, table, None))).map_err(failed)?;
    for (kind, _, body) in messages(&answer.text) {
        if kind == NEW_TABLE {
            words.extend(body.get(4..).unwrap_or_default());
        }
    }
    for chain in chains {
        let answer = get_chain(family, table, chain).map_err(failed)?;
        let Some(answer) = answer else {
            return Ok(None);
        };
        for (kind, _, body) in messages(&answer.text) {
            if kind == NEW_CHAIN {
                words.extend(body.get(4..).unwrap_or_default());
            }
        }
        let rules = list(family, table, chain).map_err(failed)?;
        words.extend(rules.into_iter().flatten());
    }
    Ok(Some(words))
}

/// The rules of a chain, in order. None where there is no chain.
pub fn rules(family: Family, table: &str, chain: &str) -> Result<Vec<Listed>, Error> {
    let failed = |error: io::Error| Error::new(format!("read chain {chain} of {table}"), error);
    let found = list(family, table, chain).map_err(failed)?;
    Ok(found.iter().map(|body| Listed::read(body)).collect())
}

/// What the kernel says of each rule of a chain.
fn list(family: Family, table: &str, chain: &str) -> io::Result<Vec<Vec<u8>>> {
    const INTERRUPTED: u16 = 0x10;
    const TRIES: usize = 8;
    let request = message(GET_RULE, DUMP, &place(family, table, Some(chain)));
    for _ in 0..TRIES {
        let answer = ask(&request)?;
        match answer.refusal {
            None => {}
            Some(Errno::ENOENT) => return Ok(Vec::new()),
            Some(errno) => return Err(errno.into()),
        }
        // A list that changed while it was read is read again.
        if messages(&answer.text).any(|(_, flags, _)| flags & INTERRUPTED != 0) {
            continue;
        }
        let rules = messages(&answer.text).filter(|(kind, ..)| *kind == NEW_RULE);
        let rules = rules.map(|(_, _, body)| body.get(4..).unwrap_or_default());
        // An old kernel lists those of other chains, too.
        let is_of_chain = |body: &&[u8]| {
            let is = |key: u16, name: &str| {
                attributes(body).any(|(kind, value)| kind == key && name_in(value) == name)
            };
            is(1, table) && is(2, chain)
        };
        return Ok(rules.filter(is_of_chain).map(<[u8]>::to_vec).collect());
    }
    Err(Errno::EINTR.into())
}

impl Listed {
    fn read(body: &[u8]) -> Self {
        const HANDLE: u16 = 3;
        const EXPRESSIONS: u16 = 4;
        const USER_DATA: u16 = 7;
        let mut listed = Self {
            handle: 0,
            comment: None,
            expressions: Vec::new(),
        };
        for (kind, value) in attributes(body) {
            match kind {
                HANDLE => listed.handle = value.first_chunk().map_or(0, |b| u64::from_be_bytes(*b)),
                EXPRESSIONS => listed.expressions = value.to_vec(),
                USER_DATA => listed.comment = comment_in(value).or(listed.comment),
                _ => {}
            }
        }
        // What went through iptables-save and iptables-restore has it as a match.
        let as_match = || {
            listed
                .expressions()
                .find_map(|expression| expression.comment())
        };
        listed.comment = listed.comment.clone().or_else(as_match);
        listed
    }

    /// The chain that it leads to.
    #[must_use]
    pub fn jump(&self) -> Option<String> {
        self.expressions()
            .find_map(|expression| match expression.verdict()? {
                Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
                _ => None,
            })
    }

    pub(super) fn expressions(&self) -> impl Iterator<Item = Expression<'_>> {
        attributes(&self.expressions).map(|(_, value)| Expression::read(value))
    }
}

/// The comment among a rule's user data, which are a number, a length and a value each.
fn comment_in(mut data: &[u8]) -> Option<String> {
    const COMMENT: u8 = 0;
    while let [kind, length, rest @ ..] = data {
        let (value, behind) = rest.split_at_checked(usize::from(*length))?;
        if *kind == COMMENT {
            return Some(name_in(value));
        }
        data = behind;
    }
    None
}

pub(super) fn name_in(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

fn get_chain(family: Family, table: &str, chain: &str) -> io::Result<Option<Answer>> {
    let mut body = place(family, table, None);
    text(&mut body, 3, chain);
    let answer = ask(&message(GET_CHAIN, ACK, &body))?;
    match answer.refusal {
        None => Ok(Some(answer)),
        Some(Errno::ENOENT) => Ok(None),
        Some(errno) => Err(errno.into()),
    }
}

pub(super) fn ask(request: &[u8]) -> io::Result<Answer> {
    exchange(&Socket::new(NETLINK_NETFILTER)?, request)
}

/// The family, the table, and of a rule its chain.
pub(super) fn place(family: Family, table: &str, chain: Option<&str>) -> Vec<u8> {
    let mut body = vec![family as u8, 0, 0, 0];
    text(&mut body, 1, table);
    if let Some(chain) = chain {
        text(&mut body, 2, chain);
    }
    body
}
