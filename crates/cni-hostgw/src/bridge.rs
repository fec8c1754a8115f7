//! The bridge as the configuration wants it: its address, its MTU, its ports.

use cni::NetworkName;
use ipnetwork::IpNetwork;
use kernel::{Bridge, Link, Mac, Port, Rtnl, sysctl};

use crate::config::Config;
use crate::error::Error;
use crate::names::{ALIAS, Owner};

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
    let mut missing = gateways
        .iter()
        .filter(|gateway| !present.contains(gateway))
        .peekable();
    if missing.peek().is_some() {
        // The bridge routes, it is not routed to.
        sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", bridge.name), "0").ok();
        for address in obstacles(host, config, bridge, gateways, &present)? {
            host.delete_address(bridge, address)?;
        }
        // Whoever made it may have given it none of its own.
        host.pin_mac(bridge)?;
        for gateway in missing {
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
        sysctl::set("net/ipv6/conf/all/forwarding", "1")?;
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
    let against = |address: &IpNetwork| gateways.iter().find(|g| conflict(**g, *address));
    let foreign = present.iter().filter(|address| !gateways.contains(address));
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
/// addresses, as long as they are of different networks.
fn conflict(gateway: IpNetwork, foreign: IpNetwork) -> bool {
    gateway.is_ipv4() == foreign.is_ipv4()
        && (gateway.is_ipv4() || gateway.contains(foreign.ip()) || foreign.contains(gateway.ip()))
}

/// Puts the ports right that were made under another configuration. The bridge's alias says
/// which one that was, so that a port is looked at only when it has changed.
fn ensure_ports(
    host: &Rtnl,
    network: &NetworkName,
    config: &Config,
    bridge: &Link,
) -> Result<(), Error> {
    let noted = bridge.alias.as_deref().unwrap_or_default();
    let Some(alias) = note(noted, network, config.port) else {
        return Ok(());
    };
    let ports = host.ports(bridge)?;
    let is_wrong = |port: &&Link| {
        let is_ours = Owner::of(port).is_some_and(|owner| owner.network == network.as_str());
        is_ours && port.port != Some(config.port)
    };
    host.set_ports(ports.iter().filter(is_wrong), config.port)?;
    Ok(host.set_alias(bridge, &alias)?)
}

/// The bridge's alias with what a network's ports are to be, beside what it says of other
/// networks; nothing where it says so already.
fn note(alias: &str, network: &NetworkName, port: Port) -> Option<String> {
    // The kernel's limit for an alias.
    const ALIAS_MAX: usize = 255;
    let on = |is_on: bool| if is_on { "on" } else { "off" };
    let (hairpin, isolated) = (on(port.hairpin), on(port.isolated));
    let own = format!("{network}:hairpin={hairpin},isolated={isolated}");
    let known = alias.strip_prefix(ALIAS).unwrap_or_default();
    if known.split(' ').any(|entry| entry == own) {
        return None;
    }
    let mut noted = format!("{ALIAS}{own}");
    let of_another = |entry: &&str| entry.split(':').next() != Some(network.as_str());
    for entry in known.split(' ').filter(of_another) {
        // What has no room is looked at anew by its network's next ADD.
        if !entry.is_empty() && noted.len() + 1 + entry.len() <= ALIAS_MAX {
            noted.push(' ');
            noted.push_str(entry);
        }
    }
    noted.truncate(ALIAS_MAX);
    Some(noted)
}

/// Some runtimes turn IPv6 off in a namespace before they ask for an address of it.
pub(crate) fn enable_ipv6(ifname: &str) -> Result<(), Error> {
    Ok(sysctl::set(
        &format!("net/ipv6/conf/{ifname}/disable_ipv6"),
        "0",
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alias_says_what_each_networks_ports_are_to_be() {
        let network = |name| NetworkName::new(name).expect("valid");
        let (one, two) = (network("one"), network("two"));
        let hairpin = Port {
            hairpin: true,
            isolated: false,
        };
        let first = note("", &one, hairpin).expect("new");
        assert_eq!(first, "cni-hostgw one:hairpin=on,isolated=off");
        assert_eq!(note(&first, &one, hairpin), None);
        let both = note(&first, &two, Port::default()).expect("new");
        assert_eq!(note(&both, &one, hairpin), None);
        assert_eq!(note(&both, &two, Port::default()), None);
        let changed = note(&both, &one, Port::default()).expect("another");
        assert_eq!(
            changed,
            "cni-hostgw one:hairpin=off,isolated=off two:hairpin=off,isolated=off"
        );
        assert!(note("somebody's own words", &one, hairpin).is_some());
    }
}
