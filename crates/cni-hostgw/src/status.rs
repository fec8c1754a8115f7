//! STATUS: whether an ADD would find what it needs.

use cni::{Code, Json, NetworkName, Version};
use host_local::RangeSet;
use kernel::{Kind, Rtnl};

use crate::add::conflicts;
use crate::config::Config;
use crate::error::Error;

/// Answers with code 50 and the reason while ADD could not succeed. A full range is no such
/// reason: runtimes would take the whole node out of service for it.
pub(crate) async fn status(
    network: NetworkName,
    json: &Json,
    version: Version,
) -> Result<(), Error> {
    let unavailable = |error: Error| {
        let cni::Error { msg, details, .. } = error.into_cni();
        Error::from(cni::Error::new(Code::NOT_AVAILABLE, msg).with_details(details))
    };
    let config = Config::read(network, json, version, "").map_err(unavailable)?;
    let host = Rtnl::connect()?;
    let Some(bridge) = host.link(&config.bridge).await? else {
        // The first ADD makes it.
        return Ok(());
    };
    if bridge.kind != Kind::Bridge {
        let msg = format!("{} already exists but is not a bridge", config.bridge);
        return Err(cni::Error::new(Code::NOT_AVAILABLE, msg).into());
    }
    if config.is_gateway && !config.force_address {
        let ranges = config.ranges.iter().flat_map(RangeSet::ranges);
        let gateways: Vec<_> = ranges
            .map(|range| range.with_prefix(range.gateway()))
            .collect();
        let present = host.addresses(&bridge).await?;
        if let Some((gateway, foreign)) = conflicts(&gateways, &present).first() {
            return Err(unavailable(Error::BridgeAddress(
                bridge.name,
                *gateway,
                *foreign,
            )));
        }
    }
    Ok(())
}
