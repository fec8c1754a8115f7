//! The result of ADD, in the format of each version.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::network::{deserialize_network, deserialize_optional_address, serialize_as_text};
use crate::version::Family;
use crate::{Code, Error, Json, Route, Version};

/// The result of ADD: interfaces, addresses, routes and DNS configuration.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct AddResult {
    /// Interfaces on the host and in the container.
    pub interfaces: Vec<Interface>,
    /// Addresses of the container.
    pub ips: Vec<Ip>,
    /// Routes in the container.
    pub routes: Vec<Route>,
    /// DNS configuration for the container.
    pub dns: Dns,
}

/// Name resolution, passed on to the runtime unchanged.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of the name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// An interface that ADD created or used.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Name of the interface.
    pub name: String,
    /// Hardware address, or empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes. Written from version 1.1.0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `CNI_NETNS` for an interface in the container, empty for an interface on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Path of the socket behind the interface. This plugin does not set it. Passed on from version
    /// 1.1.0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// PCI id of the device behind the interface. This plugin does not set it. Passed on from
    /// version 1.1.0 on.
    #[serde(rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address of the container.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Ip {
    /// Index of the interface in `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Address with the prefix length of its subnet.
    #[serde(
        deserialize_with = "deserialize_network",
        serialize_with = "serialize_as_text"
    )]
    pub address: IpNetwork,
    /// Gateway of the subnet.
    #[serde(
        default,
        deserialize_with = "deserialize_optional_address",
        skip_serializing_if = "Option::is_none"
    )]
    pub gateway: Option<IpAddr>,
}

