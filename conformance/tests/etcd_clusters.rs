//! etcd as it is in practice: with logins whose tokens become invalid, full, or restored from a
//! backup; and nodes that are copies of other nodes, or lack an address family.

use std::thread::sleep;
use std::time::Duration;

use conformance::reference_picture::{Family, nodes};
use conformance::{Agent, Etcd, Lab, Node, wait_for};
use serde_json::{Value, json};

fn start(node: &Node<'_>, etcd: &Etcd<'_>, more: &[&str]) -> Agent {
    let url = format!("--etcd-endpoints={}", etcd.url());
    node.sh("rm -f /run/hostgw-agent.log").ok();
    Agent::start(node, &[&[url.as_str()], more].concat())
}

fn status(node: &Node<'_>) -> Value {
    let text = node.sh("/mnt/bin/hostgw-agent status --json");
    serde_json::from_str(&text.stdout).unwrap_or_default()
}

fn is_ready(node: &Node<'_>) -> bool {
    status(node)["ready"] == true
}

/// Returns the key of the lease that a node holds.
fn key(node: &Node<'_>) -> String {
    let name = &status(node)["node"]["name"];
    name.as_str().unwrap_or_default().to_owned()
}

fn has_route(node: &Node<'_>, i: u8) -> bool {
    !node
        .sh(&format!("ip route show 10.10.{i}.0/24 proto 104"))
        .ok()
        .is_empty()
}

fn value(i: u8) -> String {
    json!({"PublicIP": format!("192.168.2.{i}"), "BackendType": "host-gw"}).to_string()
}

/// Creates the users `root` and `flannel`, and enables authentication.
fn enable_authentication(etcd: &Etcd<'_>) {
    for step in [
        "user add root:rootsecret",
        "user grant-role root root",
        "user add flannel:s3cr3t",
        "role add flannel",
        "role grant-permission flannel --prefix=true readwrite /coreos.com/network",
        "user grant-role flannel flannel",
        "auth enable",
    ] {
        etcd.ctl(step).ok();
    }
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn the_agent_logs_in_again_when_its_token_becomes_invalid() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    store
        .sh("openssl genrsa -out /run/jwt.key 2048 && openssl rsa -in /run/jwt.key -pubout -out /run/jwt.pub")
        .ok();
    let token =
        "--auth-token=jwt,pub-key=/run/jwt.pub,priv-key=/run/jwt.key,sign-method=RS256,ttl=10m";
    let etcd = Etcd::start_with(&store, "192.168.2.21", "http", &[token]);
    etcd.wait();
    etcd.configure(&json!({"SubnetMin": "10.10.1.0", "SubnetMax": "10.10.1.0"}));
    let worker1 = &nodes[1];
    let login = [
        "--etcd-username=flannel",
        "--etcd-password=s3cr3t",
        "--subnet-lease-ttl=8s",
    ];
    // If authentication is disabled in etcd, the agent works without a login, as flanneld does.
    let agent = start(worker1, &etcd, &login);
    wait_for(&format!("readiness: {}", agent.log()), || is_ready(worker1));
    assert!(agent.stop());
    enable_authentication(&etcd);
    let as_root = |args: &str| etcd.ctl(&format!("--user=root:rootsecret {args}")).ok();
    let own = || as_root("get --keys-only /coreos.com/network/subnets/10.10.1.0-24");
    let agent = start(worker1, &etcd, &login);
    wait_for(&format!("readiness: {}", agent.log()), || is_ready(worker1));
    // Any change of a user or a role invalidates every token.
    for (round, change) in [
        (2, "role add another"),
        (3, "user add somebody:pw"),
        (4, "role delete another"),
    ] {
        as_root(change);
        as_root(&format!(
            "put /coreos.com/network/subnets/10.10.{round}.0-24 '{}'",
            value(100 + round)
        ));
        wait_for(&format!("{change}: {}", agent.log()), || {
            has_route(worker1, round)
        });
    }
    let stays_ready = |why: &str| {
        // Longer than the lease's TTL without renewal.
        sleep(Duration::from_secs(10));
        assert!(!own().trim().is_empty(), "{why}: {}", agent.log());
        wait_for(why, || is_ready(worker1));
    };
    stays_ready("after changes of users and roles");
    let log = agent.log();
    assert!(!log.contains("cannot be reached"), "{log}");
    // Authentication is disabled while the agent runs, and then enabled again.
    for (round, enabled) in [(5, false), (6, true)] {
        let put = format!(
            "put /coreos.com/network/subnets/10.10.{round}.0-24 '{}'",
            value(100 + round)
        );
        if enabled {
            etcd.ctl("auth enable").ok();
            as_root(&put);
        } else {
            as_root("auth disable");
            etcd.ctl(&put).ok();
        }
        wait_for(&format!("the route: {}", agent.log()), || {
            has_route(worker1, round)
        });
        stays_ready(if enabled { "enabled" } else { "disabled" });
    }
    assert!(agent.stop());
}

