//! Sets and verdict maps.

use super::expression::{Verdict, value_in, verdict_in};
use super::listing::{bodies, dump};
use super::message::{
    DUMP, Family, GET_ELEMENT, NEW_ELEMENT, attributes, message, object, read_u32, text,
};
use super::uapi::{
    SET_ELEM_DATA, SET_ELEM_FLAGS, SET_ELEM_KEY, SET_ELEM_KEY_END, SET_ELEM_LIST_ELEMENTS,
    SET_ELEM_LIST_SET, TABLE_NAME,
};
use crate::Error;

/// An element of a set, or of a verdict map.
#[derive(Clone, Debug)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    /// Last value of the range, if the element itself is a range.
    pub(super) last: Option<Vec<u8>>,
    /// True if the element ends the range that the previous element starts.
    pub(super) is_end: bool,
    pub(super) verdict: Option<Verdict>,
    /// The value in a map, as the kernel lists it; empty in a set.
    pub(super) value: Vec<u8>,
}

/// Returns the elements of a set; none if it does not exist.
pub(super) fn elements(family: Family, table: &str, set: &str) -> Result<Vec<Element>, Error> {
    let mut body = object(family, TABLE_NAME, table);
    text(&mut body, SET_ELEM_LIST_SET, set);
    let answer = dump(&message(GET_ELEMENT, DUMP, &body));
    let answer = answer.map_err(|error| Error::new(format!("read nf_tables set {set}"), error))?;
    let mut elements = Vec::new();
    for body in answer.iter().flat_map(|answer| bodies(answer, NEW_ELEMENT)) {
        let lists = attributes(body);
        for (_, list) in lists.filter(|(kind, _)| *kind == SET_ELEM_LIST_ELEMENTS) {
            elements.extend(attributes(list).filter_map(|(_, value)| Element::read(value)));
        }
    }
    Ok(elements)
}

impl Element {
    pub(super) fn read(value: &[u8]) -> Option<Self> {
        /// `NFT_SET_ELEM_INTERVAL_END`
        const INTERVAL_END: u32 = 1;
        let bytes = |nest: &[u8]| value_in(nest).map(<[u8]>::to_vec);
        let mut element = Self {
            key: Vec::new(),
            last: None,
            is_end: false,
            verdict: None,
            value: Vec::new(),
        };
        for (kind, value) in attributes(value) {
            match kind {
                SET_ELEM_KEY => element.key = bytes(value)?,
                SET_ELEM_KEY_END => element.last = bytes(value),
                SET_ELEM_FLAGS => element.is_end = read_u32(value) & INTERVAL_END != 0,
                SET_ELEM_DATA => {
                    element.verdict = verdict_in(value);
                    element.value = value.to_vec();
                }
                _ => {}
            }
        }
        Some(element)
    }
}
