//! ADD: makes an attachment, all of it or nothing.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cni::{AddResult, Attached, Call, Dns, Interface, Ip, NetworkName, RouteConf};
use host_local::Store;
use kernel::{Furnishing, Home, Link, Mac, Netns, Rtnl, Veth, Watch, sysctl};

use crate::bridge::{self, enable_ipv6};
use crate::config::Config;
use crate::error::Error;
use crate::ipam::{Address, Allocation, Ipam};
use crate::log::Steps;
use crate::names::Names;
use crate::{masquerade, routes};

/// The store's mark of a network in which a hardware address was asked for.
const ASKED_FOR: &str = "mac";

/// How long duplicate address detection may take: the kernel asks for a second or two.
const DETECTION: Duration = Duration::from_secs(10);

/// What an ADD has made so far: to be kept once the runtime has the result, or to be undone.
#[must_use = "what is neither kept nor undone stays"]
pub(crate) struct Made<'a> {
    host: Rtnl,
    network: &'a NetworkName,
    store: &'a Store,
    /// The host veth, once it is there or may be.
    veth: Option<String>,
    allocation: Option<Allocation<'a>>,
}

impl Made<'_> {
    /// Makes it outlive this process.
    pub(crate) fn keep(self) {
        if let Some(allocation) = self.allocation {
            allocation.keep();
        }
    }

    /// Takes it away again. Why the ADD failed is what the runtime wants to hear, so nothing else
    /// is said; what could not be taken away, DEL finds.
    pub(crate) fn undo(mut self) {
        let Some(allocation) = self.allocation.take() else {
            self.delete_veth();
            return;
        };
        // Another IPAM plugin may need the interface for giving an address back.
        if allocation.is_delegated() {
            drop(allocation.give_back());
            self.delete_veth();
            drop(masquerade::leave_if_last(
                &self.host,
                self.network,
                self.store,
            ));
        } else if self.delete_veth() {
            if let Ok(Some(vacant)) = allocation.give_back() {
                drop(masquerade::leave(self.network, vacant));
            }
        } else {
            // While the link carries the address, nobody else must get it.
            allocation.keep();
        }
    }

    /// Whether there is no host veth of this ADD any more.
    fn delete_veth(&self) -> bool {
        let veth = self.veth.as_deref();
        veth.is_none_or(|veth| self.host.delete_link(veth).is_ok())
    }
}

/// How long the kernel may take to notice that the container's end went up.
const CARRIER: Duration = Duration::from_millis(500);

/// Makes the attachment, and says what it made. On failure nothing of it is left.
pub(crate) fn add<'a>(
    call: &'a Call,
    attached: &Attached,
    config: &'a Config,
    steps: &mut Steps,
) -> Result<(AddResult, Made<'a>), Error> {
    let previous = AddResult::previous(&call.config, call.version)?;
    let home = Home::current()?;
    let netns = open_netns(&home, attached)?;
    let mut made = Made {
        host: Rtnl::connect()?,
        network: &call.network,
        store: &config.store,
        veth: None,
        allocation: None,
    };
    let container = Rtnl::connect_in(&home, &netns)?;
    refuse_taken(&container, attached)?;
    steps.done("netns");
    let container = Container {
        home,
        netns,
        rtnl: container,
    };
    match connect(attached, config, &container, &mut made, steps) {
        Ok(result) => Ok((result.after(previous.unwrap_or_default()), made)),
        Err(error) => {
            made.undo();
            Err(error)
        }
    }
}

/// The container's side, and how to get there and back.
struct Container {
    home: Home,
    netns: Netns,
    rtnl: Rtnl,
}

/// A pair that connects the container with the bridge.
struct Pair {
    bridge: Link,
    /// The names on the host's side.
    names: Names,
    /// The container's end.
    inside: Link,
    container_mac: Mac,
}

/// Connects the container with the bridge and gives it its addresses. What that takes is written
/// down in `made`.
fn connect<'a>(
    attached: &Attached,
    config: &'a Config,
    container: &Container,
    made: &mut Made<'a>,
    steps: &mut Steps,
) -> Result<AddResult, Error> {
    let pair = link_to_bridge(attached, config, container, made, steps)?;
    if let Some(delegated) = config.ipam.delegate() {
        let delegated = made.allocation.insert(delegated?);
        steps.done("delegate");
        let _lock = bridge::lock()?;
        delegated.refuse_shared(&made.host, &config.store, made.network)?;
        let gateways = delegated.gateways();
        bridge::ensure_addresses(
            &made.host,
            config,
            &pair.bridge,
            &gateways,
            &pair.names.veth,
        )?;
    }
    let allocation = made.allocation.as_ref();
    let allocation = allocation.expect("addresses, or none, are allocated with the pair");
    if let Some(masquerade) = &config.masquerade {
        masquerade.ensure(&config.store, &allocation.addresses)?;
        steps.done("masquerade");
    }
    let mut routes = allocation.routes.clone();
    if config.is_default_gateway {
        routes = routes::with_default(&routes, &allocation.gateways());
    }
    furnish(&made.host, container, &pair, config, allocation, &routes)?;
    steps.done("furnish");
    // Whatever the node believed of the addresses was of somebody before.
    made.host
        .forget_neighbours(&pair.bridge, &allocation.ips())?;
    Ok(result(attached, config, &pair, allocation, routes))
}

