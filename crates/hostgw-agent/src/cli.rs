//! The command line: our own commands, and flanneld's flags and variables as they are.

mod flanneld;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;
use regex::Regex;

use flanneld::{number, yes_or_no};

pub(crate) use flanneld::{Arguments, arguments};

use crate::agent::Settings;
use crate::apply::How;
use crate::firewall::{self, Backend};
use crate::install;
use crate::store;
use crate::store::etcd::{self, Access, Password};
use crate::store::kube::{self, Identity, Prefix};
use crate::uplink::Selection;

/// The node route agent of the host-gw pod network.
///
/// Without a command it runs, so that flanneld's command line works as it is. Flags may be written
/// with one dash; the variable `FLANNELD_<FLAG>` stands for a flag that is not given.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
    #[command(flatten)]
    log: Log,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write the node's subnet file and keep routes and firewall right until stopped. What was
    /// set up stays when the agent stops.
    Run(Box<Run>),
    /// Show what the agent of this node does: its lease, its interface, every other node.
    Status(Status),
    /// Check cluster files, net-conf.json files and CNI configurations.
    Check {
        /// The files; what each is shows in its keys.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Give this node's lease back to etcd, when the node is drained for good.
    Release(Box<Run>),
    /// Put the CNI plugin where runtimes start it, and, once this node has its subnet, the list of
    /// plugins where they read it.
    Install(InstallCommand),
    /// Undo exactly what `install` did, or `run` with --cni-conf.
    Uninstall {
        /// Where it was written down.
        #[arg(long, value_name = "FILE", default_value = RECORD)]
        install_record: PathBuf,
        /// Where an agent would answer.
        #[arg(long, value_name = "FILE", default_value = SOCKET)]
        socket: PathBuf,
    },
    /// Take away what the agent set up: routes, firewall rules, subnet file, saved state.
    Cleanup(Cleanup),
}

/// Below which key flanneld's network lies.
const PREFIX: &str = "/coreos.com/network";
/// Where what was installed is written down.
const RECORD: &str = "/var/lib/hostgw/installed.json";
const SOCKET: &str = "/run/hostgw/agent.sock";

/// How the agent runs.
#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    etcd: Etcd,
    #[command(flatten)]
    kube: Kube,
    #[command(flatten)]
    interface: Interface,
    #[command(flatten)]
    firewall: Firewall,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    install: Install,
    #[command(flatten)]
    refused: flanneld::Refused,
    /// The `file` store: the cluster's network and its nodes. Watched; an edit takes effect at
    /// once. The store, unless another is asked for.
    #[arg(long, value_name = "FILE", default_value = "/etc/hostgw/cluster.json")]
    cluster: PathBuf,
    /// This node's name: in the cluster file, where without it the node is the one whose public
    /// address the interface has; for Kubernetes, where without it the variable `NODE_NAME` says
    /// it, or the pod `POD_NAME` in `POD_NAMESPACE`, or else the host's own name.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Where /healthz, /readyz and /metrics are answered; `::` is every address of both families.
    #[arg(long, value_name = "ADDRESS", default_value = "::", value_parser = address)]
    healthz_ip: IpAddr,
    /// On which port; 0: nowhere.
    #[arg(long, value_name = "PORT", default_value = "0", value_parser = number)]
    healthz_port: i64,
}

/// The `etcd` store.
#[expect(clippy::struct_field_names, reason = "a field is its flag")]
#[derive(Args, Debug)]
struct Etcd {
    /// The `etcd` store: its servers, with commas in between.
    #[arg(long, value_name = "URL,…")]
    etcd_endpoints: Option<String>,
    /// The `etcd` store: below which key the network lies.
    #[arg(long, value_name = "KEY", default_value = PREFIX)]
    etcd_prefix: String,
    /// Who signed the servers' certificates; enough by itself for TLS.
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// This node's certificate.
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// The user to log in to etcd.
    #[arg(long, value_name = "NAME")]
    etcd_username: Option<String>,
    /// His password. Everybody on the node sees it here: rather write it into a file.
    #[arg(long, value_name = "TEXT")]
    etcd_password: Option<String>,
    /// The file that has his password.
    #[arg(long, value_name = "FILE", conflicts_with = "etcd_password")]
    etcd_password_file: Option<PathBuf>,
    /// For how long a lease holds without being renewed.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    subnet_lease_ttl: Duration,
    /// How many minutes before its end a lease is renewed; at most half its time.
    #[arg(long, value_name = "MINUTES", default_value = "60", value_parser = number)]
    subnet_lease_renew_margin: i64,
}

