//! The bridge as the configuration wants it: its addresses, its MTU, its hardware address, its
//! ports.
//!
//! A bridge belongs to the node and not to a network: several networks may share one, and other
//! ports than those of pods may need it as it is. So whatever is decided about it is decided in
//! every ADD, under one lock, until the pod's host end is a port of it.

use std::net::IpAddr;
use std::path::Path;

use cni::NetworkName;
use host_local::FileLock;
use ipnetwork::IpNetwork;
use kernel::{Bridge, Kind, Link, Mac, Port, Rtnl, sysctl};

use rand::TryRng;
use rand::rngs::SysRng;

use crate::config::Config;
use crate::error::Error;
use crate::ipam::{Ipam, Pool};
use crate::names::{Owner, is_of};

/// The file whose lock keeps other requests from the bridges of the node: beside the stores, of
/// whichever network, and for nobody but root to open.
const LOCK: &str = "/var/lib/cni/hostgw.lock";

/// Keeps other requests from the bridges of the node. Whoever takes the lock of a store as well takes
/// that one later.
pub(crate) fn lock() -> Result<FileLock, Error> {
    let lock = FileLock::open(Path::new(LOCK)).map_err(Error::LockBridges)?;
    lock.map_err(Error::BridgesLocked)
}

/// The same for a request that creates nothing; nothing where there was never an ADD.
pub(crate) fn lock_existing() -> Result<Option<FileLock>, Error> {
    let lock = FileLock::open_existing(Path::new(LOCK)).map_err(Error::LockBridges)?;
    lock.transpose().map_err(Error::BridgesLocked)
}

/// The bridge, up, with the gateways' addresses, its ports as the configuration wants them, and
/// a node that forwards. To be called under the [lock].
pub(crate) fn ensure(
    host: &Rtnl,
    network: &NetworkName,
    config: &Config,
    gateways: &[IpNetwork],
) -> Result<Link, Error> {
    // By the gateway's address, so that it is the same when the bridge is made again. What is
    // no gateway may be bridged with other nodes, where nothing but chance makes it unique.
    let computed = match gateways.first() {
        Some(gateway) => Mac::of(gateway.ip()),
        None => Mac::local(0x5a, by_chance()?),
    };
    let (mut bridge, is_new) = host.ensure_bridge(Bridge {
        name: &config.bridge,
        mac: Some(computed),
        mtu: config.mtu,
        promiscuous: config.promiscuous,
    })?;
    // The bridge routes, it is not routed to: a pod must not take the node's default route.
    if host.hears_routers(&bridge)? {
        // Should this be ended half-way, the next ADD begins anew.
        config.store.set_settings("")?;
        host.ignore_routers(&bridge)?;
    }
    ensure_settings(host, network, config, &mut bridge, (computed, is_new))?;
    ensure_mtu(host, network, config, &mut bridge)?;
    ensure_addresses(host, config, &bridge, gateways, "")?;
    Ok(bridge)
}

/// Gives the bridge the gateways' addresses, where it is to be the gateway, and has the node
/// forward. `own` is the port that it is done for, where that is there already. To be called under the
/// [lock].
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
        free_gateways_elsewhere(host, bridge, gateways)?;
        for address in obstacles(host, config, bridge, gateways, &present, own)? {
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
        host.forward_ipv6(|link, links| link.name != config.bridge && link.may_be_uplink(links))?;
    }
    Ok(())
}

