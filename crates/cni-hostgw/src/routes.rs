//! The container's routes, as the configuration has them and as the kernel gets them.

use cni::Route as ResultRoute;
use ipnetwork::IpNetwork;
use kernel::{Link, Protocol, Route, RouteOptions};
use subnet::Subnet;

use crate::ipam::Address;

/// `routes`, and a default route by each gateway, unless its family has one with a gateway.
pub(crate) fn with_default_routes(
    routes: &[ResultRoute],
    gateways: &[IpNetwork],
) -> Vec<ResultRoute> {
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
            all.push(ResultRoute::new(dst, Some(gateway.ip())));
        }
    }
    all
}

/// Routes for the kernel.
pub(crate) struct KernelRoutes {
    /// Routes by their own gateway, or by that of their family.
    pub(crate) routes: Vec<(Route, RouteOptions)>,
    /// Routes of a family in which the container has no address, directly to the link. The kernel may
    /// refuse them.
    pub(crate) optional: Vec<(Route, RouteOptions)>,
}

/// Converts routes for the kernel.
pub(crate) fn to_kernel_routes(
    link: &Link,
    addresses: &[Address],
    routes: &[ResultRoute],
) -> KernelRoutes {
    let mut all = KernelRoutes {
        routes: Vec::new(),
        optional: Vec::new(),
    };
    for route in routes {
        // The kernel drops host bits in IPv6.
        let to = Subnet::of(route.dst).network();
        let is_own = |address: &Address| Subnet::of(address.address).network() == to;
        // The kernel has its own route to the container's subnet.
        if route.gw.is_none() && addresses.iter().any(is_own) {
            continue;
        }
        let match_family = |a: &&Address| a.address.is_ipv4() == to.is_ipv4();
        let address = addresses.iter().find(match_family);
        // A route with the scope of the link, or a narrower one, has no gateway.
        let is_on_link = route.scope.is_some_and(|scope| scope >= LINK_SCOPE);
        let gateway = address.and_then(|address| address.gateway);
        let via = route.gw.or(gateway.filter(|_| !is_on_link));
        let mut converted = Route::new(to, via, link.index, Protocol::BOOT);
        if let Some(priority) = non_zero(route.priority) {
            converted.metric = priority;
        }
        let options = RouteOptions {
            mtu: non_zero(route.mtu),
            advmss: non_zero(route.advmss),
            table: non_zero(route.table),
            scope: route.scope,
        };
        let list = match address {
            Some(_) => &mut all.routes,
            None => &mut all.optional,
        };
        // A default route may come both from the configuration and from isDefaultGateway.
        if !list.contains(&(converted.clone(), options)) {
            list.push((converted, options));
        }
    }
    all
}

/// The kernel's `RT_SCOPE_LINK`.
const LINK_SCOPE: u8 = 253;

fn non_zero(value: Option<u32>) -> Option<u32> {
    value.filter(|value| *value != 0)
}
