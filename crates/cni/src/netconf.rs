//! The network configuration as runtimes send it: every key optional, nothing decided.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::{Code, Error, IfName, Json};

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
    #[serde(deserialize_with = "capabilities")]
    capabilities: Capabilities,
    runtime_config: Option<RuntimeConfig>,
    args: Args,
    dns: Dns,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: CniKeys,
}

/// What flannel hands on to the `bridge` plugin beside its own keys.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Delegated {
    runtime_config: Option<RuntimeConfig>,
    args: Args,
    dns: Option<Dns>,
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
        let inside = |error: String| decode(&format!("delegate.{error}"));
        let (bridge, delegated) = match &delegate {
            Some(delegate) => (
                delegate.to().map_err(inside)?,
                delegate.to().map_err(inside)?,
            ),
            None => (
                json.to().map_err(|error| decode(&error))?,
                Delegated::default(),
            ),
        };
        let args = CniKeys {
            ips: [top.args.cni.ips, delegated.args.cni.ips].concat(),
            mac: top.args.cni.mac.or(delegated.args.cni.mac),
        };
        Ok(Self {
            has_delegate: delegate.is_some(),
            bridge,
            subnet_file: top.subnet_file,
            subnet_file_wait: top.subnet_file_wait,
            data_dir: top.data_dir,
            capabilities: top.capabilities,
            ipam: top.ipam,
            // As in flannel, the runtime's own takes the place of the delegate's.
            runtime_config: top
                .runtime_config
                .or(delegated.runtime_config)
                .unwrap_or_default(),
            args,
            dns: delegated
                .dns
                .filter(|dns| *dns != Dns::default())
                .unwrap_or(top.dns),
        })
    }

    /// Refuses values and combinations that no node could work with. Errors with code 7 naming
    /// the key and the value.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |msg: String| Err(Error::new(Code::INVALID_CONFIG, msg));
        let keys = &self.bridge;
        if keys.hairpin_mode == Some(true) && keys.promisc_mode == Some(true) {
            let both = "cannot set hairpin mode and promiscuous mode at the same time";
            return wrong(both.to_owned());
        }
        // 0 asks for the kernel's default.
        if let Some(mtu) = keys.mtu.filter(|mtu| *mtu != 0 && !MTU_RANGE.contains(mtu)) {
            let (least, greatest) = (MTU_RANGE.start(), MTU_RANGE.end());
            return Err(Error::new(Code::INVALID_CONFIG, format!("mtu: {mtu}"))
                .with_details(format!("must be from {least} to {greatest} bytes")));
        }
        if let Some(name) = self.bridge_name()
            && let Err(error) = IfName::new(name)
        {
            let msg = format!("bridge: {name:?}");
            return Err(Error::new(Code::INVALID_CONFIG, msg).with_details(error.msg));
        }
        if let Some(seconds) = self
            .subnet_file_wait
            .filter(|seconds| !(0.0..=LONGEST_WAIT).contains(seconds))
        {
            let msg = format!("subnetFileWait: {seconds}");
            let rule = format!("must be from 0 to {LONGEST_WAIT} seconds");
            return Err(Error::new(Code::INVALID_CONFIG, msg).with_details(rule));
        }
        for route in self.ipam.iter().flat_map(|ipam| &ipam.routes) {
            let dst = route.dst;
            let reason = if dst.is_ipv4() && dst.ip() != dst.network() {
                "has host bits set"
            } else if route.gw.is_some_and(|gw| gw.is_ipv4() != dst.is_ipv4()) {
                "its gw is of the other family"
            } else {
                continue;
            };
            let msg = format!("ipam.routes: dst {dst}");
            return Err(Error::new(Code::INVALID_CONFIG, msg).with_details(reason));
        }
        Ok(())
    }

    /// The bridge's name, where the configuration names one.
    #[must_use]
    pub fn bridge_name(&self) -> Option<&str> {
        let name = self.bridge.bridge.as_deref();
        name.filter(|name| !name.is_empty())
    }

    /// A key that asks for what the plugin does not do, and its value. Unknown keys pass, but these
    /// would be missed.
    #[must_use]
    pub fn unsupported(&self) -> Option<(&'static str, String)> {
        let BridgeKeys {
            ref kind,
            macspoofchk,
            vlan,
            ref vlan_trunk,
            ..
        } = self.bridge;
        if macspoofchk == Some(true) {
            return Some(("macspoofchk", "true".to_owned()));
        }
        if let Some(vlan) = vlan.filter(|vlan| *vlan != 0) {
            return Some(("vlan", vlan.to_string()));
        }
        if let Some(trunk) = vlan_trunk.as_ref().filter(|trunk| !is_nothing(trunk)) {
            return Some(("vlanTrunk", trunk.to_string()));
        }
        // What is declared for another entry of the list is that entry's plugin's.
        let (declared, given) = (self.capabilities, &self.runtime_config);
        if declared.port_mappings && !given.port_mappings.is_empty() {
            let value = serde_json::json!(given.port_mappings).to_string();
            return Some(("runtimeConfig.portMappings", value));
        }
        let bandwidth = given.bandwidth.as_ref().filter(|value| !is_nothing(value));
        if let (true, Some(bandwidth)) = (declared.bandwidth, bandwidth) {
            return Some(("runtimeConfig.bandwidth", bandwidth.to_string()));
        }
        let kind = kind.as_ref().filter(|kind| *kind != "bridge");
        kind.filter(|_| self.has_delegate)
            .map(|kind| ("delegate.type", kind.clone()))
    }

    /// The range sets that the configuration names itself, in host-local's order: the runtime's,
    /// the older form's single one, the list's. In flannel's form only the runtime's: the others
    /// are those of the subnet file.
    ///
    /// Errors with code 7 when a part of the single range has no subnet.
    pub fn range_sets(&self) -> Result<Vec<Vec<RangeConf>>, Error> {
        let mut sets = self.runtime_config.ip_ranges.clone();
        let Some(ipam) = self.ipam.as_ref().filter(|_| !self.has_delegate) else {
            return Ok(sets);
        };
        let Ipam {
            subnet,
            range_start,
            range_end,
            gateway,
            ref ranges,
            ..
        } = *ipam;
        match (subnet, range_start.or(range_end).or(gateway)) {
            (Some(subnet), _) => sets.push(vec![RangeConf {
                subnet,
                range_start,
                range_end,
                gateway,
            }]),
            (None, Some(address)) => {
                let msg = format!("ipam.subnet: missing, with {address}");
                let reason = "rangeStart, rangeEnd and gateway belong to a subnet";
                return Err(Error::new(Code::INVALID_CONFIG, msg).with_details(reason));
            }
            (None, None) => {}
        }
        sets.extend(ranges.iter().cloned());
        Ok(sets)
    }
}

