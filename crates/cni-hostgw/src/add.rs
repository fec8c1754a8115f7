//! ADD: makes an attachment, all of it or nothing.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cni::{AddResult, Attached, Call, Dns, Interface, Ip, RouteConf};
use host_local::Store;
use kernel::{Furnishing, Home, Link, Mac, Netns, Rtnl, Veth, Watch, sysctl};

use crate::bridge::{self, enable_ipv6};
use crate::config::Config;
use crate::error::Error;
use crate::ipam::{Address, Allocation, Ipam};
use crate::log::Steps;
use crate::names::Names;
use crate::routes;

/// The store's mark of a network in which a hardware address was asked for.
const ASKED_FOR: &str = "mac";

/// How long duplicate address detection may take: the kernel asks for a second or two.
const DETECTION: Duration = Duration::from_secs(10);

/// Makes the attachment and says what it made.
pub(crate) fn add(
    call: &Call,
    attached: &Attached,
    config: &Config,
    steps: &mut Steps,
) -> Result<AddResult, Error> {
    let previous = AddResult::previous(&call.config, call.version)?;
    let home = Home::current()?;
    let netns = open_netns(&home, attached)?;
    let host = Rtnl::connect()?;
    let container = Rtnl::connect_in(&home, &netns)?;
    refuse_taken(&container, attached)?;
    let names = Names::of(&call.network, attached);
    // Another IPAM plugin would take the address of a live attachment for the one to give back.
    if matches!(config.ipam, Ipam::Delegate(_)) && host.link(&names.veth)?.is_some() {
        return Err(Error::Live(names.veth));
    }
    steps.done("netns");
    let allocation = config.ipam.allocate(&host, &config.store, attached)?;
    steps.done("ipam");
    let gateways = allocation.gateways();
    let bridge = bridge::ensure(&host, &call.network, config, &gateways)?;
    steps.done("bridge");
    if let Some(masquerade) = &config.masquerade {
        masquerade.ensure(&config.store, &allocation.addresses)?;
        steps.done("masquerade");
    }
    let ips: Vec<_> = allocation
        .addresses
        .iter()
        .map(|a| a.address.ip())
        .collect();
    let veth = Veth {
        host: &names.veth,
        host_mac: names.mac,
        container: attached.ifname.as_str(),
        container_mac: container_mac(config, &ips),
        netns: &netns,
        mtu: config.mtu,
        bridge: &bridge,
        port: config.port,
        alias: &names.alias(config.pod.as_deref()),
    };
    let link = host.add_veth(&veth, &container).map_err(|error| {
        // The container's name is free, so it is the host's: the attachment lives elsewhere.
        if error.is_exists() {
            Error::Live(names.veth.clone())
        } else {
            error.into()
        }
    })?;
    steps.done("veth");
    let mut all_routes = allocation.routes.clone();
    if config.is_default_gateway {
        all_routes = routes::with_default(&all_routes, &gateways);
    }
    let furnished = furnish(
        &home,
        &container,
        &veth,
        &link,
        config,
        &allocation,
        &all_routes,
    );
    steps.done("furnish");
    // Whatever the node believed of the addresses was of somebody before.
    let furnished = furnished.and_then(|()| Ok(host.forget_neighbours(&bridge, &ips)?));
    if let Err(error) = furnished {
        if host.delete_link(veth.host).is_err() {
            // While the link carries the address, nobody else must get it.
            allocation.keep();
        }
        return Err(error);
    }
    let result = result(attached, config, &veth, &link, &allocation, all_routes);
    allocation.keep();
    Ok(previous.unwrap_or_default().followed_by(result))
}

/// Opens the container's namespace. Ours is refused before anything is changed: a recycled
/// process id may have made the runtime name it.
pub(crate) fn open_netns(home: &Home, attached: &Attached) -> Result<Netns, Error> {
    let path = attached.netns.as_deref().unwrap_or(Path::new(""));
    let netns = Netns::open(path).map_err(Error::Netns)?;
    if home.is(&netns) {
        return Err(Error::OwnNetns);
    }
    Ok(netns)
}

/// SPEC: ADD must fail when the interface exists. Asked first, so that the one that exists,
/// most likely ours, is left alone.
fn refuse_taken(container: &Rtnl, attached: &Attached) -> Result<(), Error> {
    let ifname = attached.ifname.as_str();
    match container.link(ifname)? {
        Some(_) => Err(Error::NameTaken(ifname.to_owned())),
        None => Ok(()),
    }
}

