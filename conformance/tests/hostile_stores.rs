//! Stores that say what no honest node would, and stores that fail at random: the routes are always
//! those of the valid leases.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use conformance::chance::Rng;
use conformance::reference_picture::{Family, nodes};
use conformance::{Agent, Etcd, Lab, Node, wait_for, wait_within};
use serde_json::{Value, json};

/// Returns the value of a lease of the node with this address.
fn value(address: &str) -> String {
    let (ipv4, ipv6) = if address.contains(':') {
        ("0.0.0.0", Some(address))
    } else {
        (address, None)
    };
    json!({"PublicIP": ipv4, "PublicIPv6": ipv6, "BackendType": "host-gw"}).to_string()
}

/// Returns the agent's routes: each destination and next hop.
fn routes(node: &Node<'_>) -> BTreeSet<String> {
    let text = node
        .sh("ip route show proto 104; ip -6 route show proto 104")
        .ok();
    let route = |line: &str| {
        let mut words = line.split_whitespace();
        let (to, via) = (words.next(), words.nth(1));
        format!("{} via {}", to.unwrap_or_default(), via.unwrap_or_default())
    };
    text.lines().map(route).collect()
}

fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json");
    serde_json::from_str(&text.stdout).unwrap_or_default()
}

/// Returns why a lease is not routed, for each of its subnets.
fn reasons(status: &Value, lease: &str) -> Vec<String> {
    let peers = status["peers"].as_array().into_iter().flatten();
    let mine = peers.filter(|peer| peer["node"] == lease && peer["state"] == "refused");
    mine.map(|peer| peer["reason"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Leases in the network 192.168.0.0/16 that no honest node writes: subnet, address, and why they
/// are refused without and with `--onlink`.
#[rustfmt::skip]
const CLAIMS: [(&str, &str, &str, &str); 28] = [
    ("192.168.101.128-25", "192.168.2.15", "overlaps", "overlaps"),
    ("192.168.100.0-22", "192.168.2.15", "overlaps", "overlaps"),
    ("192.168.0.0-16", "192.168.2.15", "cut this", "cut this"),
    ("0.0.0.0-0", "192.168.2.15", "key is not", "key is not"),
    ("0.0.0.0-1", "192.168.2.15", "outside", "outside"),
    ("128.0.0.0-1", "192.168.2.15", "outside", "outside"),
    ("127.0.0.0-8", "192.168.2.15", "outside", "outside"),
    ("224.0.0.0-24", "192.168.2.15", "outside", "outside"),
    ("169.254.0.0-16", "192.168.2.15", "outside", "outside"),
    ("0.0.0.0-0&::-1", "fd00:192:168:2::15", "outside", "outside"),
    ("192.168.2.0-24", "192.168.2.15", "cut this", "cut this"),
    ("192.168.2.16-31", "192.168.2.15", "cut this", "cut this"),
    ("192.168.2.128-25", "192.168.2.15", "cut this", "cut this"),
    ("192.168.0.0-18", "192.168.2.15", "cut this", "cut this"),
    ("192.168.77.0-24", "192.168.2.15", "cut this", "cut this"),
    ("192.168.77.128-25", "192.168.2.15", "cut this", "cut this"),
    ("192.168.10.0-24", "192.168.2.16", "not the address", "not the address"),
    ("192.168.11.0-24", "127.0.0.1", "not the address", "not the address"),
    ("192.168.12.0-24", "224.0.0.1", "not the address", "not the address"),
    ("192.168.13.0-24", "192.168.2.116", "not the address", "not the address"),
    ("192.168.14.0-24", "172.20.0.1", "not the address", "not the address"),
    ("192.168.15.0-24", "192.168.101.7", "on the link", "not the address"),
    ("192.168.16.0-24", "169.254.1.1", "on the link", ROUTED),
    ("192.168.17.0-24", "192.168.2.255", "gateway", "gateway"),
    ("192.168.18.0-24", "255.255.255.255", "not the address", "not the address"),
    ("192.168.19.0-24", "0.0.0.0", "no address", "no address"),
    ("192.168.20.0-24", "0.0.0.7", "not the address", "not the address"),
    ("192.168.21.0-24", "192.168.50.9", "on the link", "not the address"),
];
const ROUTED: &str = "";

#[test]
fn no_claim_of_a_peer_diverts_what_the_node_needs() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({
        "Network": "192.168.0.0/16", "SubnetMin": "192.168.101.0", "SubnetMax": "192.168.101.0"
    }));
    let worker1 = &nodes[1];
    worker1
        .sh(
            "ip link add br1 type bridge && ip addr add 192.168.2.116/32 dev br1 && \
             ip addr add 172.20.0.1/24 dev br1 && ip link set br1 up && \
             ip link add eth1 type veth peer name eth2 && ip addr add 192.168.77.1/24 dev eth1 && \
             ip link set eth1 up && ip link set eth2 up",
        )
        .ok();
    let put = |key: &str, address: &str| {
        let key = format!("'/coreos.com/network/subnets/{key}'");
        etcd.ctl(&format!("put {key} '{}'", value(address))).ok();
    };
    // One claim is older than this node's lease.
    put("192.168.0.0-16", "192.168.2.15");
    let endpoints = format!("--etcd-endpoints={}", etcd.url());
    let start = |onlink: bool| {
        let agent = Agent::start(worker1, &[&endpoints, &format!("--onlink={onlink}")]);
        let file = worker1.path("/run/flannel/subnet.env");
        wait_for(&format!("a subnet: {}", agent.log()), || file.exists());
        agent
    };
    let mut agent = start(false);
    put("192.168.50.0-24", "192.168.2.17");
    for (key, address, ..) in CLAIMS {
        put(key, address);
    }
    put("192.168.60.0-24", "192.168.2.14");
    for onlink in [false, true] {
        let mut expected: BTreeSet<_> = ["50.0/24 via 192.168.2.17", "60.0/24 via 192.168.2.14"]
            .map(|route| format!("192.168.{route}"))
            .into();
        let of = |claim: &(&str, &str, &'static str, &'static str)| {
            if onlink { claim.3 } else { claim.2 }
        };
        let accepted = CLAIMS.iter().filter(|claim| of(claim) == ROUTED);
        expected
            .extend(accepted.map(|(key, via, ..)| format!("{} via {via}", key.replace('-', "/"))));
        wait_for(&format!("{expected:?}: {}", agent.log()), || {
            routes(worker1) == expected
        });
        let report = status(worker1);
        for claim in CLAIMS.iter().filter(|claim| of(claim) != ROUTED) {
            let reasons = reasons(&report, claim.0);
            let is_named = reasons.iter().any(|reason| reason.contains(of(claim)));
            assert!(is_named, "{claim:?}: {reasons:?}");
        }
        for address in ["192.168.2.17", "192.168.2.1", "192.168.2.21"] {
            let ping = format!("busybox ping -c 1 -W 2 {address}");
            worker1.sh(&ping).ok();
        }
        if !onlink {
            assert!(agent.stop());
            agent = start(true);
        }
    }
}

#[test]
fn ten_thousand_malformed_leases_and_huge_values_do_not_matter() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    let worker1 = &nodes[1];
    let endpoints = format!("--etcd-endpoints={}", etcd.url());
    let agent = Agent::start(worker1, &[&endpoints, "--healthz-port=8080"]);
    let file = worker1.path("/run/flannel/subnet.env");
    wait_for(&format!("a subnet: {}", agent.log()), || file.exists());
    let malformed = |i: u32| {
        let key = match i % 4 {
            0 => format!("10.10.{}.{}-24", 200 + i / 4 % 50, i % 250),
            1 => format!("no subnet {i}\n\u{1b}[2J ready"),
            2 => format!("10.{}.{}.0-24", 11 + i / 4 % 200, i % 250),
            _ => format!("10.10.{}.{}-30", 200 + i / 4 % 50, i % 250),
        };
        let value = [
            "",
            "{",
            "[]",
            "\"10\"",
            "{\"PublicIP\": 7}",
            "{\"PublicIP\": \"\u{7}\"}",
            "{}",
        ];
        (format!("subnets/{key}"), value[i as usize % 7].to_owned())
    };
    // Each has a megabyte: the value, a text within it, and the key.
    let megabyte = "x".repeat(1_000_000);
    etcd.put_each([
        ("subnets/10.10.2.0-24".to_owned(), megabyte.clone()),
        (
            "subnets/10.10.3.0-24".to_owned(),
            json!({"PublicIP": megabyte}).to_string(),
        ),
        (
            "subnets/10.10.4.0-24".to_owned(),
            json!({"PublicIP": "192.168.2.15", "BackendType": megabyte}).to_string(),
        ),
        // These two look alike once they are cut off.
        (format!("subnets/{megabyte}1"), String::new()),
        (format!("subnets/{megabyte}2"), String::new()),
    ]);
    etcd.put_all((0..10_000).map(malformed));
    let honest = |agent: &Agent, subnet: u8| {
        let lease = (
            format!("subnets/10.10.{subnet}.0-24"),
            value("192.168.2.17"),
        );
        etcd.put_each([lease]);
        let route = format!("10.10.{subnet}.0/24 via 192.168.2.17");
        let late = wait_for(&format!("{route}: {}", agent.log()), || {
            routes(worker1).contains(&route)
        });
        assert!(late < Duration::from_secs(5), "{late:?}");
        assert_eq!(routes(worker1).len(), 1, "{:?}", routes(worker1));
    };
    honest(&agent, 5);
    // Also when everything is read at once.
    assert!(agent.stop());
    let agent = Agent::start(worker1, &[&endpoints, "--healthz-port=8080"]);
    honest(&agent, 6);
    let used = agent.cpu();
    sleep(Duration::from_secs(10));
    let used = agent.cpu().saturating_sub(used);
    let (memory, log) = (agent.peak_memory(), agent.log());
    eprintln!(
        "{used:?} of CPU in 10 s, {memory} KiB, {} bytes of log",
        log.len()
    );
    assert!(used < Duration::from_secs(1), "{used:?}");
    assert!(memory < 100 << 10, "{memory} KiB");
    assert!(log.len() < 50_000, "{} bytes of log", log.len());
    assert!(!log.contains('\u{1b}'), "no control characters");
    let status = worker1.sh("/mnt/bin/hostgw-agent status").ok();
    assert!(
        !status.contains('\u{1b}') && status.len() < 10 << 20,
        "{} bytes",
        status.len()
    );
    // Prometheus refuses a page with the same series twice.
    let metrics = worker1
        .sh("busybox wget -q -O - http://127.0.0.1:8080/metrics")
        .ok();
    let series: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("hostgw_peer_refused{"))
        .collect();
    let different: BTreeSet<_> = series.iter().collect();
    assert!(
        series.len() == different.len() && (100..=500).contains(&series.len()),
        "{}",
        series.len()
    );
}

