//! The floor of the benchmark: only the netlink messages of one ADD or DEL, in a static executable.
//!
//! It does not manage addresses, check anything or print a result, so it shows the minimum cost of
//! a plugin. The bridge, `cni0` unless `FLOOR_BRIDGE` names another, must exist.
//!
//! ```text
//! CNI_COMMAND=ADD CNI_NETNS=/run/netns/a FLOOR_VETH=veth1 FLOOR_IP=10.10.1.2 floor
//! ```

use std::env;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const REPLACE: u16 = 0x100;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;

fn main() -> ExitCode {
    let outcome = match env::var("CNI_COMMAND").as_deref() {
        Ok("ADD") => add(),
        Ok("DEL") => del(),
        _ => Err(io::Error::other("CNI_COMMAND must be ADD or DEL")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn add() -> io::Result<()> {
    let ip: Ipv4Addr = var("FLOOR_IP")?.parse().map_err(io::Error::other)?;
    let mac = [&[0x0a, 0x58], &ip.octets()[..]].concat();
    let gateway = [ip.octets()[0], ip.octets()[1], ip.octets()[2], 1];
    let netns = File::open(var("CNI_NETNS")?)?;
    let home = File::open("/proc/thread-self/ns/net")?;
    let host = connect()?;
    enter(&netns)?;
    let container = connect()?;
    enter(&home)?;
    let bridge = index(&host, &env::var("FLOOR_BRIDGE").unwrap_or("cni0".into()))?;
    exchange(&host, &pair(&var("FLOOR_VETH")?, &mac, &netns, bridge), 2)?;

    let eth0 = index(&container, "eth0")?;
    let mut address = vec![2, 24, 0, 0];
    address.extend(eth0.to_ne_bytes());
    attribute(&mut address, 1, &ip.octets());
    attribute(&mut address, 2, &ip.octets());
    let mut route = vec![2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    attribute(&mut route, 5, &gateway);
    attribute(&mut route, 4, &eth0.to_ne_bytes());
    let mut send = message(RTM_NEWADDR, CREATE | EXCL, &address);
    send.extend(message(RTM_NEWLINK, 0, &link(eth0, 1)));
    send.extend(message(RTM_NEWROUTE, CREATE | EXCL, &route));
    exchange(&container, &send, 3)?;

    let mut neighbour = vec![2, 0, 0, 0];
    neighbour.extend(bridge.to_ne_bytes());
    neighbour.extend([2, 0, 0, 1]);
    attribute(&mut neighbour, 1, &ip.octets());
    attribute(&mut neighbour, 2, &mac);
    exchange(
        &host,
        &message(RTM_NEWNEIGH, CREATE | REPLACE, &neighbour),
        1,
    )
}

/// The messages that create the veth pair with its host end in the bridge.
fn pair(veth: &str, mac: &[u8], netns: &File, bridge: u32) -> Vec<u8> {
    let mut peer = link(0, 0);
    attribute(&mut peer, 3, b"eth0\0");
    attribute(&mut peer, 1, mac);
    attribute(&mut peer, 28, &netns.as_raw_fd().to_ne_bytes());
    one_queue(&mut peer);
    let mut data = Vec::new();
    attribute(&mut data, 1, &peer);
    let mut info = Vec::new();
    attribute(&mut info, 1, b"veth");
    attribute(&mut info, 2, &data);
    let mut pair = link(0, 1);
    attribute(&mut pair, 3, format!("{veth}\0").as_bytes());
    attribute(&mut pair, 1, &[0x0a, 0x59, mac[2], mac[3], mac[4], mac[5]]);
    attribute(&mut pair, 10, &bridge.to_ne_bytes());
    attribute(&mut pair, 18, &info);
    one_queue(&mut pair);
    let mut settings = Vec::new();
    attribute(&mut settings, 4, &[1]);
    let mut info = Vec::new();
    attribute(&mut info, 4, b"bridge");
    attribute(&mut info, 5, &settings);
    let mut port = link(0, 0);
    attribute(&mut port, 3, format!("{veth}\0").as_bytes());
    attribute(&mut port, 18, &info);
    let mut send = message(RTM_NEWLINK, CREATE | EXCL, &pair);
    send.extend(message(RTM_NEWLINK, 0, &port));
    send
}

fn del() -> io::Result<()> {
    let mut body = link(0, 0);
    attribute(&mut body, 3, format!("{}\0", var("FLOOR_VETH")?).as_bytes());
    exchange(&connect()?, &message(RTM_DELLINK, 0, &body), 1)
}

fn var(name: &str) -> io::Result<String> {
    env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")))
}

fn connect() -> io::Result<OwnedFd> {
    // NETLINK_ROUTE is protocol 0, the family's default.
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn enter(netns: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(
        netns.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Returns the index of the link called `name`.
fn index(socket: &OwnedFd, name: &str) -> io::Result<u32> {
    let mut body = link(0, 0);
    attribute(&mut body, 3, format!("{name}\0").as_bytes());
    // Without statistics (IFLA_EXT_MASK), which are most of the answer and not needed.
    attribute(&mut body, 29, &8_u32.to_ne_bytes());
    let mut send = message(RTM_GETLINK, 0, &body);
    send[6] = u8::try_from(REQUEST).expect("a small flag");
    let answer = answer(socket, &send)?;
    let code = i32::from_ne_bytes(answer[16..20].try_into().expect("four bytes"));
    if u16::from_ne_bytes([answer[4], answer[5]]) == 2 {
        return Err(io::Error::from_raw_os_error(-code));
    }
    Ok(u32::from_ne_bytes(
        answer[20..24].try_into().expect("four bytes"),
    ))
}

/// Sends messages and reads `count` acknowledgements.
fn exchange(socket: &OwnedFd, send: &[u8], mut count: usize) -> io::Result<()> {
    let mut answer = answer(socket, send)?;
    loop {
        let mut rest = &answer[..];
        while rest.len() >= 20 {
            let length = u32::from_ne_bytes(rest[..4].try_into().expect("four bytes")) as usize;
            let code = i32::from_ne_bytes(rest[16..20].try_into().expect("four bytes"));
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            count -= 1;
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        if count == 0 {
            return Ok(());
        }
        answer = receive(socket)?;
    }
}

fn answer(socket: &OwnedFd, send: &[u8]) -> io::Result<Vec<u8>> {
    sendto(
        socket,
        send,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    receive(socket)
}

fn receive(socket: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 8192];
    let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Builds a message from its header fields and body.
fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("a short message");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | REQUEST | ACK).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Builds the header of a link message. With `flags` 1 the link is set up.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

/// Sets one transmit and one receive queue, which is all that a veth uses.
fn one_queue(body: &mut Vec<u8>) {
    attribute(body, 31, &1_u32.to_ne_bytes());
    attribute(body, 32, &1_u32.to_ne_bytes());
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a short attribute");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
