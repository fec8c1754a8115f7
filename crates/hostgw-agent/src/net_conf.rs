//! The network's configuration, in the keys and by the rules of flannel's `net-conf.json`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The cluster's network, checked. At least one family is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetConf {
    /// The IPv4 space, where IPv4 is enabled.
    pub(crate) ipv4: Option<Space>,
    /// The IPv6 space, where IPv6 is enabled.
    pub(crate) ipv6: Option<Space>,
}

/// The network of one family, and the subnets in it that nodes can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// The network, without host bits.
    pub(crate) network: IpNetwork,
    /// The prefix length of a node's subnet.
    pub(crate) length: u8,
    /// The first and the last subnet that a node can get.
    first: IpAddr,
    last: IpAddr,
}

/// What the rules are for one family.
struct Rules {
    network: &'static str,
    length: &'static str,
    min: &'static str,
    max: &'static str,
    /// A node's usual subnet, and the longest that it may have.
    usual: u8,
    longest: u8,
    is_ipv4: bool,
}

const IPV4: Rules = Rules {
    network: "Network",
    length: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    usual: 24,
    longest: 30,
    is_ipv4: true,
};

const IPV6: Rules = Rules {
    network: "IPv6Network",
    length: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    usual: 64,
    longest: 126,
    is_ipv4: false,
};

const KEYS: [&str; 12] = [
    "EnableIPv4",
    "EnableIPv6",
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
    "Type",
];

/// Reads a `net-conf.json`. What is wrong is named by its key and its value.
pub(crate) fn parse(text: &str) -> Result<NetConf, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

impl NetConf {
    /// The spaces of the enabled families, IPv4 first.
    pub(crate) fn spaces(&self) -> impl Iterator<Item = Space> {
        self.ipv4.into_iter().chain(self.ipv6)
    }

    /// The networks of the enabled families, IPv4 first.
    pub(crate) fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        self.spaces().map(|space| space.network)
    }

    /// The space of the family of `network`.
    pub(crate) fn space(&self, network: IpNetwork) -> Option<Space> {
        if network.is_ipv4() {
            self.ipv4
        } else {
            self.ipv6
        }
    }
}

impl<'de> Deserialize<'de> for NetConf {
    /// Keys match without regard to case and unknown ones pass, as in flannel. Errors name
    /// the key, its value and the rule.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let object = fold(Map::deserialize(from)?);
        Self::check(&object).map_err(D::Error::custom)
    }
}

impl NetConf {
    fn check(object: &Map<String, Value>) -> Result<Self, String> {
        check_backend(object.get("Backend"))?;
        let enabled = |key: &str, default| match object.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| format!("{key} is {value}, and must be true or false")),
        };
        let space =
            |rules: &Rules, enabled: bool| enabled.then(|| Space::check(object, rules)).transpose();
        let ipv4 = space(&IPV4, enabled("EnableIPv4", true)?)?;
        let ipv6 = space(&IPV6, enabled("EnableIPv6", false)?)?;
        if ipv4.is_none() && ipv6.is_none() {
            return Err("EnableIPv4 and EnableIPv6 are both false".to_owned());
        }
        Ok(Self { ipv4, ipv6 })
    }
}

/// Where none is named, host-gw is meant: there is no other here.
fn check_backend(backend: Option<&Value>) -> Result<(), String> {
    let kind = match backend {
        None => return Ok(()),
        Some(Value::Object(backend)) => backend.get("Type").unwrap_or(&Value::Null),
        Some(other) => return Err(format!("Backend is {other}, and must be an object")),
    };
    match kind.as_str() {
        Some(kind) if kind.eq_ignore_ascii_case("host-gw") => Ok(()),
        _ => Err(format!("Backend.Type is {kind}, and must be \"host-gw\"")),
    }
}

impl Space {
    fn check(object: &Map<String, Value>, rules: &Rules) -> Result<Self, String> {
        let network = Self::check_network(object, rules)?;
        let length = Self::check_length(object, rules, network)?;
        let mut space = Self {
            network,
            length,
            first: network.network(),
            last: network.network(),
        };
        let size = space.size();
        let begin = number(network.network());
        // flannel leaves the first one out.
        space.first = space.address(begin + size);
        space.last =
            space.address(begin + (1_u128 << (length - network.prefix())).wrapping_sub(1) * size);
        if let Some(first) = space.check_bound(object, rules, rules.min)? {
            space.first = first;
        }
        if let Some(last) = space.check_bound(object, rules, rules.max)? {
            space.last = last;
        }
        if space.first > space.last {
            return Err(format!(
                "{} is {}, and must not lie behind {}, which is {}",
                rules.min, space.first, rules.max, space.last
            ));
        }
        Ok(space)
    }

