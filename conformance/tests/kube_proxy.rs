//! Our plugin's host ports on a node with a real kube-proxy, in both of its modes.

use conformance::clients::tool;
use conformance::sockets::Place;
use conformance::{Attachment, Kube, Lab, Node, Plugin, Pod, Server, wait_for, wait_within};
use serde_json::{Value, json};
use std::time::Duration;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn conf(mappings: &Value) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "cni-hostgw", "isDefaultGateway": true,
        "hairpinMode": true, "ipam": {"ranges": [[{"subnet": "10.10.1.0/24"}]]},
        "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": mappings},
    })
}

fn attach(lab: &Lab, pod: &Pod<'_>, mappings: &Value) {
    let attachment = Attachment::of(pod);
    Plugin::ours(lab)
        .call(pod.node(), "ADD", &attachment, &conf(mappings))
        .ok();
}

/// A service with a node port, and the pod behind it. Returns the cluster's address of the service.
fn service(kube: &Kube<'_>) -> String {
    kube.create(
        SERVICES,
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}}),
    );
    kube.create(
        SLICES,
        &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.10.1.2"], "nodeName": "worker1",
                "conditions": {"ready": true}}]}),
    );
    let service = kube.get(&format!("{SERVICES}/web"));
    let address = service["spec"]["clusterIP"].as_str();
    address.expect("the API server gives an address").to_owned()
}

fn start_proxy(node: &Node<'_>, kube: &Kube<'_>, mode: &str) -> Server {
    node.lab().install(&tool("kube-proxy"), "bin/kube-proxy");
    let arguments = format!(
        "--kubeconfig={} --proxy-mode={mode} --hostname-override=worker1 \
         --cluster-cidr=10.10.0.0/16 --conntrack-max-per-core=0 --conntrack-min=0 \
         --conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0s",
        kube.admin()
    );
    Server::program(node, "/mnt/bin/kube-proxy", &arguments)
}

#[test]
fn host_ports_and_services_work_beside_one_another() {
    for mode in ["iptables", "nftables"] {
        let lab = Lab::new();
        let nodes = ["worker1", "outside"].iter().zip([16, 99]);
        let nodes: Vec<_> = nodes
            .map(|(name, host)| lab.node(name, &[&format!("192.168.2.{host}/24")]))
            .collect();
        let (node, outside) = (&nodes[0], &nodes[1]);
        let kube = Kube::start(outside, "192.168.2.99");
        kube.create_node("worker1", &["10.10.1.0/24"], &["192.168.2.16"]);
        let (web, other) = (node.pod("web"), node.pod("other"));
        let mapping =
            |port: u16| json!([{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]);
        attach(&lab, &web, &mapping(8080));
        attach(&lab, &other, &json!([]));
        let _server = web.answer(80, "web");
        let cluster_address = service(&kube);
        let proxy = start_proxy(node, &kube, mode);
        // A service's client keeps its address, also if it is a pod of the same subnet.
        let through_service = format!("{cluster_address}:80");
        wait_within("kube-proxy's rules", Duration::from_secs(60), || {
            other
                .ask(&through_service)
                .is_ok_and(|answer| answer == "web 10.10.1.3")
        });
        let everywhere = || {
            let answer = outside
                .ask("192.168.2.16:8080")
                .expect("from another machine");
            assert_eq!(answer, "web 192.168.2.99", "{mode}");
            node.ask("192.168.2.16:8080").expect("from the node");
            node.ask("127.0.0.1:8080")
                .expect("from the node's loopback address");
            other.ask("192.168.2.16:8080").expect("from another pod");
            web.ask("192.168.2.16:8080").expect("from itself");
            outside.ask("192.168.2.16:30080").expect("the node port");
            node.ask(&through_service)
                .expect("the service from the node");
        };
        everywhere();
        // A new port while kube-proxy runs, and after it has written all its rules again.
        let third = node.pod("third");
        attach(&lab, &third, &mapping(8081));
        let _third = third.answer(80, "third");
        assert_eq!(
            outside.ask("192.168.2.16:8081").expect("open"),
            "third 192.168.2.99"
        );
        drop(proxy);
        let _proxy = start_proxy(node, &kube, mode);
        wait_for("kube-proxy's rules", || {
            outside.ask("192.168.2.16:30080").is_ok()
        });
        everywhere();
        assert_eq!(
            outside.ask("192.168.2.16:8081").expect("open"),
            "third 192.168.2.99"
        );
    }
}
