//! Every file in `examples/` works.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use conformance::reference_picture::{Family, nodes};
use conformance::{Agent, Attachment, Chain, Lab, manifest, repository, wait_for};

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all
}

#[test]
fn every_example_works() {
    let mut tried = Vec::new();
    for path in files(&repository().join("examples")) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name in UTF-8");
        let text = fs::read_to_string(&path).expect("readable");
        match name {
            "10-cni-hostgw.conflist" | "20-bridge.conflist" | "cni-conf.json" => attaches(&text),
            "cluster.json" | "cluster-dual-stack.json" => routes(&text),
            "net-conf.json" => routes(&format!(
                r#"{{"network": {text}, "nodes": [
                    {{"name": "worker1", "publicIP": "192.168.2.16", "subnet": "10.10.1.0/24"}},
                    {{"name": "worker2", "publicIP": "192.168.2.15", "subnet": "10.10.2.0/24"}}]}}"#
            )),
            "hostgw-agent.service" => starts(&text),
            "hostgw.conf" => names_the_routes(&text),
            // The test `manifest` covers the manifest with an API server.
            "cni-hostgw.yaml" => {
                attaches(&manifest::file("cni-conf.json"));
                checks(&manifest::file("net-conf.json"));
            }
            // The test `documents` checks the documents.
            "README.md" => {}
            other => panic!("no test for examples/{other}: add one here"),
        }
        tried.push(name.to_owned());
    }
    for name in [
        "10-cni-hostgw.conflist",
        "20-bridge.conflist",
        "cluster.json",
        "cluster-dual-stack.json",
        "net-conf.json",
        "hostgw-agent.service",
        "hostgw.conf",
        "cni-conf.json",
        "cni-hostgw.yaml",
    ] {
        assert!(
            tried.iter().any(|other| other == name),
            "there is no {name}"
        );
    }
}

/// A conflist attaches two pods, which reach each other.
fn attaches(text: &str) {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    lab.install(&conformance::dist().join("subnet-env"), "bin/subnet-env");
    node.sh("/mnt/bin/subnet-env write --network 10.10.0.0/16 --subnet 10.10.1.0/24")
        .ok();
    let chain = Chain::new(&lab, text);
    let (a, b) = (node.pod("a"), node.pod("b"));
    let addresses = chain.add(&a, &Attachment::of(&a)).addresses();
    chain.add(&b, &Attachment::of(&b)).ok();
    for address in &addresses {
        assert!(b.pings(address), "{address} of {text}");
    }
    assert!(a.pings("192.168.2.1"), "the world answers");
    for pod in [&a, &b] {
        chain.del(pod, &Attachment::of(pod), None).ok();
    }
    let list: serde_json::Value = serde_json::from_str(text).expect("a conflist is JSON");
    let network = list["name"].as_str().expect("it has a name");
    let store = node.path(&format!("/var/lib/cni/networks/{network}"));
    assert!(store.join("lock").exists() && !store.join(&addresses[0]).exists());
}

/// `hostgw-agent check` accepts the network configuration.
fn checks(text: &str) {
    let lab = Lab::new();
    lab.install(
        &conformance::dist().join("hostgw-agent"),
        "bin/hostgw-agent",
    );
    lab.write("net-conf.json", text);
    let node = lab.node("worker1", &[]);
    let message = node
        .sh("/mnt/bin/hostgw-agent check /mnt/net-conf.json")
        .ok();
    assert!(message.contains("a network 10.244.0.0/16"), "{message}");
}

/// With the cluster file, the agent of worker1 routes the other nodes' subnets.
fn routes(text: &str) {
    let lab = Lab::new();
    let family = if text.contains("publicIPv6") {
        Family::Dual
    } else {
        Family::Ipv4
    };
    let nodes = nodes(&lab, family);
    lab.write("cluster.json", text);
    let _agent = Agent::start(&nodes[1], &["--cluster", "/mnt/cluster.json"]);
    wait_for("the route to worker2", || {
        let routes = nodes[1].sh("ip route; ip -6 route").ok();
        routes.contains("10.10.2.0/24 via 192.168.2.15 dev enp0s5 proto 104")
            && (family == Family::Ipv4
                || routes.contains("fd00:10:10:2::/64 via fd00:192:168:2::15 dev enp0s5 proto 104"))
    });
}

/// The unit's command line starts the agent, with the capabilities that the unit allows.
fn starts(text: &str) {
    let command = text
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .expect("the value is present");
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    let example = repository().join("examples/cluster.json");
    lab.write("etc/cluster.json", fs::read(example).expect("readable"));
    lab.install(
        &conformance::dist().join("hostgw-agent"),
        "bin/hostgw-agent",
    );
    let words: Vec<_> = command.split(' ').collect();
    assert_eq!(
        words[..3],
        ["/usr/local/sbin/hostgw-agent", "run", "--cluster"]
    );
    assert_eq!(words[3..], ["/etc/hostgw/cluster.json"]);
    for section in ["[Unit]", "[Service]", "[Install]"] {
        assert!(text.lines().any(|line| line == section), "{section}");
    }
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let capabilities = value("CapabilityBoundingSet=").expect("the unit limits the capabilities");
    let capabilities = capabilities
        .to_lowercase()
        .replace("cap_", "+")
        .replace(' ', ",");
    assert_eq!(value("Type="), Some("notify"));
    // The same arguments, with paths of this node, with the unit's capabilities, and with a
    // listener for notifications.
    let worker1 = &nodes[1];
    let listener = UnixDatagram::bind(worker1.path("/run/notify")).expect("binds");
    let mut command = worker1.command("setpriv");
    command.args(["--pdeathsig", "TERM", "--no-new-privs"]);
    command.arg(format!("--bounding-set=-all,{capabilities}"));
    command.args(["env", "NOTIFY_SOCKET=/run/notify", "/mnt/bin/hostgw-agent"]);
    command.args(["run", "--cluster", "/mnt/etc/cluster.json", "--ip-masq"]);
    let mut agent = command.spawn().expect("setpriv is part of every Debian");
    listener
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    let mut message = String::new();
    while !message.contains("READY=1") {
        let mut buffer = [0; 4096];
        let length = listener.recv(&mut buffer).expect("the agent becomes ready");
        message = String::from_utf8_lossy(&buffer[..length]).into_owned();
    }
    let rules = worker1.sh("nft list table inet hostgw").ok();
    assert!(rules.contains("masquerade"), "{rules}");
    assert!(worker1.path("/run/flannel/subnet.env").exists());
    drop(agent.kill());
    drop(agent.wait());
}

/// With the file, `ip route` shows the protocol's name.
fn names_the_routes(text: &str) {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("hostgw.conf", text);
    nodes[1]
        .sh(
            "mount -t tmpfs tmpfs /etc/iproute2 && mkdir /etc/iproute2/rt_protos.d \
             && cp /mnt/hostgw.conf /etc/iproute2/rt_protos.d/ \
             && ip route add 10.10.2.0/24 via 192.168.2.15 proto 104",
        )
        .ok();
    let route = nodes[1].sh("ip route show 10.10.2.0/24").ok();
    assert_eq!(
        route.trim(),
        "10.10.2.0/24 via 192.168.2.15 dev enp0s5 proto hostgw"
    );
}
