//! Everything that a base chain can lead a packet to: its rules, the chains that they jump to, and the elements
//! of the sets that they look up.

use std::collections::BTreeSet;

use super::base_chain::BaseChain;
use super::expression::{Expression, Verdict};
use super::listing::rules;
use super::set::elements;
use super::uapi::{LOOKUP_SET, QUOTA_CONSUMED};
use crate::Error;

/// Expressions that the kernel lists with nothing but a state that changes with packets.
const STATEFUL: [&str; 2] = ["counter", "last"];

impl BaseChain {
    /// Returns a hash of all rules that packets can reach, and of the sets that these rules look up. Counters
    /// do not change it, and neither do handles. Sets of `ipset` are not looked at.
    pub fn fingerprint(&self) -> Result<u64, Error> {
        let mut text = vec![self.family as u8, u8::from(self.drops)];
        let mut pending = vec![self.name.clone()];
        let mut chains = BTreeSet::from([self.name.clone()]);
        let mut sets = BTreeSet::new();
        text.extend(self.table.bytes());
        let mut jump = |verdict: Verdict, pending: &mut Vec<String>| {
            if let Verdict::Jump(chain) | Verdict::Goto(chain) = verdict
                && chains.insert(chain.clone())
            {
                pending.push(chain);
            }
        };
        while let Some(chain) = pending.pop() {
            text.extend(chain.bytes());
            for rule in rules(self.family, &self.table, &chain)? {
                text.extend(b"rule");
                for expression in rule.expressions() {
                    add(&mut text, &expression);
                    if let Some(verdict) = expression.verdict() {
                        jump(verdict, &mut pending);
                    }
                    let set = expression.text(LOOKUP_SET);
                    if expression.name != "lookup" || !sets.insert(set.clone()) {
                        continue;
                    }
                    for element in elements(self.family, &self.table, &set)? {
                        text.extend(&element.key);
                        text.extend(element.last.iter().flatten());
                        text.push(u8::from(element.is_end));
                        text.extend(&element.value);
                        if let Some(verdict) = element.verdict {
                            jump(verdict, &mut pending);
                        }
                    }
                }
            }
        }
        Ok(util::fnv1a_64(&text))
    }
}

fn add(text: &mut Vec<u8>, expression: &Expression<'_>) {
    text.extend(expression.name.bytes());
    if STATEFUL.contains(&expression.name.as_str()) {
        return;
    }
    for (key, value) in expression.attributes() {
        // What a quota has consumed is its state.
        if expression.name != "quota" || key != QUOTA_CONSUMED {
            text.extend(key.to_ne_bytes());
            text.extend(value);
        }
    }
}
