//! Objects of the API server, as the tests create and read them.

use serde_json::{Value, json};

use super::{KEYS, Kube};

impl Kube<'_> {
    /// Creates what the controller manager would create in a namespace: the service account
    /// `default` and the `ConfigMap` with the root certificate. Creates the namespace, too, if it
    /// does not exist.
    pub fn prepare(&self, namespace: &str) {
        let path = format!("/api/v1/namespaces/{namespace}");
        if namespace != "default" && self.call("GET", &path, "").code == 404 {
            self.create(
                "/api/v1/namespaces",
                &json!({
                    "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace},
                }),
            );
        }
        self.create(
            &format!("{path}/serviceaccounts"),
            &json!({
                "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
            }),
        );
        let ca = std::fs::read_to_string(self.node.path(&format!("{KEYS}/ca.crt")));
        self.create(
            &format!("{path}/configmaps"),
            &json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"},
                "data": {"ca.crt": ca.expect("certificates.sh has created the file")},
            }),
        );
    }

    /// Creates a Node as kubelet and the control plane would, with these podCIDRs and `InternalIP`
    /// addresses.
    pub fn create_node(&self, name: &str, cidrs: &[&str], addresses: &[&str]) {
        self.create(
            "/api/v1/nodes",
            &json!({
                "apiVersion": "v1", "kind": "Node",
                // flanneld panics on a Node without annotations.
                "metadata": {"name": name, "annotations": {
                    "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                }},
                "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
            }),
        );
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let status = json!({"status": {"addresses": addresses}});
        self.patch(&format!("/api/v1/nodes/{name}/status"), &status);
    }

    /// Returns flannel's annotation `name` of a Node; empty if there is none.
    #[must_use]
    pub fn annotation(&self, node: &str, name: &str) -> String {
        let key = format!("flannel.alpha.coreos.com/{name}");
        let node = self.node(node);
        let value = node["metadata"]["annotations"][&key].as_str();
        value.unwrap_or_default().to_owned()
    }

    /// Sets flannel's annotations of a Node.
    pub fn annotate(&self, node: &str, annotations: &[(&str, &str)]) {
        let annotations: serde_json::Map<_, _> = annotations
            .iter()
            .map(|(name, value)| (format!("flannel.alpha.coreos.com/{name}"), json!(value)))
            .collect();
        let change = json!({"metadata": {"annotations": annotations}});
        self.patch(&format!("/api/v1/nodes/{node}"), &change);
    }

    /// Returns a Node's condition of this type; null if there is none.
    #[must_use]
    pub fn condition(&self, node: &str, kind: &str) -> Value {
        let node = self.node(node);
        let mut all = node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten();
        let found = all.find(|condition| condition["type"] == kind);
        found.cloned().unwrap_or_default()
    }

    /// Returns the messages of the events about a Node.
    #[must_use]
    pub fn events(&self, node: &str) -> Vec<String> {
        let all = self.get("/api/v1/namespaces/default/events");
        let events = all["items"].as_array().into_iter().flatten();
        let about = events.filter(|event| event["involvedObject"]["name"] == node);
        about
            .map(|event| event["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

/// Returns the etcd key of a Node object.
#[must_use]
pub fn node_key(name: &str) -> String {
    format!("/registry/minions/{name}")
}

/// Returns a Node object as it is stored in etcd, with all that kubelet and kube-flannel write into
/// it: about 12 kB.
#[must_use]
pub fn full_node(name: &str, cidr: &str, public_ip: &str) -> String {
    let images: Vec<_> = (0..50)
        .map(|i| {
            json!({
                "names": [
                    format!("registry.example.com/a/team/some-application-{i}@sha256:{i:064}"),
                    format!("registry.example.com/a/team/some-application-{i}:v1.{i}.0"),
                ],
                "sizeBytes": 100_000_000 + i,
            })
        })
        .collect();
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(|kind| json!({
        "type": kind, "status": "False", "reason": "KubeletHasSufficientMemory",
        "message": "kubelet has sufficient memory available",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }));
    let fields: serde_json::Map<_, _> = (0..40)
        .map(|i| (format!("f:a-field-of-a-node-{i}"), json!({"f:type": {}})))
        .collect();
    let managed = json!({
        "manager": "kubelet", "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:status": fields},
    });
    let flannel = "flannel.alpha.coreos.com";
    let node = json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
                "kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": "a-zone-of-some-region",
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                format!("{flannel}/kube-subnet-manager"): "true",
                format!("{flannel}/backend-type"): "host-gw",
                format!("{flannel}/backend-data"): "null",
                format!("{flannel}/public-ip"): public_ip,
            },
            "managedFields": [managed],
        },
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": public_ip},
                {"type": "Hostname", "address": name},
            ],
            "conditions": conditions,
            "images": images,
        },
    });
    node.to_string()
}
