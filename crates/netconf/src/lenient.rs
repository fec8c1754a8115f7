//! The keys that DEL, GC and the log need.

use std::path::PathBuf;

use cni::Json;
use serde_json::Value;

use crate::HOST_LOCAL;

/// A few keys of the network configuration, each `None` if it is missing, empty or of a wrong type.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is about a key")]
pub struct LenientConf {
    /// True if `delegate` exists: flannel's form.
    pub has_delegate: bool,
    /// `bridge`: the name of the bridge.
    pub bridge: Option<String>,
    /// `subnetFile`: path of the node's subnet file.
    pub subnet_file: Option<PathBuf>,
    /// `dataDir`: the folder with the scratch files of the `flannel` plugin.
    pub scratch_dir: Option<PathBuf>,
    /// `ipam.type`: the IPAM plugin.
    pub ipam_type: Option<String>,
    /// `ipam.dataDir`: the folder with the reservations.
    pub ipam_data_dir: Option<PathBuf>,
    /// `logFile`: where requests are logged.
    pub log_file: Option<PathBuf>,
    /// True if `capabilities.portMappings` is true: host ports are ours to remove.
    pub maps_ports: bool,
    /// True if `capabilities.bandwidth` is true: limits of the traffic are ours to remove.
    pub limits_bandwidth: bool,
    /// True if `runtimeConfig.portMappings` has an entry.
    pub has_port_mappings: bool,
}

impl LenientConf {
    /// Reads the keys that are there.
    #[must_use]
    pub fn from_json(json: &Json) -> Self {
        let delegate = json.object("delegate");
        let ipam = json.object("ipam");
        let nested = |object, key| json.object(object)?.get(key).cloned();
        let port_mappings = nested("runtimeConfig", "portMappings");
        let path = |json: &Json, key| text(json, key).map(PathBuf::from);
        Self {
            has_delegate: json.has("delegate"),
            bridge: text(delegate.as_ref().unwrap_or(json), "bridge"),
            subnet_file: path(json, "subnetFile"),
            scratch_dir: path(json, "dataDir"),
            ipam_type: ipam.as_ref().and_then(|ipam| text(ipam, "type")),
            ipam_data_dir: ipam.as_ref().and_then(|ipam| path(ipam, "dataDir")),
            log_file: path(json, "logFile"),
            maps_ports: nested("capabilities", "portMappings") == Some(Value::Bool(true)),
            limits_bandwidth: nested("capabilities", "bandwidth") == Some(Value::Bool(true)),
            has_port_mappings: port_mappings.is_some_and(|list| list != Value::Array(Vec::new())),
        }
    }

    /// The IPAM plugin if it is a program of its own, and not ours.
    #[must_use]
    pub fn external_ipam(&self) -> Option<&str> {
        let name = self.ipam_type.as_deref();
        name.filter(|name| *name != HOST_LOCAL)
    }
}

/// A string that is not empty.
fn text(json: &Json, key: &str) -> Option<String> {
    let text = json.get(key).and_then(Value::as_str);
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_wrong_type_count_as_missing() {
        let text = br#"{"delegate": {"Bridge": "br1"}, "ipam": {"type": 5, "dataDir": "/d"},
            "subnetFile": [], "dataDir": "", "LogFile": "/log"}"#;
        let conf = LenientConf::from_json(&Json::parse(text).expect("valid"));
        assert!(conf.has_delegate);
        assert_eq!(conf.bridge.as_deref(), Some("br1"));
        assert_eq!(
            (conf.ipam_type, conf.subnet_file, conf.scratch_dir),
            (None, None, None)
        );
        assert_eq!(conf.ipam_data_dir, Some("/d".into()));
        assert_eq!(conf.log_file, Some("/log".into()));
    }
}
