//! Sets and maps of our own tables: their types, and their elements.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;

use super::expression::{Verdict, value_in, verdict_in};
use super::message::{
    ACK, Answer, DUMP, Family, GET_ELEMENT, NEW_ELEMENT, attribute, attributes, comment,
    comment_in, message, messages, nest, number, object, request, text, was_interrupted,
};
use super::uapi::{
    DATA_TYPE_VERDICT, DATA_VALUE, DATA_VERDICT, LIST_ELEM, SET_DATA_LEN, SET_DATA_TYPE,
    SET_DESCRIPTION, SET_DESCRIPTION_SIZE, SET_ELEM_DATA, SET_ELEM_KEY, SET_ELEM_LIST_ELEMENTS,
    SET_ELEM_LIST_SET, SET_ELEM_LIST_TABLE, SET_ELEM_USERDATA, SET_EVAL, SET_EXPIRES, SET_FLAGS,
    SET_ID, SET_KEY_LEN, SET_KEY_TYPE, SET_MAP, SET_NAME, SET_TIMEOUT, SET_USERDATA,
    UDATA_SET_DATA_BYTE_ORDER, UDATA_SET_KEY_BYTE_ORDER, VERDICT_CHAIN, VERDICT_CODE, verdict,
};
use crate::Error;

/// Number of attempts at a dump if the elements change while they are read.
const MAX_TRIES: usize = 8;

/// The most elements that rules add to a set.
const MOST_ELEMENTS: u32 = 1 << 16;

/// Part of a key or of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Protocol above IP.
    Protocol,
    /// Port of a transport protocol.
    Port,
    /// IPv4 address.
    Ipv4,
    /// IPv6 address.
    Ipv6,
    /// Name of an interface.
    Interface,
    /// Number of 32 bits.
    Number,
}

impl Field {
    /// Returns the number of the type, as the program `nft` numbers it, and the length in bytes.
    fn numbers(self) -> (u32, u32) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::Protocol => (12, 1),
            Self::Port => (13, 2),
            Self::Number => (19, 4),
            Self::Interface => (41, 16),
        }
    }

    /// Number of registers of four bytes.
    pub(super) fn registers(self) -> u32 {
        self.numbers().1.div_ceil(4)
    }

    /// Returns the type and the length of several fields side by side. Each starts at a multiple of
    /// four bytes.
    fn concatenated(fields: &[Self]) -> (u32, u32) {
        /// The width of one type in the type of the whole, in bits.
        const BITS: u32 = 6;
        match fields {
            [one] => one.numbers(),
            several => several.iter().fold((0, 0), |(kind, length), field| {
                (
                    kind << BITS | field.numbers().0,
                    length + 4 * field.registers(),
                )
            }),
        }
    }
}

/// The type of a map's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType<'a> {
    /// A set: its elements have no values.
    None,
    /// Fields side by side.
    Fields(&'a [Field]),
    /// A verdict.
    Verdict,
}

/// A set or a map. It is a hash table that grows with its elements.
#[derive(Clone, Copy, Debug)]
pub struct Set<'a> {
    /// Name of the set.
    pub name: &'a str,
    /// Fields of the key.
    pub key: &'a [Field],
    /// Values of the elements.
    pub value: ValueType<'a>,
    /// The time after which elements that rules added are deleted. `None` if only transactions add elements.
    pub expires: Option<Duration>,
}

impl Set<'_> {
    /// Appends the attributes to a request body, which already has the table.
    pub(super) fn write(&self, body: &mut Vec<u8>, id: u32) {
        text(body, SET_NAME, self.name);
        let is_map = self.value != ValueType::None;
        let mut flags = if is_map { SET_MAP } else { 0 };
        if let Some(time) = self.expires {
            flags |= SET_EXPIRES | SET_EVAL;
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            attribute(body, SET_TIMEOUT, &millis.to_be_bytes());
            nest(body, SET_DESCRIPTION, |inner| {
                number(inner, SET_DESCRIPTION_SIZE, MOST_ELEMENTS);
            });
        }
        number(body, SET_FLAGS, flags);
        let (kind, length) = Field::concatenated(self.key);
        number(body, SET_KEY_TYPE, kind);
        number(body, SET_KEY_LEN, length);
        number(body, SET_ID, id);
        attribute(body, SET_USERDATA, &self.byte_orders());
        match self.value {
            ValueType::None => {}
            ValueType::Verdict => number(body, SET_DATA_TYPE, DATA_TYPE_VERDICT),
            ValueType::Fields(fields) => {
                let (kind, length) = Field::concatenated(fields);
                number(body, SET_DATA_TYPE, kind);
                number(body, SET_DATA_LEN, length);
            }
        }
    }
}

impl Set<'_> {
    /// The byte orders of key and value, as user data for the program `nft`: a type, a length of 4,
    /// and a number.
    fn byte_orders(&self) -> Vec<u8> {
        /// `BYTEORDER_HOST_ENDIAN` and `BYTEORDER_BIG_ENDIAN` of nft.
        const HOST: u32 = 1;
        const BIG: u32 = 2;
        let order = |fields: &[Field]| match fields {
            [Field::Interface | Field::Number] => HOST,
            _ => BIG,
        };
        let mut data = vec![UDATA_SET_KEY_BYTE_ORDER, 4];
        data.extend(order(self.key).to_ne_bytes());
        if let ValueType::Fields(fields) = self.value {
            data.extend([UDATA_SET_DATA_BYTE_ORDER, 4]);
            data.extend(order(fields).to_ne_bytes());
        }
        data
    }
}

/// A key or a value, built field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<u8>);

impl Key {
    /// Returns a key without fields.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a protocol above IP.
    #[must_use]
    pub fn protocol(self, protocol: u8) -> Self {
        self.field(&[protocol])
    }

