//! STATUS: whether an ADD would find what it needs.

use cni::{Call, Code};
use kernel::{Kind, Rtnl};

use crate::bridge::obstacles;
use crate::config::{Config, Patience};
use crate::error::Error;
use crate::ipam::Ipam;
use crate::log::Steps;

/// Answers with code 50 and the reason while ADD could not succeed. A full range is no such
/// reason: runtimes would take the whole node out of service for it.
pub(crate) fn status(call: &Call, steps: &mut Steps) -> Result<(), Error> {
    look(call, steps).map_err(|error| {
        let cni::Error { msg, details, .. } = error.into_cni();
        cni::Error::new(Code::NOT_AVAILABLE, msg)
            .with_details(details)
            .into()
    })
}

fn look(call: &Call, steps: &mut Steps) -> Result<(), Error> {
    let config = Config::read(call, "", Patience::None)?;
    steps.done("config");
    let host = Rtnl::connect()?;
    config.store.is_usable()?;
    match &config.ipam {
        Ipam::HostLocal(pool) => {
            pool.check_gateways()?;
            pool.refuse_shared_subnet(&host, &config.store, &call.network)?;
        }
        Ipam::Delegate(delegate) => drop(delegate.run("STATUS")?),
        Ipam::None => {}
    }
    if let Some(masquerade) = &config.masquerade {
        masquerade.is_available(&config.ipam.gateways())?;
    }
    steps.done("ipam");
    let Some(bridge) = host.link(&config.bridge)? else {
        // The first ADD makes it.
        return Ok(());
    };
    if bridge.kind != Kind::Bridge {
        return Err(Error::NoBridge(config.bridge));
    }
    if config.is_gateway {
        let present = host.addresses(&bridge)?;
        let gateways = config.ipam.gateways();
        obstacles(&host, &config, &bridge, &gateways, &present, "")?;
    }
    Ok(())
}
