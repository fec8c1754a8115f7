//! The reference's own test suite of `bridge`, which `make tools` builds so that it can run any
//! executable: once with the reference, once with our plugin.

use std::thread;

use conformance::clients::tool;
use conformance::{Lab, Plugin};
use serde_json::Value;

/// Outcome of a spec.
struct Spec {
    name: String,
    passed: bool,
    message: String,
}

#[test]
fn a_spec_that_the_reference_passes_fails_only_where_we_differ_on_purpose() {
    let theirs = thread::spawn(|| specs(false));
    let ours = specs(true);
    let theirs = theirs.join().expect("the suite of the reference runs");
    assert!(ours.len() > 250, "{} specs", ours.len());
    let mut wrong = Vec::new();
    for (theirs, ours) in theirs.iter().zip(&ours) {
        let name = &ours.name;
        assert_eq!(theirs.name, *name);
        let difference = difference(name);
        // Some kernels cannot filter VLANs.
        if !theirs.passed && !name.contains("vlan") {
            wrong.push(format!("{name}: the reference fails: {}", theirs.message));
        }
        match difference {
            None if !ours.passed => wrong.push(format!("{name}: {}", ours.message)),
            Some(difference) if ours.passed => {
                wrong.push(format!("{name} passes, although {difference}"));
            }
            _ => {}
        }
    }
    let passed = theirs.iter().zip(&ours).filter(|(theirs, _)| theirs.passed);
    let (reference, both) = (
        passed.clone().count(),
        passed.filter(|(_, ours)| ours.passed).count(),
    );
    eprintln!("ours {both} of the {reference} that the reference passes");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns how our plugin differs from the reference in what a spec tests, if it does so on purpose.
fn difference(name: &str) -> Option<&'static str> {
    let has = |text: &str| name.contains(text);
    let is_old = has("[0.1.0]") || has("[0.2.0]");
    let has_no_address =
        has("l2 bridge and veth") || has("peer state down") || has("port-isolation");
    if has("vlan") {
        Some("vlan and vlanTrunk are refused with code 2")
    } else if has("mac spoof-check") {
        Some("macspoofchk is refused with code 2")
    } else if has("ipMasqBackend") {
        Some("our rules are in other tables and chains, for the subnet and not for each address")
    } else if is_old && has_no_address {
        Some("0.1.0 and 0.2.0 support links without addresses")
    } else if is_old && has("(3)") {
        Some("our message begins with the key ipam.ranges")
    } else if has("ip release in case of error") {
        Some("the error comes from a variable inside the reference")
    } else {
        None
    }
}

/// Runs the suite on a node. Returns the specs that run a plugin, in the order of the suite.
fn specs(is_ours: bool) -> Vec<Spec> {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    for name in ["bridge.test", "host-local"] {
        lab.install(&tool(&format!("bridge/{name}")), &format!("suite/{name}"));
    }
    let plugin = if is_ours {
        Plugin::ours(&lab).0.display().to_string()
    } else {
        String::new()
    };
    let suite = node.sh(&format!(
        "PLUGIN={plugin} TMPDIR=/run PATH=/mnt/suite:$PATH /mnt/suite/bridge.test \
         -ginkgo.no-color -ginkgo.json-report=/run/report.json"
    ));
    let report = node.sh("cat /run/report.json");
    assert!(report.success, "{}{}", suite.stdout, suite.stderr);
    let report = report.json();
    let all = report[0]["SpecReports"]
        .as_array()
        .expect("a list of specs");
    all.iter().filter_map(spec).collect()
}

/// Reads a spec of the report. Returns `None` if it runs no plugin, but only a function inside the
/// reference.
fn spec(spec: &Value) -> Option<Spec> {
    // An entry for each request.
    spec["ReportEntries"].as_array()?;
    Some(Spec {
        name: spec["LeafNodeText"].as_str()?.to_owned(),
        passed: spec["State"] == "passed",
        message: spec["Failure"]["Message"].to_string(),
    })
}
