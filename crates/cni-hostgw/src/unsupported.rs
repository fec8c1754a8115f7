//! What a configuration may ask for and we do not do.

use cni::{BridgeKeys, NetConf};
use serde_json::Value;

use crate::error::Error;

/// Keys that ask for what we do not do. Unknown keys pass, but these would be missed.
pub(crate) fn refuse(conf: &NetConf) -> Result<(), Error> {
    let BridgeKeys {
        promisc_mode,
        enabledad,
        macspoofchk,
        ..
    } = conf.bridge;
    let BridgeKeys {
        disable_container_interface,
        vlan,
        ref vlan_trunk,
        ..
    } = conf.bridge;
    for (key, value) in [
        ("promiscMode", promisc_mode),
        ("enabledad", enabledad),
        ("macspoofchk", macspoofchk),
        ("disableContainerInterface", disable_container_interface),
    ] {
        if value == Some(true) {
            return Err(Error::Unsupported(key, "true".to_owned()));
        }
    }
    if let Some(backend) = &conf.bridge.ip_masq_backend
        && !matches!(backend.as_str(), "" | "nftables")
    {
        return Err(Error::Unsupported("ipMasqBackend", backend.clone()));
    }
    if let Some(vlan) = vlan.filter(|vlan| *vlan != 0) {
        return Err(Error::Unsupported("vlan", vlan.to_string()));
    }
    if let Some(trunk) = vlan_trunk.as_ref().filter(|trunk| !is_nothing(trunk)) {
        return Err(Error::Unsupported("vlanTrunk", trunk.to_string()));
    }
    if let Some(path) = conf
        .ipam
        .resolv_conf
        .as_ref()
        .filter(|path| !path.is_empty())
    {
        return Err(Error::Unsupported("ipam.resolvConf", path.clone()));
    }
    let runtime = &conf.runtime_config;
    if !runtime.port_mappings.is_empty() {
        let value = serde_json::json!(runtime.port_mappings).to_string();
        return Err(Error::Unsupported("runtimeConfig.portMappings", value));
    }
    if let Some(bandwidth) = runtime
        .bandwidth
        .as_ref()
        .filter(|value| !is_nothing(value))
    {
        return Err(Error::Unsupported(
            "runtimeConfig.bandwidth",
            bandwidth.to_string(),
        ));
    }
    match (&conf.bridge.kind, &conf.ipam.kind) {
        (Some(kind), _) if conf.has_delegate && kind != "bridge" => {
            Err(Error::Unsupported("delegate.type", kind.clone()))
        }
        (_, Some(kind)) if !kind.is_empty() && kind != "host-local" => {
            Err(Error::Unsupported("ipam.type", kind.clone()))
        }
        _ => Ok(()),
    }
}

/// An empty list or object asks for nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}
