//! Kubernetes' own network tests, in a whole cluster with our manifest.

use conformance::Lab;
use conformance::cluster::{Cluster, Families, nodes};

/// The tests that every cluster must pass to be called conformant.
const CONFORMANCE: &str = r"\[sig-network\].*\[Conformance\]";

/// Runs the network part of the conformance tests.
fn passes_conformance(cluster: &Cluster<'_>) {
    let specs = cluster.run_specs(CONFORMANCE, "");
    assert_eq!(specs.failed, Vec::<String>::new());
    assert_eq!(specs.passed, 45);
    assert_eq!(cluster.failed_sandboxes(), Vec::<String>::new());
}

/// The same in a new cluster. The nodes with the names `crio` have CRI-O, the others containerd.
fn new_cluster_passes_conformance(families: Families, proxy: &str, crio: &[&str]) {
    let lab = Lab::new();
    let nodes = nodes(&lab, families);
    passes_conformance(&Cluster::start(&nodes, families, proxy, crio));
}

#[test]
fn conformance_ipv4_with_iptables() {
    new_cluster_passes_conformance(Families::Ipv4, "iptables", &[]);
}

#[test]
fn conformance_dual_stack_with_nftables() {
    new_cluster_passes_conformance(Families::Dual, "nftables", &[]);
}

#[test]
fn conformance_ipv6_with_iptables() {
    new_cluster_passes_conformance(Families::Ipv6, "iptables", &[]);
}

#[test]
fn conformance_ipv4_with_nftables() {
    new_cluster_passes_conformance(Families::Ipv4, "nftables", &[]);
}

#[test]
fn conformance_ipv6_with_nftables() {
    new_cluster_passes_conformance(Families::Ipv6, "nftables", &[]);
}

#[test]
fn conformance_with_a_crio_worker() {
    new_cluster_passes_conformance(Families::Dual, "iptables", &["worker1"]);
}

#[test]
fn conformance_while_agents_are_killed_and_rules_deleted() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Families::Ipv4);
    let mut cluster = Cluster::start(&nodes, Families::Ipv4, "nftables", &[]);
    cluster.disturb();
    passes_conformance(&cluster);
    assert!(
        cluster.times_disturbed() > 3,
        "{} times",
        cluster.times_disturbed()
    );
}

#[test]
fn conformance_while_rules_are_flushed_and_etcds_leader_and_an_api_server_change() {
    let lab = Lab::new();
    let nodes = nodes(&lab, Families::Ipv4);
    let spares = [("etcd2", "192.168.2.22"), ("etcd3", "192.168.2.23")];
    let spares =
        spares.map(|(name, address)| (lab.node(name, &[&format!("{address}/24")]), address));
    let members: Vec<_> = spares
        .iter()
        .map(|(node, address)| (node, *address))
        .collect();
    let (mut cluster, second) = Cluster::start_redundant(&nodes, &members);
    cluster.disturb();
    cluster.disturb_more();
    passes_conformance(&cluster);
    let (leaders, flushed) = cluster.times_disturbed_more();
    let restarts = second.restarts();
    eprintln!("{restarts} restarts, {leaders} leaders, {flushed} times flushed");
    assert!(restarts > 3 && leaders > 3 && flushed > 0);
}

/// The other tests of Kubernetes' network that need no cloud, no Internet, and no network plugin with
/// policies.
#[test]
fn wider_network_tests() {
    let skip = r"\[Conformance\]|LoadBalancer|Netpol|NetworkPolicy|Internet|\[Disruptive\]|PerformanceDNS|IPv6DualStack|KubeProxyDaemonSet|\[Provider:GCE\]|OffByDefault|SCTP|Feature:Networking-Perf|Feature:Ingress|NFAcct";
    let lab = Lab::new();
    let nodes = nodes(&lab, Families::Ipv4);
    let cluster = Cluster::start(&nodes, Families::Ipv4, "iptables", &[]);
    let specs = cluster.run_specs(r"\[sig-network\]", skip);
    // This one asks a server on the Internet for the name of an address.
    let needs_internet = "[sig-network] DNS configMap nameserver Forward PTR lookup should forward PTR records lookup to upstream nameserver [Slow] [Serial]";
    assert_eq!(specs.failed, [needs_internet]);
    assert_eq!(specs.passed, 75);
    assert_eq!(cluster.failed_sandboxes(), Vec::<String>::new());
}
