//! Failures of the `etcd` store, and how the node continues to work.

use std::time::{Duration, Instant};

use conformance::reference_picture::{Family, nodes};
use conformance::{Agent, Etcd, Lab, Node, wait_for};
use serde_json::json;

const MEMBERS: [(&str, &str); 3] = [
    ("etcd1", "192.168.2.21"),
    ("etcd2", "192.168.2.22"),
    ("etcd3", "192.168.2.23"),
];

fn stores(lab: &Lab) -> Vec<Node<'_>> {
    let node = |(name, address): &(&str, &str)| lab.node(name, &[&format!("{address}/24")]);
    MEMBERS.iter().map(node).collect()
}

fn cluster<'a>(stores: &'a [Node<'a>]) -> Vec<Etcd<'a>> {
    let addresses = MEMBERS.map(|(_, address)| address);
    let members: Vec<_> = stores.iter().zip(addresses).collect();
    let cluster = Etcd::cluster(&members);
    cluster[0].configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    cluster
}

fn endpoints(members: &[Etcd<'_>]) -> String {
    let urls: Vec<_> = members.iter().map(Etcd::url).collect();
    format!("--etcd-endpoints={}", urls.join(","))
}

/// Writes a lease of another node for subnet `i`.
fn lease(etcd: &Etcd<'_>, i: u8) -> bool {
    let value = json!({"PublicIP": format!("192.168.2.{}", 100 + i), "BackendType": "host-gw"});
    let key = format!("/coreos.com/network/subnets/10.10.{i}.0-24");
    etcd.ctl(&format!("put {key} '{value}'")).success
}

fn has_route(node: &Node<'_>, i: u8) -> bool {
    let route = format!(
        "ip route show 10.10.{i}.0/24 via 192.168.2.{} proto 104",
        100 + i
    );
    !node.sh(&route).ok().trim().is_empty()
}

fn wait_for_route(node: &Node<'_>, agent: &Agent, i: u8) -> Duration {
    wait_for(&format!("a route to subnet {i}: {}", agent.log()), || {
        has_route(node, i)
    })
}

fn ready(node: &Node<'_>) -> bool {
    node.sh("busybox wget -q -O - http://127.0.0.1:8080/readyz")
        .success
}

#[test]
fn an_unreachable_store_changes_nothing_and_is_used_again_when_it_returns() {
    let lab = Lab::new();
    let (nodes, stores) = (nodes(&lab, Family::Ipv4), stores(&lab));
    let mut members = cluster(&stores);
    let all = endpoints(&members);
    let args = [all.as_str(), "--healthz-port=8080"];
    let worker1 = &nodes[1];
    let agent = Agent::start(worker1, &args);
    assert!(lease(&members[0], 2));
    wait_for_route(worker1, &agent, 2);
    let file = worker1.path("/run/flannel/subnet.env");
    let written = std::fs::read_to_string(&file).expect("written before the route");
    members.iter_mut().for_each(Etcd::kill);
    agent.wait_for_log("etcd cannot be reached");
    assert!(has_route(worker1, 2) && ready(worker1), "nothing changed");
    // Damaged routes are still restored.
    worker1.sh("ip route del 10.10.2.0/24").ok();
    wait_for_route(worker1, &agent, 2);
    // A reboot while the store is unreachable: routes and /run are empty.
    assert!(agent.stop());
    worker1
        .sh("ip route flush proto 104; rm -r /run/flannel; rm /run/hostgw-agent.log")
        .ok();
    let agent = Agent::start(worker1, &args);
    agent.wait_for_log("etcd cannot be reached");
    wait_for_route(worker1, &agent, 2);
    let again = std::fs::read_to_string(&file).expect("written");
    assert_eq!(again, written);
    wait_for("readiness", || ready(worker1));
    let status = worker1.sh("/mnt/bin/hostgw-agent status").ok();
    assert!(
        status.contains("(not reached)") && status.contains("using the last known state"),
        "{status}"
    );
    // The saved state may be outdated, so no route is removed because of it.
    worker1
        .sh("ip route add 10.10.77.0/24 via 192.168.2.1 proto 104")
        .ok();
    std::thread::sleep(Duration::from_millis(500));
    assert!(!worker1.sh("ip route show 10.10.77.0/24").ok().is_empty());
    // The store returns.
    members.iter_mut().for_each(Etcd::restart);
    wait_for("etcd takes a lease", || lease(&members[1], 3));
    let late = wait_for_route(worker1, &agent, 3);
    // It takes less than a second; allow another for a busy machine.
    assert!(late < Duration::from_secs(2), "{late:?}");
    wait_for("the stale route is removed", || {
        worker1.sh("ip route show 10.10.77.0/24").ok().is_empty()
    });
}

#[test]
fn a_hanging_server_delays_the_start_by_less_than_nine_seconds() {
    let lab = Lab::new();
    let (nodes, stores) = (nodes(&lab, Family::Ipv4), stores(&lab));
    let members = cluster(&stores);
    let worker1 = &nodes[1];
    let agent = Agent::start(worker1, &[&endpoints(&members)]);
    assert!(lease(&members[0], 2));
    wait_for_route(worker1, &agent, 2);
    assert!(agent.stop());
    // First with two other members that work, then with none.
    for count in [1, 3] {
        members[..count]
            .iter()
            .for_each(|member| member.freeze(true));
        worker1
            .sh("ip route del 10.10.2.0/24; rm -r /run/flannel")
            .ok();
        let begin = Instant::now();
        let agent = Agent::start(worker1, &[&endpoints(&members)]);
        wait_for_route(worker1, &agent, 2);
        assert!(
            begin.elapsed() < Duration::from_secs(9),
            "{:?}",
            begin.elapsed()
        );
        assert!(agent.stop());
        members[..count]
            .iter()
            .for_each(|member| member.freeze(false));
    }
    // `release` also tries the next endpoint.
    let message = worker1
        .sh("/mnt/bin/hostgw-agent release --etcd-endpoints=http://192.168.2.99:2379,http://192.168.2.22:2379")
        .ok();
    assert_eq!(message, "released lease 10.10.1.0-24\n");
}

#[test]
fn saved_state_is_written_once_the_file_system_becomes_writable() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({}));
    let worker1 = &nodes[1];
    worker1.sh("mkdir /var/lib/hostgw && touch /var/lib/hostgw/state.json.d && mount -t tmpfs -o ro tmpfs /var/lib/hostgw").ok();
    let agent = Agent::start(worker1, &[&format!("--etcd-endpoints={}", etcd.url())]);
    // The agent logs the error at its next attempt.
    agent.wait_for_log("write /var/lib/hostgw/state.json: Read-only file system");
    worker1.sh("mount -o remount,rw /var/lib/hostgw").ok();
    assert!(agent.stop());
    assert!(worker1.path("/var/lib/hostgw/state.json").exists());
}

