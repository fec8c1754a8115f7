//! The network configuration as runtimes send it: every key optional, nothing decided.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{Code, Error, Json};

/// The IPAM plugin whose work is done here: any other is a program of its own.
pub const HOST_LOCAL: &str = "host-local";

/// A network configuration in either of its two forms: flannel's, which puts the bridge's
/// keys under `delegate`, or bridge's, which has them at the top.
#[derive(Clone, Debug, Default)]
pub struct NetConf {
    /// Whether `delegate` is there: flannel's form.
    pub has_delegate: bool,
    /// The bridge's keys, from wherever they stand.
    pub bridge: BridgeKeys,
    /// `subnetFile`: the node's subnet file.
    pub subnet_file: Option<PathBuf>,
    /// `subnetFileWait`: seconds for which ADD waits for it.
    pub subnet_file_wait: Option<f64>,
    /// `dataDir`: where the `flannel` plugin keeps its scratch files.
    pub data_dir: Option<PathBuf>,
    /// `ipam`, where it is there.
    pub ipam: Option<Ipam>,
    /// `capabilities`: what this entry of the list declares.
    pub capabilities: Capabilities,
    /// `runtimeConfig`: what the runtime supplies for declared capabilities.
    pub runtime_config: RuntimeConfig,
    /// `args.cni`.
    pub args: CniKeys,
    /// `dns`, handed on in the result.
    pub dns: Dns,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Top {
    subnet_file: Option<PathBuf>,
    subnet_file_wait: Option<f64>,
    data_dir: Option<PathBuf>,
    ipam: Option<Ipam>,
    capabilities: Capabilities,
    runtime_config: RuntimeConfig,
    args: Args,
    dns: Dns,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniKeys,
}

impl NetConf {
    /// Gives the document its types. Errors with code 6 naming the key by its path, and
    /// with code 7 when `delegate` holds a key that flannel's form forbids there.
    pub fn from_json(json: &Json) -> Result<Self, Error> {
        // The keys of another IPAM plugin are its own business.
        let kind = json.get("ipam").and_then(|ipam| ipam.get("type")?.as_str());
        let foreign = kind.filter(|kind| !matches!(*kind, "" | HOST_LOCAL));
        let without_its_keys =
            foreign.map(|kind| json.clone().with("ipam", serde_json::json!({"type": kind})));
        let json = without_its_keys.as_ref().unwrap_or(json);
        let top: Top = json.to().map_err(|error| decode(&error))?;
        let delegate = json.object("delegate");
        if let Some(delegate) = &delegate {
            for key in ["name", "ipam"] {
                if delegate.has(key) {
                    let msg = format!("'delegate' must not have a {key:?} key");
                    return Err(Error::new(Code::INVALID_CONFIG, msg));
                }
            }
        } else if json.has("delegate") {
            return Err(decode("delegate: expected an object"));
        }
        let bridge = match &delegate {
            Some(delegate) => delegate
                .to()
                .map_err(|error| decode(&format!("delegate.{error}")))?,
            None => json.to().map_err(|error| decode(&error))?,
        };
        Ok(Self {
            has_delegate: delegate.is_some(),
            bridge,
            subnet_file: top.subnet_file,
            subnet_file_wait: top.subnet_file_wait,
            data_dir: top.data_dir,
            capabilities: top.capabilities,
            ipam: top.ipam,
            runtime_config: top.runtime_config,
            args: top.args.cni,
            dns: top.dns,
        })
    }
}

fn decode(reason: &str) -> Error {
    Error::new(Code::DECODE, format!("network configuration: {reason}"))
}

/// The keys of the `bridge` plugin.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "each field is the key of its name, as the bridge plugin defines it"
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

/// `ipam`: address management, in the keys of the `host-local` plugin.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipam {
    /// `type`: the IPAM plugin's name.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `ranges`: one address is taken from each inner list.
    pub ranges: Vec<Vec<RangeConf>>,
    /// `routes`, added in the container.
    pub routes: Vec<RouteConf>,
    /// `dataDir`: where reservations are kept.
    pub data_dir: Option<PathBuf>,
    /// `resolvConf`: a resolver's file to read `dns` from.
    pub resolv_conf: Option<PathBuf>,
    /// The older form of a single range: `subnet`, `rangeStart`, `rangeEnd`, `gateway`.
    #[serde(deserialize_with = "optional_network")]
    pub subnet: Option<IpNetwork>,
    /// First address of the single range.
    #[serde(deserialize_with = "optional_address")]
    pub range_start: Option<IpAddr>,
    /// Last address of the single range.
    #[serde(deserialize_with = "optional_address")]
    pub range_end: Option<IpAddr>,
    /// Gateway of the single range.
    #[serde(deserialize_with = "optional_address")]
    pub gateway: Option<IpAddr>,
}

/// One range of addresses.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RangeConf {
    /// The network that the addresses belong to.
    #[serde(deserialize_with = "network")]
    pub subnet: IpNetwork,
    /// First address to give out; by default the one after the network's.
    #[serde(default, deserialize_with = "optional_address")]
    pub range_start: Option<IpAddr>,
    /// Last address to give out; by default the last usable one.
    #[serde(default, deserialize_with = "optional_address")]
    pub range_end: Option<IpAddr>,
    /// The gateway, never given out; by default the network's first address.
    #[serde(default, deserialize_with = "optional_address")]
    pub gateway: Option<IpAddr>,
}

