//! A hash of what identifies an attachment.

use sha2::{Digest, Sha256};

/// A hash of a network, a container id and the name of an interface. Names of links on the host are
/// computed from it, so that nobody has to remember them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentHash([u8; 32]);

impl AttachmentHash {
    /// Computes the hash.
    #[must_use]
    pub fn of(network: &str, container_id: &str, ifname: &str) -> Self {
        // None of the three contains a slash.
        let key = format!("{network}/{container_id}/{ifname}");
        Self(Sha256::digest(key).into())
    }

    /// The name of the attachment's host veth: `veth` and 11 characters, 15 bytes in all.
    #[must_use]
    pub fn host_veth(&self) -> String {
        self.name("veth")
    }

    /// The name of a link on the host: `prefix`, filled up to 15 bytes.
    #[must_use]
    pub fn name(&self, prefix: &str) -> String {
        const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        const LENGTH: usize = 15;
        let digit = |byte: &u8| char::from(DIGITS[usize::from(byte & 31)]);
        let digits = self.0.iter().map(digit);
        prefix.chars().chain(digits).take(LENGTH).collect()
    }

    /// Two numbers of four bytes, which no name contains.
    #[must_use]
    pub fn numbers(&self) -> [[u8; 4]; 2] {
        let last: [u8; 8] = *self.0.last_chunk().expect("the hash has 32 bytes");
        let (first, second) = last.split_at(4);
        [first, second].map(|half| half.try_into().expect("half of eight bytes"))
    }
}
