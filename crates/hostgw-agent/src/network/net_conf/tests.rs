use super::*;

fn conf(text: &str) -> Result<NetConf, String> {
    parse(text.as_bytes()).map_err(|error| error.to_string())
}

fn pools(text: &str) -> Vec<String> {
    let conf = conf(text).expect(text);
    let again = serde_json::to_string(&conf).expect("written");
    assert_eq!(self::conf(&again).expect("read"), conf, "{again}");
    conf.pools().map(|pool| pool.to_string()).collect()
}

#[test]
fn keys_match_case_insensitively() {
    let text = r#"{"network": "10.10.3.4/16", "enableipv6": true, "IPV6Network": "fd00:10:10::/48", "Backend": {"type": "Host-GW"}, "X": 1}"#;
    let conf = conf(text).expect("valid");
    let networks: Vec<_> = conf.networks().map(|network| network.to_string()).collect();
    assert_eq!(networks, ["10.10.0.0/16", "fd00:10:10::/48"]);
}

#[test]
fn defaults_are_those_of_flannel() {
    for (text, expected) in [
        (
            r#"{"Network": "10.10.0.0/16"}"#,
            "10.10.1.0/24 to 10.10.255.0/24",
        ),
        (
            r#"{"Network": "10.10.0.0/22"}"#,
            "10.10.1.0/24 to 10.10.3.0/24",
        ),
        (
            r#"{"Network": "10.10.0.0/23"}"#,
            "10.10.0.128/25 to 10.10.1.128/25",
        ),
        (
            r#"{"Network": "10.10.0.0/28", "SubnetLen": 0}"#,
            "10.10.0.4/30 to 10.10.0.12/30",
        ),
        (
            r#"{"Network": "10.0.0.0/8", "SubnetLen": 20}"#,
            "10.0.16.0/20 to 10.255.240.0/20",
        ),
        (
            r#"{"Network": "10.10.0.0/16", "SubnetMin": "10.10.0.0", "SubnetMax": "10.10.9.0"}"#,
            "10.10.0.0/24 to 10.10.9.0/24",
        ),
        (
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/62"}"#,
            "fd00:0:0:1::/64 to fd00:0:0:3::/64",
        ),
        (
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/124"}"#,
            "fd00::4/126 to fd00::c/126",
        ),
    ] {
        assert_eq!(pools(text), [expected], "{text}");
    }
    let conf = conf(r#"{"Network": "10.10.0.0/16"}"#).expect("valid");
    let pool = conf.ipv4.expect("enabled");
    assert_eq!(
        (pool.count(), pool.subnet(254).to_string().as_str()),
        (255, "10.10.255.0/24")
    );
    for (subnet, fits) in [
        ("10.10.1.0/24", true),
        ("10.10.0.0/24", false),
        ("10.10.1.0/25", false),
    ] {
        assert_eq!(
            pool.fits(subnet.parse().expect("a network")),
            fits,
            "{subnet}"
        );
    }
}

// Long: a table of cases.
#[test]
fn errors_name_the_key_its_value_and_the_rule() {
    for (text, expected) in [
        ("{}", "Network is missing"),
        (r#"{"Network": null}"#, "Network is missing"),
        (
            r#"{"Network": ""}"#,
            r#"Network is "", and must be an IPv4 network such as "10.244.0.0/16""#,
        ),
        (
            r#"{"Network": "10.10.0.0"}"#,
            r#"Network is "10.10.0.0", and must be an IPv4 network"#,
        ),
        (
            r#"{"Network": "fd00::/48"}"#,
            r#"Network is "fd00::/48", and must be an IPv4 network"#,
        ),
        (
            r#"{"Network": 5}"#,
            "Network is 5, and must be an IPv4 network",
        ),
        (
            r#"{"Network": "0.0.0.0/0"}"#,
            r#"Network is "0.0.0.0/0", and must not contain all addresses"#,
        ),
        (
            r#"{"Network": "10.0.0.0/29"}"#,
            "Network is 10.0.0.0/29, and must be a /28 or larger",
        ),
        (
            r#"{"Network": "10.0.0.0/16", "SubnetLen": 31}"#,
            "SubnetLen is 31, and must be from 18 (the prefix length of Network plus 2) to 30",
        ),
        (
            r#"{"Network": "10.0.0.0/16", "SubnetLen": 17}"#,
            "SubnetLen is 17, and must be from 18",
        ),
        (
            r#"{"Network": "10.0.0.0/16", "SubnetLen": -1}"#,
            "SubnetLen is -1, and must be a number",
        ),
        (
            r#"{"Network": "10.0.0.0/16", "SubnetLen": "24"}"#,
            r#"SubnetLen is "24", and must be a number"#,
        ),
        (
            r#"{"Network": "10.0.0.0/16", "SubnetMin": "10.1.0.0"}"#,
            r#"SubnetMin is "10.1.0.0", and must be in Network, which is 10.0.0.0/16"#,
        ),
        (
            r#"{"Network": "10.0.0.0/16", "SubnetMax": "10.0.1.5"}"#,
            r#"SubnetMax is "10.0.1.5", and must be the first address of a subnet of SubnetLen (/24)"#,
        ),
        (
            r#"{"Network": "10.0.0.0/16", "SubnetMin": "fd00::"}"#,
            r#"SubnetMin is "fd00::", and must be an IPv4 address"#,
        ),
        (
            r#"{"Network": "10.0.0.0/16", "SubnetMin": "10.0.9.0", "SubnetMax": "10.0.3.0"}"#,
            "SubnetMin is 10.0.9.0, and must not be greater than SubnetMax, which is 10.0.3.0",
        ),
        (
            r#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#,
            r#"Backend.Type is "vxlan", and must be "host-gw""#,
        ),
        (
            r#"{"Network": "10.0.0.0/8", "Backend": {}}"#,
            r#"Backend.Type is null, and must be "host-gw""#,
        ),
        (
            r#"{"Network": "10.0.0.0/8", "Backend": null}"#,
            r#"Backend.Type is null, and must be "host-gw""#,
        ),
        (
            r#"{"Network": "10.0.0.0/8", "Backend": "host-gw"}"#,
            r#"Backend is "host-gw", and must be an object"#,
        ),
        (
            r#"{"EnableIPv4": false}"#,
            "EnableIPv4 and EnableIPv6 are both false",
        ),
        (
            r#"{"EnableIPv4": "no"}"#,
            r#"EnableIPv4 is "no", and must be true or false"#,
        ),
        (
            r#"{"Network": "10.0.0.0/8", "EnableIPv6": true}"#,
            "IPv6Network is missing",
        ),
        (
            r#"{"Network": "10.0.0.0/8", "EnableIPv6": true, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}"#,
            "IPv6SubnetLen is 127, and must be from 50 (the prefix length of IPv6Network plus 2) to 126",
        ),
    ] {
        let error = conf(text).expect_err(text);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn damaged_configurations_never_panic() {
    let valid: [&[u8]; 2] = [
        br#"{"Network": "10.10.0.0/16", "SubnetLen": 24, "SubnetMin": "10.10.1.0", "SubnetMax": "10.10.99.0", "Backend": {"Type": "host-gw"}}"#,
        br#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:10::/48", "IPv6SubnetLen": 64, "IPv6SubnetMin": "fd00:10:10:1::", "IPv6SubnetMax": "fd00:10:10:ffff::"}"#,
    ];
    random_input::never_panics(&valid, |text| {
        if let Ok(conf) = parse(text) {
            let again = serde_json::to_vec(&conf).expect("written");
            assert_eq!(parse(&again).expect("read"), conf);
        }
    });
}
