//! What becomes of a packet in somebody else's chains, as far as their rules can be read.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::message::{
    DUMP, GET_CHAIN, GET_ELEMENT, GET_TABLE, NEW_CHAIN, NEW_ELEMENT, NEW_TABLE, attributes,
    message, messages, text, word,
};
use super::transaction::{Family, Listed, ask, name_in, place, rules};
use crate::Error;

/// The first packet of a TCP connection, on its way through this node.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The name of the interface that it comes by.
    pub from: String,
    /// The name of the interface that it leaves by.
    pub to: String,
    /// The numbers of both; 0 where there is none yet.
    pub links: [u32; 2],
    /// Its sender.
    pub source: IpAddr,
    /// Its receiver.
    pub destination: IpAddr,
}

/// How much of a rule is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Everything that can be read.
    Whole,
    /// Not what it says of addresses: a rule that refuses some of them is somebody's wish.
    WithoutAddresses,
}

/// What a chain does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Passes,
    /// A rule of the chain, or one that it leads to, drops or rejects it for sure; the number of the
    /// chain's own rule.
    RefusedBy(u64),
    /// No rule decides, and the chain drops what none decides.
    RefusedByPolicy,
}

/// A chain that the kernel sends packets to that are on their way through. What is read of it and of those that
/// it leads to is read once.
#[derive(Debug)]
pub struct BaseChain {
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Whether it drops what no rule decides.
    pub drops: bool,
    known: RefCell<HashMap<String, Vec<Listed>>>,
    sets: RefCell<HashMap<String, Rc<[Element]>>>,
}

/// All chains by which what is on its way through is filtered, of both families.
pub fn forward_chains() -> Result<Vec<BaseChain>, Error> {
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    const FORWARD: u32 = 2;
    const FLAGS: u16 = 2;
    let failed = |error: std::io::Error| Error::new("list the chains of nf_tables", error);
    let tables = ask(&message(GET_TABLE, DUMP, &[0; 4])).map_err(failed)?;
    let mut dormant = Vec::new();
    for (_, _, body) in messages(&tables.text).filter(|(kind, ..)| *kind == NEW_TABLE) {
        let mut name = String::new();
        let mut is_dormant = false;
        for (key, value) in attributes(body.get(4..).unwrap_or_default()) {
            match key {
                1 => name = name_in(value),
                FLAGS => is_dormant = word(value) & 1 != 0,
                _ => {}
            }
        }
        if is_dormant {
            dormant.push((body.first().copied(), name));
        }
    }
    let answer = ask(&message(GET_CHAIN, DUMP, &[0; 4])).map_err(failed)?;
    let mut chains = Vec::new();
    for (_, _, body) in messages(&answer.text).filter(|(kind, ..)| *kind == NEW_CHAIN) {
        let family = match body.first() {
            Some(1) => Family::Inet,
            Some(2) => Family::Ipv4,
            Some(10) => Family::Ipv6,
            _ => continue,
        };
        let mut chain = BaseChain {
            family,
            table: String::new(),
            name: String::new(),
            drops: false,
            known: RefCell::default(),
            sets: RefCell::default(),
        };
        let mut hook = None;
        for (key, value) in attributes(body.get(4..).unwrap_or_default()) {
            match key {
                1 => chain.table = name_in(value),
                3 => chain.name = name_in(value),
                HOOK => hook = number_in(value),
                POLICY => chain.drops = word(value) == 0,
                _ => {}
            }
        }
        let place = (body.first().copied(), chain.table.clone());
        if hook == Some(FORWARD) && !dormant.contains(&place) {
            chains.push(chain);
        }
    }
    Ok(chains)
}

impl BaseChain {
    /// What becomes of `packet` here, rules that `is_left_out` aside, and whether that is for sure: a rule that
    /// cannot be read matches nothing, and might have accepted it.
    pub fn judge(
        &self,
        packet: &Packet,
        reading: Reading,
        is_left_out: impl Fn(&Listed) -> bool,
    ) -> Result<(Fate, bool), Error> {
        let mut judge = Judge {
            chain: self,
            packet,
            reading,
            is_left_out: &is_left_out,
            is_sure: true,
        };
        for rule in judge.rules(&self.name)? {
            match judge.rule(&rule, 0)? {
                Some(Outcome::Accepted) => return Ok((Fate::Passes, true)),
                Some(Outcome::Refused) => {
                    return Ok((Fate::RefusedBy(rule.handle), judge.is_sure));
                }
                Some(Outcome::Left) => break,
                None => {}
            }
        }
        Ok(if self.drops {
            (Fate::RefusedByPolicy, judge.is_sure)
        } else {
            (Fate::Passes, true)
        })
    }
}

