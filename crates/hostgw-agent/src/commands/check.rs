//! `hostgw-agent check`: checks files before a node reads them.

use std::fs;
use std::path::Path;

use cni::{Json, NetworkName, Version};
use host_local::{RangeSets, RangeSpec};
use netconf::{NetConf as PluginConf, RangeConf, SharedCapability};
use serde_json::Value;

use super::invalid::Invalid;
use crate::error::{Error, Result};
use crate::network::{NetConf, net_conf};
use crate::store::file::cluster;

/// Checks each file and returns a line about each. Fails if one is invalid, and names all that are.
pub(crate) fn check(files: &[impl AsRef<Path>]) -> Result<String> {
    let mut valid = Vec::new();
    let mut invalid = Vec::new();
    for file in files {
        let path = file.as_ref().display();
        let described = match fs::read(file) {
            Ok(text) => describe(&text),
            Err(error) => Err(Invalid::Text(error.to_string())),
        };
        match described {
            Ok(description) => valid.push(format!("{path}: {description}\n")),
            Err(reason) => invalid.push(format!("{path}: {reason}")),
        }
    }
    if invalid.is_empty() {
        Ok(valid.concat())
    } else {
        Err(Error::Usage(invalid.join("\n")))
    }
}

/// Finds out by its keys what a text is, and checks it.
fn describe(text: &[u8]) -> Result<String, Invalid> {
    let value: Value = serde_json::from_slice(text)?;
    let Value::Object(object) = &value else {
        return Err("is not a JSON object".to_owned().into());
    };
    let has = |key: &str| object.keys().any(|other| other.eq_ignore_ascii_case(key));
    if has("nodes") {
        let snapshot = cluster::parse(text)?;
        Ok(format!(
            "a cluster of {} node(s) in {}",
            snapshot.leases.len(),
            networks(&snapshot.network)
        ))
    } else if has("plugins") {
        check_list(&value)
    } else if has("type") {
        let json = Json::parse(text)?;
        check_plugin(&json).map(|kind| format!("the configuration of {kind}"))
    } else if ["Network", "EnableIPv4", "EnableIPv6", "Backend"]
        .into_iter()
        .any(has)
    {
        let network = net_conf::parse(text)?;
        let pools: Vec<_> = network.pools().map(|pool| pool.to_string()).collect();
        Ok(format!(
            "a network {} with subnets {}",
            networks(&network),
            pools.join(" and ")
        ))
    } else {
        let expected = "a cluster (key nodes) nor a network (key Network) nor a CNI configuration (key plugins or type)";
        Err(format!("is neither {expected}").into())
    }
}

fn networks(network: &NetConf) -> String {
    let networks: Vec<_> = network
        .networks()
        .map(|network| network.to_string())
        .collect();
    networks.join(" and ")
}

/// Parses and checks a CNI configuration list.
pub(crate) fn parse_list(text: &[u8]) -> Result<Value, Invalid> {
    let value: Value = serde_json::from_slice(text)?;
    check_list(&value).map(|_| value)
}

/// Checks a CNI configuration list, and our plugin's entries as the plugin itself does. Returns a
/// description.
fn check_list(value: &Value) -> Result<String, Invalid> {
    let text = |key: &str| match &value[key] {
        Value::Null => Err(format!("{key} is missing")),
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{key} is {other}, and must be a string")),
    };
    let name = text("name")?;
    NetworkName::new(&name)?;
    let version = text("cniVersion")?;
    if Version::supported(&version).is_none() {
        let reason = format!("cniVersion is {version:?}, and must be one of 0.1.0 to 1.1.0");
        return Err(reason.into());
    }
    let plugins = value["plugins"].as_array();
    let plugins = plugins.ok_or_else(|| "plugins is not a list".to_owned())?;
    if plugins.is_empty() {
        return Err("plugins is empty".to_owned().into());
    }
    let mut kinds = Vec::new();
    for (i, entry) in plugins.iter().enumerate() {
        let json = Json::parse(entry.to_string().as_bytes())
            .map_err(|reason| format!("plugins[{i}]: {reason}"))?;
        kinds.push(check_plugin(&json).map_err(|reason| format!("plugins[{i}].{reason}"))?);
    }
    let json = Json::parse(value.to_string().as_bytes())?;
    let mut shared = SharedCapability::ALL.into_iter();
    if let Some(shared) = shared.find(|shared| shared.is_handled_twice(&json)) {
        let (capability, plugin) = (shared.name(), shared.plugin());
        let reason =
            format!("plugins: {plugin} and another entry declare the capability {capability}");
        return Err(reason.into());
    }
    Ok(format!(
        "the network configuration list {name} with {}",
        kinds.join(", ")
    ))
}

/// Checks the configuration of one plugin: only ours is known well enough. Returns its type.
fn check_plugin(json: &Json) -> Result<String, Invalid> {
    let kind = match json.get("type") {
        Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
        Some(other) => return Err(format!("type: {other} is not the name of a plugin").into()),
        None => return Err("type: is missing".to_owned().into()),
    };
    if !matches!(kind.as_str(), "cni-hostgw" | "flannel") {
        return Ok(kind);
    }
    // The errors start with what `check_list` names already.
    let without_prefix = |error: cni::Error| {
        let reason = Invalid::from(error).to_string();
        let prefix = "network configuration: ";
        Invalid::Text(reason.strip_prefix(prefix).unwrap_or(&reason).to_owned())
    };
    let conf = PluginConf::from_json(json).map_err(without_prefix)?;
    conf.validate().map_err(without_prefix)?;
    if let Some((key, value)) = conf.unsupported() {
        return Err(format!("{key}: {value} is not supported").into());
    }
    check_ranges(&conf)?;
    Ok(kind)
}

