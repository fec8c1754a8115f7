//! The network configuration once it is checked and complete, with subnet.env merged in.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::{
    BridgeKeys, CniArgs, Dns, Ipam, Json, NetConf, NetworkName, RangeConf, RouteConf, Version,
};
use host_local::{Boot, RangeSets, RangeSpec, Store};
use ipnetwork::IpNetwork;
use kernel::Mac;
use serde::Deserialize;
use serde_json::Value;
use subnet_env::SubnetEnv;

use crate::error::Error;

const DEFAULT_BRIDGE: &str = "cni0";
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";
/// The smallest MTU that the kernel takes for IPv4, and the largest for a veth.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// What ADD and CHECK need to know. Both forms of configuration come to the same.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its own")]
pub(crate) struct Config {
    pub(crate) network: NetworkName,
    pub(crate) bridge: String,
    /// In bytes; by default the kernel's.
    pub(crate) mtu: Option<u32>,
    pub(crate) hairpin: bool,
    pub(crate) isolated: bool,
    /// Whether the bridge has the gateways' addresses and the node forwards.
    pub(crate) is_gateway: bool,
    /// Whether containers get a default route by the gateway.
    pub(crate) is_default_gateway: bool,
    /// Whether what leaves its network is masqueraded by the plugin.
    pub(crate) masquerade: bool,
    /// The cluster's networks, as far as they are known.
    pub(crate) networks: Vec<IpNetwork>,
    /// Whether another address on the bridge makes way for the gateway's.
    pub(crate) force_address: bool,
    pub(crate) ranges: RangeSets,
    pub(crate) requested: Vec<IpAddr>,
    pub(crate) mac: Option<Mac>,
    pub(crate) routes: Vec<RouteConf>,
    pub(crate) dns: Dns,
    pub(crate) data_dir: PathBuf,
}

impl Config {
    /// Gives the configuration its meaning.
    ///
    /// Explicit ranges are taken as they are. Without them, and always in flannel's form, the
    /// node's subnet file is read, and flannel's defaults hold.
    pub(crate) fn read(
        network: NetworkName,
        json: &Json,
        version: Version,
        args: &str,
    ) -> Result<Self, Error> {
        let mut conf = NetConf::from_json(json)?;
        conf.subnet_file = not_empty(conf.subnet_file);
        let args = CniArgs::parse(args)?;
        refuse_unsupported(&conf)?;
        let Ipam {
            subnet,
            range_start,
            range_end,
            gateway,
            ..
        } = conf.ipam;
        if let (None, Some(address)) = (subnet, range_start.or(range_end).or(gateway)) {
            let source = "rangeStart, rangeEnd and gateway belong to a subnet".into();
            let value = format!("missing, with {address}");
            return Err(Error::Config {
                key: "ipam.subnet",
                value,
                source,
            });
        }
        let mut ranges = explicit_ranges(&conf);
        let subnet = if conf.has_delegate || conf.subnet_file.is_some() || ranges.is_empty() {
            let path = conf
                .subnet_file
                .as_deref()
                .unwrap_or(Path::new(subnet_env::DEFAULT_PATH));
            let subnet = SubnetEnv::read(path).map_err(|source| Error::Subnet {
                path: path.to_owned(),
                source,
            })?;
            Some(subnet)
        } else {
            None
        };
        let mut routes = conf.ipam.routes.clone();
        if let Some(subnet) = &subnet {
            if ranges.is_empty() {
                ranges = subnet
                    .subnets()
                    .map(|subnet| vec![of_subnet(subnet)])
                    .collect();
            }
            routes.extend(subnet.networks().map(to_network));
        }
        let keys = &conf.bridge;
        let is_default_gateway = keys.is_default_gateway.unwrap_or(false);
        let mtu = match keys.mtu {
            Some(0) | None => subnet.as_ref().map(|subnet| subnet.mtu),
            Some(mtu) => Some(mtu),
        };
        if let Some(mtu) = mtu.filter(|mtu| !MTU.contains(mtu)) {
            let source = format!("must be from {} to {} bytes", MTU.start(), MTU.end());
            return Err(Error::Config {
                key: "mtu",
                value: mtu.to_string(),
                source: source.into(),
            });
        }
        Ok(Self {
            network,
            bridge: bridge_name(keys)?,
            mtu,
            hairpin: keys.hairpin_mode.unwrap_or(false),
            isolated: keys.port_isolation.unwrap_or(false),
            is_gateway: is_default_gateway || keys.is_gateway.unwrap_or(subnet.is_some()),
            is_default_gateway,
            // Without a word, the plugin masquerades where the agent does not, as in flannel.
            masquerade: keys
                .ip_masq
                .unwrap_or(subnet.as_ref().is_some_and(|s| !s.ip_masq)),
            networks: subnet.iter().flat_map(SubnetEnv::networks).collect(),
            force_address: keys.force_address.unwrap_or(false),
            ranges: range_sets(&ranges, version)?,
            requested: requested(&conf, &args)?,
            mac: mac(&conf, &args)?,
            routes: checked_routes(routes)?,
            dns: conf.dns,
            data_dir: data_dir(conf.ipam.data_dir),
        })
    }

