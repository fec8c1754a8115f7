//! The network configuration once it is checked and complete, with subnet.env merged in.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cni::{BridgeKeys, Call, CniArgs, Dns, Json, NetConf, Version};
use host_local::Store;
use ipnetwork::IpNetwork;
use kernel::{Mac, Port};
use subnet_env::{MTU_RANGE, SubnetEnv};

use crate::error::Error;
use crate::ipam::{self, Ipam};
use crate::masquerade::{Backend, Masquerade};
use crate::source::Source;
use crate::{routes, unsupported};

const DEFAULT_BRIDGE: &str = "cni0";

/// How long ADD waits for the subnet file where `subnetFileWait` does not say.
const WAIT: Duration = Duration::from_secs(2);

/// The longest wait that may be asked for: runtimes give up after a few minutes.
const LONGEST_WAIT: f64 = 60.0;

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
        unsupported::refuse(&conf)?;
        let has_addresses = has_addresses(call, &conf)?;
        if !has_addresses && call.version < Version::V0_3_0 {
            return Err(Error::Config {
                key: "cniVersion",
                value: call.version.to_string(),
                source: "its results have room for addresses only, and there are none".into(),
            });
        }
        let subnet = subnet(&conf, call, has_addresses, patience)?;
        let source = Source {
            has_addresses,
            subnets: subnet
                .iter()
                .flat_map(SubnetEnv::subnets)
                .map(whole)
                .collect(),
            networks: subnet
                .iter()
                .flat_map(SubnetEnv::networks)
                .map(whole)
                .collect(),
            call,
            conf,
            args,
        };
        let Source { conf, args, .. } = &source;
        let keys = &conf.bridge;
        let is_default_gateway = keys.is_default_gateway.unwrap_or(false);
        let hairpin = keys.hairpin_mode.unwrap_or(false);
        let promiscuous = keys.promisc_mode.unwrap_or(false);
        if hairpin && promiscuous {
            let both = "cannot set hairpin mode and promiscuous mode at the same time";
            return Err(Error::Conflict(both));
        }
        // Without a word, the plugin masquerades where the agent does not, as in flannel.
        let is_masqueraded = keys
            .ip_masq
            .unwrap_or(subnet.as_ref().is_some_and(|s| !s.ip_masq));
        let backend = Backend::read(keys.ip_masq_backend.as_deref())?;
        routes::check(conf.ipam.iter().flat_map(|ipam| &ipam.routes))?;
        let data_dir = conf.ipam.as_ref().and_then(|ipam| ipam.data_dir.clone());
        Ok(Self {
            bridge: bridge_name(keys)?,
            mtu: mtu(keys, subnet.as_ref())?,
            port: Port {
                hairpin,
                isolated: keys.port_isolation.unwrap_or(false),
            },
            promiscuous,
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

/// Whether containers get addresses: not with an `ipam` that the bridge's form leaves empty on
/// purpose, and not on an interface that stays down.
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
    let is_empty = ipam.is_some_and(|ipam| ipam.keys().all(|key| key == "type"));
    Ok(conf.has_delegate || kind.is_some() || !is_empty)
}

/// The node's subnet file, where it is needed.
fn subnet(
    conf: &NetConf,
    call: &Call,
    has_addresses: bool,
    patience: Patience,
) -> Result<Option<SubnetEnv>, Error> {
    let named = not_empty(conf.subnet_file.as_deref());
    let is_ours = ipam::Delegate::named_in(call).is_none() && !ipam::has_ranges(conf);
    if !conf.has_delegate && named.is_none() && !(has_addresses && is_ours) {
        return Ok(None);
    }
    let path = named.unwrap_or(Path::new(subnet_env::DEFAULT_PATH));
    let wait = match patience {
        Patience::AsConfigured => wait(conf)?,
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

fn wait(conf: &NetConf) -> Result<Duration, Error> {
    let Some(seconds) = conf.subnet_file_wait else {
        return Ok(WAIT);
    };
    if !(0.0..=LONGEST_WAIT).contains(&seconds) {
        return Err(Error::Config {
            key: "subnetFileWait",
            value: seconds.to_string(),
            source: format!("must be from 0 to {LONGEST_WAIT} seconds").into(),
        });
    }
    Ok(Duration::from_secs_f64(seconds))
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

/// The subnet file gives the gateway's address with the subnet; a range is the whole of it.
fn whole(subnet: IpNetwork) -> IpNetwork {
    IpNetwork::new(subnet.network(), subnet.prefix()).expect("it has that prefix length already")
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
