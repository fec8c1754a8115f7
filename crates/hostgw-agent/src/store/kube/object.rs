//! The parts of a Node object that the agent uses, decoded from JSON or protobuf. Everything else,
//! mostly images, labels and managed fields, is skipped.
//!
//! The field numbers come from `k8s.io/api/core/v1/generated.proto`.

use std::collections::HashMap;

use prost::Message;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A Node object.
#[derive(Clone, PartialEq, Message, Deserialize)]
pub(super) struct Object {
    #[prost(message, optional, tag = "1")]
    #[serde(default)]
    pub(super) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    #[serde(default)]
    pub(super) spec: Option<Spec>,
    #[prost(message, optional, tag = "3")]
    #[serde(default)]
    pub(super) status: Option<Status>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "5")]
    pub(super) uid: String,
    #[prost(string, tag = "6")]
    pub(super) resource_version: String,
    #[prost(message, optional, tag = "8")]
    pub(super) creation_timestamp: Option<Time>,
    #[prost(map = "string, string", tag = "12")]
    pub(super) annotations: HashMap<String, String>,
}

/// A timestamp.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Time {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(super) struct Spec {
    #[prost(string, tag = "1")]
    #[serde(rename = "podCIDR")]
    pub(super) pod_cidr: String,
    #[prost(string, repeated, tag = "7")]
    #[serde(rename = "podCIDRs")]
    pub(super) pod_cidrs: Vec<String>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    #[prost(message, repeated, tag = "4")]
    pub(super) conditions: Vec<Condition>,
    #[prost(message, repeated, tag = "5")]
    pub(super) addresses: Vec<Address>,
}

#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
pub(super) struct Address {
    #[prost(string, tag = "1")]
    pub(super) r#type: String,
    #[prost(string, tag = "2")]
    pub(super) address: String,
}

/// A condition in a Node's status.
#[derive(Clone, PartialEq, Eq, Message, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[prost(string, tag = "1")]
    pub(super) r#type: String,
    #[prost(string, tag = "2")]
    pub(super) status: String,
    #[prost(string, tag = "5")]
    pub(super) reason: String,
    #[prost(string, tag = "6")]
    pub(super) message: String,
}

/// Metadata of a list.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListMetadata {
    #[prost(string, tag = "2")]
    pub(super) resource_version: String,
}

/// A `Status` object, which the API server returns instead of the requested object.
#[derive(Clone, PartialEq, Message)]
struct StatusMessage {
    #[prost(string, tag = "3")]
    message: String,
}

/// Envelope of every object in protobuf (`runtime.Unknown`).
#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

/// First bytes of every object in protobuf.
pub(super) const MAGIC: [u8; 4] = *b"k8s\0";

/// Returns the message of a `Status` in protobuf; `None` if `bytes` are not in protobuf.
pub(super) fn status_message(bytes: &[u8]) -> Option<String> {
    let unknown = Unknown::decode(bytes.strip_prefix(&MAGIC)?).ok()?;
    Some(StatusMessage::decode(&unknown.raw[..]).ok()?.message)
}

impl Object {
    /// Returns the `resourceVersion` of the object.
    pub(super) fn version(&self) -> &str {
        let metadata = self.metadata.as_ref();
        metadata.map_or("", |metadata| &metadata.resource_version)
    }
}

impl<'de> Deserialize<'de> for Time {
    /// Parses a time as JSON has it, in RFC 3339.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let time = humantime::parse_rfc3339(&text).map_err(D::Error::custom)?;
        let since = time.duration_since(std::time::UNIX_EPOCH);
        let seconds = since.map_err(D::Error::custom)?.as_secs();
        Ok(Self {
            seconds: seconds.try_into().map_err(D::Error::custom)?,
        })
    }
}