/// The value of `ip4` or `ip6` in the oldest result format.
#[derive(Deserialize)]
struct LegacyIp {
    #[serde(deserialize_with = "deserialize_network")]
    ip: IpNetwork,
    #[serde(default, deserialize_with = "deserialize_optional_address")]
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LegacyResult {
    ip4: Option<LegacyIp>,
    ip6: Option<LegacyIp>,
    dns: Dns,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
}

impl AddResult {
    /// Returns the result in the format of `version`. The format of 0.1.0 and 0.2.0 holds only one
    /// address for each family with its routes, and the DNS configuration.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        match version.family() {
            Family::V0_2 => self.to_legacy_json(version),
            Family::V0_4 | Family::V1 => self.to_current_json(version),
        }
    }

    fn to_current_json(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), json!(version.as_str()));
        let mut interfaces = self.interfaces.clone();
        if version < Version::V1_1_0 {
            for interface in &mut interfaces {
                interface.mtu = None;
                (interface.socket_path, interface.pci_id) = (None, None);
            }
        }
        if !interfaces.is_empty() {
            object.insert("interfaces".into(), json!(interfaces));
        }
        let ips: Vec<_> = self.ips.iter().map(|ip| ip.to_json(version)).collect();
        if !ips.is_empty() {
            object.insert("ips".into(), json!(ips));
        }
        if !self.routes.is_empty() {
            object.insert("routes".into(), json!(self.routes));
        }
        if version < Version::V1_0_0 || self.dns != Dns::default() {
            object.insert("dns".into(), json!(self.dns));
        }
        Value::Object(object)
    }

    fn to_legacy_json(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), json!(version.as_str()));
        for (key, is_ours) in [
            ("ip4", IpNetwork::is_ipv4 as fn(&IpNetwork) -> bool),
            ("ip6", IpNetwork::is_ipv6),
        ] {
            let Some(ip) = self.ips.iter().find(|ip| is_ours(&ip.address)) else {
                continue;
            };
            let mut old = json!({"ip": ip.address.to_string()});
            if let Some(gateway) = ip.gateway {
                old["gateway"] = json!(gateway);
            }
            let routes = self.routes.iter().filter(|route| is_ours(&route.dst));
            let routes: Vec<_> = routes
                .map(|route| match route.gw {
                    Some(gw) => json!({"dst": route.dst.to_string(), "gw": gw}),
                    None => json!({"dst": route.dst.to_string()}),
                })
                .collect();
            if !routes.is_empty() {
                old["routes"] = json!(routes);
            }
            object.insert(key.into(), old);
        }
        object.insert("dns".into(), json!(self.dns));
        Value::Object(object)
    }

    /// Returns the `prevResult` of `config`, if any: the result of the plugins that ran before.
    ///
    /// Returns an error with code 6 if it is not a result of the configuration's version family.
    pub fn previous(config: &Json, version: Version) -> Result<Option<Self>, Error> {
        let decode = |reason| {
            Error::new(
                Code::DECODE,
                format!("could not parse prevResult: {reason}"),
            )
        };
        let Some(previous) = config.object("prevResult") else {
            return match config.get("prevResult") {
                None => Ok(None),
                Some(other) => Err(decode(format!("expected an object, not {other}"))),
            };
        };
        let result = Self::read(&previous, version);
        result.map(Some).map_err(decode)
    }

    /// Parses a result that was written for a configuration of `version`.
    ///
    /// The error message says why the text is not a result of the version's family.
    pub fn read(result: &Json, version: Version) -> Result<Self, String> {
        let head: Head = result.to()?;
        // A result without cniVersion has the version of the configuration.
        let its = head
            .version
            .as_deref()
            .filter(|text| !text.is_empty())
            .map_or(Some(version), Version::supported);
        if its.map(Version::family) != Some(version.family()) {
            let its = head.version.unwrap_or_default();
            return Err(format!(
                "its cniVersion is {its:?}, but the configuration has {version}"
            ));
        }
        if version.family() != Family::V0_2 {
            return result.to();
        }
        let old: LegacyResult = result.to()?;
        let mut result = Self {
            dns: old.dns,
            ..Self::default()
        };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            result.ips.push(Ip {
                interface: None,
                address: ip.ip,
                gateway: ip.gateway,
            });
            result.routes.extend(ip.routes);
        }
        Ok(result)
    }

    /// Merges this result with `previous`, the result of the plugins that ran earlier in the chain.
    /// The entries of this result come first, because later plugins look there: `firewall` uses the
    /// first interface as the bridge, and `portmap` the first address as the container's. The DNS
    /// configuration of `previous` is used if this result has none.
    #[must_use]
    pub fn after(mut self, mut previous: Self) -> Self {
        let ours = self.interfaces.len();
        for ip in &mut previous.ips {
            ip.interface = ip.interface.map(|index| index + ours);
        }
        self.interfaces.append(&mut previous.interfaces);
        self.ips.append(&mut previous.ips);
        self.routes.append(&mut previous.routes);
        if self.dns == Dns::default() {
            self.dns = previous.dns;
        }
        self
    }
}

