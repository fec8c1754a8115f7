//! Flows between two places, whose both ends this program has.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::sockets::Place;

/// Timeout of each send and receive.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A TCP connection.
#[derive(Debug)]
pub struct TcpFlow {
    /// The end that connected.
    pub near: TcpStream,
    /// The end that accepted.
    pub far: TcpStream,
}

impl TcpFlow {
    /// Connects `near` to `to`, whose connections arrive at the address and port `at` of `far`: the same, or what
    /// a rule translates it to.
    ///
    /// # Panics
    ///
    /// If there is no connection within three seconds.
    pub fn open(near: &impl Place, to: SocketAddr, far: &impl Place, at: SocketAddr) -> Self {
        let listener = far.enter(move || TcpListener::bind(at));
        let listener = listener.unwrap_or_else(|error| panic!("listen on {at}: {error}"));
        let near = near.enter(move || TcpStream::connect_timeout(&to, TIMEOUT));
        let near = near.unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        let (far, _) = listener.accept().expect("the connection is there");
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(TIMEOUT)).expect("valid");
            stream.set_write_timeout(Some(TIMEOUT)).expect("valid");
            stream.set_nodelay(true).expect("valid");
        }
        Self { near, far }
    }

    /// Sends `length` bytes in each direction, less than the buffers of a socket have room for.
    ///
    /// # Errors
    ///
    /// If they do not arrive within three seconds.
    pub fn exchange(&mut self, length: usize) -> io::Result<()> {
        let data: Vec<_> = (0..=u8::MAX).cycle().take(length).collect();
        let mut received = vec![0; length];
        self.near.write_all(&data)?;
        self.far.read_exact(&mut received)?;
        self.far.write_all(&received)?;
        self.near.read_exact(&mut received)?;
        if received == data {
            Ok(())
        } else {
            Err(ErrorKind::InvalidData.into())
        }
    }

    /// Sends much in one direction, and returns how much arrived: all of it, unless nothing arrives for three
    /// seconds.
    ///
    /// # Errors
    ///
    /// If a send or a receive fails.
    pub fn stream(&mut self, length: usize) -> io::Result<usize> {
        let mut near = self.near.try_clone()?;
        let sender = std::thread::spawn(move || near.write_all(&vec![7; length]));
        let mut left = length;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            match self.far.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => left -= count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        drop(sender.join());
        Ok(length - left)
    }
}

/// Two UDP sockets.
#[derive(Debug)]
pub struct UdpFlow {
    near: UdpSocket,
    far: UdpSocket,
}

impl UdpFlow {
    /// Opens both ends at these addresses.
    ///
    /// # Panics
    ///
    /// If a socket cannot be opened.
    pub fn open(near: (&impl Place, IpAddr), far: (&impl Place, IpAddr)) -> Self {
        let open = |socket: io::Result<UdpSocket>| socket.expect("the place has the address");
        let (near_ip, far_ip) = (near.1, far.1);
        let near = open(near.0.enter(move || UdpSocket::bind((near_ip, 0))));
        let far = open(far.0.enter(move || UdpSocket::bind((far_ip, 0))));
        for (socket, other) in [(&near, &far), (&far, &near)] {
            let other = other.local_addr().expect("it is bound");
            socket.connect(other).expect("there is a route");
            socket.set_read_timeout(Some(TIMEOUT)).expect("valid");
        }
        Self { near, far }
    }

    /// Sends a datagram in each direction at once. Returns true if one arrives within three seconds.
    #[must_use]
    pub fn any_arrives(&self) -> bool {
        // A send fails if the last datagram was refused.
        drop((self.near.send(b"any"), self.far.send(b"any")));
        let arrived = [&self.near, &self.far].map(|socket| socket.recv(&mut [0; 8]).is_ok());
        arrived.contains(&true)
    }

    /// Sends a datagram of `length` bytes in each direction.
    ///
    /// # Errors
    ///
    /// If it does not arrive within three seconds.
    pub fn exchange(&self, length: usize) -> io::Result<()> {
        for (from, to) in [(&self.near, &self.far), (&self.far, &self.near)] {
            from.send(&vec![7; length])?;
            let mut received = vec![0; length + 1];
            if to.recv(&mut received)? != length {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        Ok(())
    }
}