    /// Appends a port.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// Appends an address.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.field(&v4.octets()),
            IpAddr::V6(v6) => self.field(&v6.octets()),
        }
    }

    /// Appends the name of an interface.
    #[must_use]
    pub fn interface(self, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(16, 0);
        self.field(&bytes)
    }

    /// Appends a number.
    #[must_use]
    pub fn number(self, number: u32) -> Self {
        self.field(&number.to_ne_bytes())
    }

    /// Reads a key that is the name of an interface.
    #[must_use]
    pub fn to_interface(&self) -> String {
        let name = self.0.split(|byte| *byte == 0).next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }

    /// Returns the first and the last field, of four bytes each: a protocol and a port, for a key
    /// that also has an address between them.
    #[must_use]
    pub fn without_middle(&self) -> Self {
        let end = self.0.len().saturating_sub(4);
        let (first, last) = (self.0.get(..4), self.0.get(end..));
        Self([first.unwrap_or_default(), last.unwrap_or_default()].concat())
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// The value of an element.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// No value: an element of a set.
    #[default]
    None,
    /// Fields side by side.
    Fields(Key),
    /// The verdict to continue with a chain and not to come back.
    Goto(String),
}

/// An element of a set or of a map.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Key of the element.
    pub key: Key,
    /// Value of the element.
    pub value: Value,
    /// Comment that listings show for the element, of less than 120 bytes; none if empty.
    pub comment: String,
}

impl Element {
    /// Appends the attributes of the element.
    pub(super) fn write(&self, body: &mut Vec<u8>) {
        nest(body, SET_ELEM_KEY, |nest| {
            attribute(nest, DATA_VALUE, &self.key.0);
        });
        match &self.value {
            Value::None => {}
            Value::Fields(fields) => {
                nest(body, SET_ELEM_DATA, |nest| {
                    attribute(nest, DATA_VALUE, &fields.0);
                });
            }
            Value::Goto(chain) => nest(body, SET_ELEM_DATA, |nest| {
                write_chain_verdict(nest, verdict::GOTO, chain);
            }),
        }
        if !self.comment.is_empty() {
            attribute(body, SET_ELEM_USERDATA, &comment(&self.comment));
        }
    }

    pub(super) fn read(value: &[u8]) -> Option<Self> {
        let mut element = Self::default();
        for (kind, value) in attributes(value) {
            match kind {
                SET_ELEM_KEY => element.key = Key(value_in(value)?.to_vec()),
                SET_ELEM_DATA => {
                    element.value = match (value_in(value), verdict_in(value)) {
                        (Some(fields), _) => Value::Fields(Key(fields.to_vec())),
                        (None, Some(Verdict::Goto(chain))) => Value::Goto(chain),
                        (None, _) => Value::None,
                    }
                }
                SET_ELEM_USERDATA => element.comment = comment_in(value).unwrap_or_default(),
                _ => {}
            }
        }
        Some(element)
    }
}

/// Writes the verdict to continue with a chain.
pub(super) fn write_chain_verdict(body: &mut Vec<u8>, code: i32, chain: &str) {
    nest(body, DATA_VERDICT, |inner| {
        attribute(inner, VERDICT_CODE, &code.to_be_bytes());
        text(inner, VERDICT_CHAIN, chain);
    });
}

/// Returns the elements of a set or a map. `None` if it does not exist.
pub fn elements(family: Family, table: &str, set: &str) -> Result<Option<Vec<Element>>, Error> {
    let failed = |error: std::io::Error| Error::new(format!("read set {set} of {table}"), error);
    let dump = message(GET_ELEMENT, DUMP, &list_object(family, table, set));
    for _ in 0..MAX_TRIES {
        let answer = request(&dump).map_err(failed)?;
        match answer.error {
            None if was_interrupted(&answer) => {}
            None => return Ok(Some(read(&answer))),
            Some(Errno::ENOENT) => return Ok(None),
            Some(errno) => return Err(failed(errno.into())),
        }
    }
    Err(failed(Errno::EINTR.into()))
}

/// Returns the element of a set or a map with this key. `None` if it does not exist.
pub fn element(
    family: Family,
    table: &str,
    set: &str,
    key: &Key,
) -> Result<Option<Element>, Error> {
    let failed = |error: std::io::Error| Error::new(format!("look up in {set} of {table}"), error);
    let mut body = list_object(family, table, set);
    let wanted = Element {
        key: key.clone(),
        ..Element::default()
    };
    nest(&mut body, SET_ELEM_LIST_ELEMENTS, |list| {
        nest(list, LIST_ELEM, |body| wanted.write(body));
    });
    let answer = request(&message(GET_ELEMENT, ACK, &body)).map_err(failed)?;
    match answer.error {
        None => Ok(read(&answer).into_iter().next()),
        Some(Errno::ENOENT) => Ok(None),
        Some(errno) => Err(failed(errno.into())),
    }
}

fn read(answer: &Answer) -> Vec<Element> {
    let mut elements = Vec::new();
    for (_, _, body) in messages(&answer.text).filter(|(kind, ..)| *kind == NEW_ELEMENT) {
        let lists = attributes(body.get(4..).unwrap_or_default());
        for (_, list) in lists.filter(|(kind, _)| *kind == SET_ELEM_LIST_ELEMENTS) {
            elements.extend(attributes(list).filter_map(|(_, value)| Element::read(value)));
        }
    }
    elements
}

/// Returns the start of a message about the elements of a set.
fn list_object(family: Family, table: &str, set: &str) -> Vec<u8> {
    let mut body = object(family, SET_ELEM_LIST_TABLE, table);
    text(&mut body, SET_ELEM_LIST_SET, set);
    body
}
