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
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::lab::{Node, Pod};

/// Timeout of a client.
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

    /// Starts to send to `receiver` at `address`, for three seconds and as fast as possible.
    fn send_to(&self, receiver: &impl Place, address: &str, transport: Transport) -> Transfer {
        let address: SocketAddr = address.parse().expect("an address with a port");
        let any = (Ipv6Addr::UNSPECIFIED, address.port());
        let receive: Receive = match transport {
            Transport::Tcp => {
                let listener = receiver.enter(move || TcpListener::bind(any));
                let listener = listener.expect("a free port");
                let mut stream = None;
                Box::new(move |buffer| {
                    if stream.is_none() {
                        let (accepted, _) = listener.accept()?;
                        accepted.set_read_timeout(Some(TIMEOUT))?;
                        stream = Some(accepted);
                    }
                    stream.as_mut().expect("just accepted").read(buffer)
                })
            }
            Transport::Udp => {
                let socket = receiver
                    .enter(move || UdpSocket::bind(any))
                    .expect("a free port");
                socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
                Box::new(move |buffer| socket.recv(buffer))
            }
        };
        let counted = thread::spawn(move || count(receive));
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let sender = self.enter(move || match transport {
            Transport::Tcp => TcpStream::connect_timeout(&address, TIMEOUT).map(Sender::Tcp),
            Transport::Udp => {
                let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
                Ok(Sender::Udp(socket, mapped(address)))
            }
        });
        let mut sender = sender.expect("the receiver can be reached");
        let sending = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                sender.send();
            }
        });
        Transfer {
            counted,
            is_over,
            sending,
        }
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

/// Reads what arrives next.
type Receive = Box<dyn FnMut(&mut [u8]) -> io::Result<usize> + Send>;

/// A transfer that was started.
pub struct Transfer {
    counted: JoinHandle<f64>,
    is_over: Arc<AtomicBool>,
    sending: JoinHandle<()>,
}

impl Transfer {
    /// Waits for the end. Returns the rate of what arrived after the first half second, in bits of
    /// payload per second.
    pub fn rate(self) -> f64 {
        let rate = self.counted.join().expect("the thread does not panic");
        self.is_over.store(true, Ordering::Relaxed);
        self.sending.join().expect("the thread does not panic");
        rate
    }
}

/// Sends the first packet of an SCTP association from `client` to port `to`, and returns the port that
/// it has where it arrives at `server`. `None` if it does not arrive within a second.
///
/// Raw sockets of IPv4: a kernel may track connections of SCTP and have no sockets of it.
///
/// # Panics
///
/// If raw sockets cannot be opened, which requires root.
pub fn sctp_arrives(client: &impl Place, to: &str, server: &impl Place) -> Option<u16> {
    use rustix::net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, recv, sendto, socket, sockopt,
    };
    const SCTP: u32 = 132;
    let open = || {
        let number = rustix::net::RawProtocol::new(SCTP).expect("not 0");
        let protocol = Some(Protocol::from_raw(number));
        socket(AddressFamily::INET, SocketType::RAW, protocol).expect("root may open a raw socket")
    };
    let to: SocketAddr = to.parse().expect("an address with a port");
    let (sending, receiving) = (client.enter(open), server.enter(open));
    let timeout = Some(Duration::from_secs(1));
    sockopt::set_socket_timeout(&receiving, sockopt::Timeout::Recv, timeout).expect("a timeout");
    // Ports, verification tag, checksum; then INIT with tag, window, two counts and a sequence number.
    let mut packet = [40_000_u16.to_be_bytes(), to.port().to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20, 1, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    sendto(
        &sending,
        &packet,
        SendFlags::empty(),
        &SocketAddr::new(to.ip(), 0),
    )
    .expect("there is a route");
    let mut received = [0; 128];
    let (_, length) = recv(&receiving, &mut received, RecvFlags::empty()).ok()?;
    // Behind the header of IPv4.
    let ports = received[..length].get(20..24)?;
    Some(u16::from_be_bytes([ports[2], ports[3]]))
}

/// The checksum of SCTP (RFC 9260).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    };
    !bytes.iter().fold(!0, step)
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say everything")]
pub enum Transport {
    Tcp,
    Udp,
}

enum Sender {
    Tcp(TcpStream),
    Udp(UdpSocket, SocketAddr),
}

impl Sender {
    fn send(&mut self) {
        match self {
            Self::Tcp(stream) => drop(stream.write(&[0; 16 << 10])),
            Self::Udp(socket, address) => {
                drop(socket.send_to(&[0; 1200], *address));
                thread::sleep(Duration::from_micros(100));
            }
        }
    }
}

/// Counts what arrives between half a second and three seconds. Returns bits per second.
fn count(mut receive: Receive) -> f64 {
    let mut buffer = vec![0; 64 << 10];
    let first = receive(&mut buffer).expect("something arrives");
    assert!(first > 0);
    let begin = Instant::now();
    let (mut bytes, mut counted_from) = (0, None);
    loop {
        let length = receive(&mut buffer).expect("packets keep arriving");
        let elapsed = begin.elapsed();
        if elapsed < Duration::from_millis(500) {
            continue;
        }
        let from = *counted_from.get_or_insert_with(Instant::now);
        if elapsed > Duration::from_secs(3) {
            return f64::from(bytes) * 8.0 / from.elapsed().as_secs_f64();
        }
        bytes += u32::try_from(length).expect("a short read");
    }
}

/// The address for a socket of IPv6, which reaches IPv4 by mapped addresses.
fn mapped(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        v6 @ IpAddr::V6(_) => v6,
    };
    SocketAddr::new(ip, address.port())
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
        self.0.send_to(b"?", mapped(address))?;
        let mut packet = [0; 64];
        let (length, _) = self.0.recv_from(&mut packet)?;
        Ok(String::from_utf8_lossy(&packet[..length]).into_owned())
    }
}
