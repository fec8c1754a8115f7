//! Real clients, built by `make tools`: cnitool, containerd through CRI, and CRI-O's CNI library.

use conformance::clients::tool;
use conformance::sockets::Place;
use conformance::{Agent, Containerd, Lab, Node, Plugin, Release, repository, wait_for};
use serde_json::{Value, json};

/// Plugins that a list may chain, in a release that supports 1.1.0.
const CHAINED: [&str; 4] = ["portmap", "bandwidth", "firewall", "tuning"];

/// Returns a node with a subnet file and with our plugin under both names. `tools` are installed in
/// the same folder.
fn node<'lab>(lab: &'lab Lab, tools: &[&str]) -> Node<'lab> {
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write_subnet_env(false);
    for name in ["cni-hostgw", "flannel"] {
        let _ = Plugin::ours_as(lab, name);
    }
    for name in tools {
        lab.install(&tool(name), &format!("bin/{name}"));
    }
    node
}

fn bridge_form(kind: &str) -> Value {
    json!({
        "type": kind, "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24"}]]},
    })
}

fn flannel_form() -> Value {
    json!({"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}})
}

/// Returns a list with one plugin, or with all the chained plugins after it.
fn list(version: &str, first: &Value, is_chained: bool) -> Value {
    let mut plugins = vec![first.clone()];
    if is_chained {
        plugins.extend([
            json!({"type": "portmap", "capabilities": {"portMappings": true}}),
            json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
            json!({"type": "firewall", "backend": "iptables"}),
            json!({"type": "tuning", "mtu": 1400}),
        ]);
    }
    json!({"cniVersion": version, "name": "cbr0", "plugins": plugins})
}

/// Returns a list with our plugin alone, which opens host ports and limits the bandwidth, too.
fn ours_alone(version: &str) -> Value {
    let mut entry = bridge_form("cni-hostgw");
    entry["capabilities"] = json!({"portMappings": true, "bandwidth": true});
    list(version, &entry, false)
}

/// Returns everything that attachments have left on the node.
fn left(node: &Node<'_>) -> String {
    node.sh(
        "ls /var/lib/cni/networks/cbr0 /var/lib/cni/networks/cbr0/.attachments /var/lib/cni/results \
         | grep -E '^10|eth0|cnitool'; \
         ip -o link show type bridge_slave | grep veth; \
         ip -o link show type ifb; iptables-save | grep 10.10.1.; \
         nft list ruleset | grep 10.10.1. | grep -v '10.10.1.0[/-]24'; \
         ls /run/cni-hostgw/host-ports/pods /run/cni-hostgw/host-ports/addresses | grep -E '^veth|^10'",
    )
    .stdout
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn cnitool_sends_every_verb() {
    // Debian's release of the reference supports versions up to 1.0.0, without GC and STATUS.
    for (version, first, verbs) in [
        ("1.0.0", bridge_form("bridge"), "theirs"),
        ("1.1.0", bridge_form("cni-hostgw"), "ours"),
        ("1.1.0", flannel_form(), "ours"),
    ] {
        for is_chained in [false, true] {
            let lab = Lab::new();
            let node = node(&lab, &["cnitool"]);
            for name in CHAINED {
                lab.install(&tool(name), &format!("chained/{name}"));
            }
            lab.write(
                "net.d/10.conflist",
                list(version, &first, is_chained).to_string(),
            );
            let case = format!("{first} chained: {is_chained}");
            let (a, b) = (node.pod("a"), node.pod("b"));
            let ports = r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}], "bandwidth": {"ingressRate": 8000000, "ingressBurst": 8000000}}"#;
            let cnitool = |verb: &str, pod: &str, args: &str| {
                node.sh(&format!(
                    "CAP_ARGS='{args}' NETCONFPATH=/mnt/net.d CNI_PATH=/mnt/bin:/mnt/chained:/usr/lib/cni \
                     /mnt/bin/cnitool {verb} cbr0 /run/netns/{pod}"
                ))
            };
            if verbs == "ours" {
                cnitool("status", "a", "").ok();
            }
            cnitool("add", "a", "").ok();
            let result = cnitool("add", "b", ports).json();
            let address = result["ips"][0]["address"]
                .as_str()
                .expect("the value is present");
            let address = address.split('/').next().expect("has a first part");
            assert!(a.pings(address), "{case}");
            assert!(b.pings("192.168.2.1"), "{case}: masqueraded");
            if is_chained {
                let rules = node.sh("iptables-save -t nat").ok();
                let target = format!("--to-destination {address}:80");
                assert!(rules.contains(&target), "{case}: {rules}");
                let shaped = node.sh("tc qdisc show").ok();
                assert!(shaped.contains("tbf"), "{case}: {shaped}");
                assert!(
                    b.sh("ip link show eth0").ok().contains("mtu 1400"),
                    "{case}"
                );
            }
            cnitool("check", "b", ports).ok();
            assert_ne!(left(&node), "", "{case}");
            node.sh("ip -n b route delete default").ok();
            let refused = cnitool("check", "b", ports);
            assert!(!refused.success, "{case}: {}", refused.stdout);
            if verbs == "ours" {
                assert!(
                    refused.stderr.contains("route 0.0.0.0/0"),
                    "{}",
                    refused.stderr
                );
                // cnitool passes no valid attachments, so its GC deletes every attachment that it
                // knows.
                cnitool("gc", "a", "").ok();
                assert_eq!(left(&node), "", "{case}");
                cnitool("add", "a", "").ok();
                node.sh("rm /run/flannel/subnet.env").ok();
                let status = cnitool("status", "a", "");
                let is_ready = first["type"] != "flannel";
                assert_eq!(status.success, is_ready, "{case}: {}", status.stderr);
                if !is_ready {
                    assert!(status.stderr.contains("/run/flannel/subnet.env"));
                }
            }
            for pod in ["a", "b", "b"] {
                cnitool("del", pod, ports).ok();
            }
            assert_eq!(left(&node), "", "{case}");
        }
    }
}

