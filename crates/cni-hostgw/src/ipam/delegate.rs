//! Another IPAM plugin, run as the SPEC says.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cni::{AddResult, Call, Code, Json, Version};
use host_local::Store;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use subnet_env::SubnetEnv;

use super::{Address, Allocation, Undo};
use crate::error::Error;
use crate::programs::{Stderr, find, run};
use crate::routes::masked;
use crate::source::Source;

/// What begins the line of the network's settings that has the plugin's `ipam`.
const SETTINGS: &str = "ipam ";

/// An IPAM plugin and the configuration that it gets. It has our environment.
#[derive(Debug)]
pub(crate) struct Delegate {
    program: String,
    path: Option<String>,
    config: Json,
    version: Version,
}

impl Delegate {
    /// The plugin that the call's configuration names; nothing where addresses are ours.
    ///
    /// It gets the whole configuration as it is: all that verbs without ranges need.
    pub(crate) fn named_in(call: &Call) -> Option<Self> {
        let ipam = call.config.object("ipam")?;
        let program = ipam.get("type")?.as_str()?;
        (!matches!(program, "" | cni::HOST_LOCAL)).then(|| Self {
            program: program.to_owned(),
            path: call.path.clone(),
            config: call.config.clone(),
            version: call.version,
        })
    }

    /// The same for a verb that does without the rest of the configuration. In flannel's form the
    /// plugin gets the node's subnets, or what it got at the last ADD where they are not known.
    pub(crate) fn for_leaving(call: &Call, store: &Store) -> Result<Option<Self>, Error> {
        let Some(delegate) = Self::named_in(call) else {
            return Ok(None);
        };
        if !call.config.has("delegate") {
            return Ok(Some(delegate));
        }
        let named = call.config.get("subnetFile").and_then(Value::as_str);
        let named = named.filter(|path| !path.is_empty()).map(Path::new);
        let path = named.unwrap_or(Path::new(subnet_env::DEFAULT_PATH));
        match SubnetEnv::read(path) {
            Ok(env) => {
                let subnets: Vec<_> = env.subnets().map(masked).collect();
                let networks: Vec<_> = env.networks().map(masked).collect();
                Ok(Some(delegate.with_subnets(&subnets, &networks)))
            }
            Err(error) if error.is_unreadable() => Err(Error::Subnet {
                path: path.to_owned(),
                waited: Duration::ZERO,
                source: error,
            }),
            Err(_) => Ok(Some(delegate.with_settings(&store.settings()?))),
        }
    }

    /// A line for the network's settings: what the plugin gets as `ipam`.
    pub(crate) fn settings_line(&self) -> String {
        let ipam = self.config.get("ipam").map(Value::to_string);
        format!("{SETTINGS}{}\n", ipam.unwrap_or_default())
    }

    /// The same with the `ipam` of the network's settings, where they have one.
    fn with_settings(mut self, settings: &str) -> Self {
        let line = settings
            .lines()
            .find_map(|line| line.strip_prefix(SETTINGS));
        if let Some(ipam) = line.and_then(|line| serde_json::from_str(line).ok()) {
            self.config = self.config.with("ipam", ipam);
        }
        self
    }

    /// The plugin of a complete configuration.
    pub(super) fn of(source: &Source<'_>) -> Option<Self> {
        let delegate = Self::named_in(source.call)?;
        Some(if source.conf.has_delegate {
            delegate.with_subnets(&source.subnets, &source.networks)
        } else {
            delegate
        })
    }

    /// The same with what flannel puts into `ipam` in its form: the node's subnets as ranges,
    /// the cluster's networks as routes.
    fn with_subnets(mut self, subnets: &[IpNetwork], networks: &[IpNetwork]) -> Self {
        let Some(mut ipam) = self.config.get("ipam").cloned() else {
            return self;
        };
        let range = |subnet: &IpNetwork| json!([{"subnet": subnet.to_string()}]);
        ipam["ranges"] = subnets.iter().map(range).collect();
        let mut routes = ipam["routes"].as_array().cloned().unwrap_or_default();
        let route = |network: &IpNetwork| json!({"dst": network.to_string()});
        routes.extend(networks.iter().map(route));
        ipam["routes"] = Value::Array(routes);
        self.config = self.config.with("ipam", ipam);
        self
    }

