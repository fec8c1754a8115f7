//! Numbers from the kernel's `linux/netfilter/nf_tables.h` and `linux/netfilter.h`, by the names
//! that they have there, without the prefix `NFTA_`.

/// Hooks (`NF_INET_*`).
pub(super) mod hook {
    pub(in super::super) const PRE_ROUTING: u32 = 0;
    pub(in super::super) const FORWARD: u32 = 2;
    pub(in super::super) const LOCAL_OUT: u32 = 3;
    pub(in super::super) const POST_ROUTING: u32 = 4;
    /// `NF_NETDEV_INGRESS`
    pub(in super::super) const NETDEV_INGRESS: u32 = 0;
    /// `NF_IP_PRI_RAW`
    pub(in super::super) const PRIORITY_RAW: i32 = -300;
    /// `NF_IP_PRI_NAT_DST`
    pub(in super::super) const PRIORITY_NAT_DST: i32 = -100;
    /// `NF_IP_PRI_NAT_SRC`
    pub(in super::super) const PRIORITY_NAT_SRC: i32 = 100;
    pub(in super::super) const PRIORITY_FILTER: i32 = 0;
    /// `NF_IP_PRI_CONNTRACK_HELPER`
    pub(in super::super) const PRIORITY_CONNTRACK_HELPER: i32 = 300;
}

/// Families of network addresses (`NFPROTO_*`).
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;

/// Verdict codes (`NF_*`, `NFT_*`).
pub(super) mod verdict {
    pub(in super::super) const DROP: i32 = 0;
    pub(in super::super) const ACCEPT: i32 = 1;
    pub(in super::super) const JUMP: i32 = -3;
    pub(in super::super) const GOTO: i32 = -4;
    pub(in super::super) const RETURN: i32 = -5;
}

/// Registers (`NFT_REG_*`).
pub(super) const REG_VERDICT: u32 = 0;
pub(super) const REG_1: u32 = 1;
/// The first of the sixteen registers of four bytes. It is the start of register 1.
pub(super) const REG32_00: u32 = 8;

pub(super) const LIST_ELEM: u16 = 1;

pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;

pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
/// The number of references to the chain: its rules, and the jumps to it.
pub(super) const CHAIN_USE: u16 = 6;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const CHAIN_USERDATA: u16 = 12;

pub(super) const HOOK_HOOKNUM: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
/// The handle of the rule before which, or after which, the new one is placed.
pub(super) const RULE_POSITION: u16 = 6;
pub(super) const RULE_USERDATA: u16 = 7;

pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
/// Values of `META_KEY`.
pub(super) mod meta {
    pub(in super::super) const MARK: u32 = 3;
    pub(in super::super) const IIF: u32 = 4;
    pub(in super::super) const OIF: u32 = 5;
    pub(in super::super) const IIFNAME: u32 = 6;
    pub(in super::super) const OIFNAME: u32 = 7;
    pub(in super::super) const NFPROTO: u32 = 15;
    pub(in super::super) const L4PROTO: u32 = 16;
}

pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;
/// Values of `PAYLOAD_BASE`.
pub(super) const PAYLOAD_NETWORK_HEADER: u32 = 1;
pub(super) const PAYLOAD_TRANSPORT_HEADER: u32 = 2;

pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const BITWISE_OP: u16 = 6;

pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const CMP_EQ: u32 = 0;
pub(super) const CMP_NEQ: u32 = 1;

pub(super) const RANGE_SREG: u16 = 1;
pub(super) const RANGE_OP: u16 = 2;
pub(super) const RANGE_FROM_DATA: u16 = 3;
pub(super) const RANGE_TO_DATA: u16 = 4;
pub(super) const RANGE_EQ: u32 = 0;

pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const CT_DIRECTION: u16 = 3;
/// Values of `CT_KEY`.
pub(super) mod ct {
    pub(in super::super) const STATE: u32 = 0;
    pub(in super::super) const DIRECTION: u32 = 1;
    pub(in super::super) const STATUS: u32 = 2;
    pub(in super::super) const MARK: u32 = 3;
    pub(in super::super) const SECMARK: u32 = 4;
    pub(in super::super) const PROTO_DST: u32 = 12;
    pub(in super::super) const ID: u32 = 23;
    /// `IPS_DST_NAT`, a bit of the status.
    pub(in super::super) const STATUS_DNAT: u32 = 1 << 5;
    /// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`, a bit of the state.
    pub(in super::super) const STATE_ESTABLISHED: u32 = 1 << 1;
    /// `IP_CT_DIR_ORIGINAL`
    pub(in super::super) const DIRECTION_ORIGINAL: u8 = 0;
    /// `IP_CT_DIR_REPLY`
    pub(in super::super) const DIRECTION_REPLY: u8 = 1;
}

