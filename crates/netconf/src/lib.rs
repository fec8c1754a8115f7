//! The network configuration of the plugin: every key that it reads, with the key's type.
//!
//! [`NetConf`] is the strict view, for ADD, CHECK and STATUS: a value of a wrong type is an error that
//! names the key. [`LenientConf`] is the view for DEL, GC and the log: it has a few keys, and treats a
//! value of a wrong type as missing, because what was attached has to be detached whatever the
//! configuration has become.
//!
//! Keys match without regard to case. Where two keys differ only in case, the last one counts.

#[cfg(test)]
mod documented;
mod keys;
mod lenient;
mod list;

use std::path::PathBuf;

use cni::{Code, Dns, Error, IfName, Json};
use serde_json::Value;

pub use keys::{
    Bandwidth, BridgeKeys, Capabilities, CniKeys, Ipam, PortMapKeys, PortMapping, RangeConf,
    RuntimeConfig,
};
use keys::{DelegateKeys, TopLevelKeys};
pub use lenient::LenientConf;
pub use list::SharedCapability;

/// Name of the IPAM plugin that `cni-hostgw` replaces. Any other IPAM plugin is run as a separate
/// program.
pub const HOST_LOCAL: &str = "host-local";

/// A network configuration in one of two forms: the flannel form, with the keys of the `bridge`
/// plugin under `delegate`, or the bridge form, with those keys at the top level.
#[derive(Clone, Debug, Default)]
pub struct NetConf {
    /// True if the configuration has the key `delegate`: the flannel form.
    pub has_delegate: bool,
    /// The keys of the `bridge` plugin, from `delegate` or from the top level.
    pub bridge: BridgeKeys,
    /// `subnetFile`: the node's subnet file.
    pub subnet_file: Option<PathBuf>,
    /// `subnetFileWait`: how long ADD waits for the subnet file, in seconds.
    pub subnet_file_wait: Option<f64>,
    /// `dataDir`: directory of the `flannel` plugin's scratch files.
    pub data_dir: Option<PathBuf>,
    /// `ipam`, if present.
    pub ipam: Option<Ipam>,
    /// `capabilities`: capabilities that this entry of the plugin list declares.
    pub capabilities: Capabilities,
    /// `runtimeConfig`: what the runtime supplies for declared capabilities.
    pub runtime_config: RuntimeConfig,
    /// Keys of the `portmap` plugin. Other entries than those with the capability `portMappings`
    /// have none.
    pub port_map: PortMapKeys,
    /// Limits of the container's traffic from the keys at the top level, if there is one, else from
    /// the capability `bandwidth`, if it is declared.
    pub bandwidth: Bandwidth,
    /// `args.cni`.
    pub args: CniKeys,
    /// `dns`, passed on in the result.
    pub dns: Dns,
}

