//! ADD: attaches a container to the network, completely or not at all.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cni::{AddResult, Call, Dns, Interface, Ip, Parameters, Route};
use host_local::Attachment;
use host_ports::Record;
use kernel::{HostNetns, InterfaceSetup, Link, Mac, Netns, Rtnl, Veth, Watch, sysctl};

use crate::bridge::{self, enable_ipv6};
use crate::bridge_lock;
use crate::config::Config;
use crate::error::Error;
use crate::ipam::{Address, Allocation, Ipam};
use crate::log::StepTimer;
use crate::names::{MacKind, Names, attachment};
use crate::routes;
use crate::state::Feature;
use crate::transaction::Transaction;

/// How long duplicate address detection may take. The kernel waits for a second or two.
const DETECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the kernel may take to notice that the container's end is up.
const CARRIER_TIMEOUT: Duration = Duration::from_millis(500);

/// Attaches the container. On failure nothing of it is left. On success, the caller decides with the
/// transaction: if the runtime does not get the result, everything is undone.
pub(crate) fn add<'a>(
    call: &'a Call,
    parameters: &Parameters,
    config: &'a Config,
    steps: &mut StepTimer,
) -> Result<(AddResult, Transaction<'a>), Error> {
    let previous = AddResult::previous(&call.config, call.version)?;
    let container = Container::open(parameters)?;
    let mut transaction = Transaction::new(&call.network, &config.store)?;
    container.refuse_existing(parameters)?;
    steps.done("netns");
    let add = Add {
        attachment: attachment(parameters),
        call,
        parameters,
        config,
        container,
    };
    match add.run(&mut transaction, steps) {
        Ok(result) => Ok((result.after(previous.unwrap_or_default()), transaction)),
        Err(error) => {
            transaction.undo();
            Err(error)
        }
    }
}

/// The container's network namespace, and a socket in it.
struct Container {
    host_netns: HostNetns,
    netns: Netns,
    rtnl: Rtnl,
}

impl Container {
    fn open(parameters: &Parameters) -> Result<Self, Error> {
        let host_netns = HostNetns::current()?;
        let netns = open_netns(&host_netns, parameters)?;
        let rtnl = Rtnl::connect_in(&host_netns, &netns)?;
        Ok(Self {
            host_netns,
            netns,
            rtnl,
        })
    }

    /// SPEC: ADD must fail if the interface exists. This is checked first, so that the existing one,
    /// which is most likely ours, is left alone.
    fn refuse_existing(&self, parameters: &Parameters) -> Result<(), Error> {
        let ifname = parameters.ifname.as_str();
        match self.rtnl.link(ifname)? {
            Some(_) => Err(Error::InterfaceExists(ifname.to_owned())),
            None => Ok(()),
        }
    }

    /// Runs `work` on this thread in the container's namespace. Only sysctls need that.
    fn enter<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.host_netns.enter(&self.netns, work)?
    }
}

/// Opens the container's namespace. Our own is refused before anything is changed: the runtime may
/// name it by a process id that was reused.
pub(crate) fn open_netns(host: &HostNetns, parameters: &Parameters) -> Result<Netns, Error> {
    let path = parameters.netns.as_deref().unwrap_or(Path::new(""));
    let netns = Netns::open(path).map_err(Error::Netns)?;
    if host.is(&netns) {
        return Err(Error::OwnNetns);
    }
    Ok(netns)
}

/// One ADD.
struct Add<'a, 'b> {
    attachment: Attachment,
    call: &'a Call,
    parameters: &'b Parameters,
    config: &'a Config,
    container: Container,
}

/// The veth pair of an attachment, connected to the bridge.
struct VethPair {
    bridge: Link,
    names: Names,
    /// The container's end of the pair.
    container_link: Link,
    container_mac: Mac,
    /// The link that limits what the container sends.
    ifb: Option<Link>,
}

