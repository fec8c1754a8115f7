//! `hostgw-agent check`: whether files say what they should, before a node reads them.

use std::fs;
use std::path::Path;

use cni::{Json, NetworkName, RangeConf, Version};
use host_local::{RangeSets, RangeSpec};
use serde_json::Value;

use crate::net_conf::{self, NetConf};
use crate::store::parse_cluster;

/// Checks each file and says what it is. Fails when one is wrong, naming all that are.
pub(crate) fn check(files: &[impl AsRef<Path>]) -> Result<String, String> {
    let mut good = Vec::new();
    let mut wrong = Vec::new();
    for file in files {
        let path = file.as_ref().display();
        match fs::read_to_string(file)
            .map_err(|error| error.to_string())
            .and_then(|text| kind(&text))
        {
            Ok(kind) => good.push(format!("{path}: {kind}\n")),
            Err(reason) => wrong.push(format!("{path}: {reason}")),
        }
    }
    if wrong.is_empty() {
        Ok(good.concat())
    } else {
        Err(wrong.join("\n"))
    }
}

/// What a text is, in a sentence.
fn kind(text: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Value::Object(object) = &value else {
        return Err("is not a JSON object".to_owned());
    };
    let has = |key: &str| object.keys().any(|other| other.eq_ignore_ascii_case(key));
    if has("nodes") {
        let snapshot = parse_cluster(text)?;
        Ok(format!(
            "a cluster of {} node(s) in {}",
            snapshot.leases.len(),
            networks(&snapshot.network)
        ))
    } else if has("plugins") {
        list(&value)
    } else if has("type") {
        let json = Json::parse(text.as_bytes())?;
        plugin(&json).map(|kind| format!("the configuration of {kind}"))
    } else if ["Network", "EnableIPv4", "EnableIPv6", "Backend"]
        .into_iter()
        .any(has)
    {
        let network = net_conf::parse(text)?;
        let spaces: Vec<_> = network.spaces().map(|space| space.to_string()).collect();
        Ok(format!(
            "a network {} with subnets {}",
            networks(&network),
            spaces.join(" and ")
        ))
    } else {
        Err("is none of a cluster (nodes), a network (Network) and a CNI configuration (plugins, type)".to_owned())
    }
}

fn networks(network: &NetConf) -> String {
    let networks: Vec<_> = network
        .networks()
        .map(|network| network.to_string())
        .collect();
    networks.join(" and ")
}

/// A list of plugins from its text, checked.
pub(crate) fn list_of(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    list(&value).map(|_| value)
}

/// A list of plugins, each of which is checked as the plugin itself would.
fn list(value: &Value) -> Result<String, String> {
    let text = |key: &str| match &value[key] {
        Value::Null => Err(format!("{key} is missing")),
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{key} is {other}, and must be a text")),
    };
    let name = text("name")?;
    NetworkName::new(&name).map_err(words)?;
    let version = text("cniVersion")?;
    if Version::supported(&version).is_none() {
        return Err(format!(
            "cniVersion is {version:?}, and must be one of 0.1.0 to 1.1.0"
        ));
    }
    let plugins = value["plugins"].as_array().ok_or("plugins is not a list")?;
    if plugins.is_empty() {
        return Err("plugins is empty".to_owned());
    }
    let mut kinds = Vec::new();
    for (i, entry) in plugins.iter().enumerate() {
        let json = Json::parse(entry.to_string().as_bytes())
            .map_err(|reason| format!("plugins[{i}]: {reason}"))?;
        kinds.push(plugin(&json).map_err(|reason| format!("plugins[{i}].{reason}"))?);
    }
    Ok(format!("the list {name} of {}", kinds.join(", ")))
}

/// The type of one plugin's configuration. Only ours is known well enough to be checked.
fn plugin(json: &Json) -> Result<String, String> {
    let kind = match json.get("type") {
        Some(Value::String(kind)) if !kind.is_empty() => kind.clone(),
        Some(other) => return Err(format!("type: {other} is not the name of a plugin")),
        None => return Err("type: is missing".to_owned()),
    };
    if matches!(kind.as_str(), "cni-hostgw" | "flannel") {
        let conf = cni::NetConf::from_json(json).map_err(words)?;
        conf.validate().map_err(words)?;
        if let Some((key, value)) = conf.unsupported() {
            return Err(format!("{key}: {value} is not supported"));
        }
        let ranges = conf.range_sets().map_err(words)?;
        if !ranges.is_empty() {
            let ranges: Vec<Vec<_>> = ranges
                .iter()
                .map(|set| set.iter().map(range).collect())
                .collect();
            RangeSets::new(&ranges).map_err(|error| format!("ipam.ranges: {error}"))?;
            let subnets: Vec<_> = ranges.iter().flatten().map(|range| range.subnet).collect();
            let mut routes = conf.ipam.iter().flat_map(|ipam| &ipam.routes);
            if let Some(route) = routes.find(|route| route.is_unreachable_from(&subnets)) {
                let dst = route.dst;
                return Err(format!(
                    "ipam.routes: the gw of dst {dst} is in none of the subnets"
                ));
            }
        }
    }
    Ok(kind)
}

fn range(range: &RangeConf) -> RangeSpec {
    RangeSpec {
        subnet: range.subnet,
        start: range.range_start,
        end: range.range_end,
        gateway: range.gateway,
    }
}

fn words(error: cni::Error) -> String {
    if error.details.is_empty() {
        error.msg
    } else {
        format!("{}: {}", error.msg, error.details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_their_keys() {
        for (text, said) in [
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
                "the list cbr0 of flannel, portmap",
            ),
        ] {
            assert_eq!(kind(text).as_deref(), Ok(said));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("[]", "is not a JSON object"),
            ("{}", "is none of"),
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
                "ipam.routes: the gw of dst 10.0.0.0/8 is in none of the subnets",
            ),
            (
                r#"{"type": "cni-hostgw", "ipam": {"subnet": "10.10.1.0/24", "gateway": "10.10.2.1"}}"#,
                "ipam.ranges: invalid range set 0: gateway 10.10.2.1 not in network",
            ),
        ] {
            let error = kind(text).expect_err(text);
            assert!(error.starts_with(said), "{text}: {error}");
        }
    }
}