#[test]
fn the_agent_switches_to_another_member_when_one_dies_or_hangs() {
    let lab = Lab::new();
    let (nodes, stores) = (nodes(&lab, Family::Ipv4), stores(&lab));
    let mut members = cluster(&stores);
    let worker1 = &nodes[1];
    let agent = Agent::start(worker1, &[&endpoints(&members)]);
    assert!(lease(&members[0], 2));
    wait_for_route(worker1, &agent, 2);
    // The agent is connected to the first member, which is killed.
    members[0].kill();
    wait_for("the others take a lease", || lease(&members[1], 3));
    wait_for_route(worker1, &agent, 3);
    members[0].restart();
    members[0].wait();
    // Now the agent is connected to the second member, which hangs with its connections open.
    members[1].freeze(true);
    wait_for("the others take a lease", || lease(&members[2], 4));
    let late = wait_for_route(worker1, &agent, 4);
    assert!(late < Duration::from_secs(9), "{late:?}");
    members[1].freeze(false);
    // An agent that is connected to a member without a leader receives no events, and reports this.
    let isolated = Agent::start(
        &nodes[2],
        &[
            "--etcd-endpoints=http://192.168.2.23:2379",
            "--subnet-file=/run/other/subnet.env",
            "--state-file=/run/other/state.json",
            "--socket=/run/other/socket",
        ],
    );
    isolated.wait_for_log("no subnet is free");
    members[0].kill();
    members[1].kill();
    isolated
        .wait_for_log("etcd cannot be reached: http://192.168.2.23:2379: etcdserver: no leader");
    members[0].restart();
    members[1].restart();
    wait_for("a leader takes a lease", || lease(&members[0], 5));
    wait_for_route(worker1, &agent, 5);
}