#[test]
fn cnitool_opens_host_ports_and_limits_bandwidth_with_our_plugin_alone() {
    for version in ["0.4.0", "1.1.0"] {
        let lab = Lab::new();
        let node = node(&lab, &["cnitool"]);
        let outside = lab.node("outside", &["192.168.2.99/24"]);
        lab.write("net.d/10.conflist", ours_alone(version).to_string());
        let pod = node.pod("a");
        let arguments = r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}], "bandwidth": {"ingressRate": 8000000, "ingressBurst": 8000000, "egressRate": 8000000, "egressBurst": 8000000}}"#;
        let cnitool = |verb: &str| {
            node.sh(&format!(
                "CAP_ARGS='{arguments}' NETCONFPATH=/mnt/net.d CNI_PATH=/mnt/bin \
                 /mnt/bin/cnitool {verb} cbr0 /run/netns/a"
            ))
        };
        cnitool("add").ok();
        let _server = pod.answer(80, "a");
        let answer = outside.ask("192.168.2.16:8080").expect("open");
        assert_eq!(answer, "a 192.168.2.99");
        let shaped = node.sh("tc qdisc show").ok();
        assert_eq!(shaped.matches("rate 8Mbit").count(), 2, "{shaped}");
        cnitool("check").ok();
        node.sh("nft flush map inet cni-hostgw ports-ipv4").ok();
        assert!(!cnitool("check").success);
        cnitool("del").ok();
        assert_eq!(left(&node), "");
        cnitool("del").ok();
    }
}

/// Kind of rules that the `portmap` plugin makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backend {
    IptablesNft,
    IptablesLegacy,
    Nftables,
}

#[test]
fn host_ports_move_from_portmap_to_ours_without_a_refused_connection() {
    for backend in [
        Backend::IptablesNft,
        Backend::IptablesLegacy,
        Backend::Nftables,
    ] {
        host_ports_move(backend);
    }
}

