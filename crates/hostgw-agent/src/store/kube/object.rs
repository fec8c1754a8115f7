//! A Node object as the API server tells it, in JSON and in protobuf. What is of no use here, images,
//! labels and managed fields for most, is read over.
//!
//! The numbers are those of `k8s.io/api/core/v1/generated.proto`.

use std::collections::HashMap;

use prost::Message;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A Node.
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

/// A moment.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Time {
    /// Since 1970.
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

/// What a Node's status says of one question.
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

/// What is said of a list as a whole.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListMetadata {
    #[prost(string, tag = "2")]
    pub(super) resource_version: String,
}

/// What an API server says instead of doing what was asked for.
#[derive(Clone, PartialEq, Message)]
struct Refusal {
    #[prost(string, tag = "3")]
    message: String,
}

/// What everything in protobuf is wrapped in.
#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

/// What everything in protobuf begins with.
pub(super) const MAGIC: [u8; 4] = *b"k8s\0";

/// The words of a `Status` in protobuf; nothing where it is none.
pub(super) fn refusal(bytes: &[u8]) -> Option<String> {
    let unknown = Unknown::decode(bytes.strip_prefix(&MAGIC)?).ok()?;
    Some(Refusal::decode(&unknown.raw[..]).ok()?.message)
}

impl Object {
    /// How far one knows who knows this.
    pub(super) fn version(&self) -> &str {
        let metadata = self.metadata.as_ref();
        metadata.map_or("", |metadata| &metadata.resource_version)
    }
}

impl<'de> Deserialize<'de> for Time {
    /// By RFC 3339, as JSON has it.
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
