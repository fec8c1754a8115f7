//! The bridge as the configuration wants it: its addresses, MTU, hardware address and ports.
//!
//! A bridge belongs to the node and not to a network: several networks may share one, and ports other
//! than those of pods may depend on it. So every decision about it is made in every ADD, under one
//! lock, which is held until the pod's host end is a port of the bridge.

use std::net::IpAddr;

use cni::NetworkName;
use ipnetwork::IpNetwork;
use kernel::{Bridge, Kind, Link, Mac, Rtnl, sysctl};
use rand::TryRng;
use rand::rngs::SysRng;

use crate::config::Config;
use crate::error::Error;
use crate::ipam::Ipam;
use crate::names::{MacKind, Owner, belongs_to};
use crate::state::{AddressSource, Settings};

/// Makes sure that the bridge exists and is up, with the gateways' addresses and with its ports as the
/// configuration wants them, and that the node forwards. Must be called under the
/// [lock](crate::bridge_lock::lock).
pub(crate) fn ensure(
    host: &Rtnl,
    network: &NetworkName,
    config: &Config,
    gateways: &[IpNetwork],
) -> Result<Link, Error> {
    // Computed from the gateway's address, so that it is the same if the bridge is created again. A
    // bridge that is no gateway may be connected with other nodes, so that it has to be random.
    let computed = match gateways.first() {
        Some(gateway) => Mac::of(gateway.ip()),
        None => MacKind::Bridge.with(random_bytes()?),
    };
    let (mut bridge, is_new) = host.ensure_bridge(Bridge {
        name: &config.bridge,
        mac: Some(computed),
        mtu: config.mtu,
        promiscuous: config.promiscuous,
    })?;
    // A pod must not announce itself as the node's router.
    if host.accepts_ra(&bridge)? {
        // If this is interrupted, the next ADD does it again.
        Settings::forget(&config.store)?;
        host.disable_ra(&bridge)?;
    }
    ensure_settings(host, network, config, &mut bridge, (computed, is_new))?;
    ensure_mtu(host, network, config, &mut bridge)?;
    ensure_addresses(host, config, &bridge, gateways, "")?;
    Ok(bridge)
}

/// Adds the gateways' addresses to the bridge and enables forwarding, if the bridge is the gateway.
/// `own` is the port that this is done for, if it exists already. Must be called under the
/// [lock](crate::bridge_lock::lock).
pub(crate) fn ensure_addresses(
    host: &Rtnl,
    config: &Config,
    bridge: &Link,
    gateways: &[IpNetwork],
    own: &str,
) -> Result<(), Error> {
    if !config.is_gateway || gateways.is_empty() {
        return Ok(());
    }
    let present = host.addresses(bridge)?;
    if gateways.iter().any(|gateway| !present.contains(gateway)) {
        remove_gateways_elsewhere(host, bridge, gateways)?;
        for address in conflicting_addresses(host, config, bridge, gateways, &present, own)? {
            host.delete_address(bridge, address)?;
        }
        for gateway in gateways {
            if gateway.is_ipv6() {
                enable_ipv6(&bridge.name)?;
            }
            host.ensure_address(bridge, *gateway)?;
        }
    }
    if gateways.iter().any(IpNetwork::is_ipv4) {
        sysctl::set("net/ipv4/ip_forward", "1")?;
    }
    if gateways.iter().any(IpNetwork::is_ipv6) {
        host.enable_ipv6_forwarding(|link, links| {
            link.name != config.bridge && link.may_be_uplink(links)
        })?;
    }
    Ok(())
}

/// Removes the gateways' addresses from another bridge without ports: the one that the network used
/// before its configuration named this one.
///
/// Fails if another interface has a gateway's address, because packets would go there.
fn remove_gateways_elsewhere(
    host: &Rtnl,
    bridge: &Link,
    gateways: &[IpNetwork],
) -> Result<(), Error> {
    let all = host.all_addresses()?;
    let elsewhere = all.iter().filter(|address| address.link != bridge.index);
    for address in elsewhere {
        let is_same = |gateway: &&IpNetwork| gateway.ip() == address.network.ip();
        let Some(gateway) = gateways.iter().find(is_same) else {
            continue;
        };
        let links = host.links()?;
        let Some(other) = links.iter().find(|link| link.index == address.link) else {
            continue;
        };
        if other.kind == Kind::Bridge && host.ports(other)?.is_empty() {
            host.delete_address(other, address.network)?;
            continue;
        }
        return Err(Error::GatewayOnOtherInterface {
            bridge: bridge.name.clone(),
            gateway: *gateway,
            other: other.name.clone(),
        });
    }
    Ok(())
}