/// Takes a node over from `bridge` and `portmap` while a client connects all the time.
fn host_ports_move(backend: Backend) {
    let lab = Lab::new();
    let node = node(&lab, &["cnitool"]);
    // The newest release has both backends. Which iptables it runs, its path says.
    lab.install(&tool("portmap"), "theirs/portmap");
    let mut portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    portmap["backend"] = json!(if backend == Backend::Nftables {
        "nftables"
    } else {
        "iptables"
    });
    let path = if backend == Backend::IptablesLegacy {
        node.sh("mkdir /run/legacy && cd /run/legacy && for v in ip ip6; do for e in '' -save -restore; \
                 do ln -s $(command -v ${v}tables-legacy$e) ${v}tables$e; done; done").ok();
        "/run/legacy:$PATH"
    } else {
        "$PATH"
    };
    let outside = lab.node("outside", &["192.168.2.99/24"]);
    let stock = json!({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}}, portmap]});
    node.write("/run/net.d/10-flannel.conflist", stock.to_string());
    // The pods are attached by the reference plugins, under flannel's configuration for them.
    let theirs = json!({"cniVersion": "0.3.1", "name": "cbr0", "plugins": [
        bridge_form("bridge"), portmap]});
    lab.write("net.d/10.conflist", theirs.to_string());
    let pods = ["a", "b"].map(|name| node.pod(name));
    let arguments = |port: u16| {
        format!(
            r#"{{"portMappings": [{{"hostPort": {port}, "containerPort": 80, "protocol": "tcp"}},
            {{"hostPort": {port}, "containerPort": 53, "protocol": "udp"}}]}}"#
        )
    };
    let cnitool = |verb: &str, pod: &str, port: u16, lists: &str| {
        node.sh(&format!(
            "PATH={path} CAP_ARGS='{}' NETCONFPATH={lists} \
             CNI_PATH=/mnt/bin:/mnt/theirs:/usr/lib/cni /mnt/bin/cnitool {verb} cbr0 /run/netns/{pod}",
            arguments(port)
        ))
    };
    cnitool("add", "a", 8080, "/mnt/net.d").ok();
    cnitool("add", "b", 8081, "/mnt/net.d").ok();
    let servers = [pods[0].answer(80, "a"), pods[1].answer(80, "b")];
    let rules = || {
        let listing = match backend {
            Backend::IptablesNft => "iptables-save -t nat | grep -c -e '-j DNAT'",
            Backend::IptablesLegacy => "iptables-legacy-save -t nat | grep -c -e '-j DNAT'",
            Backend::Nftables => "nft list table ip cni_hostport | grep -c 'dnat to'",
        };
        let count = node.sh(listing).stdout;
        count.trim().parse::<usize>().expect("a count")
    };
    assert_eq!(rules(), 4, "{backend:?}");
    lab.write(
        "cluster.json",
        r#"{"network": {"Network": "10.10.0.0/16"}, "nodes": [
            {"name": "worker1", "publicIP": "192.168.2.16", "subnet": "10.10.1.0/24"}]}"#,
    );
    let ask = |port: u16| outside.ask(&format!("192.168.2.16:{port}"));
    let agent = Agent::start(
        &node,
        &[
            "--cluster=/mnt/cluster.json",
            "--take-over-flannel",
            "--cni-conf-dir=/run/net.d",
            "--cni-bin-dir=/run/opt",
            "--cni-plugin=/mnt/bin/cni-hostgw",
        ],
    );
    let mut asked = 0;
    while rules() > 0 || asked < 50 {
        assert_eq!(ask(8080).expect("open all the time"), "a 192.168.2.99");
        assert_eq!(ask(8081).expect("open all the time"), "b 192.168.2.99");
        asked += 1;
        assert!(asked < 1000, "the ports have not moved: {}", agent.log());
    }
    agent.wait_for_log("moved 2 host port(s) of pod");
    let list: Value = serde_json::from_str(
        &std::fs::read_to_string(node.path("/run/net.d/10-flannel.conflist")).expect("exists"),
    )
    .expect("is JSON");
    let expected = json!([{"type": "cni-hostgw", "capabilities": {"portMappings": true},
        "delegate": {"hairpinMode": true, "isDefaultGateway": true}}]);
    assert_eq!(list["plugins"], expected);
    // The table belongs to a pod without a veth of ours, and the agent keeps it.
    node.sh("nft delete table inet cni-hostgw").ok();
    wait_for("the ports to be open again", || ask(8080).is_ok());
    // Our plugin closes the port of a pod that it did not attach.
    drop(servers);
    cnitool("del", "a", 8080, "/run/net.d").ok();
    let table = node.sh("nft list table inet cni-hostgw").ok();
    assert!(!table.contains("8080") && table.contains("8081"), "{table}");
    cnitool("del", "b", 8081, "/run/net.d").ok();
    assert_eq!(left(&node), "");
}

