//! The agent's firewall rules: masquerading with flannel's semantics, forwarding where other rules
//! drop packets, and restoration of both after external changes.

use std::thread::sleep;
use std::time::Duration;

use conformance::reference_picture::{AttachedPod, Family, agents, cluster, nodes, pods};
use conformance::{Agent, Lab, Node, Server, wait_for};

/// Runs a test on the reference cluster, with these additional arguments for the agents.
fn in_reference_cluster(
    family: Family,
    more: &[&str],
    test: impl FnOnce(&Lab, &[Node<'_>], &[AttachedPod<'_>], Vec<Agent>),
) {
    let lab = Lab::new();
    let nodes = nodes(&lab, family);
    lab.write("cluster.json", cluster(family, &[]));
    let agents = agents(&nodes, |node, args| {
        Agent::start(node, &[args, more].concat())
    });
    let attached = pods(&lab, &nodes, family);
    test(&lab, &nodes, &attached, agents);
}

/// Runs `fetch` by `client`, and returns the source address that the web server on `server` saw.
fn source_address(server: Server, fetch: &str, client: impl Fn(&str) -> bool) -> String {
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

// Long: one scenario, in which each step needs the steps before.
#[test]
fn pods_are_masqueraded_outside_the_cluster_only() {
    for backend in ["nftables", "iptables"] {
        let more = [
            "--ip-masq",
            &format!("--firewall={backend}"),
            "--non-masquerade-cidr=192.168.2.201/32",
            "--non-masquerade-cidr=fd00:192:168:2::201/128",
        ];
        in_reference_cluster(Family::Dual, &more, |lab, nodes, attached, agents| {
            let text = std::fs::read_to_string(nodes[1].path("/run/flannel/subnet.env"));
            assert!(text.expect("written").ends_with("FLANNEL_IPMASQ=true\n"));
            let world = lab.node("world", &["192.168.2.200/24", "fd00:192:168:2::200/64"]);
            world
                .sh("ip addr add 192.168.2.201/24 dev enp0s5; ip addr add fd00:192:168:2::201/64 dev enp0s5 nodad")
                .ok();
            // Return routes to pods that are not masqueraded.
            world.sh("ip route add 10.10.1.0/24 via 192.168.2.16; ip -6 route add fd00:10:10:1::/64 via fd00:192:168:2::16").ok();
            let (from, to) = (&attached[1], &attached[3]);
            let in_pod = |script: &str| from.pod.sh(script).success;
            for (server, expected_source) in [
                ("192.168.2.200", "192.168.2.16"),
                ("192.168.2.201", from.addresses[0].as_str()),
                ("fd00:192:168:2::200", "fd00:192:168:2::16"),
                ("fd00:192:168:2::201", from.addresses[1].as_str()),
            ] {
                let who = source_address(Server::start_on(&world, HTTPD), &wget(server), in_pod);
                assert_eq!(who, expected_source, "{backend}: a pod to {server}");
            }
            for (address, own) in to.addresses.iter().zip(&from.addresses) {
                let who = source_address(Server::start(&to.pod, HTTPD), &wget(address), in_pod);
                assert_eq!(who, *own, "{backend}: a pod to {address} of another node");
            }
            // A pod sees the real source address of a client outside of the cluster.
            let in_world = |script: &str| world.sh(script).success;
            let address = &from.addresses[0];
            let who = source_address(Server::start(&from.pod, HTTPD), &wget(address), in_world);
            assert_eq!(who, "192.168.2.200", "{backend}: the world to a pod");
            // The node's packets to a pod of another node have a source address to which the answer
            // can be routed.
            let on_node = |script: &str| nodes[1].sh(script).success;
            let who = source_address(
                Server::start(&to.pod, HTTPD),
                &wget(&to.addresses[0]),
                on_node,
            );
            assert_eq!(who, "192.168.2.16", "{backend}: a node to a pod");
            // Packets with kube-proxy's mark are left to kube-proxy.
            nodes[1].sh("nft 'add table ip test; add chain ip test pre { type filter hook prerouting priority mangle; }; \
                         add rule ip test pre ip saddr 10.10.1.6 meta mark set mark or 0x4000'").ok();
            world.sh("ip addr add 192.168.2.202/24 dev enp0s5").ok();
            let who = source_address(
                Server::start_on(&world, HTTPD),
                &wget("192.168.2.202"),
                in_pod,
            );
            assert_eq!(
                who, from.addresses[0],
                "{backend}: packets with kube-proxy's mark"
            );
            if backend == "nftables" {
                let rules = nodes[1].sh("nft list table inet hostgw").ok();
                let rule = "ip saddr 10.10.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random";
                assert!(rules.contains(rule), "{rules}");
            } else {
                let rules = nodes[1].sh("iptables -t nat -S HOSTGW-POSTRTG").ok();
                let rule = "-s 10.10.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully";
                assert!(rules.contains(rule), "{rules}");
                // Correct rules are not rewritten; wrong ones are restored.
                sleep(Duration::from_secs(6));
                assert!(
                    !agents[1].log().contains("restored our iptables rules"),
                    "{}",
                    agents[1].log()
                );
                nodes[1].sh("iptables -t nat -F; ip6tables -t nat -F").ok();
                agents[1].wait_for_log("restored our iptables rules after an external change");
                assert_eq!(nodes[1].sh("iptables -t nat -S HOSTGW-POSTRTG").ok(), rules);
            }
        });
    }
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn the_nftables_table_is_restored_after_any_external_change() {
    in_reference_cluster(
        Family::Dual,
        &["--ip-masq"],
        |_lab, nodes, attached, agents| {
            let (worker1, agent) = (&nodes[1], &agents[1]);
            let list = || worker1.sh("nft list table inet hostgw").stdout;
            agent.wait_for_log("wrote table inet hostgw");
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
            assert!(attached[1].pod.pings("192.168.2.1"));
            // A change of another table has no effect.
            let restored = || {
                let status = worker1.sh("/mnt/bin/hostgw-agent status --json").json();
                status["firewall"]["mended"].as_u64()
            };
            let before = restored();
            assert!(before >= Some(9), "{before:?}");
            worker1
                .sh("nft add table ip other; nft delete table ip other")
                .ok();
            sleep(Duration::from_millis(300));
            assert_eq!(restored(), before);
            // A restart replaces the table atomically, and the table stays when the agent stops.
            let mut agents = agents;
            assert!(agents.remove(1).stop());
            assert_eq!(list(), written);
        },
    );
}

// Long: one scenario, in which each step needs the steps before.
#[test]
fn pods_can_communicate_if_docker_sets_forward_to_drop() {
    for (program, family) in [
        ("iptables", Family::Dual),
        ("iptables-legacy", Family::Ipv4),
        ("iptables-legacy", Family::Ipv6),
    ] {
        in_reference_cluster(family, &[], |_lab, nodes, attached, _agents| {
            let (from, to, near) = (&attached[1], &attached[3], &attached[0]);
            let check_connectivity = |what: &str| {
                for address in to.addresses.iter().chain(&near.addresses) {
                    let reaches = || {
                        let ping = format!("busybox ping -c 1 -W 1 {address}");
                        from.pod.sh(&ping).success
                    };
                    // iptables-legacy sends no notifications. The agent checks its rules every ten
                    // seconds, and every five seconds once they are in use.
                    let came = (0..15).any(|_| reaches());
                    assert!(came, "{program}: {what}: a pod reaches {address}");
                    assert!(from.pod.pings(address), "{program}: {what}: {address}");
                }
            };
            check_connectivity("before");
            let six = program.replace("iptables", "ip6tables");
            for node in &nodes[1..] {
                node.sh(&format!("{program} -P FORWARD DROP; {six} -P FORWARD DROP"))
                    .ok();
            }
            check_connectivity("after Docker set FORWARD to DROP");
            for call in [1, 0] {
                for node in &nodes[1..] {
                    node.sh(&format!(
                        "for i in iptables ip6tables; do echo {call} > /proc/sys/net/bridge/bridge-nf-call-$i; done"
                    ))
                    .ok();
                }
                check_connectivity("with bridge netfilter on or off");
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
            // Docker rewrites its rules.
            for node in &nodes[1..] {
                node.sh(&format!("{program} -F FORWARD; {six} -F FORWARD"))
                    .ok();
            }
            check_connectivity("after Docker rewrote its rules");
            // If no packet is dropped any more, the accept rules are not needed.
            nodes[1]
                .sh(&format!(
                    "{program} -P FORWARD ACCEPT; {six} -P FORWARD ACCEPT"
                ))
                .ok();
            wait_for("our rules are removed", || {
                let listed = nodes[1]
                    .sh(&format!("{program} -S FORWARD; {six} -S FORWARD"))
                    .ok();
                !listed.contains("10.10.0.0/16") && !listed.contains("fd00:10:10::/48")
            });
        });
    }
}

#[test]
fn firewall_none_and_forward_rules_false_write_no_rules() {
    in_reference_cluster(
        Family::Dual,
        &["--firewall=none", "--ip-masq"],
        |_lab, nodes, attached, _agents| {
            assert!(attached[1].pod.pings(&attached[3].addresses[0]));
            let text = std::fs::read_to_string(nodes[1].path("/run/flannel/subnet.env"));
            assert!(
                text.expect("written").ends_with("FLANNEL_IPMASQ=false\n"),
                "the plugin has to masquerade"
            );
            // A rule that exists here was created by the plugin.
            assert!(!nodes[0].sh("nft list ruleset").ok().contains("hostgw"));
        },
    );
    in_reference_cluster(
        Family::Ipv4,
        &["--iptables-forward-rules=false"],
        |_lab, nodes, _drawn, agents| {
            agents[1].wait_for_log("wrote table inet hostgw");
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
fn rules_of_an_earlier_run_with_other_flags_are_removed() {
    in_reference_cluster(
        Family::Ipv4,
        &["--ip-masq"],
        |_lab, nodes, _drawn, mut agents| {
            let worker1 = &nodes[1];
            agents[1].wait_for_log("wrote table inet hostgw");
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
                    assert!(
                        !agent.log().contains("restored our iptables rules"),
                        "{}",
                        agent.log()
                    );
                }
                assert!(agent.stop());
            }
            assert_eq!(left(), "");
        },
    );
}

/// Returns the number of our rules in the FORWARD chain.
fn count_our_rules(node: &Node<'_>, program: &str) -> usize {
    let rules = node.sh(&format!("{program} -S FORWARD")).ok();
    rules
        .lines()
        .filter(|line| line.contains("hostgw-agent"))
        .count()
}

#[test]
fn our_rules_are_recognized_after_iptables_save_and_restore() {
    for program in ["iptables-nft", "iptables-legacy"] {
        let lab = Lab::new();
        let nodes = nodes(&lab, Family::Ipv4);
        let worker1 = &nodes[1];
        lab.write("cluster.json", cluster(Family::Ipv4, &[]));
        worker1.sh(&format!("{program} -P FORWARD DROP")).ok();
        let args = ["--cluster=/mnt/cluster.json", "--iptables-resync=1"];
        let agent = Agent::start(worker1, &args);
        wait_for(&format!("{program}: {}", agent.log()), || {
            count_our_rules(worker1, program) == 2
        });
        for again in [
            format!("{program}-save >/run/rules; {program}-restore </run/rules"),
            format!("{program}-save -c >/run/rules; {program}-restore -c </run/rules"),
            format!("{program}-save >/run/rules; {program}-restore --noflush </run/rules"),
        ] {
            worker1.sh(&again).ok();
            sleep(Duration::from_millis(1500));
            wait_for(&format!("{again}: there are two rules"), || {
                count_our_rules(worker1, program) == 2
            });
        }
        assert!(agent.stop());
        worker1
            .sh(&format!(
                "{program}-save >/run/rules; {program}-restore </run/rules"
            ))
            .ok();
        let output = worker1.sh("/mnt/bin/hostgw-agent cleanup").ok();
        assert!(output.contains("removed 2 rule(s) of ours"), "{output}");
        assert_eq!(count_our_rules(worker1, program), 0);
    }
}

#[test]
fn accept_rules_come_before_a_rule_that_rejects_all_packets() {
    for program in ["iptables-nft", "iptables-legacy"] {
        for rejecting_rule in [
            "-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
            "-A FORWARD -m comment --comment 'no one' -j DROP",
            "-N refuse; $P -A refuse -j REJECT; $P -A FORWARD -j refuse",
        ] {
            let lab = Lab::new();
            let nodes = nodes(&lab, Family::Ipv4);
            lab.write("cluster.json", cluster(Family::Ipv4, &[]));
            let worker1 = &nodes[1];
            worker1
                .sh(&format!(
                    "P={program}; $P -A FORWARD -d 198.51.100.0/24 -j DROP; $P {rejecting_rule}"
                ))
                .ok();
            let agents = agents(&nodes, |node, args| {
                Agent::start(node, &[args, &["--iptables-resync=1"]].concat())
            });
            let attached = pods(&lab, &nodes, Family::Ipv4);
            let to = &attached[3];
            wait_for(
                &format!("{program} {rejecting_rule}: {}", agents[1].log()),
                || attached[1].pod.pings(&to.addresses[0]),
            );
            // A rule before ours that drops packets to certain addresses still takes effect.
            let rules = worker1.sh(&format!("{program} -S FORWARD")).ok();
            let place = |text: &str| rules.lines().position(|line| line.contains(text));
            let foreign = place("198.51.100.0/24").expect("the foreign rule is there");
            assert!(Some(foreign) < place("hostgw-agent"), "{rules}");
            assert_eq!(count_our_rules(worker1, program), 2, "{rules}");
            // If the rejecting rule is removed, our rules are removed, too.
            // It is the last one.
            let number = format!("$({program} -S FORWARD | grep -c ^-A)");
            worker1.sh(&format!("{program} -D FORWARD {number}")).ok();
            wait_for("our rules are removed", || {
                count_our_rules(worker1, program) == 0
            });
        }
    }
}

// Long: a table of cases.
#[test]
fn foreign_chains_that_reject_pods_are_reported_with_a_command_that_admits_pods() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let worker1 = &nodes[1];
    worker1
        .sh("nft 'add table inet mine; add chain inet mine through { type filter hook forward priority 5; policy drop; }; \
             add rule inet mine through ct state established,related accept; add rule inet mine through iifname lo accept'")
        .ok();
    let agents = agents(&nodes, Agent::start);
    let attached = pods(&lab, &nodes, Family::Ipv4);
    let status = || worker1.sh("/mnt/bin/hostgw-agent status --json").stdout;
    let command = "nft insert rule inet mine through ip saddr 10.10.0.0/16 accept; nft insert rule inet mine through ip daddr 10.10.0.0/16 accept";
    wait_for(
        &format!("the warning is in the status: {}", status()),
        || status().contains(command),
    );
    assert!(
        agents[1]
            .log()
            .contains("the nf_tables chain inet mine through refuses")
    );
    let to = &attached[3].addresses[0];
    assert!(
        !attached[1]
            .pod
            .sh(&format!("busybox ping -c 1 -W 1 {to}"))
            .success
    );
    worker1.sh(command).ok();
    assert!(
        attached[1].pod.pings(to),
        "the reported command admits pods"
    );
    wait_for("the warning is gone from the status", || {
        !status().contains("inet mine through")
    });
    // An iptables rule that drops packets from the pods' addresses: the node is not ready, and the
    // status gives the reason.
    worker1
        .sh("iptables-nft -P FORWARD ACCEPT; iptables-nft -I FORWARD -s 10.10.0.0/16 -j DROP")
        .ok();
    wait_for(&status(), || {
        status().contains("iptables refuses packets from 10.10.1.0/24")
            && status().contains("\"ready\":false")
    });
    worker1
        .sh("iptables-nft -D FORWARD -s 10.10.0.0/16 -j DROP")
        .ok();
    wait_for("readiness", || status().contains("\"ready\":true"));
    // As in firewalld: the rejecting rule is at the end of a chain to which another chain jumps.
    worker1
        .sh("nft 'add table inet firewalld; add chain inet firewalld filter_FWD_public; \
             add rule inet firewalld filter_FWD_public reject with icmpx admin-prohibited; \
             add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }; \
             add rule inet firewalld filter_FORWARD ct state { established, related } accept; \
             add rule inet firewalld filter_FORWARD ct status dnat accept; \
             add rule inet firewalld filter_FORWARD ct state invalid drop; \
             add rule inet firewalld filter_FORWARD jump filter_FWD_public'")
        .ok();
    wait_for(&status(), || {
        status().contains("firewall-cmd --permanent --zone=trusted --add-source=10.10.0.0/16")
    });
}

#[test]
fn flannels_blackhole_routes_are_removed_together_with_its_rules() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    let worker1 = &nodes[1];
    // Routes as flanneld's --ip-blackhole-route leaves them: for this node's subnet, and for a
    // subnet that the node had before.
    let put = "ip route add blackhole 10.10.1.0/24; ip route add blackhole 10.10.77.0/24; \
               ip -6 route add blackhole fd00:10:10:77::/64; ip route add blackhole 198.51.100.0/24";
    let blackholes = || {
        let all = worker1
            .sh("ip route show type blackhole; ip -6 route show type blackhole")
            .ok();
        let all: Vec<_> = all
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .map(str::to_owned)
            .collect();
        all
    };
    worker1
        .sh(&format!("nft add table ip flannel-ipv4; {put}"))
        .ok();
    let agent = Agent::start(worker1, &["--cluster=/mnt/cluster.json"]);
    wait_for(
        &format!("the blackhole routes are removed: {}", agent.log()),
        || blackholes() == ["198.51.100.0/24"],
    );
    // Without flannel's rules, the agent cannot know that flannel ran here. `cleanup --flannel`
    // states it explicitly.
    worker1
        .sh("ip route add blackhole 10.10.77.0/24; ip -6 route add blackhole fd00:10:10:77::/64")
        .ok();
    sleep(Duration::from_millis(500));
    assert_eq!(blackholes().len(), 3);
    assert!(agent.stop());
    let output = worker1.sh("/mnt/bin/hostgw-agent cleanup --flannel").ok();
    assert_eq!(blackholes(), ["198.51.100.0/24"], "{output}");
}

// Long: a table of cases.
#[test]
fn only_rules_that_block_traffic_between_pods_are_reported() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let worker1 = &nodes[1];
    let _agents = agents(&nodes, Agent::start);
    let attached = pods(&lab, &nodes, Family::Ipv4);
    let to = &attached[3].addresses[0];
    let status = || worker1.sh("/mnt/bin/hostgw-agent status --json").stdout;
    let nft = |rules: &str| {
        format!(
            "nft 'add table inet mine; add chain inet mine through {{ type filter hook forward priority 5; policy drop; }}; \
             add rule inet mine through ct state {{ established, related }} accept; {}'",
            rules.replace("add ", "add rule inet mine through ")
        )
    };
    let undo = "nft delete table inet mine 2>/dev/null; iptables-nft -F; iptables-nft -X; iptables-nft -P FORWARD ACCEPT";
    for (rules, pings) in [
        // Rules that drop packets of single pods on purpose.
        ("iptables-nft -A FORWARD -s 10.10.1.77/32 -j DROP; iptables-nft -A FORWARD -d 10.10.0.2/32 -j DROP".to_owned(), true),
        ("iptables-nft -A FORWARD -s 10.10.1.2/32 -j DROP".to_owned(), true),
        // Rules that accept pods before the rejecting rule.
        (
            "iptables-nft -N A; iptables-nft -A A -s 10.10.0.0/16 -j RETURN; iptables-nft -A A -d 10.10.0.0/16 -j RETURN; \
             iptables-nft -A A -j DROP; iptables-nft -A FORWARD -j A; iptables-nft -A FORWARD -d 192.168.2.1 -j DROP"
                .to_owned(),
            true,
        ),
        (
            "iptables-nft -A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT; iptables-nft -A FORWARD -s 10.0.0.0/8 -j DROP"
                .to_owned(),
            true,
        ),
        (nft("add iifname { \"cni0\", \"enp0s5\" } accept"), true),
        (nft("add iif \"cni0\" accept; add oif \"cni0\" accept"), true),
        (nft("add ip saddr { 10.0.0.0/8, 192.168.0.0/16 } accept"), true),
        (nft("add ip saddr 10.0.0.0-10.255.255.255 accept"), true),
        (nft("add iifname vmap { \"cni0\" : accept, \"enp0s5\" : accept }"), true),
        (nft("add ct state { new, untracked } limit rate 100000/second accept"), true),
        (nft("add fib daddr type unicast accept"), true),
    ] {
        worker1.sh(&rules).ok();
        sleep(Duration::from_millis(1200));
        assert_eq!(attached[1].pod.pings(to), pings, "{rules}");
        let output = status();
        assert!(output.contains("\"ready\":true") && output.contains("\"warnings\":[]"), "{rules}: {output}");
        assert_eq!(count_our_rules(worker1, "iptables-nft"), 0, "{rules}");
        worker1.sh(undo).ok();
    }
    // Rules that do block pods are reported, in whatever form they are written.
    for rules in [
        nft("add iifname { \"docker0\" } accept"),
        nft("add ip saddr { 172.16.0.0/12, 192.168.0.0/16 } accept"),
        nft("add ct state vmap { new : drop, untracked : accept }"),
        nft("add iif \"cni0\" drop; add accept"),
    ] {
        worker1.sh(&rules).ok();
        wait_for(&format!("{rules}: {}", status()), || {
            status().contains("inet mine through refuses")
        });
        assert!(
            !attached[1]
                .pod
                .sh(&format!("busybox ping -c 1 -W 1 {to}"))
                .success,
            "{rules}"
        );
        worker1.sh(undo).ok();
        wait_for("the warning is gone from the status", || {
            status().contains("\"warnings\":[]")
        });
    }
    // A rule that blocks one of several peers, by its addresses.
    worker1
        .sh("iptables-nft -A FORWARD -d 10.10.2.0/24 -j DROP")
        .ok();
    wait_for(&status(), || {
        status().contains("iptables refuses packets from 10.10.1.0/24 to 10.10.2.0/24")
    });
    assert!(status().contains("\"ready\":true"));
}

#[test]
fn a_fast_path_that_is_not_available_changes_nothing() {
    let probe =
        "nft 'add table inet probe; add flowtable inet probe f { hook ingress priority 0; }'";
    // As in a container, in which sysctls are read-only.
    let check = "unshare -m sh -c 'mount --bind -o ro /proc/sys /proc/sys; \
        if echo 1 >/proc/sys/net/ipv4/ip_forward; then exit 9; fi; exec /mnt/bin/hostgw-agent fast-path check'";
    for mode in ["auto", "on"] {
        let flag = format!("--fast-path={mode}");
        in_reference_cluster(Family::Ipv4, &[&flag], |_, nodes, pods, agents| {
            let has_flowtables = nodes[0].sh(probe).success;
            let expected = if has_flowtables {
                "on, "
            } else {
                "off (the kernel has no flowtables"
            };
            let check = nodes[0].sh(check);
            assert!(
                check.stdout.contains("TCP and UDP over IPv4") == has_flowtables
                    && check.stderr.contains("the kernel has no flowtables") != has_flowtables,
                "{check:?}"
            );
            assert!(pods[0].pod.pings(&pods[2].addresses[0]));
            for (node, agent) in nodes.iter().zip(&agents) {
                agent.wait_for_log(&format!("fast path: {expected}"));
                let status = || node.sh("/mnt/bin/hostgw-agent status").ok();
                wait_for("the state is shown", || {
                    status().contains(&format!("fast path  {expected}"))
                });
                assert!(status().contains("ready      yes"), "{}", status());
                let is_warned = status().contains("warning    the fast path is off");
                assert_eq!(is_warned, mode == "on" && !has_flowtables, "{}", status());
            }
        });
    }
}
