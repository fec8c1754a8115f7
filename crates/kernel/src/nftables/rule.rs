//! One rule, match by match.

use ipnetwork::IpNetwork;

use super::message::{attribute, comment, nest, number, text};

/// What packets of a chain are matched with, and what happens to those that match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    expressions: Vec<u8>,
    user_data: Vec<u8>,
}

/// How two values compare, in the kernel's numbers.
#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    Unequal = 1,
}

impl Rule {
    /// A rule that every packet matches, and that does nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Matches packets of the family of `network`: what a rule says first, in a table for both.
    #[must_use]
    pub fn of_family(mut self, network: IpNetwork) -> Self {
        let family = if network.is_ipv4() { 2 } else { 10 };
        self.meta(15);
        self.compare(Compare::Equal, &[family]);
        self
    }

    /// Matches packets that carry `mark`, among others.
    #[must_use]
    pub fn marked(mut self, mark: u32) -> Self {
        self.meta(3);
        // The kernel has marks in its own order of bytes.
        self.mask(&mark.to_ne_bytes());
        self.compare(Compare::Equal, &mark.to_ne_bytes());
        self
    }

    /// Matches packets from `network`.
    #[must_use]
    pub fn from(self, network: IpNetwork) -> Self {
        self.address(source(network), Compare::Equal, network)
    }

    /// Matches packets from elsewhere.
    #[must_use]
    pub fn not_from(self, network: IpNetwork) -> Self {
        self.address(source(network), Compare::Unequal, network)
    }

    /// Matches packets to `network`.
    #[must_use]
    pub fn to(self, network: IpNetwork) -> Self {
        self.address(destination(network), Compare::Equal, network)
    }

    /// Matches packets to elsewhere.
    #[must_use]
    pub fn not_to(self, network: IpNetwork) -> Self {
        self.address(destination(network), Compare::Unequal, network)
    }

    /// Counts what matches.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.expression("counter", |_| {});
        self
    }

    /// Leaves the chain.
    #[must_use]
    pub fn leave(self) -> Self {
        self.verdict(-5)
    }

    /// Accepts the packet, as far as this table is concerned.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(1)
    }

    /// Gives the packet the address of the interface that it leaves by; `is_random` has the port
    /// chosen at random, where two would else want the same one.
    #[must_use]
    pub fn masquerade(mut self, is_random: bool) -> Self {
        /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
        const FULLY_RANDOM: u32 = 16;
        self.expression("masq", |data| {
            if is_random {
                number(data, 1, FULLY_RANDOM);
            }
        });
        self
    }

    /// Says in the listing what the rule is for, in less than 120 bytes.
    #[must_use]
    pub fn commented(mut self, text: &str) -> Self {
        self.user_data = comment(text);
        self
    }

    /// Writes the rule's attributes behind those that say where it belongs.
    pub(super) fn write(&self, body: &mut Vec<u8>) {
        nest(body, 4, |list| list.extend(&self.expressions));
        if !self.user_data.is_empty() {
            attribute(body, USER_DATA, &self.user_data);
        }
    }

    /// Compares the masked address at `offset` of the network header with the network's.
    fn address(mut self, offset: u32, compare: Compare, network: IpNetwork) -> Self {
        let (address, mask) = match network {
            IpNetwork::V4(v4) => (v4.network().octets().to_vec(), v4.mask().octets().to_vec()),
            IpNetwork::V6(v6) => (v6.network().octets().to_vec(), v6.mask().octets().to_vec()),
        };
        let length = u32::try_from(address.len()).expect("4 or 16");
        self.expression("payload", |data| {
            // Into register 1, from the network header (1).
            for (kind, value) in [(1, 1), (2, 1), (3, offset), (4, length)] {
                number(data, kind, value);
            }
        });
        self.mask(&mask);
        self.compare(compare, &address);
        self
    }

    /// Has what the packet carries beside its bytes in register 1.
    fn meta(&mut self, key: u32) {
        self.expression("meta", |data| {
            number(data, 1, 1);
            number(data, 2, key);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).expect("16 at most");
        self.expression("bitwise", |data| {
            for (kind, value) in [(1, 1), (2, 1), (3, length)] {
                number(data, kind, value);
            }
            nest(data, 4, |value| attribute(value, 1, mask));
            nest(data, 5, |value| attribute(value, 1, &vec![0; mask.len()]));
        });
    }

    fn compare(&mut self, compare: Compare, value: &[u8]) {
        self.expression("cmp", |data| {
            number(data, 1, 1);
            number(data, 2, compare as u32);
            nest(data, 3, |data| attribute(data, 1, value));
        });
    }

    fn verdict(mut self, verdict: i32) -> Self {
        self.expression("immediate", |data| {
            number(data, 1, 0);
            nest(data, 2, |value| {
                nest(value, 2, |inner| {
                    attribute(inner, 1, &verdict.to_be_bytes());
                });
            });
        });
        self
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
        nest(&mut self.expressions, 1, |element| {
            text(element, 1, name);
            nest(element, 2, data);
        });
    }
}

/// A chain's have another number.
const USER_DATA: u16 = 7;

/// Where a network header has the address that it comes from.
fn source(network: IpNetwork) -> u32 {
    if network.is_ipv4() { 12 } else { 8 }
}

/// Where a network header has the address that it goes to.
fn destination(network: IpNetwork) -> u32 {
    if network.is_ipv4() { 16 } else { 24 }
}
