//! Reads a list of Nodes in protobuf as a stream, so that only one Node at a time is in memory,
//! however many there are.
//!
//! The format is that of `k8s.io/apimachinery/pkg/runtime/generated.proto`: four magic bytes, then
//! an `Unknown` message whose field `raw` contains the `NodeList`.

use std::io;

use futures::AsyncReadExt;
use futures::io::AsyncBufRead;
use prost::Message;
use tracing::warn;

use super::connection::{REQUEST_TIMEOUT, within};
use super::error::Error;
use super::object::{ListMetadata, MAGIC, Object};

/// Wire type of strings, bytes and messages, the only one that occurs here.
const LENGTH_DELIMITED: u64 = 2;
/// Number of the field `raw` of `Unknown`.
const RAW: u64 = 2;
/// Numbers of the fields `metadata` and `items` of `NodeList`.
const METADATA: u64 = 1;
const ITEMS: u64 = 2;
/// Largest object that is accepted. etcd accepts 1.5 MB by default, and nobody sets more than 8 MB.
const MAX_OBJECT: u64 = 16 << 20;

/// Reads a list and passes each Node to `take` as soon as it is decoded. Returns the metadata of
/// the list.
pub(super) async fn read(
    source: impl AsyncBufRead + Unpin,
    mut take: impl FnMut(Object),
) -> Result<ListMetadata, Error> {
    let mut reader = Reader { source, at: 0 };
    let mut magic = [0; MAGIC.len()];
    within(REQUEST_TIMEOUT, reader.read_exact_bytes(&mut magic)).await?;
    if magic != MAGIC {
        return Err(Error::Unavailable("the list is not in protobuf".to_owned()));
    }
    let mut bytes = Vec::new();
    let length = loop {
        let (field, length) = within(REQUEST_TIMEOUT, reader.field_header()).await?;
        if field == RAW {
            break length;
        }
        within(REQUEST_TIMEOUT, reader.bytes(length, &mut bytes)).await?;
    };
    let end = reader.at.saturating_add(length);
    let mut metadata = ListMetadata::default();
    while reader.at < end {
        let (field, length) = within(REQUEST_TIMEOUT, reader.field_header()).await?;
        within(REQUEST_TIMEOUT, reader.bytes(length, &mut bytes)).await?;
        match field {
            METADATA => {
                let decoded = ListMetadata::decode(&bytes[..]);
                metadata = decoded.map_err(|error| {
                    Error::Unavailable(format!("cannot decode the list: {error}"))
                })?;
            }
            // A Node that cannot be decoded must not stop the routes to the other nodes.
            ITEMS => match Object::decode(&bytes[..]) {
                Ok(object) => take(object),
                Err(error) => warn!("ignored a Node that cannot be decoded: {error}"),
            },
            _ => {}
        }
    }
    Ok(metadata)
}

struct Reader<R> {
    source: R,
    /// Number of bytes read so far.
    at: u64,
}

