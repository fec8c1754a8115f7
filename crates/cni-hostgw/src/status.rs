//! STATUS: checks whether an ADD could succeed.

use cni::{Call, Code};
use kernel::{Kind, Rtnl};

use crate::bridge::conflicting_addresses;
use crate::config::{Config, NoSubnetFile};
use crate::error::Error;
use crate::ipam::Ipam;
use crate::log::StepTimer;

/// Fails with code 50 and the reason if no ADD could succeed. An exhausted range is no such reason:
/// runtimes would mark the whole node as not ready.
pub(crate) fn status(call: &Call, steps: &mut StepTimer) -> Result<(), Error> {
    find_problem(call, steps).map_err(|error| {
        let cni::Error { msg, details, .. } = error.into_cni();
        cni::Error::new(Code::NOT_AVAILABLE, msg)
            .with_details(details)
            .into()
    })
}

fn find_problem(call: &Call, steps: &mut StepTimer) -> Result<(), Error> {
    let config = Config::read(call, "", NoSubnetFile::Fail)?;
    steps.done("config");
    let host = Rtnl::connect()?;
    config.store.check_writable()?;
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
    config.port_mappings.is_available(call)?;
    steps.done("ipam");
    let Some(bridge) = host.link(&config.bridge)? else {
        // The first ADD creates it.
        return Ok(());
    };
    if bridge.kind != Kind::Bridge {
        return Err(Error::NotABridge(config.bridge));
    }
    if config.is_gateway {
        let present = host.addresses(&bridge)?;
        let gateways = config.ipam.gateways();
        conflicting_addresses(&host, &config, &bridge, &gateways, &present, "")?;
    }
    Ok(())
}