const MEMBERS: [(&str, &str); 3] = [
    ("etcd1", "192.168.2.21"),
    ("etcd2", "192.168.2.22"),
    ("etcd3", "192.168.2.23"),
];

/// A cluster of three members, and the data of an earlier moment.
struct Cluster<'a> {
    stores: &'a [Node<'a>],
    members: Vec<Etcd<'a>>,
}

impl Cluster<'_> {
    /// Runs `etcdctl` on any member that answers.
    fn ctl(&self, args: &str) -> bool {
        self.members.iter().any(|member| member.ctl(args).success)
    }

    /// Stops all members, and starts them on their data after `doing`.
    fn stopped(&mut self, doing: &str) -> bool {
        self.members.iter_mut().for_each(Etcd::kill);
        for store in self.stores {
            store.sh(doing).ok();
        }
        self.members.iter_mut().for_each(Etcd::restart);
        true
    }

    /// Makes the members run and agree again.
    fn heal(&mut self, broken: &BTreeSet<usize>) {
        for index in broken {
            self.members[*index].freeze(false);
            self.members[*index].restart();
        }
        for member in &self.members {
            member.wait();
        }
    }

    /// Returns the honest leases that etcd has now, as routes.
    fn honest(&self) -> BTreeSet<String> {
        let leases = self.members[0].leases().into_iter();
        leases
            .filter_map(|(key, content)| {
                let number: u8 = key
                    .strip_prefix("10.10.")?
                    .strip_suffix(".0-24")?
                    .parse()
                    .ok()?;
                let address = format!("192.168.2.{}", 100 + u32::from(number));
                let is_honest = (2..30).contains(&number) && content == value(&address);
                is_honest.then(|| format!("10.10.{number}.0/24 via {address}"))
            })
            .collect()
    }
}