impl NetConf {
    /// Deserializes the document. Returns an error with code 6 and the path of the key if a value
    /// has the wrong type, and with code 7 if `delegate` has a key that the flannel form forbids
    /// there.
    pub fn from_json(json: &Json) -> Result<Self, Error> {
        // Another IPAM plugin defines its own keys under `ipam`, so only `type` is read.
        let kind = json.get("ipam").and_then(|ipam| ipam.get("type")?.as_str());
        let foreign = kind.filter(|kind| !matches!(*kind, "" | HOST_LOCAL));
        let without_its_keys =
            foreign.map(|kind| json.clone().with("ipam", serde_json::json!({"type": kind})));
        let json = without_its_keys.as_ref().unwrap_or(json);
        let top: TopLevelKeys = json.to().map_err(|error| decode(&error))?;
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
                DelegateKeys::default(),
            ),
        };
        let port_map = if top.capabilities.port_mappings {
            json.to().map_err(|error| decode(&error))?
        } else {
            PortMapKeys::default()
        };
        // As in flannel, the top-level runtimeConfig replaces the one under `delegate`.
        let runtime_config = top.runtime_config.or(delegated.runtime_config);
        let runtime_config = runtime_config.unwrap_or_default();
        let fixed: Bandwidth = json.to().map_err(|error| decode(&error))?;
        let requested = runtime_config.bandwidth.clone();
        let requested = requested.filter(|_| top.capabilities.bandwidth);
        let bandwidth = if Bandwidth::KEYS.iter().any(|key| json.has(key)) {
            fixed
        } else {
            requested.unwrap_or_default()
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
            runtime_config,
            port_map,
            bandwidth,
            args,
            dns: delegated
                .dns
                .filter(|dns| *dns != Dns::default())
                .unwrap_or(top.dns),
        })
    }

    /// Rejects values and combinations that cannot work on any node. Returns an error with code 7
    /// that contains the key and the value.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |msg: String| Err(Error::new(Code::INVALID_CONFIG, msg));
        let keys = &self.bridge;
        if keys.hairpin_mode == Some(true) && keys.promisc_mode == Some(true) {
            let both = "cannot set hairpin mode and promiscuous mode at the same time";
            return wrong(both.to_owned());
        }
        // 0 means the kernel's default.
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
            .filter(|seconds| !(0.0..=MAX_SUBNET_FILE_WAIT).contains(seconds))
        {
            let msg = format!("subnetFileWait: {seconds}");
            let rule = format!("must be from 0 to {MAX_SUBNET_FILE_WAIT} seconds");
            return Err(Error::new(Code::INVALID_CONFIG, msg).with_details(rule));
        }
        if let Some(bit) = self
            .port_map
            .mark_masq_bit
            .filter(|bit| !(0..32).contains(bit))
        {
            return Err(
                Error::new(Code::INVALID_CONFIG, format!("markMasqBit: {bit}"))
                    .with_details("must be from 0 to 31"),
            );
        }
        for route in self.ipam.iter().flat_map(|ipam| &ipam.routes) {
            let dst = route.dst;
            let reason = if dst.is_ipv4() && dst.ip() != dst.network() {
                "has host bits set"
            } else if route.gw.is_some_and(|gw| gw.is_ipv4() != dst.is_ipv4()) {
                "gw and dst are not of the same IP family"
            } else {
                continue;
            };
            let msg = format!("ipam.routes: dst {dst}");
            return Err(Error::new(Code::INVALID_CONFIG, msg).with_details(reason));
        }
        Ok(())
    }

    /// Returns the name of the bridge, if configured.
    #[must_use]
    pub fn bridge_name(&self) -> Option<&str> {
        let name = self.bridge.bridge.as_deref();
        name.filter(|name| !name.is_empty())
    }

    /// Returns the first key that requests an unsupported feature, with its value. Unknown keys are
    /// accepted, but ignoring one of these keys would leave out something that the user asked for.
    #[must_use]
    pub fn unsupported(&self) -> Option<(&'static str, String)> {
        let PortMapKeys {
            external_set_mark_chain,
            conditions_v4,
            conditions_v6,
            ..
        } = &self.port_map;
        let chain = external_set_mark_chain.as_ref();
        if let Some(chain) = chain.filter(|chain| !chain.is_empty()) {
            return Some(("externalSetMarkChain", chain.clone()));
        }
        for (key, conditions) in [
            ("conditionsV4", conditions_v4),
            ("conditionsV6", conditions_v6),
        ] {
            if !conditions.is_empty() {
                return Some((key, format!("{conditions:?}")));
            }
        }
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
        if let Some(trunk) = vlan_trunk.as_ref().filter(|trunk| !is_empty_json(trunk)) {
            return Some(("vlanTrunk", trunk.to_string()));
        }
        let kind = kind.as_ref().filter(|kind| *kind != "bridge");
        kind.filter(|_| self.has_delegate)
            .map(|kind| ("delegate.type", kind.clone()))
    }

    /// Returns the range sets of the configuration in the order of `host-local`: the runtime's
    /// range sets, the single range of the older form, then `ranges`. In the flannel form only the
    /// runtime's range sets are returned, because the others come from the subnet file.
    ///
    /// Returns an error with code 7 if the single range has other keys but no subnet.
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
                let reason = "rangeStart, rangeEnd and gateway require a subnet";
                return Err(Error::new(Code::INVALID_CONFIG, msg).with_details(reason));
            }
            (None, None) => {}
        }
        sets.extend(ranges.iter().cloned());
        Ok(sets)
    }
}

/// Maximum wait for the subnet file, in seconds. Runtimes give up after a few minutes.
const MAX_SUBNET_FILE_WAIT: f64 = 60.0;

/// Valid MTUs for a pod, in bytes. The kernel requires at least 68 bytes for IPv4, and a veth
/// allows at most 65535.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

fn decode(reason: &str) -> Error {
    Error::new(Code::DECODE, format!("network configuration: {reason}"))
}

/// Returns true for an empty list or object, which requests nothing.
fn is_empty_json(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
