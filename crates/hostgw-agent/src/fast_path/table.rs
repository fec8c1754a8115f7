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
/// The time for which an accepted packet counts.
const ACCEPTED_TIME: Duration = Duration::from_secs(5);

/// In each family, the cluster's network and this node's subnet.
pub(super) type Networks = [(IpNetwork, IpNetwork)];

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

    /// True if this release of the agent wrote this table for these networks, and all its rules are there.
    pub(super) fn is_for(&self, networks: &Networks) -> bool {
        let count = rules(networks).iter().map(Vec::len).sum::<usize>();
        self.comment.as_deref() == Some(&comment(networks)) && self.rules.len() == count
    }
}

/// Writes the table, in place of one that exists, without devices. Fails with [`Error::is_gone`] if the kernel has
/// no flowtables.
pub(super) fn write(networks: &Networks) -> Result<(), Error> {
    let mut transaction = Transaction::new();
    let [forward, protocols, _] = rules(networks);
    let comment = comment(networks);
    let forward = Chain {
        name: FORWARD,
        hook: Some(Hook::ForwardAccepted),
        comment: &comment,
        rules: forward,
    };
    let inner = |name, rules| Chain {
        name,
        hook: None,
        comment: "",
        rules,
    };
    let add_flow = inner(ADD_FLOW, Vec::new());
    let protocols = inner(PROTOCOLS, protocols);
    transaction.replace_table(Family::Inet, TABLE, &[add_flow, protocols, forward]);
    add_flowtable(&mut transaction, &[]);
    transaction.commit("write the table of the fast path")
}

/// The rules of [`FORWARD`], [`PROTOCOLS`] and [`ADD_FLOW`].
fn rules(networks: &Networks) -> [Vec<Rule>; 3] {
    let flow = |(network, own): &(IpNetwork, IpNetwork)| {
        let rule = || Rule::new().match_family(*network).established();
        [
            // Pods of one node are on one bridge, unless a service is between them.
            rule()
                .from(*own)
                .to(*own)
                .not_translated()
                .return_from_chain(),
            rule().from(*network).jump(PROTOCOLS),
            rule().to(*network).jump(PROTOCOLS),
        ]
    };
    let protocol = |number| Rule::new().of_protocol(number).jump(ADD_FLOW);
    let flow_id = Load::ConnectionId;
    let [original, reply] = ACCEPTED;
    let add_flow = [
        Rule::new()
            .in_direction(false)
            .remember_in(original, flow_id),
        Rule::new().in_direction(true).remember_in(reply, flow_id),
        Rule::new()
            .is_in(original, &[flow_id])
            .is_in(reply, &[flow_id])
            .offload(FLOWTABLE),
    ];
    [
        networks.iter().flat_map(flow).collect(),
        TCP_AND_UDP.map(protocol).to_vec(),
        add_flow.to_vec(),
    ]
}

/// Adds a device. The other devices' flows stay.
pub(super) fn add_device(device: &str) -> Result<(), Error> {
    let mut transaction = Transaction::new();
    transaction.add_flowtable_device(Family::Inet, TABLE, FLOWTABLE, device);
    transaction.commit(&format!("add {device} to the fast path"))
}

/// Deletes devices that do not exist any more, or are no longer ports of a pod's bridge.
pub(super) fn delete_devices(devices: &[&String]) -> Result<(), Error> {
    let delete = |devices: &[&String]| {
        let mut transaction = Transaction::new();
        for device in devices {
            transaction.delete_flowtable_device(Family::Inet, TABLE, FLOWTABLE, device);
        }
        transaction.commit("delete devices from the fast path")
    };
    // Each deletion waits for some milliseconds, so all are in one transaction, unless the kernel deletes one first.
    match delete(devices) {
        Err(error) if error.is_gone() => devices.iter().try_for_each(|device| {
            delete(&[*device]).or_else(|error| if error.is_gone() { Ok(()) } else { Err(error) })
        }),
        other => other,
    }
}

/// Returns the devices that are on the fast path. `None` without the flowtable.
pub(super) fn devices() -> Result<Option<Vec<String>>, Error> {
    nftables::flowtable_devices(Family::Inet, TABLE, FLOWTABLE)
}

/// Makes the next packets of every flow pass all rules. If they accept the packets, the flow returns to the fast
/// path. Returns false if there is no fast path.
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
pub(super) fn exists() -> Result<bool, Error> {
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
    let [_, _, add_flow] = rules(&[]);
    for rule in add_flow {
        transaction.add_rule(Family::Inet, TABLE, ADD_FLOW, &rule);
    }
}

/// The comment of the base chain. It differs if the rules do.
fn comment(networks: &Networks) -> String {
    let text = format!("{:?}", rules(networks));
    format!("fast path, rules {:016x}", util::fnv1a_64(text.as_bytes()))
}
