//! The table of the fast path: the flowtable, and the rules that add flows to it.
//!
//! It is a table of its own, because writing the firewall's table again would end every flow in it.

use std::time::Duration;

use ipnetwork::IpNetwork;
use kernel::Error;
use kernel::nftables::{
    self, Chain, Family, Field, Hook, ListedRule, Load, Rule, Set, Transaction, ValueType,
};

/// Its name; its family is `inet`.
pub(crate) const TABLE: &str = "hostgw-fast-path";
const FLOWTABLE: &str = "pods";
/// The base chain: which packets are of flows that may be added.
const FORWARD: &str = "forward";
/// Its rules lead TCP and UDP to `ADD_FLOW`.
const PROTOCOLS: &str = "protocols";
/// Adds the flows. A chain of its own, so that it can be written anew without knowing the networks.
const ADD_FLOW: &str = "add-flow";
/// The flows of which a packet in this direction was accepted: from the side that opened the connection, and from
/// the other. Once a flow is added, its packets of both directions skip the rules, so both must have been accepted.
const ACCEPTED: [&str; 2] = ["accepted-original", "accepted-reply"];
/// `IPPROTO_TCP` and `IPPROTO_UDP`
const TCP_AND_UDP: [u8; 2] = [6, 17];
/// How long an accepted packet counts.
const ACCEPTED_TIME: Duration = Duration::from_secs(30);

/// The rules as the kernel lists them, and the comment that says for which networks they are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    comment: Option<String>,
    rules: Vec<Vec<u8>>,
}

impl Listing {
    /// Reads the table. `None` if it does not exist.
    pub(super) fn read() -> Result<Option<Self>, Error> {
        let Some(chain) = nftables::chain(Family::Inet, TABLE, FORWARD)? else {
            return Ok(None);
        };
        let mut rules = Vec::new();
        for chain in [FORWARD, PROTOCOLS, ADD_FLOW] {
            let found = nftables::rules(Family::Inet, TABLE, chain)?;
            rules.extend(found.into_iter().map(ListedRule::into_expressions));
        }
        Ok(Some(Self {
            comment: chain.comment,
            rules,
        }))
    }

    /// True if an agent wrote this table for these networks.
    pub(super) fn is_for(&self, networks: &[IpNetwork]) -> bool {
        self.comment.as_deref() == Some(&comment(networks))
    }
}

/// Writes the table, in place of one that exists, with these devices. Fails with [`Error::is_gone`] if the
/// kernel has no flowtables, or if a device does not exist any more.
pub(super) fn write(networks: &[IpNetwork], devices: &[String]) -> Result<(), Error> {
    let mut transaction = Transaction::new();
    // Flows from the cluster's network, and to it.
    let flow = |network: IpNetwork| {
        let rule = || Rule::new().match_family(network).established();
        [
            rule().from(network).jump(PROTOCOLS),
            rule().to(network).jump(PROTOCOLS),
        ]
    };
    let comment = comment(networks);
    let forward = Chain {
        name: FORWARD,
        hook: Some(Hook::ForwardAccepted),
        comment: &comment,
        rules: networks.iter().copied().flat_map(flow).collect(),
    };
    let inner = |name, rules| Chain {
        name,
        hook: None,
        comment: "",
        rules,
    };
    let protocol = |number| Rule::new().of_protocol(number).jump(ADD_FLOW);
    let add_flow = inner(ADD_FLOW, Vec::new());
    let protocols = inner(PROTOCOLS, TCP_AND_UDP.map(protocol).to_vec());
    transaction.replace_table(Family::Inet, TABLE, &[add_flow, protocols, forward]);
    add_flowtable(&mut transaction, devices);
    transaction.commit("write the table of the fast path")
}

/// Adds a device. The other devices' flows stay.
pub(super) fn add_device(device: &str) -> Result<(), Error> {
    let mut transaction = Transaction::new();
    transaction.add_flowtable_device(Family::Inet, TABLE, FLOWTABLE, device);
    transaction.commit(&format!("add {device} to the fast path"))
}

/// Deletes a device that does not exist any more, or is no longer a port of a pod's bridge.
pub(super) fn delete_device(device: &str) -> Result<(), Error> {
    let mut transaction = Transaction::new();
    transaction.delete_flowtable_device(Family::Inet, TABLE, FLOWTABLE, device);
    match transaction.commit(&format!("delete {device} from the fast path")) {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}

/// Returns the devices that are on the fast path. `None` without the flowtable.
pub(super) fn devices() -> Result<Option<Vec<String>>, Error> {
    nftables::flowtable_devices(Family::Inet, TABLE, FLOWTABLE)
}

/// Sends the next packet of every flow by all rules for forwarded packets. If they accept it, the flow returns to
/// the fast path. Returns false if there is no fast path.
pub(super) fn flush() -> Result<bool, Error> {
    const TRIES: usize = 8;
    for attempt in 1.. {
        let Some(devices) = devices()? else {
            return Ok(false);
        };
        let mut transaction = Transaction::new();
        transaction.delete_rules(Family::Inet, TABLE, ADD_FLOW);
        transaction.delete_flowtable(Family::Inet, TABLE, FLOWTABLE);
        for set in ACCEPTED {
            transaction.delete_set(Family::Inet, TABLE, set);
        }
        add_flowtable(&mut transaction, &devices);
        match transaction.commit("flush the fast path") {
            // A pod was deleted after its device was listed.
            Err(error) if error.is_gone() && attempt < TRIES => {}
            other => return other.map(|()| true),
        }
    }
    unreachable!("the last attempt returns")
}

/// Deletes the table, and with it every flow on the fast path.
pub(crate) fn delete() -> Result<(), Error> {
    let mut transaction = Transaction::new();
    transaction.delete_table(Family::Inet, TABLE);
    transaction.commit("delete the table of the fast path")
}

/// True if the table exists.
pub(crate) fn exists() -> Result<bool, Error> {
    nftables::has_table(Family::Inet, TABLE)
}

fn add_flowtable(transaction: &mut Transaction, devices: &[String]) {
    transaction.ensure_flowtable(Family::Inet, TABLE, FLOWTABLE);
    for device in devices {
        transaction.add_flowtable_device(Family::Inet, TABLE, FLOWTABLE, device);
    }
    for name in ACCEPTED {
        let set = Set {
            name,
            key: &[Field::Number],
            value: ValueType::None,
            expires: Some(ACCEPTED_TIME),
        };
        transaction.ensure_set(Family::Inet, TABLE, &set);
    }
    let flow = Load::ConnectionId;
    let [original, reply] = ACCEPTED;
    let rules = [
        Rule::new().in_direction(false).remember_in(original, flow),
        Rule::new().in_direction(true).remember_in(reply, flow),
        Rule::new()
            .is_in(original, &[flow])
            .is_in(reply, &[flow])
            .offload(FLOWTABLE),
    ];
    for rule in rules {
        transaction.add_rule(Family::Inet, TABLE, ADD_FLOW, &rule);
    }
}

fn comment(networks: &[IpNetwork]) -> String {
    let networks: Vec<_> = networks.iter().map(ToString::to_string).collect();
    format!("established flows of {}", networks.join(" and "))
}
