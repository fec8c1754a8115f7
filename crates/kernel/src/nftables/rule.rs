//! A builder for rules.

use ipnetwork::IpNetwork;

use super::map::{Field, write_chain_verdict};
use super::message::{attribute, comment, nest, number, text};
use super::uapi::{
    BITWISE_DREG, BITWISE_LEN, BITWISE_MASK, BITWISE_SREG, BITWISE_XOR, CMP_DATA, CMP_EQ, CMP_NEQ,
    CMP_OP, CMP_SREG, CT_DIRECTION, CT_DREG, CT_KEY, DATA_VALUE, DATA_VERDICT, DYNSET_OP,
    DYNSET_SET_NAME, DYNSET_SREG_KEY, DYNSET_UPDATE, EXPR_DATA, EXPR_NAME, FIB_DREG, FIB_F_DADDR,
    FIB_FLAGS, FIB_RESULT, FIB_RESULT_ADDRTYPE, IMMEDIATE_DATA, IMMEDIATE_DREG, LIST_ELEM,
    LOOKUP_DREG, LOOKUP_SET, LOOKUP_SREG, MASQ_FLAGS, MASQ_RANDOM_FULLY, META_DREG, META_KEY,
    NAT_DNAT, NAT_FAMILY, NAT_REG_ADDR_MIN, NAT_REG_PROTO_MIN, NAT_TYPE, NFPROTO_IPV4,
    NFPROTO_IPV6, PAYLOAD_BASE, PAYLOAD_DREG, PAYLOAD_LEN, PAYLOAD_NETWORK_HEADER, PAYLOAD_OFFSET,
    PAYLOAD_TRANSPORT_HEADER, REG_1, REG_VERDICT, REG32_00, RULE_EXPRESSIONS, RULE_USERDATA,
    VERDICT_CODE, ct, meta, verdict,
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
    pub fn match_family(self, network: IpNetwork) -> Self {
        self.match_ip(network.is_ipv6())
    }

    /// Matches IPv4 packets, or IPv6 packets. In a table for both families, this match must come
    /// first.
    #[must_use]
    pub fn match_ip(mut self, is_ipv6: bool) -> Self {
        let family = if is_ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
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

    /// Matches packets to an address of the node itself.
    #[must_use]
    pub fn to_local(mut self) -> Self {
        /// `RTN_LOCAL`
        const LOCAL: u32 = 2;
        self.expression("fib", |data| {
            number(data, FIB_DREG, REG_1);
            number(data, FIB_RESULT, FIB_RESULT_ADDRTYPE);
            number(data, FIB_FLAGS, FIB_F_DADDR);
        });
        self.compare(CMP_EQ, &LOCAL.to_ne_bytes());
        self
    }

    /// Matches packets of connections whose destination was translated.
    #[must_use]
    pub fn translated(self) -> Self {
        self.destination_nat(CMP_NEQ)
    }

    /// Matches packets of connections whose destination was not translated.
    #[must_use]
    pub fn not_translated(self) -> Self {
        self.destination_nat(CMP_EQ)
    }

    fn destination_nat(mut self, operator: u32) -> Self {
        self.expression("ct", |data| {
            number(data, CT_DREG, REG_1);
            number(data, CT_KEY, ct::STATUS);
        });
        self.mask(&ct::STATUS_DNAT.to_ne_bytes());
        self.compare(operator, &[0; 4]);
        self
    }

    /// Matches packets of connections that were answered.
    #[must_use]
    pub fn established(mut self) -> Self {
        self.expression("ct", |data| {
            number(data, CT_DREG, REG_1);
            number(data, CT_KEY, ct::STATE);
        });
        self.mask(&ct::STATE_ESTABLISHED.to_ne_bytes());
        self.compare(CMP_NEQ, &[0; 4]);
        self
    }

    /// Matches packets that came in on an interface: not those of the node itself. For chains behind routing; there,
    /// packets that a bridge passes from port to port have no interface either.
    #[must_use]
    pub fn has_input_interface(mut self) -> Self {
        self.meta(meta::IIF);
        self.compare(CMP_NEQ, &[0; 4]);
        self
    }

    /// Matches packets of the side that opened the connection, or with `is_reply` of the other.
    #[must_use]
    pub fn in_direction(mut self, is_reply: bool) -> Self {
        self.expression("ct", |data| {
            number(data, CT_DREG, REG_1);
            number(data, CT_KEY, ct::DIRECTION);
        });
        let direction = if is_reply {
            ct::DIRECTION_REPLY
        } else {
            ct::DIRECTION_ORIGINAL
        };
        self.compare(CMP_EQ, &[direction]);
        self
    }

    /// Matches packets of a protocol above IP, by its number.
    #[must_use]
    pub fn of_protocol(mut self, protocol: u8) -> Self {
        self.meta(meta::L4PROTO);
        self.compare(CMP_EQ, &[protocol]);
        self
    }

    /// Matches packets whose `key` is in a set.
    #[must_use]
    pub fn is_in(self, set: &str, key: &[Load]) -> Self {
        self.lookup(set, key, None)
    }

    /// Adds the packet's `key` to a set whose elements expire, or lets it stay for its whole time again. If the
    /// set is full, the rule ends here.
    #[must_use]
    pub fn remember_in(mut self, set: &str, key: Load) -> Self {
        self.load(key, REG32_00);
        self.expression("dynset", |data| {
            text(data, DYNSET_SET_NAME, set);
            number(data, DYNSET_OP, DYNSET_UPDATE);
            number(data, DYNSET_SREG_KEY, REG32_00);
        });
        self
    }

    /// Applies the verdict that a map has for the packet's `key`. Without one, the next rule follows.
    #[must_use]
    pub fn verdict_of(self, map: &str, key: &[Load]) -> Self {
        self.lookup(map, key, Some(REG_VERDICT))
    }

    /// Translates the destination to the address and port that a map has for the packet's `key`.
    /// Without one, the next rule follows.
    #[must_use]
    pub fn dnat_by(self, map: &str, key: &[Load], is_ipv6: bool) -> Self {
        let mut rule = self.lookup(map, key, Some(REG32_00));
        let (family, port) = if is_ipv6 {
            (NFPROTO_IPV6, REG32_00 + 4)
        } else {
            (NFPROTO_IPV4, REG32_00 + 1)
        };
        rule.expression("nat", |data| {
            number(data, NAT_TYPE, NAT_DNAT);
            number(data, NAT_FAMILY, family.into());
            number(data, NAT_REG_ADDR_MIN, REG32_00);
            number(data, NAT_REG_PROTO_MIN, port);
        });
        rule
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

    /// Continues with the rules of another chain, and comes back after them (verdict jump).
    #[must_use]
    pub fn jump(mut self, chain: &str) -> Self {
        self.expression("immediate", |data| {
            number(data, IMMEDIATE_DREG, REG_VERDICT);
            nest(data, IMMEDIATE_DATA, |value| {
                write_chain_verdict(value, verdict::JUMP, chain);
            });
        });
        self
    }

    /// Drops the packet (verdict drop).
    #[must_use]
    pub fn drop_packet(self) -> Self {
        self.verdict(verdict::DROP)
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

    /// Loads the parts of `key` side by side, and looks them up.
    fn lookup(mut self, set: &str, key: &[Load], result: Option<u32>) -> Self {
        let mut register = REG32_00;
        for load in key {
            self.load(*load, register);
            register += load.field().registers();
        }
        self.expression("lookup", |data| {
            text(data, LOOKUP_SET, set);
            number(data, LOOKUP_SREG, REG32_00);
            if let Some(result) = result {
                number(data, LOOKUP_DREG, result);
            }
        });
        self
    }

    fn load(&mut self, load: Load, register: u32) {
        let payload = |data: &mut Vec<u8>, base, offset, length| {
            number(data, PAYLOAD_DREG, register);
            number(data, PAYLOAD_BASE, base);
            number(data, PAYLOAD_OFFSET, offset);
            number(data, PAYLOAD_LEN, length);
        };
        let meta = |data: &mut Vec<u8>, key| {
            number(data, META_DREG, register);
            number(data, META_KEY, key);
        };
        match load {
            Load::Protocol => self.expression("meta", |data| meta(data, meta::L4PROTO)),
            Load::InputInterface => self.expression("meta", |data| meta(data, meta::IIFNAME)),
            Load::DestinationIpv4 => {
                self.expression("payload", |data| {
                    payload(data, PAYLOAD_NETWORK_HEADER, 16, 4);
                });
            }
            Load::DestinationIpv6 => {
                self.expression("payload", |data| {
                    payload(data, PAYLOAD_NETWORK_HEADER, 24, 16);
                });
            }
            Load::DestinationPort => {
                self.expression("payload", |data| {
                    payload(data, PAYLOAD_TRANSPORT_HEADER, 2, 2);
                });
            }
            Load::ConnectionId => self.expression("ct", |data| {
                number(data, CT_DREG, register);
                number(data, CT_KEY, ct::ID);
            }),
            Load::OriginalDestinationPort => self.expression("ct", |data| {
                number(data, CT_DREG, register);
                number(data, CT_KEY, ct::PROTO_DST);
                attribute(data, CT_DIRECTION, &[ct::DIRECTION_ORIGINAL]);
            }),
        }
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

    pub(super) fn expression(&mut self, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
        nest(&mut self.expressions, LIST_ELEM, |element| {
            text(element, EXPR_NAME, name);
            nest(element, EXPR_DATA, data);
        });
    }
}

/// A value of a packet, as a part of the key for a set or a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Protocol above IP.
    Protocol,
    /// Destination address. The rule must match only IPv4.
    DestinationIpv4,
    /// Destination address. The rule must match only IPv6.
    DestinationIpv6,
    /// Destination port.
    DestinationPort,
    /// Destination port of the connection before its translation.
    OriginalDestinationPort,
    /// Name of the interface on which the packet came in.
    InputInterface,
    /// Number of the connection.
    ConnectionId,
}

impl Load {
    fn field(self) -> Field {
        match self {
            Self::Protocol => Field::Protocol,
            Self::DestinationIpv4 => Field::Ipv4,
            Self::DestinationIpv6 => Field::Ipv6,
            Self::DestinationPort | Self::OriginalDestinationPort => Field::Port,
            Self::InputInterface => Field::Interface,
            Self::ConnectionId => Field::Number,
        }
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
