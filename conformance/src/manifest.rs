//! `examples/kubernetes/cni-hostgw.yaml`, applied as users apply it.

use serde_json::{Value, json};

use crate::Kube;

const TEXT: &str = include_str!("../../examples/kubernetes/cni-hostgw.yaml");

/// Namespace that the manifest creates, and name of every object in it.
pub const NAME: &str = "cni-hostgw";

/// Returns the documents of the manifest, in order.
fn documents() -> impl Iterator<Item = &'static str> {
    TEXT.split("\n---\n")
}

/// Returns the value of the first line of a document that starts with this key; empty if there is
/// none.
fn value<'a>(document: &'a str, key: &str) -> &'a str {
    let mut lines = document.lines();
    let found = lines.find_map(|line| line.trim_start().strip_prefix(key));
    found.unwrap_or_default().trim()
}

/// Returns a file of the manifest's `ConfigMap`.
///
/// # Panics
///
/// If the `ConfigMap` has no file with this name.
#[must_use]
pub fn file(name: &str) -> String {
    let begin = format!("  {name}: |\n");
    let (_, rest) = TEXT.split_once(&begin).expect("the ConfigMap has it");
    let lines = rest.lines().take_while(|line| line.starts_with("    "));
    lines.flat_map(|line| [&line[4..], "\n"]).collect()
}

/// Applies the manifest with strict field validation. `change` stands for the user's edits before
/// that: it gets the text of each document and returns the text to apply.
///
/// # Panics
///
/// If the API server rejects a document.
pub fn apply(kube: &Kube<'_>, change: impl Fn(&str) -> String) {
    for document in documents() {
        let document = change(document);
        let kind = value(&document, "kind: ");
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let namespace = value(&document, "namespace: ");
        let path = match kind {
            "Namespace" => "/api/v1/namespaces".to_owned(),
            "ServiceAccount" => format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
            "ConfigMap" => format!("/api/v1/namespaces/{namespace}/configmaps"),
            "DaemonSet" => format!("/apis/apps/v1/namespaces/{namespace}/daemonsets"),
            "ClusterRole" => format!("{rbac}/clusterroles"),
            "ClusterRoleBinding" => format!("{rbac}/clusterrolebindings"),
            "Role" => format!("{rbac}/namespaces/{namespace}/roles"),
            "RoleBinding" => format!("{rbac}/namespaces/{namespace}/rolebindings"),
            other => panic!("no API path is known for the kind {other}: add it here"),
        };
        let strict = format!("{path}?fieldValidation=Strict");
        kube.call("POST", &strict, &document).ok();
    }
}

/// Returns the pod of the manifest's `DaemonSet` on a node, as the controller would create it.
#[must_use]
pub fn pod(kube: &Kube<'_>, node: &str) -> Value {
    let path = format!("/apis/apps/v1/namespaces/{NAME}/daemonsets/{NAME}");
    let template = kube.get(&path)["spec"]["template"].clone();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": template["metadata"],
        "spec": template["spec"],
    });
    pod["metadata"]["name"] = format!("{NAME}-{node}").into();
    pod["spec"]["nodeName"] = node.into();
    pod
}
