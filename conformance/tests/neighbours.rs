//! The limits on neighbour entries. They belong to the whole kernel, so this test runs only in the virtual
//! machine of tests/kernels.rs.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use conformance::{dist, wait_within};
use serde_json::json;

const PEERS: u32 = 3000;

/// An agent in the namespace of this program. It is killed when this value is dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output();
    let output = output.expect("every system has a shell");
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the address of a peer.
fn address(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0100 + i)
}

/// Returns how often the kernel had no room for a neighbour, on all processors.
fn overflows() -> u64 {
    let text = fs::read_to_string("/proc/net/stat/arp_cache").expect("the kernel has the file");
    let mut lines = text.lines();
    let names = lines.next().expect("a line with names");
    let column = names
        .split_whitespace()
        .position(|name| name == "table_fulls");
    let column = column.expect("kernels since 4.0 count it");
    let count = |line: &str| {
        let word = line.split_whitespace().nth(column)?;
        u64::from_str_radix(word, 16).ok()
    };
    lines.filter_map(count).sum()
}

/// Sends a packet to each peer, and returns the number of those that the kernel refused. The socket does
/// not learn of it.
fn refused() -> u64 {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
    let before = overflows();
    for i in 0..PEERS {
        // An error is the answer to an earlier packet: nobody listens there.
        drop(socket.send_to(b"x", (address(i), 9)));
    }
    overflows() - before
}

fn limit(family: &str, number: u8) -> u32 {
    let path = format!("/proc/sys/net/{family}/neigh/default/gc_thresh{number}");
    let text = fs::read_to_string(path).expect("this is the first network namespace");
    text.trim().parse().expect("a number")
}

fn cluster() -> String {
    let node = |i: u32| {
        let name = format!("n-{i}");
        json!({
            "name": name, "publicIP": address(i), "publicIPv6": format!("fd00::1:{i:x}"),
            "subnet": format!("{}/24", Ipv4Addr::from(0x0a40_0000 + (i << 8))),
            "ipv6Subnet": format!("fd00:64:{i:x}::/64"),
        })
    };
    let mut nodes: Vec<_> = (0..PEERS).map(node).collect();
    nodes.push(json!({
        "name": "self", "publicIP": "172.16.0.1", "publicIPv6": "fd00::1",
        "subnet": "10.127.1.0/24", "ipv6Subnet": "fd00:64:fff:1::/64",
    }));
    let network = json!({
        "Network": "10.64.0.0/10", "EnableIPv6": true, "IPv6Network": "fd00:64::/32",
        "Backend": {"Type": "host-gw"},
    });
    json!({"network": network, "nodes": nodes}).to_string()
}

#[test]
fn a_node_talks_to_3000_neighbours_at_once() {
    assert!(
        Path::new("/run/virtual-machine").exists(),
        "this changes the whole kernel: it runs in the virtual machine of `make kernels`"
    );
    // The other side of the link answers for each address.
    sh(
        "ip netns add peers; ip link add up0 type veth peer name eth0 netns peers; ip link set up0 up; \
        ip addr add 172.16.0.1/12 dev up0; ip addr add fd00::1/64 dev up0 nodad; \
        ip netns exec peers sh -c 'ip link set lo up; ip link set eth0 up; \
          for to in 1.0/24 2.0/23 4.0/22 8.0/21; do ip route add local 172.16.$to dev lo; done; ip addr add 172.31.255.254/12 dev eth0'",
    );
    assert_eq!(limit("ipv4", 3), 1024, "the kernel's default");
    let without = refused();
    assert!(without > 0, "nothing was refused without the agent");
    eprintln!("{without} of {PEERS} refused without the agent");
    sh("ip link set up0 down; ip link set up0 up; ip -6 addr replace fd00::1/64 dev up0 nodad");

    fs::write("/run/cluster.json", cluster()).expect("writable");
    let agent = Command::new(dist().join("hostgw-agent"))
        .args([
            "run",
            "--cluster=/run/cluster.json",
            "--node-name=self",
            "--iface=up0",
        ])
        .spawn();
    let agent = Agent(agent.expect("the executable is built"));
    let minute = Duration::from_secs(60);
    wait_within("the limits are raised", minute, || {
        ["ipv4", "ipv6"].map(|family| limit(family, 3)) == [16384; 2]
    });
    assert_eq!((limit("ipv4", 1), limit("ipv4", 2)), (4096, 8192));
    assert_eq!(refused(), 0);
    let known = sh("ip neigh show dev up0 | grep -c lladdr");
    assert!(
        known.trim().parse().is_ok_and(|known: u32| known >= PEERS),
        "{known}"
    );
    let status = sh(&format!(
        "{} status | grep neighbours",
        dist().join("hostgw-agent").display()
    ));
    assert_eq!(
        status.split_whitespace().collect::<Vec<_>>().join(" "),
        "neighbours IPv4 4096/8192/16384, IPv6 4096/8192/16384"
    );

    // What an administrator sets is never lowered.
    sh("echo 50000 >/proc/sys/net/ipv4/neigh/default/gc_thresh3");
    sh(&format!("kill -HUP {}", agent.0.id()));
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(limit("ipv4", 3), 50000);
}
