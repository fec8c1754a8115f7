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
    /// The number of a lease of etcd's that has run out.
    pub(super) ended: Option<i64>,
    /// The number of another's, which took the place of ours again when we had put that back: a node
    /// with this node's address lives.
    pub(super) contested: Option<i64>,
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
    /// Keep the lease alive as it stands there.
    Renew(Renew),
    /// Write the lease.
    Write(Write),
}

/// A lease that says what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Renew {
    /// Its key, without the prefix.
    pub(super) name: String,
    pub(super) addresses: Addresses,
    /// The number of etcd's own lease; 0 for a reservation, which needs no renewing.
    pub(super) etcd_lease: i64,
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
        if let Some(step) = self.renew_due(contents) {
            return step;
        }
        let network = match contents.network() {
            Ok(network) => network,
            Err(reason) => return Step::Stuck(reason),
        };
        if let Some(held) = self.held.as_ref().filter(|_| self.is_confirmed) {
            return self.keep(held, contents, network);
        }
        let ours = self.ours(contents);
        let fits = |entry: &Entry| {
            let subnets = entry.subnets.filter(|subnets| subnets.fit(network))?;
            // A reservation is as people made it.
            let is_whole = entry.stamp.etcd_lease == 0
                || !self.lacks_family(subnets, network)
                || Self::is_full_beside(contents, network, subnets);
            is_whole.then_some(subnets)
        };
        let mut fitting = ours
            .iter()
            .filter_map(|(name, entry)| Some((name, entry, fits(entry)?)));
        if let Some((name, entry, subnets)) = fitting.next() {
            return Self::settle(name, entry, &self.value(subnets, entry));
        }
        // A reservation is not ours to delete.
        let old = ours.iter().find(|(_, entry)| entry.stamp.etcd_lease != 0);
        let instead_of = old.map(|(name, entry)| ((*name).to_owned(), entry.stamp.modified));
        let mut previous = self.previous.clone();
        previous.extend(old.and_then(|(_, entry)| entry.subnets));
        self.take_new(contents, network, &previous, instead_of)
    }

    /// Takes a subnet of each family that the network has and this node has an address of. The lack of
    /// one family takes nothing from the other.
    fn take_new(
        &self,
        contents: &Contents,
        network: &NetConf,
        previous: &[Subnets],
        instead_of: Option<(String, i64)>,
    ) -> Step {
        if self.lacking(network).len() == network.spaces().count() {
            return Step::Stuck(lack(&self.lacking(network)));
        }
        let own = instead_of.as_ref().map(|(name, _)| name.as_str());
        match self.choose(contents, network, previous, own) {
            Ok(subnets) => take(subnets, Value::new(subnets, self.addresses), instead_of),
            Err(space) => Step::Stuck(format!(
                "no subnet is free: all {} from {space} are leased",
                space.count()
            )),
        }
    }

    /// What is wrong that leaves the other family its network: the families that the network has, and
    /// this node has no address of.
    pub(super) fn warning(&self, contents: &Contents) -> Option<String> {
        let network = contents.network().ok()?;
        let lacking = self.lacking(network);
        if !lacking.is_empty() {
            return Some(lack(&lacking));
        }
        let subnets = self.held.as_ref()?.name.parse::<Subnets>().ok()?;
        let is_partial = self.lacks_family(subnets, network);
        is_partial.then(|| {
            format!(
                "this node holds {subnets} alone: no subnet of the other family is free, or it is a reservation"
            )
        })
    }

    fn lacking(&self, network: &NetConf) -> Vec<&'static str> {
        let families = [
            (
                "IPv4",
                network.ipv4.is_some(),
                self.addresses.ipv4.is_some(),
            ),
            (
                "IPv6",
                network.ipv6.is_some(),
                self.addresses.ipv6.is_some(),
            ),
        ];
        let lacking = families.iter().filter(|(_, wanted, has)| *wanted && !has);
        lacking.map(|(family, ..)| *family).collect()
    }

    /// Whether this node could have a subnet of a family that is not among `subnets`.
    fn lacks_family(&self, subnets: Subnets, network: &NetConf) -> bool {
        let ipv4 = network.ipv4.is_some() && self.addresses.ipv4.is_some();
        let ipv6 = network.ipv6.is_some() && self.addresses.ipv6.is_some();
        ipv4 && subnets.ipv4.is_none() || ipv6 && subnets.ipv6.is_none()
    }

    /// Whether no subnet is free of a family that is not among `subnets`.
    fn is_full_beside(contents: &Contents, network: &NetConf, subnets: Subnets) -> bool {
        let mut others = network.spaces().filter(|space| {
            let is_had = |subnet: IpNetwork| subnet.is_ipv4() == space.network.is_ipv4();
            !subnets.all().any(is_had)
        });
        others.any(|space| {
            let is_free = contents.free(space, None);
            !(0..space.count()).any(|i| is_free(space.subnet(i)))
        })
    }

    /// What a lease of these subnets is to say. An address that is gone for the moment stays there.
    fn value(&self, subnets: Subnets, entry: &Entry) -> Value {
        let said = entry
            .value
            .as_ref()
            .map(Value::addresses)
            .unwrap_or_default();
        let addresses = Addresses {
            ipv4: self.addresses.ipv4.or(said.ipv4),
            ipv6: self.addresses.ipv6.or(said.ipv6),
        };
        Value::new(subnets, addresses)
    }

    /// Has an entry of ours say `value` by a lease of ours, or, where it is a reservation, stay one.
    fn settle(name: &str, entry: &Entry, value: &Value) -> Step {
        if entry.stamp.etcd_lease == 0 && entry.value.as_ref() == Ok(value) {
            return renew(name, entry, value);
        }
        write(name, entry, value.clone())
    }

    /// Whether an entry of this node's was written by somebody else: another node with its address, a
    /// backup that was restored, people.
    pub(super) fn is_foreign(&self, held: &Held, entry: &Entry) -> bool {
        let etcd_lease = entry.stamp.etcd_lease;
        let is_ours = etcd_lease == held.etcd_lease || self.granted == Some(etcd_lease);
        etcd_lease != 0 && !is_ours && self.is_own(held, entry)
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

    /// Whether an entry is this node's, whoever wrote it: it has this node's address.
    fn is_own(&self, held: &Held, entry: &Entry) -> bool {
        let said = entry.value.as_ref().ok().map(Value::addresses);
        said.is_some_and(|said| said == held.addresses || said.are_of(self.addresses))
    }

    /// Renews what is held and due, as it is.
    fn renew_due(&self, contents: &Contents) -> Option<Step> {
        let held = self
            .held
            .as_ref()
            .filter(|_| self.is_confirmed && self.is_due)?;
        let entry = contents.get(&held.name)?;
        let value = entry.value.as_ref().ok()?;
        if !self.is_own(held, entry) || self.is_foreign(held, entry) {
            return None;
        }
        Some(if self.ended == Some(entry.stamp.etcd_lease) {
            write(&held.name, entry, value.clone())
        } else {
            renew(&held.name, entry, value)
        })
    }

    /// Keeps the lease that is held.
    fn keep(&self, held: &Held, contents: &Contents, network: &NetConf) -> Step {
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
            let addresses = Addresses {
                ipv4: self.addresses.ipv4.or(held.addresses.ipv4),
                ipv6: self.addresses.ipv6.or(held.addresses.ipv6),
            };
            return match other {
                None => take(subnets, Value::new(subnets, addresses), None),
                Some((other, entry)) => Step::Stuck(format!(
                    "the lease of {name} is lost, and cannot be taken again: {other} is held by {}",
                    holder(entry)
                )),
            };
        };
        if !self.is_own(held, entry) {
            return Step::Stuck(format!(
                "the lease of {name} was taken over by {}: two nodes have one subnet",
                holder(entry)
            ));
        }
        if self.is_foreign(held, entry) && self.contested == Some(entry.stamp.etcd_lease) {
            return Step::Stuck(format!(
                "the lease of {name} was written by another node with this node's address {}: two nodes have one subnet",
                held.addresses
            ));
        }
        if let Some((other, older)) = other.filter(|(_, o)| o.stamp.created < entry.stamp.created) {
            return Step::Stuck(format!(
                "this node holds {name}, and {} has held {other} for longer: two nodes have one subnet",
                holder(older)
            ));
        }
        // An address of another family came later than the lease.
        if self.lacks_family(subnets, network)
            && entry.stamp.etcd_lease != 0
            && !Self::is_full_beside(contents, network, subnets)
        {
            let instead_of = Some((name.clone(), entry.stamp.modified));
            return self.take_new(contents, network, &[subnets], instead_of);
        }
        let value = self.value(subnets, entry);
        let is_known = entry.stamp.etcd_lease == held.etcd_lease
            || self.granted == Some(entry.stamp.etcd_lease);
        if is_known && entry.value.as_ref() == Ok(&value) && self.ended != Some(held.etcd_lease) {
            return Step::Hold;
        }
        Self::settle(name, entry, &value)
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
        let lacking = self.lacking(network);
        let has_address = |space: &Space| {
            let family = if space.network.is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            };
            !lacking.contains(&family)
        };
        for space in network.spaces().filter(has_address) {
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

fn lack(families: &[&str]) -> String {
    let families = families.join(" and no ");
    format!("the interface has no {families} address, and the network needs one")
}

fn renew(name: &str, entry: &Entry, value: &Value) -> Step {
    Step::Renew(Renew {
        name: name.to_owned(),
        addresses: value.addresses(),
        etcd_lease: entry.stamp.etcd_lease,
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
        let mut contents = Contents::new("/n/");
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
            ended: None,
            contested: None,
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
                expires: None,
            }),
            is_confirmed: true,
            ..newcomer()
        }
    }

    fn said(claim: &Claim, contents: &Contents) -> String {
        match claim.step(contents) {
            Step::Hold => "hold".to_owned(),
            Step::Stuck(reason) => reason,
            Step::Renew(Renew {
                name, etcd_lease, ..
            }) => format!("renew {name} by {etcd_lease}"),
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
            "renew 10.10.2.0-24 by 0"
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
                "renew 10.10.2.0-24 by 0"
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
            "renew 10.10.2.0-24 by 7"
        );
        let ended = Claim {
            ended: Some(7),
            ..holder()
        };
        assert_eq!(
            said(&ended, &contents(NETWORK, &[own])),
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
        // Its own key with its own address is its own, whoever wrote it: a backup, or people.
        let again = [("10.10.2.0-24", "192.168.2.16", 9)];
        assert_eq!(
            said(&holder(), &contents(NETWORK, &again)),
            "write 10.10.2.0-24@1 for 192.168.2.16"
        );
        let reserved = [("10.10.2.0-24", "192.168.2.16", 0)];
        assert_eq!(
            said(&holder(), &contents(NETWORK, &reserved)),
            "renew 10.10.2.0-24 by 0"
        );
        // But for one who does it again.
        let contested = Claim {
            contested: Some(9),
            ..holder()
        };
        assert_eq!(
            said(&contested, &contents(NETWORK, &again)),
            "the lease of 10.10.2.0-24 was written by another node with this node's address 192.168.2.16: two nodes have one subnet"
        );
        let granted = Claim {
            granted: Some(9),
            ..holder()
        };
        assert_eq!(
            said(&granted, &contents(NETWORK, &again)),
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
                "renew 10.10.2.0-24 by 7"
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
            said(&newcomer(), &Contents::new("/n/")),
            "etcd has no /n/config"
        );
        let nowhere = Claim {
            addresses: Addresses::default(),
            ..newcomer()
        };
        assert_eq!(
            said(&nowhere, &contents(DUAL, &[])),
            "the interface has no IPv4 and no IPv6 address, and the network needs one"
        );
    }

    const DUAL: &str =
        r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}"#;

    #[test]
    fn what_one_family_lacks_takes_nothing_from_the_other() {
        let warning =
            Some("the interface has no IPv6 address, and the network needs one".to_owned());
        let contents = |leases: &[(&str, &str, i64)]| contents(DUAL, leases);
        let own = ("10.10.2.0-24", "192.168.2.16", 7);
        // Without an IPv6 address there is a lease of IPv4 alone.
        let first = said(&newcomer(), &contents(&[]));
        assert!(
            first.starts_with("take 10.10.") && !first.contains('&'),
            "{first}"
        );
        assert_eq!(newcomer().warning(&contents(&[])), warning);
        assert_eq!(said(&holder(), &contents(&[own])), "hold");
        // When it comes, the lease gets its subnet, and the other one stays.
        let addresses = Addresses {
            ipv6: "fd00::16".parse().ok(),
            ..newcomer().addresses
        };
        let grown = Claim {
            addresses,
            ..holder()
        };
        let step = said(&grown, &contents(&[own]));
        assert!(
            step.starts_with("take 10.10.2.0-24&fd00:")
                && step.ends_with(" instead of 10.10.2.0-24@1"),
            "{step}"
        );
        let newcomer_with_both = Claim {
            addresses,
            ..newcomer()
        };
        assert_eq!(newcomer_with_both.warning(&contents(&[])), None);
        // Where the other family is full, what is held is kept; a new node has none until there is room.
        let small =
            r#"{"Network": "10.10.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/62"}"#;
        let full = |own: Option<(&str, &str, i64)>| {
            let mut all: Vec<_> = ["0.0.0.0-0&fd00:0:0:1::-64", "0.0.0.0-0&fd00:0:0:2::-63"]
                .into_iter()
                .map(|name| (name, "192.168.2.15", 1))
                .collect();
            all.extend(own);
            super::tests::contents(small, &all)
        };
        let step = said(&newcomer_with_both, &full(None));
        assert!(
            step.starts_with("no subnet is free: all 3 from fd00:"),
            "{step}"
        );
        assert_eq!(said(&grown, &full(Some(own))), "hold");
        assert!(grown.warning(&full(Some(own))).is_some());
        // A reservation is as people made it.
        let reserved = ("10.10.2.0-24", "192.168.2.16", 0);
        assert_eq!(
            said(&newcomer_with_both, &contents(&[reserved])),
            "renew 10.10.2.0-24 by 0"
        );
        // When it goes, the lease stays as it is.
        let both = ("10.10.2.0-24&fd00:0:0:2::-64", "192.168.2.16", 7);
        let held = |addresses| Claim {
            addresses,
            held: Some(Held {
                name: both.0.to_owned(),
                addresses: newcomer().addresses,
                etcd_lease: 7,
                expires: None,
            }),
            ..holder()
        };
        assert_eq!(
            said(&held(newcomer().addresses), &contents(&[both])),
            "hold"
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
