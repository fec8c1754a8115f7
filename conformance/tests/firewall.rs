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

/// The rules of ours in the FORWARD chain.
fn ours(node: &Node<'_>, program: &str) -> usize {
    let rules = node.sh(&format!("{program} -S FORWARD")).ok();
    rules
        .lines()
        .filter(|line| line.contains("hostgw-agent"))
        .count()
}

#[test]
fn our_rules_are_known_in_whatever_form_they_come_back() {
    for program in ["iptables-nft", "iptables-legacy"] {
        let lab = Lab::new();
        let nodes = nodes(&lab, Family::Ipv4);
        let worker1 = &nodes[1];
        lab.write("cluster.json", cluster(Family::Ipv4, &[]));
        worker1.sh(&format!("{program} -P FORWARD DROP")).ok();
        let args = ["--cluster=/mnt/cluster.json", "--iptables-resync=1"];
        let agent = Agent::start(worker1, &args);
        wait_for(&format!("{program}: {}", agent.log()), || {
            ours(worker1, program) == 2
        });
        for again in [
            format!("{program}-save >/run/rules; {program}-restore </run/rules"),
            format!("{program}-save -c >/run/rules; {program}-restore -c </run/rules"),
            format!("{program}-save >/run/rules; {program}-restore --noflush </run/rules"),
        ] {
            worker1.sh(&again).ok();
            sleep(Duration::from_millis(1500));
            wait_for(&format!("{again}: there are two"), || {
                ours(worker1, program) == 2
            });
        }
        assert!(agent.stop());
        worker1
            .sh(&format!(
                "{program}-save >/run/rules; {program}-restore </run/rules"
            ))
            .ok();
        let said = worker1.sh("/mnt/bin/hostgw-agent cleanup").ok();
        assert!(said.contains("removed 2 rule(s) of ours"), "{said}");
        assert_eq!(ours(worker1, program), 0);
    }
}

#[test]
fn an_accept_stands_before_what_refuses_whatever_comes() {
    for program in ["iptables-nft", "iptables-legacy"] {
        for refusing in [
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
                    "P={program}; $P -A FORWARD -d 198.51.100.0/24 -j DROP; $P {refusing}"
                ))
                .ok();
            let agents = agents(&nodes, |node, args| {
                Agent::start(node, &[args, &["--iptables-resync=1"]].concat())
            });
            let drawn = pods(&lab, &nodes, Family::Ipv4);
            let to = &drawn[3];
            wait_for(
                &format!("{program} {refusing}: {}", agents[1].log()),
                || drawn[1].pod.pings(&to.addresses[0]),
            );
            // What somebody forbids for some addresses stays forbidden, before ours.
            let rules = worker1.sh(&format!("{program} -S FORWARD")).ok();
            let place = |text: &str| rules.lines().position(|line| line.contains(text));
            assert!(place("198.51.100.0/24") < place("hostgw-agent"), "{rules}");
            assert_eq!(ours(worker1, program), 2, "{rules}");
            // Where it goes, so do ours.
            worker1.sh(&format!("{program} -F FORWARD")).ok();
            sleep(Duration::from_millis(1500));
            assert_eq!(ours(worker1, program), 0);
        }
    }
}