/// The `kube` store.
#[expect(clippy::struct_field_names, reason = "a field is its flag")]
#[derive(Args, Debug)]
struct Kube {
    /// The `kube` store: the subnets are the Nodes' podCIDRs.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    kube_subnet_mgr: bool,
    /// Where the API server is, instead of where the kubeconfig file or the pod's environment says:
    /// such as one that needs no kube-proxy.
    #[arg(long, value_name = "URL")]
    kube_api_url: Option<String>,
    /// Who we are to the API server, and where it is. Without it, what a pod is given.
    #[arg(long, alias = "kubeconfig", value_name = "FILE")]
    kubeconfig_file: Option<PathBuf>,
    /// What the annotations' names begin with.
    #[arg(
        long,
        value_name = "DOMAIN",
        default_value = "flannel.alpha.coreos.com"
    )]
    kube_annotation_prefix: Prefix,
    /// The network's configuration. Watched; an edit takes effect at once.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/kube-flannel/net-conf.json"
    )]
    net_config_path: PathBuf,
    /// Keep the Node's condition `NetworkUnavailable`.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    set_node_network_unavailable: bool,
    /// Route to Nodes without annotations, too, by their `InternalIP`.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    peers_without_annotations: bool,
}

/// The interface to the other nodes. The first that is said counts; without any, the one with the
/// default route.
#[derive(Args, Debug)]
struct Interface {
    /// The interface to the other nodes, by name or by address; the first that there is of
    /// several.
    #[arg(long, value_name = "NAME|ADDRESS")]
    iface: Vec<String>,
    /// The same by a regular expression, for an address or else for the name.
    #[arg(long, value_name = "REGEX")]
    iface_regex: Vec<Regex>,
    /// The same by where packets to this address go.
    #[arg(long, value_name = "ADDRESS")]
    iface_can_reach: Option<IpAddr>,
    /// This node's address for the other nodes; one of the interface's.
    #[arg(long, value_name = "ADDRESS")]
    public_ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    #[arg(long, value_name = "ADDRESS")]
    public_ipv6: Option<Ipv6Addr>,
    /// Route by next hops, too, that are not on the interface's link by its addresses: for
    /// fabrics that carry them all the same.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    onlink: bool,
    /// Have what is for the network and for no node go nowhere, instead of by the default route, and the
    /// same of this node's subnet while it has no bridge.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    ip_blackhole_route: bool,
}

#[derive(Args, Debug)]
struct Firewall {
    /// By what firewall rules are made.
    #[arg(
        long = "firewall",
        value_enum,
        value_name = "HOW",
        default_value = "auto"
    )]
    backend: Backend,
    /// Masquerade what pods send out of the cluster's network.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    ip_masq: bool,
    /// Do not choose ports at random when masquerading.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    ip_masq_fully_random_disable: bool,
    /// Do not masquerade what pods send there, either.
    #[arg(long, value_name = "NETWORK", value_parser = network)]
    non_masquerade_cidr: Vec<IpNetwork>,
    /// Accept what is forwarded from and to pods.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    iptables_forward_rules: bool,
    /// How often rules are compared that make no notice: those of the old iptables; each second at most.
    /// All others are watched.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = number)]
    iptables_resync: i64,
}

