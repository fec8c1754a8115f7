//! Measures what the network between two places carries, and what it costs.
//!
//! Sender and receiver are threads of this program. The cost is the time that all processors of this machine were
//! busy, so nothing else may run.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::sockets::Place;

/// The traffic that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// TCP as fast as possible; in Gbit.
    Stream,
    /// UDP packets with 64 bytes, as fast as possible; in thousands that arrive.
    Datagrams,
    /// One byte and its answer, over and over on one TCP connection; in thousands.
    Requests,
    /// The same, each on a connection of its own; in thousands.
    Connections,
}

/// The result of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Units in a second.
    pub rate: f64,
    /// Seconds of processor time for each unit.
    pub cost: f64,
}

/// Size of one read or write of a stream, in bytes.
const BLOCK: usize = 128 << 10;
const TIMEOUT: Duration = Duration::from_secs(5);

impl Load {
    /// Sends from one place to the address `to` of another, for about `duration`.
    ///
    /// # Panics
    ///
    /// If nothing arrives.
    pub fn measure(
        self,
        from: &impl Place,
        to: &impl Place,
        ip: IpAddr,
        duration: Duration,
    ) -> Sample {
        let busy = busy();
        let started = Instant::now();
        let units = match self {
            Self::Stream => stream(from, to, ip, duration),
            Self::Datagrams => datagrams(from, to, ip, duration),
            Self::Requests => requests(from, to, ip, duration),
            Self::Connections => connections(from, to, ip, duration),
        };
        let elapsed = started.elapsed().as_secs_f64();
        assert!(units > 0.0, "nothing arrived: {self:?} to {ip}");
        Sample {
            rate: units / elapsed,
            cost: (self::busy() - busy) / units,
        }
    }
}

/// The seconds that all processors of this machine were busy.
fn busy() -> f64 {
    /// The kernel's `USER_HZ`
    const TICKS: f64 = 100.0;
    let text = fs::read_to_string("/proc/stat").expect("every Linux has it");
    let line = text.lines().next().expect("a line of all processors");
    let times = line.split_whitespace().skip(1);
    let times: Vec<f64> = times.filter_map(|time| time.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    (times[0] + times[1] + times[2] + times[5] + times[6]) / TICKS
}

/// Keeps this thread on a processor, if the machine has it: figures vary with where threads run. What is a request
/// and its answer is on one, because waking the other would take longer than the network.
fn run_on(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    // With one processor there is no choice.
    sched_setaffinity(None, &set).ok();
}

fn listen(place: &impl Place, ip: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = place.enter(move || TcpListener::bind((ip, 0)));
    let listener = listener.unwrap_or_else(|error| panic!("listen on {ip}: {error}"));
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT);
    let stream = stream.unwrap_or_else(|error| panic!("connect to {to}: {error}"));
    stream.set_nodelay(true).expect("valid");
    stream.set_read_timeout(Some(TIMEOUT)).expect("valid");
    stream.set_write_timeout(Some(TIMEOUT)).expect("valid");
    stream
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

/// Returns the Gbit that arrived.
fn stream(from: &impl Place, to: &impl Place, ip: IpAddr, duration: Duration) -> f64 {
    let (listener, address) = listen(to, ip);
    let receiver = thread::spawn(move || {
        run_on(1);
        let (mut stream, _) = listener.accept().expect("a connection");
        let (mut buffer, mut bytes) = (vec![0; BLOCK], 0_u64);
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            bytes += u64::try_from(count).expect("fits");
        }
        bytes
    });
    from.enter(move || {
        run_on(0);
        let mut stream = connect(address);
        let end = Instant::now() + duration;
        let block = vec![7; BLOCK];
        while Instant::now() < end {
            stream.write_all(&block).expect("the receiver reads");
        }
    });
    float(receiver.join().expect("it does not panic")) * 8e-9
}

/// Returns the thousands of packets that arrived.
fn datagrams(from: &impl Place, to: &impl Place, ip: IpAddr, duration: Duration) -> f64 {
    let socket = to.enter(move || UdpSocket::bind((ip, 0)));
    let socket = socket.expect("the place has the address");
    let address = socket.local_addr().expect("it is bound");
    let short = Some(Duration::from_millis(50));
    socket.set_read_timeout(short).expect("valid");
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let receiver = thread::spawn(move || {
        run_on(1);
        let (mut buffer, mut count) = ([0; 64], 0_u64);
        let mut is_answered = false;
        loop {
            match socket.recv_from(&mut buffer) {
                Ok((_, sender)) => {
                    count += 1;
                    // An answer, as every real flow has it: the flow is established then.
                    if !is_answered {
                        is_answered = socket.send_to(b"x", sender).is_ok();
                    }
                }
                Err(_) if over.load(Ordering::Relaxed) => return count,
                Err(_) => {}
            }
        }
    });
    from.enter(move || {
        run_on(0);
        let socket = UdpSocket::bind((unspecified(ip), 0)).expect("a free port");
        socket.connect(address).expect("there is a route");
        let end = Instant::now() + duration;
        let packet = [7; 64];
        let mut sent = 0_u32;
        while !sent.is_multiple_of(64) || Instant::now() < end {
            // A full queue is no reason to stop.
            drop(socket.send(&packet));
            sent = sent.wrapping_add(1);
        }
    });
    is_over.store(true, Ordering::Relaxed);
    float(receiver.join().expect("it does not panic")) / 1e3
}

fn unspecified(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    }
}

/// Returns the thousands of answers.
fn requests(from: &impl Place, to: &impl Place, ip: IpAddr, duration: Duration) -> f64 {
    let (listener, address) = listen(to, ip);
    let server = thread::spawn(move || {
        run_on(0);
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_nodelay(true).expect("valid");
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            stream.write_all(&byte).expect("the client reads");
        }
    });
    let count = from.enter(move || {
        run_on(0);
        let mut stream = connect(address);
        let end = Instant::now() + duration;
        let mut count = 0;
        while Instant::now() < end {
            stream.write_all(b"x").expect("the server reads");
            stream.read_exact(&mut [0]).expect("the server answers");
            count += 1;
        }
        count
    });
    server.join().expect("it does not panic");
    float(count) / 1e3
}

/// Returns the thousands of connections.
fn connections(from: &impl Place, to: &impl Place, ip: IpAddr, duration: Duration) -> f64 {
    let (listener, address) = listen(to, ip);
    let server = thread::spawn(move || {
        run_on(0);
        let mut byte = [0];
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            // The last connection sends nothing.
            if !matches!(stream.read(&mut byte), Ok(1)) {
                break;
            }
            stream.write_all(&byte).expect("the client reads");
        }
    });
    let count = from.enter(move || {
        run_on(0);
        let end = Instant::now() + duration;
        let mut count = 0;
        while Instant::now() < end {
            let mut stream = connect(address);
            stream.write_all(b"x").expect("the server reads");
            stream.read_exact(&mut [0]).expect("the server answers");
            count += 1;
        }
        drop(connect(address));
        count
    });
    server.join().expect("it does not panic");
    float(count) / 1e3
}
