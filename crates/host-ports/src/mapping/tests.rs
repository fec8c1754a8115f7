//! Tests of requested mappings.

use super::*;

fn request(protocol: &str, ip: &str, host_port: i64, container_port: i64) -> PortRequest {
    PortRequest::new(protocol, ip, host_port, container_port).expect("valid")
}

fn resolved(requests: &[PortRequest], addresses: &[&str]) -> Result<Vec<String>, String> {
    let address = |text: &&str| text.parse().expect("an address");
    let addresses: Vec<_> = addresses.iter().map(address).collect();
    let text = |mapping: &Mapping| format!("{mapping} -> {}", mapping.target);
    let mappings = resolve(requests, &addresses).map_err(|error| error.to_string())?;
    Ok(mappings.iter().map(text).collect())
}

#[test]
fn invalid_values_are_named_with_their_key_and_the_rule() {
    for (protocol, ip, host_port, container_port, expected) in [
        ("tcp", "", 0, 80, "hostPort: 0: must be from 1 to 65535"),
        (
            "tcp",
            "",
            65536,
            80,
            "hostPort: 65536: must be from 1 to 65535",
        ),
        ("tcp", "", -1, 80, "hostPort: -1: must be from 1 to 65535"),
        (
            "tcp",
            "",
            80,
            0,
            "containerPort: 0: must be from 1 to 65535",
        ),
        (
            "icmp",
            "",
            80,
            80,
            "protocol: \"icmp\": must be tcp, udp or sctp",
        ),
        ("", "", 80, 80, "protocol: \"\": must be tcp, udp or sctp"),
        (
            "tcp",
            "1.2.3",
            80,
            80,
            "hostIP: \"1.2.3\": must be an IP address",
        ),
        (
            "tcp",
            "fe80::1%eth0",
            80,
            80,
            "hostIP: \"fe80::1%eth0\": must be an IP address",
        ),
    ] {
        let error = PortRequest::new(protocol, ip, host_port, container_port);
        let error = error.expect_err("invalid");
        assert_eq!(format!("{}: {}: {error}", error.key, error.value), expected);
    }
}

#[test]
fn a_mapping_leads_to_the_first_address_of_each_family() {
    let pod = ["10.10.1.5", "10.10.1.6", "fd00::5"];
    let both = [request("TCP", "", 8080, 80)];
    let expected = [
        "0.0.0.0:8080/tcp -> 10.10.1.5:80",
        "[::]:8080/tcp -> [fd00::5]:80",
    ];
    assert_eq!(resolved(&both, &pod).expect("possible"), expected);
    let ipv4 = [request("udp", "0.0.0.0", 53, 53)];
    let expected = ["0.0.0.0:53/udp -> 10.10.1.5:53"];
    assert_eq!(resolved(&ipv4, &pod).expect("possible"), expected);
    let mapped = [request("udp", "::ffff:0.0.0.0", 53, 53)];
    assert_eq!(resolved(&mapped, &pod).expect("possible"), expected);
    let one = [request("sctp", "::ffff:192.168.2.16", 53, 53)];
    let expected = ["192.168.2.16:53/sctp -> 10.10.1.5:53"];
    assert_eq!(resolved(&one, &pod).expect("possible"), expected);
}

#[test]
fn a_port_requested_twice_is_one_mapping_or_an_error() {
    let pod = ["10.10.1.5"];
    let same = [
        request("tcp", "", 80, 80),
        request("tcp", "0.0.0.0", 80, 80),
    ];
    assert_eq!(resolved(&same, &pod).expect("possible").len(), 1);
    let covered = [
        request("tcp", "192.168.2.16", 80, 80),
        request("tcp", "", 80, 80),
    ];
    let expected = ["0.0.0.0:80/tcp -> 10.10.1.5:80"];
    assert_eq!(resolved(&covered, &pod).expect("possible"), expected);
    for other in ["", "0.0.0.0", "192.168.2.16"] {
        let twice = [request("tcp", "", 80, 80), request("tcp", other, 80, 81)];
        let error = resolved(&twice, &pod).expect_err("impossible");
        assert!(error.ends_with("use the same port of the node"), "{error}");
    }
    let different = [request("tcp", "", 80, 80), request("udp", "", 80, 81)];
    assert_eq!(resolved(&different, &pod).expect("possible").len(), 2);
}

#[test]
fn a_mapping_for_a_family_that_the_pod_lacks_is_an_error_unless_it_is_half_of_a_pair() {
    let pair = [
        request("tcp", "0.0.0.0", 80, 80),
        request("tcp", "::", 80, 80),
    ];
    assert_eq!(resolved(&pair, &["10.10.1.5"]).expect("possible").len(), 1);
    let error = resolved(&pair[1..], &["10.10.1.5"]).expect_err("impossible");
    let expected = "[::]:80/tcp (to container port 80) leads nowhere: the pod has no IPv6 address";
    assert_eq!(error, expected);
    let one = [
        request("tcp", "", 80, 80),
        request("tcp", "fd00::1", 80, 80),
    ];
    assert!(resolved(&one, &["10.10.1.5"]).is_err());
    let none = resolved(&[request("tcp", "", 80, 80)], &[]).expect_err("impossible");
    assert!(none.ends_with("the pod has no IPv4 address"), "{none}");
}