#[test]
fn a_lease_is_renewed_even_if_etcds_quota_is_exhausted() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start_with(
        &store,
        "192.168.2.21",
        "http",
        &["--quota-backend-bytes=4000000"],
    );
    etcd.wait();
    etcd.configure(&json!({}));
    let worker1 = &nodes[1];
    let args = ["--subnet-lease-ttl=8s"];
    let agent = start(worker1, &etcd, &args);
    wait_for("readiness", || is_ready(worker1));
    let key = key(worker1);
    let path = format!("subnets/{key}");
    let fill = "head -c 500000 /dev/zero | tr '\\0' x >/run/much; \
                ETCDCTL_API=3 etcdctl --endpoints=http://192.168.2.21:2379 put /fill/$(date +%N) </run/much";
    wait_for("etcd's quota is exhausted", || {
        !store.sh(fill).success && !etcd.ctl("put /fill/more more").success
    });
    sleep(Duration::from_secs(18));
    assert!(!etcd.get(&path).is_empty(), "{}", agent.log());
    assert!(is_ready(worker1), "{}", status(worker1));
    // After a restart, the agent tries to write its lease, which fails. As long as the existing
    // lease can be renewed, this is only a warning.
    assert!(agent.stop());
    let agent = start(worker1, &etcd, &args);
    wait_for(&format!("readiness: {}", agent.log()), || is_ready(worker1));
    agent
        .wait_for_log("write this node's lease to etcd: etcdserver: mvcc: database space exceeded");
    sleep(Duration::from_secs(18));
    assert!(!etcd.get(&path).is_empty(), "{}", agent.log());
    assert!(is_ready(worker1), "{}", status(worker1));
    assert_eq!(self::key(worker1), key);
    assert!(agent.stop());
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn the_nodes_key_stays_its_own_after_a_restore_or_a_manual_rewrite() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let mut etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({}));
    let worker1 = &nodes[1];
    let agent = start(worker1, &etcd, &[]);
    wait_for("readiness", || is_ready(worker1));
    let key = key(worker1);
    let path = format!("/coreos.com/network/subnets/{key}");
    assert!(agent.stop());
    // A backup from before the agent acquired its lease again.
    etcd.kill();
    store.sh("cp -r /var/lib/etcd /run/backup").ok();
    etcd.restart();
    let agent = start(worker1, &etcd, &[]);
    wait_for("readiness", || is_ready(worker1));
    for i in 2..6 {
        etcd.ctl(&format!(
            "put /coreos.com/network/subnets/10.10.{i}.0-24 '{}'",
            value(100 + i)
        ))
        .ok();
    }
    wait_for("the route", || has_route(worker1, 5));
    etcd.kill();
    store
        .sh("rm -r /var/lib/etcd && cp -r /run/backup /var/lib/etcd")
        .ok();
    etcd.restart();
    agent.wait_for_log("etcd went back in time");
    wait_for(
        &format!(
            "routes of leases that the backup lacks are removed: {}",
            agent.log()
        ),
        || !has_route(worker1, 5),
    );
    wait_for(&format!("readiness: {}", agent.log()), || is_ready(worker1));
    // The key is rewritten by hand with this node's own address, first with another process's etcd
    // lease, then without a lease.
    let value = etcd.get(&format!("subnets/{key}"));
    let granted = etcd.ctl("lease grant 600").ok();
    let id = granted
        .split(' ')
        .nth(1)
        .expect("etcdctl prints the lease id")
        .to_owned();
    for put in [format!("--lease={id}"), String::new()] {
        sleep(Duration::from_millis(1500));
        etcd.ctl(&format!("put {put} {path} '{value}'")).ok();
        sleep(Duration::from_secs(1));
        wait_for(&format!("readiness: {}", agent.log()), || is_ready(worker1));
        assert!(
            !agent.log().contains("two nodes use the same subnet"),
            "{}",
            agent.log()
        );
    }
    assert_eq!(self::key(worker1), key);
    // Without an etcd lease the key is a reservation, and stays one.
    let entry = etcd.entry(&format!("subnets/{key}"));
    assert!(
        entry["mod_revision"].is_i64() && entry["lease"].is_null(),
        "{entry}"
    );
    assert!(agent.stop());
}