#[test]
fn an_agent_that_missed_a_compaction_reads_everything_again() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    let worker1 = &nodes[1];
    let agent = Agent::start(worker1, &[&format!("--etcd-endpoints={}", etcd.url())]);
    assert!(lease(&etcd, 2) && lease(&etcd, 3));
    wait_for_route(worker1, &agent, 3);
    worker1.sh(&format!("kill -STOP {}", agent.pid())).ok();
    // More data than the sockets can buffer, and then more events than etcd retains for its
    // watcher.
    let junk = |_| ("subnets/junk".to_owned(), "x".repeat(500_000));
    etcd.put_each((0..20).map(junk));
    etcd.put_each((0..3000).map(|i| ("subnets/junk".to_owned(), format!("{i}"))));
    etcd.ctl("del /coreos.com/network/subnets/10.10.2.0-24")
        .ok();
    etcd.ctl("del /coreos.com/network/subnets/junk").ok();
    assert!(lease(&etcd, 4));
    let revision = etcd.entry("subnets/10.10.4.0-24")["mod_revision"].clone();
    etcd.ctl(&format!("compact --physical {revision}")).ok();
    worker1.sh(&format!("kill -CONT {}", agent.pid())).ok();
    wait_for_route(worker1, &agent, 4);
    wait_for("the old route is removed", || !has_route(worker1, 2));
    assert!(has_route(worker1, 3));
    agent.wait_for_log("etcd has no history before revision");
}

