//! `hostgw-agent fast-path check`: sends packets of flows on the fast path between two network namespaces,
//! through a third, and sees whether they arrive.
//!
//! The three namespaces are this process's own. Some kernels have lost such packets.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use kernel::{
    Bridge, HostNetns, InterfaceSetup, Mac, Netns, Port, Protocol, Route, RouteOptions, Rtnl, Veth,
    conntrack, sysctl,
};

use super::table;
use crate::error::{Error, Result};

/// The exit code of a check that could not run.
pub(crate) const CANNOT_RUN: u8 = 3;

/// The longest time that a packet may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time until a flow is on the fast path.
const UNTIL_OFFLOADED: Duration = Duration::from_secs(10);
/// The number of times that the flow is used in both directions once it is on the fast path.
const ROUNDS: u8 = 8;

/// Names of links in the namespace in the middle.
const BRIDGE: &str = "cni0";
const POD: &str = "pod";
const UPLINK: &str = "uplink";
const OTHER: &str = "other";
/// The link in the two others.
const INSIDE: &str = "eth0";

/// `IPPROTO_TCP` and `IPPROTO_UDP`
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Why a check of the fast path did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// The namespaces cannot be set up here. Says nothing about the fast path.
    #[error("the fast path cannot be checked here")]
    SetUp(#[source] Box<Error>),
    /// A flow cannot be opened or watched. Says nothing about the fast path either.
    #[error("the fast path cannot be checked here: {flow}: {what}")]
    NoFlow {
        flow: String,
        what: &'static str,
        source: io::Error,
    },
    #[error("the kernel has no flowtables")]
    NoFlowtable(#[source] kernel::Error),
    #[error("the kernel's fast path does not work: {flow}: {what}")]
    Broken {
        flow: String,
        what: &'static str,
        source: io::Error,
    },
}

impl CheckError {
    /// True if the check could not run, so that nothing is known about the fast path.
    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, Self::SetUp(_) | Self::NoFlow { .. })
    }
}

/// An address of each side: the node in the middle, and the one that it forwards to.
struct Addresses {
    node: IpNetwork,
    inside: IpNetwork,
}

/// The namespaces: this thread's own forwards from a pod on a bridge to another node on the uplink.
struct Lab {
    home: HostNetns,
    kernel: Rtnl,
    pod: Netns,
    peer: Netns,
}

/// Checks the fast path, in new namespaces of this process, which must not have another thread.
pub(crate) fn check() -> Result<String> {
    // Whatever else fails says nothing about the fast path.
    let versions = perform().map_err(|error| match error {
        Error::FastPath(error) => error,
        other => CheckError::SetUp(Box::new(other)),
    })?;
    Ok(format!(
        "packets on the fast path arrive: TCP and UDP over {versions}\n"
    ))
}

/// Returns the versions of IP that were checked.
fn perform() -> Result<&'static str> {
    let families = families();
    let lab = Lab::new(&families)?;
    let networks = families
        .iter()
        .map(|[pod, _]| (network(pod.node), network(pod.node)));
    table::write(&networks.collect::<Vec<_>>()).map_err(|error| {
        if error.is_gone() {
            CheckError::NoFlowtable(error).into()
        } else {
            Error::from(error)
        }
    })?;
    for device in [POD, UPLINK] {
        table::add_device(device)?;
    }
    conntrack::count_offloaded()?;
    for [pod, peer] in &families {
        lab.check_tcp(pod.inside.ip(), peer.inside.ip())?;
        lab.check_udp(pod.inside.ip(), peer.inside.ip())?;
    }
    Ok(if families.len() == 1 {
        "IPv4"
    } else {
        "IPv4 and IPv6"
    })
}

/// The addresses of pod and peer in each family. They are of networks for tests (RFC 2544, RFC 5180), in
/// namespaces that nothing else is in.
fn families() -> Vec<[Addresses; 2]> {
    let pair = |node: &str, inside: &str| Addresses {
        node: node.parse().expect("a network"),
        inside: inside.parse().expect("a network"),
    };
    let ipv4 = [
        pair("198.18.0.1/24", "198.18.0.2/24"),
        pair("198.19.0.1/24", "198.19.0.2/24"),
    ];
    let ipv6 = [
        pair("2001:2:0:1::1/64", "2001:2:0:1::2/64"),
        pair("2001:2:0:2::1/64", "2001:2:0:2::2/64"),
    ];
    let mut families = vec![ipv4];
    if sysctl::get("net/ipv6/conf/all/forwarding").is_ok() {
        families.push(ipv6);
    }
    families
}

