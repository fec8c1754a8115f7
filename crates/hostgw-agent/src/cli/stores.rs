//! The flags that select a store.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::flanneld::{number, parse_bool};
use super::parse::{endpoints, folder};
use crate::store::StoreConfig;
use crate::store::etcd::{Access, EtcdStoreConfig, Password};
use crate::store::kube::{self, Identity, KubeStoreConfig, Prefix};

/// The key below which flanneld's network is.
const PREFIX: &str = "/coreos.com/network";

/// The `etcd` store.
#[derive(Args, Debug)]
pub(super) struct EtcdFlags {
    /// The `etcd` store: its servers, separated by commas.
    #[arg(long, value_name = "URL,…")]
    etcd_endpoints: Option<String>,
    /// The `etcd` store: the key below which the network is.
    #[arg(long, value_name = "KEY", default_value = PREFIX)]
    etcd_prefix: String,
    /// The authority that signed the servers' certificates. It is enough by itself for TLS.
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Client certificate of this node.
    #[arg(long, value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// Private key of the client certificate.
    #[arg(long, value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// The user name for etcd.
    #[arg(long, value_name = "NAME")]
    etcd_username: Option<String>,
    /// Password. Visible in the process list; prefer --etcd-password-file.
    #[arg(long, value_name = "TEXT")]
    etcd_password: Option<String>,
    /// The file with the password.
    #[arg(long, value_name = "FILE", conflicts_with = "etcd_password")]
    etcd_password_file: Option<PathBuf>,
    /// The time to live of a lease that is not renewed.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    subnet_lease_ttl: Duration,
    /// How many minutes before its end a lease is renewed; at most half its time to live.
    #[arg(long, value_name = "MINUTES", default_value = "60", value_parser = number)]
    subnet_lease_renew_margin: i64,
}

/// The `kube` store.
#[derive(Args, Debug)]
pub(super) struct KubeFlags {
    /// The `kube` store: the subnets are the podCIDRs of the Nodes.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    kube_subnet_mgr: bool,
    /// The URL of the API server, instead of the one in the kubeconfig file or in the pod's
    /// environment: such as one that needs no kube-proxy.
    #[arg(long, value_name = "URL")]
    kube_api_url: Option<String>,
    /// The API server and the credentials for it. Without this flag, those that a pod gets.
    #[arg(long, alias = "kubeconfig", value_name = "FILE")]
    kubeconfig_file: Option<PathBuf>,
    /// The start of the annotations' names.
    #[arg(
        long,
        value_name = "DOMAIN",
        default_value = "flannel.alpha.coreos.com"
    )]
    kube_annotation_prefix: Prefix,
    /// The file with the network's configuration. Edits take effect at once.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/kube-flannel/net-conf.json"
    )]
    net_config_path: PathBuf,
    /// Maintain the Node's condition `NetworkUnavailable`.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    set_node_network_unavailable: bool,
    /// Also route to Nodes without annotations, by their `InternalIP`.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = parse_bool)]
    peers_without_annotations: bool,
}

/// The flags of both stores, of which at most one is selected.
pub(super) struct OneStore {
    pub(super) etcd: EtcdFlags,
    pub(super) kube: KubeFlags,
}

