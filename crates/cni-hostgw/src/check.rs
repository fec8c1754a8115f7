//! CHECK: whether an attachment is still what ADD made of it.

use cni::{AddResult, Attached, Interface, Json, Version};
use host_local::Attachment;
use kernel::{Kind, Rtnl};

use crate::add::open_netns;
use crate::config::Config;
use crate::error::Error;
use crate::names::Names;

/// Compares what `prevResult` promises with what is there, and names the first difference.
/// What later plugins changed is in `prevResult`, and what they added does not matter.
pub(crate) async fn check(
    attached: &Attached,
    config: &Config,
    json: &Json,
    version: Version,
) -> Result<(), Error> {
    let Some(previous) = AddResult::previous(json, version)? else {
        return Err(Error::Conflict("required prevResult missing"));
    };
    let netns = open_netns(attached)?;
    let host = Rtnl::connect()?;
    let container = Rtnl::connect_in(&netns)?;
    check_host(&host, attached, config, &previous).await?;
    check_container(&container, attached, &previous).await?;
    let id = attached.container_id.as_str();
    let held = config
        .store()?
        .held(&Attachment::new(id, attached.ifname.as_str()))?;
    for ip in ours(attached, &previous) {
        if !held.contains(&ip.address.ip()) {
            return different(format!(
                "address {} is not reserved for it",
                ip.address.ip()
            ));
        }
    }
    Ok(())
}

/// The bridge is there, and the host veth is a port of it.
async fn check_host(
    host: &Rtnl,
    attached: &Attached,
    config: &Config,
    previous: &AddResult,
) -> Result<(), Error> {
    let Some(bridge) = host.link(&config.bridge).await? else {
        return different(format!("bridge {} is gone", config.bridge));
    };
    if bridge.kind != Kind::Bridge {
        return different(format!("{} is not a bridge", config.bridge));
    }
    if !bridge.is_up {
        return different(format!("bridge {} is down", config.bridge));
    }
    let names = Names::of(&config.network, attached);
    // The bridge plugin gave its host veths names of its own; they stand in its result.
    let is_theirs = |i: &&Interface| i.sandbox.is_empty() && i.name != config.bridge;
    let mut candidates = vec![names.veth];
    candidates.extend(
        previous
            .interfaces
            .iter()
            .filter(is_theirs)
            .map(|i| i.name.clone()),
    );
    for name in &candidates {
        if let Some(link) = host.link(name).await?
            && link.kind == Kind::Veth
        {
            if link.bridge != Some(bridge.index) {
                return different(format!("host veth {name} is no port of {}", bridge.name));
            }
            if !link.is_up {
                return different(format!("host veth {name} is down"));
            }
            return Ok(());
        }
    }
    different(format!("host veth {} is gone", candidates[0]))
}

/// The container's interface is there and up, with its hardware address, addresses and routes.
async fn check_container(
    container: &Rtnl,
    attached: &Attached,
    previous: &AddResult,
) -> Result<(), Error> {
    let ifname = attached.ifname.as_str();
    let Some(link) = container.link(ifname).await? else {
        return different(format!("interface {ifname} is gone"));
    };
    if link.kind != Kind::Veth {
        return different(format!("interface {ifname} is not a veth"));
    }
    if !link.is_up {
        return different(format!("interface {ifname} is down"));
    }
    let promised = previous
        .interfaces
        .iter()
        .find(|i| i.name == ifname && !i.sandbox.is_empty());
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if let Some(promised) = promised
        && !promised.mac.is_empty()
        && !promised.mac.eq_ignore_ascii_case(&mac)
    {
        return different(format!(
            "interface {ifname} has hardware address {mac}, not {}",
            promised.mac
        ));
    }
    let addresses = container.addresses(&link).await?;
    for ip in ours(attached, previous) {
        if !addresses.contains(&ip.address) {
            return different(format!("interface {ifname} lacks address {}", ip.address));
        }
    }
    let routes = container.routes().await?;
    for route in &previous.routes {
        let is_there = |r: &&kernel::Route| {
            r.to == route.dst && r.is_unicast && (route.gw.is_none() || r.via == route.gw)
        };
        if !routes.iter().any(|r| is_there(&r)) {
            let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            return different(format!("route {}{via} is gone", route.dst));
        }
    }
    Ok(())
}

/// The addresses of the attachment's own interface.
fn ours<'a>(attached: &Attached, previous: &'a AddResult) -> impl Iterator<Item = &'a cni::Ip> {
    let ifname = attached.ifname.as_str().to_owned();
    previous.ips.iter().filter(move |ip| {
        let interface = ip.interface.and_then(|i| previous.interfaces.get(i));
        interface.is_none_or(|i| i.name == ifname && !i.sandbox.is_empty())
    })
}

fn different(what: String) -> Result<(), Error> {
    Err(Error::Different(what))
}
