//! The elements of the table's sets and maps.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use kernel::Error;
use kernel::nftables::{self, Element, Key, Value};

use crate::layout::MASQUERADE_ALL;
use crate::mapping::Mapping;
use crate::record::{Masquerade, Record};
use crate::table::{FAMILY, TABLE};

/// The sets and maps of one address family.
pub(crate) struct Names {
    /// Ports that are open on all addresses of the node: (protocol, port) to the target.
    pub(crate) all: &'static str,
    /// Ports that are open on one address: (protocol, address, port) to the target.
    pub(crate) one: &'static str,
    /// Number of elements in `one` for each (protocol, port). A port must not be open on all
    /// addresses for one pod, and on one address for another.
    pub(crate) count: &'static str,
    /// What is masqueraded: (protocol, port of the node, address of the pod) to a chain.
    pub(crate) masquerade: &'static str,
}

pub(crate) const IPV4: Names = Names {
    all: "ports-ipv4",
    one: "address-ports-ipv4",
    count: "address-ports-count-ipv4",
    masquerade: "masquerade-ipv4",
};

pub(crate) const IPV6: Names = Names {
    all: "ports-ipv6",
    one: "address-ports-ipv6",
    count: "address-ports-count-ipv6",
    masquerade: "masquerade-ipv6",
};

pub(crate) fn names(is_ipv6: bool) -> &'static Names {
    if is_ipv6 { &IPV6 } else { &IPV4 }
}

/// The elements of one or several records, by the names of their sets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Elements(BTreeMap<&'static str, BTreeMap<Key, Element>>);

impl Elements {
    /// The elements of a record.
    pub(crate) fn of(record: &Record) -> Self {
        let mut elements = Self::default();
        let comment = record.comment();
        for mapping in &record.mappings {
            let (set, key) = place(mapping);
            let (address, port) = (mapping.target.ip(), mapping.target.port());
            let target = Key::new().address(address).port(port);
            elements.insert(set, key, Value::Fields(target), &comment);
            if let Some(chain) = masquerade_chain(record, address) {
                let key = Key::new().protocol(mapping.protocol.number());
                let key = key.port(mapping.host_port).address(address);
                let set = names(address.is_ipv6()).masquerade;
                elements.insert(set, key, Value::Goto(chain), &comment);
            }
        }
        elements
    }

    fn insert(&mut self, set: &'static str, key: Key, value: Value, comment: &str) {
        let comment = comment.to_owned();
        let element = Element {
            key: key.clone(),
            value,
            comment,
        };
        self.0.entry(set).or_default().insert(key, element);
    }

    /// Adds those of `others` whose keys are not taken.
    pub(crate) fn extend(&mut self, others: Self) {
        for (set, elements) in others.0 {
            let own = self.0.entry(set).or_default();
            for (key, element) in elements {
                own.entry(key).or_insert(element);
            }
        }
    }

    /// The elements in the kernel. `None` if there is no such table.
    pub(crate) fn present() -> Result<Option<Self>, Error> {
        let mut present = Self::default();
        for set in [IPV4, IPV6].map(|names| [names.all, names.one, names.masquerade]) {
            for set in set {
                let Some(elements) = nftables::elements(FAMILY, TABLE, set)? else {
                    return Ok(None);
                };
                let keyed = elements.into_iter().map(|e| (e.key.clone(), e));
                present.0.insert(set, keyed.collect());
            }
        }
        Ok(Some(present))
    }

    /// True if there is no element.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.values().all(BTreeMap::is_empty)
    }

    /// True if `present` has all of these with the same values.
    pub(crate) fn are_in(&self, present: &Self) -> bool {
        self.iter().all(|(set, element)| {
            let found = present.0.get(set).and_then(|all| all.get(&element.key));
            found == Some(element)
        })
    }

    /// Keeps the elements whose comment names a host veth for which `is_wanted` returns true.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&str) -> bool) {
        for elements in self.0.values_mut() {
            elements.retain(|_, element| is_wanted(veth_of(element)));
        }
    }

    /// Keeps the elements that `others` does not have.
    pub(crate) fn subtract(&mut self, others: &Self) {
        for (set, elements) in &mut self.0 {
            let known = others.0.get(set);
            elements.retain(|key, _| !known.is_some_and(|known| known.contains_key(key)));
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, &Element)> {
        let sets = self.0.iter();
        sets.flat_map(|(set, elements)| elements.values().map(|element| (*set, element)))
    }

    pub(crate) fn in_set(&self, set: &str) -> Vec<Element> {
        let elements = self.0.get(set).into_iter().flat_map(BTreeMap::values);
        elements.cloned().collect()
    }

    /// An element for each (protocol, port) of a set, to find out whether another set has it. The
    /// value is of the type of that other set.
    pub(crate) fn probes(&self, set: &str) -> Vec<Element> {
        let is_on_all = [IPV4.all, IPV6.all].contains(&set);
        let probe = |element: Element| {
            if is_on_all {
                return counted(element.key, 0);
            }
            Element {
                key: element.key.without_middle(),
                value: element.value,
                comment: String::new(),
            }
        };
        let probes = self.in_set(set).into_iter().map(probe);
        let probes: BTreeMap<_, _> = probes.map(|probe| (probe.key.clone(), probe)).collect();
        probes.into_values().collect()
    }

    /// The number of elements for one address of the node, for each (protocol, port).
    pub(crate) fn counts(&self, names: &Names) -> BTreeMap<Key, u32> {
        let mut counts = BTreeMap::new();
        for element in self.in_set(names.one) {
            *counts.entry(element.key.without_middle()).or_default() += 1;
        }
        counts
    }
}

/// The host veth that an element's comment names.
pub(crate) fn veth_of(element: &Element) -> &str {
    element.comment.split(' ').next().unwrap_or_default()
}

/// The set of a mapping, and its key there.
pub(crate) fn place(mapping: &Mapping) -> (&'static str, Key) {
    let names = names(mapping.target.is_ipv6());
    let key = Key::new().protocol(mapping.protocol.number());
    match mapping.host_ip {
        Some(ip) => (names.one, key.address(ip).port(mapping.host_port)),
        None => (names.all, key.port(mapping.host_port)),
    }
}

/// The chain that masquerades connections to the record's pod at `address`. `None` if nothing is
/// masqueraded.
pub(crate) fn masquerade_chain(record: &Record, address: IpAddr) -> Option<String> {
    match record.masquerade {
        Masquerade::None => None,
        Masquerade::All => Some(MASQUERADE_ALL.to_owned()),
        Masquerade::Subnet => {
            let of_address = |network: &&IpNetwork| network.ip() == address;
            let network = record.addresses.iter().find(of_address)?;
            Some(subnet_chain(*network))
        }
    }
}

/// The name of a subnet's chain. nft prints names unquoted and cannot read back the slash and the
/// colons of a network.
pub(crate) fn subnet_chain(address: IpNetwork) -> String {
    let subnet = format!("{}/{}", address.network(), address.prefix());
    format!("masquerade-{subnet}").replace(['/', ':'], "-")
}

pub(crate) fn counted(key: Key, number: u32) -> Element {
    Element {
        key,
        value: Value::Fields(Key::new().number(number)),
        comment: String::new(),
    }
}
