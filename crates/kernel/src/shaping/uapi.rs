//! Numbers from the kernel's `linux/rtnetlink.h`, `linux/pkt_sched.h`, `linux/pkt_cls.h` and
//! `linux/tc_act/tc_mirred.h`, by the names that they have there, without the prefixes `TCA_` and
//! `TC_`.

pub(super) const NEW_QDISC: u16 = 36;
pub(super) const GET_QDISC: u16 = 38;
pub(super) const NEW_CLASS: u16 = 40;
pub(super) const GET_CLASS: u16 = 42;
pub(super) const NEW_FILTER: u16 = 44;
pub(super) const GET_FILTER: u16 = 46;

/// Length of `struct tcmsg`.
pub(super) const HEADER: usize = 20;

/// Parents of disciplines.
pub(super) const ROOT: u32 = 0xffff_ffff;
pub(super) const INGRESS: u32 = 0xffff_fff1;
/// Handle of the discipline `ingress`.
pub(super) const INGRESS_HANDLE: u32 = 0xffff_0000;

pub(super) const KIND: u16 = 1;
pub(super) const OPTIONS: u16 = 2;

/// Where the options of a discipline or class have a rate and its burst.
#[derive(Clone, Copy)]
pub(super) struct RateLayout {
    /// The structure that starts with a `struct tc_ratespec`.
    pub(super) parameters: u16,
    /// Offset of the burst in that structure. It is a time, in units of [`TICK`].
    pub(super) buffer: usize,
    /// The rate in 64 bits.
    pub(super) rate64: u16,
}

pub(super) const TBF: RateLayout = RateLayout {
    parameters: 1,
    buffer: 28,
    rate64: 4,
};
pub(super) const TBF_BURST: u16 = 6;

pub(super) const HTB_CLASS: RateLayout = RateLayout {
    parameters: 1,
    buffer: 24,
    rate64: 6,
};
pub(super) const HTB_INIT: u16 = 2;
pub(super) const HTB_CEIL64: u16 = 7;

/// The unit of times (`PSCHED_TICKS2NS`), in nanoseconds.
pub(super) const TICK: u64 = 64;

pub(super) const U32_CLASSID: u16 = 1;
pub(super) const U32_SEL: u16 = 5;
pub(super) const U32_ACT: u16 = 7;

pub(super) const ACT_KIND: u16 = 1;
pub(super) const ACT_OPTIONS: u16 = 2;
pub(super) const ACT_STOLEN: u32 = 4;
pub(super) const MIRRED_PARMS: u16 = 2;
pub(super) const EGRESS_REDIR: u32 = 1;

pub(super) const ETH_P_ALL: u16 = 3;
pub(super) const ETH_P_IP: u16 = 0x0800;
pub(super) const ETH_P_IPV6: u16 = 0x86dd;
