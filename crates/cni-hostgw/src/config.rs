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
use subnet_env::{MTU_RANGE, SubnetEnv};

use crate::error::Error;
use crate::unsupported;

const DEFAULT_BRIDGE: &str = "cni0";
const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

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
        unsupported::refuse(&conf)?;
        let mut ranges = explicit_ranges(&conf)?;
        let subnet = if conf.has_delegate || conf.subnet_file.is_some() || ranges.is_empty() {
            Some(read_subnet(conf.subnet_file.as_deref())?)
        } else {
            None
        };
        if let (Some(subnet), true) = (&subnet, ranges.is_empty()) {
            ranges = subnet
                .subnets()
                .map(|subnet| vec![of_subnet(subnet)])
                .collect();
        }
        let networks: Vec<_> = subnet.iter().flat_map(SubnetEnv::networks).collect();
        let mut routes = conf.ipam.routes.clone();
        // Explicit ranges may be of fewer families than the cluster.
        let has_range = |network: &&IpNetwork| {
            let mut specs = ranges.iter().flatten();
            specs.any(|range| range.subnet.is_ipv4() == network.is_ipv4())
        };
        routes.extend(
            networks
                .iter()
                .filter(has_range)
                .map(|network| to_network(*network)),
        );
        let keys = &conf.bridge;
        let is_default_gateway = keys.is_default_gateway.unwrap_or(false);
        Ok(Self {
            network,
            bridge: bridge_name(keys)?,
            mtu: mtu(keys, subnet.as_ref())?,
            hairpin: keys.hairpin_mode.unwrap_or(false),
            isolated: keys.port_isolation.unwrap_or(false),
            is_gateway: is_default_gateway || keys.is_gateway.unwrap_or(subnet.is_some()),
            is_default_gateway,
            // Without a word, the plugin masquerades where the agent does not, as in flannel.
            masquerade: keys
                .ip_masq
                .unwrap_or(subnet.as_ref().is_some_and(|s| !s.ip_masq)),
            networks,
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

fn read_subnet(file: Option<&Path>) -> Result<SubnetEnv, Error> {
    let path = file.unwrap_or(Path::new(subnet_env::DEFAULT_PATH));
    SubnetEnv::read(path).map_err(|source| Error::Subnet {
        path: path.to_owned(),
        source,
    })
}

fn mtu(keys: &BridgeKeys, subnet: Option<&SubnetEnv>) -> Result<Option<u32>, Error> {
    let explicit = keys.mtu.filter(|mtu| *mtu != 0);
    if let Some(mtu) = explicit.filter(|mtu| !MTU_RANGE.contains(mtu)) {
        let source = format!(
            "must be from {} to {} bytes",
            MTU_RANGE.start(),
            MTU_RANGE.end()
        );
        return Err(Error::Config {
            key: "mtu",
            value: mtu.to_string(),
            source: source.into(),
        });
    }
    Ok(explicit.or(subnet.map(|subnet| subnet.mtu)))
}

/// The ranges that the configuration names, in host-local's order: the runtime's, the older
/// form's single one, the list's.
fn explicit_ranges(conf: &NetConf) -> Result<Vec<Vec<RangeSpec>>, Error> {
    let Ipam {
        subnet,
        range_start,
        range_end,
        gateway,
        ref ranges,
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
    Ok(sets.map(|set| set.iter().map(spec).collect()).collect())
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