    fn check_network(object: &Map<String, Value>, rules: &Rules) -> Result<IpNetwork, String> {
        let key = rules.network;
        let value = object.get(key).ok_or_else(|| format!("{key} is missing"))?;
        let family = if rules.is_ipv4 { "IPv4" } else { "IPv6" };
        let wrong = || {
            format!(
                "{key} is {value}, and must be an {family} network as {}",
                rules.example()
            )
        };
        let text = value.as_str().ok_or_else(wrong)?;
        let network = subnet_env::cidr(text).filter(|network| network.is_ipv4() == rules.is_ipv4);
        let network = network.ok_or_else(wrong)?;
        if network.prefix() == 0 {
            return Err(format!("{key} is {value}, and must not be all addresses"));
        }
        Ok(IpNetwork::new(network.network(), network.prefix()).expect("both come from a network"))
    }

    /// The prefix length of a node's subnet: four of them must fit into the network.
    fn check_length(
        object: &Map<String, Value>,
        rules: &Rules,
        network: IpNetwork,
    ) -> Result<u8, String> {
        let (key, longest, prefix) = (rules.length, rules.longest, network.prefix());
        let value = object.get(key).unwrap_or(&Value::Null);
        let shortest = prefix + 2;
        let length = match value {
            Value::Null => 0,
            value => value
                .as_u64()
                .ok_or_else(|| format!("{key} is {value}, and must be a number"))?,
        };
        if length == 0 {
            let length = rules.usual.max(shortest);
            if length > longest {
                return Err(format!(
                    "{} is {network}, and must be a /{} or larger: four subnets must fit into it",
                    rules.network,
                    longest - 2
                ));
            }
            return Ok(length);
        }
        u8::try_from(length)
            .ok()
            .filter(|length| (shortest..=longest).contains(length))
            .ok_or_else(|| {
                format!(
                    "{key} is {value}, and must be from {shortest} ({} and 2) to {longest}",
                    rules.network
                )
            })
    }

    fn check_bound(
        &self,
        object: &Map<String, Value>,
        rules: &Rules,
        key: &str,
    ) -> Result<Option<IpAddr>, String> {
        let Some(value) = object.get(key) else {
            return Ok(None);
        };
        let address: Option<IpAddr> = value.as_str().and_then(|text| text.parse().ok());
        let address = address.filter(|address| address.is_ipv4() == rules.is_ipv4);
        let address = address.ok_or_else(|| {
            let family = if rules.is_ipv4 { "IPv4" } else { "IPv6" };
            format!("{key} is {value}, and must be an {family} address")
        })?;
        if !self.network.contains(address) {
            let (network, name) = (self.network, rules.network);
            return Err(format!(
                "{key} is {value}, and must lie in {name}, which is {network}"
            ));
        }
        if !number(address).is_multiple_of(self.size()) {
            return Err(format!(
                "{key} is {value}, and must be where a subnet of {} (/{}) begins",
                rules.length, self.length
            ));
        }
        Ok(Some(address))
    }

    /// How many addresses a subnet has.
    fn size(&self) -> u128 {
        let bits = if self.network.is_ipv4() { 32 } else { 128 };
        1 << (bits - self.length)
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.network.is_ipv4() {
            let number = u32::try_from(number).expect("an address of the network");
            Ipv4Addr::from(number).into()
        } else {
            Ipv6Addr::from(number).into()
        }
    }

    /// Whether a node can get `subnet`.
    pub(crate) fn fits(&self, subnet: IpNetwork) -> bool {
        subnet.prefix() == self.length
            && subnet.is_ipv4() == self.network.is_ipv4()
            && subnet.ip() == subnet.network()
            && (self.first..=self.last).contains(&subnet.ip())
    }

    /// How many subnets there are for nodes.
    pub(crate) fn count(&self) -> u128 {
        (number(self.last) - number(self.first)) / self.size() + 1
    }