/// Makes the pair, its host end a port of the bridge: with our own addresses reserved before, where
/// they are ours to give. All of it under the lock of the node's bridges.
fn link_to_bridge<'a>(
    attached: &Attached,
    config: &'a Config,
    container: &Container,
    made: &mut Made<'a>,
    steps: &mut Steps,
) -> Result<Pair, Error> {
    let Config { ipam, store, .. } = config;
    let names = Names::of(made.network, attached);
    // A network whose store is stuck keeps no other network from its bridges.
    store.wait_for_lock()?;
    let _lock = bridge::lock()?;
    steps.done("lock");
    let reserved =
        made.allocation
            .insert(ipam.reserve(&made.host, store, made.network, attached)?);
    let (ips, gateways) = (reserved.ips(), reserved.gateways());
    steps.done("ipam");
    let bridge = bridge::ensure(&made.host, made.network, config, &gateways)?;
    steps.done("bridge");
    let container_mac = container_mac(config, &names, &ips)?;
    let made_pair = made.host.add_veth(
        &Veth {
            host: &names.veth,
            host_mac: names.mac,
            container: attached.ifname.as_str(),
            container_mac,
            netns: &container.netns,
            mtu: config.mtu,
            bridge: &bridge,
            port: config.port,
            alias: &names.alias(config.pod.as_deref()),
        },
        &container.rtnl,
    );
    let inside = match made_pair {
        Ok(inside) => inside,
        // The container's name is free, so it is the host's: the attachment lives elsewhere.
        Err(error) if error.is_exists() => return Err(Error::Live(names.veth)),
        Err(error) => {
            made.veth = error.may_remain().then_some(names.veth);
            return Err(error.into());
        }
    };
    made.veth = Some(names.veth.clone());
    bridge::keep_mtu(&made.host, &bridge, inside.mtu)?;
    steps.done("veth");
    Ok(Pair {
        bridge,
        names,
        inside,
        container_mac,
    })
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

/// The one asked for, or the one that goes with the address, or with the attachment where another
/// IPAM plugin is about to give it an address. Without any address, the container may be bridged
/// with other nodes, where nothing but chance makes it unique.
fn container_mac(config: &Config, names: &Names, ips: &[IpAddr]) -> Result<Mac, Error> {
    Ok(match (config.mac, ips.first(), &config.ipam) {
        (Some(mac), ..) => mac,
        (None, Some(ip), _) => Mac::of(*ip),
        (None, None, Ipam::Delegate(_)) => names.container_mac,
        (None, None, _) => Mac::local(0x5b, bridge::by_chance()?),
    })
}

/// Whether the neighbours must be told of the container's hardware address. One that goes with
/// its address they know already, if they know any: unless somebody had another one here, by
/// asking for it or from another plugin. Where the bridge is no gateway, or was made by somebody
/// else, it may lead to other nodes, whose switches know the address at the node where it was last.
fn is_news(config: &Config, bridge: &Link, addresses: &[Address]) -> Result<bool, Error> {
    let gateway = addresses.first().map(|a| Mac::of(a.bridges()));
    let is_within_node = config.is_gateway && bridge.mac == gateway;
    if matches!(config.ipam, Ipam::Delegate(_)) || !is_within_node {
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
    host: &Rtnl,
    container: &Container,
    pair: &Pair,
    config: &Config,
    allocation: &Allocation<'_>,
    routes: &[RouteConf],
) -> Result<(), Error> {
    if !config.is_up {
        return Ok(());
    }
    let Container { home, netns, rtnl } = container;
    let link = &pair.inside;
    let addresses = &allocation.addresses;
    let announce = is_news(config, &pair.bridge, addresses)?;
    let has_ipv6 = addresses.iter().any(|a| a.address.is_ipv6());
    if has_ipv6 {
        home.visit(netns, || {
            prepare_ipv6(&link.name, config.detect_duplicates, announce)
        })??;
    }
    let watch = (has_ipv6 && config.detect_duplicates)
        .then(|| Watch::addresses_in(home, netns))
        .transpose()?;
    let with_prefix: Vec<_> = addresses.iter().map(|a| a.address).collect();
    let routes = routes::for_kernel(link, addresses, routes);
    let furnishing = Furnishing {
        addresses: &with_prefix,
        detect_duplicates: config.detect_duplicates,
        announce,
        routes: &routes.routes,
        optional_routes: &routes.optional,
    };
    rtnl.bring_up(link, furnishing)?;
    if announce && !addresses.is_empty() {
        // What the kernel announced when the interface went up is lost where the bridge's port did
        // not pass frames yet. It announces again when it is given the hardware address that it has.
        if host.wait_until_passing(&pair.names.veth, CARRIER)? {
            rtnl.set_mac(link, pair.container_mac)?;
        }
    }
    if has_ipv6 && !announce {
        // As for IPv4: for who changes the hardware address later.
        home.visit(netns, || tell_of_changes(&link.name))??;
    }
    if let Some(watch) = watch {
        rtnl.wait_for_detection(&watch, link, DETECTION)?;
    }
    Ok(())
}

/// What IPv6 wants to be told before the interface goes up, in the container's namespace. There
/// is no netlink message for it.
fn prepare_ipv6(ifname: &str, detect_duplicates: bool, announce: bool) -> Result<(), Error> {
    // The container reaches its own address by its loopback.
    enable_ipv6("lo")?;
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
    pair: &Pair,
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
    let Pair {
        bridge,
        names,
        inside,
        ..
    } = pair;
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
            interface(&names.veth, Some(names.mac), inside.mtu, None),
            interface(
                &inside.name,
                inside.mac,
                inside.mtu,
                attached.netns.as_deref(),
            ),
        ],
        ips: allocation.addresses.iter().map(ip).collect(),
        routes,
        dns,
    }
}