/// The one asked for, or the one that goes with the address. Without an address, the container
/// may be bridged with other nodes, where nothing but chance makes it unique.
fn container_mac(config: &Config, ips: &[IpAddr]) -> Mac {
    let computed = || match ips.first() {
        Some(ip) => Mac::of(*ip),
        None => Mac::local(0x5b, rand::random()),
    };
    config.mac.unwrap_or_else(computed)
}

/// Whether the neighbours must be told of the container's hardware address. One that goes with
/// its address they know already, if they know any: unless somebody had another one here, by
/// asking for it or from another plugin.
fn is_news(config: &Config) -> Result<bool, Error> {
    if matches!(config.ipam, Ipam::Delegate(_)) {
        return Ok(true);
    }
    if config.mac.is_some() {
        config.store.mark(ASKED_FOR)?;
        return Ok(true);
    }
    let marks = config.store.marks()?;
    Ok(marks
        .iter()
        .any(|mark| mark == ASKED_FOR || mark == Store::FOREIGN))
}

/// Gives the container its addresses and routes, and sets its interface up.
fn furnish(
    home: &Home,
    container: &Rtnl,
    veth: &Veth<'_>,
    link: &Link,
    config: &Config,
    allocation: &Allocation<'_>,
    routes: &[RouteConf],
) -> Result<(), Error> {
    if !config.is_up {
        return Ok(());
    }
    let addresses = &allocation.addresses;
    let announce = is_news(config)?;
    let has_ipv6 = addresses.iter().any(|a| a.address.is_ipv6());
    if has_ipv6 {
        home.visit(veth.netns, || {
            prepare_ipv6(veth.container, config.detect_duplicates, announce)
        })??;
    }
    let watch = (has_ipv6 && config.detect_duplicates)
        .then(|| Watch::addresses_in(home, veth.netns))
        .transpose()?;
    let with_prefix: Vec<_> = addresses.iter().map(|a| a.address).collect();
    let routes = routes::for_kernel(link, addresses, routes)?;
    let furnishing = Furnishing {
        addresses: &with_prefix,
        detect_duplicates: config.detect_duplicates,
        announce,
        routes: &routes,
    };
    container.bring_up(link, furnishing)?;
    if has_ipv6 && !announce {
        // As for IPv4: for who changes the hardware address later.
        home.visit(veth.netns, || tell_of_changes(veth.container))??;
    }
    if let Some(watch) = watch {
        container.wait_for_detection(&watch, link, DETECTION)?;
    }
    Ok(())
}

/// What IPv6 wants to be told before the interface goes up, in the container's namespace. There
/// is no netlink message for it.
fn prepare_ipv6(ifname: &str, detect_duplicates: bool, announce: bool) -> Result<(), Error> {
    enable_ipv6(ifname)?;
    let detect = if detect_duplicates { "1" } else { "0" };
    let set = |name, value| sysctl::write(&format!("net/ipv6/conf/{ifname}/{name}"), value);
    set("accept_dad", detect)?;
    if detect_duplicates {
        set("enhanced_dad", "1")?;
    }
    set("keep_addr_on_down", "1")?;
    if announce {
        tell_of_changes(ifname)?;
    }
    Ok(())
}

/// Has the kernel tell the neighbours of the interface's IPv6 addresses.
fn tell_of_changes(ifname: &str) -> Result<(), Error> {
    let setting = format!("net/ipv6/conf/{ifname}/ndisc_notify");
    Ok(sysctl::write(&setting, "1")?)
}

fn result(
    attached: &Attached,
    config: &Config,
    veth: &Veth<'_>,
    link: &Link,
    allocation: &Allocation<'_>,
    routes: Vec<RouteConf>,
) -> AddResult {
    let interface = |name: &str, mac: Option<Mac>, mtu: u32, sandbox: Option<&Path>| Interface {
        name: name.to_owned(),
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(mtu),
        sandbox: sandbox
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        ..Interface::default()
    };
    let bridge = veth.bridge;
    let ip = |a: &Address| Ip {
        interface: Some(2),
        address: a.address,
        gateway: a.gateway.or(config.is_gateway.then(|| a.bridges())),
    };
    let dns = if config.dns == Dns::default() {
        allocation.dns.clone()
    } else {
        config.dns.clone()
    };
    AddResult {
        interfaces: vec![
            interface(&bridge.name, bridge.mac, bridge.mtu, None),
            interface(veth.host, Some(veth.host_mac), link.mtu, None),
            interface(&link.name, link.mac, link.mtu, attached.netns.as_deref()),
        ],
        ips: allocation.addresses.iter().map(ip).collect(),
        routes,
        dns,
    }
}
