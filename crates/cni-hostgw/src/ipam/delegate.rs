//! Another IPAM plugin, run as the SPEC says.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cni::{AddResult, Call, Code, Json, Version};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{Address, Allocation, Undo};
use crate::error::Error;
use crate::programs::find;
use crate::source::Source;

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

    /// The same with what flannel puts into `ipam` in its form: the node's subnets as ranges,
    /// the cluster's networks as routes.
    pub(super) fn of(source: &Source<'_>) -> Option<Self> {
        let mut delegate = Self::named_in(source.call)?;
        if source.conf.has_delegate {
            let mut ipam = source.call.config.get("ipam")?.clone();
            let range = |subnet: &IpNetwork| json!([{"subnet": subnet.to_string()}]);
            ipam["ranges"] = source.subnets.iter().map(range).collect();
            let mut routes = ipam["routes"].as_array().cloned().unwrap_or_default();
            let route = |network: &IpNetwork| json!({"dst": network.to_string()});
            routes.extend(source.networks.iter().map(route));
            ipam["routes"] = Value::Array(routes);
            delegate.config = delegate.config.with("ipam", ipam);
        }
        Some(delegate)
    }

    /// ADD, to be followed by DEL when ours fails.
    pub(super) fn add(&self) -> Result<Allocation<'_>, Error> {
        let answer = self.run("ADD");
        // SPEC: after a failed ADD, too.
        let undo = Undo::Delegate(self);
        let mut allocation = Allocation {
            addresses: Vec::new(),
            routes: Vec::new(),
            dns: cni::Dns::default(),
            undo,
        };
        let text = answer?;
        let result = Json::parse(&text)
            .and_then(|json| AddResult::read(&json, self.version))
            .map_err(|reason| self.broken("ADD", reason))?;
        if result.ips.is_empty() {
            return Err(self.broken("ADD", "its result has no addresses".to_owned()));
        }
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
        let failed = |source| Error::Delegate {
            program: self.program.clone(),
            verb: verb.to_owned(),
            source,
        };
        let mut child = Command::new(self.find()?)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut stdin = child.stdin.take().expect("it is piped");
        // A plugin that reads none of it says itself why.
        drop(stdin.write_all(self.config.to_text().as_bytes()));
        drop(stdin);
        let output = child.wait_with_output().map_err(failed)?;
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
        let found = is_name.then(|| find(&self.program, path)).flatten();
        found.ok_or_else(|| Error::Config {
            key: "ipam.type",
            value: format!("{:?}", self.program),
            source: format!("no executable of that name in CNI_PATH ({path})").into(),
        })
    }

    fn broken(&self, verb: &str, reason: String) -> Error {
        Error::Delegate {
            program: self.program.clone(),
            verb: verb.to_owned(),
            source: std::io::Error::other(reason),
        }
    }
}
