//! Evaluation of a packet against the chains of other programs, as far as their rules can be
//! interpreted.

use std::collections::HashMap;
use std::rc::Rc;

use super::base_chain::BaseChain;
use super::expression::{Expression, Verdict};
use super::listing::{ListedRule, rules};
use super::message::read_u32;
use super::packet::{MatchMode, Packet};
use super::set::{Element, elements};
use super::uapi::{
    BITWISE_DREG, BITWISE_MASK, BITWISE_OP, BITWISE_SREG, BITWISE_XOR, CMP_DATA, CMP_EQ, CMP_NEQ,
    CMP_OP, CMP_SREG, CT_KEY, IMMEDIATE_DREG, LIMIT_F_INV, LIMIT_FLAGS, LOOKUP_DREG, LOOKUP_FLAGS,
    LOOKUP_SET, LOOKUP_SREG, META_KEY, RANGE_EQ, RANGE_FROM_DATA, RANGE_OP, RANGE_SREG,
    RANGE_TO_DATA, REG_VERDICT, XT_INFO, XT_NAME, XT_REV, ct,
};
use crate::Error;

/// The decision of a chain about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainDecision {
    /// The packet is not dropped by this chain.
    Passes,
    /// A rule certainly drops or rejects the packet: a rule of the chain, or of another chain that
    /// it jumps to. Contains the handle of the rule in the chain itself.
    DeniedByRule(u64),
    /// No rule decides, and the policy of the chain is to drop.
    DeniedByPolicy,
}

impl BaseChain {
    /// Evaluates `packet` against the chain, without the rules for which `is_ignored` returns
    /// true. Also returns whether the result is certain: a rule that cannot be interpreted counts
    /// as not matching, but it might have accepted the packet.
    pub fn evaluate(
        &self,
        packet: &Packet,
        mode: MatchMode,
        is_ignored: impl Fn(&ListedRule) -> bool,
    ) -> Result<(ChainDecision, bool), Error> {
        let mut evaluate = Evaluator {
            chain: self,
            packet,
            mode,
            is_ignored: &is_ignored,
            is_certain: true,
        };
        for rule in evaluate.rules(&self.name)? {
            match evaluate.rule(&rule, 0)? {
                Some(Decision::Accepted) => return Ok((ChainDecision::Passes, true)),
                Some(Decision::Denied) => {
                    return Ok((
                        ChainDecision::DeniedByRule(rule.handle),
                        evaluate.is_certain,
                    ));
                }
                Some(Decision::Returned) => break,
                None => {}
            }
        }
        Ok(if self.drops {
            (ChainDecision::DeniedByPolicy, evaluate.is_certain)
        } else {
            (ChainDecision::Passes, true)
        })
    }
}

/// The decision of a rule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Accepted,
    Denied,
    /// The rest of the chain is skipped for this packet.
    Returned,
}

/// Maximum depth of jumps that is followed; the kernel allows no more.
const MAX_DEPTH: usize = 16;

struct Evaluator<'a> {
    chain: &'a BaseChain,
    packet: &'a Packet,
    mode: MatchMode,
    is_ignored: &'a dyn Fn(&ListedRule) -> bool,
    /// False if a rule that cannot be interpreted might have accepted the packet.
    is_certain: bool,
}

