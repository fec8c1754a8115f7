//! Every key of the configuration, with its type.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use cni::{
    Dns, Route, deserialize_network, deserialize_optional_address, deserialize_optional_network,
};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Keys at the top level.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct TopLevelKeys {
    pub(crate) subnet_file: Option<PathBuf>,
    pub(crate) subnet_file_wait: Option<f64>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) ipam: Option<Ipam>,
    #[serde(deserialize_with = "capabilities")]
    pub(crate) capabilities: Capabilities,
    pub(crate) runtime_config: Option<RuntimeConfig>,
    pub(crate) args: Args,
    pub(crate) dns: Dns,
}

/// `args`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Args {
    pub(crate) cni: CniKeys,
}

/// Keys under `delegate` that flannel passes to the `bridge` plugin, apart from that plugin's own
/// keys.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DelegateKeys {
    pub(crate) runtime_config: Option<RuntimeConfig>,
    pub(crate) args: Args,
    pub(crate) dns: Option<Dns>,
}

/// Keys of the `bridge` plugin.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "each field is the bridge plugin's key of the same name"
)]
pub struct BridgeKeys {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub bridge: Option<String>,
    pub is_gateway: Option<bool>,
    pub is_default_gateway: Option<bool>,
    pub force_address: Option<bool>,
    pub ip_masq: Option<bool>,
    pub ip_masq_backend: Option<String>,
    pub mtu: Option<u32>,
    pub hairpin_mode: Option<bool>,
    pub port_isolation: Option<bool>,
    pub promisc_mode: Option<bool>,
    pub enabledad: Option<bool>,
    pub disable_container_interface: Option<bool>,
    pub macspoofchk: Option<bool>,
    pub vlan: Option<i64>,
    pub vlan_trunk: Option<Value>,
}

/// `ipam`: configuration of the address management, with the keys of the `host-local` plugin.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipam {
    /// `type`: name of the IPAM plugin.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `ranges`: list of range sets. One address is allocated from each set.
    pub ranges: Vec<Vec<RangeConf>>,
    /// `routes`: routes to add in the container.
    pub routes: Vec<Route>,
    /// `dataDir`: directory of the reservations.
    pub data_dir: Option<PathBuf>,
    /// `resolvConf`: path of a resolv.conf file to read `dns` from.
    pub resolv_conf: Option<PathBuf>,
    /// Subnet of the single range. The older form has one range in the keys `subnet`, `rangeStart`,
    /// `rangeEnd` and `gateway`.
    #[serde(deserialize_with = "deserialize_optional_network")]
    pub subnet: Option<IpNetwork>,
    /// First address of the single range.
    #[serde(deserialize_with = "deserialize_optional_address")]
    pub range_start: Option<IpAddr>,
    /// Last address of the single range.
    #[serde(deserialize_with = "deserialize_optional_address")]
    pub range_end: Option<IpAddr>,
    /// Gateway of the single range.
    #[serde(deserialize_with = "deserialize_optional_address")]
    pub gateway: Option<IpAddr>,
}

/// A range of addresses.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RangeConf {
    /// Network that contains the addresses.
    #[serde(deserialize_with = "deserialize_network")]
    pub subnet: IpNetwork,
    /// First address of the range. Default: the address after the network address.
    #[serde(default, deserialize_with = "deserialize_optional_address")]
    pub range_start: Option<IpAddr>,
    /// Last address of the range. Default: the last usable address.
    #[serde(default, deserialize_with = "deserialize_optional_address")]
    pub range_end: Option<IpAddr>,
    /// Gateway, which is never allocated. Default: the first address after the network address.
    #[serde(default, deserialize_with = "deserialize_optional_address")]
    pub gateway: Option<IpAddr>,
}

/// `capabilities`: capabilities that an entry of the plugin list declares. A runtime supplies
/// values for declared capabilities only.
#[derive(Clone, Copy, Debug, Default)]
#[expect(
    missing_docs,
    reason = "each field is the capability of the same name in the CNI conventions"
)]
pub struct Capabilities {
    pub port_mappings: bool,
    pub bandwidth: bool,
}