/// Checks the ranges of `ipam`, and that its routes have gateways in them.
fn check_ranges(conf: &PluginConf) -> Result<(), Invalid> {
    let ranges = conf.range_sets()?;
    if ranges.is_empty() {
        return Ok(());
    }
    let specs: Vec<Vec<_>> = ranges
        .iter()
        .map(|set| set.iter().map(range_spec).collect())
        .collect();
    RangeSets::new(&specs).map_err(|error| format!("ipam.ranges: {error}"))?;
    let subnets: Vec<_> = ranges.iter().flatten().map(|range| range.subnet).collect();
    let mut routes = conf.ipam.iter().flat_map(|ipam| &ipam.routes);
    match routes.find(|route| route.is_unreachable_from(&subnets)) {
        Some(route) => {
            let dst = route.dst;
            Err(format!("ipam.routes: the gw of dst {dst} is not in any of the subnets").into())
        }
        None => Ok(()),
    }
}

fn range_spec(range: &RangeConf) -> RangeSpec {
    RangeSpec {
        subnet: range.subnet,
        start: range.range_start,
        end: range.range_end,
        gateway: range.gateway,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognized_by_their_keys() {
        for (text, expected) in [
            (
                r#"{"Network": "10.10.0.0/16"}"#,
                "a network 10.10.0.0/16 with subnets 10.10.1.0/24 to 10.10.255.0/24",
            ),
            (
                r#"{"network": {"Network": "10.10.0.0/16"}, "nodes": []}"#,
                "a cluster of 0 node(s) in 10.10.0.0/16",
            ),
            (
                r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel", "delegate": {}}, {"type": "portmap"}]}"#,
                "the network configuration list cbr0 with flannel, portmap",
            ),
        ] {
            let described = describe(text.as_bytes()).expect(text);
            assert_eq!(described, expected);
        }
    }

    // Long: a table of cases.
    #[test]
    fn errors_name_what_is_wrong() {
        for (text, expected) in [
            ("[]", "is not a JSON object"),
            ("{}", "is neither"),
            (r#"{"Network": "10.10.0.0"}"#, r#"Network is "10.10.0.0""#),
            (
                r#"{"network": {}, "nodes": []}"#,
                "network: Network is missing",
            ),
            (r#"{"plugins": []}"#, "name is missing"),
            (
                r#"{"name": "a/b", "cniVersion": "1.0.0", "plugins": [1]}"#,
                "invalid characters found in network name",
            ),
            (
                r#"{"name": "a", "cniVersion": "9.9.9", "plugins": [{}]}"#,
                r#"cniVersion is "9.9.9""#,
            ),
            (
                r#"{"name": "a", "cniVersion": "1.0.0", "plugins": []}"#,
                "plugins is empty",
            ),
            (
                r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{}]}"#,
                "plugins[0].type: is missing",
            ),
            (
                r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [
                    {"type": "cni-hostgw", "capabilities": {"portMappings": true}},
                    {"type": "portmap", "capabilities": {"portMappings": true}}]}"#,
                "plugins: portmap and another entry declare the capability portMappings",
            ),
            (
                r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "cni-hostgw", "mtu": "x"}]}"#,
                "plugins[0].",
            ),
            (
                r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "cni-hostgw", "mtu": 70000}]}"#,
                "plugins[0].mtu: 70000",
            ),
            (
                r#"{"type": "flannel", "delegate": {"hairpinMode": true, "promiscMode": true}}"#,
                "cannot set hairpin mode and promiscuous mode",
            ),
            (
                r#"{"type": "cni-hostgw", "ipam": {"ranges": [[{"subnet": "10.10.1.5/24"}]]}}"#,
                "ipam.ranges: invalid range set 0: network 10.10.1.5/24 has host bits set",
            ),
            (
                r#"{"type": "cni-hostgw", "bridge": "a/b"}"#,
                r#"bridge: "a/b""#,
            ),
            (
                r#"{"type": "cni-hostgw", "vlan": 5}"#,
                "vlan: 5 is not supported",
            ),
            (
                r#"{"type": "flannel", "delegate": {"type": "ipvlan"}}"#,
                "delegate.type: ipvlan is not supported",
            ),
            (
                r#"{"type": "cni-hostgw", "subnetFileWait": 90}"#,
                "subnetFileWait: 90",
            ),
            (
                r#"{"type": "cni-hostgw", "ipam": {"subnet": "10.10.1.0/24", "routes": [{"dst": "10.0.0.0/8", "gw": "10.9.0.1"}]}}"#,
                "ipam.routes: the gw of dst 10.0.0.0/8 is not in any of the subnets",
            ),
            (
                r#"{"type": "cni-hostgw", "ipam": {"subnet": "10.10.1.0/24", "gateway": "10.10.2.1"}}"#,
                "ipam.ranges: invalid range set 0: gateway 10.10.2.1 not in network",
            ),
        ] {
            let error = describe(text.as_bytes()).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn damaged_lists_never_panic() {
        let list = br#"{"name": "cbr0", "cniVersion": "1.0.0", "cniVersions": ["1.1.0"], "plugins": [{"type": "cni-hostgw", "capabilities": {"portMappings": true}, "delegate": {"mtu": 1400}}, {"type": "tuning"}]}"#;
        random_input::never_panics(
            &[
                list,
                br#"{"network": {"Network": "10.10.0.0/16"}, "nodes": []}"#,
            ],
            |text| {
                drop(describe(text));
                drop(parse_list(text));
            },
        );
    }
}