/// Does what a user of containerd does, with our plugin and with the reference.
#[test]
fn containerd_runs_sandboxes_that_reach_each_other_and_their_host_ports() {
    let stock = repository().join("examples/kube-flannel/cni-conf.json");
    let stock = std::fs::read_to_string(stock).expect("the file exists");
    let with_ports = |first: Value| {
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": [first, portmap]})
    };
    for (kind, list) in [
        ("reference", with_ports(bridge_form("bridge"))),
        ("bridge's form", with_ports(bridge_form("cni-hostgw"))),
        ("ours alone", ours_alone("1.0.0")),
        ("stock", serde_json::from_str(&stock).expect("is JSON")),
    ] {
        let lab = Lab::new();
        let node = node(&lab, &[]);
        let outside = lab.node("outside", &["192.168.2.99/24"]);
        let containerd = Containerd::start(&node, Release::Debian, &list).with_image();
        let one = containerd.run_sandbox("one", None);
        let two = containerd.run_sandbox("two", Some(8080));
        assert_eq!(
            (one.address.as_str(), two.address.as_str()),
            ("10.10.1.2", "10.10.1.3"),
            "{kind}"
        );
        containerd.serve(&two, "two", "hello-from-two");
        let fetch = |address: &str| {
            format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 3 {address} | tail -1")
        };
        wait_for("the web server answers", || {
            let answer = containerd.in_sandbox(&one, &fetch("10.10.1.3 80")).stdout;
            answer.contains("hello-from-two")
        });
        if kind == "ours alone" {
            let shaped = node.sh("tc qdisc show").ok();
            assert_eq!(shaped.matches("rate 100Mbit").count(), 4, "{shaped}");
            let table = node.sh("nft list table inet cni-hostgw").ok();
            assert!(table.contains("shop/two"), "the pod is named: {table}");
            assert_eq!(node.sh("iptables-save -t nat").stdout.find("CNI-"), None);
        }
        for (from, answer) in [
            ("outside", outside.sh(&fetch("192.168.2.16 8080"))),
            ("node", node.sh(&fetch("192.168.2.16 8080"))),
            (
                "itself",
                containerd.in_sandbox(&two, &fetch("192.168.2.16 8080")),
            ),
        ] {
            assert!(
                answer.stdout.contains("hello-from-two"),
                "{kind}: from {from}: {answer:?}"
            );
        }
        assert_ne!(left(&node), "", "{kind}");
        containerd.remove(&one);
        containerd.remove(&two);
        assert_eq!(left(&node), "", "{kind}");
        assert_eq!(node.sh("ls /run/netns").ok(), "", "{kind}");
    }
}

/// Kills containerd at bad moments, and checks what is left once all pods are gone.
#[test]
fn nothing_leaks_if_containerd_is_killed_between_add_and_del() {
    for (kind, first) in [
        ("reference", bridge_form("bridge")),
        ("ours", bridge_form("cni-hostgw")),
    ] {
        let lab = Lab::new();
        let node = node(&lab, &[]);
        let mut list = list("1.0.0", &first, false);
        // The reference leaves its masquerading rules behind if the namespace is gone, which is a
        // known bug.
        list["plugins"][0]["ipMasq"] = json!(kind == "ours");
        let containerd = Containerd::start(&node, Release::Debian, &list).with_image();
        let one = containerd.run_sandbox("one", None);
        containerd.kill(false);
        containerd.wait_for_cri();
        let two = containerd.run_sandbox("two", None);
        let ping = format!("busybox ping -c 1 -W 2 {}", two.address);
        assert!(
            containerd.in_sandbox(&one, &ping).success,
            "{kind}: the pod still has its network"
        );
        // The next time, containerd is killed after ADD has finished but before it has the result.
        let plugin = list["plugins"][0]["type"]
            .as_str()
            .expect("the value is present");
        let slow = format!(
            "#!/bin/sh\nout=$(/run/real/{plugin}); rc=$?; test $CNI_COMMAND = ADD && touch /run/added && \
             while test -e /run/wait; do sleep 0.02; done\necho \"$out\"; exit $rc\n"
        );
        node.write("/run/slow", slow);
        node.sh(&format!(
            "mkdir /run/real && cp -L /opt/cni/bin/{plugin} /run/real/ && touch /run/wait && \
             chmod 755 /run/slow && mv /run/slow /opt/cni/bin/{plugin}"
        ))
        .ok();
        containerd.begin_sandbox("three");
        wait_for("ADD is done", || node.path("/run/added").exists());
        containerd.kill(true);
        node.sh("rm /run/wait").ok();
        containerd.release_hold();
        assert_eq!(node.ports().len(), 3, "{kind}: the attachment still exists");
        // Removes every sandbox that containerd lists, as kubelet does.
        containerd
            .crictl(
                "stopp $(/mnt/bin/crictl -r unix:///run/containerd-test/containerd.sock pods -q)",
            )
            .ok();
        containerd.crictl("rmp -f -a").ok();
        assert_eq!(left(&node), "", "{kind}");
        assert_eq!(node.sh("ls /run/netns").ok(), "", "{kind}");
    }
}

