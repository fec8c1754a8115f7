//! What to do so that this node holds a lease. Pure.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use ipnetwork::IpNetwork;

use super::contents::{Contents, Entry};
use super::format::{Subnets, Value};
use crate::lease::{Addresses, Held};
use crate::net_conf::{NetConf, Space};

/// What this node wants, and what it knows of what it has.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// Its addresses, as its interface has them now.
    pub(super) addresses: Addresses,
    /// The lease that it holds.
    pub(super) held: Option<Held>,
    /// Whether it was seen to hold it since it started.
    pub(super) is_confirmed: bool,
    /// The number of etcd's lease that it was granted last: what is written with it is its own,
    /// even if nobody told.
    pub(super) granted: Option<i64>,
    /// Whether the lease is to be renewed.
    pub(super) is_due: bool,
    /// Subnets that it had before, the best known first.
    pub(super) previous: Vec<Subnets>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: the lease is held as it should be.
    Hold,
    /// Nothing can be done, and why.
    Stuck(String),
    /// Write the lease.
    Write(Write),
}

/// A lease to be written, if nobody else was faster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// Its key, without the prefix.
    pub(super) name: String,
    pub(super) value: Value,
    /// At which revision it was last written; nothing where it must not be there.
    pub(super) revision: Option<i64>,
    pub(super) is_reservation: bool,
    /// Another of ours that goes with it, as of this revision.
    pub(super) instead_of: Option<(String, i64)>,
}

impl Claim {
    /// What to do next.
    pub(super) fn step(&self, contents: &Contents) -> Step {
        // Whatever the configuration says meanwhile: pods use it.
        if let Some(step) = self.renew(contents) {
            return step;
        }
        let network = match contents.network() {
            Ok(network) => network,
            Err(reason) => return Step::Stuck(reason),
        };
        let value = match Value::new(self.addresses, network) {
            Ok(value) => value,
            Err(family) => {
                return Step::Stuck(format!(
                    "the interface has no {family} address, and the network needs one"
                ));
            }
        };
        if let Some(held) = self.held.as_ref().filter(|_| self.is_confirmed) {
            return self.keep(held, contents, network, &value);
        }
        let ours = self.ours(contents);
        let fits = |entry: &Entry| entry.subnets.is_some_and(|subnets| subnets.fit(network));
        if let Some((name, entry)) = ours.iter().find(|(_, entry)| fits(entry)) {
            return write(name, entry, value);
        }
        // A reservation is not ours to delete.
        let old = ours.iter().find(|(_, entry)| entry.stamp.etcd_lease != 0);
        let instead_of = old.map(|(name, entry)| ((*name).to_owned(), entry.stamp.modified));
        let own = instead_of.as_ref().map(|(name, _)| name.as_str());
        let mut previous = self.previous.clone();
        previous.extend(old.and_then(|(_, entry)| entry.subnets));
        match self.choose(contents, network, &previous, own) {
            Ok(subnets) => take(subnets, value, instead_of),
            Err(space) => Step::Stuck(format!(
                "no subnet is free: all {} from {space} are leased",
                space.count()
            )),
        }
    }

