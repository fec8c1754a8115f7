//! kube-flannel's list, with our plugin in place of `flannel`, `portmap` and `bandwidth`.

use cni::Json;
use netconf::{Bandwidth, NetConf, SharedCapability};
use serde_json::{Value, json};

use super::PLUGIN_NAME;

/// Keys of the plugins that our plugin replaces, apart from `type` and `capabilities`.
fn keys(shared: SharedCapability) -> &'static [&'static str] {
    match shared {
        SharedCapability::PortMappings => &["snat", "masqAll", "markMasqBit"],
        SharedCapability::Bandwidth => &Bandwidth::KEYS,
    }
}

/// Returns the text of the list with our plugin.
pub(super) fn with_our_plugin(mut list: Value) -> String {
    if let Some(plugins) = list["plugins"].as_array_mut() {
        let ours = plugins
            .iter()
            .position(|plugin| plugin["type"] == "flannel");
        if let Some(ours) = ours {
            plugins[ours]["type"] = PLUGIN_NAME.into();
            for shared in SharedCapability::ALL {
                merge(plugins, ours, shared);
            }
        }
    }
    format!("{list:#}\n")
}

/// Moves an entry behind ours into ours. One with keys that our plugin does not support stays.
fn merge(plugins: &mut Vec<Value>, ours: usize, shared: SharedCapability) {
    let mut later = (ours + 1)..plugins.len();
    let Some(theirs) = later.find(|i| plugins[*i]["type"] == shared.plugin()) else {
        return;
    };
    let mut merged = plugins[ours].clone();
    let entry = &plugins[theirs];
    if entry["capabilities"][shared.name()] == json!(true) {
        if !merged["capabilities"].is_object() {
            merged["capabilities"] = json!({});
        }
        merged["capabilities"][shared.name()] = json!(true);
    }
    // Keys match without regard to case.
    for (key, value) in entry.as_object().into_iter().flatten() {
        let is_same = |known: &&&str| known.eq_ignore_ascii_case(key);
        let is_other = ["type", "capabilities", "backend"]
            .iter()
            .any(|k| k.eq_ignore_ascii_case(key));
        match keys(shared).iter().find(is_same) {
            Some(known) => merged[*known] = value.clone(),
            None if is_other => {}
            // Such as `externalSetMarkChain`: our plugin says whether it can do without.
            None => merged[key] = value.clone(),
        }
    }
    if is_supported(&merged) {
        plugins[ours] = merged;
        plugins.remove(theirs);
    }
}

fn is_supported(entry: &Value) -> bool {
    let conf = Json::parse(entry.to_string().as_bytes()).map(|json| NetConf::from_json(&json));
    matches!(conf, Ok(Ok(conf)) if conf.validate().is_ok() && conf.unsupported().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(behind: &Value) -> Value {
        let mut plugins = vec![json!({"type": "flannel", "delegate": {"hairpinMode": true}})];
        plugins.extend(behind.as_array().expect("a list").iter().cloned());
        let text = with_our_plugin(json!({"name": "cbr0", "plugins": plugins}));
        serde_json::from_str::<Value>(&text).expect("is JSON")["plugins"].clone()
    }

    #[test]
    fn the_entries_of_portmap_and_bandwidth_become_capabilities_of_ours() {
        let plugins = merged(&json!([
            {"type": "portmap", "capabilities": {"portMappings": true}, "SNAT": true, "backend": "iptables"},
            {"type": "tuning"},
            {"type": "bandwidth", "ingressRate": 1000, "ingressBurst": 1000},
        ]));
        let expected = json!([
            {"type": "cni-hostgw", "delegate": {"hairpinMode": true},
                "capabilities": {"portMappings": true}, "snat": true,
                "ingressRate": 1000, "ingressBurst": 1000},
            {"type": "tuning"},
        ]);
        assert_eq!(plugins, expected);
    }

    #[test]
    fn an_entry_that_our_plugin_cannot_replace_stays() {
        for key in ["conditionsV4", "conditionsV6"] {
            let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true},
                key: ["-d", "192.0.2.1"]});
            let plugins = merged(&json!([portmap]));
            assert_eq!(plugins[0]["capabilities"], Value::Null);
            assert_eq!(plugins[1], portmap);
        }
    }
}
