//! The agent's firewall rules: masquerading as flannel means it, forwarding where others drop, and
//! both put right when somebody changes them.

use std::thread::sleep;
use std::time::Duration;

use conformance::reference_picture::{Drawn, Family, agents, cluster, nodes, pods};
use conformance::{Agent, Lab, Node, Server, wait_for};

/// The picture, with agents that got these arguments, too.
fn in_picture(
    family: Family,
    more: &[&str],
    test: impl FnOnce(&Lab, &[Node<'_>], &[Drawn<'_>], Vec<Agent>),
) {
    let lab = Lab::new();
    let nodes = nodes(&lab, family);
    lab.write("cluster.json", cluster(family, &[]));
    let agents = agents(&nodes, |node, args| {
        Agent::start(node, &[args, more].concat())
    });
    let drawn = pods(&lab, &nodes, family);
    test(&lab, &nodes, &drawn, agents);
}

/// Who asked, as a web server on `server` saw it when `client` ran this.
fn seen(server: Server, fetch: &str, client: impl Fn(&str) -> bool) -> String {
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do {fetch} 2>&1 | grep -q 404 && exit; sleep 0.1; done; exit 1"
    );
    assert!(client(&script), "{fetch}");
    let log = server.stop();
    let line = log
        .lines()
        .find(|line| line.contains("url:"))
        .unwrap_or_default();
    let address = line
        .split('[')
        .nth(1)
        .and_then(|rest| rest.rsplit_once("]:"));
    let address = address.map_or(String::new(), |(address, _)| address.to_owned());
    address
        .strip_prefix("::ffff:")
        .unwrap_or(&address)
        .to_owned()
}

fn wget(address: &str) -> String {
    let address = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    format!("timeout 3 busybox wget -q -O - http://{address}:8080/nothing/here")
}

const HTTPD: &str = "httpd -f -vv -p 8080 -h /run";

#[test]
fn pods_have_their_nodes_address_towards_the_world_and_their_own_within_the_cluster() {
    for backend in ["nftables", "iptables"] {
        let more = [
            "--ip-masq",
            &format!("--firewall={backend}"),
            "--non-masquerade-cidr=192.168.2.201/32",
            "--non-masquerade-cidr=fd00:192:168:2::201/128",
        ];
        in_picture(Family::Dual, &more, |lab, nodes, drawn, agents| {
            let text = std::fs::read_to_string(nodes[1].path("/run/flannel/subnet.env"));
            assert!(text.expect("written").ends_with("FLANNEL_IPMASQ=true\n"));
            let world = lab.node("world", &["192.168.2.200/24", "fd00:192:168:2::200/64"]);
            world
                .sh("ip addr add 192.168.2.201/24 dev enp0s5; ip addr add fd00:192:168:2::201/64 dev enp0s5 nodad")
                .ok();
            // The way back to pods that keep their addresses.
            world.sh("ip route add 10.10.1.0/24 via 192.168.2.16; ip -6 route add fd00:10:10:1::/64 via fd00:192:168:2::16").ok();
            let (from, to) = (&drawn[1], &drawn[3]);
            let in_pod = |script: &str| from.pod.sh(script).success;
            for (server, sees) in [
                ("192.168.2.200", "192.168.2.16"),
                ("192.168.2.201", from.addresses[0].as_str()),
                ("fd00:192:168:2::200", "fd00:192:168:2::16"),
                ("fd00:192:168:2::201", from.addresses[1].as_str()),
            ] {
                let who = seen(Server::start_on(&world, HTTPD), &wget(server), in_pod);
                assert_eq!(who, sees, "{backend}: a pod to {server}");
            }
            for (address, own) in to.addresses.iter().zip(&from.addresses) {
                let who = seen(Server::start(&to.pod, HTTPD), &wget(address), in_pod);
                assert_eq!(who, *own, "{backend}: a pod to {address} of another node");
            }
            // From elsewhere to a pod: it sees who that is.
            let in_world = |script: &str| world.sh(script).success;
            let address = &from.addresses[0];
            let who = seen(Server::start(&from.pod, HTTPD), &wget(address), in_world);
            assert_eq!(who, "192.168.2.200", "{backend}: the world to a pod");
            // The node itself to a pod of another node: under the address that leads back.
            let on_node = |script: &str| nodes[1].sh(script).success;
            let who = seen(
                Server::start(&to.pod, HTTPD),
                &wget(&to.addresses[0]),
                on_node,
            );
            assert_eq!(who, "192.168.2.16", "{backend}: a node to a pod");
            // What kube-proxy marked is its own business.
            nodes[1].sh("nft 'add table ip test; add chain ip test pre { type filter hook prerouting priority mangle; }; \
                         add rule ip test pre ip saddr 10.10.1.6 meta mark set mark or 0x4000'").ok();
            world.sh("ip addr add 192.168.2.202/24 dev enp0s5").ok();
            let who = seen(
                Server::start_on(&world, HTTPD),
                &wget("192.168.2.202"),
                in_pod,
            );
            assert_eq!(who, from.addresses[0], "{backend}: what is marked");
            if backend == "nftables" {
                let rules = nodes[1].sh("nft list table inet hostgw").ok();
                let rule = "ip saddr 10.10.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random";
                assert!(rules.contains(rule), "{rules}");
            } else {
                let rules = nodes[1].sh("iptables -t nat -S HOSTGW-POSTRTG").ok();
                let rule = "-s 10.10.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully";
                assert!(rules.contains(rule), "{rules}");
                // What is right is left alone, and what is not is put right.
                sleep(Duration::from_secs(6));
                assert!(
                    !agents[1].log().contains("put them right"),
                    "{}",
                    agents[1].log()
                );
                nodes[1].sh("iptables -t nat -F; ip6tables -t nat -F").ok();
                agents[1].wait_for_log("somebody changed the iptables rules; put them right");
                assert_eq!(nodes[1].sh("iptables -t nat -S HOSTGW-POSTRTG").ok(), rules);
            }
        });
    }
}