    /// This node's leases, the one that it should have first: of its address before one that it
    /// wrote when it had another, a reservation before others, what it had last before others.
    pub(super) fn ours<'a>(&self, contents: &'a Contents) -> Vec<(&'a str, &'a Entry)> {
        let is_of_address = |entry: &Entry| {
            let theirs = entry.value.as_ref().ok().map(Value::addresses);
            theirs.is_some_and(|theirs| theirs.are_of(self.addresses))
        };
        let as_written = |name: &str, entry: &Entry| {
            // Somebody may have made a reservation of what this node had.
            entry.stamp.etcd_lease != 0 && self.wrote(name, entry)
        };
        let all = contents.entries();
        let ours = all.filter(|(name, entry)| is_of_address(entry) || as_written(name, entry));
        let mut ours: Vec<_> = ours.collect();
        ours.sort_by_key(|(_, entry)| {
            let at = |subnets| self.previous.iter().position(|other| *other == subnets);
            let at = entry.subnets.and_then(at).unwrap_or(usize::MAX);
            (!is_of_address(entry), entry.stamp.etcd_lease != 0, at)
        });
        ours
    }

    /// Whether a lease is word for word what this node wrote.
    fn wrote(&self, name: &str, entry: &Entry) -> bool {
        let addresses = entry.value.as_ref().ok().map(Value::addresses);
        self.held.as_ref().is_some_and(|held| {
            held.name == name
                && addresses == Some(held.addresses)
                && (held.etcd_lease == entry.stamp.etcd_lease
                    || self.granted == Some(entry.stamp.etcd_lease))
        })
    }

    /// Renews what is held and due, as it is.
    fn renew(&self, contents: &Contents) -> Option<Step> {
        let held = self
            .held
            .as_ref()
            .filter(|_| self.is_confirmed && self.is_due)?;
        let entry = contents.get(&held.name)?;
        let value = entry.value.as_ref().ok()?;
        self.wrote(&held.name, entry)
            .then(|| write(&held.name, entry, value.clone()))
    }

    /// Keeps the lease that is held.
    fn keep(&self, held: &Held, contents: &Contents, network: &NetConf, value: &Value) -> Step {
        let name = &held.name;
        let subnets = name
            .parse::<Subnets>()
            .ok()
            .filter(|subnets| subnets.fit(network));
        let Some(subnets) = subnets else {
            // For people to say when that ends.
            return Step::Stuck(format!(
                "this node holds {name}, which the configuration does not allow any more; drain the node and restart the agent"
            ));
        };
        let other = contents.overlapping(subnets, Some(name));
        let Some(entry) = contents.get(name) else {
            return match other {
                None => take(subnets, value.clone(), None),
                Some((other, entry)) => Step::Stuck(format!(
                    "the lease of {name} is lost, and cannot be taken again: {other} is held by {}",
                    holder(entry)
                )),
            };
        };
        let by_address = entry.value.as_ref().ok().map(Value::addresses) == Some(held.addresses);
        if !self.wrote(name, entry) && by_address {
            return Step::Stuck(format!(
                "the lease of {name} was written by another node with this node's address {}: two nodes have one subnet",
                held.addresses
            ));
        }
        if !self.wrote(name, entry) {
            return Step::Stuck(format!(
                "the lease of {name} was taken over by {}: two nodes have one subnet",
                holder(entry)
            ));
        }
        match other {
            Some((other, older)) if older.stamp.created < entry.stamp.created => {
                Step::Stuck(format!(
                    "this node holds {name}, and {} has held {other} for longer: two nodes have one subnet",
                    holder(older)
                ))
            }
            _ if entry.value.as_ref() != Ok(value) => write(name, entry, value.clone()),
            _ => Step::Hold,
        }
    }

    /// A free subnet of each family: one that the node had before, else one that its address
    /// leads to. Fails with the space that is full.
    fn choose(
        &self,
        contents: &Contents,
        network: &NetConf,
        previous: &[Subnets],
        own: Option<&str>,
    ) -> Result<Subnets, Space> {
        let mut subnets = Subnets {
            ipv4: None,
            ipv6: None,
        };
        for space in network.spaces() {
            let is_free = contents.free(space, own);
            let before = previous.iter().flat_map(|subnets| subnets.all());
            let mut before = before.filter(|subnet| space.fits(*subnet) && is_free(*subnet));
            let count = space.count();
            // The same place in each family, where there is room.
            let begin = self.seed() % count;
            let mut others = (0..count).map(|i| space.subnet((begin + i) % count));
            let subnet = before
                .next()
                .or_else(|| others.find(|subnet| is_free(*subnet)));
            match subnet.ok_or(space)? {
                IpNetwork::V4(v4) => subnets.ipv4 = Some(v4),
                IpNetwork::V6(v6) => subnets.ipv6 = Some(v6),
            }
        }
        Ok(subnets)
    }

    /// Where nodes begin to look. Each somewhere else, so that many new ones at once do not all
    /// want the same.
    fn seed(&self) -> u128 {
        let mut hasher = DefaultHasher::new();
        self.addresses.hash(&mut hasher);
        hasher.finish().into()
    }
}

fn take(subnets: Subnets, value: Value, instead_of: Option<(String, i64)>) -> Step {
    Step::Write(Write {
        name: subnets.to_string(),
        value,
        revision: None,
        is_reservation: false,
        instead_of,
    })
}

fn write(name: &str, entry: &Entry, value: Value) -> Step {
    Step::Write(Write {
        name: name.to_owned(),
        value,
        revision: Some(entry.stamp.modified),
        is_reservation: entry.stamp.etcd_lease == 0,
        instead_of: None,
    })
}