/// Takes the gateways' addresses from a bridge without ports: the network's own, before its
/// configuration named another one.
///
/// Errors when another interface has a gateway's address: packets would go there.
fn free_gateways_elsewhere(
    host: &Rtnl,
    bridge: &Link,
    gateways: &[IpNetwork],
) -> Result<(), Error> {
    let all = host.all_addresses()?;
    let elsewhere = all.iter().filter(|address| address.link != bridge.index);
    for address in elsewhere {
        let is_it = |gateway: &&IpNetwork| gateway.ip() == address.network.ip();
        let Some(gateway) = gateways.iter().find(is_it) else {
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
        return Err(Error::GatewayElsewhere {
            bridge: bridge.name.clone(),
            gateway: *gateway,
            other: other.name.clone(),
        });
    }
    Ok(())
}

/// The addresses on the bridge that make way for the gateways'. None, once all those are there.
///
/// Errors when pods but `own` use such an address, unless `forceAddress` says that they do not matter.
pub(crate) fn obstacles(
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

/// Makes the hardware address one that stays, and puts the network's ports right when they were
/// made under another configuration. The store remembers what was done last: to read what the ports
/// are would cost 5 µs for each port of the node, on every ADD, and the kernel does not tell whether
/// a hardware address stays.
fn ensure_settings(
    host: &Rtnl,
    network: &NetworkName,
    config: &Config,
    bridge: &mut Link,
    (computed, is_new): (Mac, bool),
) -> Result<(), Error> {
    let found = bridge.mac;
    // A bridge without ports may have no address at all.
    let mac = found.unwrap_or(computed);
    if found.is_none() {
        host.set_mac(bridge, mac)?;
        bridge.mac = Some(mac);
    }
    let Port { hairpin, isolated } = config.port;
    let mut wanted = format!(
        "bridge {} {} {mac}: hairpin {hairpin}, isolated {isolated}\n",
        bridge.name, bridge.index
    );
    match &config.ipam {
        Ipam::HostLocal(pool) => wanted += &subnets_line(pool),
        Ipam::Delegate(delegate) => wanted += &delegate.settings_line(),
        Ipam::None => {}
    }
    if config.store.settings()? == wanted {
        return Ok(());
    }
    // What a router gave the bridge before is nobody's word any more; where the node itself has a port
    // on it, it is left to age.
    if !is_new && !has_foreign_ports(host, bridge)? {
        host.forget_routers(bridge)?;
    }
    // Whoever made the bridge may have given it no hardware address of its own.
    if found.is_some() && !is_new && mac != computed {
        host.set_mac(bridge, mac)?;
    }
    let is_wrong = |port: &&Link| is_of(port, network) && port.port != Some(config.port);
    let ports = host.ports(bridge)?;
    host.set_ports(ports.iter().filter(is_wrong), config.port)?;
    Ok(config.store.set_settings(&wanted)?)
}

fn subnets_line(pool: &Pool) -> String {
    let subnets: Vec<_> = pool.subnets().iter().map(ToString::to_string).collect();
    format!("{}{}\n", host_local::Store::SUBNETS, subnets.join(" "))
}

/// Sets the bridge's MTU, as far as its other ports go along: a frame that is larger than a port's
/// MTU is lost there. Where the node itself uses the bridge, it is not lowered.
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
    let others = ports.iter().filter(|port| !is_of(port, network));
    let limit = others.map(|port| port.mtu).min().unwrap_or(u32::MAX);
    let is_shared = ports.iter().any(|port| !port.leads_elsewhere());
    let mtu = wanted.min(limit);
    if mtu > bridge.mtu || (wanted < bridge.mtu && !is_shared) {
        host.set_mtu(bridge, mtu)?;
        bridge.mtu = mtu;
    }
    Ok(())
}

/// Gives a bridge that the node itself uses its MTU back: the kernel lowers it to that of a new port,
/// `mtu`, unless somebody set it. To be called under the [lock].
pub(crate) fn keep_mtu(host: &Rtnl, bridge: &Link, mtu: u32) -> Result<(), Error> {
    if mtu >= bridge.mtu || !has_foreign_ports(host, bridge)? {
        return Ok(());
    }
    match host.link(&bridge.name)? {
        Some(now) if now.mtu < bridge.mtu => Ok(host.set_mtu(bridge, bridge.mtu)?),
        _ => Ok(()),
    }
}

/// Whether the node itself has a port on the bridge, such as an uplink.
fn has_foreign_ports(host: &Rtnl, bridge: &Link) -> Result<bool, Error> {
    let ports = host.ports(bridge)?;
    Ok(ports.iter().any(|port| !port.leads_elsewhere()))
}

/// Four bytes that nobody else has, most likely.
pub(crate) fn by_chance() -> Result<[u8; 4], Error> {
    let mut bytes = [0; 4];
    SysRng.try_fill_bytes(&mut bytes).map_err(Error::Random)?;
    Ok(bytes)
}

/// Some runtimes turn IPv6 off in a namespace before they ask for an address of it.
pub(crate) fn enable_ipv6(ifname: &str) -> Result<(), Error> {
    Ok(sysctl::set(
        &format!("net/ipv6/conf/{ifname}/disable_ipv6"),
        "0",
    )?)
}