/// The first number of a nest.
fn number_in(nest: &[u8]) -> Option<u32> {
    let mut all = attributes(nest);
    all.find(|(key, _)| *key == 1).map(|(_, value)| word(value))
}

/// What a rule decides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Accepted,
    Refused,
    /// The rest of the chain is not for this packet.
    Left,
}

/// Deeper than this, no chain leads to another.
const DEEPEST: usize = 16;

struct Judge<'a> {
    chain: &'a BaseChain,
    packet: &'a Packet,
    reading: Reading,
    is_left_out: &'a dyn Fn(&Listed) -> bool,
    /// Whether no rule that cannot be read might have accepted the packet.
    is_sure: bool,
}

/// One of a set, or of a map that leads to verdicts.
#[derive(Clone, Debug)]
struct Element {
    key: Vec<u8>,
    /// Its last value, where it is a range by itself.
    last: Option<Vec<u8>>,
    /// Whether it is the end of the range before it.
    is_end: bool,
    verdict: Option<Verdict>,
}

impl Judge<'_> {
    fn rules(&self, chain: &str) -> Result<Vec<Listed>, Error> {
        let mut known = self.chain.known.borrow_mut();
        if !known.contains_key(chain) {
            let found = rules(self.chain.family, &self.chain.table, chain)?;
            known.insert(chain.to_owned(), found);
        }
        let mut rules = known[chain].clone();
        rules.retain(|rule| !(self.is_left_out)(rule));
        Ok(rules)
    }

    fn rule(&mut self, rule: &Listed, depth: usize) -> Result<Option<Outcome>, Error> {
        let verdict = match self.verdict(rule)? {
            Some(verdict) if depth < DEEPEST => verdict,
            _ => return Ok(None),
        };
        let (chain, is_goto) = match verdict {
            Verdict::Accept => return Ok(Some(Outcome::Accepted)),
            Verdict::Refuse => return Ok(Some(Outcome::Refused)),
            Verdict::Return => return Ok(Some(Outcome::Left)),
            Verdict::Continue => return Ok(None),
            Verdict::Jump(chain) => (chain, false),
            Verdict::Goto(chain) => (chain, true),
        };
        for rule in self.rules(&chain)? {
            match self.rule(&rule, depth + 1)? {
                Some(Outcome::Left) => break,
                Some(outcome) => return Ok(Some(outcome)),
                None => {}
            }
        }
        Ok(is_goto.then_some(Outcome::Left))
    }

    /// What a rule says of this packet; nothing where it does not match for sure.
    fn verdict(&mut self, rule: &Listed) -> Result<Option<Verdict>, Error> {
        let mut registers: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut is_read = true;
        let mut verdict = Verdict::Continue;
        for expression in rule.expressions() {
            let matches = match expression.name.as_str() {
                "immediate" if expression.number(1) == 0 => {
                    verdict = expression.verdict().unwrap_or(Verdict::Continue);
                    break;
                }
                "reject" => {
                    verdict = Verdict::Refuse;
                    break;
                }
                "target" if expression.text(1) == "REJECT" => {
                    verdict = Verdict::Refuse;
                    break;
                }
                "lookup" => match self.look_up(&expression, &registers)? {
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
                None => is_read = false,
            }
        }
        if is_read {
            return Ok(Some(verdict));
        }
        // Where it leads, there may be an accept; and a map that cannot be read may have one, too.
        if !matches!(verdict, Verdict::Refuse | Verdict::Return) {
            self.is_sure = false;
        }
        Ok(None)
    }

    /// Whether an expression lets the packet on to the next one; nothing where that cannot be told.
    fn matches(
        &self,
        expression: &Expression<'_>,
        registers: &mut HashMap<u32, Vec<u8>>,
    ) -> Option<bool> {
        /// `NF_CT_STATE_BIT(IP_CT_NEW)`
        const NEW: u32 = 8;
        let mut load = |value: Option<Vec<u8>>| {
            // What is not known is missed where it is compared.
            registers.remove(&expression.number(1));
            registers.extend(value.map(|value| (expression.number(1), value)));
            Some(true)
        };
        match expression.name.as_str() {
            "counter" | "log" => Some(true),
            // The fifth is whether what is above the limit is meant.
            "limit" => Some(expression.number(5) & 1 == 0),
            "match" if expression.comment().is_some() => Some(true),
            "match" if expression.text(1) == "conntrack" => is_new(expression),
            "target" if expression.text(1) == "LOG" => Some(true),
            "payload" => load(self.header(expression)),
            "meta" => load(self.meta(expression.number(2))),
            "ct" => load(match expression.number(2) {
                0 => Some(NEW.to_ne_bytes().to_vec()),
                2 | 3 => Some(vec![0; 4]),
                _ => None,
            }),
            "bitwise" if expression.number(6) == 0 => {
                let (mask, xor) = (expression.data(4)?, expression.data(5)?);
                let value = registers.get(&expression.number(1)).cloned();
                registers.remove(&expression.number(2));
                if let Some(value) = value {
                    let bytes = value.iter().zip(mask).zip(xor);
                    let masked = bytes.map(|((value, mask), xor)| value & mask ^ xor);
                    registers.insert(expression.number(2), masked.collect());
                }
                Some(true)
            }
            "cmp" => {
                let value = registers.get(&expression.number(1))?;
                let wanted = expression.data(3)?;
                let is_equal = value.get(..wanted.len())? == wanted;
                match expression.number(2) {
                    0 => Some(is_equal),
                    1 => Some(!is_equal),
                    _ => None,
                }
            }
            "range" => {
                let value = registers.get(&expression.number(1))?;
                let (first, last) = (expression.data(3)?, expression.data(4)?);
                let value = value.get(..first.len())?;
                let is_within = first <= value && value <= last;
                Some(is_within == (expression.number(2) == 0))
            }
            _ => None,
        }
    }

    /// Whether a set has what the packet is looked up by, and where a map leads; nothing where that cannot
    /// be told.
    fn look_up(
        &self,
        expression: &Expression<'_>,
        registers: &HashMap<u32, Vec<u8>>,
    ) -> Result<Option<(bool, Option<Verdict>)>, Error> {
        const TO: u16 = 3;
        const FLAGS: u16 = 5;
        let elements = match self.elements(&expression.text(1)) {
            // It went while it was read.
            Err(error) if error.is_gone() => return Ok(None),
            other => other?,
        };
        let Some(value) = registers.get(&expression.number(2)) else {
            return Ok(None);
        };
        let Some(length) = elements.first().map(|element| element.key.len()) else {
            // An empty one has nothing.
            return Ok(Some((expression.number(FLAGS) & 1 != 0, None)));
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
        let is_inverted = expression.number(FLAGS) & 1 != 0;
        match expression.get(TO) {
            // A map whose value goes elsewhere.
            Some(register) if word(register) != 0 => Ok(None),
            Some(_) => Ok(Some((
                found.is_some(),
                found.and_then(|found| found.verdict.clone()),
            ))),
            None => Ok(Some((found.is_some() != is_inverted, None))),
        }
    }

    /// What a set of the chain's table has.
    fn elements(&self, set: &str) -> Result<Rc<[Element]>, Error> {
        const SET: u16 = 2;
        const ELEMENTS: u16 = 3;
        if let Some(known) = self.chain.sets.borrow().get(set) {
            return Ok(Rc::clone(known));
        }
        let mut body = place(self.chain.family, &self.chain.table, None);
        text(&mut body, SET, set);
        let answer = ask(&message(GET_ELEMENT, DUMP, &body));
        let answer =
            answer.map_err(|error| Error::new(format!("read nf_tables set {set}"), error))?;
        let mut elements = Vec::new();
        for (_, _, body) in messages(&answer.text).filter(|(kind, ..)| *kind == NEW_ELEMENT) {
            let lists = attributes(body.get(4..).unwrap_or_default());
            for (_, list) in lists.filter(|(kind, _)| *kind == ELEMENTS) {
                elements.extend(attributes(list).filter_map(|(_, value)| Element::read(value)));
            }
        }
        let mut sets = self.chain.sets.borrow_mut();
        let elements: Rc<[Element]> = elements.into();
        sets.insert(set.to_owned(), Rc::clone(&elements));
        Ok(elements)
    }

    /// Bytes of the packet's network header.
    fn header(&self, expression: &Expression<'_>) -> Option<Vec<u8>> {
        const NETWORK: u32 = 1;
        let mut header = Vec::new();
        match (self.packet.source, self.packet.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header.extend([0x60, 0, 0, 0, 0, 20, TCP, 64]);
                header.extend(source.octets());
                header.extend(destination.octets());
            }
            _ => return None,
        }
        let begin = usize::try_from(expression.number(3)).ok()?;
        let length = usize::try_from(expression.number(4)).ok()?;
        let addresses = if self.packet.source.is_ipv4() { 12 } else { 8 };
        if self.reading == Reading::WithoutAddresses && begin >= addresses {
            return None;
        }
        let value = header.get(begin..begin.checked_add(length)?)?;
        (expression.number(2) == NETWORK).then(|| value.to_vec())
    }

    /// What the packet carries beside its bytes.
    fn meta(&self, key: u32) -> Option<Vec<u8>> {
        let name = |name: &str| {
            let mut name = name.as_bytes().to_vec();
            name.resize(16, 0);
            name
        };
        Some(match key {
            3 => vec![0; 4],
            4 | 5 => {
                let [from, to] = self.packet.links;
                let link = if key == 4 { from } else { to };
                return (link != 0).then(|| link.to_ne_bytes().to_vec());
            }
            6 => name(&self.packet.from),
            7 => name(&self.packet.to),
            15 if self.packet.source.is_ipv4() => vec![2],
            15 => vec![10],
            16 => vec![TCP],
            _ => return None,
        })
    }
}