#[derive(Args, Debug)]
struct Files {
    /// The node's subnet file, for the CNI plugin to read.
    #[arg(long, value_name = "FILE", default_value = subnet_env::DEFAULT_PATH)]
    subnet_file: PathBuf,
    /// Where the last good state is kept for a boot without the store.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/hostgw/state.json"
    )]
    state_file: PathBuf,
    /// Where `status` asks.
    #[arg(long, value_name = "FILE", default_value = SOCKET)]
    socket: PathBuf,
}

/// What of ours a runtime finds on this node. `run` keeps it there, where --cni-conf or
/// --take-over-flannel asks for it.
#[expect(clippy::struct_field_names, reason = "a field is its flag")]
#[derive(Args, Debug)]
struct Install {
    /// The list of plugins to install; else one of `cni-hostgw` and `portmap`, or kube-flannel's with
    /// our plugin in the place of theirs.
    #[arg(long, value_name = "FILE")]
    cni_conf: Option<PathBuf>,
    /// The plugin to install; else the one beside this program.
    #[arg(long, value_name = "FILE")]
    cni_plugin: Option<PathBuf>,
    /// Where runtimes read lists.
    #[arg(long, value_name = "FOLDER", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where runtimes start plugins.
    #[arg(long, value_name = "FOLDER", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Replace kube-flannel's 10-flannel.conflist, where there is one, in one step: pods that it
    /// attached go on, and are detached by ours.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = yes_or_no)]
    take_over_flannel: bool,
    /// Where what was done is written down, to be undone.
    #[arg(long, value_name = "FILE", default_value = RECORD)]
    install_record: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct InstallCommand {
    #[command(flatten)]
    install: Install,
    /// The node's subnet file, before which no list is installed.
    #[arg(long, value_name = "FILE", default_value = subnet_env::DEFAULT_PATH)]
    subnet_file: PathBuf,
    /// How long to wait for it.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

impl From<Install> for install::Install {
    fn from(given: Install) -> Self {
        Self {
            list: given.cni_conf,
            plugin: given.cni_plugin,
            conf_dir: given.cni_conf_dir,
            bin_dir: given.cni_bin_dir,
            takes_over_flannel: given.take_over_flannel,
            record: given.install_record,
        }
    }
}

/// How the log is written, to standard error.
#[derive(Args, Clone, Debug)]
pub(crate) struct Log {
    /// Text for people, JSON for programs; which, a terminal decides.
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        default_value = "auto",
        global = true
    )]
    pub(crate) log_format: LogFormat,
    /// How much is logged: from 1, every renewal and every route.
    #[arg(
        short,
        long = "v",
        value_name = "LEVEL",
        default_value = "0",
        value_parser = clap::value_parser!(i32),
        allow_negative_numbers = true,
        global = true
    )]
    pub(crate) verbosity: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct Status {
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where the agent listens.
    #[arg(long, value_name = "FILE", default_value = SOCKET)]
    pub(crate) socket: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct Cleanup {
    /// flannel's tables, chains and routes, too.
    #[arg(long)]
    pub(crate) flannel: bool,
    /// Only say what would go.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    files: Files,
}

/// What is to be done, checked.
pub(crate) enum Task {
    Run(Box<Settings>, Serving),
    Status(Status),
    Check(Vec<PathBuf>),
    Release(Box<Settings>, Serving),
    /// What, the subnet file, and how long to wait for it.
    Install(Box<install::Install>, PathBuf, Duration),
    /// By this record, unless an agent answers there.
    Uninstall(PathBuf, PathBuf),
    Cleanup(crate::cleanup::Cleanup),
}

/// Where the agent answers.
pub(crate) struct Serving {
    pub(crate) socket: PathBuf,
    pub(crate) address: Option<SocketAddr>,
}

impl Cli {
    /// Reads a command line. The error is for people, and names the variable where a value came from one.
    pub(crate) fn read(arguments: &Arguments) -> Result<Self, clap::Error> {
        Self::try_parse_from(&arguments.all).map_err(|error| {
            if !error.use_stderr() {
                // Help, or the version.
                return error;
            }
            let text = error.to_string();
            let mut variables = arguments.variables.iter();
            let names = |flag: &str| {
                let behind = text.split_once(&format!("--{flag}")).map(|(_, rest)| rest);
                behind.is_some_and(|rest| {
                    !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-')
                })
            };
            match variables.find(|(flag, _)| names(flag)) {
                Some((flag, variable)) => {
                    let text = text.trim_start_matches("error: ");
                    let text = format!("{text}(--{flag} is set by the variable {variable})\n");
                    clap::Error::raw(error.kind(), text)
                }
                None => error,
            }
        })
    }

    /// What is to be done. Errors name the flag. `env` gives variables.
    pub(crate) fn task(self, env: impl Fn(&str) -> Option<String>) -> Result<Task, String> {
        Ok(match self.command {
            None => {
                let (settings, serving) = self.run.check(&env)?;
                Task::Run(settings, serving)
            }
            Some(Command::Run(run)) => {
                let (settings, serving) = run.check(&env)?;
                Task::Run(settings, serving)
            }
            Some(Command::Release(run)) => {
                let (settings, serving) = run.check(&env)?;
                Task::Release(settings, serving)
            }
            Some(Command::Status(status)) => Task::Status(status),
            Some(Command::Check { files }) => Task::Check(files),
            Some(Command::Install(command)) => Task::Install(
                Box::new(command.install.into()),
                command.subnet_file,
                command.wait,
            ),
            Some(Command::Uninstall {
                install_record,
                socket,
            }) => Task::Uninstall(install_record, socket),
            Some(Command::Cleanup(cleanup)) => Task::Cleanup(crate::cleanup::Cleanup {
                flannel: cleanup.flannel,
                is_dry: cleanup.dry_run,
                subnet_file: cleanup.files.subnet_file,
                state_file: cleanup.files.state_file,
                socket: cleanup.files.socket,
            }),
        })
    }

    pub(crate) fn log(&self) -> Log {
        self.log.clone()
    }
}

impl Run {
    fn check(
        self,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<(Box<Settings>, Serving), String> {
        self.refused.check()?;
        // As in flanneld, one below nothing is none.
        let port = u16::try_from(self.healthz_port.max(0))
            .map_err(|_| format!("--healthz-port: {} is not a port", self.healthz_port))?;
        let address = SocketAddr::new(self.healthz_ip, port);
        let serving = Serving {
            socket: self.files.socket,
            address: Some(address).filter(|address| address.port() != 0),
        };
        let is_kube = self.kube.kube_subnet_mgr;
        if !is_kube && self.etcd.etcd_endpoints.is_none() {
            self.etcd.check_unused()?;
            self.kube.check_unused()?;
        }
        let public_ip = self.interface.public_ip.map(IpAddr::V4);
        let public = public_ip
            .into_iter()
            .chain(self.interface.public_ipv6.map(IpAddr::V6));
        let settings = Settings {
            store: match (is_kube, self.etcd.options(is_kube)?) {
                (true, None) => {
                    store::Settings::Kube(Box::new(self.kube.options(self.node_name, env)?))
                }
                (true, Some(_)) => {
                    return Err(
                        "--kube-subnet-mgr and --etcd-endpoints: there is one store".to_owned()
                    );
                }
                (false, Some(options)) => store::Settings::Etcd(Box::new(options)),
                (false, None) => store::Settings::File {
                    path: self.cluster,
                    node_name: self.node_name,
                },
            },
            selection: Selection {
                names: self.interface.iface,
                patterns: self.interface.iface_regex,
                can_reach: self.interface.iface_can_reach,
                public: public.collect(),
            },
            how: How {
                is_onlink: self.interface.onlink,
                blackholes: self.interface.ip_blackhole_route,
            },
            subnet_file: self.files.subnet_file,
            state_file: self.files.state_file,
            firewall: firewall::Settings {
                backend: self.firewall.backend,
                masquerade: self.firewall.ip_masq,
                is_random: !self.firewall.ip_masq_fully_random_disable,
                keep: self
                    .firewall
                    .non_masquerade_cidr
                    .into_iter()
                    .map(masked)
                    .collect(),
                forward: self.firewall.iptables_forward_rules,
                // Without a pause, flanneld does nothing else any more.
                poll: Duration::from_secs(self.firewall.iptables_resync.max(1).unsigned_abs()),
            },
            install: (self.install.cni_conf.is_some() || self.install.take_over_flannel)
                .then(|| self.install.into()),
        };
        Ok((Box::new(settings), serving))
    }
}

impl Etcd {
    /// Refuses what says nothing without servers.
    fn check_unused(&self) -> Result<(), String> {
        for (is_given, flag) in [
            (self.etcd_prefix != PREFIX, "etcd-prefix"),
            (self.etcd_cafile.is_some(), "etcd-cafile"),
            (self.etcd_certfile.is_some(), "etcd-certfile"),
            (self.etcd_keyfile.is_some(), "etcd-keyfile"),
            (self.etcd_username.is_some(), "etcd-username"),
        ] {
            if is_given {
                return Err(format!(
                    "--{flag} is given, and no server: --etcd-endpoints names them, and without it there is no etcd"
                ));
            }
        }
        Ok(())
    }

    /// Nothing where etcd is not asked for. Beside Kubernetes what is said of etcd means nothing, but for
    /// its servers.
    fn options(self, is_kube: bool) -> Result<Option<etcd::Options>, String> {
        let is_tls = self.etcd_cafile.is_some() || self.etcd_certfile.is_some();
        let Some(text) = &self.etcd_endpoints else {
            return Ok(None);
        };
        let endpoints = endpoints(text, is_tls)?;
        if is_kube {
            return Err("--kube-subnet-mgr and --etcd-endpoints: there is one store".to_owned());
        }
        let prefix = folder(&self.etcd_prefix);
        let identity = match (self.etcd_certfile, self.etcd_keyfile) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err("--etcd-certfile is given without --etcd-keyfile".to_owned());
            }
            (None, Some(_)) => {
                return Err("--etcd-keyfile is given without --etcd-certfile".to_owned());
            }
        };
        let ttl = self.subnet_lease_ttl;
        if ttl < Duration::from_secs(5) {
            return Err("--subnet-lease-ttl: a lease holds 5 seconds at least".to_owned());
        }
        let password = match (self.etcd_password, self.etcd_password_file) {
            (Some(password), _) => Some(Password::Said(password)),
            (None, Some(file)) => Some(Password::File(file)),
            (None, None) => None,
        };
        let user = match (self.etcd_username, password) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            (Some(user), None) => {
                return Err(format!(
                    "--etcd-username: {user:?} has no password (--etcd-password-file, --etcd-password)"
                ));
            }
            (None, Some(_)) => {
                return Err(
                    "a password for etcd is given, and no user (--etcd-username)".to_owned(),
                );
            }
        };
        let margin = self.subnet_lease_renew_margin;
        let margin = match u64::try_from(margin) {
            Ok(minutes @ 1..=1439) => Duration::from_secs(minutes * 60),
            _ => {
                return Err(format!(
                    "--subnet-lease-renew-margin: {margin} minutes are not between 1 and 1439"
                ));
            }
        };
        Ok(Some(etcd::Options {
            access: Access {
                endpoints,
                ca: self.etcd_cafile,
                identity,
                user,
            },
            prefix,
            ttl,
            margin: margin.min(ttl / 2),
        }))
    }
}

