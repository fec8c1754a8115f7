//! The result of ADD, in the shape of each version.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::netconf::{as_text, network, optional_address};
use crate::version::Family;
use crate::{Code, Dns, Error, Json, RouteConf, Version};

/// A route of a result: the same keys as a configured one.
pub type Route = RouteConf;

/// What ADD made: interfaces, addresses, routes and name resolution.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct AddResult {
    /// Host's and container's interfaces.
    pub interfaces: Vec<Interface>,
    /// Addresses of the container.
    pub ips: Vec<Ip>,
    /// Routes in the container.
    pub routes: Vec<Route>,
    /// Name resolution for the container.
    pub dns: Dns,
}

/// An interface that ADD made or used.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes; sent from 1.1.0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `CNI_NETNS` for the container's interface, nothing for the host's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that the interface ends in: not ours, handed on from 1.1.0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// The PCI device that the interface is of: not ours, handed on from 1.1.0 on.
    #[serde(rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address of the container.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Ip {
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with its subnet's prefix length.
    #[serde(deserialize_with = "network", serialize_with = "as_text")]
    pub address: IpNetwork,
    /// The subnet's gateway.
    #[serde(
        default,
        deserialize_with = "optional_address",
        skip_serializing_if = "Option::is_none"
    )]
    pub gateway: Option<IpAddr>,
}

/// `ip4` and `ip6` of the oldest shape.
#[derive(Deserialize)]
struct OldIp {
    #[serde(deserialize_with = "network")]
    ip: IpNetwork,
    #[serde(default, deserialize_with = "optional_address")]
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OldResult {
    ip4: Option<OldIp>,
    ip6: Option<OldIp>,
    dns: Dns,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    #[serde(rename = "cniVersion")]
    version: Option<String>,
}

impl AddResult {
    /// The result in the shape of `version`. That of 0.1.0 and 0.2.0 has room for one address of
    /// each family, its routes and name resolution, and for nothing else.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        match version.family() {
            Family::V0_2 => self.to_old(version),
            Family::V0_4 | Family::V1 => self.to_new(version),
        }
    }

    fn to_new(&self, version: Version) -> Value {
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

    fn to_old(&self, version: Version) -> Value {
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

    /// The `prevResult` of `config`, if it has one: the result of what ran before.
    ///
    /// Errors with code 6 when it is not a result of the configuration's family of versions.
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

    /// A result that was written for a configuration of `version`.
    ///
    /// The message says why it is none of the version's family.
    pub fn read(result: &Json, version: Version) -> Result<Self, String> {
        let head: Head = result.to()?;
        // Without a version of its own it has the configuration's.
        let its = head
            .version
            .as_deref()
            .filter(|text| !text.is_empty())
            .map_or(Some(version), Version::supported);
        if its.map(Version::family) != Some(version.family()) {
            let its = head.version.unwrap_or_default();
            return Err(format!(
                "its cniVersion is {its:?}, the configuration's {version}"
            ));
        }
        if version.family() != Family::V0_2 {
            return result.to();
        }
        let old: OldResult = result.to()?;
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

    /// The result of a chain in which `previous` came before. This one's part comes first, where the
    /// plugins behind look: `firewall` takes the first interface for the bridge, and `portmap` the
    /// first address for the container's. Name resolution is the previous one's where this one says
    /// nothing about it.
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
            dst: dst.parse().expect("written as a network"),
            gw: Some(gw.parse().expect("written as an address")),
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
    fn each_family_of_versions_has_its_shape() {
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
    fn a_result_may_be_without_addresses() {
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
    fn a_previous_result_comes_back_as_it_went() {
        for version in Version::ALL {
            let result = dual().to_json(version);
            let config = json!({"prevResult": result}).to_string();
            let config = Json::parse(config.as_bytes()).expect("just written");
            let previous = AddResult::previous(&config, version).expect("of its own version");
            let previous = previous.expect("is there");
            assert_eq!(previous.routes, dual().routes, "{version}");
            assert_eq!(previous.ips.len(), 2, "{version}");
        }
    }

    #[test]
    fn what_came_before_is_kept_in_a_chain_behind_what_is_new() {
        let mut previous = dual();
        previous.interfaces[0].name = "lo".into();
        let chain = dual().after(previous);
        let names: Vec<_> = chain.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["cni0", "eth0", "lo", "eth0"]);
        let indices: Vec<_> = chain.ips.iter().map(|ip| ip.interface).collect();
        assert_eq!(indices, [Some(1), Some(1), Some(3), Some(3)]);
    }

    #[test]
    fn a_previous_result_of_another_family_is_refused() {
        let config = br#"{"prevResult": {"cniVersion": "0.2.0"}}"#;
        let config = Json::parse(config).expect("valid");
        let error = AddResult::previous(&config, Version::V1_0_0).expect_err("another family");
        assert!(
            error.msg.starts_with("could not parse prevResult"),
            "{}",
            error.msg
        );
    }
}