#[test]
fn chains_of_others_that_refuse_pods_are_said_with_what_opens_them() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let worker1 = &nodes[1];
    worker1
        .sh("nft 'add table inet mine; add chain inet mine through { type filter hook forward priority 5; policy drop; }; \
             add rule inet mine through ct state established,related accept; add rule inet mine through iifname lo accept'")
        .ok();
    let agents = agents(&nodes, Agent::start);
    let drawn = pods(&lab, &nodes, Family::Ipv4);
    let status = || worker1.sh("/mnt/bin/hostgw-agent status --json").stdout;
    let command = "nft insert rule inet mine through ip saddr 10.10.0.0/16 accept; nft insert rule inet mine through ip daddr 10.10.0.0/16 accept";
    wait_for(&format!("it is said: {}", status()), || {
        status().contains(command)
    });
    assert!(
        agents[1]
            .log()
            .contains("the nf_tables chain inet mine through refuses")
    );
    let to = &drawn[3].addresses[0];
    assert!(
        !drawn[1]
            .pod
            .sh(&format!("busybox ping -c 1 -W 1 {to}"))
            .success
    );
    worker1.sh(command).ok();
    assert!(drawn[1].pod.pings(to), "the command opens it");
    wait_for("nothing is said any more", || {
        !status().contains("inet mine through")
    });
    // A rule of iptables that forbids what pods send, for their addresses: not ready, and said.
    worker1
        .sh("iptables-nft -P FORWARD ACCEPT; iptables-nft -I FORWARD -s 10.10.0.0/16 -j DROP")
        .ok();
    wait_for(&status(), || {
        status().contains("iptables refuses what goes from 10.10.1.0/24")
            && status().contains("\"ready\":false")
    });
    worker1
        .sh("iptables-nft -D FORWARD -s 10.10.0.0/16 -j DROP")
        .ok();
    wait_for("readiness", || status().contains("\"ready\":true"));
    // As firewalld has it: the refusal is at the end of a chain that another leads to.
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
fn flannels_blackholes_go_with_its_rules() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Dual);
    lab.write("cluster.json", cluster(Family::Dual, &[]));
    let worker1 = &nodes[1];
    // As flanneld's --ip-blackhole-route leaves them: of this node's subnet, and of one that it had before.
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
    wait_for(&format!("they go: {}", agent.log()), || {
        blackholes() == ["198.51.100.0/24"]
    });
    // Without its rules nobody knows that it was here; cleanup is told.
    worker1
        .sh("ip route add blackhole 10.10.77.0/24; ip -6 route add blackhole fd00:10:10:77::/64")
        .ok();
    sleep(Duration::from_millis(500));
    assert_eq!(blackholes().len(), 3);
    assert!(agent.stop());
    let said = worker1.sh("/mnt/bin/hostgw-agent cleanup --flannel").ok();
    assert_eq!(blackholes(), ["198.51.100.0/24"], "{said}");
}

#[test]
fn what_does_not_keep_pods_from_one_another_is_left_alone() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Family::Ipv4);
    lab.write("cluster.json", cluster(Family::Ipv4, &[]));
    let worker1 = &nodes[1];
    let _agents = agents(&nodes, Agent::start);
    let drawn = pods(&lab, &nodes, Family::Ipv4);
    let to = &drawn[3].addresses[0];
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
        // Somebody's wish about one pod.
        ("iptables-nft -A FORWARD -s 10.10.1.77/32 -j DROP; iptables-nft -A FORWARD -d 10.10.0.2/32 -j DROP".to_owned(), true),
        ("iptables-nft -A FORWARD -s 10.10.1.2/32 -j DROP".to_owned(), true),
        // Pods are let through before what refuses.
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
        assert_eq!(drawn[1].pod.pings(to), pings, "{rules}");
        let said = status();
        assert!(said.contains("\"ready\":true") && said.contains("\"warnings\":[]"), "{rules}: {said}");
        assert_eq!(ours(worker1, "iptables-nft"), 0, "{rules}");
        worker1.sh(undo).ok();
    }
    // What does is said, in whatever words.
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
            !drawn[1]
                .pod
                .sh(&format!("busybox ping -c 1 -W 1 {to}"))
                .success,
            "{rules}"
        );
        worker1.sh(undo).ok();
        wait_for("nothing is said any more", || {
            status().contains("\"warnings\":[]")
        });
    }
    // One peer of several, by its addresses.
    worker1
        .sh("iptables-nft -A FORWARD -d 10.10.2.0/24 -j DROP")
        .ok();
    wait_for(&status(), || {
        status().contains("iptables refuses what goes from 10.10.1.0/24 to 10.10.2.0/24")
    });
    assert!(status().contains("\"ready\":true"));
}
