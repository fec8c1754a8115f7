//! Other programs that start CNI plugins, each the real one: CRI-O, nerdctl, podman, Multus.

use conformance::clients::tool;
use conformance::sockets::Place;
use conformance::{Containerd, Crio, Lab, Node, Plugin, Release, repository, wait_for};
use serde_json::{Value, json};

fn our_list() -> Value {
    let path = repository().join("examples/10-cni-hostgw.conflist");
    let text = std::fs::read_to_string(path).expect("the example exists");
    serde_json::from_str(&text).expect("the example is JSON")
}

/// CRI-O's own default list. `kind` is the type of its one plugin.
fn crio_list(kind: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "crio",
        "plugins": [{
            "type": kind, "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "ranges": [[{"subnet": "10.85.0.0/16"}], [{"subnet": "1100:200::/24"}]],
            },
        }],
    })
}

/// Returns what containers have left on a node: bridge ports, reserved addresses, records of host
/// ports, and masquerading.
fn left(node: &Node<'_>) -> String {
    let script = "cd /var/lib/cni/networks && ls */ | grep -E '^[0-9a-f]+[.:]'; ls */.attachments | grep -vE ':$|^boot_id$|^settings$|^$'; \
         ls /run/cni-hostgw/host-ports/pods 2>/dev/null; nft list tables | grep 'cni-hostgw-'";
    format!("{:?}{}", node.ports(), node.sh(script).stdout)
}

fn get(node: &Node<'_>, address: &str) -> String {
    node.sh(&format!("timeout 3 busybox wget -qO- http://{address}/"))
        .stdout
        .trim()
        .to_owned()
}

#[test]
fn crio_runs_pods_with_our_list_and_with_its_own() {
    let lists = [
        ("10-cni-hostgw.conflist", our_list()),
        ("10-crio-bridge.conflist", crio_list("cni-hostgw")),
        ("10-crio-bridge.conflist", crio_list("bridge")),
    ];
    for (file, list) in lists {
        let lab = Lab::new();
        let node = lab.node("worker1", &["192.168.2.16/24", "fd00:192:168:2::16/64"]);
        let outside = lab.node("outside", &["192.168.2.99/24"]);
        node.write_subnet_env(false);
        let crio = Crio::start(&node, file, &list);
        let (web, addresses) = crio.run_pod("web", Some(8080));
        let (other, _) = crio.run_pod("other", None);
        let in_url = |address: &String| {
            if address.contains(':') {
                format!("[{address}]")
            } else {
                address.clone()
            }
        };
        for address in &addresses {
            assert_eq!(get(&node, &in_url(address)), "web", "{file}: {address}");
        }
        // Host ports are CRI-O's own.
        assert_eq!(get(&outside, "192.168.2.16:8080"), "web", "{file}");
        // CRI-O sends CHECK for each pod when it starts, and forgets the addresses if that fails.
        crio.restart();
        assert_eq!(crio.addresses(&web), addresses, "{file}");
        assert_eq!(get(&outside, "192.168.2.16:8080"), "web", "{file}");
        crio.remove(&other);
        let crio = crio.boot();
        let (again, new) = crio.run_pod("again", None);
        assert_eq!(new.len(), addresses.len());
        assert_eq!(get(&node, &in_url(&new[0])), "again", "{file}");
        crio.remove(&again);
        assert_eq!(left(&node), "[]", "{file}");
    }
}

/// A node with Debian's containerd, which holds the namespaces, and our plugin as `cni-hostgw` and as
/// `bridge`.
fn start<'a>(node: &'a Node<'a>) -> Containerd<'a> {
    node.write_subnet_env(false);
    let containerd = Containerd::start(node, Release::Debian, &our_list());
    node.sh(
        "cd /opt/cni/bin && rm bridge && cp cni-hostgw bridge && ln -s /usr/lib/cni/firewall /usr/lib/cni/tuning .",
    )
    .ok();
    containerd
}

const WEB: &str = "sh -c 'echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp'";

/// Runs two containers in each of two networks, ours and one that the program has created for the
/// plugin `bridge`. `program` is the command, `run` its command that starts a container with the
/// options and the name that follow, `image` comes before the command of the container.
fn runs_containers(program: &str, image: &str, containerd: &Containerd<'_>, node: &Node<'_>) {
    let sh = |arguments: &str| containerd.sh(&format!("{program} {arguments}")).ok();
    sh("network create --subnet 10.77.0.0/24 mine");
    for (network, port) in [("cbr0", 8080), ("mine", 8081)] {
        sh(&format!(
            "run -d --network {network} -p {port}:80 --cap-add net_raw --name web-{network} {image} {WEB}"
        ));
        sh(&format!(
            "run -d --network {network} --cap-add net_raw --name client-{network} {image} sleep 1000"
        ));
        let show = format!("exec web-{network} ip -4 -o address show dev eth0");
        let text = sh(&show);
        let address = text
            .split_whitespace()
            .nth(3)
            .and_then(|text| text.split('/').next());
        let address = address.unwrap_or_else(|| panic!("no address: {text}"));
        let expected = if network == "cbr0" {
            "10.10.1."
        } else {
            "10.77.0."
        };
        assert!(address.starts_with(expected), "{network}: {address}");
        sh(&format!("exec client-{network} ping -c 2 -i 0.2 {address}"));
        for host in ["192.168.2.16", "127.0.0.1"] {
            assert_eq!(get(node, &format!("{host}:{port}")), "hello", "{network}");
        }
    }
    for network in ["cbr0", "mine"] {
        for name in ["web", "client"] {
            sh(&format!("rm -f {name}-{network}"));
        }
    }
    wait_for("nothing is left", || left(node) == "[]");
}

