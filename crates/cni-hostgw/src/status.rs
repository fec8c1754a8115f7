//! STATUS: whether an ADD would find what it needs.

use cni::{Code, Json, NetworkName, Version};
use kernel::{Kind, Rtnl};

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
    let bridge = Rtnl::connect()?.link(&config.bridge).await?;
    match bridge {
        Some(link) if link.kind != Kind::Bridge => {
            let msg = format!("{} already exists but is not a bridge", config.bridge);
            Err(cni::Error::new(Code::NOT_AVAILABLE, msg).into())
        }
        _ => Ok(()),
    }
}
