//! Contenders, and how they are timed.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A plugin with its configuration.
#[derive(Clone)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    path: PathBuf,
    conf: Value,
}

/// Returns a configuration in bridge's form, with default route and hairpin mode, on `cni0`, with
/// an address from each subnet.
pub(crate) fn bridge_conf(network: &str, subnets: &[&str]) -> Value {
    let ranges = subnets.iter().map(|subnet| json!([{"subnet": subnet}]));
    json!({
        "cniVersion": "1.0.0",
        "name": network,
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": true,
        "hairpinMode": true,
        "ipam": {"type": "host-local", "ranges": ranges.collect::<Vec<_>>()},
    })
}

/// Returns a configuration in flannel's form, as kube-flannel has it.
pub(crate) fn flannel_conf(network: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": network,
        "type": "flannel",
        "delegate": {"isDefaultGateway": true, "hairpinMode": true},
    })
}

impl Contender {
    pub(crate) fn new(name: &'static str, path: PathBuf, conf: Value) -> Self {
        Self { name, path, conf }
    }

    /// Returns the contender on another bridge.
    pub(crate) fn on(&self, bridge: &str) -> Self {
        let mut other = self.clone();
        other.conf["bridge"] = json!(bridge);
        other
    }

    /// Returns the contender with masquerading.
    pub(crate) fn with_masquerade(mut self) -> Self {
        self.conf["ipMasq"] = json!(true);
        self
    }

    /// Returns the contender with its reservations in another directory.
    pub(crate) fn with_data_dir(mut self, directory: &str) -> Self {
        self.conf["ipam"]["dataDir"] = json!(directory);
        self
    }

    pub(crate) fn network(&self) -> &str {
        self.conf["name"].as_str().expect("has a name")
    }

    /// Sends one request for one pod, and returns the time from the start of the process to its
    /// end.
    pub(crate) fn call(&self, verb: &str, pod: usize) -> Duration {
        self.call_by(Command::new(&self.path), verb, pod).0
    }

    /// Sends one request by a program that starts the plugin, and returns the standard error of
    /// both.
    pub(crate) fn call_under(&self, program: &[&str], verb: &str, pod: usize) -> String {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(&self.path);
        self.call_by(command, verb, pod).1
    }

    fn call_by(&self, mut command: Command, verb: &str, pod: usize) -> (Duration, String) {
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("p{pod}"))
            .env("CNI_NETNS", format!("/run/netns/p{pod}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/usr/lib/cni")
            .env(
                "FLOOR_BRIDGE",
                self.conf["bridge"].as_str().unwrap_or("cni0"),
            )
            .env("FLOOR_VETH", format!("vethf{pod}"))
            .env("FLOOR_IP", format!("10.10.1.{}", pod % 250 + 2))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let conf = self.conf.to_string();
        let begin = Instant::now();
        let mut child = command.spawn().expect("the contender can be started");
        let mut stdin = child.stdin.take().expect("the stream is piped");
        // The floor does not read it.
        drop(stdin.write_all(conf.as_bytes()));
        drop(stdin);
        let output = child.wait_with_output().expect("a child can be waited for");
        let time = begin.elapsed();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{} {verb} p{pod}: {}{stderr}",
            self.name,
            String::from_utf8_lossy(&output.stdout)
        );
        (time, stderr)
    }
}

/// Median times of each contender.
pub(crate) struct Timed {
    pub(crate) add: Vec<Duration>,
    pub(crate) del: Vec<Duration>,
}

impl Timed {
    /// Times ADD and DEL of each contender for each of `pods`, one request at a time, with the
    /// contenders taking turns.
    pub(crate) fn serial(contenders: &[Contender], pods: usize) -> Self {
        let mut add = vec![Vec::new(); contenders.len()];
        let mut del = add.clone();
        for pod in 0..pods {
            for turn in 0..contenders.len() {
                // Alternately forwards and backwards, so that no contender always follows the same
                // other.
                let turn = if pod % 2 == 0 {
                    turn
                } else {
                    contenders.len() - 1 - turn
                };
                let i = (pod / 2 + turn) % contenders.len();
                add[i].push(contenders[i].call("ADD", pod));
                // A DEL waits for RCU grace periods, which end with the clock's ticks. It should
                // begin at any time between two ticks, and not always at the same distance from the
                // previous request.
                let offset = (pod * contenders.len() + turn) * 1237 % 10_000;
                thread::sleep(Duration::from_micros(offset.try_into().expect("small")));
                del[i].push(contenders[i].call("DEL", pod));
            }
        }
        Self {
            add: add.into_iter().map(median).collect(),
            del: del.into_iter().map(median).collect(),
        }
    }

    /// Times several concurrent requests in each of several rounds, and returns the total time
    /// divided by the number of requests.
    pub(crate) fn concurrent(contenders: &[Contender], lanes: usize, rounds: usize) -> Self {
        let many = |contender: &Contender, verb: &str| {
            let begin = Instant::now();
            thread::scope(|scope| {
                for lane in 0..lanes {
                    scope.spawn(move || {
                        for round in 0..rounds {
                            contender.call(verb, lane * rounds + round);
                        }
                    });
                }
            });
            begin.elapsed() / u32::try_from(lanes * rounds).expect("a small number")
        };
        let mut add = vec![Vec::new(); contenders.len()];
        let mut del = add.clone();
        for _ in 0..3 {
            for (i, contender) in contenders.iter().enumerate() {
                add[i].push(many(contender, "ADD"));
                del[i].push(many(contender, "DEL"));
            }
        }
        Self {
            add: add.into_iter().map(median).collect(),
            del: del.into_iter().map(median).collect(),
        }
    }
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
