//! TCP and UDP sockets in the network namespaces of nodes and pods, used by this program.
//!
//! A socket stays in the network namespace in which it was created, so that a thread enters the
//! namespace only to create it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::lab::{Node, Pod};

/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A place with a network namespace: a node or a pod.
pub trait Place {
    /// Opens the network namespace.
    fn network(&self) -> File;

    /// Runs `work` in the network namespace.
    fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let network = self.network();
        let thread = thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root can enter a network namespace");
            work()
        });
        thread.join().expect("the thread does not panic")
    }

    /// Connects to a server of [`answer`](Place::answer) and returns its answer.
    ///
    /// # Errors
    ///
    /// If nobody answers within two seconds.
    fn ask(&self, address: &str) -> io::Result<String> {
        let address: SocketAddr = address.parse().expect("an address with a port");
        self.enter(move || {
            let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// Returns true if nothing answers a TCP connection to `address` within a third of a second.
    fn is_closed(&self, address: &str) -> bool {
        const SHORT: Duration = Duration::from_millis(300);
        let address: SocketAddr = address.parse().expect("an address with a port");
        self.enter(move || TcpStream::connect_timeout(&address, SHORT).is_err())
    }

    /// Opens a UDP socket that waits for answers for two seconds at most.
    fn udp_client(&self) -> UdpClient {
        self.enter(|| {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a free port");
            socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
            UdpClient(socket)
        })
    }

    /// Answers every TCP connection and every UDP packet to `port` with `name` and the client's
    /// address, until the returned value is dropped.
    fn answer(&self, port: u16, name: &str) -> Answering {
        let (tcp, udp) = self.enter(move || {
            let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a free port");
            let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a free port");
            (tcp, udp)
        });
        tcp.set_nonblocking(true).expect("a socket");
        udp.set_nonblocking(true).expect("a socket");
        let is_stopped = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&is_stopped), name.to_owned());
        let text = move |peer: SocketAddr| format!("{name} {}", peer.ip().to_canonical());
        let thread = thread::spawn(move || {
            let mut packet = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((mut stream, peer)) = tcp.accept() {
                    drop(stream.write_all(text(peer).as_bytes()));
                }
                if let Ok((_, peer)) = udp.recv_from(&mut packet) {
                    drop(udp.send_to(text(peer).as_bytes(), peer));
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Answering {
            is_stopped,
            thread: Some(thread),
        }
    }
}

impl Place for Node<'_> {
    fn network(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.pid())).expect("the node exists")
    }
}

impl Place for Pod<'_> {
    fn network(&self) -> File {
        File::open(self.node().path(&self.netns())).expect("the pod exists")
    }
}

/// A server that answers until it is dropped.
pub struct Answering {
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A UDP socket of a client. Its port stays the same for all packets.
pub struct UdpClient(UdpSocket);

impl UdpClient {
    /// Sends a packet and returns the answer.
    ///
    /// # Errors
    ///
    /// If nobody answers within two seconds, or the address refuses the packet.
    pub fn ask(&self, address: &str) -> io::Result<String> {
        let address: SocketAddr = address.parse().expect("an address with a port");
        // The socket is one of IPv6, which reaches IPv4 by mapped addresses.
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
            v6 @ IpAddr::V6(_) => v6,
        };
        self.0.send_to(b"?", SocketAddr::new(ip, address.port()))?;
        let mut packet = [0; 64];
        let (length, _) = self.0.recv_from(&mut packet)?;
        Ok(String::from_utf8_lossy(&packet[..length]).into_owned())
    }
}