    pub(crate) fn store(&self) -> Result<Store, Error> {
        open_store(&self.data_dir, &self.network)
    }
}

/// The store of `network`, as DEL finds it: with the one key that says where it is. Whatever
/// else became of the configuration since ADD does not matter.
pub(crate) fn store_of(network: &NetworkName, json: &Json) -> Result<Store, Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Where {
        data_dir: Option<PathBuf>,
    }
    let ipam = json
        .object("ipam")
        .and_then(|ipam| ipam.to::<Where>().ok())
        .unwrap_or_default();
    open_store(&data_dir(ipam.data_dir), network)
}

fn open_store(data_dir: &Path, network: &NetworkName) -> Result<Store, Error> {
    let boot = Boot::current().map_err(Error::Boot)?;
    Ok(Store::new(data_dir, network.as_str(), boot))
}

/// Keys that ask for what we do not do. Unknown keys pass, but these would be missed.
fn refuse_unsupported(conf: &NetConf) -> Result<(), Error> {
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

fn bridge_name(keys: &BridgeKeys) -> Result<String, Error> {
    let name = keys
        .bridge
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or(DEFAULT_BRIDGE);
    // The kernel's rule for an interface's name is the same on both sides.
    match cni::IfName::new(name) {
        Ok(_) => Ok(name.to_owned()),
        Err(error) => {
            let value = format!("{name:?}");
            Err(Error::Config {
                key: "bridge",
                value,
                source: error.msg.into(),
            })
        }
    }
}

/// The ranges that the configuration names, in host-local's order: the runtime's, the older
/// form's single one, the list's.
fn explicit_ranges(conf: &NetConf) -> Vec<Vec<RangeSpec>> {
    let Ipam {
        subnet,
        range_start,
        range_end,
        gateway,
        ref ranges,
        ..
    } = conf.ipam;
    let single = subnet.map(|subnet| {
        vec![RangeConf {
            subnet,
            range_start,
            range_end,
            gateway,
        }]
    });
    let spec = |range: &RangeConf| RangeSpec {
        subnet: range.subnet,
        start: range.range_start,
        end: range.range_end,
        gateway: range.gateway,
    };
    let sets = conf
        .runtime_config
        .ip_ranges
        .iter()
        .chain(&single)
        .chain(ranges);
    sets.map(|set| set.iter().map(spec).collect()).collect()
}

/// The subnet file gives the gateway's address with the subnet; a range is the whole of it.
fn of_subnet(subnet: IpNetwork) -> RangeSpec {
    let network = IpNetwork::new(subnet.network(), subnet.prefix());
    RangeSpec::from(network.expect("it has that prefix length already"))
}

fn to_network(dst: IpNetwork) -> RouteConf {
    let dst = IpNetwork::new(dst.network(), dst.prefix()).expect("it has that prefix already");
    RouteConf {
        dst,
        gw: None,
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    }
}

fn range_sets(specs: &[Vec<RangeSpec>], version: Version) -> Result<RangeSets, Error> {
    let sets = RangeSets::new(specs)?;
    let families = specs
        .iter()
        .filter_map(|set| set.first())
        .map(|range| range.subnet.is_ipv4());
    let (v4, v6): (Vec<bool>, Vec<bool>) = families.partition(|is_ipv4| *is_ipv4);
    if version < Version::V0_3_0 && (v4.len() > 1 || v6.len() > 1) {
        let source =
            format!("CNI version {version} does not support more than 1 address per family");
        let value = format!("{} range sets", specs.len());
        return Err(Error::Config {
            key: "ipam.ranges",
            value,
            source: source.into(),
        });
    }
    Ok(sets)
}

/// Requested addresses: the runtime's capability, `args.cni`, `CNI_ARGS`, each once.
fn requested(conf: &NetConf, args: &CniArgs) -> Result<Vec<IpAddr>, Error> {
    let keyed = |key| move |text| (key, text);
    let all = conf
        .runtime_config
        .ips
        .iter()
        .map(keyed("runtimeConfig.ips"));
    let all = all.chain(conf.args.ips.iter().map(keyed("args.cni.ips")));
    let all = all.chain(args.ip.iter().map(keyed("CNI_ARGS IP")));
    let mut seen = BTreeSet::new();
    let mut requested = Vec::new();
    for (key, text) in all {
        // The prefix length is the range's; what is asked for is an address.
        let address = text.split('/').next().unwrap_or_default();
        let address = address
            .parse()
            .map_err(|source: std::net::AddrParseError| Error::Config {
                key,
                value: format!("{text:?}"),
                source: source.into(),
            })?;
        if seen.insert(address) {
            requested.push(address);
        }
    }
    Ok(requested)
}

/// The container's hardware address, if asked for: the runtime's capability before
/// `args.cni` before `CNI_ARGS`.
fn mac(conf: &NetConf, args: &CniArgs) -> Result<Option<Mac>, Error> {
    let choices = [
        ("runtimeConfig.mac", &conf.runtime_config.mac),
        ("args.cni.mac", &conf.args.mac),
        ("CNI_ARGS MAC", &args.mac),
    ];
    for (key, choice) in choices {
        if let Some(text) = choice.as_deref().filter(|text| !text.is_empty()) {
            let mac = text
                .parse()
                .map_err(|source: kernel::InvalidMac| Error::Config {
                    key,
                    value: format!("{text:?}"),
                    source: source.into(),
                })?;
            return Ok(Some(mac));
        }
    }
    Ok(None)
}

fn checked_routes(routes: Vec<RouteConf>) -> Result<Vec<RouteConf>, Error> {
    for route in &routes {
        let dst = route.dst;
        let refuse = |reason: &str| {
            let value = format!("dst {dst}");
            Error::Config {
                key: "ipam.routes",
                value,
                source: reason.into(),
            }
        };
        if dst.ip() != dst.network() {
            return Err(refuse("has host bits set"));
        }
        if route.gw.is_some_and(|gw| gw.is_ipv4() != dst.is_ipv4()) {
            return Err(refuse("its gw is of the other family"));
        }
        for (key, value) in [
            ("ipam.routes mtu", route.mtu),
            ("ipam.routes advmss", route.advmss),
            ("ipam.routes priority", route.priority),
            ("ipam.routes table", route.table),
            ("ipam.routes scope", route.scope.map(u32::from)),
        ] {
            if let Some(value) = value.filter(|value| *value != 0) {
                return Err(Error::Unsupported(key, value.to_string()));
            }
        }
    }
    Ok(routes)
}

fn data_dir(configured: Option<PathBuf>) -> PathBuf {
    not_empty(configured).unwrap_or_else(|| DEFAULT_DATA_DIR.into())
}

/// An empty path is no path: it would mean wherever the runtime happens to stand.
fn not_empty(path: Option<PathBuf>) -> Option<PathBuf> {
    path.filter(|path| !path.as_os_str().is_empty())
}
