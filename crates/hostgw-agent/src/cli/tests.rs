//! Command lines and variables, as people and units give them.

use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::*;

fn parse(given: &[&str], env: &[(&str, &str)]) -> Result<Box<Settings>, String> {
    let given = [&["hostgw-agent"], given].concat();
    let find = |name: &str| {
        let found = env.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let arguments = arguments(given.into_iter().map(Into::into), find);
    let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
    match cli.task(find)? {
        Task::Run(settings, _) => Ok(settings),
        _ => Err("another task".to_owned()),
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn flannelds_command_line_works_as_it_is() {
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
    let store::Settings::Etcd(options) = &settings.store else {
        panic!("etcd was asked for");
    };
    assert_eq!(
        options.access.endpoints,
        ["http://192.168.2.17:2379", "http://192.168.2.16:2379"]
    );
    assert_eq!(options.prefix, "/kube/network");
    assert_eq!(options.margin, Duration::from_secs(90 * 60));
    assert_eq!(
        settings.selection.names,
        ["enp0s5", "192.168.2.16"],
        "what is said comes before variables"
    );
    assert_eq!(settings.selection.public.len(), 1);
    assert!(settings.firewall.masquerade && options.access.ca.is_none());
}

#[test]
fn booleans_are_gos() {
    let masquerades = |flag: &str| parse(&[flag], &[]).expect(flag).firewall.masquerade;
    assert!(masquerades("-ip-masq") && masquerades("--ip-masq=true"));
    assert!(!masquerades("--ip-masq=false"));
    let on = parse(&[], &[("FLANNELD_IP_MASQ", "true")]).expect("a variable");
    assert!(on.firewall.masquerade);
}

#[test]
fn what_is_not_honoured_is_refused_with_a_sentence() {
    for (flag, said) in [
        ("--kube-annotation-prefix=com", "error: invalid value 'com'"),
        ("--ip-blackhole-route", "--ip-blackhole-route: a blackhole"),
        ("--subnet-dir=/x", "--subnet-dir: one agent"),
        ("--vmodule=a=1", "--vmodule: the log"),
        ("-log_backtrace_at=a:1", "--log_backtrace_at: the log"),
        (
            "--etcd-endpoints=192.168.2.17:2379",
            "--etcd-endpoints: \"192.168.2.17:2379\"",
        ),
        ("--etcd-cafile", "error: a value is required"),
        (
            "--subnet-lease-renew-margin=1440",
            "error: invalid value '1440'",
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
        assert!(error.starts_with(said), "{error}");
    }
    // What is for etcd is not silently without meaning.
    for flag in ["--etcd-prefix=/x", "--etcd-cafile=/x", "--etcd-username=x"] {
        let error = parse(&[flag], &[]).err().expect(flag);
        assert!(error.contains("--etcd-endpoints"), "{error}");
    }
    for flag in [
        "--kube-api-url=https://192.168.2.17:6443",
        "--kubeconfig=/x",
        "--net-config-path=/x",
        "--peers-without-annotations",
    ] {
        let error = parse(&[flag], &[]).err().expect(flag);
        assert!(error.contains("--kube-subnet-mgr"), "{error}");
    }
    let version = parse(&["-version"], &[]).err();
    assert!(version.is_some_and(|text| text.starts_with("hostgw-agent ")));
    assert!(parse(&["--kube-subnet-mgr=false"], &[]).is_ok());
}

#[test]
fn kube_flannels_command_line_works_as_it_is() {
    let kube = |given: &[&str], env: &[(&str, &str)]| {
        let given = [&["--ip-masq", "--kube-subnet-mgr"], given].concat();
        match parse(&given, env)?.store {
            store::Settings::Kube(options) => Ok(*options),
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
    // A name goes before a pod's, and a flag before a variable.
    let named = [pod[0], pod[1], ("NODE_NAME", "worker1")];
    let name = |given: &[&str]| kube(given, &named).map(|options| options.node);
    assert_eq!(name(&[]), Ok(Identity::Named("worker1".to_owned())));
    let flag = name(&["--node-name=worker2"]);
    assert_eq!(flag, Ok(Identity::Named("worker2".to_owned())));
    // By variables, as in a unit.
    let variables = [
        ("FLANNELD_KUBE_SUBNET_MGR", "true"),
        ("FLANNELD_KUBECONFIG_FILE", "/x"),
    ];
    let settings = parse(&[], &variables).expect("variables do as well");
    assert!(matches!(settings.store, store::Settings::Kube(_)));
    let error = kube(&["--kube-api-url=192.168.2.17:6443"], &pod).map(|_| ());
    assert!(error.is_err_and(|error| error.starts_with("--kube-api-url: 192.168.2.17:6443")));
    let error = kube(&["--etcd-endpoints=http://192.168.2.17:2379"], &pod).map(|_| ());
    assert!(error.is_err_and(|error| error.contains("one store")));
}
