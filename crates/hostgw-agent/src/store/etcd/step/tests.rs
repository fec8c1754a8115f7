use super::super::contents::KeyMeta;
use super::*;

const NETWORK: &str = r#"{"Network": "10.10.0.0/16", "SubnetMax": "10.10.4.0"}"#;

/// Contents of etcd: each key with its node's address and the ID of its etcd lease.
fn contents(config: &str, leases: &[(&str, &str, i64)]) -> Contents {
    let mut contents = Contents::new("/n/");
    contents.insert("/n/config", config.as_bytes(), KeyMeta::default());
    for (revision, (name, address, lease_id)) in (1..).zip(leases) {
        let meta = KeyMeta {
            created: revision,
            modified: revision,
            lease_id: *lease_id,
        };
        let text = serde_json::to_string(&value(address)).expect("written");
        contents.insert(&format!("/n/subnets/{name}"), text.as_bytes(), meta);
    }
    contents
}

fn value(address: &str) -> Value {
    Value {
        public_ip: address.parse().expect("an address"),
        public_ipv6: None,
        backend_type: "host-gw".to_owned(),
    }
}

/// A node that has just started, with address 192.168.2.16.
fn new_node() -> LeaseClaim {
    LeaseClaim {
        addresses: Addresses {
            ipv4: "192.168.2.16".parse().ok(),
            ipv6: None,
        },
        held: None,
        is_confirmed: false,
        granted: None,
        is_due: false,
        expired: None,
        contested: None,
        previous: Vec::new(),
    }
}

/// A node that holds 10.10.2.0/24 with etcd lease 7, and has confirmed it.
fn holder() -> LeaseClaim {
    LeaseClaim {
        held: Some(EtcdLease {
            name: "10.10.2.0-24".to_owned(),
            addresses: new_node().addresses,
            id: 7,
            expires: None,
            expires_in_boot: None,
        }),
        is_confirmed: true,
        ..new_node()
    }
}

fn describe_step(claim: &LeaseClaim, contents: &Contents) -> String {
    match claim.step(contents) {
        Step::Keep => "hold".to_owned(),
        Step::Blocked(error) => error.to_string(),
        Step::Renew(Renewal { name, lease_id, .. }) => format!("renew {name} by {lease_id}"),
        Step::Write(Write {
            name,
            value,
            revision,
            is_reservation,
            replaces,
        }) => match (revision, replaces, is_reservation) {
            (None, None, _) => format!("take {name}"),
            (None, Some((old, at)), _) => format!("take {name} instead of {old}@{at}"),
            (Some(at), _, false) => format!("write {name}@{at} for {}", value.addresses()),
            (Some(at), _, true) => format!("keep {name}@{at} for {}", value.addresses()),
        },
    }
}

#[test]
fn a_new_node_takes_no_subnet_around_a_node_and_ignores_leases_of_whole_networks() {
    let around =
        r#"{"Network": "192.168.0.0/16", "SubnetMin": "192.168.1.0", "SubnetMax": "192.168.4.0"}"#;
    let leases = [
        ("192.168.1.0-24", "192.168.3.17", 1),
        ("192.168.0.0-16", "192.168.99.1", 2),
        ("192.168.0.0-17", "192.168.99.2", 3),
        ("192.168.128.0-17", "192.168.99.3", 4),
    ];
    // 192.168.2.0/24 contains this node, and 192.168.3.0/24 another one.
    let step = describe_step(&new_node(), &contents(around, &leases));
    assert_eq!(step, "take 192.168.4.0-24");
}

#[test]
fn a_new_node_takes_its_previous_subnet_or_a_free_one() {
    let others = [
        ("10.10.1.0-24", "192.168.2.17", 1),
        ("10.10.3.0-24", "192.168.2.15", 2),
    ];
    let contents = contents(NETWORK, &others);
    let first = describe_step(&new_node(), &contents);
    assert!(
        ["take 10.10.2.0-24", "take 10.10.4.0-24"].contains(&first.as_str()),
        "{first}"
    );
    assert_eq!(
        describe_step(&new_node(), &contents),
        first,
        "the same again"
    );
    let before = |names: &[&str]| LeaseClaim {
        previous: names
            .iter()
            .map(|name| name.parse().expect("a key"))
            .collect(),
        ..new_node()
    };
    assert_eq!(
        describe_step(&before(&["10.10.4.0-24"]), &contents),
        "take 10.10.4.0-24"
    );
    assert_eq!(
        describe_step(&before(&["10.10.2.0-24"]), &contents),
        "take 10.10.2.0-24"
    );
    assert_eq!(
        describe_step(&before(&["10.10.3.0-24", "10.10.2.0-24"]), &contents),
        "take 10.10.2.0-24"
    );
}