#[test]
fn nerdctl_runs_containers_in_our_network_and_in_its_own() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let containerd = start(&node);
    lab.install(&tool("nerdctl"), "bin/nerdctl");
    let config = "address = \"/run/containerd-test/containerd.sock\"\nsnapshotter = \"native\"\n\
         cni_path = \"/opt/cni/bin\"\ncni_netconfpath = \"/etc/cni/net.d\"\n\
         data_root = \"/var/lib/nerdctl\"\ncgroup_manager = \"cgroupfs\"\n";
    node.write("/etc/nerdctl/nerdctl.toml", config);
    node.sh(include_str!("../src/containerd/image.sh")).ok();
    containerd
        .sh("/mnt/bin/nerdctl load -i /run/image.tar")
        .ok();
    let image = "--entrypoint= test.local/busybox:1";
    runs_containers("/mnt/bin/nerdctl", image, &containerd, &node);
}

#[test]
fn podman_runs_containers_in_our_network_and_in_its_own() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    let containerd = start(&node);
    let config = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
         [network]\nnetwork_backend = \"cni\"\nnetwork_config_dir = \"/etc/cni/net.d\"\n\
         cni_plugin_dirs = [\"/opt/cni/bin\"]\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n";
    node.write("/etc/containers/containers.conf", config);
    let storage = "[storage]\ndriver = \"vfs\"\ngraphroot = \"/var/lib/containers/storage\"\n\
         runroot = \"/run/containers/storage\"\n";
    node.write("/etc/containers/storage.conf", storage);
    runs_containers("podman", "--rootfs /run/rootfs", &containerd, &node);
}

#[test]
fn multus_attaches_a_pod_to_two_networks_of_ours_and_one_of_the_reference() {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(false);
    let _ = Plugin::ours(&lab);
    for name in ["multus", "cnitool"] {
        lab.install(&tool(name), &format!("bin/{name}"));
    }
    let shared = json!({"portMappings": true});
    let list = json!({"cniVersion": "1.0.0", "name": "all", "plugins": [{
        "type": "multus", "binDir": "/mnt/bin", "cniDir": "/var/lib/cni/multus",
        "logToStderr": false, "logFile": "/run/multus.log", "capabilities": shared,
        "delegates": [
            {"cniVersion": "1.0.0", "name": "cbr0", "plugins": [
                {"type": "cni-hostgw", "capabilities": shared, "delegate": {"isDefaultGateway": true}}]},
            {"cniVersion": "1.0.0", "name": "second", "plugins": [
                {"type": "cni-hostgw", "capabilities": shared, "bridge": "cni1", "isGateway": true,
                 "ipam": {"type": "host-local", "subnet": "10.20.1.0/24"}}]},
            {"cniVersion": "1.0.0", "name": "third", "type": "bridge", "bridge": "br3",
             "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.30.1.0/24"}},
        ],
    }]});
    node.write("/run/net.d/00-multus.conflist", list.to_string());
    let ports = r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;
    let call = |verb: &str, pod: &str, ports: &str| {
        node.sh(&format!(
            "NETCONFPATH=/run/net.d CNI_PATH=/mnt/bin:/usr/lib/cni CAP_ARGS='{ports}' /mnt/bin/cnitool {verb} all /run/netns/{pod}"
        ))
    };
    let (web, client) = (node.pod("web"), node.pod("client"));
    for (pod, ports) in [("web", ports), ("client", "{}")] {
        call("add", pod, ports).ok();
        call("check", pod, ports).ok();
    }
    for address in ["10.10.1.2", "10.20.1.2", "10.30.1.2"] {
        assert!(client.pings(address), "{address}");
    }
    let routes = web.sh("ip route show default").ok();
    assert_eq!(routes.trim(), "default via 10.10.1.1 dev eth0");
    let _server = web.answer(80, "web");
    let answer = node.ask("192.168.2.16:8080");
    assert_eq!(
        answer
            .expect("the host port leads to the pod")
            .split(' ')
            .next(),
        Some("web")
    );
    client.sh("ip address flush dev net1").ok();
    let check = call("check", "client", "{}");
    assert!(
        !check.success && check.stderr.contains("net1 lacks address"),
        "{check:?}"
    );
    for (pod, ports) in [("web", ports), ("client", "{}"), ("client", "{}")] {
        call("del", pod, ports).ok();
    }
    assert_eq!(left(&node), "[]");
}