/// The newest containerd reports the STATUS of our plugin.
#[test]
fn the_newest_containerd_reports_our_status() {
    let lab = Lab::new();
    let node = node(&lab, &[]);
    node.sh("mv /run/flannel/subnet.env /run/flannel/later")
        .ok();
    let containerd = Containerd::start(
        &node,
        Release::Newest,
        &list("1.1.0", &flannel_form(), false),
    );
    let containerd = containerd.with_image();
    let network = || {
        let info = containerd.crictl("info").json();
        let conditions = info["status"]["conditions"].as_array().cloned();
        let conditions = conditions.expect("a list");
        let network = conditions.into_iter().find(|c| c["type"] == "NetworkReady");
        network.expect("containerd reports the condition NetworkReady")
    };
    let not_ready = network();
    assert_eq!(not_ready["status"], false, "{not_ready}");
    let message = not_ready["message"]
        .as_str()
        .expect("the condition has a message");
    assert!(message.contains("/run/flannel/subnet.env"), "{message}");
    node.sh("mv /run/flannel/later /run/flannel/subnet.env")
        .ok();
    let ready = network();
    assert_eq!(ready["status"], true, "{ready}");
    let sandbox = containerd.run_sandbox("one", None);
    assert_eq!(sandbox.address, "10.10.1.2");
    containerd.remove(&sandbox);
    assert_eq!(left(&node), "");
}

/// Does what CRI-O does: VERSION when it loads the list, CHECK after ADD, and STATUS and GC when it
/// starts.
#[test]
fn cri_os_library_sends_version_check_status_and_gc() {
    for first in [bridge_form("cni-hostgw"), flannel_form()] {
        let lab = Lab::new();
        let node = node(&lab, &["ocicnitool", "ocicni-start"]);
        // Wraps the plugin in a script that records the requests.
        let plugin = first["type"].as_str().expect("the value is present");
        let script = format!(
            "#!/bin/sh\ntee -a /run/asked.$CNI_COMMAND | /mnt/bin/{plugin}\n\
             rc=$?; echo $CNI_COMMAND $rc >> /run/verbs; exit $rc\n"
        );
        lab.write(&format!("wrapped/{plugin}"), script);
        lab.make_executable(&format!("wrapped/{plugin}"));
        lab.write(
            "net.d/10.conflist",
            list("1.1.0", &first, false).to_string(),
        );
        let run = |program: &str, args: &str| {
            node.sh(&format!(
                "CONF_PATH=/mnt/net.d BIN_PATH=/mnt/wrapped /mnt/bin/{program} {args}"
            ))
        };
        let asked = |file: &str| std::fs::read_to_string(node.path(file)).unwrap_or_default();
        let (a, _b) = (node.pod("a"), node.pod("b"));
        for pod in ["a", "b"] {
            let args = format!("shop {pod} id-{pod} /run/netns/{pod}");
            let answer = run("ocicnitool", &format!("add {args}")).ok();
            assert!(answer.contains("IP: 10.10.1."), "{answer}");
            run("ocicnitool", &format!("status {args}")).ok();
        }
        assert!(a.pings("10.10.1.3"));
        let verbs = asked("/run/verbs");
        let expected = "VERSION 0\nADD 0\nVERSION 0\nCHECK 0\n".repeat(2);
        assert_eq!(verbs, expected, "{first}");
        // CRI-O starts and knows only pod a, because the DEL of b was lost.
        run("ocicni-start", "shop/a/id-a//run/netns/a").ok();
        assert!(
            asked("/run/verbs").ends_with("STATUS 0\nDEL 0\nGC 0\n"),
            "{}",
            asked("/run/verbs")
        );
        assert!(asked("/run/asked.GC").contains(r#""containerID":"id-a""#));
        assert_eq!(node.ports().len(), 1);
        assert!(a.pings("10.10.1.1"));
        // CRI-O starts without any pod and without its cache: no attachment is valid, which it
        // passes as null.
        node.sh("rm -r /var/lib/cni/results").ok();
        run("ocicni-start", "").ok();
        assert!(
            asked("/run/asked.GC").contains(r#""cni.dev/valid-attachments":null"#),
            "{}",
            asked("/run/asked.GC")
        );
        assert_eq!(left(&node), "", "{first}");
        // The veth is gone without a DEL. DEL still succeeds.
        run("ocicnitool", "del shop a id-a /run/netns/a").ok();
    }
}
