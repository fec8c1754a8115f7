//! The complete network configuration: checked, and merged with the node's subnet file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cni::{AddResult, Call, CniArgs, Dns};
use host_local::Store;
use kernel::{Mac, Port};
use netconf::{BridgeKeys, LenientConf, NetConf};
use subnet::Subnet;
use subnet_env::SubnetEnv;

use crate::bandwidth::Bandwidth;
use crate::config_input::ConfigInput;
use crate::error::Error;

use crate::ipam::{self, Delegate, Ipam};
use crate::masquerade::{Backend, Masquerade};
use crate::port_mappings::PortMappings;

/// The default of `bridge`.
pub(crate) const DEFAULT_BRIDGE: &str = "cni0";

/// The kernel's default MTU in bytes.
const DEFAULT_MTU: u32 = 1500;

/// The default of `subnetFileWait`.
const SUBNET_FILE_WAIT: Duration = Duration::from_secs(2);

/// The settings for ADD, CHECK and STATUS, from either form of the configuration.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key")]
pub(crate) struct Config {
    pub(crate) bridge: String,
    /// In bytes. `None` for the kernel's default.
    pub(crate) mtu: Option<u32>,
    pub(crate) port: Port,
    /// True if the bridge is promiscuous.
    pub(crate) promiscuous: bool,
    /// True if the bridge has the gateways' addresses, and the node forwards.
    pub(crate) is_gateway: bool,
    /// True if containers get a default route by the gateway.
    pub(crate) is_default_gateway: bool,
    /// True if conflicting addresses of the bridge are replaced even if pods use them.
    pub(crate) force_address: bool,
    /// True if the container's interface is set up.
    pub(crate) is_up: bool,
    /// True if ADD waits for duplicate address detection of IPv6 addresses.
    pub(crate) detect_duplicates: bool,
    /// How packets that leave the subnet are masqueraded. `None` if they are not.
    pub(crate) masquerade: Option<Masquerade>,
    pub(crate) ipam: Ipam,
    pub(crate) store: Store,
    pub(crate) mac: Option<Mac>,
    pub(crate) dns: Dns,
    /// The pod's name, if the runtime gives one.
    pub(crate) pod: Option<String>,
    pub(crate) port_mappings: PortMappings,
    pub(crate) bandwidth: Bandwidth,
}

/// The reaction to a subnet file that is missing or invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSubnetFile {
    /// Wait for as long as the configuration says.
    Wait,
    /// Fail at once.
    Fail,
    /// Use the subnets in `prevResult`. A runtime that restarts must not lose its pods because the agent is
    /// not running.
    UseResult,
}

impl Config {
    /// Reads and checks the configuration. `args` is `CNI_ARGS`.
    ///
    /// Without explicit ranges, and always in flannel's form, the node's subnet file is read, and
    /// flannel's defaults apply.
    pub(crate) fn read(call: &Call, args: &str, without_file: NoSubnetFile) -> Result<Self, Error> {
        let conf = NetConf::from_json(&call.config)?;
        let args = CniArgs::parse(args)?;
        conf.validate()?;
        if let Some((key, value)) = conf.unsupported() {
            return Err(Error::Unsupported(key, value));
        }
        let has_addresses = has_addresses(call, &conf)?;
        let (subnet, is_of_result) = match subnet(&conf, call, has_addresses, without_file) {
            Err(Error::Subnet {
                path,
                waited,
                source,
            }) if without_file == NoSubnetFile::UseResult && !source.is_unreadable() => {
                let error = Error::Subnet {
                    path,
                    waited,
                    source,
                };
                (Some(subnet_of_result(call)?.ok_or(error)?), true)
            }
            other => (other?, false),
        };
        let without_host_bits = |network| Subnet::of(network).network();
        let subnets = subnet.iter().flat_map(SubnetEnv::subnets);
        let networks = subnet.iter().flat_map(SubnetEnv::networks);
        let input = ConfigInput {
            has_addresses,
            subnets: subnets.map(without_host_bits).collect(),
            networks: networks.map(without_host_bits).collect(),
            call,
            conf,
            args,
        };
        let mut config = Self::new(&input, subnet.as_ref())?;
        if is_of_result {
            // The cluster's networks, which the rules leave out, are not known.
            config.masquerade = None;
        }
        Ok(config)
    }

    fn new(input: &ConfigInput<'_>, subnet: Option<&SubnetEnv>) -> Result<Self, Error> {
        let ConfigInput {
            call, conf, args, ..
        } = input;
        let keys = &conf.bridge;
        let is_default_gateway = keys.is_default_gateway.unwrap_or(false);
        // By default, the plugin masquerades if the agent does not, as in flannel.
        let is_masqueraded = keys
            .ip_masq
            .unwrap_or(subnet.is_some_and(|subnet| !subnet.ip_masq));
        let backend = Backend::read(keys.ip_masq_backend.as_deref())?;
        let data_dir = conf.ipam.as_ref().and_then(|ipam| ipam.data_dir.clone());
        Ok(Self {
            bridge: conf.bridge_name().unwrap_or(DEFAULT_BRIDGE).to_owned(),
            mtu: mtu(keys, subnet),
            port: Port {
                hairpin: keys.hairpin_mode.unwrap_or(false),
                isolated: keys.port_isolation.unwrap_or(false),
            },
            promiscuous: keys.promisc_mode.unwrap_or(false),
            is_gateway: is_default_gateway || keys.is_gateway.unwrap_or(subnet.is_some()),
            is_default_gateway,
            force_address: keys.force_address.unwrap_or(false),
            is_up: !keys.disable_container_interface.unwrap_or(false),
            detect_duplicates: keys.enabledad.unwrap_or(false),
            masquerade: is_masqueraded
                .then(|| Masquerade::new(&call.network, backend, &input.networks)),
            ipam: Ipam::read(input)?,
            store: ipam::open_store(data_dir, &call.network)?,
            mac: mac(conf, args)?,
            dns: conf.runtime_config.dns.clone().unwrap_or(conf.dns.clone()),
            pod: args.pod.clone(),
            port_mappings: PortMappings::read(conf)?,
            bandwidth: Bandwidth::read(conf)?,
        })
    }
}

