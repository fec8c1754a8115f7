//! JSON as runtimes write it.
//!
//! Every runtime is written in Go, whose decoder matches keys without regard to case and treats `null`
//! as a missing key. containerd relies on it: its capability arguments come as `HostPort`, `Subnet`,
//! `RangeStart`. So nulls are dropped while the text is read, and keys are compared without regard to
//! case, here and in [`crate::strict`].

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::strict;

/// The start of the keys that belong to the protocol. Their `null` is an empty list, and not a missing
/// one: CRI-O sends it when no attachment is left.
const PROTOCOL: &str = "cni.dev/";

/// A JSON document without nulls.
#[derive(Clone, Debug, PartialEq)]
pub struct Json(Value);

impl Json {
    /// Parses one document. The last of several duplicate keys wins. Text after the document is an
    /// error. The error message contains the position of the syntax error.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// Deserializes the document into a `T`. The error message contains the path of the key, the
    /// expected type and the value found: `ipam.ranges[0][0].subnet: expected a string, found the
    /// number 5`.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, String> {
        strict::read(&self.0)
    }

    /// The document as a value.
    #[must_use]
    pub fn into_value(self) -> Value {
        self.0
    }

    /// Returns the document as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.to_string()
    }

    /// Returns the document with `key` set to `value`. An existing value is replaced.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        if let Value::Object(object) = &mut self.0 {
            insert(object, key.to_owned(), value);
        }
        self
    }

    /// Returns the value of `key`, if any.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        let mut entries = self.0.as_object()?.iter();
        let entry = entries.find(|(other, _)| other.eq_ignore_ascii_case(key));
        entry.map(|(_, value)| value)
    }

    /// Returns the value of `key`, if it is an object.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Self> {
        self.get(key)
            .filter(|value| value.is_object())
            .cloned()
            .map(Self)
    }

    /// Returns true if the document is an object that contains `key`.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WithoutNulls).map(Self)
    }
}

/// Inserts a value, in place of one whose key differs only in case.
fn insert(object: &mut Map<String, Value>, key: String, value: Value) {
    object.retain(|other, _| !other.eq_ignore_ascii_case(&key));
    object.insert(key, value);
}

struct WithoutNulls;

impl<'de> DeserializeSeed<'de> for WithoutNulls {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for WithoutNulls {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = match access.next_value_seed(Self)? {
                Value::Null if key.starts_with(PROTOCOL) => Value::Array(Vec::new()),
                Value::Null => continue,
                value => value,
            };
            insert(&mut object, key, value);
        }
        Ok(Value::Object(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element_seed(Self)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_match_case_insensitively_and_nulls_are_dropped() {
        let json = Json::parse(br#"{"ISGATEWAY": true, "ipam": null}"#).expect("valid");
        assert_eq!(json.get("isGateway"), Some(&json!(true)));
        assert!(!json.has("ipam"));
        let json = json.with("isGateway", json!(false));
        assert_eq!(json.0, json!({"isGateway": false}));
    }

    #[test]
    fn the_last_of_two_equal_keys_wins() {
        let json = Json::parse(br#"{"mtu": 1, "MTU": 2}"#).expect("valid");
        assert_eq!(json.0, json!({"MTU": 2}));
        let json = Json::parse(br#"{"MTU": 2, "mtu": 1}"#).expect("valid");
        assert_eq!(json.0, json!({"mtu": 1}));
    }

    #[test]
    fn null_attachments_are_an_empty_list() {
        let json = Json::parse(br#"{"cni.dev/valid-attachments": null}"#).expect("valid");
        assert_eq!(json.0, json!({"cni.dev/valid-attachments": []}));
    }

    #[test]
    fn trailing_garbage_is_an_error() {
        assert!(Json::parse(b"{} x").is_err());
    }
}