impl Kube {
    /// Refuses what says nothing without Kubernetes.
    fn check_unused(&self) -> Result<(), String> {
        for (is_given, flag) in [
            (self.kube_api_url.is_some(), "kube-api-url"),
            (self.kubeconfig_file.is_some(), "kubeconfig-file"),
        ] {
            if is_given {
                return Err(format!("--{flag} is given without --kube-subnet-mgr"));
            }
        }
        Ok(())
    }

    fn options(
        self,
        node_name: Option<String>,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<kube::Options, String> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let of_pod = || {
            let (name, namespace) = (env("POD_NAME")?, env("POD_NAMESPACE")?);
            Some(Identity::OfPod { namespace, name })
        };
        // As kubelet does.
        let of_host = || {
            let path = "/proc/sys/kernel/hostname";
            let name = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
            Ok::<_, String>(Identity::Named(name.trim().to_lowercase()))
        };
        let named = node_name.or_else(|| env("NODE_NAME")).map(Identity::Named);
        let node = match named.or_else(of_pod) {
            Some(node) => node,
            None => of_host()?,
        };
        let url = self.kube_api_url.map(|text| {
            // As Go's client takes it.
            let whole = if text.contains("://") {
                text.clone()
            } else {
                format!("http://{text}")
            };
            let url: Option<http::Uri> = whole.parse().ok();
            let is_right = |url: &http::Uri| {
                matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()
            };
            url.filter(is_right).ok_or_else(|| {
                format!("--kube-api-url: {text:?} is not such as https://192.168.2.17:6443")
            })
        });
        Ok(kube::Options {
            access: kube::Access {
                url: url.transpose()?,
                kubeconfig: self.kubeconfig_file,
            },
            node,
            prefix: self.kube_annotation_prefix,
            peers_without_annotations: self.peers_without_annotations,
            sets_condition: self.set_node_network_unavailable,
            net_conf: self.net_config_path,
        })
    }
}

