//! ADD: makes an attachment, all of it or nothing.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cni::{AddResult, Attached, Interface, Ip, RouteConf};
use host_local::{Attachment, Range, Reservation, Store, StoreError};
use ipnetwork::IpNetwork;
use kernel::{Bridge, Link, Mac, Netns, Protocol, Route, Rtnl, Veth, nftables, sysctl};

use crate::config::Config;
use crate::error::Error;
use crate::names::Names;

/// An ADD in flight has no veth yet; one that takes longer than this is none.
const IN_FLIGHT: Duration = Duration::from_secs(60);

/// Makes the attachment and says what it made.
pub(crate) async fn add(attached: &Attached, config: &Config) -> Result<AddResult, Error> {
    let netns = open_netns(attached)?;
    let host = Rtnl::connect()?;
    let container = Rtnl::connect_in(&netns)?;
    refuse_taken(&container, attached).await?;
    let store = config.store()?;
    let reservation = reserve(&host, &store, attached, config).await?;
    let names = Names::of(&config.network, attached);
    let addresses = reservation.addresses();
    let bridge = ensure_bridge(&host, addresses, config).await?;
    masquerade(addresses, config)?;
    let ips: Vec<_> = addresses.iter().map(|(address, _)| *address).collect();
    let veth = Veth {
        host: &names.veth,
        host_mac: names.mac,
        container: attached.ifname.as_str(),
        container_mac: config.mac.unwrap_or_else(|| Mac::of(addresses[0].0)),
        netns: &netns,
        mtu: config.mtu,
        bridge: &bridge,
        hairpin: config.hairpin,
        isolated: config.isolated,
        alias: &names.alias,
        addresses: &ips,
    };
    host.add_veth(&veth).await.map_err(|error| {
        // The container's name is free, so it is the host's: the attachment lives elsewhere.
        if error.is_exists() {
            Error::Live(names.veth.clone())
        } else {
            error.into()
        }
    })?;
    let routes = with_default_routes(addresses, config);
    match furnish(&container, &veth, addresses, &routes).await {
        Ok(link) => {
            let result = result(attached, config, &veth, &link, addresses, routes);
            reservation.keep();
            Ok(result)
        }
        Err(error) => {
            if host.delete_link(veth.host).await.is_err() {
                // While the link carries the address, nobody else must get it.
                reservation.keep();
            }
            Err(error)
        }
    }
}

/// Opens the container's namespace. Ours is refused before anything is changed: a recycled
/// process id may have made the runtime name it.
pub(crate) fn open_netns(attached: &Attached) -> Result<Netns, Error> {
    let path = attached.netns.as_deref().unwrap_or(Path::new(""));
    let netns = Netns::open(path).map_err(Error::Netns)?;
    if netns.is(&Netns::current()?) {
        return Err(Error::OwnNetns);
    }
    Ok(netns)
}

/// SPEC: ADD must fail when the interface exists. Asked first, so that the one that exists,
/// most likely ours, is left alone.
async fn refuse_taken(container: &Rtnl, attached: &Attached) -> Result<(), Error> {
    let ifname = attached.ifname.as_str();
    match container.link(ifname).await? {
        Some(_) => Err(Error::NameTaken(ifname.to_owned())),
        None => Ok(()),
    }
}

/// Reserves one address of each range set. Before a range counts as exhausted, reservations
/// whose veth is gone are given back: nobody sent their DEL.
async fn reserve<'a>(
    host: &Rtnl,
    store: &'a Store,
    attached: &Attached,
    config: &Config,
) -> Result<Reservation<'a>, Error> {
    let attachment = Attachment::new(attached.container_id.as_str(), attached.ifname.as_str());
    let reserve = || store.reserve(&attachment, &config.ranges, &config.requested);
    let exhausted = match reserve() {
        Err(error @ StoreError::Exhausted { .. }) => error,
        other => return Ok(other?),
    };
    let links = host.links().await?;
    let is_gone = |attachment: &Attachment| {
        let veth = Names::of_reserved(&config.network, attachment).veth;
        links.iter().all(|link| link.name != veth)
    };
    if store.reclaim(IN_FLIGHT, is_gone)? == 0 {
        return Err(exhausted.into());
    }
    Ok(reserve()?)
}

