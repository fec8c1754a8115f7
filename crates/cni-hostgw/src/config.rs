//! The network configuration once it is checked and complete, with subnet.env merged in.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cni::{BridgeKeys, Call, CniArgs, Dns, Json, NetConf};
use host_local::Store;
use kernel::{Mac, Port};
use subnet_env::SubnetEnv;

use crate::error::Error;
use crate::ipam::{self, Ipam};
use crate::masquerade::{Backend, Masquerade};
use crate::routes::masked;
use crate::source::Source;

/// The bridge where `bridge` does not say which.
pub(crate) const DEFAULT_BRIDGE: &str = "cni0";

/// How long ADD waits for the subnet file where `subnetFileWait` does not say.
const WAIT: Duration = Duration::from_secs(2);

/// What ADD and CHECK need to know. Both forms of configuration come to the same.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a key of its own")]
pub(crate) struct Config {
    pub(crate) bridge: String,
    /// In bytes; by default the kernel's.
    pub(crate) mtu: Option<u32>,
    pub(crate) port: Port,
    /// Whether the bridge takes every frame.
    pub(crate) promiscuous: bool,
    /// Whether the bridge has the gateways' addresses and the node forwards.
    pub(crate) is_gateway: bool,
    /// Whether containers get a default route by the gateway.
    pub(crate) is_default_gateway: bool,
    /// Whether another address on the bridge makes way for the gateway's.
    pub(crate) force_address: bool,
    /// Whether the container's interface is set up.
    pub(crate) is_up: bool,
    /// Whether an IPv6 address waits for duplicate address detection.
    pub(crate) detect_duplicates: bool,
    /// By what, and but for what, packets that leave the subnet are masqueraded.
    pub(crate) masquerade: Option<Masquerade>,
    pub(crate) ipam: Ipam,
    pub(crate) store: Store,
    pub(crate) mac: Option<Mac>,
    pub(crate) dns: Dns,
    /// The pod's name, where the runtime gives one.
    pub(crate) pod: Option<String>,
}

/// Whether a subnet file that is not right yet is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    AsConfigured,
    None,
}

impl Config {
    /// Gives the configuration its meaning.
    ///
    /// Explicit ranges are taken as they are. Without them, and always in flannel's form, the
    /// node's subnet file is read, and flannel's defaults hold.
    pub(crate) fn read(call: &Call, args: &str, patience: Patience) -> Result<Self, Error> {
        let conf = NetConf::from_json(&call.config)?;
        let args = CniArgs::parse(args)?;
        conf.validate()?;
        if let Some((key, value)) = conf.unsupported() {
            return Err(Error::Unsupported(key, value));
        }
        let has_addresses = has_addresses(call, &conf)?;
        let subnet = subnet(&conf, call, has_addresses, patience)?;
        let source = Source {
            has_addresses,
            subnets: subnet
                .iter()
                .flat_map(SubnetEnv::subnets)
                .map(masked)
                .collect(),
            networks: subnet
                .iter()
                .flat_map(SubnetEnv::networks)
                .map(masked)
                .collect(),
            call,
            conf,
            args,
        };
        let Source { conf, args, .. } = &source;
        let keys = &conf.bridge;
        let is_default_gateway = keys.is_default_gateway.unwrap_or(false);
        // Without a word, the plugin masquerades where the agent does not, as in flannel.
        let is_masqueraded = keys
            .ip_masq
            .unwrap_or(subnet.as_ref().is_some_and(|s| !s.ip_masq));
        let backend = Backend::read(keys.ip_masq_backend.as_deref())?;
        let data_dir = conf.ipam.as_ref().and_then(|ipam| ipam.data_dir.clone());
        Ok(Self {
            bridge: conf.bridge_name().unwrap_or(DEFAULT_BRIDGE).to_owned(),
            mtu: mtu(keys, subnet.as_ref()),
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
                .then(|| Masquerade::new(&call.network, backend, &source.networks)),
            ipam: Ipam::read(&source)?,
            store: ipam::open_store(data_dir, &call.network)?,
            mac: mac(conf, args)?,
            dns: conf.runtime_config.dns.clone().unwrap_or(conf.dns.clone()),
            pod: args.pod.clone(),
        })
    }
}

/// Whether containers get addresses: not on an interface that stays down, and not where the
/// configuration leaves them out on purpose.
///
/// Written for the `bridge` plugin (`type` is `bridge`), it does so where `ipam` has no `type`, or is
/// missing. Under our own name a configuration without `ipam` means the node's subnet, and only an
/// empty `ipam` means no addresses.
fn has_addresses(call: &Call, conf: &NetConf) -> Result<bool, Error> {
    let ipam = call.config.get("ipam").and_then(|ipam| ipam.as_object());
    let kind = ipam.and_then(|ipam| ipam.get("type")?.as_str());
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
    let is_for_bridge = call.config.get("type").and_then(|kind| kind.as_str()) == Some("bridge");
    let is_empty = ipam.is_some_and(|ipam| ipam.keys().all(|key| key == "type"));
    Ok(!is_for_bridge && !is_empty)
}

/// The node's subnet file, where it is needed.
fn subnet(
    conf: &NetConf,
    call: &Call,
    has_addresses: bool,
    patience: Patience,
) -> Result<Option<SubnetEnv>, Error> {
    let named = not_empty(conf.subnet_file.as_deref());
    let is_ours = ipam::Delegate::named_in(call).is_none() && conf.range_sets()?.is_empty();
    if !conf.has_delegate && named.is_none() && !(has_addresses && is_ours) {
        return Ok(None);
    }
    let path = named.unwrap_or(Path::new(subnet_env::DEFAULT_PATH));
    let wait = match patience {
        Patience::AsConfigured => conf.subnet_file_wait.map_or(WAIT, Duration::from_secs_f64),
        Patience::None => Duration::ZERO,
    };
    read_subnet(path, wait).map(Some)
}

/// Reads the subnet file, again and again while it is missing or not right: the agent may be
/// about to write it, and no runtime tries again because it was told to.
fn read_subnet(path: &Path, wait: Duration) -> Result<SubnetEnv, Error> {
    const STEP: Duration = Duration::from_millis(20);
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
            Err(_) => std::thread::sleep(STEP),
        }
    }
}

/// 0 asks for the kernel's default, in the configuration and in the subnet file.
fn mtu(keys: &BridgeKeys, subnet: Option<&SubnetEnv>) -> Option<u32> {
    let explicit = keys.mtu.filter(|mtu| *mtu != 0);
    let mtu = explicit.or(subnet.map(|subnet| subnet.mtu));
    mtu.filter(|mtu| *mtu != 0)
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

/// An empty path is no path: it would mean wherever the runtime happens to stand.
fn not_empty(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Where the request's line is logged: the configuration's word comes before the environment's.
pub(crate) fn log_file(config: Option<&Json>, environment: Option<String>) -> Option<PathBuf> {
    let configured = config.and_then(|config| config.get("logFile")?.as_str());
    let path = configured
        .map(PathBuf::from)
        .or(environment.map(PathBuf::from));
    path.filter(|path| !path.as_os_str().is_empty())
}
