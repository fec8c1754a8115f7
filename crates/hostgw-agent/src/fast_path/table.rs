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
/// The base chain of flows that may be added.
const FORWARD: &str = "forward";
/// Its rules lead TCP and UDP to `ADD_FLOW`.
const PROTOCOLS: &str = "protocols";
/// Adds the flows of which packets in both directions were accepted.
const ADD_FLOW: &str = "add-flow";
/// The base chain of packets that all filters accepted.
const POSTROUTING: &str = "postrouting";
/// Remembers the flows of those that were forwarded.
const REMEMBER: &str = "remember";
/// The chains in the order in which they can be created. The first two use sets and the flowtable, and none of the
/// networks, so that they can be written anew together.
const CHAINS: [&str; 5] = [ADD_FLOW, REMEMBER, PROTOCOLS, FORWARD, POSTROUTING];
/// The flows of which a packet in this direction was forwarded: from the side that opened the connection, and from
/// the other.
const FORWARDED: [&str; 2] = ["forwarded-original", "forwarded-reply"];
/// Those whose packet all filters accepted. Once a flow is added, its packets of both directions skip the rules, so
/// both must have been forwarded and accepted. IPVS, for example, forwards answers only.
const ACCEPTED: [&str; 2] = ["accepted-original", "accepted-reply"];
/// `IPPROTO_TCP` and `IPPROTO_UDP`
const TCP_AND_UDP: [u8; 2] = [6, 17];
/// The time for which a packet counts, since it was forwarded or accepted.
const REMEMBERED_TIME: Duration = Duration::from_secs(5);

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
        for chain in CHAINS {
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
    let comment = comment(networks);
    let chain = |(name, rules)| Chain {
        name,
        hook: match name {
            FORWARD => Some(Hook::ForwardAccepted),
            POSTROUTING => Some(Hook::PostroutingAccepted),
            _ => None,
        },
        comment: if name == FORWARD { &comment } else { "" },
        rules,
    };
    let [_, _, protocols, forward, postrouting] = rules(networks);
    let chains = [vec![], vec![], protocols, forward, postrouting];
    let chains: Vec<_> = CHAINS.into_iter().zip(chains).map(chain).collect();
    transaction.replace_table(Family::Inet, TABLE, &chains);
    add_flowtable(&mut transaction, &[]);
    transaction.commit("write the table of the fast path")
}

/// The rules of [`CHAINS`].
fn rules(networks: &Networks) -> [Vec<Rule>; 5] {
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
    let of_direction = |number| Rule::new().in_direction(number == 1);
    let forwarded = |number: usize| of_direction(number).remember_in(FORWARDED[number], flow_id);
    let accepted = |number: usize| {
        of_direction(number)
            .is_in(FORWARDED[number], &[flow_id])
            .remember_in(ACCEPTED[number], flow_id)
    };
    let add_flow = Rule::new()
        .is_in(ACCEPTED[0], &[flow_id])
        .is_in(ACCEPTED[1], &[flow_id])
        .offload(FLOWTABLE);
    [
        vec![forwarded(0), forwarded(1), add_flow],
        [0, 1].map(accepted).to_vec(),
        TCP_AND_UDP.map(protocol).to_vec(),
        networks.iter().flat_map(flow).collect(),
        // Packets of the node itself end here, after as little work as possible. A service between pods of one node
        // may be translated on the bridge.
        vec![
            Rule::new()
                .has_input_interface()
                .established()
                .jump(REMEMBER),
            Rule::new().translated().established().jump(REMEMBER),
        ],
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
        for chain in [ADD_FLOW, REMEMBER] {
            transaction.delete_rules(Family::Inet, TABLE, chain);
        }
        transaction.delete_flowtable(Family::Inet, TABLE, FLOWTABLE);
        for set in FORWARDED.into_iter().chain(ACCEPTED) {
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
    for name in FORWARDED.into_iter().chain(ACCEPTED) {
        let set = Set {
            name,
            key: &[Field::Number],
            value: ValueType::None,
            expires: Some(REMEMBERED_TIME),
        };
        transaction.ensure_set(Family::Inet, TABLE, &set);
    }
    let [add_flow, remember, ..] = rules(&[]);
    for (chain, rules) in [(ADD_FLOW, add_flow), (REMEMBER, remember)] {
        for rule in rules {
            transaction.add_rule(Family::Inet, TABLE, chain, &rule);
        }
    }
}

/// The comment of the base chain. It differs if the rules do.
fn comment(networks: &Networks) -> String {
    let text = format!("{:?}", rules(networks));
    format!("fast path, rules {:016x}", util::fnv1a_64(text.as_bytes()))
}
