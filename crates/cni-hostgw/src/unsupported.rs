//! What a configuration may ask for and we do not do.

use cni::{BridgeKeys, NetConf};
use serde_json::Value;

use crate::error::Error;

/// Keys that ask for what we do not do. Unknown keys pass, but these would be missed.
pub(crate) fn refuse(conf: &NetConf) -> Result<(), Error> {
    let BridgeKeys {
        ref kind,
        macspoofchk,
        vlan,
        ref vlan_trunk,
        ..
    } = conf.bridge;
    if macspoofchk == Some(true) {
        return Err(Error::Unsupported("macspoofchk", "true".to_owned()));
    }
    if let Some(vlan) = vlan.filter(|vlan| *vlan != 0) {
        return Err(Error::Unsupported("vlan", vlan.to_string()));
    }
    if let Some(trunk) = vlan_trunk.as_ref().filter(|trunk| !is_nothing(trunk)) {
        return Err(Error::Unsupported("vlanTrunk", trunk.to_string()));
    }
    // What is declared for another entry of the list is that entry's plugin's.
    let (declared, given) = (conf.capabilities, &conf.runtime_config);
    if declared.port_mappings && !given.port_mappings.is_empty() {
        let value = serde_json::json!(given.port_mappings).to_string();
        return Err(Error::Unsupported("runtimeConfig.portMappings", value));
    }
    let bandwidth = given.bandwidth.as_ref().filter(|value| !is_nothing(value));
    if let (true, Some(bandwidth)) = (declared.bandwidth, bandwidth) {
        let value = bandwidth.to_string();
        return Err(Error::Unsupported("runtimeConfig.bandwidth", value));
    }
    match kind {
        Some(kind) if conf.has_delegate && kind != "bridge" => {
            Err(Error::Unsupported("delegate.type", kind.clone()))
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