#[test]
fn a_lease_with_the_nodes_address_belongs_to_the_node() {
    let own = ("10.10.2.0-24", "192.168.2.16", 5);
    assert_eq!(
        describe_step(&new_node(), &contents(NETWORK, &[own])),
        "write 10.10.2.0-24@1 for 192.168.2.16"
    );
    let reserved = ("10.10.2.0-24", "192.168.2.16", 0);
    assert_eq!(
        describe_step(&new_node(), &contents(NETWORK, &[reserved])),
        "renew 10.10.2.0-24 by 0"
    );
    // A reservation takes precedence over the previous subnet.
    let had = ("10.10.1.0-24", "192.168.2.16", 5);
    for claim in [
        new_node(),
        LeaseClaim {
            is_confirmed: false,
            ..holder()
        },
    ] {
        assert_eq!(
            describe_step(&claim, &contents(NETWORK, &[had, reserved])),
            "renew 10.10.2.0-24 by 0"
        );
    }
    // A lease that the configuration does not allow is replaced; a reservation is not.
    let outside = ("10.10.9.0-24", "192.168.2.16", 5);
    assert!(
        describe_step(&new_node(), &contents(NETWORK, &[outside]))
            .ends_with(" instead of 10.10.9.0-24@1")
    );
    let reserved = ("10.10.9.0-24", "192.168.2.16", 0);
    let step = describe_step(&new_node(), &contents(NETWORK, &[reserved]));
    assert!(
        step.starts_with("take ") && !step.contains("instead"),
        "{step}"
    );
}

#[test]
fn a_held_lease_is_kept() {
    let own = ("10.10.2.0-24", "192.168.2.16", 7);
    assert_eq!(describe_step(&holder(), &contents(NETWORK, &[own])), "hold");
    let due = LeaseClaim {
        is_due: true,
        ..holder()
    };
    assert_eq!(
        describe_step(&due, &contents(NETWORK, &[own])),
        "renew 10.10.2.0-24 by 7"
    );
    let expired = LeaseClaim {
        expired: Some(7),
        ..holder()
    };
    assert_eq!(
        describe_step(&expired, &contents(NETWORK, &[own])),
        "write 10.10.2.0-24@1 for 192.168.2.16"
    );
    assert_eq!(
        describe_step(&holder(), &contents(NETWORK, &[])),
        "take 10.10.2.0-24",
        "it expired"
    );
    // The address changed, while the agent ran or while it was stopped.
    let moved = Addresses {
        ipv4: "192.168.2.66".parse().ok(),
        ipv6: None,
    };
    for is_confirmed in [true, false] {
        let moved = LeaseClaim {
            addresses: moved,
            is_confirmed,
            ..holder()
        };
        assert_eq!(
            describe_step(&moved, &contents(NETWORK, &[own])),
            "write 10.10.2.0-24@1 for 192.168.2.66"
        );
    }
}

// Long: a table of cases.
#[test]
fn a_lease_that_cannot_be_kept_is_blocked_with_a_reason() {
    let stolen = [("10.10.2.0-24", "192.168.2.15", 9)];
    assert_eq!(
        describe_step(&holder(), &contents(NETWORK, &stolen)),
        "the lease of 10.10.2.0-24 was taken over by 192.168.2.15: two nodes use the same subnet"
    );
    // The node's key with its address belongs to it, even if a backup or an administrator wrote
    // it.
    let again = [("10.10.2.0-24", "192.168.2.16", 9)];
    assert_eq!(
        describe_step(&holder(), &contents(NETWORK, &again)),
        "write 10.10.2.0-24@1 for 192.168.2.16"
    );
    let reserved = [("10.10.2.0-24", "192.168.2.16", 0)];
    assert_eq!(
        describe_step(&holder(), &contents(NETWORK, &reserved)),
        "renew 10.10.2.0-24 by 0"
    );
    // Unless the other writer does it again.
    let contested = LeaseClaim {
        contested: Some(9),
        ..holder()
    };
    assert_eq!(
        describe_step(&contested, &contents(NETWORK, &again)),
        "the lease of 10.10.2.0-24 was written by another node with this node's address 192.168.2.16: two nodes use the same subnet"
    );
    let granted = LeaseClaim {
        granted: Some(9),
        ..holder()
    };
    assert_eq!(
        describe_step(&granted, &contents(NETWORK, &again)),
        "hold",
        "the node wrote it itself and did not get the response"
    );
    let older = [
        ("10.10.2.0-23", "192.168.2.15", 9),
        ("10.10.2.0-24", "192.168.2.16", 7),
    ];
    assert!(
        describe_step(&holder(), &contents(NETWORK, &older))
            .contains("192.168.2.15 has held 10.10.2.0-23 for longer")
    );
    let overlapping = [("10.10.2.128-25", "192.168.2.15", 9)];
    assert_eq!(
        describe_step(&holder(), &contents(NETWORK, &overlapping)),
        "the lease of 10.10.2.0-24 is lost, and cannot be acquired again: 10.10.2.128-25 is held by 192.168.2.15"
    );
    let other = r#"{"Network": "10.20.0.0/16"}"#;
    assert!(
        describe_step(&holder(), &contents(other, &[]))
            .starts_with("this node holds 10.10.2.0-24, which the network configuration")
    );
    // A renewal that is due is done all the same.
    let due = LeaseClaim {
        is_due: true,
        ..holder()
    };
    let own = ("10.10.2.0-24", "192.168.2.16", 7);
    for config in [other, "{"] {
        assert_eq!(
            describe_step(&due, &contents(config, &[own])),
            "renew 10.10.2.0-24 by 7"
        );
    }
    // After a restart, the node can take another subnet.
    let restarted = LeaseClaim {
        is_confirmed: false,
        ..holder()
    };
    assert!(describe_step(&restarted, &contents(NETWORK, &stolen)).starts_with("take "));
    assert!(describe_step(&restarted, &contents(other, &[])).starts_with("take 10.20."));
}