/// One route, as `ipam.routes` and results hold it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct RouteConf {
    /// Destination.
    #[serde(deserialize_with = "network", serialize_with = "as_text")]
    pub dst: IpNetwork,
    /// Next hop; by default the gateway of the destination's family.
    #[serde(
        default,
        deserialize_with = "optional_address",
        skip_serializing_if = "Option::is_none"
    )]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Advertised maximum segment size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The route's metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope, in the kernel's numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl RouteConf {
    /// A route to `dst` by `gw`, and nothing else said of it.
    #[must_use]
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

/// `capabilities`: what an entry of the list declares that its plugin takes. A runtime supplies
/// no other.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "each field is the capability of its name, as the conventions define it"
)]
pub struct Capabilities {
    pub port_mappings: bool,
    pub bandwidth: bool,
}

/// `runtimeConfig`: what the runtime supplies for declared capabilities.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Capability `ips`: requested addresses, perhaps with a prefix length.
    pub ips: Vec<String>,
    /// Capability `mac`.
    pub mac: Option<String>,
    /// Capability `ipRanges`: range sets that come before those of `ipam`.
    pub ip_ranges: Vec<Vec<RangeConf>>,
    /// Capability `dns`: comes before the configured one.
    #[serde(deserialize_with = "runtime_dns")]
    pub dns: Option<Dns>,
    /// Capability `portMappings`: not ours.
    pub port_mappings: Vec<Value>,
    /// Capability `bandwidth`: not ours.
    pub bandwidth: Option<Value>,
}

/// `args.cni`: requests that are tied to no capability.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CniKeys {
    /// Requested addresses, perhaps with a prefix length.
    pub ips: Vec<String>,
    /// The container interface's hardware address.
    pub mac: Option<String>,
}

/// Name resolution, handed on to the runtime as it is.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers' addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// An attachment that the runtime still knows, as GC names it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct ValidAttachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name.
    pub ifname: String,
}

impl ValidAttachment {
    /// What GC names: `cni.dev/valid-attachments`, or `cni.dev/attachments` of the SPEC's first
    /// 1.1.0. Nothing where neither is there: then it is not known which are valid, which is not
    /// the same as none.
    ///
    /// Errors with code 6 naming the key.
    pub fn list(json: &Json) -> Result<Option<Vec<Self>>, Error> {
        #[derive(Deserialize)]
        struct Lists {
            #[serde(rename = "cni.dev/valid-attachments")]
            valid: Option<Vec<ValidAttachment>>,
            #[serde(rename = "cni.dev/attachments")]
            old: Option<Vec<ValidAttachment>>,
        }
        let lists: Lists = json.to().map_err(|error| decode(&error))?;
        Ok(lists.valid.or(lists.old))
    }
}

/// Name resolution in the words of the capability; nothing where it says nothing.
fn runtime_dns<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Dns>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Capability {
        servers: Vec<String>,
        searches: Vec<String>,
        options: Vec<String>,
    }
    let said = Capability::deserialize(from)?;
    let dns = Dns {
        nameservers: said.servers,
        search: said.searches,
        options: said.options,
        domain: None,
    };
    Ok((dns != Dns::default()).then_some(dns))
}

pub(crate) fn network<'de, D: Deserializer<'de>>(from: D) -> Result<IpNetwork, D::Error> {
    let text = String::deserialize(from)?;
    // IpNetwork takes an address alone for a network of one.
    text.contains('/')
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not a network such as 10.10.1.0/24")))
}

fn optional_network<'de, D: Deserializer<'de>>(from: D) -> Result<Option<IpNetwork>, D::Error> {
    network(from).map(Some)
}

pub(crate) fn optional_address<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(D::Error::custom(format!("{text:?} is not an IP address"))),
    }
}

pub(crate) fn as_text<T: ToString, S: serde::Serializer>(
    value: &T,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetConf, Error> {
        NetConf::from_json(&Json::parse(text.as_bytes()).expect("the test writes JSON"))
    }

    #[test]
    fn flannels_form_has_the_bridges_keys_under_delegate() {
        let conf = parse(r#"{"type": "flannel", "delegate": {"HairpinMode": true, "mtu": null}}"#);
        let conf = conf.expect("valid");
        assert!(conf.has_delegate);
        assert_eq!(
            (conf.bridge.hairpin_mode, conf.bridge.mtu),
            (Some(true), None)
        );
    }

    #[test]
    fn a_wrong_type_names_the_key_and_the_value() {
        for (text, msg) in [
            (
                r#"{"mtu": "1500"}"#,
                r#"mtu: invalid type: string "1500", expected u32"#,
            ),
            (
                r#"{"delegate": {"hairpinmode": 1}}"#,
                "delegate.hairpinMode: invalid type: integer `1`, expected a boolean",
            ),
            (
                r#"{"ipam": {"ranges": [[{"subnet": "10.10.1.0"}]]}}"#,
                r#"ipam.ranges[0][0].subnet: "10.10.1.0" is not a network such as 10.10.1.0/24"#,
            ),
            (
                r#"{"ipam": {"ranges": [[{"subnet": "10.10.1.0/24", "gateway": "x"}]]}}"#,
                r#"ipam.ranges[0][0].gateway: "x" is not an IP address"#,
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.msg, format!("network configuration: {msg}"));
            assert_eq!(error.code, Code::DECODE);
        }
    }

    #[test]
    fn delegate_must_not_name_what_flannel_sets() {
        for key in ["name", "ipam"] {
            let error = parse(&format!(r#"{{"delegate": {{"{key}": {{}}}}}}"#)).expect_err(key);
            assert_eq!(error.code, Code::INVALID_CONFIG);
        }
    }
}
