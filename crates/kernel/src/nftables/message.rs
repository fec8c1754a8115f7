//! Messages of `nf_tables`.

use ipnetwork::IpNetwork;

use super::uapi::UDATA_COMMENT;
pub(super) use crate::nfnetlink::{
    ACK, APPEND, Answer, CREATE, DUMP, EXCL, attribute, attributes, connect, message, messages,
    nest, number, read_u32, request, request_on, text, text_in, was_interrupted,
};

pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const BATCH_BEGIN: u16 = 16;
pub(super) const BATCH_END: u16 = 17;
pub(super) const NEW_TABLE: u16 = SUBSYSTEM << 8;
pub(super) const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
pub(super) const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
pub(super) const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
pub(super) const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
pub(super) const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
pub(super) const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
pub(super) const GET_RULE: u16 = SUBSYSTEM << 8 | 7;
pub(super) const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
pub(super) const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
pub(super) const DELETE_SET: u16 = SUBSYSTEM << 8 | 0x0b;
pub(super) const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 0x0c;
pub(super) const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 0x0d;
pub(super) const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 0x0e;
pub(super) const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;
pub(super) const NEW_FLOWTABLE: u16 = SUBSYSTEM << 8 | 0x16;
pub(super) const GET_FLOWTABLE: u16 = SUBSYSTEM << 8 | 0x17;
pub(super) const DELETE_FLOWTABLE: u16 = SUBSYSTEM << 8 | 0x18;

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4 only.
    Ipv4 = 2,
    /// IPv6 only.
    Ipv6 = 10,
}

impl Family {
    /// The family with this number. `None` for families that this crate does not use.
    pub(super) fn read(number: u8) -> Option<Self> {
        let all = [Self::Inet, Self::Ipv4, Self::Ipv6];
        all.into_iter().find(|family| *family as u8 == number)
    }

    /// The family of tables for the addresses of `network` alone.
    #[must_use]
    pub fn of(network: IpNetwork) -> Self {
        if network.is_ipv4() {
            Self::Ipv4
        } else {
            Self::Ipv6
        }
    }
}

/// Returns the start of a message body: the header with the family, and the name of the table.
pub(super) fn object(family: Family, table_attribute: u16, table: &str) -> Vec<u8> {
    let mut body = vec![family as u8, 0, 0, 0];
    text(&mut body, table_attribute, table);
    body
}

/// Wraps changes in a batch, which the kernel applies completely or not at all.
pub(super) fn transaction(changes: &[u8]) -> Vec<u8> {
    let subsystem = [0, 0, 0, SUBSYSTEM.to_be_bytes()[1]];
    let begin = message(BATCH_BEGIN, 0, &subsystem);
    [&begin, changes, &message(BATCH_END, 0, &subsystem)].concat()
}

/// Encodes a comment as user data: type 0, its length, and its text of less than 120 bytes.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let text = text.to_owned() + "\0";
    let length = u8::try_from(text.len()).expect("a comment of less than 120 bytes");
    [&[UDATA_COMMENT, length], text.as_bytes()].concat()
}

/// Finds the comment in user data, a sequence of type, length and value.
pub(super) fn comment_in(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        if *kind == UDATA_COMMENT {
            return Some(text_in(value));
        }
        data = rest;
    }
    None
}
