//! The flags of `run` and `release`, and what they mean together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnetwork::IpNetwork;
use regex::Regex;
use subnet::Subnet;

use super::Listen;
use super::flanneld::{UnsupportedFlags, number, parse_bool};
use super::parse::{address, network};
use super::stores::{EtcdFlags, KubeFlags, OneStore};
use crate::agent::AgentConfig;
use crate::commands::install::Install;
use crate::fast_path;
use crate::firewall::{Backend, FirewallConfig};
use crate::node::Selection;
use crate::routes::RouteOptions;
use crate::store::StoreConfig;
use crate::store::file::FileStoreConfig;

/// The file that records what was installed.
pub(super) const RECORD: &str = "/var/lib/hostgw/installed.json";
pub(super) const SOCKET: &str = "/run/hostgw/agent.sock";

/// The flags of `run`.
#[derive(Args, Debug)]
pub(super) struct Run {
    #[command(flatten)]
    etcd: EtcdFlags,
    #[command(flatten)]
    kube: KubeFlags,
    #[command(flatten)]
    interface: InterfaceFlags,
    #[command(flatten)]
    firewall: FirewallFlags,
    #[command(flatten)]
    fast_path: FastPathFlags,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    install: InstallFlags,
    #[command(flatten)]
    unsupported: UnsupportedFlags,
    /// The `file` store: the cluster's network and its nodes. Edits take effect at once. It is used
    /// unless another store is selected.
    #[arg(long, value_name = "FILE", default_value = "/etc/hostgw/cluster.json")]
    cluster: PathBuf,
    /// This node's name. In the cluster file, the default is the node whose public address the
    /// interface has. In Kubernetes, the default is the variable `NODE_NAME`, then the node of the
    /// pod `POD_NAME` in `POD_NAMESPACE`, then the host name.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The address for /healthz, /readyz and /metrics. `::` is every address of both families.
    #[arg(long, value_name = "ADDRESS", default_value = "::", value_parser = address)]
    healthz_ip: IpAddr,
    /// The port for them. With 0, they are not served.
    #[arg(long, value_name = "PORT", default_value = "0", value_parser = number)]
    healthz_port: i64,
}

/// How the interface to the other nodes is selected. The first of these flags that is given counts;
/// without any, it is the interface with the default route.
#[derive(Args, Debug)]
struct InterfaceFlags {
    /// The interface to the other nodes, by name or by address. The first that exists is used.
    #[arg(long, value_name = "NAME|ADDRESS")]
    iface: Vec<String>,
    /// The same by a regular expression, which is matched with addresses first, and then with names.
    #[arg(long, value_name = "REGEX")]
    iface_regex: Vec<Regex>,
    /// The same by route: the interface by which packets to this address leave.
    #[arg(long, value_name = "ADDRESS")]
    iface_can_reach: Option<IpAddr>,
    /// This node's address for the other nodes. The interface must have it.
    #[arg(long, value_name = "ADDRESS")]
    public_ip: Option<Ipv4Addr>,
    /// This node's IPv6 address for the other nodes; must be an address of the interface.
    #[arg(long, value_name = "ADDRESS")]
    public_ipv6: Option<Ipv6Addr>,
    /// Accept next hops that are not on the interface's link according to its addresses: for networks
    /// that deliver the packets all the same.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    onlink: bool,
    /// Drop packets to addresses of the network that no node has, instead of sending them by the
    /// default route.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    ip_blackhole_route: bool,
}

#[derive(Args, Debug)]
struct FirewallFlags {
    /// How firewall rules are made.
    #[arg(
        long = "firewall",
        value_enum,
        value_name = "HOW",
        default_value = "auto"
    )]
    backend: Backend,
    /// Masquerade packets of pods that leave the cluster's network.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    ip_masq: bool,
    /// Do not choose random source ports when masquerading.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    ip_masq_fully_random_disable: bool,
    /// Do not masquerade packets of pods to this network, either.
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    non_masquerade_cidr: Vec<IpNetwork>,
    /// Accept packets that are forwarded from and to pods.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    iptables_forward_rules: bool,
    /// How often rules of legacy iptables are compared, which cause no event; at least 1. All other
    /// rules are watched.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = number)]
    iptables_resync: i64,
}

#[derive(Args, Debug)]
struct FastPathFlags {
    /// Let packets of established flows between the uplink and pods skip most of the kernel's way for forwarded
    /// packets. `auto` does so where a check shows that it works; `on` warns where it does not.
    #[arg(long, value_enum, value_name = "WHETHER", default_value = "off")]
    fast_path: fast_path::Mode,
}