const TCP: u8 = 6;

/// Whether a match of `iptables` on the state of a connection takes a new one; nothing where it is about
/// more.
fn is_new(expression: &Expression<'_>) -> Option<bool> {
    /// The kernel's `xt_conntrack_mtinfo3`: where its flags stand, and which are about the state.
    const FLAGS: usize = 146;
    const STATE: u16 = 1;
    const NEW: u16 = 8;
    // Earlier ones are of another form.
    let info = expression.get(3).filter(|_| expression.number(2) >= 2)?;
    let half = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    let (flags, inverted, states) = (half(FLAGS)?, half(FLAGS + 2)?, half(FLAGS + 4)?);
    let is_inverted = inverted & STATE != 0;
    (flags == STATE).then_some((states & NEW != 0) != is_inverted)
}

impl Element {
    fn read(value: &[u8]) -> Option<Self> {
        const KEY: u16 = 1;
        const DATA: u16 = 2;
        const FLAGS: u16 = 3;
        const KEY_END: u16 = 10;
        let bytes = |nest: &[u8]| {
            let mut values = attributes(nest);
            values
                .find(|(kind, _)| *kind == 1)
                .map(|(_, value)| value.to_vec())
        };
        let mut element = Self {
            key: Vec::new(),
            last: None,
            is_end: false,
            verdict: None,
        };
        for (kind, value) in attributes(value) {
            match kind {
                KEY => element.key = bytes(value)?,
                KEY_END => element.last = bytes(value),
                FLAGS => element.is_end = word(value) & 1 != 0,
                DATA => element.verdict = verdict_in(value),
                _ => {}
            }
        }
        Some(element)
    }
}

