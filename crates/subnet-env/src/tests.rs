use std::os::unix::fs::PermissionsExt;

use super::*;

const DUAL: &str = "FLANNEL_NETWORK=10.10.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\n\
        FLANNEL_IPV6_NETWORK=fd00:10:10::/48\nFLANNEL_IPV6_SUBNET=fd00:10:10:1::1/64\n\
        FLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n";

#[test]
fn a_file_of_flannel_is_read_and_written_unchanged() {
    assert_eq!(SubnetEnv::parse(DUAL).expect("flannel's").to_string(), DUAL);
}

#[test]
fn comments_quotes_and_unknown_keys_are_accepted() {
    let text = "# written by hand\r\nexport FLANNEL_NETWORK=\"10.10.0.0/16, 10.11.0.0/16,10.10.0.0/16\"\r\n\
            FLANNEL_SUBNET='10.10.1.1/24' # mine\r\nFLANNEL_SUBNET\r\nFLANNEL_MTU = 1450 # bytes\r\n\
            FLANNEL_IPMASQ=TRUE\r\nHOSTGW_BOOT_ID=1\r\nFLANNEL_IPV6_SUBNET=\r\n=\r\n";
    let env = SubnetEnv::parse(text).expect("tolerable");
    assert_eq!(
        env.to_string(),
        "FLANNEL_NETWORK=10.10.0.0/16,10.11.0.0/16\nFLANNEL_SUBNET=10.10.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
}

#[test]
fn values_that_flannel_accepts_are_accepted() {
    let text = "\u{feff}FLANNEL_NETWORK=10.10.0.0/16,fd00:10:10::/48,10.10.0.5/16\n\
            FLANNEL_SUBNET=10.10.1.1/24\nFLANNEL_IPV6_SUBNET=fd00:10:10:1::1/64\n\
            FLANNEL_MTU=0\nFLANNEL_IPMASQ=true\n";
    let env = SubnetEnv::parse(text).expect("flannel's");
    assert_eq!(env.to_string(), DUAL.replace("MTU=1500", "MTU=0"));
}

#[test]
fn the_error_names_every_missing_key() {
    let error = SubnetEnv::parse("FLANNEL_NETWORK=10.10.0.0/16\n").expect_err("incomplete");
    assert_eq!(
        error.to_string(),
        "is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"
    );
}

#[test]
fn the_error_names_an_invalid_value_and_its_key() {
    for (line, message) in [
        (
            "FLANNEL_SUBNET=10.10.1.1",
            r#"FLANNEL_SUBNET is "10.10.1.1", which is not an IPv4 subnet"#,
        ),
        (
            "FLANNEL_SUBNET=10.10.1.1/255.255.255.0",
            r#"FLANNEL_SUBNET is "10.10.1.1/255.255.255.0", which is not an IPv4 subnet"#,
        ),
        (
            "FLANNEL_NETWORK=10.10.0.0/255.255.0.0",
            r#"FLANNEL_NETWORK is "10.10.0.0/255.255.0.0", which is not a list of networks"#,
        ),
        (
            "FLANNEL_IPV6_NETWORK=10.10.0.0/16",
            r#"FLANNEL_IPV6_NETWORK is "10.10.0.0/16", which is not a list of IPv6 networks"#,
        ),
        (
            "FLANNEL_SUBNET=10.11.1.1/24",
            "subnet 10.11.1.1/24 is not in any of the networks",
        ),
        (
            "FLANNEL_IPV6_SUBNET=fd00:99::1/64",
            "subnet fd00:99::1/64 is not in any of the networks",
        ),
        (
            "FLANNEL_MTU=40",
            r#"FLANNEL_MTU is "40", which is not a number of bytes from 68 to 65535"#,
        ),
    ] {
        let error = SubnetEnv::parse(&format!("{DUAL}{line}\n")).expect_err(line);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn unusable_subnets_are_rejected() {
    let networks = |list: &[&str]| -> Vec<IpNetwork> {
        list.iter()
            .map(|text| text.parse().expect("a network"))
            .collect()
    };
    for (of, subnets, message) in [
        (
            &["10.10.0.0/16"][..],
            &["10.11.1.0/24"][..],
            "subnet 10.11.1.0/24 is not in any of the networks",
        ),
        (
            &["10.10.0.0/16"],
            &["10.10.1.0/31"],
            "subnet 10.10.1.0/31 is too small for a gateway and a pod",
        ),
        (
            &["10.10.0.0/16"],
            &["10.10.1.0/24", "10.10.2.0/24"],
            "subnet 10.10.2.0/24 is the second of its family, and a node has one",
        ),
        (
            &["10.10.0.0/16", "fd00::/48"],
            &["10.10.1.0/24"],
            "subnet fd00::/48 is a network for which the node has no subnet",
        ),
    ] {
        let error = SubnetEnv::new(&networks(of), &networks(subnets), 1500, true);
        assert_eq!(error.expect_err(message).to_string(), message);
    }
    let text = DUAL.replace("10.10.1.1/24", "10.10.1.1/32");
    assert!(SubnetEnv::parse(&text).is_err());
}

#[test]
fn no_text_makes_the_parser_panic() {
    for text in [
        "",
        "=",
        "FLANNEL_NETWORK",
        "FLANNEL_MTU=\"",
        "export ",
        "\"=\"",
        "FLANNEL_IPMASQ='",
        "\0=\u{fffd}",
        "é=é'\"",
    ] {
        assert!(SubnetEnv::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_write_replaces_the_file_and_creates_its_directory() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("run/flannel/subnet.env");
    let env = SubnetEnv::parse(DUAL).expect("flannel's");
    env.write(&path).expect("writes");
    env.write(&path).expect("replaces");
    assert_eq!(SubnetEnv::read(&path).expect("just written"), env);
    assert_eq!(
        fs::metadata(&path)
            .expect("the file exists")
            .permissions()
            .mode()
            & 0o777,
        0o644
    );
    let directory = path.parent().expect("the value is present");
    assert_eq!(
        fs::read_dir(directory).expect("readable").count(),
        1,
        "no temporary file is left"
    );
}

#[test]
fn damaged_files_never_panic_and_are_read_as_they_are_written() {
    random_input::never_panics(&[DUAL.as_bytes(), b"export FLANNEL_SUBNET='10.10.1.1/24' # x\r\nFLANNEL_NETWORK=\"10.10.0.0/16, 10.11.0.0/16\""], |text| {
        if let Ok(env) = SubnetEnv::parse(&String::from_utf8_lossy(text)) {
            let again = SubnetEnv::parse(&env.to_string());
            assert_eq!(again.expect("what we write"), env);
        }
    });
}
