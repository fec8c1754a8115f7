//! Base chains of all programs that forwarded packets pass.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::listing::ListedRule;
use super::message::{
    DUMP, Family, GET_CHAIN, GET_TABLE, NEW_CHAIN, NEW_TABLE, attributes, message, messages,
    read_u32, request, text_in,
};
use super::set::Element;
use super::uapi::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, HOOK_HOOKNUM, TABLE_FLAGS,
    TABLE_NAME, hook, verdict,
};
use crate::Error;

/// A base chain that forwarded packets pass. Its rules, and those of the chains that it jumps to, are
/// read once and cached.
#[derive(Debug)]
pub struct BaseChain {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name of the chain.
    pub name: String,
    /// True if the policy of the chain is to drop packets that no rule decides on.
    pub drops: bool,
    hook: u32,
    is_filter: bool,
    pub(super) known: RefCell<HashMap<String, Vec<ListedRule>>>,
    pub(super) sets: RefCell<HashMap<String, Rc<[Element]>>>,
}

/// Returns all base chains at the forward hook, of all families, except those of dormant tables.
pub fn forward_chains() -> Result<Vec<BaseChain>, Error> {
    let mut chains = base_chains()?;
    chains.retain(|chain| chain.hook == hook::FORWARD);
    Ok(chains)
}

/// Returns all base chains that may drop forwarded packets: those of the type filter before routing, at the forward
/// hook, and behind routing, of all families, except those of dormant tables.
pub fn filter_chains() -> Result<Vec<BaseChain>, Error> {
    const HOOKS: [u32; 3] = [hook::PRE_ROUTING, hook::FORWARD, hook::POST_ROUTING];
    let mut chains = base_chains()?;
    chains.retain(|chain| chain.is_filter && HOOKS.contains(&chain.hook));
    Ok(chains)
}

fn base_chains() -> Result<Vec<BaseChain>, Error> {
    let failed = |error: std::io::Error| Error::new("list the chains of nf_tables", error);
    let tables = request(&message(GET_TABLE, DUMP, &[0; 4])).map_err(failed)?;
    let tables = messages(&tables.text).filter(|(kind, ..)| *kind == NEW_TABLE);
    let dormant: Vec<_> = tables
        .filter_map(|(_, _, body)| dormant_table(body))
        .collect();
    let chains = request(&message(GET_CHAIN, DUMP, &[0; 4])).map_err(failed)?;
    let chains = messages(&chains.text).filter(|(kind, ..)| *kind == NEW_CHAIN);
    let chains = chains.filter_map(|(_, _, body)| BaseChain::read(body));
    let is_active =
        |chain: &BaseChain| !dormant.contains(&(chain.family as u8, chain.table.clone()));
    Ok(chains.filter(is_active).collect())
}

/// Returns the family and the name of a table if it is dormant.
fn dormant_table(body: &[u8]) -> Option<(u8, String)> {
    /// `NFT_TABLE_F_DORMANT`
    const DORMANT: u32 = 1;
    let mut name = String::new();
    let mut is_dormant = false;
    for (key, value) in attributes(body.get(4..).unwrap_or_default()) {
        match key {
            TABLE_NAME => name = text_in(value),
            TABLE_FLAGS => is_dormant = read_u32(value) & DORMANT != 0,
            _ => {}
        }
    }
    is_dormant.then_some((*body.first()?, name))
}

impl BaseChain {
    /// Decodes a chain. Returns `None` if it is not a base chain.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        /// `NF_DROP` as a policy.
        const POLICY_DROP: u32 = verdict::DROP.cast_unsigned();
        let mut chain = Self {
            family: Family::read(*body.first()?)?,
            table: String::new(),
            name: String::new(),
            drops: false,
            hook: 0,
            is_filter: false,
            known: RefCell::default(),
            sets: RefCell::default(),
        };
        let mut hook = None;
        for (key, value) in attributes(body.get(4..)?) {
            match key {
                CHAIN_TABLE => chain.table = text_in(value),
                CHAIN_NAME => chain.name = text_in(value),
                CHAIN_HOOK => {
                    let mut inner = attributes(value);
                    let number = inner.find(|(key, _)| *key == HOOK_HOOKNUM);
                    hook = number.map(|(_, value)| read_u32(value));
                }
                CHAIN_TYPE => chain.is_filter = text_in(value) == "filter",
                CHAIN_POLICY => chain.drops = read_u32(value) == POLICY_DROP,
                _ => {}
            }
        }
        chain.hook = hook?;
        Some(chain)
    }
}