/// What a rule does with what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Refuse,
    Continue,
    Return,
    Jump(String),
    Goto(String),
}

/// One part of a rule.
pub(super) struct Expression<'a> {
    name: String,
    data: &'a [u8],
}

impl<'a> Expression<'a> {
    pub(super) fn read(element: &'a [u8]) -> Self {
        let mut expression = Self {
            name: String::new(),
            data: &[],
        };
        for (kind, value) in attributes(element) {
            match kind {
                1 => expression.name = name_in(value),
                2 => expression.data = value,
                _ => {}
            }
        }
        expression
    }

    fn get(&self, key: u16) -> Option<&'a [u8]> {
        let mut all = attributes(self.data);
        all.find(|(kind, _)| *kind == key).map(|(_, value)| value)
    }

    fn number(&self, key: u16) -> u32 {
        self.get(key).map_or(0, word)
    }

    fn text(&self, key: u16) -> String {
        self.get(key).map(name_in).unwrap_or_default()
    }

    /// The bytes of a value.
    fn data(&self, key: u16) -> Option<&'a [u8]> {
        let mut values = attributes(self.get(key)?);
        values.find(|(kind, _)| *kind == 1).map(|(_, value)| value)
    }

    /// The comment that it is, where it is one of `iptables`.
    pub(super) fn comment(&self) -> Option<String> {
        if self.name != "match" || self.text(1) != "comment" {
            return None;
        }
        let info = self.get(3)?;
        let text = info.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// The verdict that it is, where it is one.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        verdict_in(self.get(2)?)
    }
}

/// The verdict of a value, where it is one.
fn verdict_in(data: &[u8]) -> Option<Verdict> {
    let mut data = attributes(data);
    let (_, verdict) = data.find(|(kind, _)| *kind == 2)?;
    let (mut code, mut chain) = (0, String::new());
    for (kind, value) in attributes(verdict) {
        match kind {
            1 => code = word(value).cast_signed(),
            2 => chain = name_in(value),
            _ => {}
        }
    }
    Some(match code {
        0 => Verdict::Refuse,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(chain),
        -4 => Verdict::Goto(chain),
        -5 => Verdict::Return,
        _ => Verdict::Continue,
    })
}