/// etcd's servers. One without a scheme has that of the first that has one, and else TLS where a
/// certificate is given.
fn endpoints(text: &str, is_tls: bool) -> Result<Vec<String>, String> {
    let all = text.split(',').map(str::trim).filter(|one| !one.is_empty());
    let all: Vec<_> = all.collect();
    let scheme_of = |one: &&str| {
        one.split_once("://")
            .map(|(scheme, _)| scheme.to_lowercase())
    };
    let usual = if is_tls { "https" } else { "http" };
    let usual = all.iter().find_map(scheme_of).unwrap_or(usual.to_owned());
    let mut endpoints = Vec::new();
    for one in all {
        let rest = one.split_once("://").map_or(one, |(_, rest)| rest);
        let scheme = scheme_of(&one).unwrap_or(usual.clone());
        let url = format!("{scheme}://{}", rest.trim_end_matches('/'));
        let parsed: Option<http::Uri> = url.parse().ok();
        let has_port = parsed.is_some_and(|url| url.port_u16().is_some());
        if !has_port || !matches!(scheme.as_str(), "http" | "https") {
            return Err(format!(
                "--etcd-endpoints: {one:?} is not such as http://192.168.2.17:2379"
            ));
        }
        endpoints.push(url);
    }
    if endpoints.is_empty() {
        return Err(format!("--etcd-endpoints: {text:?} names no server"));
    }
    Ok(endpoints)
}

/// The folder of a prefix, as flanneld has it (`path.Clean`): one slash between parts, none in front where
/// none is written, one behind.
fn folder(prefix: &str) -> String {
    let is_absolute = prefix.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in prefix.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    let begin = if is_absolute { "/" } else { "" };
    let end = if parts.is_empty() { "" } else { "/" };
    format!("{begin}{}{end}", parts.join("/"))
}

/// An address, or the name of one on this node, such as `localhost`.
fn address(text: &str) -> Result<IpAddr, String> {
    let named = || (text, 0).to_socket_addrs().ok()?.next();
    let address = text.parse().ok().or_else(|| Some(named()?.ip()));
    address.ok_or_else(|| "is not an address of this node, such as ::".to_owned())
}

/// A network, or an address alone for a network of one.
fn network(text: &str) -> Result<IpNetwork, String> {
    let address = || text.parse::<IpAddr>().ok().map(IpNetwork::from);
    let network = subnet_env::cidr(text).or_else(address);
    network.ok_or_else(|| "is not a network such as 10.10.0.0/16".to_owned())
}

/// Without host bits.
fn masked(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).expect("its own prefix length")
}
