//! JSON as runtimes write it, made uniform before it is given types.
//!
//! Every runtime is written in Go, whose decoder matches keys without regard to case and
//! takes `null` for an absent key. containerd relies on it: its capability arguments come
//! as `HostPort`, `Subnet`, `RangeStart`. So keys are given the spelling that we know, and
//! nulls are dropped, while the text is read; unknown keys pass as they are.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::strict;

/// Every key that some type of this crate reads, as that type spells it.
const KEYS: &[&str] = &[
    "address",
    "advmss",
    "args",
    "bandwidth",
    "bridge",
    "capabilities",
    "cni",
    "cni.dev/attachments",
    "cni.dev/valid-attachments",
    "cniVersion",
    "containerID",
    "dataDir",
    "delegate",
    "disableContainerInterface",
    "dns",
    "domain",
    "dst",
    "enabledad",
    "forceAddress",
    "gateway",
    "gw",
    "hairpinMode",
    "ifname",
    "interface",
    "interfaces",
    "ip",
    "ip4",
    "ip6",
    "ipMasq",
    "ipMasqBackend",
    "ipRanges",
    "ipam",
    "ips",
    "isDefaultGateway",
    "isGateway",
    "logFile",
    "mac",
    "macspoofchk",
    "mtu",
    "name",
    "nameservers",
    "options",
    "pciID",
    "portIsolation",
    "portMappings",
    "prevResult",
    "priority",
    "promiscMode",
    "rangeEnd",
    "rangeStart",
    "ranges",
    "resolvConf",
    "routes",
    "runtimeConfig",
    "sandbox",
    "scope",
    "search",
    "searches",
    "servers",
    "socketPath",
    "subnet",
    "subnetFile",
    "subnetFileWait",
    "table",
    "type",
    "version",
    "vlan",
    "vlanTrunk",
];

/// What begins the keys that belong to the protocol. There `null` is an empty list and not an
/// absent one: CRI-O sends it where no attachment is left.
const PROTOCOL: &str = "cni.dev/";

/// A JSON document with keys in the spelling that we know and without nulls.
#[derive(Clone, Debug, PartialEq)]
pub struct Json(Value);

impl Json {
    /// Reads one document. Duplicate keys: the last one counts. Anything after the
    /// document is an error. The message says where the text stops being JSON.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    /// The document as a `T`. The message names the key by its path, what was expected and the
    /// value: `ipam.ranges[0][0].subnet: expected a string, found the number 5`.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, String> {
        strict::read(&self.0)
    }

    /// The document as text.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.0.to_string()
    }

    /// The document with `value` under `key`, instead of what stood there.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        if let Value::Object(object) = &mut self.0 {
            object.insert(key.to_owned(), value);
        }
        self
    }

    /// The value under `key`, if there is one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The object under `key`, if there is one.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Self> {
        self.0
            .get(key)
            .filter(|value| value.is_object())
            .cloned()
            .map(Self)
    }

    /// Whether the document is an object that holds `key`.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Folding).map(Self)
    }
}

struct Folding;

impl<'de> DeserializeSeed<'de> for Folding {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Folding {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let known = KEYS.iter().find(|known| known.eq_ignore_ascii_case(&key));
            let value = match access.next_value_seed(Self)? {
                Value::Null if key.starts_with(PROTOCOL) => Value::Array(Vec::new()),
                Value::Null => continue,
                value => value,
            };
            object.insert(known.map_or(key, |known| (*known).to_owned()), value);
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
    fn keys_match_without_regard_to_case_and_nulls_are_absent() {
        let json = Json::parse(br#"{"ISGATEWAY": true, "ipam": null, "Runtimeconfig": {"IPRanges": [[{"Subnet": "10.1.0.0/24"}]]}, "Unknown": 1}"#);
        assert_eq!(
            json.expect("valid").0,
            json!({"isGateway": true, "runtimeConfig": {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}, "Unknown": 1}),
        );
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let json = Json::parse(br#"{"mtu": 1, "MTU": 2}"#).expect("valid");
        assert_eq!(json.0, json!({"mtu": 2}));
    }

    #[test]
    fn no_attachments_are_not_unknown_attachments() {
        let json = Json::parse(br#"{"cni.dev/valid-attachments": null}"#).expect("valid");
        assert_eq!(json.0, json!({"cni.dev/valid-attachments": []}));
    }

    #[test]
    fn trailing_garbage_is_an_error() {
        assert!(Json::parse(b"{} x").is_err());
    }
}