/// True if containers get addresses: not on an interface that stays down, and not if the configuration
/// explicitly asks for none.
///
/// With the `type` `bridge`, it does so if `ipam` is missing or has no `type`. With our own name, a
/// missing `ipam` means the node's subnet, and only an empty `ipam` means no addresses.
fn has_addresses(call: &Call, conf: &NetConf) -> Result<bool, Error> {
    let kind = conf.ipam.as_ref().and_then(|ipam| ipam.kind.as_deref());
    let kind = kind.filter(|kind| !kind.is_empty());
    if conf.bridge.disable_container_interface == Some(true) {
        if kind.is_some() || conf.has_delegate {
            let both = "cannot use IPAM when DisableContainerInterface flag is set";
            return Err(Error::Conflict(both));
        }
        return Ok(false);
    }
    if conf.has_delegate || kind.is_some() {
        return Ok(true);
    }
    let is_for_bridge = conf.bridge.kind.as_deref() == Some("bridge");
    let ipam = call.config.get("ipam").and_then(|ipam| ipam.as_object());
    let is_type = |key: &String| key.eq_ignore_ascii_case("type");
    let is_empty = ipam.is_some_and(|ipam| ipam.keys().all(is_type));
    Ok(!is_for_bridge && !is_empty)
}

/// Reads the node's subnet file, if it is needed.
fn subnet(
    conf: &NetConf,
    call: &Call,
    has_addresses: bool,
    without_file: NoSubnetFile,
) -> Result<Option<SubnetEnv>, Error> {
    let named = non_empty(conf.subnet_file.as_deref());
    let uses_subnet = Delegate::new(call).is_none() && conf.range_sets()?.is_empty();
    if !conf.has_delegate && named.is_none() && !(has_addresses && uses_subnet) {
        return Ok(None);
    }
    let path = named.unwrap_or(Path::new(subnet_env::DEFAULT_PATH));
    let wait = match without_file {
        NoSubnetFile::Wait => conf
            .subnet_file_wait
            .map_or(SUBNET_FILE_WAIT, Duration::from_secs_f64),
        NoSubnetFile::Fail | NoSubnetFile::UseResult => Duration::ZERO,
    };
    read_subnet(path, wait).map(Some)
}

/// Returns what a subnet file would say about the addresses in `prevResult` that are in a container and have
/// a gateway. `None` if there are none.
fn subnet_of_result(call: &Call) -> Result<Option<SubnetEnv>, Error> {
    let Some(previous) = AddResult::previous(&call.config, call.version)? else {
        return Ok(None);
    };
    let is_in_container = |ip: &&cni::Ip| {
        let interface = ip.interface.and_then(|i| previous.interfaces.get(i));
        interface.is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let ips = previous.ips.iter().filter(is_in_container);
    let with_gateway = ips.filter(|ip| ip.gateway.is_some());
    let all: Vec<_> = with_gateway
        .map(|ip| Subnet::of(ip.address).network())
        .collect();
    // Those of later plugins' interfaces come after ours.
    let first = |is_ipv4| all.iter().copied().find(|net| net.is_ipv4() == is_ipv4);
    let subnets: Vec<_> = [first(true), first(false)].into_iter().flatten().collect();
    let subnet = SubnetEnv::new(&subnets, &subnets, DEFAULT_MTU, true);
    Ok(subnet.ok().filter(|_| !subnets.is_empty()))
}

/// Reads the subnet file, and again while it is missing or invalid: the agent may be about to write it,
/// and runtimes do not retry an ADD by themselves.
fn read_subnet(path: &Path, wait: Duration) -> Result<SubnetEnv, Error> {
    const INTERVAL: Duration = Duration::from_millis(20);
    let until = Instant::now() + wait;
    loop {
        match SubnetEnv::read(path) {
            Ok(subnet) => return Ok(subnet),
            Err(source) if Instant::now() >= until => {
                return Err(Error::Subnet {
                    path: path.to_owned(),
                    waited: wait,
                    source,
                });
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// The MTU in bytes. 0 means the kernel's default, in the configuration and in the subnet file.
fn mtu(keys: &BridgeKeys, subnet: Option<&SubnetEnv>) -> Option<u32> {
    let explicit = keys.mtu.filter(|mtu| *mtu != 0);
    let mtu = explicit.or(subnet.map(|subnet| subnet.mtu));
    mtu.filter(|mtu| *mtu != 0)
}

/// The requested hardware address of the container: the runtime's capability comes before `args.cni`, and
/// that before `CNI_ARGS`.
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

/// An empty path counts as missing: it would mean the runtime's working directory.
fn non_empty(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// The file in which requests are logged: the configuration's comes before the environment's.
pub(crate) fn log_file(
    config: Option<&LenientConf>,
    environment: Option<String>,
) -> Option<PathBuf> {
    let configured = config.and_then(|config| config.log_file.clone());
    let environment = environment.filter(|path| !path.is_empty());
    configured.or(environment.map(PathBuf::from))
}
