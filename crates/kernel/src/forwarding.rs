//! Forwarding of packets, and router advertisements, which depend on it.

use crate::{Error, Link, Protocol, Route, RouteChange, Rtnl, sysctl};

impl Rtnl {
    /// Enables IPv6 forwarding. The kernel then deletes the default routes learned from router
    /// advertisements, and ignores further advertisements unless an interface has `accept_ra` 2. So
    /// `accept_ra` is first raised from 1 to 2 on each link that has such a route and for which
    /// `is_uplink` returns true; `is_uplink` gets the link and all links. Changes nothing if
    /// forwarding is already enabled.
    pub fn enable_ipv6_forwarding(
        &self,
        is_uplink: impl Fn(&Link, &[Link]) -> bool,
    ) -> Result<(), Error> {
        const FORWARDING: &str = "net/ipv6/conf/all/forwarding";
        if sysctl::get(FORWARDING)? == "1" {
            return Ok(());
        }
        let routes = self.routes()?;
        let by_routers = routes
            .iter()
            .filter(|route| route.protocol == Protocol::ROUTER && route.to.prefix() == 0);
        let devices: Vec<_> = by_routers.map(|route| route.dev).collect();
        if !devices.is_empty() {
            let links = self.links()?;
            let has_route = |link: &&Link| devices.contains(&link.index);
            for link in links
                .iter()
                .filter(has_route)
                .filter(|link| is_uplink(link, &links))
            {
                let accept_ra = format!("net/ipv6/conf/{}/accept_ra", link.name);
                if sysctl::get(&accept_ra)? == "1" {
                    sysctl::set(&accept_ra, "2")?;
                }
            }
        }
        sysctl::set(FORWARDING, "1")
    }

    /// True if `link` accepts router advertisements (`accept_ra` is not 0).
    pub fn accepts_ra(&self, link: &Link) -> Result<bool, Error> {
        match sysctl::get(&format!("net/ipv6/conf/{}/accept_ra", link.name)) {
            // A kernel without IPv6.
            Err(error) if error.is_gone() => Ok(false),
            other => Ok(other? != "0"),
        }
    }

    /// Makes `link` ignore router advertisements from now on.
    pub fn disable_ra(&self, link: &Link) -> Result<(), Error> {
        sysctl::write(&format!("net/ipv6/conf/{}/accept_ra", link.name), "0")
    }

    /// Deletes the routes and addresses that `link` got from router advertisements before it
    /// ignored them.
    pub fn delete_ra_state(&self, link: &Link) -> Result<(), Error> {
        let by_router =
            |route: &Route| route.dev == link.index && route.protocol == Protocol::ROUTER;
        let routes: Vec<_> = self.routes()?.into_iter().filter(by_router).collect();
        let changes: Vec<_> = routes.into_iter().map(RouteChange::Delete).collect();
        for outcome in self.change_routes(&changes)? {
            outcome?;
        }
        for address in self.addresses_with_lifetime(link)? {
            self.delete_address(link, address)?;
        }
        Ok(())
    }
}
