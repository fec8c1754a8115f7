//! The container's routes: as configured, as the result tells them, as the kernel takes them.

use cni::RouteConf;
use ipnetwork::IpNetwork;
use kernel::{Link, Protocol, Route, RouteOptions};

use crate::error::Error;
use crate::ipam::Address;

/// Refuses a route that could never be added.
pub(crate) fn check<'a>(routes: impl Iterator<Item = &'a RouteConf>) -> Result<(), Error> {
    for route in routes {
        let dst = route.dst;
        let reason = if dst.ip() != dst.network() {
            "has host bits set"
        } else if route.gw.is_some_and(|gw| gw.is_ipv4() != dst.is_ipv4()) {
            "its gw is of the other family"
        } else {
            continue;
        };
        return Err(Error::Config {
            key: "ipam.routes",
            value: format!("dst {dst}"),
            source: reason.into(),
        });
    }
    Ok(())
}

/// `routes` and a default route for each family by its gateway, unless one with a gateway is
/// there.
pub(crate) fn with_default(routes: &[RouteConf], gateways: &[IpNetwork]) -> Vec<RouteConf> {
    let mut all = routes.to_vec();
    for gateway in gateways {
        let default = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        let dst: IpNetwork = default.parse().expect("a default route's destination");
        if !all
            .iter()
            .any(|route| route.dst == dst && route.gw.is_some())
        {
            all.push(RouteConf::new(dst, Some(gateway.ip())));
        }
    }
    all
}

/// The routes as the kernel takes them: by their own gateway, or by that of their family, or to
/// the link where that has none.
pub(crate) fn for_kernel(
    link: &Link,
    addresses: &[Address],
    routes: &[RouteConf],
) -> Result<Vec<(Route, RouteOptions)>, Error> {
    let mut all: Vec<(Route, RouteOptions)> = Vec::new();
    for route in routes {
        let is_own = |address: &Address| {
            address.address.network() == route.dst.ip()
                && address.address.prefix() == route.dst.prefix()
        };
        // The kernel has a better way to the container's own subnet.
        if route.gw.is_none() && addresses.iter().any(is_own) {
            continue;
        }
        let of_family = |a: &&Address| a.address.is_ipv4() == route.dst.is_ipv4();
        let Some(address) = addresses.iter().find(of_family) else {
            return Err(Error::Config {
                key: "ipam.routes",
                value: format!("dst {}", route.dst),
                source: "the container has no address of its family".into(),
            });
        };
        let via = route.gw.or(address.gateway);
        let mut kernels = Route::new(route.dst, via, link.index, Protocol::BOOT);
        if let Some(priority) = not_zero(route.priority) {
            kernels.metric = priority;
        }
        let options = RouteOptions {
            mtu: not_zero(route.mtu),
            advmss: not_zero(route.advmss),
            table: not_zero(route.table),
            scope: route.scope,
        };
        // A default route may come from the configuration and from isDefaultGateway.
        if !all.contains(&(kernels.clone(), options)) {
            all.push((kernels, options));
        }
    }
    Ok(all)
}

fn not_zero(value: Option<u32>) -> Option<u32> {
    value.filter(|value| *value != 0)
}