/// Performs one random operation on the store. Returns a member that it broke.
fn disturb(cluster: &mut Cluster<'_>, rng: &mut Rng) -> Option<usize> {
    const SUBNETS: &str = "/coreos.com/network/subnets";
    let number = 2 + rng.below(28);
    let honest = value(&format!("192.168.2.{}", 100 + number));
    let member = rng.one_of(&[0, 1, 2]);
    match rng.below(11) {
        0..4 => cluster.ctl(&format!("put {SUBNETS}/10.10.{number}.0-24 '{honest}'")),
        4 => cluster.ctl(&format!("del {SUBNETS}/10.10.{number}.0-24")),
        5 => {
            let claims = ["1.128-25", "0.0-16", "0.0-15", "0.0-20", "40.0-24", "x"];
            let addresses = ["192.168.2.16", "127.0.0.1", "10.10.1.5", "224.0.0.1"];
            let (claim, address) = (rng.one_of(&claims), rng.one_of(&addresses));
            cluster.ctl(&format!("put {SUBNETS}/10.10.{claim} '{}'", value(address)))
        }
        // The value of a lease is no lease any more.
        6 => cluster.ctl(&format!("put {SUBNETS}/10.10.{number}.0-24 '{{'")),
        7 => {
            cluster.members[member].freeze(true);
            return Some(member);
        }
        8 => {
            cluster.members[member].kill();
            return Some(member);
        }
        9 => cluster.stopped("rm -rf /run/backup && cp -r /var/lib/etcd /run/backup"),
        // The store goes back in time.
        _ => cluster.stopped(
            "[ ! -e /run/backup ] || { rm -r /var/lib/etcd && cp -r /run/backup /var/lib/etcd; }",
        ),
    };
    None
}