    /// One of them, counted from 0.
    pub(crate) fn subnet(&self, i: u128) -> IpNetwork {
        let address = self.address(number(self.first) + i * self.size());
        IpNetwork::new(address, self.length).expect("checked with the configuration")
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            length,
            first,
            last,
            ..
        } = self;
        write!(f, "{first}/{length} to {last}/{length}")
    }
}

impl Rules {
    fn example(&self) -> &'static str {
        if self.is_ipv4 {
            "\"10.244.0.0/16\""
        } else {
            "\"fd00:10:244::/48\""
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// Gives known keys flannel's spelling and drops nulls, but for the backend: there, flannel takes
/// null for a type without a name.
fn fold(object: Map<String, Value>) -> Map<String, Value> {
    let mut folded = Map::new();
    for (key, value) in object {
        let known = KEYS.iter().find(|known| known.eq_ignore_ascii_case(&key));
        let key = known.map_or(key, |known| (*known).to_owned());
        let value = match value {
            Value::Null if key != "Backend" => continue,
            Value::Null => Value::Object(Map::new()),
            Value::Object(inner) => Value::Object(fold(inner)),
            other => other,
        };
        folded.insert(key, value);
    }
    folded
}

impl Serialize for NetConf {
    /// In the same keys, each of them named.
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("EnableIPv4", &self.ipv4.is_some())?;
        map.serialize_entry("EnableIPv6", &self.ipv6.is_some())?;
        for (space, rules) in [(self.ipv4, &IPV4), (self.ipv6, &IPV6)] {
            if let Some(space) = space {
                map.serialize_entry(rules.network, &space.network)?;
                map.serialize_entry(rules.length, &space.length)?;
                map.serialize_entry(rules.min, &space.first)?;
                map.serialize_entry(rules.max, &space.last)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> Result<NetConf, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn spaces(text: &str) -> Vec<String> {
        let conf = conf(text).expect(text);
        let again = serde_json::to_string(&conf).expect("written");
        assert_eq!(self::conf(&again).expect("read"), conf, "{again}");
        conf.spaces().map(|space| space.to_string()).collect()
    }

    #[test]
    fn flannels_keys_match_without_regard_to_case() {
        let text = r#"{"network": "10.10.3.4/16", "enableipv6": true, "IPV6Network": "fd00:10:10::/48", "Backend": {"type": "Host-GW"}, "X": 1}"#;
        let conf = conf(text).expect("valid");
        let networks: Vec<_> = conf.networks().map(|network| network.to_string()).collect();
        assert_eq!(networks, ["10.10.0.0/16", "fd00:10:10::/48"]);
    }

    #[test]
    fn what_is_not_said_is_as_in_flannel() {
        for (text, said) in [
            (
                r#"{"Network": "10.10.0.0/16"}"#,
                "10.10.1.0/24 to 10.10.255.0/24",
            ),
            (
                r#"{"Network": "10.10.0.0/22"}"#,
                "10.10.1.0/24 to 10.10.3.0/24",
            ),
            (
                r#"{"Network": "10.10.0.0/23"}"#,
                "10.10.0.128/25 to 10.10.1.128/25",
            ),
            (
                r#"{"Network": "10.10.0.0/28", "SubnetLen": 0}"#,
                "10.10.0.4/30 to 10.10.0.12/30",
            ),
            (
                r#"{"Network": "10.0.0.0/8", "SubnetLen": 20}"#,
                "10.0.16.0/20 to 10.255.240.0/20",
            ),
            (
                r#"{"Network": "10.10.0.0/16", "SubnetMin": "10.10.0.0", "SubnetMax": "10.10.9.0"}"#,
                "10.10.0.0/24 to 10.10.9.0/24",
            ),
            (
                r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/62"}"#,
                "fd00:0:0:1::/64 to fd00:0:0:3::/64",
            ),
            (
                r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/124"}"#,
                "fd00::4/126 to fd00::c/126",
            ),
        ] {
            assert_eq!(spaces(text), [said], "{text}");
        }
        let conf = conf(r#"{"Network": "10.10.0.0/16"}"#).expect("valid");
        let space = conf.ipv4.expect("enabled");
        assert_eq!(
            (space.count(), space.subnet(254).to_string().as_str()),
            (255, "10.10.255.0/24")
        );
        for (subnet, fits) in [
            ("10.10.1.0/24", true),
            ("10.10.0.0/24", false),
            ("10.10.1.0/25", false),
        ] {
            assert_eq!(
                space.fits(subnet.parse().expect("a network")),
                fits,
                "{subnet}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value_and_the_rule() {
        for (text, said) in [
            ("{}", "Network is missing"),
            (r#"{"Network": null}"#, "Network is missing"),
            (
                r#"{"Network": ""}"#,
                r#"Network is "", and must be an IPv4 network as "10.244.0.0/16""#,
            ),
            (
                r#"{"Network": "10.10.0.0"}"#,
                r#"Network is "10.10.0.0", and must be an IPv4 network"#,
            ),
            (
                r#"{"Network": "fd00::/48"}"#,
                r#"Network is "fd00::/48", and must be an IPv4 network"#,
            ),
            (
                r#"{"Network": 5}"#,
                "Network is 5, and must be an IPv4 network",
            ),
            (
                r#"{"Network": "0.0.0.0/0"}"#,
                r#"Network is "0.0.0.0/0", and must not be all addresses"#,
            ),
            (
                r#"{"Network": "10.0.0.0/29"}"#,
                "Network is 10.0.0.0/29, and must be a /28 or larger",
            ),
            (
                r#"{"Network": "10.0.0.0/16", "SubnetLen": 31}"#,
                "SubnetLen is 31, and must be from 18 (Network and 2) to 30",
            ),
            (
                r#"{"Network": "10.0.0.0/16", "SubnetLen": 17}"#,
                "SubnetLen is 17, and must be from 18",
            ),
            (
                r#"{"Network": "10.0.0.0/16", "SubnetLen": -1}"#,
                "SubnetLen is -1, and must be a number",
            ),
            (
                r#"{"Network": "10.0.0.0/16", "SubnetLen": "24"}"#,
                r#"SubnetLen is "24", and must be a number"#,
            ),
            (
                r#"{"Network": "10.0.0.0/16", "SubnetMin": "10.1.0.0"}"#,
                r#"SubnetMin is "10.1.0.0", and must lie in Network, which is 10.0.0.0/16"#,
            ),
            (
                r#"{"Network": "10.0.0.0/16", "SubnetMax": "10.0.1.5"}"#,
                r#"SubnetMax is "10.0.1.5", and must be where a subnet of SubnetLen (/24) begins"#,
            ),
            (
                r#"{"Network": "10.0.0.0/16", "SubnetMin": "fd00::"}"#,
                r#"SubnetMin is "fd00::", and must be an IPv4 address"#,
            ),
            (
                r#"{"Network": "10.0.0.0/16", "SubnetMin": "10.0.9.0", "SubnetMax": "10.0.3.0"}"#,
                "SubnetMin is 10.0.9.0, and must not lie behind SubnetMax, which is 10.0.3.0",
            ),
            (
                r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#,
                r#"Backend.Type is "vxlan", and must be "host-gw""#,
            ),
            (
                r#"{"Network": "10.0.0.0/8", "Backend": {}}"#,
                r#"Backend.Type is null, and must be "host-gw""#,
            ),
            (
                r#"{"Network": "10.0.0.0/8", "Backend": null}"#,
                r#"Backend.Type is null, and must be "host-gw""#,
            ),
            (
                r#"{"Network": "10.0.0.0/8", "Backend": "host-gw"}"#,
                r#"Backend is "host-gw", and must be an object"#,
            ),
            (
                r#"{"EnableIPv4": false}"#,
                "EnableIPv4 and EnableIPv6 are both false",
            ),
            (
                r#"{"EnableIPv4": "no"}"#,
                r#"EnableIPv4 is "no", and must be true or false"#,
            ),
            (
                r#"{"Network": "10.0.0.0/8", "EnableIPv6": true}"#,
                "IPv6Network is missing",
            ),
            (
                r#"{"Network": "10.0.0.0/8", "EnableIPv6": true, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}"#,
                "IPv6SubnetLen is 127, and must be from 50 (IPv6Network and 2) to 126",
            ),
        ] {
            let error = conf(text).expect_err(text);
            assert!(error.starts_with(said), "{error}");
        }
    }
}