/// The longest wait for the subnet file, in seconds: runtimes give up after a few minutes.
const LONGEST_WAIT: f64 = 60.0;

/// MTUs in bytes that a pod can have: the kernel takes nothing less for IPv4, and nothing more
/// for a veth.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

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

/// An empty list or object asks for nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

impl RouteConf {
    /// Whether a container with addresses of `subnets` has no way to the route's gateway, so that the
    /// kernel would refuse it. A route of a family without an address is none of those.
    #[must_use]
    pub fn is_unreachable_from(&self, subnets: &[IpNetwork]) -> bool {
        let Some(gw) = self.gw.filter(|gw| !gw.is_unspecified()) else {
            return false;
        };
        let is_of_link = matches!(gw, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let has_family = subnets.iter().any(|s| s.is_ipv4() == gw.is_ipv4());
        has_family && !is_of_link && !subnets.iter().any(|subnet| subnet.contains(gw))
    }

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
#[derive(Clone, Copy, Debug, Default)]
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

/// Each capability is true or false, those that we do not know as well.
fn capabilities<'de, D: Deserializer<'de>>(from: D) -> Result<Capabilities, D::Error> {
    let declared = BTreeMap::<String, bool>::deserialize(from)?;
    let is_declared = |key| declared.get(key).copied().unwrap_or_default();
    Ok(Capabilities {
        port_mappings: is_declared("portMappings"),
        bandwidth: is_declared("bandwidth"),
    })
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
    crate::network::network(&text)
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
    match crate::network::address(&text) {
        Some(address) => Ok(Some(address)),
        None => Err(D::Error::custom(format!("{text:?} is not an IP address"))),
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
                r#"mtu: expected a whole number from 0 to 4294967295, found the string "1500""#,
            ),
            (
                r#"{"delegate": {"hairpinmode": 1}}"#,
                "delegate.hairpinMode: expected true or false, found the number 1",
            ),
            (
                r#"{"ipam": []}"#,
                "ipam: expected an object, found the array []",
            ),
            (
                r#"{"args": [[["10.1.2.77"]]]}"#,
                r#"args: expected an object, found the array [[["10.1.2.77"]]]"#,
            ),
            (
                r#"{"ipam": {"ranges": [["10.10.1.0/24"]]}}"#,
                r#"ipam.ranges[0][0]: expected an object, found the string "10.10.1.0/24""#,
            ),
            (
                r#"{"ipam": {"ranges": [[{}]]}}"#,
                r#"ipam.ranges[0][0]: the key "subnet" is missing"#,
            ),
            (
                r#"{"capabilities": {"ips": "yes"}}"#,
                r#"capabilities.ips: expected true or false, found the string "yes""#,
            ),
            (
                r#"{"delegate": {"dns": []}}"#,
                "delegate.dns: expected an object, found the array []",
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
    fn what_flannel_hands_on_to_bridge_reaches_it() {
        let conf = parse(
            r#"{"dns": {"nameservers": ["10.0.0.1"]}, "delegate": {"dns": {"nameservers": ["10.0.0.2"]},
                "args": {"cni": {"mac": "02:00:00:00:00:01"}}, "runtimeConfig": {"ips": ["10.1.1.9"]}}}"#,
        );
        let conf = conf.expect("valid");
        assert_eq!(conf.dns.nameservers, ["10.0.0.2"]);
        assert_eq!(conf.args.mac.as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(conf.runtime_config.ips, ["10.1.1.9"]);
    }

    #[test]
    fn what_no_node_could_work_with_is_refused() {
        for (text, said) in [
            (
                r#"{"hairpinMode": true, "promiscMode": true}"#,
                "cannot set hairpin mode",
            ),
            (r#"{"mtu": 70000}"#, "mtu: 70000"),
            (r#"{"delegate": {"mtu": 40}}"#, "mtu: 40"),
            (
                r#"{"ipam": {"routes": [{"dst": "10.1.2.3/16"}]}}"#,
                "ipam.routes: dst 10.1.2.3/16",
            ),
            (
                r#"{"ipam": {"routes": [{"dst": "10.1.0.0/16", "gw": "fd00::1"}]}}"#,
                "ipam.routes: dst 10.1.0.0/16",
            ),
        ] {
            let error = parse(text).expect("typed").validate().expect_err(text);
            assert!(error.msg.starts_with(said), "{text}: {}", error.msg);
            assert_eq!(error.code, Code::INVALID_CONFIG);
        }
        let ipv6 = r#"{"mtu": 0, "ipam": {"routes": [{"dst": "1100:200::1/24"}]}}"#;
        assert!(parse(ipv6).expect("typed").validate().is_ok());
    }

    #[test]
    fn delegate_must_not_name_what_flannel_sets() {
        for key in ["name", "ipam"] {
            let error = parse(&format!(r#"{{"delegate": {{"{key}": {{}}}}}}"#)).expect_err(key);
            assert_eq!(error.code, Code::INVALID_CONFIG);
        }
    }
}