/// Returns the addresses of the bridge that conflict with the gateways'. There are none once the bridge
/// has all gateways' addresses.
///
/// Fails if other pods than `own` use such an address, unless `forceAddress` is set.
pub(crate) fn conflicting_addresses(
    host: &Rtnl,
    config: &Config,
    bridge: &Link,
    gateways: &[IpNetwork],
    present: &[IpNetwork],
    own: &str,
) -> Result<Vec<IpNetwork>, Error> {
    if gateways.iter().all(|gateway| present.contains(gateway)) {
        return Ok(Vec::new());
    }
    // A range set may have several subnets, each with its own gateway.
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
        let mut ports = host.ports(bridge)?;
        ports.retain(|port| port.name != own);
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

/// Names the pod of a port, or the port itself if another plugin created it.
fn describe(port: &Link) -> String {
    match Owner::of(port) {
        Some(owner) => owner.pod.to_owned(),
        None => format!("(interface {})", port.name),
    }
}

/// True if an address of the bridge conflicts with the gateway's. Another IPv4 address is from an earlier
/// subnet. IPv6 interfaces may have several addresses, if they are in different networks. Link-local
/// addresses never conflict.
fn conflict(gateway: IpNetwork, foreign: IpNetwork) -> bool {
    let is_local = match foreign.ip() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    gateway.is_ipv4() == foreign.is_ipv4()
        && !is_local
        && (gateway.is_ipv4() || gateway.contains(foreign.ip()) || foreign.contains(gateway.ip()))
}

/// Pins the bridge's hardware address, and updates the network's ports if they were created under
/// another configuration. Does nothing if the last ADD had the same [`Settings`].
fn ensure_settings(
    host: &Rtnl,
    network: &NetworkName,
    config: &Config,
    bridge: &mut Link,
    (computed, is_new): (Mac, bool),
) -> Result<(), Error> {
    let found = bridge.mac;
    // A bridge without ports may have no hardware address.
    let mac = found.unwrap_or(computed);
    if found.is_none() {
        host.set_mac(bridge, mac)?;
        bridge.mac = Some(mac);
    }
    let settings = Settings {
        bridge: &bridge.name,
        index: bridge.index,
        mac,
        port: config.port,
        addresses: match &config.ipam {
            Ipam::HostLocal(pool) => AddressSource::Subnets(pool.subnets()),
            Ipam::Delegate(delegate) => AddressSource::Delegate(delegate.ipam()),
            Ipam::None => AddressSource::None,
        },
    };
    if settings.are_current(&config.store)? {
        return Ok(());
    }
    // Routes and addresses that a router announced are invalid now. If the node itself has a port on
    // the bridge, they expire by themselves.
    if !is_new && !has_host_ports(host, bridge)? {
        host.delete_ra_state(bridge)?;
    }
    // Whoever created the bridge may not have set its hardware address: then ports change it.
    if found.is_some() && !is_new && mac != computed {
        host.set_mac(bridge, mac)?;
    }
    let is_outdated = |port: &&Link| belongs_to(port, network) && port.port != Some(config.port);
    let ports = host.ports(bridge)?;
    host.set_ports(ports.iter().filter(is_outdated), config.port)?;
    Ok(settings.save(&config.store)?)
}

/// Sets the bridge's MTU, at most to that of its other ports: a frame that is larger than a port's MTU is
/// lost there. If the node itself uses the bridge, its MTU is not lowered.
fn ensure_mtu(
    host: &Rtnl,
    network: &NetworkName,
    config: &Config,
    bridge: &mut Link,
) -> Result<(), Error> {
    let Some(wanted) = config.mtu.filter(|mtu| *mtu != bridge.mtu) else {
        return Ok(());
    };
    let ports = host.ports(bridge)?;
    let others = ports.iter().filter(|port| !belongs_to(port, network));
    let limit = others.map(|port| port.mtu).min().unwrap_or(u32::MAX);
    let is_shared = ports.iter().any(|port| !port.has_peer_in_other_netns());
    let mtu = wanted.min(limit);
    if mtu > bridge.mtu || (wanted < bridge.mtu && !is_shared) {
        host.set_mtu(bridge, mtu)?;
        bridge.mtu = mtu;
    }
    Ok(())
}

/// Restores the MTU of a bridge that the node itself uses: unless it was set explicitly, the kernel lowers
/// it to the one of a new port, `mtu`. Must be called under the
/// [lock](crate::bridge_lock::lock).
pub(crate) fn restore_mtu(host: &Rtnl, bridge: &Link, mtu: u32) -> Result<(), Error> {
    if mtu >= bridge.mtu || !has_host_ports(host, bridge)? {
        return Ok(());
    }
    match host.link(&bridge.name)? {
        Some(now) if now.mtu < bridge.mtu => Ok(host.set_mtu(bridge, bridge.mtu)?),
        _ => Ok(()),
    }
}

/// True if the node itself has a port on the bridge, such as an uplink.
fn has_host_ports(host: &Rtnl, bridge: &Link) -> Result<bool, Error> {
    let ports = host.ports(bridge)?;
    Ok(ports.iter().any(|port| !port.has_peer_in_other_netns()))
}

/// Four random bytes.
pub(crate) fn random_bytes() -> Result<[u8; 4], Error> {
    let mut bytes = [0; 4];
    SysRng.try_fill_bytes(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}

/// Enables IPv6 on an interface: some runtimes disable it in a namespace before they ask for an IPv6
/// address.
pub(crate) fn enable_ipv6(ifname: &str) -> Result<(), Error> {
    Ok(sysctl::set(
        &format!("net/ipv6/conf/{ifname}/disable_ipv6"),
        "0",
    )?)
}