/// `runtimeConfig`: what the runtime supplies for declared capabilities.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Capability `ips`: requested addresses, optionally with a prefix length.
    pub ips: Vec<String>,
    /// Capability `mac`: requested hardware address.
    pub mac: Option<String>,
    /// Capability `ipRanges`: range sets that precede those of `ipam`.
    pub ip_ranges: Vec<Vec<RangeConf>>,
    /// Capability `dns`: takes precedence over the configured `dns`.
    #[serde(deserialize_with = "runtime_dns")]
    pub dns: Option<Dns>,
    /// Capability `portMappings`: ports of the node that lead to the container.
    pub port_mappings: Vec<PortMapping>,
    /// Capability `bandwidth`: limits of the container's traffic.
    pub bandwidth: Option<Bandwidth>,
}

/// Limits of a container's traffic: keys of the `bandwidth` plugin, and of the capability.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// `ingressRate`: what the container receives, in bits per second. 0 for no limit.
    pub ingress_rate: u64,
    /// `ingressBurst`: how much it may receive at once, in bits.
    pub ingress_burst: u64,
    /// `egressRate`: what the container sends, in bits per second. 0 for no limit.
    pub egress_rate: u64,
    /// `egressBurst`: how much it may send at once, in bits.
    pub egress_burst: u64,
    /// `shapedSubnets`: the limits are only for packets from and to these subnets.
    #[serde(deserialize_with = "networks")]
    pub shaped_subnets: Vec<IpNetwork>,
    /// `unshapedSubnets`: the limits are not for packets from and to these subnets.
    #[serde(deserialize_with = "networks")]
    pub unshaped_subnets: Vec<IpNetwork>,
}

/// A port of the node that leads to a port of the container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PortMapping {
    /// Port of the node.
    pub host_port: i64,
    /// Port of the container.
    pub container_port: i64,
    /// `tcp`, `udp` or `sctp`, in upper or lower case.
    pub protocol: String,
    /// Address of the node. Empty or unspecified for all addresses.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

/// Keys of the `portmap` plugin, for an entry that declares the capability `portMappings`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortMapKeys {
    /// `snat`: false if no connection gets another source address.
    pub snat: Option<bool>,
    /// `masqAll`: true if all connections get the node's address as their source.
    pub masq_all: Option<bool>,
    /// `markMasqBit`: bit of the mark that `portmap` uses. Our rules need no mark.
    pub mark_masq_bit: Option<i64>,
    /// `externalSetMarkChain`: a chain of iptables. Not supported.
    pub external_set_mark_chain: Option<String>,
    /// `conditionsV4`: matches of iptables. Not supported.
    #[serde(rename = "conditionsV4")]
    pub conditions_v4: Vec<String>,
    /// `conditionsV6`: the same for IPv6.
    #[serde(rename = "conditionsV6")]
    pub conditions_v6: Vec<String>,
}

/// `args.cni`: requests that need no capability.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CniKeys {
    /// Requested addresses, optionally with a prefix length.
    pub ips: Vec<String>,
    /// Requested hardware address of the container interface.
    pub mac: Option<String>,
}

impl Bandwidth {
    /// The keys. If one of them is at the top level, the capability is not used.
    pub const KEYS: [&'static str; 6] = [
        "ingressRate",
        "ingressBurst",
        "egressRate",
        "egressBurst",
        "shapedSubnets",
        "unshapedSubnets",
    ];
}

/// Deserializes a list of networks.
fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNetwork>, D::Error> {
    #[derive(Deserialize)]
    struct Network(#[serde(deserialize_with = "deserialize_network")] IpNetwork);
    let networks = Vec::<Network>::deserialize(from)?;
    Ok(networks.into_iter().map(|network| network.0).collect())
}

/// Deserializes the declared capabilities. Each must be true or false, including unknown ones.
fn capabilities<'de, D: Deserializer<'de>>(from: D) -> Result<Capabilities, D::Error> {
    let declared = BTreeMap::<String, bool>::deserialize(from)?;
    let is_declared = |key| declared.get(key).copied().unwrap_or_default();
    Ok(Capabilities {
        port_mappings: is_declared("portMappings"),
        bandwidth: is_declared("bandwidth"),
    })
}

/// Deserializes the capability `dns`, whose keys differ from those of `dns`. Returns `None` if all
/// of its lists are empty.
fn runtime_dns<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Dns>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Capability {
        servers: Vec<String>,
        searches: Vec<String>,
        options: Vec<String>,
    }
    let message = Capability::deserialize(from)?;
    let dns = Dns {
        nameservers: message.servers,
        search: message.searches,
        options: message.options,
        domain: None,
    };
    Ok((dns != Dns::default()).then_some(dns))
}