fn network(address: IpNetwork) -> IpNetwork {
    subnet::Subnet::of(address).network()
}

impl Lab {
    fn new(families: &[[Addresses; 2]]) -> Result<Self> {
        kernel::isolate()?;
        let home = HostNetns::current()?;
        let lab = Self {
            kernel: Rtnl::connect()?,
            pod: Netns::create(&home)?,
            peer: Netns::create(&home)?,
            home,
        };
        sysctl::set("net/ipv4/ip_forward", "1")?;
        if families.len() > 1 {
            // Even if this node's own interfaces have no IPv6. Addresses are used at once, instead of after a second.
            let enable_ipv6 = || {
                sysctl::set("net/ipv6/conf/all/disable_ipv6", "0")?;
                sysctl::set("net/ipv6/conf/default/disable_ipv6", "0")?;
                sysctl::set("net/ipv6/conf/default/accept_dad", "0")
            };
            enable_ipv6()?;
            lab.home.enter(&lab.pod, enable_ipv6)??;
            lab.home.enter(&lab.peer, enable_ipv6)??;
            sysctl::set("net/ipv6/conf/all/forwarding", "1")?;
        }
        let (bridge, _) = lab.kernel.ensure_bridge(Bridge {
            name: BRIDGE,
            mac: None,
            mtu: None,
            promiscuous: false,
        })?;
        let inside = lab.rtnl(&lab.pod)?;
        let veth = Veth {
            host: POD,
            host_mac: Mac::local(0, [0, 0, 0, 1]),
            container: INSIDE,
            container_mac: Mac::local(0, [0, 0, 0, 2]),
            netns: &lab.pod,
            mtu: None,
            bridge: &bridge,
            port: Port::default(),
            alias: "",
        };
        lab.kernel.add_veth(&veth, &inside)?;
        lab.kernel.add_veth_pair(UPLINK, INSIDE, &lab.peer)?;
        for [pod, peer] in families {
            lab.connect(BRIDGE, &lab.pod, pod)?;
            lab.connect(UPLINK, &lab.peer, peer)?;
        }
        lab.kernel.wait_until_oper_up(BRIDGE, TIMEOUT)?;
        Ok(lab)
    }

    fn rtnl(&self, netns: &Netns) -> Result<Rtnl, kernel::Error> {
        Rtnl::connect_in(&self.home, netns)
    }

    /// Gives both ends of a link their addresses, and the inner one its default route.
    fn connect(&self, link: &str, netns: &Netns, addresses: &Addresses) -> Result<()> {
        if let Some(link) = self.kernel.link(link)? {
            self.kernel.ensure_address(&link, addresses.node)?;
        }
        let inside = self.rtnl(netns)?;
        if let Some(link) = inside.link(INSIDE)? {
            let all = if addresses.node.is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            let all = all.parse().expect("a network");
            let route = Route::new(all, Some(addresses.node.ip()), link.index, Protocol::BOOT);
            let setup = InterfaceSetup {
                addresses: &[addresses.inside],
                detect_duplicates: false,
                announce: false,
                routes: &[(route, RouteOptions::default())],
                optional_routes: &[],
            };
            inside.bring_up(&link, setup)?;
        }
        Ok(())
    }

    /// Opens a connection, uses it until it is on the fast path, and sees whether it still works: also while
    /// another device comes and goes, and when it is closed.
    fn check_tcp(&self, pod: IpAddr, peer: IpAddr) -> Result<()> {
        let flow = format!("TCP from {pod} to {peer}");
        let (mut near, mut far) = self.tcp(peer).map_err(no_flow(&flow, "no connection"))?;
        let to = near.peer_addr().map_err(no_flow(&flow, "no connection"))?;
        until_offloaded(&flow, (TCP, to), |round| {
            exchange(&mut near, &mut far, round)
        })?;
        let mut rounds = |what| {
            (0..ROUNDS)
                .try_for_each(|round| exchange(&mut near, &mut far, round))
                .map_err(broken(&flow, what))
        };
        rounds("packets on the fast path do not arrive")?;
        self.kernel.add_veth_pair(OTHER, OTHER, &self.peer)?;
        table::add_device(OTHER)?;
        rounds("packets do not arrive after a device was added")?;
        self.kernel.delete_link(OTHER)?;
        table::delete_devices(&[&OTHER.to_owned()])?;
        rounds("packets do not arrive after a device was deleted")?;
        drop(near);
        let closed = far.read_to_end(&mut Vec::new()).map(drop);
        Ok(closed.map_err(broken(&flow, "the end of the connection does not arrive"))?)
    }