// SEED chooses other operations, and ROUNDS how many.
#[test]
fn after_random_changes_and_failures_the_routes_are_those_of_the_valid_leases() {
    let number = |name: &str, default| {
        let text = std::env::var(name).unwrap_or_default();
        if text.is_empty() {
            default
        } else {
            text.parse().expect("a number")
        }
    };
    let (seed, rounds) = (number("SEED", 1), number("ROUNDS", 8));
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let member = |(name, address): &(&str, &str)| lab.node(name, &[&format!("{address}/24")]);
    let stores: Vec<_> = MEMBERS.iter().map(member).collect();
    let pairs: Vec<_> = stores
        .iter()
        .zip(MEMBERS.map(|(_, address)| address))
        .collect();
    let mut cluster = Cluster {
        stores: &stores,
        members: Etcd::cluster(&pairs),
    };
    cluster.members[0].configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    let urls: Vec<_> = cluster.members.iter().map(Etcd::url).collect();
    let endpoints = format!("--etcd-endpoints={}", urls.join(","));
    let worker1 = &nodes[1];
    let mut agent = Agent::start(worker1, &[&endpoints]);
    let file = worker1.path("/run/flannel/subnet.env");
    wait_for(&format!("a subnet: {}", agent.log()), || file.exists());
    let mut rng = Rng::new(seed);
    for round in 0..rounds {
        let mut broken: BTreeSet<usize> = BTreeSet::new();
        for _ in 0..5 {
            broken.extend(disturb(&mut cluster, &mut rng));
            if rng.once_in(8) {
                worker1.sh(&format!("kill -KILL {}", agent.pid())).ok();
                agent = Agent::start(worker1, &[&endpoints]);
            }
            sleep(Duration::from_millis(rng.below(700)));
        }
        cluster.heal(&broken);
        // A quiet point.
        let honest = cluster.honest();
        let what = format!("seed {seed}, round {round}: {honest:?}: {}", agent.log());
        wait_within(&what, Duration::from_secs(20), || routes(worker1) == honest);
        wait_within(&what, Duration::from_secs(20), || {
            status(worker1)["ready"] == true
        });
        eprintln!("round {round}: {} routes", honest.len());
    }
}