    /// ADD, to be followed by DEL when ours fails.
    pub(super) fn add(&self) -> Result<Allocation<'_>, Error> {
        let mut allocation = Allocation {
            // SPEC: after a failed ADD, too.
            undo: Undo::Delegate(self),
            ..Allocation::nothing()
        };
        let text = match self.run("ADD") {
            Ok(text) => text,
            Err(error) => {
                drop(allocation.give_back());
                return Err(error);
            }
        };
        let result = Json::parse(&text)
            .and_then(|json| AddResult::read(&json, self.version))
            .and_then(|result| match unusable(&result) {
                Some(reason) => Err(reason),
                None => Ok(result),
            });
        let result = match result {
            Ok(result) => result,
            Err(reason) => {
                drop(allocation.give_back());
                return Err(self.broken("ADD", reason));
            }
        };
        let address = |ip: cni::Ip| Address {
            address: ip.address,
            gateway: ip.gateway,
        };
        allocation.addresses = result.ips.into_iter().map(address).collect();
        allocation.routes = result.routes;
        allocation.dns = result.dns;
        Ok(allocation)
    }

    /// Runs the plugin to its end and gives what it printed. Its own error is passed on as it is.
    pub(crate) fn run(&self, verb: &str) -> Result<Vec<u8>, Error> {
        let mut command = Command::new(self.find()?);
        command.env("CNI_COMMAND", verb);
        let stdin = self.config.to_text();
        let output = run(&mut command, stdin.as_bytes(), Stderr::Inherited)
            .map_err(|source| self.failed(verb, source))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let error: Value = serde_json::from_str(&text).unwrap_or_default();
        let (Some(code), Some(msg)) = (error["code"].as_u64(), error["msg"].as_str()) else {
            return Err(self.broken(verb, format!("{}: {}", output.status, text.trim())));
        };
        let code = Code(u32::try_from(code).unwrap_or(Code::INTERNAL.0));
        let details = error["details"].as_str().unwrap_or_default();
        Err(cni::Error::new(code, format!("{}: {msg}", self.program))
            .with_details(details)
            .into())
    }

    /// The program. A name with a slash would leave `CNI_PATH`.
    fn find(&self) -> Result<PathBuf, Error> {
        let Some(path) = &self.path else {
            let msg = "required env variables [CNI_PATH] missing";
            let why = format!("ipam.type {:?} is looked for there", self.program);
            let error = cni::Error::new(Code::INVALID_ENVIRONMENT, msg);
            return Err(error.with_details(why).into());
        };
        let is_name = !self.program.contains('/');
        let found = if is_name {
            find(&self.program, path).map_err(|source| self.failed("find", source))?
        } else {
            None
        };
        found.ok_or_else(|| Error::Config {
            key: "ipam.type",
            value: format!("{:?}", self.program),
            source: format!("no executable of that name in CNI_PATH ({path})").into(),
        })
    }

    fn broken(&self, verb: &str, reason: String) -> Error {
        self.failed(verb, io::Error::other(reason))
    }

    fn failed(&self, verb: &str, source: io::Error) -> Error {
        Error::Delegate {
            program: self.program.clone(),
            verb: verb.to_owned(),
            source,
        }
    }
}

/// Why a result gives a container no addresses.
fn unusable(result: &AddResult) -> Option<String> {
    if result.ips.is_empty() {
        return Some("its result has no addresses".to_owned());
    }
    let is_of_other_family = |ip: &&cni::Ip| {
        let mut gateway = ip.gateway.iter();
        gateway.any(|gateway| gateway.is_ipv4() != ip.address.is_ipv4())
    };
    let ip = result.ips.iter().find(is_of_other_family)?;
    let address = ip.address;
    Some(format!("the gateway of {address} is of the other family"))
}
