//! Another IPAM plugin (SPEC, section "Delegation").

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cni::{AddResult, Call, Code, Json, Version};
use host_local::Store;
use ipnetwork::IpNetwork;
use netconf::LenientConf;
use programs::{Stderr, find, run};
use serde_json::{Value, json};
use subnet::Subnet;
use subnet_env::SubnetEnv;

use super::{Address, Allocation, Undo};
use crate::config_input::ConfigInput;
use crate::error::Error;
use crate::state::Settings;

/// An IPAM plugin, and the configuration that it gets. It runs with our environment.
#[derive(Debug)]
pub(crate) struct Delegate {
    program: String,
    path: Option<String>,
    config: Json,
    version: Version,
}

impl Delegate {
    /// The plugin that the configuration names. `None` if addresses are from our own pool.
    ///
    /// It gets the whole configuration unchanged.
    pub(crate) fn new(call: &Call) -> Option<Self> {
        let conf = LenientConf::from_json(&call.config);
        conf.external_ipam().map(|program| Self {
            program: program.to_owned(),
            path: call.path.clone(),
            config: call.config.clone(),
            version: call.version,
        })
    }

    /// The plugin for DEL and GC. In flannel's form it gets the node's subnets, or, if they are unknown,
    /// what it got at the last ADD.
    pub(crate) fn with_known_subnets(
        call: &Call,
        conf: &LenientConf,
        store: &Store,
    ) -> Result<Option<Self>, Error> {
        let Some(delegate) = Self::new(call) else {
            return Ok(None);
        };
        if !conf.has_delegate {
            return Ok(Some(delegate));
        }
        let path = conf.subnet_file.as_deref();
        let path = path.unwrap_or(Path::new(subnet_env::DEFAULT_PATH));
        match SubnetEnv::read(path) {
            Ok(env) => {
                let without_host_bits = |network| Subnet::of(network).network();
                let subnets: Vec<_> = env.subnets().map(without_host_bits).collect();
                let networks: Vec<_> = env.networks().map(without_host_bits).collect();
                Ok(Some(delegate.with_subnets(&subnets, &networks)))
            }
            Err(error) if error.is_unreadable() => Err(Error::Subnet {
                path: path.to_owned(),
                waited: Duration::ZERO,
                source: error,
            }),
            Err(_) => Ok(Some(delegate.with_ipam(Settings::saved_ipam(store)?))),
        }
    }

    /// Returns the `ipam` that the plugin gets, as JSON.
    pub(crate) fn ipam(&self) -> String {
        let ipam = self.config.get("ipam").map(Value::to_string);
        ipam.unwrap_or_default()
    }

    /// The plugin with a saved `ipam`, if there is one.
    fn with_ipam(mut self, saved: Option<String>) -> Self {
        if let Some(ipam) = saved.and_then(|text| serde_json::from_str(&text).ok()) {
            self.config = self.config.with("ipam", ipam);
        }
        self
    }

    /// The plugin for ADD, CHECK and STATUS: in flannel's form with the node's subnets.
    pub(super) fn with_subnets_of(input: &ConfigInput<'_>) -> Option<Self> {
        let delegate = Self::new(input.call)?;
        Some(if input.conf.has_delegate {
            delegate.with_subnets(&input.subnets, &input.networks)
        } else {
            delegate
        })
    }

    /// Adds to `ipam` what flannel adds: the node's subnets as ranges, and the cluster's networks as
    /// routes.
    fn with_subnets(mut self, subnets: &[IpNetwork], networks: &[IpNetwork]) -> Self {
        let Some(ipam) = self.config.object("ipam") else {
            return self;
        };
        let range = |subnet: &IpNetwork| json!([{"subnet": subnet.to_string()}]);
        let ranges = subnets.iter().map(range).collect();
        let routes = ipam.get("routes").and_then(Value::as_array);
        let mut routes = routes.cloned().unwrap_or_default();
        let route = |network: &IpNetwork| json!({"dst": network.to_string()});
        routes.extend(networks.iter().map(route));
        let ipam = ipam.with("ranges", ranges).with("routes", routes.into());
        self.config = self.config.with("ipam", ipam.into_value());
        self
    }

    /// Runs ADD. If our own ADD fails afterwards, the allocation runs DEL.
    pub(super) fn add(&self) -> Result<Allocation<'_>, Error> {
        let mut allocation = Allocation {
            // SPEC: also after its ADD has failed.
            undo: Undo::Delegate(self),
            ..Allocation::empty()
        };
        let text = match self.run("ADD") {
            Ok(text) => text,
            Err(error) => {
                drop(allocation.release());
                return Err(error);
            }
        };
        let result = Json::parse(&text)
            .and_then(|json| AddResult::read(&json, self.version))
            .and_then(|result| match unusable_reason(&result) {
                Some(reason) => Err(reason),
                None => Ok(result),
            });
        let result = match result {
            Ok(result) => result,
            Err(reason) => {
                drop(allocation.release());
                return Err(self.invalid_answer("ADD", reason));
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

    /// Runs the plugin and returns what it prints. Its own error is passed on.
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
            return Err(self.invalid_answer(verb, format!("{}: {}", output.status, text.trim())));
        };
        let code = Code(u32::try_from(code).unwrap_or(Code::INTERNAL.0));
        let details = error["details"].as_str().unwrap_or_default();
        Err(cni::Error::new(code, format!("{}: {msg}", self.program))
            .with_details(details)
            .into())
    }

    /// Finds the program. A name with a slash would lead out of `CNI_PATH`.
    fn find(&self) -> Result<PathBuf, Error> {
        let Some(path) = &self.path else {
            let msg = "required env variables [CNI_PATH] missing";
            let why = format!("ipam.type {:?} is searched there", self.program);
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

    fn invalid_answer(&self, verb: &str, reason: String) -> Error {
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

/// Returns why a result cannot be used, if so.
fn unusable_reason(result: &AddResult) -> Option<String> {
    if result.ips.is_empty() {
        return Some("the result has no addresses".to_owned());
    }
    let is_of_other_family = |ip: &&cni::Ip| {
        let mut gateway = ip.gateway.iter();
        gateway.any(|gateway| gateway.is_ipv4() != ip.address.is_ipv4())
    };
    let ip = result.ips.iter().find(is_of_other_family)?;
    let address = ip.address;
    Some(format!(
        "the gateway of {address} is of a different IP family"
    ))
}