/// The bridge, up, with the gateways' addresses, and a node that forwards.
async fn ensure_bridge(
    host: &Rtnl,
    addresses: &[(IpAddr, Range)],
    config: &Config,
) -> Result<Link, Error> {
    let gateways: Vec<_> = addresses
        .iter()
        .map(|(_, range)| range.with_prefix(range.gateway()))
        .collect();
    let mac = Mac::of(gateways[0].ip());
    let bridge = Bridge {
        name: &config.bridge,
        mac,
        mtu: config.mtu,
    };
    let bridge = host.ensure_bridge(bridge).await?;
    if !config.is_gateway {
        return Ok(bridge);
    }
    let present = host.addresses(&bridge).await?;
    if gateways.iter().any(|gateway| !present.contains(gateway)) {
        // The bridge routes, it is not routed to.
        sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", bridge.name), "0").ok();
        for (gateway, foreign) in conflicts(&gateways, &present) {
            if !config.force_address {
                return Err(Error::BridgeAddress(bridge.name, gateway, foreign));
            }
            host.delete_address(&bridge, foreign).await?;
        }
        for gateway in gateways.iter().filter(|gateway| !present.contains(gateway)) {
            if gateway.is_ipv6() {
                enable_ipv6(&bridge.name)?;
            }
            host.ensure_address(&bridge, *gateway).await?;
        }
    }
    if gateways.iter().any(IpNetwork::is_ipv4) {
        sysctl::set("net/ipv4/ip_forward", "1")?;
    }
    if gateways.iter().any(IpNetwork::is_ipv6) {
        sysctl::set("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(bridge)
}

/// Rules for the whole of each subnet, so that the next pod finds them there. What stays in
/// the cluster's network, or in the subnet where no more is known, keeps its source address.
fn masquerade(addresses: &[(IpAddr, Range)], config: &Config) -> Result<(), Error> {
    if !config.masquerade {
        return Ok(());
    }
    let table = format!("cni-hostgw-{}", config.network);
    for (_, range) in addresses {
        let subnet = range.subnet();
        let around = |network: &&IpNetwork| {
            network.is_ipv4() == subnet.is_ipv4() && network.contains(subnet.ip())
        };
        let mut except = config.networks.clone();
        if config.networks.iter().find(around).is_none() {
            except.push(subnet);
        }
        nftables::ensure_masquerade(&table, subnet, &except)?;
    }
    Ok(())
}

/// The addresses on the bridge that stand in the way of a gateway's; none once all are there.
pub(crate) fn conflicts(
    gateways: &[IpNetwork],
    present: &[IpNetwork],
) -> Vec<(IpNetwork, IpNetwork)> {
    if gateways.iter().all(|gateway| present.contains(gateway)) {
        return Vec::new();
    }
    let foreign = present.iter().filter(|address| !gateways.contains(address));
    let with_gateway = |foreign: &IpNetwork| {
        let gateway = gateways
            .iter()
            .find(|gateway| conflict(**gateway, *foreign))?;
        Some((*gateway, *foreign))
    };
    foreign.filter_map(with_gateway).collect()
}

/// Another IPv4 address on the bridge is of an earlier subnet; IPv6 interfaces have several
/// addresses, as long as they are of different networks.
fn conflict(gateway: IpNetwork, foreign: IpNetwork) -> bool {
    gateway.is_ipv4() == foreign.is_ipv4()
        && (gateway.is_ipv4() || gateway.contains(foreign.ip()) || foreign.contains(gateway.ip()))
}

/// Gives the container its addresses and routes.
async fn furnish(
    container: &Rtnl,
    veth: &Veth<'_>,
    addresses: &[(IpAddr, Range)],
    routes: &[RouteConf],
) -> Result<Link, Error> {
    veth.netns.enter(|| announce(veth.container, addresses))??;
    let link = container.link(veth.container).await?.ok_or_else(|| {
        Error::Different(format!("{} vanished while it was set up", veth.container))
    })?;
    let with_prefix: Vec<_> = addresses
        .iter()
        .map(|(address, range)| range.with_prefix(*address))
        .collect();
    let routes = kernel_routes(&link, addresses, routes)?;
    container.bring_up(&link, &with_prefix, &routes).await?;
    Ok(link)
}

/// Has the kernel tell the neighbours when the interface goes up: whoever had the address
/// before may have had another hardware address.
fn announce(ifname: &str, addresses: &[(IpAddr, Range)]) -> Result<(), Error> {
    if addresses.iter().any(|(address, _)| address.is_ipv4()) {
        sysctl::write(&format!("net/ipv4/conf/{ifname}/arp_notify"), "1")?;
    }
    if addresses.iter().any(|(address, _)| address.is_ipv6()) {
        enable_ipv6(ifname)?;
        for (name, value) in [
            ("accept_dad", "0"),
            ("keep_addr_on_down", "1"),
            ("ndisc_notify", "1"),
        ] {
            sysctl::write(&format!("net/ipv6/conf/{ifname}/{name}"), value)?;
        }
    }
    Ok(())
}

/// Some runtimes turn IPv6 off in a namespace before they ask for an address of it.
fn enable_ipv6(ifname: &str) -> Result<(), Error> {
    Ok(sysctl::set(
        &format!("net/ipv6/conf/{ifname}/disable_ipv6"),
        "0",
    )?)
}

/// The configured routes, and a default route for each family by its gateway, unless one with
/// a gateway is configured.
fn with_default_routes(addresses: &[(IpAddr, Range)], config: &Config) -> Vec<RouteConf> {
    let mut routes = config.routes.clone();
    if !config.is_default_gateway {
        return routes;
    }
    for (_, range) in addresses {
        let gateway = range.gateway();
        let default = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        let dst: IpNetwork = default.parse().expect("a default route's destination");
        if !routes
            .iter()
            .any(|route| route.dst == dst && route.gw.is_some())
        {
            let gw = Some(gateway);
            let (mtu, advmss, priority, table, scope) = Default::default();
            routes.push(RouteConf {
                dst,
                gw,
                mtu,
                advmss,
                priority,
                table,
                scope,
            });
        }
    }
    routes
}

/// The routes as the kernel takes them: by their own gateway, or by that of their family.
fn kernel_routes(
    link: &Link,
    addresses: &[(IpAddr, Range)],
    routes: &[RouteConf],
) -> Result<Vec<Route>, Error> {
    let mut all: Vec<Route> = Vec::new();
    for route in routes {
        // The kernel has a better way to the container's own subnet.
        if route.gw.is_none()
            && addresses
                .iter()
                .any(|(_, range)| range.subnet() == route.dst)
        {
            continue;
        }
        let of_family = |range: &Range| range.gateway().is_ipv4() == route.dst.is_ipv4();
        let gateway = addresses
            .iter()
            .map(|(_, range)| range)
            .find(|range| of_family(range));
        let via = route.gw.or_else(|| gateway.map(Range::gateway));
        let Some(via) = via else {
            let value = format!("dst {}", route.dst);
            let source = "the container has no address of its family".into();
            return Err(Error::Config {
                key: "ipam.routes",
                value,
                source,
            });
        };
        let route = Route::new(route.dst, Some(via), link.index, Protocol::BOOT);
        // A default route may come from the configuration and from isDefaultGateway.
        if !all.contains(&route) {
            all.push(route);
        }
    }
    Ok(all)
}

fn result(
    attached: &Attached,
    config: &Config,
    veth: &Veth<'_>,
    link: &Link,
    addresses: &[(IpAddr, Range)],
    routes: Vec<RouteConf>,
) -> AddResult {
    let interface = |name: &str, mac: Option<Mac>, mtu: u32, sandbox: Option<&Path>| Interface {
        name: name.to_owned(),
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(mtu),
        sandbox: sandbox
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
    };
    let bridge = veth.bridge;
    let ip = |(address, range): &(IpAddr, Range)| Ip {
        interface: Some(2),
        address: range.with_prefix(*address),
        gateway: Some(range.gateway()),
    };
    AddResult {
        interfaces: vec![
            interface(&bridge.name, bridge.mac, bridge.mtu, None),
            interface(veth.host, Some(veth.host_mac), link.mtu, None),
            interface(&link.name, link.mac, link.mtu, attached.netns.as_deref()),
        ],
        ips: addresses.iter().map(ip).collect(),
        routes,
        dns: config.dns.clone(),
    }
}
