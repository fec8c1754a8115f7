//! DEL: takes an attachment away, as far as there is one.

use cni::{Attached, Json, NetworkName};
use host_local::Attachment;
use kernel::{Kind, Netns, Rtnl};

use crate::config::store_of;
use crate::error::Error;
use crate::names::Names;

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
    let deleted = Rtnl::connect()?.delete_link(&names.veth).await?;
    if let Some(netns) = netns.filter(|_| !deleted) {
        delete_foreign(&netns, attached.ifname.as_str()).await?;
    }
    let id = attached.container_id.as_str();
    store_of(network, json)?.release(&Attachment::new(id, attached.ifname.as_str()))?;
    Ok(())
}

/// An attachment that the `bridge` plugin made has a host veth of any name, but its container
/// end is where the runtime says.
async fn delete_foreign(netns: &Netns, ifname: &str) -> Result<(), Error> {
    let container = Rtnl::connect_in(netns)?;
    match container.link(ifname).await? {
        Some(link) if link.kind == Kind::Veth => {
            container.delete_link(ifname).await?;
            Ok(())
        }
        _ => Ok(()),
    }
}
