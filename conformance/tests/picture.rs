//! The reference cluster: three nodes and four pods, in IPv4, in IPv6 and in both.

use conformance::reference_picture::{
    Family, NODES, PODS, agents, cluster, node_addresses, node_routes, node_routes6, nodes,
    pod_addresses, pod_routes, pods, routes,
};
use conformance::{Agent, Lab};

// Long: one scenario, in which each step needs the steps before.
fn reference_cluster_works(family: Family) {
    let lab = Lab::new();
    let nodes = nodes(&lab, family);
    lab.write("cluster.json", cluster(family, &[]));
    let _agents = agents(&nodes, Agent::start);
    let attached = pods(&lab, &nodes, family);
    if family.has_ipv4() {
        for (pod, (node, host)) in attached.iter().zip(PODS) {
            let listing = pod.pod.sh("busybox ip route").ok();
            assert_eq!(routes(&listing), pod_routes(NODES[node].2, host));
        }
        for node in &nodes {
            let listing = routes(&node.sh("ip -4 route").ok());
            let of_pods: Vec<_> = listing
                .into_iter()
                .filter(|r| r.starts_with("10.10."))
                .collect();
            assert_eq!(of_pods, node_routes(&node.name, node.name != "master"));
        }
    }
    if family.has_ipv6() {
        for pod in &attached {
            let subnet = NODES
                .iter()
                .find(|n| n.0 == pod.pod.node().name)
                .expect("drawn")
                .2;
            let listing = routes(&pod.pod.sh("ip -6 route").ok());
            let own = format!("fd00:10:10:{subnet}::/64 dev eth0");
            let network = format!("fd00:10:10::/48 via fd00:10:10:{subnet}::1 dev eth0");
            let default = format!("default via fd00:10:10:{subnet}::1 dev eth0");
            assert_eq!(
                listing,
                [own, network, "fe80::/64 dev eth0".to_owned(), default]
            );
        }
        for node in &nodes {
            let listing = routes(&node.sh("ip -6 route").ok());
            let of_pods: Vec<_> = listing
                .into_iter()
                .filter(|route| route.starts_with("fd00:10:10:"))
                .collect();
            assert_eq!(of_pods, node_routes6(&node.name, node.name != "master"));
        }
    }
    let pod = &attached[1].pod;
    assert_eq!(
        (pod.name.as_str(), attached[1].addresses.len()),
        ("worker1-pod6", family.of(0, 0).count())
    );
    for there in [&attached[3], &attached[0]] {
        for address in &there.addresses {
            assert!(pod.pings(address), "a pod of worker1 pings {address}");
        }
    }
    for (_, host, subnet) in NODES {
        let (ipv4, ipv6) = node_addresses(host);
        for address in family.of(ipv4, ipv6) {
            assert!(
                pod.pings(&address),
                "a pod pings node {address} of subnet {subnet}"
            );
        }
    }
    if family != Family::Dual {
        let (ipv4, ipv6) = pod_addresses(1, 6);
        assert_eq!(
            attached[1].addresses,
            family.of(ipv4, ipv6).collect::<Vec<_>>()
        );
    }
}

#[test]
fn the_reference_cluster_works_in_ipv4() {
    reference_cluster_works(Family::Ipv4);
}

#[test]
fn the_reference_cluster_works_in_ipv6() {
    reference_cluster_works(Family::Ipv6);
}

#[test]
fn the_reference_cluster_works_in_dual_stack() {
    reference_cluster_works(Family::Dual);
}
