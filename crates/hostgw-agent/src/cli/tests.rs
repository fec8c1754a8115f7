//! Command lines and environment variables, as users and systemd units give them.

use std::time::Duration;

use clap::CommandFactory;

use super::parse::{endpoints, folder};
use super::*;
use crate::store::StoreConfig;
use crate::store::kube::Identity;

fn parse(given: &[&str], env: &[(&str, &str)]) -> Result<Box<AgentConfig>, String> {
    let given = [&["hostgw-agent"], given].concat();
    let find = |name: &str| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let arguments = arguments(given.into_iter().map(Into::into), find);
    let cli = Cli::read(&arguments).map_err(|error| error.to_string())?;
    match cli.task(find).map_err(|error| error.text())? {
        Task::Run(settings, _) => Ok(settings),
        _ => Err("another task".to_owned()),
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn flannelds_command_line_works_unchanged() {
    let settings = parse(
        &[
            "-etcd-endpoints=http://192.168.2.17:2379, http://192.168.2.16:2379",
            "--etcd-prefix=/kube/network/",
            "-iface",
            "enp0s5",
            "--iface=192.168.2.16",
            "--ip-masq",
            "--iptables-resync=30",
            "-v=4",
            "--subnet-lease-renew-margin=90",
        ],
        &[
            ("FLANNELD_IFACE", "eth9"),
            ("FLANNELD_PUBLIC_IP", "192.168.2.16"),
            ("FLANNELD_ETCD_CAFILE", ""),
        ],
    )
    .expect("all of flanneld's");
    let StoreConfig::Etcd(options) = &settings.store else {
        panic!("etcd was asked for");
    };
    assert_eq!(
        options.access.endpoints,
        ["http://192.168.2.17:2379", "http://192.168.2.16:2379"]
    );
    assert_eq!(options.prefix, "/kube/network/");
    assert_eq!(options.margin, Duration::from_secs(90 * 60));
    assert_eq!(
        settings.selection.names,
        ["enp0s5", "192.168.2.16"],
        "flags take precedence over variables"
    );
    assert_eq!(settings.selection.public.len(), 1);
    assert!(settings.firewall.masquerade && options.access.ca.is_none());
}

#[test]
fn booleans_are_parsed_as_in_go() {
    let masquerades = |flag: &str| parse(&[flag], &[]).expect(flag).firewall.masquerade;
    for yes in [
        "-ip-masq",
        "--ip-masq=true",
        "--ip-masq=1",
        "-ip-masq=T",
        "--ip-masq=True",
    ] {
        assert!(masquerades(yes), "{yes}");
    }
    for no in [
        "--ip-masq=false",
        "--ip-masq=0",
        "-ip-masq=f",
        "--ip-masq=FALSE",
    ] {
        assert!(!masquerades(no), "{no}");
    }
    for value in ["true", "True", "1"] {
        let on = parse(&[], &[("FLANNELD_IP_MASQ", value)]).expect("a variable");
        assert!(on.firewall.masquerade);
    }
    let error = parse(&[], &[("FLANNELD_IP_MASQ", "yes")])
        .err()
        .unwrap_or_default();
    assert!(
        error.contains("'yes'") && error.contains("FLANNELD_IP_MASQ"),
        "{error}"
    );
    assert!(parse(&["--ip-blackhole-route"], &[]).is_ok_and(|settings| settings.routes.blackholes));
}

#[test]
fn numbers_are_parsed_as_in_go() {
    for (text, number) in [
        ("10", 10),
        ("-1", -1),
        ("+7", 7),
        ("0x10", 16),
        ("0b11", 3),
        ("0o17", 15),
        ("010", 8),
        ("1_000", 1000),
        ("0", 0),
    ] {
        assert_eq!(super::flanneld::number(text), Ok(number), "{text}");
    }
    for text in [
        "",
        "5s",
        " 5",
        "1__0",
        "_1",
        "1_",
        "0x",
        "08",
        "99999999999999999999",
    ] {
        assert!(super::flanneld::number(text).is_err(), "{text:?}");
    }
    let poll = |text: &str| {
        parse(&[&format!("--iptables-resync={text}")], &[])
            .expect(text)
            .firewall
            .poll
    };
    assert_eq!(poll("0"), Duration::from_secs(1));
    assert_eq!(poll("-5"), Duration::from_secs(1));
    assert_eq!(poll("86400"), Duration::from_secs(86400));
}

#[test]
fn an_empty_value_counts_as_not_given() {
    let flags = [
        "--iface=",
        "--iface-regex=",
        "--iface-can-reach=",
        "--public-ip=",
        "--public-ipv6=",
        "--etcd-cafile=",
        "--etcd-certfile=",
        "--etcd-keyfile=",
        "--etcd-username=",
        "--etcd-password=",
        "--kubeconfig-file=",
        "--kube-api-url=",
        "--healthz-ip=",
        "--subnet-file=",
        "--vmodule=",
        "--etcd-endpoints=http://192.168.2.17:2379",
    ];
    let settings = parse(&flags, &[]).expect("empty values, as a unit's template leaves them");
    let StoreConfig::Etcd(options) = &settings.store else {
        panic!("etcd was asked for");
    };
    assert!(options.access.ca.is_none() && options.access.identity.is_none());
    assert!(options.access.user.is_none() && settings.selection.public.is_empty());
    let apart = parse(&["--public-ip", "", "--subnet-file", "-v"], &[]).expect("apart");
    assert!(apart.selection.public.is_empty());
    assert_eq!(
        apart.subnet_file.to_str(),
        Some("-v"),
        "the argument after a flag is its value"
    );
}

#[test]
fn the_last_of_several_values_counts() {
    let settings = parse(
        &[
            "--subnet-file=/a",
            "--subnet-file=/b",
            "--ip-masq",
            "--ip-masq=false",
            "--etcd-endpoints=http://a:1",
            "--etcd-endpoints=http://b:1,http://c:1",
            "--iface=a",
            "--iface=b",
        ],
        &[],
    );
    let settings = settings.expect("as a unit with defaults before a variable has them");
    let StoreConfig::Etcd(options) = &settings.store else {
        panic!("etcd was asked for");
    };
    assert_eq!(options.access.endpoints, ["http://b:1", "http://c:1"]);
    assert_eq!(settings.subnet_file.to_str(), Some("/b"));
    assert!(!settings.firewall.masquerade);
    assert_eq!(settings.selection.names, ["a", "b"]);
}

#[test]
fn endpoints_and_prefixes_are_parsed_as_in_flanneld() {
    for (text, is_tls, message) in [
        ("192.168.2.17:2379", false, "http://192.168.2.17:2379"),
        ("192.168.2.17:2379", true, "https://192.168.2.17:2379"),
        ("http://a:1,b:1", true, "http://a:1 http://b:1"),
        ("a:1,https://b:1", false, "https://a:1 https://b:1"),
        ("http://a:1,", false, "http://a:1"),
        (",http://a:1, http://b:1/", false, "http://a:1 http://b:1"),
        ("HTTP://a:1", false, "http://a:1"),
        ("[fd00::1]:2379", false, "http://[fd00::1]:2379"),
    ] {
        let all = endpoints(text, is_tls).map(|all| all.join(" "));
        assert_eq!(all.as_deref(), Ok(message), "{text}");
    }
    for text in [
        "",
        ",",
        "ftp://a:1",
        "http://a",
        "unix:///run/etcd",
        "a b:1",
    ] {
        assert!(endpoints(text, false).is_err(), "{text:?}");
    }
    for (prefix, key) in [
        ("/coreos.com/network", "/coreos.com/network/config"),
        ("kube/network", "kube/network/config"),
        ("kube/network/", "kube/network/config"),
        ("", "config"),
        ("/", "/config"),
        ("//a//b/", "/a/b/config"),
        ("/a/../b", "/b/config"),
        ("./x", "x/config"),
        ("/..", "/config"),
        ("../x", "../x/config"),
    ] {
        assert_eq!(format!("{}config", folder(prefix)), key, "{prefix:?}");
    }
}

#[test]
fn flags_of_another_store_are_ignored() {
    let kube = [
        "--kube-subnet-mgr",
        "--etcd-prefix=/x",
        "--etcd-cafile=/x",
        "--etcd-username=x",
        "--subnet-lease-renew-margin=60",
    ];
    assert!(parse(&kube, &[("NODE_NAME", "worker1")]).is_ok());
    let etcd = [
        "--etcd-endpoints=http://a:1",
        "--net-config-path=/x",
        "--kubeconfig-file=/x",
        "--set-node-network-unavailable=true",
        "--kube-annotation-prefix=example.com",
    ];
    assert!(parse(&etcd, &[]).is_ok());
    // Unsupported flags are ignored in the environment, where they may be for another program.
    let env = [("FLANNELD_SUBNET_DIR", "/x"), ("FLANNELD_VMODULE", "a=1")];
    assert!(parse(&[], &env).is_ok());
    for (flags, message) in [
        (
            &["--etcd-certfile=/x"][..],
            "--etcd-certfile is given without --etcd-keyfile",
        ),
        (
            &["--etcd-keyfile=/x"],
            "--etcd-keyfile is given without --etcd-certfile",
        ),
        (
            &["--etcd-username=x"],
            "--etcd-username: \"x\" has no password",
        ),
        (
            &["--etcd-password=x"],
            "a password for etcd is given without a user",
        ),
    ] {
        let flags = [&["--etcd-endpoints=http://a:1"], flags].concat();
        let error = parse(&flags, &[]).err().unwrap_or_default();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn unsupported_flags_are_refused_with_a_reason() {
    for (flag, message) in [
        ("--kube-annotation-prefix=com", "error: invalid value 'com'"),
        ("--subnet-dir=/x", "--subnet-dir: one agent"),
        ("--vmodule=a=1", "--vmodule: the log"),
        ("-log_backtrace_at=a:1", "--log_backtrace_at: the log"),
        (
            "--etcd-endpoints=192.168.2.17",
            "--etcd-endpoints: \"192.168.2.17\"",
        ),
        ("--healthz-port=70000", "--healthz-port: 70000"),
        (
            "--healthz-ip=no.such.name.invalid",
            "error: invalid value 'no.such.name.invalid'",
        ),
        ("--etcd-cafile", "error: a value is required"),
        (
            "--subnet-lease-renew-margin=1h",
            "error: invalid value '1h'",
        ),
        ("--iface-regex=[", "error: invalid value '['"),
        ("--non-masquerade-cidr=x", "error: invalid value 'x'"),
        (
            "--non-masquerade-cidr=10.9.0.0/255.255.0.0",
            "error: invalid value '10.9.0.0/255.255.0.0'",
        ),
        ("--firewall=pf", "error: invalid value 'pf'"),
    ] {
        let error = parse(&[flag], &[]).err().expect(flag);
        assert!(error.starts_with(message), "{error}");
    }
    // Flags for etcd are not silently ignored.
    for flag in ["--etcd-prefix=/x", "--etcd-cafile=/x", "--etcd-username=x"] {
        let error = parse(&[flag], &[]).err().expect(flag);
        assert!(error.contains("--etcd-endpoints"), "{error}");
    }
    for flag in [
        "--kube-api-url=https://192.168.2.17:6443",
        "--kubeconfig=/x",
    ] {
        let error = parse(&[flag], &[]).err().expect(flag);
        assert!(error.contains("--kube-subnet-mgr"), "{error}");
    }
    let version = parse(&["-version"], &[]).err();
    assert!(version.is_some_and(|text| text.starts_with("hostgw-agent ")));
    assert!(parse(&["--kube-subnet-mgr=false"], &[]).is_ok());
}

#[test]
fn kube_flannels_command_line_works_unchanged() {
    let kube = |given: &[&str], env: &[(&str, &str)]| {
        let given = [&["--ip-masq", "--kube-subnet-mgr"], given].concat();
        match parse(&given, env)?.store {
            StoreConfig::Kube(options) => Ok(*options),
            _ => Err("another store".to_owned()),
        }
    };
    let pod = [
        ("POD_NAME", "kube-flannel-ds-x"),
        ("POD_NAMESPACE", "kube-flannel"),
    ];
    let options = kube(&[], &pod).expect("kube-flannel's own");
    let of_pod = Identity::OfPod {
        namespace: "kube-flannel".to_owned(),
        name: "kube-flannel-ds-x".to_owned(),
    };
    assert_eq!(options.node, of_pod);
    assert_eq!(
        options.net_conf.to_str(),
        Some("/etc/kube-flannel/net-conf.json")
    );
    assert!(options.sets_condition && !options.peers_without_annotations);
    // A node name takes precedence over a pod's, and a flag over a variable.
    let named = [pod[0], pod[1], ("NODE_NAME", "worker1")];
    let name = |given: &[&str]| kube(given, &named).map(|options| options.node);
    assert_eq!(name(&[]), Ok(Identity::Named("worker1".to_owned())));
    let flag = name(&["--node-name=worker2"]);
    assert_eq!(flag, Ok(Identity::Named("worker2".to_owned())));
    // With environment variables, as in a systemd unit.
    let variables = [
        ("FLANNELD_KUBE_SUBNET_MGR", "true"),
        ("FLANNELD_KUBECONFIG_FILE", "/x"),
    ];
    let settings = parse(&[], &variables).expect("variables do as well");
    assert!(matches!(settings.store, StoreConfig::Kube(_)));
    let url = kube(&["--kube-api-url=192.168.2.17:6443"], &pod).map(|options| options.access.url);
    assert_eq!(url, Ok("http://192.168.2.17:6443".parse().ok()));
    let error = kube(&["--kube-api-url=ftp://192.168.2.17"], &pod).map(|_| ());
    assert!(error.is_err_and(|error| error.starts_with("--kube-api-url: \"ftp://192.168.2.17\"")));
    let error = kube(&["--etcd-endpoints=http://192.168.2.17:2379"], &pod).map(|_| ());
    assert!(error.is_err_and(|error| error.contains("one store")));
}

const DOCUMENTATION: &str = include_str!("../../README.md");

/// The flags of the documentation's tables: name, and the whole row.
fn documented_flags() -> Vec<(String, String)> {
    let text = DOCUMENTATION;
    let start = text.find("\n## Flags").expect("a heading");
    let end = text.find("\n### Differences").expect("a heading");
    let mut flags = Vec::new();
    for row in text[start..end]
        .lines()
        .filter(|line| line.starts_with("| `"))
    {
        // The flags of other commands are behind the command.
        let cells: Vec<_> = row.split(" | ").collect();
        let is_flag = |cell: &&&str| cell.trim_start_matches("| ").starts_with("`-");
        let cell = cells.iter().find(is_flag).expect("each row has a flag");
        for code in cell.split('`').skip(1).step_by(2) {
            if let Some(flag) = code.strip_prefix("--") {
                let name = flag.split(' ').next().unwrap_or_default();
                flags.push((name.to_owned(), row.to_owned()));
            }
        }
    }
    flags
}

#[test]
fn every_flag_is_documented_with_its_default_and_every_documented_flag_exists() {
    let documented = documented_flags();
    let mut missing: Vec<_> = documented.iter().map(|(name, _)| name.as_str()).collect();
    let command = Cli::command();
    let commands = command.get_subcommands().chain([&command]);
    for argument in commands.flat_map(clap::Command::get_arguments) {
        let Some(name) = argument
            .get_long()
            .filter(|name| !["help", "version"].contains(name))
        else {
            continue;
        };
        if argument.is_hide_set() {
            // A flag of flanneld that is an error here.
            assert!(
                DOCUMENTATION.contains(&format!("| `--{name}`"))
                    || DOCUMENTATION.contains(&format!("`, `--{name}`")),
                "--{name}"
            );
            continue;
        }
        let is_it = |(other, _): &&(String, String)| other == name;
        let (_, row) = documented
            .iter()
            .find(is_it)
            .unwrap_or_else(|| panic!("--{name} is not in crates/hostgw-agent/README.md"));
        for default in argument.get_default_values() {
            let default = format!("`{}`", default.to_string_lossy());
            assert!(row.contains(&default), "--{name}: {default}");
        }
        missing.retain(|other| *other != name);
    }
    assert!(missing.is_empty(), "there is no {missing:?}");
}
