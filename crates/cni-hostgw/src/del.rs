//! DEL: takes an attachment away, as far as there is one.

use cni::{Attached, Call};
use host_local::Attachment;
use kernel::{Home, Kind, Link, Netns, Rtnl};

use crate::error::Error;
use crate::ipam::{Delegate, store_of};
use crate::log::Steps;
use crate::names::{Names, Owner, is_of};
use crate::{bridge, iptables, masquerade, scratch};

/// Deletes the veth pair, then gives the addresses back: in this order, so that nobody gets an
/// address that still has traffic. With the network's last attachment goes what the network had
/// on the node.
///
/// What is gone already is fine, and so are a namespace, a subnet file or a configuration that
/// are not what they were at ADD.
pub(crate) fn del(call: &Call, attached: &Attached, steps: &mut Steps) -> Result<(), Error> {
    let Call { network, .. } = call;
    let home = Home::current()?;
    let netns = open_netns(attached);
    if matches!(&netns, Ok(Some(netns)) if home.is(netns)) {
        return Err(Error::OwnNetns);
    }
    let names = Names::of(network, attached);
    let host = Rtnl::connect()?;
    steps.done("netns");
    // Only where the link is not one of ours does it matter what is in the namespace.
    if !host.delete_link(&names.veth)?
        && !delete_renamed(&host, &names)?
        && let Some(netns) = netns?
    {
        delete_foreign(&host, &home, &netns, attached.ifname.as_str())?;
    }
    steps.done("veth");
    let id = attached.container_id.as_str();
    let store = store_of(network, &call.config)?;
    let delegate = Delegate::for_leaving(call, &store)?;
    // Another IPAM plugin does not tell us whose address was the last, but the links do, while no
    // ADD makes one.
    let _lock = match delegate {
        Some(_) => bridge::lock_existing()?,
        None => None,
    };
    let released = store.release(&Attachment::new(id, attached.ifname.as_str()))?;
    steps.done("ipam");
    if released.is_foreign {
        // As far as it goes: neither ours nor asked for, and nothing that would fail the next pod.
        drop(iptables::remove_bridges(network, &[id]));
    }
    scratch::remove(call, id)?;
    if let Some(vacant) = released.vacant {
        let is_last = || -> Result<bool, Error> {
            Ok(!host.links()?.iter().any(|link| is_of(link, network)))
        };
        if delegate.is_none() || is_last()? {
            masquerade::leave(network, vacant)?;
        }
        steps.done("masquerade");
    }
    if let Some(delegate) = delegate {
        delegate.run("DEL")?;
        steps.done("delegate");
    }
    Ok(())
}

/// Deletes the attachment's host veth where somebody renamed it, and says whether there was one.
fn delete_renamed(host: &Rtnl, names: &Names) -> Result<bool, Error> {
    let links = host.links()?;
    match links.iter().find(|link| names.is_of(link)) {
        Some(link) => Ok(host.delete_link(&link.name)?),
        None => Ok(false),
    }
}

/// Opens the container's namespace; nothing where there is none. Any other failure does not say that
/// its links are gone.
fn open_netns(attached: &Attached) -> Result<Option<Netns>, Error> {
    let Some(path) = attached.netns.as_deref() else {
        return Ok(None);
    };
    match Netns::open(path) {
        Ok(netns) => Ok(Some(netns)),
        Err(error) if error.is_no_namespace() => Ok(None),
        Err(error) => Err(Error::Netns(error)),
    }
}

/// An attachment that the `bridge` plugin made has a host veth of any name, but its container
/// end is where the runtime says. What is there may also be of another attachment of ours, whose
/// namespace this one was to share.
fn delete_foreign(host: &Rtnl, home: &Home, netns: &Netns, ifname: &str) -> Result<(), Error> {
    let container = match Rtnl::connect_in(home, netns) {
        Ok(container) => container,
        // What is no network namespace after all has no links.
        Err(error) if error.is_no_namespace() => return Ok(()),
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