#[test]
fn without_a_free_subnet_or_an_address_the_node_is_blocked() {
    let all: Vec<_> = ["10.10.1.0-24", "10.10.2.0-23", "10.10.4.0-24"]
        .into_iter()
        .map(|name| (name, "192.168.2.15", 1))
        .collect();
    assert_eq!(
        describe_step(&new_node(), &contents(NETWORK, &all)),
        "no subnet is free: all 4 from 10.10.1.0/24 to 10.10.4.0/24 are leased"
    );
    assert_eq!(
        describe_step(&new_node(), &Contents::new("/n/")),
        "etcd has no /n/config"
    );
    let nowhere = LeaseClaim {
        addresses: Addresses::default(),
        ..new_node()
    };
    assert_eq!(
        describe_step(&nowhere, &contents(DUAL, &[])),
        "the interface has no IPv4 and no IPv6 address, and the network needs one"
    );
}

const DUAL: &str = r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#;

// Long: a table of cases.
#[test]
fn a_missing_family_does_not_affect_the_other() {
    let warning = Some("the interface has no IPv6 address, and the network needs one".to_owned());
    let contents = |leases: &[(&str, &str, i64)]| contents(DUAL, leases);
    let own = ("10.10.2.0-24", "192.168.2.16", 7);
    // Without an IPv6 address, the lease has IPv4 only.
    let first = describe_step(&new_node(), &contents(&[]));
    assert!(
        first.starts_with("take 10.10.") && !first.contains('&'),
        "{first}"
    );
    assert_eq!(new_node().warning(&contents(&[])), warning);
    assert_eq!(describe_step(&holder(), &contents(&[own])), "hold");
    // When the node gets an IPv6 address, the lease gets an IPv6 subnet and keeps its IPv4
    // subnet.
    let addresses = Addresses {
        ipv6: "fd00::16".parse().ok(),
        ..new_node().addresses
    };
    let grown = LeaseClaim {
        addresses,
        ..holder()
    };
    let step = describe_step(&grown, &contents(&[own]));
    assert!(
        step.starts_with("take 10.10.2.0-24&fd00:") && step.ends_with(" instead of 10.10.2.0-24@1"),
        "{step}"
    );
    let newcomer_with_both = LeaseClaim {
        addresses,
        ..new_node()
    };
    assert_eq!(newcomer_with_both.warning(&contents(&[])), None);
    // If the other family is full, a held lease is kept; a new node gets none until a subnet is
    // free.
    let small = r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/62"}"#;
    let full = |own: Option<(&str, &str, i64)>| {
        let names = [
            "0.0.0.0-0&fd00:0:0:1::-64",
            "0.0.0.0-0&fd00:0:0:2::-64",
            "0.0.0.0-0&fd00:0:0:3::-64",
        ];
        let mut all: Vec<_> = names.map(|name| (name, "192.168.2.15", 1)).into();
        all.extend(own);
        self::contents(small, &all)
    };
    let step = describe_step(&newcomer_with_both, &full(None));
    assert!(
        step.starts_with("no subnet is free: all 3 from fd00:"),
        "{step}"
    );
    assert_eq!(describe_step(&grown, &full(Some(own))), "hold");
    assert!(grown.warning(&full(Some(own))).is_some());
    // A reservation is as people made it.
    let reserved = ("10.10.2.0-24", "192.168.2.16", 0);
    assert_eq!(
        describe_step(&newcomer_with_both, &contents(&[reserved])),
        "renew 10.10.2.0-24 by 0"
    );
    // When the address is removed, the lease stays as it is.
    let both = ("10.10.2.0-24&fd00:0:0:2::-64", "192.168.2.16", 7);
    let held = |addresses| LeaseClaim {
        addresses,
        held: Some(EtcdLease {
            name: both.0.to_owned(),
            addresses: new_node().addresses,
            id: 7,
            expires: None,
            expires_in_boot: None,
        }),
        ..holder()
    };
    assert_eq!(
        describe_step(&held(new_node().addresses), &contents(&[both])),
        "hold"
    );
}

#[test]
fn a_network_that_gets_ipv6_keeps_the_ipv4_subnets_of_its_nodes() {
    let dual = r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#;
    let own = ("10.10.2.0-24", "192.168.2.16", 7);
    let addresses = Addresses {
        ipv6: "fd00::16".parse().ok(),
        ..new_node().addresses
    };
    let claim = LeaseClaim {
        addresses,
        ..new_node()
    };
    let step = describe_step(&claim, &contents(dual, &[own]));
    assert!(
        step.starts_with("take 10.10.2.0-24&fd00:") && step.ends_with(" instead of 10.10.2.0-24@1"),
        "{step}"
    );
}