#[test]
fn whatever_others_do_to_our_table_is_put_right() {
    in_picture(
        Family::Dual,
        &["--ip-masq"],
        |_lab, nodes, drawn, agents| {
            let (worker1, agent) = (&nodes[1], &agents[1]);
            let list = || worker1.sh("nft list table inet hostgw").stdout;
            agent.wait_for_log("wrote the table inet hostgw");
            let written = list();
            assert!(written.contains("masquerade"), "{written}");
            let handle = |word: &str| {
                let rules = worker1.sh("nft -a list table inet hostgw").ok();
                let line = rules
                    .lines()
                    .find(|line| line.contains(word))
                    .expect(word)
                    .to_owned();
                line.rsplit(' ').next().expect("a number").to_owned()
            };
            let mut times = Vec::new();
            for damage in [
                "nft flush ruleset".to_owned(),
                "nft delete table inet hostgw".to_owned(),
                "nft flush chain inet hostgw postrouting".to_owned(),
                "nft insert rule inet hostgw postrouting counter drop".to_owned(),
                format!(
                    "nft delete rule inet hostgw postrouting handle {}",
                    handle("masquerade")
                ),
                "nft add chain inet hostgw postrouting '{ policy drop; }'".to_owned(),
                "iptables -F; nft flush chain inet hostgw forward".to_owned(),
            "nft add chain inet hostgw other '{ type filter hook forward priority 0; policy drop; }'"
                .to_owned(),
            "nft add table inet hostgw '{ flags dormant; }'".to_owned(),
            ] {
                worker1.sh(&damage).ok();
                times.push(wait_for(&damage, || list() == written));
            }
            assert!(
                times.iter().all(|time| *time < Duration::from_secs(2)),
                "{times:?}"
            );
            assert!(drawn[1].pod.pings("192.168.2.1"));
            // What is not about it is nobody's business.
            let before = agent.log().matches("put it right").count();
            worker1
                .sh("nft add table ip other; nft delete table ip other")
                .ok();
            sleep(Duration::from_millis(300));
            assert_eq!(agent.log().matches("put it right").count(), before);
            // A restart replaces it in one step, and the last state stays.
            let mut agents = agents;
            assert!(agents.remove(1).stop());
            assert_eq!(list(), written);
        },
    );
}

