//! A list of Nodes in protobuf, read as it comes: one Node at a time is in memory, however many
//! there are.
//!
//! Its form is that of `k8s.io/apimachinery/pkg/runtime/generated.proto`: four bytes to know it by,
//! an `Unknown` around it, in whose `raw` the `NodeList` is.

use std::io;

use futures_util::AsyncReadExt;
use futures_util::io::AsyncBufRead;
use prost::Message;
use tracing::warn;

use super::connection::{Failure, PATIENCE, within};
use super::object::{ListMetadata, MAGIC, Object};

/// A text, bytes or another message: the one kind of field that is of use here.
const LENGTH_DELIMITED: u64 = 2;
/// `raw` of `Unknown`.
const RAW: u64 = 2;
/// `metadata` and `items` of `NodeList`.
const METADATA: u64 = 1;
const ITEMS: u64 = 2;
/// No object is longer: etcd takes 1.5 MB, and 8 MB at the most that anybody sets.
const LONGEST: u64 = 16 << 20;

/// Reads a list, and gives each Node to `take` as soon as it is there. Says what the list says of
/// itself.
pub(super) async fn read(
    source: impl AsyncBufRead + Unpin,
    mut take: impl FnMut(Object),
) -> Result<ListMetadata, Failure> {
    let mut reader = Reader { source, at: 0 };
    let mut magic = [0; MAGIC.len()];
    within(PATIENCE, reader.fill(&mut magic)).await?;
    if magic != MAGIC {
        return Err(Failure::Away("the list is not in protobuf".to_owned()));
    }
    let mut bytes = Vec::new();
    let length = loop {
        let (field, length) = within(PATIENCE, reader.head()).await?;
        if field == RAW {
            break length;
        }
        within(PATIENCE, reader.bytes(length, &mut bytes)).await?;
    };
    let end = reader.at.saturating_add(length);
    let mut metadata = ListMetadata::default();
    while reader.at < end {
        let (field, length) = within(PATIENCE, reader.head()).await?;
        within(PATIENCE, reader.bytes(length, &mut bytes)).await?;
        match field {
            METADATA => {
                let decoded = ListMetadata::decode(&bytes[..]);
                metadata = decoded
                    .map_err(|error| Failure::Away(format!("the list cannot be read: {error}")))?;
            }
            // One that nobody can read keeps no other from being routed.
            ITEMS => match Object::decode(&bytes[..]) {
                Ok(object) => take(object),
                Err(error) => warn!("a Node cannot be read, and is left out: {error}"),
            },
            _ => {}
        }
    }
    Ok(metadata)
}

struct Reader<R> {
    source: R,
    /// How many bytes were read.
    at: u64,
}

impl<R: AsyncBufRead + Unpin> Reader<R> {
    async fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.source.read_exact(bytes).await?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    async fn bytes(&mut self, length: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
        if length > LONGEST {
            return Err(broken("an object of the list is too long"));
        }
        bytes.resize(usize::try_from(length).unwrap_or_default(), 0);
        self.fill(bytes).await
    }

    /// A field's number, and how many bytes its value has.
    async fn head(&mut self) -> io::Result<(u64, u64)> {
        let key = self.varint().await?;
        if key & 7 != LENGTH_DELIMITED {
            return Err(broken("a field of the list is of an unknown kind"));
        }
        Ok((key >> 3, self.varint().await?))
    }

    async fn varint(&mut self) -> io::Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.fill(&mut byte).await?;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(broken("a number of the list has no end"))
    }
}

fn broken(what: &str) -> io::Error {
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

    /// A list as an API server writes it, with fields of no use here around everything.
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

    fn read_all(bytes: &[u8]) -> Result<(String, Vec<Object>), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        let mut objects = Vec::new();
        let metadata = runtime.block_on(read(bytes, |object| objects.push(object)))?;
        Ok((metadata.resource_version, objects))
    }

    #[test]
    fn protobuf_says_what_json_says() {
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
    fn a_list_that_breaks_off_is_none() {
        let bytes = list(&objects());
        // Behind `raw` there is nothing that is waited for.
        for end in 0..bytes.len() - 2 {
            assert!(read_all(&bytes[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_no_is_read_in_protobuf() {
        let mut status = Vec::new();
        field(2, b"Failure", &mut status);
        field(3, b"nodes is forbidden", &mut status);
        let mut bytes = MAGIC.to_vec();
        field(1, b"", &mut bytes);
        field(2, &status, &mut bytes);
        let said = super::super::object::refusal(&bytes);
        assert_eq!(said.as_deref(), Some("nodes is forbidden"));
        assert_eq!(super::super::object::refusal(b"{}"), None);
    }

    #[test]
    fn what_nobody_can_read_keeps_no_other_away() {
        let mut nodes = Vec::new();
        field(2, &[0xff], &mut nodes);
        field(2, &objects()[0].encode_to_vec(), &mut nodes);
        let mut bytes = MAGIC.to_vec();
        field(2, &nodes, &mut bytes);
        let (_, read) = read_all(&bytes).expect("a list");
        assert_eq!(read, objects()[..1]);
    }

    #[test]
    fn what_is_no_list_is_said() {
        for (bytes, word) in [
            (b"{\"kind\": \"NodeList\"}".to_vec(), "not in protobuf"),
            ([&MAGIC[..], b"\x08\x01"].concat(), "unknown kind"),
            (
                [&MAGIC[..], b"\x0a\xff\xff\xff\xff\x7f"].concat(),
                "too long",
            ),
        ] {
            let failure = read_all(&bytes).expect_err("it is none");
            assert!(failure.to_string().contains(word), "{failure}");
        }
    }
}