#[test]
fn a_copy_of_a_nodes_saved_state_does_not_acquire_its_lease() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({}));
    let (worker1, worker2) = (&nodes[1], &nodes[2]);
    let args = ["--subnet-lease-ttl=8s"];
    let agent = start(worker1, &etcd, &args);
    wait_for("readiness", || is_ready(worker1));
    let key = key(worker1);
    wait_for("the state is written", || {
        worker1.path("/var/lib/hostgw/state.json").exists()
    });
    let state = std::fs::read(worker1.path("/var/lib/hostgw/state.json")).expect("read");
    let lease_value = || etcd.get(&format!("subnets/{key}"));
    let before = lease_value();
    // A cloned machine has the same machine id and other hardware addresses.
    worker2.write("/var/lib/hostgw/state.json", &state);
    let copy = start(worker2, &etcd, &args);
    wait_for("readiness", || is_ready(worker2));
    assert_ne!(self::key(worker2), key);
    assert_eq!(lease_value(), before);
    assert!(copy.stop());
    // The copy does not count even if a hardware address is the same, because the original node
    // continues to renew its lease.
    let mac = worker1.ip("link show enp0s5")[0]["address"]
        .as_str()
        .expect("the value is present")
        .to_owned();
    worker2
        .sh(&format!(
            "rm -r /run/flannel; ip link add twin type bridge; ip link set twin address {mac}"
        ))
        .ok();
    sleep(Duration::from_secs(13));
    worker2.write("/var/lib/hostgw/state.json", &state);
    let copy = start(worker2, &etcd, &args);
    wait_for(&format!("readiness: {}", copy.log()), || is_ready(worker2));
    assert_ne!(self::key(worker2), key);
    assert_eq!(lease_value(), before);
    copy.wait_for_log("the saved state is a copy, and is ignored");
    assert!(is_ready(worker1), "{}", status(worker1));
    assert!(agent.stop() && copy.stop());
}

#[test]
fn a_clock_that_is_set_by_a_day_does_not_matter() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({}));
    let worker1 = &nodes[1];
    let path = worker1.path("/var/lib/hostgw/state.json");
    let mut agent = start(worker1, &etcd, &[]);
    wait_for("readiness", || is_ready(worker1));
    let key = key(worker1);
    for (step, address) in [(-86_400_i64, 26), (86_400, 27)] {
        assert!(agent.stop());
        // The state was saved when the clock was a day behind, or ahead; and the address changes while the
        // agent does not run, so that only the expiry shows whose lease it is.
        let text = std::fs::read(&path).expect("the agent has saved its state");
        let mut state: Value = serde_json::from_slice(&text).expect("JSON");
        let expires = state["held"]["expires"].as_i64().expect("a time");
        state["held"]["expires"] = (expires + step).into();
        std::fs::write(&path, state.to_string()).expect("writable");
        worker1
            .sh(&format!(
                "rm -r /run/flannel; ip addr flush dev enp0s5; ip addr add 192.168.2.{address}/24 dev enp0s5; \
                 ip route add default via 192.168.2.1"
            ))
            .ok();
        agent = start(worker1, &etcd, &[]);
        wait_for(&format!("readiness: {}", agent.log()), || is_ready(worker1));
        assert_eq!(self::key(worker1), key, "{}", agent.log());
        assert_eq!(etcd.leases().len(), 1, "{:?}", etcd.leases());
    }
    assert!(agent.stop());
}

