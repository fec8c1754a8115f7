//! A builder for rules.

use ipnetwork::IpNetwork;

use super::message::{attribute, comment, nest, number, text};
use super::uapi::{
    BITWISE_DREG, BITWISE_LEN, BITWISE_MASK, BITWISE_SREG, BITWISE_XOR, CMP_DATA, CMP_EQ, CMP_NEQ,
    CMP_OP, CMP_SREG, DATA_VALUE, DATA_VERDICT, EXPR_DATA, EXPR_NAME, IMMEDIATE_DATA,
    IMMEDIATE_DREG, LIST_ELEM, MASQ_FLAGS, MASQ_RANDOM_FULLY, META_DREG, META_KEY, NFPROTO_IPV4,
    NFPROTO_IPV6, PAYLOAD_BASE, PAYLOAD_DREG, PAYLOAD_LEN, PAYLOAD_NETWORK_HEADER, PAYLOAD_OFFSET,
    REG_1, REG_VERDICT, RULE_EXPRESSIONS, RULE_USERDATA, VERDICT_CODE, meta, verdict,
};

/// A rule: the matches for packets, and the action for those that match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    expressions: Vec<u8>,
    user_data: Vec<u8>,
}

impl Rule {
    /// Returns a rule that matches every packet and has no action.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Matches packets of the same family as `network`. In a table for both families, this match
    /// must come first.
    #[must_use]
    pub fn match_family(mut self, network: IpNetwork) -> Self {
        let family = if network.is_ipv4() {
            NFPROTO_IPV4
        } else {
            NFPROTO_IPV6
        };
        self.meta(meta::NFPROTO);
        self.compare(CMP_EQ, &[family]);
        self
    }

    /// Matches packets that have the bits of `mark` set in their mark; other bits may also be set.
    #[must_use]
    pub fn marked(mut self, mark: u32) -> Self {
        self.meta(meta::MARK);
        // The kernel stores marks in native byte order.
        self.mask(&mark.to_ne_bytes());
        self.compare(CMP_EQ, &mark.to_ne_bytes());
        self
    }

    /// Matches packets with a source address in `network`.
    #[must_use]
    pub fn from(self, network: IpNetwork) -> Self {
        self.address(source_offset(network), CMP_EQ, network)
    }

    /// Matches packets with a source address outside `network`.
    #[must_use]
    pub fn not_from(self, network: IpNetwork) -> Self {
        self.address(source_offset(network), CMP_NEQ, network)
    }

    /// Matches packets with a destination address in `network`.
    #[must_use]
    pub fn to(self, network: IpNetwork) -> Self {
        self.address(destination_offset(network), CMP_EQ, network)
    }

    /// Matches packets with a destination address outside `network`.
    #[must_use]
    pub fn not_to(self, network: IpNetwork) -> Self {
        self.address(destination_offset(network), CMP_NEQ, network)
    }

    /// Adds a counter of the matching packets.
    #[must_use]
    pub fn counted(mut self) -> Self {
        self.expression("counter", |_| {});
        self
    }

    /// Ends the evaluation of the chain (verdict return).
    #[must_use]
    pub fn return_from_chain(self) -> Self {
        self.verdict(verdict::RETURN)
    }

    /// Accepts the packet (verdict accept). Chains of other tables at the same hook can still drop
    /// it.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(verdict::ACCEPT)
    }

    /// Sets the source address to that of the outgoing interface (masquerade). With `is_random`,
    /// the source port is chosen at random, so that two connections do not compete for one port.
    #[must_use]
    pub fn masquerade(mut self, is_random: bool) -> Self {
        self.expression("masq", |data| {
            if is_random {
                number(data, MASQ_FLAGS, MASQ_RANDOM_FULLY);
            }
        });
        self
    }

    /// Sets the comment that listings show for the rule, of less than 120 bytes.
    #[must_use]
    pub fn with_comment(mut self, text: &str) -> Self {
        self.user_data = comment(text);
        self
    }

    /// Appends the rule's attributes to a request body, which already has the table and the chain.
    pub(super) fn write(&self, body: &mut Vec<u8>) {
        nest(body, RULE_EXPRESSIONS, |list| {
            list.extend(&self.expressions);
        });
        if !self.user_data.is_empty() {
            attribute(body, RULE_USERDATA, &self.user_data);
        }
    }

    /// Compares the address at `offset` in the network header with `network`, under its mask.
    fn address(mut self, offset: u32, operator: u32, network: IpNetwork) -> Self {
        let (address, mask) = match network {
            IpNetwork::V4(v4) => (v4.network().octets().to_vec(), v4.mask().octets().to_vec()),
            IpNetwork::V6(v6) => (v6.network().octets().to_vec(), v6.mask().octets().to_vec()),
        };
        let length = u32::try_from(address.len()).expect("4 or 16");
        self.expression("payload", |data| {
            number(data, PAYLOAD_DREG, REG_1);
            number(data, PAYLOAD_BASE, PAYLOAD_NETWORK_HEADER);
            number(data, PAYLOAD_OFFSET, offset);
            number(data, PAYLOAD_LEN, length);
        });
        self.mask(&mask);
        self.compare(operator, &address);
        self
    }

    /// Loads a value of the packet's metadata into register 1.
    fn meta(&mut self, key: u32) {
        self.expression("meta", |data| {
            number(data, META_DREG, REG_1);
            number(data, META_KEY, key);
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        let length = u32::try_from(mask.len()).expect("16 at most");
        self.expression("bitwise", |data| {
            number(data, BITWISE_SREG, REG_1);
            number(data, BITWISE_DREG, REG_1);
            number(data, BITWISE_LEN, length);
            nest(data, BITWISE_MASK, |value| {
                attribute(value, DATA_VALUE, mask);
            });
            nest(data, BITWISE_XOR, |value| {
                attribute(value, DATA_VALUE, &vec![0; mask.len()]);
            });
        });
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        self.expression("cmp", |data| {
            number(data, CMP_SREG, REG_1);
            number(data, CMP_OP, operator);
            nest(data, CMP_DATA, |data| attribute(data, DATA_VALUE, value));
        });
    }

    fn verdict(mut self, code: i32) -> Self {
        self.expression("immediate", |data| {
            number(data, IMMEDIATE_DREG, REG_VERDICT);
            nest(data, IMMEDIATE_DATA, |value| {
                nest(value, DATA_VERDICT, |inner| {
                    attribute(inner, VERDICT_CODE, &code.to_be_bytes());
                });
            });
        });
        self
    }

    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
        nest(&mut self.expressions, LIST_ELEM, |element| {
            text(element, EXPR_NAME, name);
            nest(element, EXPR_DATA, data);
        });
    }
}

/// Offset of the source address in the network header.
fn source_offset(network: IpNetwork) -> u32 {
    if network.is_ipv4() { 12 } else { 8 }
}

/// Offset of the destination address in the network header.
fn destination_offset(network: IpNetwork) -> u32 {
    if network.is_ipv4() { 16 } else { 24 }
}