impl<R: AsyncBufRead + Unpin> Reader<R> {
    async fn read_exact_bytes(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.source.read_exact(bytes).await?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    async fn bytes(&mut self, length: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
        if length > MAX_OBJECT {
            return Err(invalid_data("an object in the list is too long"));
        }
        bytes.resize(usize::try_from(length).unwrap_or_default(), 0);
        self.read_exact_bytes(bytes).await
    }

    /// Reads a field's number and the length of its value.
    async fn field_header(&mut self) -> io::Result<(u64, u64)> {
        let key = self.varint().await?;
        if key & 7 != LENGTH_DELIMITED {
            return Err(invalid_data("a field in the list has an unknown wire type"));
        }
        Ok((key >> 3, self.varint().await?))
    }

    async fn varint(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.read_exact_bytes(&mut byte).await?;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(invalid_data("a varint in the list is too long"))
    }
}

fn invalid_data(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use prost::bytes::BufMut;
    use prost::encoding::{encode_key, encode_varint};
    use serde_json::json;

    use super::*;

    fn field(number: u32, value: &[u8], to: &mut Vec<u8>) {
        encode_key(number, prost::encoding::WireType::LengthDelimited, to);
        encode_varint(value.len() as u64, to);
        to.put_slice(value);
    }

    fn objects() -> Vec<Object> {
        let object = |name: &str| {
            json!({
                "metadata": {
                    "name": name, "uid": "u", "resourceVersion": "7",
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "annotations": {"a/b": "c"},
                },
                "spec": {"podCIDR": "10.10.1.0/24", "podCIDRs": ["10.10.1.0/24"]},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "192.168.2.16"}],
                    "conditions": [{"type": "NetworkUnavailable", "status": "True"}],
                },
            })
        };
        let objects = ["worker1", "worker2"].map(object);
        objects
            .into_iter()
            .map(|object| serde_json::from_value(object).expect("a Node"))
            .collect()
    }

    /// A list as the API server writes it, with unknown fields at every level.
    fn list(objects: &[Object]) -> Vec<u8> {
        let mut nodes = Vec::new();
        let metadata = ListMetadata {
            resource_version: "9".to_owned(),
        };
        field(1, &metadata.encode_to_vec(), &mut nodes);
        for object in objects {
            let mut object = object.encode_to_vec();
            field(99, b"of a later release", &mut object);
            field(2, &object, &mut nodes);
        }
        let mut bytes = MAGIC.to_vec();
        field(1, b"\x0a\x02v1\x12\x08NodeList", &mut bytes);
        field(2, &nodes, &mut bytes);
        field(3, b"", &mut bytes);
        bytes
    }

    fn read_all(bytes: &[u8]) -> Result<(String, Vec<Object>), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let mut objects = Vec::new();
        let metadata = runtime.block_on(read(bytes, |object| objects.push(object)))?;
        Ok((metadata.resource_version, objects))
    }

    #[test]
    fn protobuf_and_json_decode_to_the_same_objects() {
        let objects = objects();
        let (version, read) = read_all(&list(&objects)).expect("a list");
        assert_eq!(version, "9");
        assert_eq!(read, objects);
        let metadata = read[0].metadata.as_ref().expect("it has some");
        assert_eq!(
            metadata.creation_timestamp,
            Some(super::super::object::Time {
                seconds: 1_767_225_600
            })
        );
        assert_eq!(metadata.annotations["a/b"], "c");
    }

    #[test]
    fn a_truncated_list_is_an_error() {
        let bytes = list(&objects());
        // After `raw`, nothing more is needed.
        for end in 0..bytes.len() - 2 {
            assert!(read_all(&bytes[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_status_in_protobuf_is_decoded() {
        let mut status = Vec::new();
        field(2, b"Error", &mut status);
        field(3, b"nodes is forbidden", &mut status);
        let mut bytes = MAGIC.to_vec();
        field(1, b"", &mut bytes);
        field(2, &status, &mut bytes);
        let message = super::super::object::status_message(&bytes);
        assert_eq!(message.as_deref(), Some("nodes is forbidden"));
        assert_eq!(super::super::object::status_message(b"{}"), None);
    }

    #[test]
    fn a_node_that_cannot_be_decoded_is_skipped() {
        let mut nodes = Vec::new();
        field(2, &[0xff], &mut nodes);
        field(2, &objects()[0].encode_to_vec(), &mut nodes);
        let mut bytes = MAGIC.to_vec();
        field(2, &nodes, &mut bytes);
        let (_, read) = read_all(&bytes).expect("a list");
        assert_eq!(read, objects()[..1]);
    }

    #[test]
    fn an_invalid_list_is_an_error() {
        for (bytes, word) in [
            (b"{\"kind\": \"NodeList\"}".to_vec(), "not in protobuf"),
            ([&MAGIC[..], b"\x08\x01"].concat(), "unknown wire type"),
            (
                [&MAGIC[..], b"\x0a\xff\xff\xff\xff\x7f"].concat(),
                "too long",
            ),
        ] {
            let failure = read_all(&bytes).expect_err("it is none");
            assert!(failure.to_string().contains(word), "{failure}");
        }
    }

    #[test]
    fn damaged_lists_never_panic() {
        let valid = list(&objects());
        random_input::never_panics(&[&valid], |bytes| drop(read_all(bytes)));
    }
}
