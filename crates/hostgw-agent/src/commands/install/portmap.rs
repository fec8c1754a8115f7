//! Moves the host ports of running pods from the `portmap` plugin to ours.
//!
//! The runtime's CNI library keeps the result of each ADD, with the pod's ports. Our rules are added
//! before those of the plugin are removed, so that a port is open all the time.

use std::fs;
use std::path::Path;

use cni::{AddResult, AttachmentHash, HOST_VETH_ALIAS, Json, Version};
use host_ports::{HostPorts, Masquerade, PortRequest, Record, portmap, resolve};
use ipnetwork::IpNetwork;
use kernel::{Kind, Link, Rtnl, nftables};
use serde::Deserialize;
use serde_json::Value;
use tracing::{info, warn};
use util::none_if_not_found;

use crate::error::{Result, causes};
use crate::files;

/// Where the CNI library keeps results.
const RESULTS: &str = "/var/lib/cni/results";

/// A result that the CNI library keeps, as far as it is needed here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    container_id: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    capability_args: CapabilityArguments,
    result: Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CapabilityArguments {
    port_mappings: Vec<netconf::PortMapping>,
}

/// Moves the ports of the network of `list` that are open by rules of `portmap`. A port that cannot be
/// moved stays as it is, with a warning.
pub(super) fn take_over(kernel: &Rtnl, list: &Value) -> Result<()> {
    let plugins = list["plugins"].as_array().into_iter().flatten();
    let mut ours = plugins.filter(|plugin| plugin["type"] == super::PLUGIN_NAME);
    let Some(entry) = ours.find(|entry| entry["capabilities"]["portMappings"] == true) else {
        return Ok(());
    };
    if nftables::is_available().is_err() {
        return Ok(());
    }
    let network = list["name"].as_str().unwrap_or_default();
    let masquerade = match (&entry["snat"], &entry["masqAll"]) {
        (Value::Bool(false), _) => Masquerade::None,
        (_, Value::Bool(true)) => Masquerade::All,
        _ => Masquerade::Subnet,
    };
    for cached in cached_results(network)? {
        if !portmap::has_rules(network, &cached.container_id)? {
            continue;
        }
        let id = &cached.container_id;
        match move_ports(kernel, &cached, masquerade) {
            Ok(Some(record)) => {
                let (count, pod) = (record.mappings.len(), record.owner());
                info!("moved {count} host port(s) of pod {pod} from the portmap plugin to ours");
            }
            Ok(None) => {}
            Err(reason) => warn!(
                "the host ports of container {id} stay with the portmap plugin until it is deleted: \
                 {reason}"
            ),
        }
    }
    Ok(())
}

/// The results of a network's attachments that have host ports.
fn cached_results(network: &str) -> Result<Vec<Cached>> {
    let directory = Path::new(RESULTS);
    let failed = |error| files::Error::io("read", directory, error);
    let Some(entries) = none_if_not_found(fs::read_dir(directory)).map_err(failed)? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        // A pod may be deleted at this moment.
        let Ok(text) = fs::read(&path) else { continue };
        let parsed = Json::parse(&text).and_then(|json| json.to::<Cached>());
        if let Ok(cached) = parsed
            && cached.network_name == network
            && !cached.capability_args.port_mappings.is_empty()
        {
            found.push(cached);
        }
    }
    Ok(found)
}

/// Opens the ports of a pod by our rules, and removes those of `portmap`. Returns `None` if the pod is
/// gone.
fn move_ports(
    kernel: &Rtnl,
    cached: &Cached,
    masquerade: Masquerade,
) -> Result<Option<Record>, String> {
    let text = |error: &dyn std::error::Error| causes(error);
    let links = kernel.links().map_err(|error| text(&error))?;
    let Some(record) = record(cached, masquerade, &links)? else {
        return Ok(None);
    };
    let add = || -> Result<bool, host_ports::Error> {
        let ports = HostPorts::lock(kernel)?;
        ports.add(&record)?;
        // A pod that was deleted meanwhile had no record: its address may be free.
        if !ports.is_alive(&record)? {
            ports.remove(&record.veth)?.finish()?;
            return Ok(false);
        }
        portmap::remove(&record.network, &record.container_id)?;
        Ok(true)
    };
    let is_alive = add().map_err(|error| text(&error))?;
    Ok(Some(record).filter(|_| is_alive))
}

/// The record of a pod that other plugins attached. `None` if it has no host veth any more.
fn record(
    cached: &Cached,
    masquerade: Masquerade,
    links: &[Link],
) -> Result<Option<Record>, String> {
    let result = Json::parse(cached.result.to_string().as_bytes())?;
    let version = result.get("cniVersion").and_then(Value::as_str);
    let version = version
        .and_then(Version::supported)
        .unwrap_or(Version::LATEST);
    let result = AddResult::read(&result, version)?;
    let on_host = result.interfaces.iter().filter(|i| i.sandbox.is_empty());
    let names: Vec<_> = on_host.map(|i| i.name.as_str()).collect();
    let is_host_veth =
        |link: &&Link| link.kind == Kind::Veth && names.contains(&link.name.as_str());
    let Some(veth) = links.iter().find(is_host_veth) else {
        return Ok(None);
    };
    let bridge = links.iter().find(|link| Some(link.index) == veth.bridge);
    let mappings = cached.capability_args.port_mappings.iter();
    let requests = mappings.map(|mapping| {
        PortRequest::new(
            &mapping.protocol,
            &mapping.host_ip,
            mapping.host_port,
            mapping.container_port,
        )
        .map_err(|error| format!("{}: {}: {error}", error.key, error.value))
    });
    let requests = requests.collect::<Result<Vec<_>, _>>()?;
    let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address).collect();
    let ips: Vec<_> = addresses.iter().map(IpNetwork::ip).collect();
    let mappings = resolve(&requests, &ips).map_err(|error| error.to_string())?;
    let (network, id, ifname) = (&cached.network_name, &cached.container_id, &cached.if_name);
    let hash = AttachmentHash::of(network, id, ifname);
    let argument = |name| cached.cni_args.iter().find(|(key, _)| key == name);
    let pod = argument("K8S_POD_NAMESPACE").zip(argument("K8S_POD_NAME"));
    Ok(Some(Record {
        network: network.clone(),
        container_id: id.clone(),
        ifname: ifname.clone(),
        pod: pod.map(|((_, namespace), (_, name))| format!("{namespace}/{name}")),
        veth: hash.host_veth(),
        alias: format!("{HOST_VETH_ALIAS}{network}/{id}/{ifname}"),
        host_link: Some(veth.name.clone()),
        bridge: bridge.map(|bridge| bridge.name.clone()).unwrap_or_default(),
        addresses,
        masquerade,
        mappings,
        is_closed: false,
    }))
}