/// Creates a CA, and its certificates for the store and for a client, in /mnt/pki/<name>.
fn create_ca(store: &Node<'_>, name: &str) {
    let script = format!(
        "mkdir -p /mnt/pki/{name} && cd /mnt/pki/{name} && \
         new() {{ openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -subj /CN=$1 \"$@\"; }} && \
         openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN={name} && \
         for who in server client; do \
           openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $who.key -out $who.csr -subj /CN=$who && \
           printf 'subjectAltName=IP:192.168.2.21\\nextendedKeyUsage=serverAuth,clientAuth\\n' > ext && \
           openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $who.pem; \
         done"
    );
    store.sh(&script).ok();
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn certificates_are_verified_and_reloaded_when_they_change() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    create_ca(&store, "first");
    create_ca(&store, "second");
    store
        .sh("cp -r /mnt/pki/first /mnt/pki/server && cp -r /mnt/pki/first /mnt/pki/node")
        .ok();
    let serve = |more: &[&str]| {
        let tls = [
            "--cert-file=/mnt/pki/server/server.pem",
            "--key-file=/mnt/pki/server/server.key",
        ];
        Etcd::start_with(&store, "192.168.2.21", "https", &[&tls[..], more].concat())
    };
    let ctl = |args: &str| {
        store.sh(&format!(
            "ETCDCTL_API=3 etcdctl --endpoints=https://192.168.2.21:2379 --cacert=/mnt/pki/server/ca.pem \
             --cert=/mnt/pki/server/client.pem --key=/mnt/pki/server/client.key --command-timeout=2s {args}"
        ))
    };
    let put = |i: u8| {
        let value = json!({"PublicIP": format!("192.168.2.{}", 100 + i), "BackendType": "host-gw"});
        ctl(&format!(
            "put /coreos.com/network/subnets/10.10.{i}.0-24 '{value}'"
        ))
        .success
    };
    let worker1 = &nodes[1];
    let agent = |args: &[&str]| {
        Agent::start(
            worker1,
            &[&["--etcd-endpoints=https://192.168.2.21:2379"], args].concat(),
        )
    };
    // The CA certificate is enough if the server does not require client certificates.
    let etcd = serve(&[]);
    wait_for("etcd takes the configuration", || {
        let network =
            r#"{"Network": "10.10.0.0/16", "SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}"#;
        ctl(&format!("put /coreos.com/network/config '{network}'")).success
    });
    let with_ca_only = agent(&["--etcd-cafile=/mnt/pki/node/ca.pem"]);
    assert!(put(2));
    wait_for_route(worker1, &with_ca_only, 2);
    assert!(with_ca_only.stop());
    let wrong = agent(&["--etcd-cafile=/mnt/pki/second/ca.pem"]);
    wrong.wait_for_log("invalid peer certificate");
    assert!(wrong.stop());
    drop(etcd);
    // If the server requires client certificates, the agent needs one.
    let etcd = serve(&[
        "--client-cert-auth",
        "--trusted-ca-file=/mnt/pki/server/ca.pem",
    ]);
    wait_for("etcd answers", || put(3));
    // The log of the agents before.
    worker1.sh("rm /run/hostgw-agent.log").ok();
    let with_client_certificate = agent(&[
        "--etcd-cafile=/mnt/pki/node/ca.pem",
        "--etcd-certfile=/mnt/pki/node/client.pem",
        "--etcd-keyfile=/mnt/pki/node/client.key",
    ]);
    wait_for_route(worker1, &with_client_certificate, 3);
    // All certificates are replaced, on both sides.
    worker1.sh("cp /mnt/pki/second/* /mnt/pki/node/").ok();
    with_client_certificate
        .wait_for_log("the certificate or password files changed; connecting again");
    with_client_certificate.wait_for_log("etcd cannot be reached");
    store.sh("cp /mnt/pki/second/* /mnt/pki/server/").ok();
    drop(etcd);
    let _etcd = serve(&[
        "--client-cert-auth",
        "--trusted-ca-file=/mnt/pki/server/ca.pem",
    ]);
    wait_for("etcd answers", || put(4));
    wait_for_route(worker1, &with_client_certificate, 4);
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn the_password_is_read_from_a_file_and_never_appears_in_logs_or_state() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    for step in [
        "user add root:rootsecret",
        "user grant-role root root",
        "user add flannel:s3cr3t",
        "role add flannel",
        "role grant-permission flannel --prefix=true readwrite /coreos.com/network",
        "user grant-role flannel flannel",
        "user add reader:readonly",
        "role add reader",
        "role grant-permission reader --prefix=true read /coreos.com/network",
        "user grant-role reader reader",
        "auth enable",
    ] {
        etcd.ctl(step).ok();
    }
    let worker1 = &nodes[1];
    lab.write("wrong", "guess\n");
    lab.write("right", "s3cr3t\n");
    let endpoints = format!("--etcd-endpoints={}", etcd.url());
    let start = |file: &str| {
        let file = format!("--etcd-password-file=/mnt/{file}");
        Agent::start(
            worker1,
            &[&endpoints, "-v=9", "--etcd-username=flannel", &file],
        )
    };
    // A user with read permission only gets no subnet. The error is logged once, and the agent
    // retries without load.
    let twice = format!("{endpoints},{}", etcd.url());
    let reader = Agent::start(
        worker1,
        &[&twice, "--etcd-username=reader", "--etcd-password=readonly"],
    );
    reader.wait_for_log("write this node's lease to etcd: etcdserver: permission denied");
    let before = reader.cpu();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        reader.log().matches("permission denied").count(),
        1,
        "{}",
        reader.log()
    );
    assert!(reader.cpu().saturating_sub(before) < Duration::from_millis(200));
    assert!(reader.stop());
    let agent = start("wrong");
    agent.wait_for_log("authentication failed, invalid user ID or password");
    // A corrected password file takes effect without a restart.
    lab.write("wrong", "s3cr3t\n");
    wait_for("a subnet", || {
        worker1.path("/run/flannel/subnet.env").exists()
    });
    assert!(agent.stop());
    let agent = start("right");
    let put = |i: u8| {
        let value = json!({"PublicIP": format!("192.168.2.{}", 100 + i), "BackendType": "host-gw"});
        let key = format!("/coreos.com/network/subnets/10.10.{i}.0-24");
        etcd.ctl(&format!("--user=root:rootsecret put {key} '{value}'"))
            .ok();
    };
    put(2);
    wait_for_route(worker1, &agent, 2);
    for secret in ["s3cr3t", "guess"] {
        assert!(!agent.log().contains(secret), "{}", agent.log());
    }
    let status = worker1
        .sh("/mnt/bin/hostgw-agent status --json && cat /var/lib/hostgw/state.json")
        .ok();
    assert!(!status.contains("s3cr3t"));
    put(3);
    wait_for_route(worker1, &agent, 3);
}
