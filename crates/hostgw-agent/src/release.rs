//! `hostgw-agent release`: gives the node's lease back.

use std::fs;
use std::path::Path;

use kernel::Rtnl;
use tracing::debug;

use crate::agent::Settings;
use crate::cache;
use crate::error::chain;
use crate::store::{self, etcd};
use crate::uplink::Interfaces;

/// Gives the lease back, and forgets it: no pod is to get an address of it any more. Fails while
/// the agent runs, which would take it again.
pub(crate) async fn release(settings: Settings, socket: &Path) -> Result<String, String> {
    let name = settings.store.name();
    let store::Settings::Etcd(options) = settings.store else {
        return Err(
            "only etcd has leases to give back (--etcd-endpoints): a cluster file is edited, and a Node deleted".to_owned(),
        );
    };
    if crate::status::is_running(socket).await {
        let socket = socket.display();
        return Err(format!(
            "an agent runs here (it answers at {socket}), and would take the lease again; stop it first"
        ));
    }
    let kernel = Rtnl::connect().map_err(|error| chain(&error))?;
    let routes = kernel.routes().map_err(|error| chain(&error))?;
    let interfaces = Interfaces::list(&kernel, &routes).map_err(|error| chain(&error))?;
    // What is not this node's memory gives nothing back, and neither does one that cannot be read.
    let mut kept = cache::read(&settings.state_file, &name)?;
    if let Some(memory) = &kept
        && !memory.is_here(&kernel).map_err(|error| chain(&error))?
    {
        kept = None;
    }
    let known = kept.as_ref().map(|kept| kept.knowledge());
    let uplink = settings
        .selection
        .uplink(&interfaces, known.unwrap_or_default())
        .map_err(|error| chain(&error))?;
    let held = kept.and_then(|kept| kept.held);
    let said = etcd::release(*options, held, uplink.public(None)).await?;
    for file in [&settings.subnet_file, &settings.state_file] {
        if let Err(error) = fs::remove_file(file) {
            debug!("remove {}: {error}", file.display());
        }
    }
    Ok(said + "\n")
}
