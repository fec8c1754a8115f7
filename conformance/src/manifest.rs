//! `examples/kubernetes/cni-hostgw.yaml`, as users apply it.

use serde_json::{Value, json};

use crate::Kube;

const TEXT: &str = include_str!("../../examples/kubernetes/cni-hostgw.yaml");

/// The namespace that it makes, and the name of everything in it.
pub const NAME: &str = "cni-hostgw";

/// Its documents, in order.
fn documents() -> impl Iterator<Item = &'static str> {
    TEXT.split("\n---\n")
}

/// A value of a key that stands at the beginning of a line of a document.
fn value<'a>(document: &'a str, key: &str) -> &'a str {
    let mut lines = document.lines();
    let found = lines.find_map(|line| line.trim_start().strip_prefix(key));
    found.unwrap_or_default().trim()
}

/// A file of its `ConfigMap`.
///
/// # Panics
///
/// When there is none of that name.
#[must_use]
pub fn file(name: &str) -> String {
    let begin = format!("  {name}: |\n");
    let (_, rest) = TEXT.split_once(&begin).expect("the ConfigMap has it");
    let lines = rest.lines().take_while(|line| line.starts_with("    "));
    lines.flat_map(|line| [&line[4..], "\n"]).collect()
}

/// Applies it, with strict field checking. `change` is what the user edits before: the text of each
/// document goes through it.
///
/// # Panics
///
/// When the API server does not take it as it is.
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
            other => panic!("say here where a {other} goes"),
        };
        let strict = format!("{path}?fieldValidation=Strict");
        kube.call("POST", &strict, &document).ok();
    }
}

/// The pod of its `DaemonSet` on a node, as the controller makes it.
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