#[test]
fn pods_talk_where_docker_drops() {
    for (program, family) in [
        ("iptables", Family::Dual),
        ("iptables-legacy", Family::Ipv4),
        ("iptables-legacy", Family::Ipv6),
    ] {
        in_picture(family, &[], |_lab, nodes, drawn, _agents| {
            let (from, to, near) = (&drawn[1], &drawn[3], &drawn[0]);
            let talk = |what: &str| {
                for address in to.addresses.iter().chain(&near.addresses) {
                    let reaches = || {
                        let ping = format!("busybox ping -c 1 -W 1 {address}");
                        from.pod.sh(&ping).success
                    };
                    // The old iptables tells nobody: it is looked at every ten seconds, and every
                    // five once it is in use.
                    let came = (0..15).any(|_| reaches());
                    assert!(came, "{program}: {what}: a pod reaches {address}");
                    assert!(from.pod.pings(address), "{program}: {what}: {address}");
                }
            };
            talk("before");
            let six = program.replace("iptables", "ip6tables");
            for node in &nodes[1..] {
                node.sh(&format!("{program} -P FORWARD DROP; {six} -P FORWARD DROP"))
                    .ok();
            }
            talk("once Docker came");
            for call in [1, 0] {
                for node in &nodes[1..] {
                    node.sh(&format!(
                        "for i in iptables ip6tables; do echo {call} > /proc/sys/net/bridge/bridge-nf-call-$i; done"
                    ))
                    .ok();
                }
                talk("whether or not bridges ask");
            }
            let listed = nodes[1]
                .sh(&format!("{program} -S FORWARD; {six} -S FORWARD"))
                .ok();
            for network in family.of("10.10.0.0/16", "fd00:10:10::/48") {
                for side in ["-s", "-d"] {
                    let rule = format!("-A FORWARD {side} {network} ");
                    assert_eq!(listed.matches(&rule).count(), 1, "{rule} in {listed}");
                }
            }
            // Docker writes its rules anew.
            for node in &nodes[1..] {
                node.sh(&format!("{program} -F FORWARD; {six} -F FORWARD"))
                    .ok();
            }
            talk("once it started again");
            // Where nothing is dropped any more, nothing needs to be accepted.
            nodes[1]
                .sh(&format!(
                    "{program} -P FORWARD ACCEPT; {six} -P FORWARD ACCEPT"
                ))
                .ok();
            wait_for("our rules go", || {
                let listed = nodes[1]
                    .sh(&format!("{program} -S FORWARD; {six} -S FORWARD"))
                    .ok();
                !listed.contains("10.10.0.0/16") && !listed.contains("fd00:10:10::/48")
            });
        });
    }
}

#[test]
fn without_a_firewall_there_is_none() {
    in_picture(
        Family::Dual,
        &["--firewall=none", "--ip-masq"],
        |_lab, nodes, drawn, _agents| {
            assert!(drawn[1].pod.pings(&drawn[3].addresses[0]));
            let text = std::fs::read_to_string(nodes[1].path("/run/flannel/subnet.env"));
            assert!(
                text.expect("written").ends_with("FLANNEL_IPMASQ=false\n"),
                "the plugin is to masquerade"
            );
            // What is there, the plugin made.
            assert!(!nodes[0].sh("nft list ruleset").ok().contains("hostgw"));
        },
    );
    in_picture(
        Family::Ipv4,
        &["--iptables-forward-rules=false"],
        |_lab, nodes, _drawn, agents| {
            agents[1].wait_for_log("wrote the table inet hostgw");
            nodes[1].sh("iptables -P FORWARD DROP").ok();
            sleep(Duration::from_millis(500));
            assert_eq!(nodes[1].sh("iptables -S FORWARD").ok(), "-P FORWARD DROP\n");
            assert!(
                !nodes[1]
                    .sh("nft list table inet hostgw")
                    .ok()
                    .contains("accept\n")
            );
        },
    );
}

#[test]
fn what_an_earlier_run_made_and_this_one_does_not_want_goes() {
    in_picture(
        Family::Ipv4,
        &["--ip-masq"],
        |_lab, nodes, _drawn, mut agents| {
            let worker1 = &nodes[1];
            agents[1].wait_for_log("wrote the table inet hostgw");
            worker1.sh("iptables -P FORWARD DROP").ok();
            wait_for("rules in FORWARD", || {
                worker1
                    .sh("iptables -S FORWARD")
                    .ok()
                    .contains("hostgw-agent")
            });
            let left = || {
                worker1
                .sh("nft list table inet hostgw; iptables-save | grep -i hostgw; ip6tables-save | grep -i hostgw")
                .stdout
            };
            assert!(agents.remove(1).stop());
            for (args, wanted) in [
                (
                    &[
                        "--firewall=iptables",
                        "--ip-masq",
                        "--non-masquerade-cidr=192.168.5.5/16",
                    ][..],
                    true,
                ),
                (&["--firewall=none"], false),
            ] {
                let cluster = Lab::path("cluster.json").display().to_string();
                let agent =
                    Agent::start(worker1, &[&["--cluster", cluster.as_str()], args].concat());
                wait_for(&format!("{args:?}: {}", left()), || {
                    let left = left();
                    !left.contains("table inet") && left.contains("HOSTGW-POSTRTG") == wanted
                });
                if wanted {
                    sleep(Duration::from_secs(6));
                    assert!(!agent.log().contains("put them right"), "{}", agent.log());
                }
                assert!(agent.stop());
            }
            assert_eq!(left(), "");
        },
    );
}
