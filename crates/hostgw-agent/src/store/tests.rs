//! How a store's answer and the saved state combine.

use super::*;
use crate::network::{Lease, Snapshot};

const SAVED: &str = r#"{
    "store": "etcd /coreos.com/network", "machine": null, "mac": null, "version": "7",
    "network": {"Network": "10.10.0.0/16"}, "leases": [],
    "own": {"node": "saved", "hops": [], "flaw": null}, "held": null
}"#;

fn saved() -> SavedState {
    serde_json::from_str(SAVED).expect("a saved state")
}

fn own_uplink() -> Uplink {
    Uplink::on(&["192.168.2.16"], &["192.168.2.0/24"])
}

fn no_uplink() -> Result<Uplink> {
    Err(Arc::new(uplink::Error::NoDefaultRoute).into())
}

fn error() -> Error {
    etcd::Error::Unreachable("http://192.168.2.17:2379: no answer".to_owned()).into()
}

fn current() -> Node {
    Node {
        snapshot: Snapshot {
            network: serde_json::from_str(r#"{"Network": "10.10.0.0/16"}"#).expect("a network"),
            leases: Vec::new(),
        },
        own: Lease {
            node: "current".to_owned(),
            hops: Vec::new(),
            invalid_reason: None,
        },
        uplink: own_uplink(),
        etcd_lease: None,
        version: None,
        from_saved_state: false,
    }
}

/// The node's name or its error, the problem, and the store's warning.
fn describe(resolved: &Resolved) -> [String; 3] {
    let node = match &resolved.node {
        Some(Ok(node)) => node.own.node.clone(),
        Some(Err(error)) => causes(error),
        None => "pending".to_owned(),
    };
    let problem = resolved.problem.as_ref().map(|error| causes(error));
    let mut state = StoreState {
        warning: Some("own".to_owned()),
        ..StoreState::default()
    };
    match &resolved.warning {
        StoreWarning::Own => {}
        StoreWarning::UsingSavedState(warning) => state.warning = Some(warning.clone()),
        StoreWarning::Replaced => state.warning = None,
    }
    [
        node,
        problem.unwrap_or_default(),
        state.warning.unwrap_or_default(),
    ]
}

#[test]
fn the_stores_own_answer_comes_first() {
    let resolved = resolve(
        Answer::Node(Ok(Box::new(current()))),
        Some(&saved()),
        || Ok(own_uplink()),
    );
    assert_eq!(describe(&resolved), ["current", "", "own"]);
}

#[test]
fn the_saved_state_is_used_while_the_store_is_away() {
    let reason = "etcd cannot be reached: http://192.168.2.17:2379: no answer";
    let resolved = resolve(Answer::Unreachable(error()), Some(&saved()), || {
        Ok(own_uplink())
    });
    let warning = format!("{reason}; using the last known state");
    assert_eq!(describe(&resolved), ["saved", "", &warning]);
    let resolved = resolve(Answer::Unreachable(error()), None, || Ok(own_uplink()));
    assert_eq!(describe(&resolved), [reason, "", ""]);
}

#[test]
fn the_saved_state_is_used_while_the_configuration_is_invalid() {
    let invalid = || etcd::Error::NoConfig("/coreos.com/network/config".to_owned());
    let reason = "etcd has no /coreos.com/network/config";
    let resolved = resolve(Answer::Invalid(invalid().into()), Some(&saved()), || {
        Ok(own_uplink())
    });
    assert_eq!(describe(&resolved), ["saved", reason, "own"]);
    let resolved = resolve(Answer::Invalid(invalid().into()), None, || Ok(own_uplink()));
    assert_eq!(describe(&resolved), [reason, "", "own"]);
}

#[test]
fn without_an_uplink_there_is_no_node() {
    let reason = "there is no default route; name the interface to the other nodes with --iface";
    let resolved = resolve(Answer::Pending, Some(&saved()), no_uplink);
    assert_eq!(describe(&resolved), [reason, "", "own"]);
    let resolved = resolve(Answer::Pending, Some(&saved()), || Ok(own_uplink()));
    assert_eq!(describe(&resolved), ["pending", "", "own"]);
    let resolved = resolve(Answer::Unreachable(error()), Some(&saved()), no_uplink);
    assert_eq!(describe(&resolved)[0], reason);
}