fn holder(entry: &Entry) -> String {
    match &entry.value {
        Ok(value) => value.addresses().to_string(),
        Err(reason) => format!("somebody unknown ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::contents::Stamp;
    use super::*;

    const NETWORK: &str = r#"{"Network": "10.10.0.0/16", "SubnetMax": "10.10.4.0"}"#;

    /// What etcd holds: each key with its node's address, and the number of etcd's own lease.
    fn contents(config: &str, leases: &[(&str, &str, i64)]) -> Contents {
        let mut contents = Contents::new("/n");
        contents.insert("/n/config", config.as_bytes(), Stamp::default());
        for (revision, (name, address, etcd_lease)) in (1..).zip(leases) {
            let stamp = Stamp {
                created: revision,
                modified: revision,
                etcd_lease: *etcd_lease,
            };
            let text = serde_json::to_string(&value(address)).expect("written");
            contents.insert(&format!("/n/subnets/{name}"), text.as_bytes(), stamp);
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

    /// A node that has just started, at 192.168.2.16.
    fn newcomer() -> Claim {
        Claim {
            addresses: Addresses {
                ipv4: "192.168.2.16".parse().ok(),
                ipv6: None,
            },
            held: None,
            is_confirmed: false,
            granted: None,
            is_due: false,
            previous: Vec::new(),
        }
    }

    /// One that holds 10.10.2.0/24 by etcd's lease 7, and knows it.
    fn holder() -> Claim {
        Claim {
            held: Some(Held {
                name: "10.10.2.0-24".to_owned(),
                addresses: newcomer().addresses,
                etcd_lease: 7,
            }),
            is_confirmed: true,
            ..newcomer()
        }
    }

    fn said(claim: &Claim, contents: &Contents) -> String {
        match claim.step(contents) {
            Step::Hold => "hold".to_owned(),
            Step::Stuck(reason) => reason,
            Step::Write(Write {
                name,
                value,
                revision,
                is_reservation,
                instead_of,
            }) => match (revision, instead_of, is_reservation) {
                (None, None, _) => format!("take {name}"),
                (None, Some((old, at)), _) => format!("take {name} instead of {old}@{at}"),
                (Some(at), _, false) => format!("write {name}@{at} for {}", value.addresses()),
                (Some(at), _, true) => format!("keep {name}@{at} for {}", value.addresses()),
            },
        }
    }

    #[test]
    fn a_newcomer_takes_what_it_had_and_else_what_is_free() {
        let others = [
            ("10.10.1.0-24", "192.168.2.17", 1),
            ("10.10.3.0-24", "192.168.2.15", 2),
        ];
        let contents = contents(NETWORK, &others);
        let first = said(&newcomer(), &contents);
        assert!(
            ["take 10.10.2.0-24", "take 10.10.4.0-24"].contains(&first.as_str()),
            "{first}"
        );
        assert_eq!(said(&newcomer(), &contents), first, "the same again");
        let before = |names: &[&str]| Claim {
            previous: names
                .iter()
                .map(|name| name.parse().expect("a key"))
                .collect(),
            ..newcomer()
        };
        assert_eq!(
            said(&before(&["10.10.4.0-24"]), &contents),
            "take 10.10.4.0-24"
        );
        assert_eq!(
            said(&before(&["10.10.2.0-24"]), &contents),
            "take 10.10.2.0-24"
        );
        assert_eq!(
            said(&before(&["10.10.3.0-24", "10.10.2.0-24"]), &contents),
            "take 10.10.2.0-24"
        );
    }

    #[test]
    fn a_lease_of_its_address_is_its_own() {
        let own = ("10.10.2.0-24", "192.168.2.16", 5);
        assert_eq!(
            said(&newcomer(), &contents(NETWORK, &[own])),
            "write 10.10.2.0-24@1 for 192.168.2.16"
        );
        let reserved = ("10.10.2.0-24", "192.168.2.16", 0);
        assert_eq!(
            said(&newcomer(), &contents(NETWORK, &[reserved])),
            "keep 10.10.2.0-24@1 for 192.168.2.16"
        );
        // A reservation comes before what the node had.
        let had = ("10.10.1.0-24", "192.168.2.16", 5);
        for claim in [
            newcomer(),
            Claim {
                is_confirmed: false,
                ..holder()
            },
        ] {
            assert_eq!(
                said(&claim, &contents(NETWORK, &[had, reserved])),
                "keep 10.10.2.0-24@2 for 192.168.2.16"
            );
        }
        // One that the configuration does not allow is given up for another; a reservation is not.
        let outside = ("10.10.9.0-24", "192.168.2.16", 5);
        assert!(
            said(&newcomer(), &contents(NETWORK, &[outside]))
                .ends_with(" instead of 10.10.9.0-24@1")
        );
        let reserved = ("10.10.9.0-24", "192.168.2.16", 0);
        assert!(!said(&newcomer(), &contents(NETWORK, &[reserved])).contains("instead"));
    }

    #[test]
    fn what_is_held_is_kept() {
        let own = ("10.10.2.0-24", "192.168.2.16", 7);
        assert_eq!(said(&holder(), &contents(NETWORK, &[own])), "hold");
        let due = Claim {
            is_due: true,
            ..holder()
        };
        assert_eq!(
            said(&due, &contents(NETWORK, &[own])),
            "write 10.10.2.0-24@1 for 192.168.2.16"
        );
        assert_eq!(
            said(&holder(), &contents(NETWORK, &[])),
            "take 10.10.2.0-24",
            "it ran out"
        );
        // Another address, even one that the node got while it was off.
        let moved = Addresses {
            ipv4: "192.168.2.66".parse().ok(),
            ipv6: None,
        };
        for is_confirmed in [true, false] {
            let moved = Claim {
                addresses: moved,
                is_confirmed,
                ..holder()
            };
            assert_eq!(
                said(&moved, &contents(NETWORK, &[own])),
                "write 10.10.2.0-24@1 for 192.168.2.66"
            );
        }
    }

    #[test]
    fn what_cannot_be_kept_is_said() {
        let stolen = [("10.10.2.0-24", "192.168.2.15", 9)];
        assert_eq!(
            said(&holder(), &contents(NETWORK, &stolen)),
            "the lease of 10.10.2.0-24 was taken over by 192.168.2.15: two nodes have one subnet"
        );
        let twin = [("10.10.2.0-24", "192.168.2.16", 9)];
        assert_eq!(
            said(&holder(), &contents(NETWORK, &twin)),
            "the lease of 10.10.2.0-24 was written by another node with this node's address 192.168.2.16: two nodes have one subnet"
        );
        let granted = Claim {
            granted: Some(9),
            ..holder()
        };
        assert_eq!(
            said(&granted, &contents(NETWORK, &twin)),
            "hold",
            "it was itself, and was not told"
        );
        let older = [
            ("10.10.2.0-23", "192.168.2.15", 9),
            ("10.10.2.0-24", "192.168.2.16", 7),
        ];
        assert!(
            said(&holder(), &contents(NETWORK, &older))
                .contains("192.168.2.15 has held 10.10.2.0-23 for longer")
        );
        let overlapping = [("10.10.2.128-25", "192.168.2.15", 9)];
        assert_eq!(
            said(&holder(), &contents(NETWORK, &overlapping)),
            "the lease of 10.10.2.0-24 is lost, and cannot be taken again: 10.10.2.128-25 is held by 192.168.2.15"
        );
        let other = r#"{"Network": "10.20.0.0/16"}"#;
        assert!(
            said(&holder(), &contents(other, &[]))
                .starts_with("this node holds 10.10.2.0-24, which the configuration")
        );
        // What is due is renewed all the same.
        let due = Claim {
            is_due: true,
            ..holder()
        };
        let own = ("10.10.2.0-24", "192.168.2.16", 7);
        for config in [other, "{"] {
            assert_eq!(
                said(&due, &contents(config, &[own])),
                "write 10.10.2.0-24@1 for 192.168.2.16"
            );
        }
        // After a restart there is no reason to insist.
        let restarted = Claim {
            is_confirmed: false,
            ..holder()
        };
        assert!(said(&restarted, &contents(NETWORK, &stolen)).starts_with("take "));
        assert!(said(&restarted, &contents(other, &[])).starts_with("take 10.20."));
    }

    #[test]
    fn without_a_subnet_or_an_address_it_is_stuck() {
        let all: Vec<_> = ["10.10.1.0-24", "10.10.2.0-23", "10.10.4.0-24"]
            .into_iter()
            .map(|name| (name, "192.168.2.15", 1))
            .collect();
        assert_eq!(
            said(&newcomer(), &contents(NETWORK, &all)),
            "no subnet is free: all 4 from 10.10.1.0/24 to 10.10.4.0/24 are leased"
        );
        assert_eq!(
            said(&newcomer(), &Contents::new("/n")),
            "etcd has no /n/config"
        );
        let dual = r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#;
        assert_eq!(
            said(&newcomer(), &contents(dual, &[])),
            "the interface has no IPv6 address, and the network needs one"
        );
    }

    #[test]
    fn a_network_that_gets_ipv6_leaves_nodes_their_ipv4_subnets() {
        let dual = r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#;
        let own = ("10.10.2.0-24", "192.168.2.16", 7);
        let addresses = Addresses {
            ipv6: "fd00::16".parse().ok(),
            ..newcomer().addresses
        };
        let claim = Claim {
            addresses,
            ..newcomer()
        };
        let step = said(&claim, &contents(dual, &[own]));
        assert!(
            step.starts_with("take 10.10.2.0-24&fd00:")
                && step.ends_with(" instead of 10.10.2.0-24@1"),
            "{step}"
        );
    }
}