pub(super) const FIB_DREG: u16 = 1;
pub(super) const FIB_RESULT: u16 = 2;
pub(super) const FIB_FLAGS: u16 = 3;
/// A value of `FIB_RESULT`: the type of an address.
pub(super) const FIB_RESULT_ADDRTYPE: u32 = 3;
pub(super) const FIB_F_DADDR: u32 = 2;

pub(super) const NAT_TYPE: u16 = 1;
pub(super) const NAT_FAMILY: u16 = 2;
pub(super) const NAT_REG_ADDR_MIN: u16 = 3;
pub(super) const NAT_REG_PROTO_MIN: u16 = 5;
/// A value of `NAT_TYPE`.
pub(super) const NAT_DNAT: u32 = 1;

pub(super) const LIMIT_FLAGS: u16 = 5;
/// The limit matches packets above its rate.
pub(super) const LIMIT_F_INV: u32 = 1;

pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_FLAGS: u16 = 5;

pub(super) const DYNSET_SET_NAME: u16 = 1;
pub(super) const DYNSET_OP: u16 = 3;
pub(super) const DYNSET_SREG_KEY: u16 = 4;
/// A value of `DYNSET_OP`: an element that exists gets its whole time again.
pub(super) const DYNSET_UPDATE: u32 = 1;

pub(super) const MASQ_FLAGS: u16 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`
pub(super) const MASQ_RANDOM_FULLY: u32 = 16;

pub(super) const QUOTA_CONSUMED: u16 = 4;

/// An extension of `iptables` (xt) as a match or a target.
pub(super) const XT_NAME: u16 = 1;
pub(super) const XT_REV: u16 = 2;
pub(super) const XT_INFO: u16 = 3;

pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
pub(super) const SET_DATA_LEN: u16 = 7;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_DESCRIPTION: u16 = 9;
pub(super) const SET_DESCRIPTION_SIZE: u16 = 1;
pub(super) const SET_TIMEOUT: u16 = 11;
pub(super) const SET_USERDATA: u16 = 13;
/// A flag of a set: its elements have values.
pub(super) const SET_MAP: u32 = 8;
/// The same: its elements expire, and rules add them.
pub(super) const SET_EXPIRES: u32 = 0x10;
pub(super) const SET_EVAL: u32 = 0x20;
/// The type of values that are verdicts.
pub(super) const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

pub(super) const SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const SET_ELEM_LIST_SET: u16 = 2;
pub(super) const SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const SET_ELEM_KEY: u16 = 1;
pub(super) const SET_ELEM_DATA: u16 = 2;
pub(super) const SET_ELEM_FLAGS: u16 = 3;
pub(super) const SET_ELEM_USERDATA: u16 = 6;
pub(super) const SET_ELEM_KEY_END: u16 = 10;

pub(super) const FLOWTABLE_TABLE: u16 = 1;
pub(super) const FLOWTABLE_NAME: u16 = 2;
pub(super) const FLOWTABLE_HOOK: u16 = 3;
pub(super) const FLOWTABLE_HOOK_NUM: u16 = 1;
pub(super) const FLOWTABLE_HOOK_PRIORITY: u16 = 2;
pub(super) const FLOWTABLE_HOOK_DEVS: u16 = 3;
pub(super) const DEVICE_NAME: u16 = 1;
/// The flowtable of the expression `flow_offload`.
pub(super) const FLOW_TABLE_NAME: u16 = 1;

/// The type of a comment in user data (`NFTNL_UDATA_*_COMMENT`).
pub(super) const UDATA_COMMENT: u8 = 0;
/// The types of byte orders in the user data of a set (`NFTNL_UDATA_SET_*BYTEORDER`).
pub(super) const UDATA_SET_KEY_BYTE_ORDER: u8 = 0;
pub(super) const UDATA_SET_DATA_BYTE_ORDER: u8 = 1;