impl OneStore {
    /// The selected store; `None` for the `file` store. `env` reads a variable.
    pub(super) fn select(
        self,
        node_name: Option<String>,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<Option<StoreConfig>, String> {
        match (self.kube.kube_subnet_mgr, &self.etcd.etcd_endpoints) {
            (true, Some(endpoints)) => {
                self.etcd.parse_endpoints(endpoints)?;
                Err("--kube-subnet-mgr and --etcd-endpoints: only one store can be used".to_owned())
            }
            // Other flags of etcd mean nothing then, and do no harm.
            (true, None) => {
                let config = self.kube.config(node_name, env)?;
                Ok(Some(StoreConfig::Kube(Box::new(config))))
            }
            (false, Some(endpoints)) => {
                let endpoints = self.etcd.parse_endpoints(endpoints)?;
                let config = self.etcd.config(endpoints)?;
                Ok(Some(StoreConfig::Etcd(Box::new(config))))
            }
            (false, None) => {
                self.etcd.check_unused()?;
                self.kube.check_unused()?;
                Ok(None)
            }
        }
    }
}

impl EtcdFlags {
    /// Refuses flags that mean nothing without servers.
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
                    "--{flag} is given without --etcd-endpoints, which names the servers and selects etcd"
                ));
            }
        }
        Ok(())
    }

    fn parse_endpoints(&self, text: &str) -> Result<Vec<String>, String> {
        endpoints(
            text,
            self.etcd_cafile.is_some() || self.etcd_certfile.is_some(),
        )
    }

    fn config(self, endpoints: Vec<String>) -> Result<EtcdStoreConfig, String> {
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
            return Err("--subnet-lease-ttl: must be at least 5 seconds".to_owned());
        }
        let margin = self.subnet_lease_renew_margin;
        let margin = match u64::try_from(margin) {
            Ok(minutes @ 1..=1439) => Duration::from_secs(minutes * 60),
            _ => {
                return Err(format!(
                    "--subnet-lease-renew-margin: {margin} is not between 1 and 1439 minutes"
                ));
            }
        };
        let password = self.etcd_password.map(Password::Literal);
        let password = password.or(self.etcd_password_file.map(Password::File));
        Ok(EtcdStoreConfig {
            access: Access {
                endpoints,
                ca: self.etcd_cafile,
                identity,
                user: login(self.etcd_username, password)?,
            },
            prefix,
            ttl,
            margin: margin.min(ttl / 2),
        })
    }
}

fn login(
    user: Option<String>,
    password: Option<Password>,
) -> Result<Option<(String, Password)>, String> {
    match (user, password) {
        (Some(user), Some(password)) => Ok(Some((user, password))),
        (None, None) => Ok(None),
        (Some(user), None) => Err(format!(
            "--etcd-username: {user:?} has no password (--etcd-password-file, --etcd-password)"
        )),
        (None, Some(_)) => {
            Err("a password for etcd is given without a user (--etcd-username)".to_owned())
        }
    }
}

impl KubeFlags {
    /// Refuses flags that mean nothing without Kubernetes.
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

    fn config(
        self,
        node_name: Option<String>,
        env: &impl Fn(&str) -> Option<String>,
    ) -> Result<KubeStoreConfig, String> {
        let url = self.kube_api_url.as_deref().map(api_url).transpose()?;
        Ok(KubeStoreConfig {
            access: kube::Access {
                url,
                kubeconfig: self.kubeconfig_file,
            },
            node: identity(node_name, env)?,
            prefix: self.kube_annotation_prefix,
            peers_without_annotations: self.peers_without_annotations,
            sets_condition: self.set_node_network_unavailable,
            net_conf: self.net_config_path,
        })
    }
}

/// Which Node this is: by the flag, by a variable, by the pod, or by the host name, as kubelet does.
fn identity(
    node_name: Option<String>,
    env: &impl Fn(&str) -> Option<String>,
) -> Result<Identity, String> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(name) = node_name.or_else(|| env("NODE_NAME")) {
        return Ok(Identity::Named(name));
    }
    if let (Some(name), Some(namespace)) = (env("POD_NAME"), env("POD_NAMESPACE")) {
        return Ok(Identity::OfPod { namespace, name });
    }
    let path = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(Identity::Named(name.trim().to_lowercase()))
}

/// Reads the URL of an API server. As in Go's client, the default scheme is `http`.
fn api_url(text: &str) -> Result<http::Uri, String> {
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url: Option<http::Uri> = whole.parse().ok();
    let is_valid = |url: &http::Uri| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some()
    };
    url.filter(is_valid).ok_or_else(|| {
        format!("--kube-api-url: {text:?} is not a URL such as https://192.168.2.17:6443")
    })
}
