//! The bridge as the configuration wants it: its address, its MTU, its ports.

use std::net::IpAddr;

use cni::NetworkName;
use ipnetwork::IpNetwork;
use kernel::{Bridge, Link, Mac, Port, Rtnl, sysctl};

use crate::config::Config;
use crate::error::Error;
use crate::names::{Owner, is_of};

/// The bridge, up, with the gateways' addresses, its ports as the configuration wants them, and
/// a node that forwards.
pub(crate) fn ensure(
    host: &Rtnl,
    network: &NetworkName,
    config: &Config,
    gateways: &[IpNetwork],
) -> Result<Link, Error> {
    // By the gateway's address, so that it is the same when the bridge is made again. What is
    // no gateway may be bridged with other nodes, where nothing but chance makes it unique.
    let mac = match gateways.first() {
        Some(gateway) => Mac::of(gateway.ip()),
        None => Mac::local(0x5a, rand::random()),
    };
    let bridge = host.ensure_bridge(Bridge {
        name: &config.bridge,
        mac: Some(mac),
        mtu: config.mtu,
        promiscuous: config.promiscuous,
    })?;
    ensure_ports(host, network, config, &bridge)?;
    if config.is_gateway && !gateways.is_empty() {
        ensure_addresses(host, config, &bridge, gateways)?;
    }
    Ok(bridge)
}

fn ensure_addresses(
    host: &Rtnl,
    config: &Config,
    bridge: &Link,
    gateways: &[IpNetwork],
) -> Result<(), Error> {
    let present = host.addresses(bridge)?;
    if gateways.iter().any(|gateway| !present.contains(gateway)) {
        add_gateways(host, config, bridge, gateways)?;
    }
    if gateways.iter().any(IpNetwork::is_ipv4) {
        sysctl::set("net/ipv4/ip_forward", "1")?;
    }
    if gateways.iter().any(IpNetwork::is_ipv6) {
        host.forward_ipv6()?;
    }
    Ok(())
}

/// Gives the bridge the gateways' addresses, in the place of those that stand in the way. One
/// process at a time: the pod of another is no reason for that.
fn add_gateways(
    host: &Rtnl,
    config: &Config,
    bridge: &Link,
    gateways: &[IpNetwork],
) -> Result<(), Error> {
    let _exclusive = config.store.exclusive()?;
    let present = host.addresses(bridge)?;
    for address in obstacles(host, config, bridge, gateways, &present)? {
        host.delete_address(bridge, address)?;
    }
    // The bridge routes, it is not routed to.
    sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", bridge.name), "0").ok();
    // Whoever made it may have given it no hardware address of its own.
    host.pin_mac(bridge)?;
    for gateway in gateways {
        if gateway.is_ipv6() {
            enable_ipv6(&bridge.name)?;
        }
        host.ensure_address(bridge, *gateway)?;
    }
    Ok(())
}

/// The addresses on the bridge that make way for the gateways'. None, once all those are there.
///
/// Errors when pods use such an address, unless `forceAddress` says that they do not matter.
pub(crate) fn obstacles(
    host: &Rtnl,
    config: &Config,
    bridge: &Link,
    gateways: &[IpNetwork],
    present: &[IpNetwork],
) -> Result<Vec<IpNetwork>, Error> {
    if gateways.iter().all(|gateway| present.contains(gateway)) {
        return Ok(Vec::new());
    }
    // A range set may be of several subnets, each with a gateway of its own.
    let all = config.ipam.gateways();
    let is_gateway = |address: &IpNetwork| gateways.contains(address) || all.contains(address);
    let against = |address: &IpNetwork| gateways.iter().find(|g| conflict(**g, *address));
    let foreign = present.iter().filter(|address| !is_gateway(address));
    let found: Vec<_> = foreign
        .filter_map(|address| Some((*against(address)?, *address)))
        .collect();
    if let Some((gateway, address)) = found.first()
        && !config.force_address
    {
        let ports = host.ports(bridge)?;
        if !ports.is_empty() {
            return Err(Error::BridgeAddress {
                bridge: bridge.name.clone(),
                gateway: *gateway,
                address: *address,
                pods: ports.iter().map(describe).collect(),
            });
        }
    }
    Ok(found.into_iter().map(|(_, address)| address).collect())
}

/// The pod that a port is of; the port itself, where another plugin made it.
fn describe(port: &Link) -> String {
    match Owner::of(port) {
        Some(owner) => owner.pod.to_owned(),
        None => format!("(interface {})", port.name),
    }
}

/// Another IPv4 address on the bridge is of an earlier subnet; IPv6 interfaces have several
/// addresses, as long as they are of different networks. What is valid on the link only is
/// nobody's business.
fn conflict(gateway: IpNetwork, foreign: IpNetwork) -> bool {
    let is_local = match foreign.ip() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    gateway.is_ipv4() == foreign.is_ipv4()
        && !is_local
        && (gateway.is_ipv4() || gateway.contains(foreign.ip()) || foreign.contains(gateway.ip()))
}

/// Puts the network's ports right when they were made under another configuration: the store
/// remembers which. To read what they are would cost 5 µs for each port of the node, on every ADD.
fn ensure_ports(
    host: &Rtnl,
    network: &NetworkName,
    config: &Config,
    bridge: &Link,
) -> Result<(), Error> {
    let Port { hairpin, isolated } = config.port;
    let wanted = format!("{}: hairpin {hairpin}, isolated {isolated}", bridge.name);
    if config.store.settings()? == wanted {
        return Ok(());
    }
    let is_wrong = |port: &&Link| is_of(port, network) && port.port != Some(config.port);
    let ports = host.ports(bridge)?;
    host.set_ports(ports.iter().filter(is_wrong), config.port)?;
    Ok(config.store.set_settings(&wanted)?)
}

/// Some runtimes turn IPv6 off in a namespace before they ask for an address of it.
pub(crate) fn enable_ipv6(ifname: &str) -> Result<(), Error> {
    Ok(sysctl::set(
        &format!("net/ipv6/conf/{ifname}/disable_ipv6"),
        "0",
    )?)
}
