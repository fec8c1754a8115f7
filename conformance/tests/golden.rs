//! Results compared byte for byte, in every version, family and form.
//!
//! The output of ADD is compared byte for byte with the files in `golden/`. If the reference
//! supports the version, the result is also compared with the reference's. `GOLDEN=write` rewrites
//! the files; the diff then shows what has changed.

use std::fs;

use conformance::{Attachment, Lab, Plugin, repository};
use serde_json::{Value, json};

const VERSIONS: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];

const FAMILIES: [(&str, &[&str]); 3] = [
    ("v4", &["10.10.1.0/24"]),
    ("v6", &["fd00:10:10:1::/64"]),
    ("dual", &["10.10.1.0/24", "fd00:10:10:1::/64"]),
];

fn bridge_form(version: &str, subnets: &[&str]) -> Value {
    let ranges: Vec<_> = subnets
        .iter()
        .map(|subnet| json!([{"subnet": subnet}]))
        .collect();
    let networks = subnets.iter().map(|subnet| network_of(subnet));
    let routes: Vec<_> = networks.map(|network| json!({"dst": network})).collect();
    json!({
        "cniVersion": version,
        "name": "cbr0",
        "type": "bridge",
        "isDefaultGateway": true,
        "hairpinMode": true,
        "mtu": 1450,
        "dns": {"nameservers": ["10.96.0.10"], "search": ["cluster.local"]},
        "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
    })
}

/// flannel does not pass `dns` on to its delegate, and the stock form has no `dns`. Both forms of
/// our plugin support it.
fn flannel_form(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "cbr0",
        "type": "flannel",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
    })
}

fn network_of(subnet: &str) -> &'static str {
    if subnet.contains(':') {
        "fd00:10:10::/48"
    } else {
        "10.10.0.0/16"
    }
}

fn subnet_env(subnets: &[&str]) -> String {
    let of = |subnet: &str| {
        let network = network_of(subnet);
        if subnet.contains(':') {
            format!("FLANNEL_IPV6_NETWORK={network}\nFLANNEL_IPV6_SUBNET=fd00:10:10:1::1/64\n")
        } else {
            format!("FLANNEL_NETWORK={network}\nFLANNEL_SUBNET=10.10.1.1/24\n")
        }
    };
    let families: String = subnets.iter().map(|subnet| of(subnet)).collect();
    format!("{families}FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")
}

/// Returns what `plugin` prints for an ADD on a new node.
fn add_output(plugin_of: impl Fn(&Lab) -> Plugin, conf: &Value, subnets: &[&str]) -> String {
    let lab = Lab::new();
    let node = lab.node("worker1", &["192.168.2.16/24"]);
    node.write("/run/flannel/subnet.env", subnet_env(subnets));
    let pod = node.pod("a");
    let reply = plugin_of(&lab).start(&node, "ADD", &Attachment::of(&pod), conf);
    reply.text()
}

/// Removes from a result what legitimately differs: hardware addresses, the host veth's name, and
/// `mtu`, which this reference does not report.
fn comparable(text: &str) -> Value {
    let mut result: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let mut none = Vec::new();
    for interface in result["interfaces"].as_array_mut().unwrap_or(&mut none) {
        let interface = interface.as_object_mut().expect("an object");
        interface.remove("mac").expect("every interface has one");
        interface.remove("mtu");
        let name = interface["name"].as_str().expect("has a name");
        if name.starts_with("veth") {
            interface["name"] = json!("veth");
        }
    }
    result
}

#[test]
fn results_match_the_golden_files_and_the_reference() {
    let folder = repository().join("conformance/golden");
    let is_writing = std::env::var("GOLDEN").is_ok_and(|value| value == "write");
    let mut wrong = Vec::new();
    for version in VERSIONS {
        for (family, subnets) in FAMILIES {
            let bridge = bridge_form(version, subnets);
            for (form, conf) in [("bridge", &bridge), ("flannel", &flannel_form(version))] {
                let name = format!("{version}-{family}-{form}.json");
                let ours = add_output(Plugin::ours, conf, subnets);
                let path = folder.join(&name);
                if is_writing {
                    fs::write(&path, &ours).expect("writes");
                }
                let golden = fs::read_to_string(&path)
                    .unwrap_or_else(|error| panic!("{name}: {error}; GOLDEN=write makes it"));
                if ours != golden {
                    wrong.push(format!("{name}: {ours}"));
                }
                // Debian's newest release of the reference supports versions up to 1.0.0.
                if form == "bridge" && version != "1.1.0" {
                    let theirs = add_output(|_| Plugin::reference("bridge"), conf, subnets);
                    assert_eq!(comparable(&ours), comparable(&theirs), "{name}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