impl Evaluator<'_> {
    fn rules(&self, chain: &str) -> Result<Vec<ListedRule>, Error> {
        let mut known = self.chain.known.borrow_mut();
        if !known.contains_key(chain) {
            let found = rules(self.chain.family, &self.chain.table, chain)?;
            known.insert(chain.to_owned(), found);
        }
        let mut rules = known[chain].clone();
        rules.retain(|rule| !(self.is_ignored)(rule));
        Ok(rules)
    }

    fn rule(&mut self, rule: &ListedRule, depth: usize) -> Result<Option<Decision>, Error> {
        let verdict = match self.verdict(rule)? {
            Some(verdict) if depth < MAX_DEPTH => verdict,
            _ => return Ok(None),
        };
        let (chain, is_goto) = match verdict {
            Verdict::Accept => return Ok(Some(Decision::Accepted)),
            Verdict::Deny => return Ok(Some(Decision::Denied)),
            Verdict::Return => return Ok(Some(Decision::Returned)),
            Verdict::Continue => return Ok(None),
            Verdict::Jump(chain) => (chain, false),
            Verdict::Goto(chain) => (chain, true),
        };
        for rule in self.rules(&chain)? {
            match self.rule(&rule, depth + 1)? {
                Some(Decision::Returned) => break,
                Some(outcome) => return Ok(Some(outcome)),
                None => {}
            }
        }
        Ok(is_goto.then_some(Decision::Returned))
    }

    /// Returns the verdict of a rule for the packet, or `None` if the rule does not certainly
    /// match.
    fn verdict(&mut self, rule: &ListedRule) -> Result<Option<Verdict>, Error> {
        let mut registers: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut is_understood = true;
        let mut verdict = Verdict::Continue;
        for expression in rule.expressions() {
            let matches = match expression.name.as_str() {
                "immediate" if expression.number(IMMEDIATE_DREG) == REG_VERDICT => {
                    verdict = expression.verdict().unwrap_or(Verdict::Continue);
                    break;
                }
                "reject" => {
                    verdict = Verdict::Deny;
                    break;
                }
                "target" if expression.text(XT_NAME) == "REJECT" => {
                    verdict = Verdict::Deny;
                    break;
                }
                "lookup" => match self.set_contains(&expression, &registers)? {
                    Some((is_found, found)) => {
                        if let Some(found) = found {
                            verdict = found;
                        }
                        Some(is_found)
                    }
                    None => None,
                },
                _ => self.matches(&expression, &mut registers),
            };
            match matches {
                Some(true) => {}
                Some(false) => return Ok(None),
                None => is_understood = false,
            }
        }
        if is_understood {
            return Ok(Some(verdict));
        }
        // The chain that it jumps to may contain an accept, and so may a map that cannot be
        // interpreted.
        if !matches!(verdict, Verdict::Deny | Verdict::Return) {
            self.is_certain = false;
        }
        Ok(None)
    }

    /// Returns whether an expression matches, so that the next one is evaluated, or `None` if that
    /// is unknown.
    fn matches(
        &self,
        expression: &Expression<'_>,
        registers: &mut HashMap<u32, Vec<u8>>,
    ) -> Option<bool> {
        /// `NF_CT_STATE_BIT(IP_CT_NEW)`
        const NEW: u32 = 8;
        /// The destination register: `NFTA_META_DREG`, `NFTA_PAYLOAD_DREG` and `NFTA_CT_DREG`.
        const DESTINATION: u16 = 1;
        let mut load = |value: Option<Vec<u8>>| {
            // A register without a known value makes the comparison unknown.
            registers.remove(&expression.number(DESTINATION));
            registers.extend(value.map(|value| (expression.number(DESTINATION), value)));
            Some(true)
        };
        match expression.name.as_str() {
            "counter" | "log" => Some(true),
            "limit" => Some(expression.number(LIMIT_FLAGS) & LIMIT_F_INV == 0),
            "match" if expression.comment().is_some() => Some(true),
            "match" if expression.text(XT_NAME) == "conntrack" => {
                matches_new_connection(expression)
            }
            "target" if expression.text(XT_NAME) == "LOG" => Some(true),
            "payload" => load(self.packet.header(expression, self.mode)),
            "meta" => load(self.packet.meta(expression.number(META_KEY))),
            "ct" => load(match expression.number(CT_KEY) {
                ct::STATE => Some(NEW.to_ne_bytes().to_vec()),
                ct::STATUS | ct::MARK | ct::SECMARK => Some(vec![0; 4]),
                _ => None,
            }),
            "bitwise" if expression.number(BITWISE_OP) == 0 => mask(expression, registers),
            "cmp" => {
                let value = registers.get(&expression.number(CMP_SREG))?;
                let wanted = expression.data(CMP_DATA)?;
                let is_equal = value.get(..wanted.len())? == wanted;
                match expression.number(CMP_OP) {
                    CMP_EQ => Some(is_equal),
                    CMP_NEQ => Some(!is_equal),
                    _ => None,
                }
            }
            "range" => {
                let value = registers.get(&expression.number(RANGE_SREG))?;
                let first = expression.data(RANGE_FROM_DATA)?;
                let last = expression.data(RANGE_TO_DATA)?;
                let value = value.get(..first.len())?;
                let is_within = first <= value && value <= last;
                Some(is_within == (expression.number(RANGE_OP) == RANGE_EQ))
            }
            _ => None,
        }
    }

    /// Returns the elements of a set in the chain's table.
    fn elements(&self, set: &str) -> Result<Rc<[Element]>, Error> {
        if let Some(known) = self.chain.sets.borrow().get(set) {
            return Ok(Rc::clone(known));
        }
        let elements: Rc<[Element]> = elements(self.chain.family, &self.chain.table, set)?.into();
        let mut sets = self.chain.sets.borrow_mut();
        sets.insert(set.to_owned(), Rc::clone(&elements));
        Ok(elements)
    }

    /// Returns whether a set contains the value in the source register, and the verdict if it is a
    /// verdict map. Returns `None` if that is unknown.
    fn set_contains(
        &self,
        expression: &Expression<'_>,
        registers: &HashMap<u32, Vec<u8>>,
    ) -> Result<Option<(bool, Option<Verdict>)>, Error> {
        /// `NFT_LOOKUP_F_INV`
        const INVERTED: u32 = 1;
        let is_inverted = expression.number(LOOKUP_FLAGS) & INVERTED != 0;
        let elements = match self.elements(&expression.text(LOOKUP_SET)) {
            // The set was deleted in the meantime.
            Err(error) if error.is_gone() => return Ok(None),
            other => other?,
        };
        let Some(value) = registers.get(&expression.number(LOOKUP_SREG)) else {
            return Ok(None);
        };
        let Some(length) = elements.first().map(|element| element.key.len()) else {
            // An empty set contains no value.
            return Ok(Some((is_inverted, None)));
        };
        let Some(value) = value.get(..length) else {
            return Ok(None);
        };
        let has_ranges = elements.iter().any(|element| element.is_end);
        let found = if has_ranges {
            let before = elements.iter().filter(|element| &element.key[..] <= value);
            let nearest = before.max_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end)));
            nearest.filter(|element| !element.is_end)
        } else {
            elements.iter().find(|element| match &element.last {
                Some(last) => &element.key[..] <= value && value <= &last[..],
                None => element.key == value,
            })
        };
        match expression.get(LOOKUP_DREG) {
            // A map that writes its value to another register is not interpreted.
            Some(register) if read_u32(register) != REG_VERDICT => Ok(None),
            Some(_) => Ok(Some((
                found.is_some(),
                found.and_then(|found| found.verdict.clone()),
            ))),
            None => Ok(Some((found.is_some() != is_inverted, None))),
        }
    }
}

