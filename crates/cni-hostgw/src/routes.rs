//! The container's routes: as configured, as the result tells them, as the kernel takes them.

use cni::RouteConf;
use ipnetwork::IpNetwork;
use kernel::{Link, Protocol, Route, RouteOptions};

use crate::ipam::Address;

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

/// The routes as the kernel takes them.
pub(crate) struct ForKernel {
    /// By their own gateway, or by that of their family.
    pub(crate) routes: Vec<(Route, RouteOptions)>,
    /// Of a family that the container has no address in: to the link, where the kernel takes that.
    pub(crate) optional: Vec<(Route, RouteOptions)>,
}

/// The routes as the kernel takes them.
pub(crate) fn for_kernel(link: &Link, addresses: &[Address], routes: &[RouteConf]) -> ForKernel {
    let mut all = ForKernel {
        routes: Vec::new(),
        optional: Vec::new(),
    };
    for route in routes {
        let to = masked(route.dst);
        let is_own = |address: &Address| {
            address.address.network() == to.ip() && address.address.prefix() == to.prefix()
        };
        // The kernel has a better way to the container's own subnet.
        if route.gw.is_none() && addresses.iter().any(is_own) {
            continue;
        }
        let of_family = |a: &&Address| a.address.is_ipv4() == to.is_ipv4();
        let address = addresses.iter().find(of_family);
        // A scope as narrow as the link's has no gateway.
        let is_on_link = route.scope.is_some_and(|scope| scope >= LINK_SCOPE);
        let gateway = address.and_then(|address| address.gateway);
        let via = route.gw.or(gateway.filter(|_| !is_on_link));
        let mut kernels = Route::new(to, via, link.index, Protocol::BOOT);
        if let Some(priority) = not_zero(route.priority) {
            kernels.metric = priority;
        }
        let options = RouteOptions {
            mtu: not_zero(route.mtu),
            advmss: not_zero(route.advmss),
            table: not_zero(route.table),
            scope: route.scope,
        };
        let list = match address {
            Some(_) => &mut all.routes,
            None => &mut all.optional,
        };
        // A default route may come from the configuration and from isDefaultGateway.
        if !list.contains(&(kernels.clone(), options)) {
            list.push((kernels, options));
        }
    }
    all
}

/// The kernel's `RT_SCOPE_LINK`.
const LINK_SCOPE: u8 = 253;

/// A destination without host bits, which the kernel drops in IPv6.
pub(crate) fn masked(dst: IpNetwork) -> IpNetwork {
    IpNetwork::new(dst.network(), dst.prefix()).expect("it has that prefix length already")
}

fn not_zero(value: Option<u32>) -> Option<u32> {
    value.filter(|value| *value != 0)
}