impl<'a> Add<'a, '_> {
    /// The steps of ADD. What they create is in `transaction`.
    fn run(
        &self,
        transaction: &mut Transaction<'a>,
        steps: &mut StepTimer,
    ) -> Result<AddResult, Error> {
        let pair = self.create_pair(transaction, steps)?;
        self.delegate_ipam(&pair, transaction, steps)?;
        let allocation = transaction.allocation.as_ref();
        let allocation = allocation.expect("create_pair allocates addresses, or none");
        if let Some(masquerade) = &self.config.masquerade {
            masquerade.ensure(&self.config.store, &allocation.addresses)?;
            steps.done("masquerade");
        }
        let mut routes = allocation.routes.clone();
        if self.config.is_default_gateway {
            routes = routes::with_default_routes(&routes, &allocation.gateways());
        }
        if self.config.is_up {
            self.configure_container(&transaction.host, &pair, &allocation.addresses, &routes)?;
        }
        steps.done("interface");
        // Entries for these addresses are about their previous owners.
        let host = &transaction.host;
        host.delete_neighbours(&pair.bridge, &allocation.ips())?;
        let result = self.result(&pair, allocation, routes);
        if let Some(record) = self.host_ports_record(&pair, allocation)? {
            transaction.has_host_ports = true;
            self.config.port_mappings.add(host, self.call, &record)?;
            steps.done("host ports");
        }
        Ok(result)
    }

    /// The record of the container's host ports. `None` if it has none.
    fn host_ports_record(
        &self,
        pair: &VethPair,
        allocation: &Allocation<'_>,
    ) -> Result<Option<Record>, Error> {
        let addresses = allocation.addresses.iter().map(|address| address.address);
        let (names, attachment) = (&pair.names, &self.attachment);
        let network = &self.call.network;
        let config = &self.config.port_mappings;
        config.record(network, attachment, names, self.config, addresses.collect())
    }

    /// Reserves addresses, if they are ours to give, and creates the veth pair with its host end in
    /// the bridge: all under the lock of the node's bridges.
    fn create_pair(
        &self,
        transaction: &mut Transaction<'a>,
        steps: &mut StepTimer,
    ) -> Result<VethPair, Error> {
        let config = self.config;
        let network = transaction.network;
        let host = &transaction.host;
        let names = Names::of(network, &self.attachment);
        // A network whose store stays locked must not keep other networks from the bridges.
        config.store.wait_for_lock()?;
        let _lock = bridge_lock::lock()?;
        steps.done("lock");
        let reserved = config
            .ipam
            .reserve(host, &config.store, network, &self.attachment)?;
        let reserved = transaction.allocation.insert(reserved);
        host_ports::free_addresses(host, reserved.ips(), &names.veth)?;
        steps.done("ipam");
        let bridge = bridge::ensure(host, network, config, &reserved.gateways())?;
        steps.done("bridge");
        let container_mac = self.container_mac(&names, &reserved.ips())?;
        let created = host.add_veth(
            &Veth {
                host: &names.veth,
                host_mac: names.mac,
                container: self.parameters.ifname.as_str(),
                container_mac,
                netns: &self.container.netns,
                mtu: config.mtu,
                bridge: &bridge,
                port: config.port,
                alias: &names.alias(config.pod.as_deref()),
            },
            &self.container.rtnl,
        );
        let container_link = match created {
            Ok(container_link) => container_link,
            // The container's name is free, so the host's is not: the attachment already exists in
            // another namespace.
            Err(error) if error.already_exists() => return Err(Error::Exists(names.veth)),
            Err(error) => {
                transaction.veth = error.may_have_leftovers().then_some(names.veth);
                return Err(error.into());
            }
        };
        transaction.veth = Some(names.veth.clone());
        bridge::restore_mtu(&transaction.host, &bridge, container_link.mtu)?;
        steps.done("veth");
        let bandwidth = &config.bandwidth;
        let ifb = if bandwidth.is_limited() {
            transaction.ifb = Some(names.ifb.clone());
            let ifb =
                bandwidth.apply(&transaction.host, self.call, &names, config.pod.as_deref())?;
            steps.done("bandwidth");
            ifb
        } else {
            None
        };
        Ok(VethPair {
            bridge,
            names,
            container_link,
            container_mac,
            ifb,
        })
    }

    /// Asks another IPAM plugin for addresses, if the configuration names one. It may need the
    /// interface, so that this comes after the pair.
    fn delegate_ipam(
        &self,
        pair: &VethPair,
        transaction: &mut Transaction<'a>,
        steps: &mut StepTimer,
    ) -> Result<(), Error> {
        let Some(allocation) = self.config.ipam.delegate() else {
            return Ok(());
        };
        let allocation = transaction.allocation.insert(allocation?);
        steps.done("delegate");
        let host = &transaction.host;
        let _lock = bridge_lock::lock()?;
        allocation.refuse_shared(host, &self.config.store, transaction.network)?;
        host_ports::free_addresses(host, allocation.ips(), &pair.names.veth)?;
        bridge::ensure_addresses(
            host,
            self.config,
            &pair.bridge,
            &allocation.gateways(),
            &pair.names.veth,
        )
    }

    /// The requested hardware address, or the one that is computed from the IP address. While
    /// another IPAM plugin has not given an address yet, it is computed from the attachment. Without
    /// any address, the container may be bridged with other nodes, so that it has to be random.
    fn container_mac(&self, names: &Names, ips: &[IpAddr]) -> Result<Mac, Error> {
        Ok(match (self.config.mac, ips.first(), &self.config.ipam) {
            (Some(mac), ..) => mac,
            (None, Some(ip), _) => Mac::of(*ip),
            (None, None, Ipam::Delegate(_)) => names.container_mac,
            (None, None, _) => MacKind::Container.with(bridge::random_bytes()?),
        })
    }

    /// Gives the container's interface its addresses and routes, and sets it up.
    fn configure_container(
        &self,
        host: &Rtnl,
        pair: &VethPair,
        addresses: &[Address],
        routes: &[Route],
    ) -> Result<(), Error> {
        let Container {
            host_netns,
            netns,
            rtnl,
        } = &self.container;
        let (link, detect_duplicates) = (&pair.container_link, self.config.detect_duplicates);
        let announce = self.must_announce_mac(&pair.bridge, addresses)?;
        let has_ipv6 = addresses.iter().any(|address| address.address.is_ipv6());
        if has_ipv6 {
            self.container
                .enter(|| prepare_ipv6(&link.name, detect_duplicates, announce))?;
        }
        let watch = (has_ipv6 && detect_duplicates)
            .then(|| Watch::addresses_in(host_netns, netns))
            .transpose()?;
        let with_prefix: Vec<_> = addresses.iter().map(|address| address.address).collect();
        let routes = routes::to_kernel_routes(link, addresses, routes);
        let setup = InterfaceSetup {
            addresses: &with_prefix,
            detect_duplicates,
            announce,
            routes: &routes.routes,
            optional_routes: &routes.optional,
        };
        rtnl.bring_up(link, setup)?;
        // The kernel's announcement is lost if the bridge's port did not forward frames yet. The
        // kernel announces again when the same hardware address is set again.
        if announce
            && !addresses.is_empty()
            && host.wait_until_oper_up(&pair.names.veth, CARRIER_TIMEOUT)?
        {
            rtnl.set_mac(link, pair.container_mac)?;
        }
        if has_ipv6 && !announce {
            // From now on, a change of the hardware address is announced, as for IPv4.
            self.container.enter(|| announce_changes(&link.name))?;
        }
        if let Some(watch) = watch {
            rtnl.wait_for_detection(&watch, link, DETECTION_TIMEOUT)?;
        }
        Ok(())
    }

    /// True if neighbours must be told the container's hardware address. If it is computed from the
    /// IP address, they know it already, unless an earlier container had this IP address with another
    /// hardware address: a requested one, or one from another plugin. A bridge that is not a gateway,
    /// or that someone else created, may lead to other nodes, whose switches know the address at the
    /// node where it was last.
    fn must_announce_mac(&self, bridge: &Link, addresses: &[Address]) -> Result<bool, Error> {
        let config = self.config;
        let gateway = addresses.first().map(|address| Mac::of(address.bridges()));
        let is_within_node = config.is_gateway && bridge.mac == gateway;
        if matches!(config.ipam, Ipam::Delegate(_)) || !is_within_node {
            return Ok(true);
        }
        if config.mac.is_some() {
            Feature::RequestedMac.note(&config.store)?;
            return Ok(true);
        }
        let noted = Feature::noted(&config.store)?;
        let others = [Feature::RequestedMac, Feature::HostLocal];
        Ok(others.iter().any(|feature| noted.contains(feature)))
    }

    fn result(
        &self,
        pair: &VethPair,
        allocation: &Allocation<'_>,
        routes: Vec<Route>,
    ) -> AddResult {
        let config = self.config;
        let VethPair {
            bridge,
            names,
            container_link,
            ifb,
            ..
        } = pair;
        let ip = |address: &Address| Ip {
            interface: Some(2),
            address: address.address,
            gateway: address
                .gateway
                .or(config.is_gateway.then(|| address.bridges())),
        };
        let dns = if config.dns == Dns::default() {
            allocation.dns.clone()
        } else {
            config.dns.clone()
        };
        let netns = self.parameters.netns.as_deref();
        let (name, mac, mtu) = (&container_link.name, container_link.mac, container_link.mtu);
        let mut interfaces = vec![
            interface(&bridge.name, bridge.mac, bridge.mtu, None),
            interface(&names.veth, Some(names.mac), mtu, None),
            interface(name, mac, mtu, netns),
        ];
        let ifb = ifb.as_ref();
        interfaces.extend(ifb.map(|ifb| interface(&ifb.name, ifb.mac, ifb.mtu, None)));
        AddResult {
            interfaces,
            ips: allocation.addresses.iter().map(ip).collect(),
            routes,
            dns,
        }
    }
}

fn interface(name: &str, mac: Option<Mac>, mtu: u32, sandbox: Option<&Path>) -> Interface {
    let sandbox = sandbox.map(|path| path.display().to_string());
    Interface {
        name: name.to_owned(),
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(mtu),
        sandbox: sandbox.unwrap_or_default(),
        ..Interface::default()
    }
}

/// Sets the IPv6 sysctls that must be set before the interface goes up. There is no netlink message
/// for them.
fn prepare_ipv6(ifname: &str, detect_duplicates: bool, announce: bool) -> Result<(), Error> {
    // The container reaches its own address over its loopback interface.
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
        announce_changes(ifname)?;
    }
    Ok(())
}

/// Makes the kernel announce the interface's IPv6 addresses to its neighbours.
fn announce_changes(ifname: &str) -> Result<(), Error> {
    let setting = format!("net/ipv6/conf/{ifname}/ndisc_notify");
    Ok(sysctl::write(&setting, "1")?)
}
