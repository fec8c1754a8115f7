//! The network's configuration, in the keys of flannel's `net-conf.json`.

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// The cluster's network, checked. At least one family is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetConf {
    /// The IPv4 network, where IPv4 is enabled.
    pub(crate) ipv4: Option<Ipv4Network>,
    /// The IPv6 network, where IPv6 is enabled.
    pub(crate) ipv6: Option<Ipv6Network>,
}

const KEYS: [&str; 6] = [
    "Network",
    "IPv6Network",
    "EnableIPv4",
    "EnableIPv6",
    "Backend",
    "Type",
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Keys {
    network: Option<String>,
    #[serde(rename = "IPv6Network")]
    ipv6_network: Option<String>,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    backend: Option<Backend>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Backend {
    #[serde(rename = "Type")]
    kind: String,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            network: None,
            ipv6_network: None,
            enable_ipv4: true,
            enable_ipv6: false,
            backend: None,
        }
    }
}

impl<'de> Deserialize<'de> for NetConf {
    /// Keys match without regard to case and unknown ones pass, as in flannel. Errors name
    /// the key and its value.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let object = Value::Object(Map::deserialize(from)?);
        let keys: Keys =
            serde_path_to_error::deserialize(fold(object)).map_err(D::Error::custom)?;
        if let Some(Backend { kind }) = keys.backend
            && !kind.eq_ignore_ascii_case("host-gw")
        {
            return Err(D::Error::custom(format!(
                "Backend.Type is {kind:?}, and must be host-gw"
            )));
        }
        let ipv4 = network("Network", keys.network, keys.enable_ipv4).map_err(D::Error::custom)?;
        let ipv6 = network("IPv6Network", keys.ipv6_network, keys.enable_ipv6)
            .map_err(D::Error::custom)?;
        if ipv4.is_none() && ipv6.is_none() {
            return Err(D::Error::custom("EnableIPv4 and EnableIPv6 are both false"));
        }
        let masked = |v4: Ipv4Network| Ipv4Network::new(v4.network(), v4.prefix()).ok();
        let masked6 = |v6: Ipv6Network| Ipv6Network::new(v6.network(), v6.prefix()).ok();
        Ok(Self {
            ipv4: ipv4.and_then(masked),
            ipv6: ipv6.and_then(masked6),
        })
    }
}

fn network<T: std::str::FromStr>(
    key: &str,
    value: Option<String>,
    enabled: bool,
) -> Result<Option<T>, String> {
    if !enabled {
        return Ok(None);
    }
    let value = value.ok_or_else(|| format!("{key} is missing"))?;
    // An address without a prefix length would pass for a network of one.
    let network = value.contains('/').then(|| value.parse().ok()).flatten();
    network
        .map(Some)
        .ok_or_else(|| format!("{key} is {value:?}, which is no such network"))
}

/// Gives known keys flannel's spelling and drops nulls.
fn fold(value: Value) -> Value {
    let Value::Object(object) = value else {
        return value;
    };
    let known = |key: String| {
        let known = KEYS.iter().find(|known| known.eq_ignore_ascii_case(&key));
        known.map_or(key, |known| (*known).to_owned())
    };
    let entries = object.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(
        entries
            .map(|(key, value)| (known(key), fold(value)))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_keys_match_without_regard_to_case() {
        let conf = r#"{"network": "10.10.3.4/16", "enableipv6": true, "IPV6Network": "fd00:10:10::/48", "Backend": {"type": "Host-GW"}, "X": 1}"#;
        let conf: NetConf = serde_json::from_str(conf).expect("valid");
        assert_eq!(
            conf.ipv4.map(|v4| v4.to_string()).as_deref(),
            Some("10.10.0.0/16")
        );
        assert_eq!(
            conf.ipv6.map(|v6| v6.to_string()).as_deref(),
            Some("fd00:10:10::/48")
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (conf, said) in [
            ("{}", "Network is missing"),
            (
                r#"{"Network": "10.10.0.0"}"#,
                r#"Network is "10.10.0.0", which is no such network"#,
            ),
            (
                r#"{"Network": 5}"#,
                "Network: invalid type: integer `5`, expected a string",
            ),
            (
                r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#,
                r#"Backend.Type is "vxlan", and must be host-gw"#,
            ),
            (
                r#"{"EnableIPv4": false}"#,
                "EnableIPv4 and EnableIPv6 are both false",
            ),
        ] {
            let error = serde_json::from_str::<NetConf>(conf)
                .expect_err(conf)
                .to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