#[derive(Args, Debug)]
pub(super) struct Files {
    /// The node's subnet file, which the CNI plugin reads.
    #[arg(long, value_name = "FILE", default_value = subnet_env::DEFAULT_PATH)]
    pub(super) subnet_file: PathBuf,
    /// The file with the last known state, for a boot without the store.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/hostgw/state.json"
    )]
    pub(super) state_file: PathBuf,
    /// The socket for `hostgw-agent status`.
    #[arg(long, value_name = "FILE", default_value = SOCKET)]
    pub(super) socket: PathBuf,
}

/// The files to install for a container runtime. `run` installs them with --cni-conf or
/// --take-over-flannel.
#[derive(Args, Debug)]
pub(super) struct InstallFlags {
    /// The CNI configuration list to install. The default has `cni-hostgw` alone, or is
    /// kube-flannel's with our plugin in place of `flannel`, `portmap` and `bandwidth`.
    #[arg(long, value_name = "FILE")]
    cni_conf: Option<PathBuf>,
    /// The plugin to install. The default is the one beside this program.
    #[arg(long, value_name = "FILE")]
    cni_plugin: Option<PathBuf>,
    /// The folder from which runtimes read configurations.
    #[arg(long, value_name = "FOLDER", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The folder from which runtimes start plugins.
    #[arg(long, value_name = "FOLDER", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Replace kube-flannel's 10-flannel.conflist atomically, if it exists. Pods that it attached
    /// stay attached, and are detached by our plugin. Their host ports stay open.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    take_over_flannel: bool,
    /// The file that records what was installed.
    #[arg(long, value_name = "FILE", default_value = RECORD)]
    install_record: PathBuf,
}

impl From<InstallFlags> for Install {
    fn from(flags: InstallFlags) -> Self {
        Self {
            list: flags.cni_conf,
            plugin: flags.cni_plugin,
            conf_dir: flags.cni_conf_dir,
            bin_dir: flags.cni_bin_dir,
            takes_over_flannel: flags.take_over_flannel,
            record: flags.install_record,
        }
    }
}

impl Run {
    /// Checks the flags, and what they mean together. `env` reads a variable.
    pub(super) fn check(
        self,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<(Box<AgentConfig>, Listen), String> {
        self.unsupported.check()?;
        // As in flanneld, a negative port means none.
        let port = u16::try_from(self.healthz_port.max(0))
            .map_err(|_| format!("--healthz-port: {} is not a port", self.healthz_port))?;
        let address = SocketAddr::new(self.healthz_ip, port);
        let listen = Listen {
            socket: self.files.socket,
            address: Some(address).filter(|address| address.port() != 0),
        };
        let store = OneStore {
            etcd: self.etcd,
            kube: self.kube,
        };
        let file = FileStoreConfig {
            path: self.cluster,
            node_name: self.node_name.clone(),
        };
        let store = store
            .select(self.node_name, env)?
            .unwrap_or(StoreConfig::File(file));
        let installs = self.install.cni_conf.is_some() || self.install.take_over_flannel;
        let config = AgentConfig {
            store,
            routes: RouteOptions {
                onlink: self.interface.onlink,
                blackholes: self.interface.ip_blackhole_route,
            },
            selection: self.interface.into(),
            subnet_file: self.files.subnet_file,
            state_file: self.files.state_file,
            firewall: self.firewall.into(),
            fast_path: self.fast_path.fast_path,
            install: installs.then(|| self.install.into()),
        };
        Ok((Box::new(config), listen))
    }
}

impl From<InterfaceFlags> for Selection {
    fn from(flags: InterfaceFlags) -> Self {
        let ipv4 = flags.public_ip.map(IpAddr::V4);
        let ipv6 = flags.public_ipv6.map(IpAddr::V6);
        Self {
            names: flags.iface,
            patterns: flags.iface_regex,
            can_reach: flags.iface_can_reach,
            public: ipv4.into_iter().chain(ipv6).collect(),
        }
    }
}

impl From<FirewallFlags> for FirewallConfig {
    fn from(flags: FirewallFlags) -> Self {
        let excepted = flags.non_masquerade_cidr.into_iter();
        Self {
            backend: flags.backend,
            masquerade: flags.ip_masq,
            random_ports: !flags.ip_masq_fully_random_disable,
            no_masquerade: excepted
                .map(|network| Subnet::of(network).network())
                .collect(),
            forward: flags.iptables_forward_rules,
            // With 0, flanneld would do nothing but compare rules.
            poll: Duration::from_secs(flags.iptables_resync.max(1).unsigned_abs()),
        }
    }
}
