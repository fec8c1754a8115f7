//! The network's configuration, with the keys and rules of flannel's `net-conf.json`.

use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::error::Error;
use super::excerpt;
use super::subnet_pool::{FamilyKeys, IPV4, IPV6, SubnetPool};

/// The cluster's network configuration, validated. At least one family is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetConf {
    /// The node subnets of IPv4. `None` if IPv4 is disabled.
    pub(crate) ipv4: Option<SubnetPool>,
    /// The node subnets of IPv6. `None` if IPv6 is disabled.
    pub(crate) ipv6: Option<SubnetPool>,
}

const ENABLE_IPV4: &str = "EnableIPv4";
const ENABLE_IPV6: &str = "EnableIPv6";
const BACKEND: &str = "Backend";
const TYPE: &str = "Type";

/// Every key, spelled as in flannel.
const KEYS: [&str; 12] = [
    ENABLE_IPV4,
    ENABLE_IPV6,
    IPV4.network,
    IPV4.length,
    IPV4.min,
    IPV4.max,
    IPV6.network,
    IPV6.length,
    IPV6.min,
    IPV6.max,
    BACKEND,
    TYPE,
];

/// Reads a `net-conf.json`.
pub(crate) fn parse(text: &[u8]) -> Result<NetConf, Error> {
    let value = serde_json::from_slice(text)
        .map_err(|error: serde_json::Error| Error::Json(excerpt(&error.to_string())))?;
    NetConf::check(&fold(value))
}

impl NetConf {
    /// The subnet pools of the enabled families, IPv4 first.
    pub(crate) fn pools(&self) -> impl Iterator<Item = SubnetPool> {
        self.ipv4.into_iter().chain(self.ipv6)
    }

    /// Returns the networks of the enabled families, IPv4 first.
    pub(crate) fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        self.pools().map(|pool| pool.network)
    }

    /// The pool of the family of `network`. `None` if the family is disabled.
    pub(crate) fn pool(&self, network: IpNetwork) -> Option<SubnetPool> {
        if network.is_ipv4() {
            self.ipv4
        } else {
            self.ipv6
        }
    }

    fn check(object: &Map<String, Value>) -> Result<Self, Error> {
        check_backend(object.get(BACKEND))?;
        let pool = |keys: &FamilyKeys, enabled: bool| {
            enabled.then(|| SubnetPool::check(object, keys)).transpose()
        };
        let ipv4 = pool(&IPV4, is_enabled(object, ENABLE_IPV4, true)?)?;
        let ipv6 = pool(&IPV6, is_enabled(object, ENABLE_IPV6, false)?)?;
        if ipv4.is_none() && ipv6.is_none() {
            return Err(Error::NoFamily);
        }
        Ok(Self { ipv4, ipv6 })
    }
}

fn is_enabled(
    object: &Map<String, Value>,
    key: &'static str,
    default: bool,
) -> Result<bool, Error> {
    match object.get(key) {
        None => Ok(default),
        Some(Value::Bool(enabled)) => Ok(*enabled),
        Some(other) => Err(Error::invalid(key, other, "be true or false")),
    }
}

/// Without a backend, host-gw is meant: this agent has no other.
fn check_backend(backend: Option<&Value>) -> Result<(), Error> {
    let kind = match backend {
        None => return Ok(()),
        Some(Value::Object(backend)) => backend.get(TYPE).unwrap_or(&Value::Null),
        Some(other) => return Err(Error::invalid(BACKEND, other, "be an object")),
    };
    match kind.as_str() {
        Some(kind) if kind.eq_ignore_ascii_case("host-gw") => Ok(()),
        _ => Err(Error::invalid("Backend.Type", kind, "be \"host-gw\"")),
    }
}

/// Spells known keys as flannel does, and drops nulls. A null backend stays: flannel reads it as one
/// without a type.
fn fold(object: Map<String, Value>) -> Map<String, Value> {
    let mut folded = Map::new();
    for (key, value) in object {
        let known = KEYS.iter().find(|known| known.eq_ignore_ascii_case(&key));
        let key = known.map_or(key, |known| (*known).to_owned());
        let value = match value {
            Value::Null if key != BACKEND => continue,
            Value::Null => Value::Object(Map::new()),
            Value::Object(inner) => Value::Object(fold(inner)),
            other => other,
        };
        folded.insert(key, value);
    }
    folded
}

impl<'de> Deserialize<'de> for NetConf {
    /// Keys match without regard to case, and unknown ones are ignored, as in flannel.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let object = fold(Map::deserialize(from)?);
        Self::check(&object).map_err(D::Error::custom)
    }
}

impl Serialize for NetConf {
    /// Writes every key, including those that had their defaults.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry(ENABLE_IPV4, &self.ipv4.is_some())?;
        map.serialize_entry(ENABLE_IPV6, &self.ipv6.is_some())?;
        for (pool, keys) in [(self.ipv4, &IPV4), (self.ipv6, &IPV6)] {
            if let Some(pool) = pool {
                map.serialize_entry(keys.network, &pool.network)?;
                map.serialize_entry(keys.length, &pool.length)?;
                map.serialize_entry(keys.min, &pool.first)?;
                map.serialize_entry(keys.max, &pool.last)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
