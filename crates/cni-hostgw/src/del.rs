//! DEL: takes an attachment away, as far as there is one.

use cni::{Attached, Json, NetworkName};
use host_local::Attachment;
use kernel::{Kind, Link, Netns, Rtnl};

use crate::config::store_of;
use crate::error::Error;
use crate::names::{ALIAS, Names};

/// Deletes the veth pair, then gives the addresses back: in this order, so that nobody gets an
/// address that still has traffic.
///
/// What is gone already is fine, and so are a namespace, a subnet file or a configuration that
/// are not what they were at ADD.
pub(crate) async fn del(
    attached: &Attached,
    network: &NetworkName,
    json: &Json,
) -> Result<(), Error> {
    // A namespace that cannot be opened is gone, and its links with it.
    let netns = attached
        .netns
        .as_deref()
        .and_then(|path| Netns::open(path).ok());
    if let Some(netns) = &netns
        && netns.is(&Netns::current()?)
    {
        return Err(Error::OwnNetns);
    }
    let names = Names::of(network, attached);
    let host = Rtnl::connect()?;
    if !host.delete_link(&names.veth).await?
        && let Some(netns) = netns
    {
        delete_foreign(&host, &netns, attached.ifname.as_str()).await?;
    }
    let id = attached.container_id.as_str();
    store_of(network, json)?.release(&Attachment::new(id, attached.ifname.as_str()))?;
    Ok(())
}

/// An attachment that the `bridge` plugin made has a host veth of any name, but its container
/// end is where the runtime says. What is there may also be of another attachment of ours, whose
/// namespace this one was to share.
async fn delete_foreign(host: &Rtnl, netns: &Netns, ifname: &str) -> Result<(), Error> {
    // What is no network namespace after all has no links.
    let Ok(container) = Rtnl::connect_in(netns) else {
        return Ok(());
    };
    let Some(Link {
        kind: Kind::Veth,
        peer: Some(peer),
        ..
    }) = container.link(ifname).await?
    else {
        return Ok(());
    };
    let links = host.links().await?;
    let is_ours = |link: &Link| {
        link.index == peer
            && link
                .alias
                .as_deref()
                .is_some_and(|alias| alias.starts_with(ALIAS))
    };
    if !links.iter().any(is_ours) {
        container.delete_link(ifname).await?;
    }
    Ok(())
}