impl Ip {
    fn to_json(&self, version: Version) -> Value {
        let mut object = json!(self);
        if version.family() == Family::V0_4 {
            object["version"] = json!(if self.address.is_ipv4() { "4" } else { "6" });
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual() -> AddResult {
        let route = |dst: &str, gw: &str| Route {
            dst: dst.parse().expect("a valid network"),
            gw: Some(gw.parse().expect("a valid address")),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        };
        AddResult {
            interfaces: vec![
                Interface {
                    name: "cni0".into(),
                    mac: "0a:58:0a:0a:01:01".into(),
                    mtu: Some(1500),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    sandbox: "/run/netns/a".into(),
                    ..Interface::default()
                },
            ],
            ips: vec![
                Ip {
                    interface: Some(1),
                    address: "10.10.1.6/24".parse().expect("v4"),
                    gateway: "10.10.1.1".parse().ok(),
                },
                Ip {
                    interface: Some(1),
                    address: "fd00:10:10:1::6/64".parse().expect("v6"),
                    gateway: None,
                },
            ],
            routes: vec![
                route("0.0.0.0/0", "10.10.1.1"),
                route("::/0", "fd00:10:10:1::1"),
            ],
            dns: Dns::default(),
        }
    }

    #[test]
    fn each_version_family_has_its_result_format() {
        assert_eq!(
            dual().to_json(Version::V0_2_0),
            json!({
                "cniVersion": "0.2.0",
                "ip4": {"ip": "10.10.1.6/24", "gateway": "10.10.1.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.10.1.1"}]},
                "ip6": {"ip": "fd00:10:10:1::6/64", "routes": [{"dst": "::/0", "gw": "fd00:10:10:1::1"}]},
                "dns": {},
            })
        );
        let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.10.1.1"}, {"dst": "::/0", "gw": "fd00:10:10:1::1"}]);
        assert_eq!(
            dual().to_json(Version::V0_3_1),
            json!({
                "cniVersion": "0.3.1",
                "interfaces": [{"name": "cni0", "mac": "0a:58:0a:0a:01:01"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
                "ips": [
                    {"version": "4", "interface": 1, "address": "10.10.1.6/24", "gateway": "10.10.1.1"},
                    {"version": "6", "interface": 1, "address": "fd00:10:10:1::6/64"},
                ],
                "routes": routes,
                "dns": {},
            })
        );
        assert_eq!(
            dual().to_json(Version::V1_1_0),
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [{"name": "cni0", "mac": "0a:58:0a:0a:01:01", "mtu": 1500}, {"name": "eth0", "sandbox": "/run/netns/a"}],
                "ips": [
                    {"interface": 1, "address": "10.10.1.6/24", "gateway": "10.10.1.1"},
                    {"interface": 1, "address": "fd00:10:10:1::6/64"},
                ],
                "routes": routes,
            })
        );
    }

    #[test]
    fn a_result_may_have_no_addresses() {
        let nothing = AddResult::default();
        assert_eq!(
            nothing.to_json(Version::V0_1_0),
            json!({"cniVersion": "0.1.0", "dns": {}})
        );
        assert_eq!(
            nothing.to_json(Version::V1_0_0),
            json!({"cniVersion": "1.0.0"})
        );
    }

    #[test]
    fn a_result_can_be_read_back_as_a_previous_result() {
        for version in Version::ALL {
            let result = dual().to_json(version);
            let config = json!({"prevResult": result}).to_string();
            let config = Json::parse(config.as_bytes()).expect("just written");
            let previous = AddResult::previous(&config, version).expect("the versions match");
            let previous = previous.expect("the file exists");
            assert_eq!(previous.routes, dual().routes, "{version}");
            assert_eq!(previous.ips.len(), 2, "{version}");
        }
    }

    #[test]
    fn a_chained_result_lists_its_own_entries_before_the_previous_ones() {
        let mut previous = dual();
        previous.interfaces[0].name = "lo".into();
        let chain = dual().after(previous);
        let names: Vec<_> = chain.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["cni0", "eth0", "lo", "eth0"]);
        let indices: Vec<_> = chain.ips.iter().map(|ip| ip.interface).collect();
        assert_eq!(indices, [Some(1), Some(1), Some(3), Some(3)]);
    }

    #[test]
    fn a_previous_result_of_another_family_is_rejected() {
        let config = br#"{"prevResult": {"cniVersion": "0.2.0"}}"#;
        let config = Json::parse(config).expect("valid");
        let error = AddResult::previous(&config, Version::V1_0_0).expect_err("another family");
        assert!(
            error.msg.starts_with("could not parse prevResult"),
            "{}",
            error.msg
        );
    }

    #[test]
    fn damaged_results_of_every_version_never_panic() {
        let valid = Version::ALL.map(|version| dual().to_json(version).to_string());
        let valid: Vec<_> = valid.iter().map(String::as_bytes).collect();
        random_input::never_panics(&valid, |text| {
            let Ok(json) = Json::parse(text) else {
                return;
            };
            for version in Version::ALL {
                if let Ok(result) = AddResult::read(&json, version) {
                    drop(dual().after(result).to_json(version));
                }
            }
        });
    }
}
