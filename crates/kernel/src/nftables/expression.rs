//! Decodes the expressions of rules.

use super::message::{attributes, read_u32, text_in};
use super::uapi::{
    DATA_VALUE, DATA_VERDICT, EXPR_DATA, EXPR_NAME, IMMEDIATE_DATA, VERDICT_CHAIN, VERDICT_CODE,
    XT_INFO, XT_NAME, verdict,
};

/// The verdict of a rule about a packet that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Deny,
    Continue,
    Return,
    Jump(String),
    Goto(String),
}

/// One expression of a rule.
pub(super) struct Expression<'a> {
    pub(super) name: String,
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
                EXPR_NAME => expression.name = text_in(value),
                EXPR_DATA => expression.data = value,
                _ => {}
            }
        }
        expression
    }

    /// Its attributes, as the kernel lists them.
    pub(super) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        attributes(self.data)
    }

    pub(super) fn get(&self, key: u16) -> Option<&'a [u8]> {
        let mut all = attributes(self.data);
        all.find(|(kind, _)| *kind == key).map(|(_, value)| value)
    }

    pub(super) fn number(&self, key: u16) -> u32 {
        self.get(key).map_or(0, read_u32)
    }

    pub(super) fn text(&self, key: u16) -> String {
        self.get(key).map(text_in).unwrap_or_default()
    }

    /// Returns the bytes of a value attribute.
    pub(super) fn data(&self, key: u16) -> Option<&'a [u8]> {
        value_in(self.get(key)?)
    }

    /// Returns the comment, if the expression is an iptables `comment` match.
    pub(super) fn comment(&self) -> Option<String> {
        if self.name != "match" || self.text(XT_NAME) != "comment" {
            return None;
        }
        let info = self.get(XT_INFO)?;
        let text = info.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// Returns the verdict, if the expression contains one.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        verdict_in(self.get(IMMEDIATE_DATA)?)
    }
}

/// Returns the bytes of a data attribute, if it contains a value.
pub(super) fn value_in(data: &[u8]) -> Option<&[u8]> {
    let mut data = attributes(data);
    data.find(|(kind, _)| *kind == DATA_VALUE)
        .map(|(_, value)| value)
}

/// Decodes the verdict of a data attribute, if it contains one.
pub(super) fn verdict_in(data: &[u8]) -> Option<Verdict> {
    let mut data = attributes(data);
    let (_, nest) = data.find(|(kind, _)| *kind == DATA_VERDICT)?;
    let (mut code, mut chain) = (0, String::new());
    for (kind, value) in attributes(nest) {
        match kind {
            VERDICT_CODE => code = read_u32(value).cast_signed(),
            VERDICT_CHAIN => chain = text_in(value),
            _ => {}
        }
    }
    Some(match code {
        verdict::DROP => Verdict::Deny,
        verdict::ACCEPT => Verdict::Accept,
        verdict::JUMP => Verdict::Jump(chain),
        verdict::GOTO => Verdict::Goto(chain),
        verdict::RETURN => Verdict::Return,
        _ => Verdict::Continue,
    })
}
