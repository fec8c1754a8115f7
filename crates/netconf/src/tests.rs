//! Tests of the strict view.

use super::*;

fn parse(text: &str) -> Result<NetConf, Error> {
    NetConf::from_json(&Json::parse(text.as_bytes()).expect("the test input is valid JSON"))
}

#[test]
fn the_flannel_form_has_bridge_keys_under_delegate() {
    let conf = parse(r#"{"type": "flannel", "delegate": {"HairpinMode": true, "mtu": null}}"#);
    let conf = conf.expect("valid");
    assert!(conf.has_delegate);
    assert_eq!(
        (conf.bridge.hairpin_mode, conf.bridge.mtu),
        (Some(true), None)
    );
}

#[test]
fn the_error_for_a_wrong_type_contains_the_key_and_the_value() {
    for (text, msg) in [
        (
            r#"{"mtu": "1500"}"#,
            r#"mtu: expected a whole number from 0 to 4294967295, found the string "1500""#,
        ),
        (
            r#"{"delegate": {"hairpinmode": 1}}"#,
            "delegate.hairpinMode: expected true or false, found the number 1",
        ),
        (
            r#"{"ipam": []}"#,
            "ipam: expected an object, found the array []",
        ),
        (
            r#"{"args": [[["10.1.2.77"]]]}"#,
            r#"args: expected an object, found the array [[["10.1.2.77"]]]"#,
        ),
        (
            r#"{"ipam": {"ranges": [["10.10.1.0/24"]]}}"#,
            r#"ipam.ranges[0][0]: expected an object, found the string "10.10.1.0/24""#,
        ),
        (
            r#"{"ipam": {"ranges": [[{}]]}}"#,
            r#"ipam.ranges[0][0]: the key "subnet" is missing"#,
        ),
        (
            r#"{"capabilities": {"ips": "yes"}}"#,
            r#"capabilities.ips: expected true or false, found the string "yes""#,
        ),
        (
            r#"{"delegate": {"dns": []}}"#,
            "delegate.dns: expected an object, found the array []",
        ),
        (
            r#"{"ipam": {"ranges": [[{"subnet": "10.10.1.0"}]]}}"#,
            r#"ipam.ranges[0][0].subnet: "10.10.1.0" is not a network such as 10.10.1.0/24"#,
        ),
        (
            r#"{"ipam": {"ranges": [[{"subnet": "10.10.1.0/24", "gateway": "x"}]]}}"#,
            r#"ipam.ranges[0][0].gateway: "x" is not an IP address"#,
        ),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!(error.msg, format!("network configuration: {msg}"));
        assert_eq!(error.code, Code::DECODE);
    }
}

#[test]
fn dns_args_and_runtime_config_under_delegate_are_used() {
    let conf = parse(
        r#"{"dns": {"nameservers": ["10.0.0.1"]}, "delegate": {"dns": {"nameservers": ["10.0.0.2"]},
            "args": {"cni": {"mac": "02:00:00:00:00:01"}}, "runtimeConfig": {"ips": ["10.1.1.9"]}}}"#,
    );
    let conf = conf.expect("valid");
    assert_eq!(conf.dns.nameservers, ["10.0.0.2"]);
    assert_eq!(conf.args.mac.as_deref(), Some("02:00:00:00:00:01"));
    assert_eq!(conf.runtime_config.ips, ["10.1.1.9"]);
}

#[test]
fn impossible_values_and_combinations_are_rejected() {
    for (text, message) in [
        (
            r#"{"hairpinMode": true, "promiscMode": true}"#,
            "cannot set hairpin mode",
        ),
        (r#"{"mtu": 70000}"#, "mtu: 70000"),
        (r#"{"delegate": {"mtu": 40}}"#, "mtu: 40"),
        (
            r#"{"ipam": {"routes": [{"dst": "10.1.2.3/16"}]}}"#,
            "ipam.routes: dst 10.1.2.3/16",
        ),
        (
            r#"{"ipam": {"routes": [{"dst": "10.1.0.0/16", "gw": "fd00::1"}]}}"#,
            "ipam.routes: dst 10.1.0.0/16",
        ),
    ] {
        let error = parse(text).expect("typed").validate().expect_err(text);
        assert!(error.msg.starts_with(message), "{text}: {}", error.msg);
        assert_eq!(error.code, Code::INVALID_CONFIG);
    }
    let ipv6 = r#"{"mtu": 0, "ipam": {"routes": [{"dst": "1100:200::1/24"}]}}"#;
    assert!(parse(ipv6).expect("typed").validate().is_ok());
}

#[test]
fn delegate_must_not_have_a_name_or_ipam_key() {
    for key in ["name", "ipam"] {
        let error = parse(&format!(r#"{{"delegate": {{"{key}": {{}}}}}}"#)).expect_err(key);
        assert_eq!(error.code, Code::INVALID_CONFIG);
    }
}

#[test]
fn damaged_configurations_never_panic() {
    let valid: [&[u8]; 3] = [
        br#"{"type": "flannel", "subnetFile": "/run/flannel/subnet.env", "delegate": {"hairpinMode": true, "isDefaultGateway": true, "mtu": 1400}}"#,
        br#"{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1400, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.10.1.0/24", "rangeStart": "10.10.1.9", "rangeEnd": "10.10.1.99", "gateway": "10.10.1.1"}], [{"subnet": "fd00::/64"}]], "routes": [{"dst": "0.0.0.0/0", "gw": "10.10.1.1"}], "dataDir": "/var/lib/x", "resolvConf": "/etc/resolv.conf"}}"#,
        br#"{"type": "cni-hostgw", "capabilities": {"portMappings": true, "bandwidth": true, "ips": true}, "runtimeConfig": {"ips": ["10.10.1.7"], "mac": "02:00:00:00:00:01", "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::"}], "bandwidth": {"ingressRate": 1000000, "ingressBurst": 34359738359, "egressRate": 8, "egressBurst": 8}}, "args": {"cni": {"ips": ["10.10.1.8/24"]}}}"#,
    ];
    random_input::never_panics(&valid, |text| {
        if let Ok(json) = Json::parse(text) {
            drop(NetConf::from_json(&json));
            drop(LenientConf::from_json(&json));
        }
    });
}