/// Masks a register (`dst = src & mask ^ xor`), and always matches. Returns `None` if the expression
/// is incomplete.
fn mask(expression: &Expression<'_>, registers: &mut HashMap<u32, Vec<u8>>) -> Option<bool> {
    let mask = expression.data(BITWISE_MASK)?;
    let xor = expression.data(BITWISE_XOR)?;
    let value = registers.get(&expression.number(BITWISE_SREG)).cloned();
    registers.remove(&expression.number(BITWISE_DREG));
    if let Some(value) = value {
        let bytes = value.iter().zip(mask).zip(xor);
        let masked = bytes.map(|((value, mask), xor)| value & mask ^ xor);
        registers.insert(expression.number(BITWISE_DREG), masked.collect());
    }
    Some(true)
}

/// Returns whether an iptables match on connection state accepts a new connection, or `None` if the
/// match has other conditions, too.
fn matches_new_connection(expression: &Expression<'_>) -> Option<bool> {
    /// The kernel's `xt_conntrack_mtinfo3`: offset of its flags, and the flag for the state.
    const FLAGS: usize = 146;
    const STATE: u16 = 1;
    const NEW: u16 = 8;
    // Revisions before 2 have another layout.
    let info = expression
        .get(XT_INFO)
        .filter(|_| expression.number(XT_REV) >= 2)?;
    let half = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let (flags, inverted, states) = (half(FLAGS)?, half(FLAGS + 2)?, half(FLAGS + 4)?);
    let is_inverted = inverted & STATE != 0;
    (flags == STATE).then_some((states & NEW != 0) != is_inverted)
}