#[test]
fn a_missing_address_in_one_family_does_not_affect_the_other_family() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    let etcd = Etcd::start(&store, "192.168.2.21");
    etcd.configure(&json!({"EnableIPv6": true, "IPv6Network": "fd00:10:10::/48"}));
    let agent = start(&node, &etcd, &[]);
    wait_for(&format!("readiness: {}", agent.log()), || is_ready(&node));
    let ipv4 = key(&node);
    assert!(!ipv4.contains('&'), "{ipv4}");
    let warning = "the interface has no IPv6 address, and the network needs one";
    assert!(
        status(&node)["warnings"].to_string().contains(warning),
        "{}",
        status(&node)
    );
    let file = || std::fs::read_to_string(node.path("/run/flannel/subnet.env")).unwrap_or_default();
    assert!(!file().contains("IPV6"), "{}", file());
    // The IPv6 address is added: the IPv4 subnet stays.
    node.sh("ip addr add fd00:192:168:2::16/64 dev enp0s5 nodad")
        .ok();
    wait_for(&format!("both: {}", agent.log()), || {
        key(&node).starts_with(&format!("{ipv4}&"))
    });
    wait_for("the file", || file().contains("FLANNEL_IPV6_SUBNET="));
    assert_eq!(etcd.leases().len(), 1);
    let both = key(&node);
    wait_for("the warning is gone", || {
        !status(&node)["warnings"].to_string().contains(warning) && is_ready(&node)
    });
    // The IPv6 address is removed: the lease and the network stay unchanged.
    node.sh("ip addr del fd00:192:168:2::16/64 dev enp0s5").ok();
    wait_for("the warning is in the status", || {
        status(&node)["warnings"].to_string().contains(warning)
    });
    assert!(is_ready(&node), "{}", status(&node));
    assert_eq!(key(&node), both);
    assert!(agent.stop());
    let agent = start(&node, &etcd, &[]);
    wait_for(&format!("readiness: {}", agent.log()), || is_ready(&node));
    assert_eq!(key(&node), both);
    assert!(agent.stop());
}

// Long: a table of cases.
#[test]
fn unusable_certificates_and_keys_are_reported_with_their_path() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let store = lab.node("etcd1", &["192.168.2.21/24"]);
    store
        .sh("mkdir /mnt/pki && cd /mnt/pki && EC='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes' && \
             openssl req -x509 $EC -days 2 -keyout ca.key -out ca.pem -subj /CN=ca && \
             for who in server client other; do openssl req $EC -keyout $who.key -out $who.csr -subj /CN=$who && \
             printf 'subjectAltName=IP:192.168.2.21\\nextendedKeyUsage=serverAuth,clientAuth\\n' >ext && \
             openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $who.pem; done && \
             openssl pkcs8 -topk8 -in client.key -out encrypted.key -passout pass:x && \
             openssl ec -in client.key -aes128 -passout pass:x -out legacy.key && \
             : >empty.pem && head -c 200 client.pem >torn.pem && openssl req -x509 $EC -days 2 -keyout alien.key -out alien.pem -subj /CN=alien")
        .ok();
    let _etcd = Etcd::start_with(
        &store,
        "192.168.2.21",
        "https",
        &[
            "--cert-file=/mnt/pki/server.pem",
            "--key-file=/mnt/pki/server.key",
            "--client-cert-auth",
            "--trusted-ca-file=/mnt/pki/ca.pem",
        ],
    );
    let worker1 = &nodes[1];
    for (ca, certificate, key, lease_value) in [
        (
            "ca.pem",
            "client.pem",
            "other.key",
            "/mnt/pki/other.key: this private key does not match the certificate /mnt/pki/client.pem",
        ),
        (
            "ca.pem",
            "client.pem",
            "encrypted.key",
            "/mnt/pki/encrypted.key: the key is encrypted",
        ),
        (
            "ca.pem",
            "client.pem",
            "legacy.key",
            "/mnt/pki/legacy.key: the key is encrypted",
        ),
        (
            "ca.pem",
            "client.pem",
            "empty.pem",
            "/mnt/pki/empty.pem: the file contains no private key",
        ),
        (
            "ca.pem",
            "empty.pem",
            "client.key",
            "/mnt/pki/empty.pem: the file contains no certificate",
        ),
        (
            "ca.pem",
            "torn.pem",
            "client.key",
            "/mnt/pki/torn.pem: a certificate in it is cut off",
        ),
        (
            "empty.pem",
            "client.pem",
            "client.key",
            "/mnt/pki/empty.pem: the file contains no certificate",
        ),
        (
            "ca.pem",
            "",
            "",
            "the server may want a certificate of this node, but there is none",
        ),
        (
            "ca.pem",
            "alien.pem",
            "alien.key",
            "the server may have rejected the client certificate /mnt/pki/alien.pem",
        ),
    ] {
        worker1.sh("rm -f /run/hostgw-agent.log").ok();
        let mut args = vec![
            "--etcd-endpoints=https://192.168.2.21:2379".to_owned(),
            format!("--etcd-cafile=/mnt/pki/{ca}"),
        ];
        if !key.is_empty() {
            args.push(format!("--etcd-certfile=/mnt/pki/{certificate}"));
            args.push(format!("--etcd-keyfile=/mnt/pki/{key}"));
        }
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let agent = Agent::start(worker1, &args);
        agent.wait_for_log(lease_value);
        assert!(agent.stop());
    }
}
