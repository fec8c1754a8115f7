//! DEL: removes an attachment, as far as it exists.

use cni::{Call, Parameters};
use kernel::{HostNetns, Kind, Link, Netns, Rtnl};
use netconf::LenientConf;

use crate::bridge_lock;
use crate::error::Error;
use crate::ipam::{Delegate, store_from_config};
use crate::log::StepTimer;
use crate::names::{Names, Owner, attachment, belongs_to};
use crate::{bandwidth, masquerade, port_mappings, scratch};

/// Removes the host ports, deletes the veth pair and then releases the addresses: in this order, so
/// that no other container gets an address that still has traffic. With the last attachment of the network, its rules are
/// removed.
///
/// It is normal that something does not exist any more, and that the namespace, the subnet file or the
/// configuration are not as they were at ADD.
pub(crate) fn del(
    call: &Call,
    parameters: &Parameters,
    steps: &mut StepTimer,
) -> Result<(), Error> {
    let Call { network, .. } = call;
    let conf = LenientConf::from_json(&call.config);
    let attachment = attachment(parameters);
    let host_netns = HostNetns::current()?;
    let netns = open_netns(parameters);
    if matches!(&netns, Ok(Some(netns)) if host_netns.is(netns)) {
        return Err(Error::OwnNetns);
    }
    let names = Names::of(network, &attachment);
    let host = Rtnl::connect()?;
    steps.done("netns");
    // No port must lead to an address that is free.
    let ports = port_mappings::remove(&host, call, &conf, &attachment, &names)?;
    steps.done("host ports");
    // The namespace matters only if the link is not one of ours.
    let is_deleted = match host.link(&names.ifb)? {
        None => host.delete_link(&names.veth)?,
        Some(ifb) => bandwidth::delete_both(&host, &names, ifb)?,
    };
    if conf.limits_bandwidth {
        host.delete_link(&bandwidth::reference_ifb(
            network,
            attachment.container_id(),
        ))?;
    }
    if !is_deleted
        && !delete_renamed(&host, &names)?
        && let Some(netns) = netns?
    {
        delete_container_interface(&host, &host_netns, &netns, attachment.ifname())?;
    }
    steps.done("veth");
    ports.finish()?;
    steps.done("flows");
    let store = store_from_config(network, &conf)?;
    let delegate = Delegate::with_known_subnets(call, &conf, &store)?;
    // With another IPAM plugin, only the links show which attachment was the last, if no ADD is under
    // way.
    let _lock = match delegate {
        Some(_) => bridge_lock::lock_existing()?,
        None => None,
    };
    let released = store.release(&attachment)?;
    steps.done("ipam");
    let container_id = attachment.container_id();
    if released.is_foreign {
        // Best effort: these rules are not ours, and would not affect the next pod.
        drop(masquerade::remove_bridge_plugin_chains(
            network,
            &[container_id],
        ));
    }
    scratch::remove(call, &conf, container_id)?;
    if let Some(empty) = released.empty_network {
        let has_links = || -> Result<bool, Error> {
            let links = host.links()?;
            Ok(links.iter().any(|link| belongs_to(link, network)))
        };
        if delegate.is_none() || !has_links()? {
            masquerade::remove(network, empty)?;
        }
        steps.done("masquerade");
    }
    if let Some(delegate) = delegate {
        delegate.run("DEL")?;
        steps.done("delegate");
    }
    Ok(())
}

/// Deletes the attachment's host veth if someone renamed it. Returns whether there was one.
fn delete_renamed(host: &Rtnl, names: &Names) -> Result<bool, Error> {
    let links = host.links()?;
    match links.iter().find(|link| names.is_of(link)) {
        Some(link) => Ok(host.delete_link(&link.name)?),
        None => Ok(false),
    }
}

/// Opens the container's namespace. `None` if it does not exist. Any other failure does not mean that
/// its links are gone.
fn open_netns(parameters: &Parameters) -> Result<Option<Netns>, Error> {
    let Some(path) = parameters.netns.as_deref() else {
        return Ok(None);
    };
    match Netns::open(path) {
        Ok(netns) => Ok(Some(netns)),
        Err(error) if error.is_namespace_missing() => Ok(None),
        Err(error) => Err(Error::Netns(error)),
    }
}

/// Deletes an attachment of the `bridge` plugin. Its host veth may have any name, but its container end
/// is where the runtime says. That interface may also belong to another attachment of ours, if two
/// attachments were meant to share a namespace; then it is left alone.
fn delete_container_interface(
    host: &Rtnl,
    host_netns: &HostNetns,
    netns: &Netns,
    ifname: &str,
) -> Result<(), Error> {
    let container = match Rtnl::connect_in(host_netns, netns) {
        Ok(container) => container,
        // The file is no network namespace, so it has no links.
        Err(error) if error.is_namespace_missing() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let Some(Link {
        kind: Kind::Veth,
        peer: Some(peer),
        ..
    }) = container.link(ifname)?
    else {
        return Ok(());
    };
    let links = host.links()?;
    let is_ours = |link: &Link| link.index == peer && Owner::of(link).is_some();
    if !links.iter().any(is_ours) {
        container.delete_link(ifname)?;
    }
    Ok(())
}
