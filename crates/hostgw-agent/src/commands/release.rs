//! `hostgw-agent release`: releases the node's lease to etcd.

use std::path::Path;

use kernel::Rtnl;
use tracing::debug;

use crate::agent::{AgentConfig, saved_state};
use crate::error::{Error, Result};
use crate::files;
use crate::node::Interfaces;
use crate::observe::is_running;
use crate::store::{self, StoreConfig, etcd};

/// Releases the lease, and deletes the subnet file and the saved state: no pod must get an address
/// of this subnet any more. Fails while the agent runs, which would acquire the lease again.
pub(crate) async fn release(config: AgentConfig, socket: &Path) -> Result<String> {
    let store_name = config.store.name();
    let StoreConfig::Etcd(store_config) = config.store else {
        let reason = "only a lease in etcd can be released (--etcd-endpoints): edit the cluster file, or delete the Node";
        return Err(Error::Usage(reason.to_owned()));
    };
    if is_running(socket).await {
        return Err(Error::StopAgentFirst {
            socket: socket.to_owned(),
            consequence: "acquire the lease again",
        });
    }
    let kernel = Rtnl::connect()?;
    let routes = kernel.routes()?;
    let interfaces = Interfaces::list(&kernel, &routes)?;
    // The saved state of another node must not release that node's lease.
    let mut saved = saved_state::read(&config.state_file, &store_name)?;
    if let Some(state) = &saved
        && !state.is_of_this_node(&kernel)?
    {
        saved = None;
    }
    let hints = saved.as_ref().map(|saved| saved.uplink_hints());
    let uplink = config
        .selection
        .uplink(&interfaces, hints.unwrap_or_default())?;
    let held = saved.and_then(|saved| saved.etcd_lease);
    let released = etcd::release(*store_config, held, uplink.public(None)).await;
    let lines = released.map_err(store::Error::from)?;
    for file in [&config.subnet_file, &config.state_file] {
        if let Err(error) = files::remove(file) {
            debug!("{}", Error::from(error).text());
        }
    }
    Ok(lines + "\n")
}