    fn check_udp(&self, pod: IpAddr, peer: IpAddr) -> Result<()> {
        let flow = format!("UDP from {pod} to {peer}");
        let (near, far) = self.udp(pod, peer).map_err(no_flow(&flow, "no sockets"))?;
        let to = near.peer_addr().map_err(no_flow(&flow, "no sockets"))?;
        let datagrams = |_| {
            near.send(b"request")?;
            far.recv(&mut [0; 16])?;
            far.send(b"answer")?;
            near.recv(&mut [0; 16]).map(drop)
        };
        until_offloaded(&flow, (UDP, to), datagrams)?;
        let rounds = (0..ROUNDS).try_for_each(datagrams);
        Ok(rounds.map_err(broken(&flow, "packets on the fast path do not arrive"))?)
    }

    fn tcp(&self, peer: IpAddr) -> io::Result<(TcpStream, TcpStream)> {
        let listener = self.inside(&self.peer, || TcpListener::bind((peer, 0)))?;
        let address = listener.local_addr()?;
        let near = self.inside(&self.pod, || TcpStream::connect_timeout(&address, TIMEOUT))?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
        }
        Ok((near, far))
    }

    fn udp(&self, pod: IpAddr, peer: IpAddr) -> io::Result<(UdpSocket, UdpSocket)> {
        let bind = |netns, ip| self.inside(netns, || UdpSocket::bind((ip, 0)));
        let (near, far) = (bind(&self.pod, pod)?, bind(&self.peer, peer)?);
        near.connect(far.local_addr()?)?;
        far.connect(near.local_addr()?)?;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(TIMEOUT))?;
        }
        Ok((near, far))
    }

    /// Opens something in a namespace.
    fn inside<T>(&self, netns: &Netns, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.home.enter(netns, open).map_err(io::Error::other)?
    }
}

fn broken(flow: &str, what: &'static str) -> impl FnOnce(io::Error) -> CheckError + use<> {
    let flow = flow.to_owned();
    move |source| CheckError::Broken { flow, what, source }
}

fn no_flow(flow: &str, what: &'static str) -> impl FnOnce(io::Error) -> CheckError + use<> {
    let flow = flow.to_owned();
    move |source| CheckError::NoFlow { flow, what, source }
}

/// Uses a flow, of a protocol and to an address, until it is on the fast path.
fn until_offloaded(
    flow: &str,
    (protocol, to): (u8, SocketAddr),
    mut exchange: impl FnMut(u8) -> io::Result<()>,
) -> Result<(), CheckError> {
    const WHAT: &str = "the flow did not get on the fast path";
    let started = Instant::now();
    for round in (0..=u8::MAX).cycle() {
        exchange(round).map_err(broken(flow, WHAT))?;
        let is_offloaded = conntrack::is_offloaded(protocol, to).map_err(io::Error::other);
        if is_offloaded.map_err(no_flow(flow, "connection tracking cannot be read"))? {
            break;
        }
        if started.elapsed() > UNTIL_OFFLOADED {
            return Err(broken(flow, WHAT)(io::ErrorKind::TimedOut.into()));
        }
    }
    Ok(())
}

/// Sends data in both directions.
fn exchange(near: &mut TcpStream, far: &mut TcpStream, round: u8) -> io::Result<()> {
    /// More than one packet, and less than the buffers of a socket have room for.
    const LENGTH: usize = 8 << 10;
    let data = [round; LENGTH];
    let mut received = [0; LENGTH];
    near.write_all(&data)?;
    far.read_exact(&mut received)?;
    far.write_all(&received)?;
    near.read_exact(&mut received)?;
    if received == data {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}
