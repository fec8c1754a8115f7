//! Measuring instruments: the kernel's route events, its accounting of a process, and a writer to
//! etcd with very little overhead.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use conformance::Node;
use serde_json::Value;

/// The route events of a node with their times, as `ip monitor` prints them.
pub(crate) struct Routes {
    monitor: Child,
    lines: BufReader<ChildStdout>,
}

impl Routes {
    pub(crate) fn watch(node: &Node<'_>) -> io::Result<Self> {
        let inner = node.command("ip");
        let mut monitor = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "stdbuf", "-oL"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .args(["-ts", "monitor", "route"])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(monitor.stdout.take().expect("the stream is piped"));
        // `ip monitor` prints nothing when it starts to listen.
        sleep(Duration::from_millis(200));
        Ok(Self { monitor, lines })
    }

    /// Waits for a route to `subnet`, and returns when it was added.
    pub(crate) fn wait(&mut self, subnet: &str) -> io::Result<SystemTime> {
        self.wait_for(subnet, "", UNIX_EPOCH)
    }

    /// Waits for a route to `subnet` by `via` that was added at `since` or later, and returns when.
    pub(crate) fn wait_for(
        &mut self,
        subnet: &str,
        via: &str,
        since: SystemTime,
    ) -> io::Result<SystemTime> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line)? == 0 {
                return Err(io::Error::other("ip monitor ended"));
            }
            let mut words = line.split_whitespace();
            let stamp = words
                .next()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned();
            let matches = words.next() == Some(subnet) && line.contains(via);
            if matches && time(&stamp) >= since {
                return Ok(time(&stamp));
            }
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        drop(self.monitor.kill());
        drop(self.monitor.wait());
    }
}

/// Parses a timestamp such as `2026-11-24T19:29:31.123456`, in the machine's time zone.
pub(crate) fn time(stamp: &str) -> SystemTime {
    let stamp = stamp.trim_end_matches('Z');
    let (clock, fraction) = stamp.split_once('.').unwrap_or((stamp, "0"));
    let clock = clock.rsplit('T').next().unwrap_or_default();
    let number = |text: &str| text.parse::<u64>().unwrap_or_default();
    let seconds = clock
        .split(':')
        .fold(0, |sum, part| sum * 60 + number(part));
    let micros = number(&format!("{fraction:0<6}"));
    // The date is assumed to be today's, so a benchmark at midnight must be repeated.
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let day = since.as_secs() / 86400 * 86400;
    UNIX_EPOCH + Duration::from_secs(day + seconds) + Duration::from_micros(micros)
}

/// Requests to etcd over one connection, each answered before the next is sent.
pub(crate) struct Writer {
    stream: BufReader<TcpStream>,
}

impl Writer {
    /// Connects from `node` to etcd at `address`.
    pub(crate) fn open(node: &Node<'_>, address: Ipv4Addr) -> io::Result<Self> {
        let stream = node.connect((address, 2379).into())?;
        // Without this, the last part of a request waits until the first has been acknowledged.
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    pub(crate) fn put(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.post("/v3/kv/put", &conformance::etcd::put(key, value))
    }

    pub(crate) fn delete(&mut self, key: &str) -> io::Result<()> {
        self.post("/v3/kv/deleterange", &conformance::etcd::delete(key))
    }

    fn post(&mut self, path: &str, body: &Value) -> io::Result<()> {
        let body = body.to_string();
        let length = body.len();
        let request =
            format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {length}\r\n\r\n{body}");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        let mut length = 0;
        let mut is_good = false;
        while line != "\r\n" {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::Error::other("etcd ended the connection"));
            }
            is_good |= line.starts_with("HTTP/1.1 200");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        if is_good {
            return Ok(());
        }
        Err(io::Error::other(
            String::from_utf8_lossy(&answer).into_owned(),
        ))
    }
}

/// Returns the CPU time that a process has used.
pub(crate) fn cpu(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanos = text
        .split(' ')
        .next()
        .and_then(|number| number.parse().ok());
    nanos
        .map(Duration::from_nanos)
        .ok_or_else(|| io::Error::other(text))
}

/// Returns the peak resident memory of a process in MB.
pub(crate) fn peak(pid: u32) -> io::Result<f64> {
    let lines = BufReader::new(File::open(format!("/proc/{pid}/status"))?).lines();
    for line in lines {
        if let Some(rest) = line?.strip_prefix("VmHWM:") {
            let kib: f64 = rest
                .trim()
                .trim_end_matches(" kB")
                .parse()
                .map_err(io::Error::other)?;
            return Ok(kib * 1024.0 / 1e6);
        }
    }
    Err(io::Error::other(
        "the kernel does not report the memory of the process",
    ))
}
