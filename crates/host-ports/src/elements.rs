//! The elements of the table's sets and maps.

use std::collections::{BTreeMap, BTreeSet};
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
    /// Kind of each open (protocol, port): on all addresses, or on some. It must not be open on all
    /// addresses for one pod, and on one address for another.
    pub(crate) claim: &'static str,
    /// Masqueraded connections: (protocol, port of the node, address of the pod) to a chain.
    pub(crate) masquerade: &'static str,
}

pub(crate) const IPV4: Names = Names {
    all: "ports-ipv4",
    one: "address-ports-ipv4",
    claim: "claims-ipv4",
    masquerade: "masquerade-ipv4",
};

pub(crate) const IPV6: Names = Names {
    all: "ports-ipv6",
    one: "address-ports-ipv6",
    claim: "claims-ipv6",
    masquerade: "masquerade-ipv6",
};

impl Names {
    /// The sets whose elements belong to one pod each.
    pub(crate) fn sets(&self) -> [&'static str; 4] {
        [self.all, self.one, self.claim, self.masquerade]
    }
}

/// Values of a claim: the port is open on all addresses, for one pod, or on some of them. Several pods
/// share the second kind, so that it has no comment.
const ON_ALL: u32 = 0;
const ON_SOME: u32 = 1;

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
            if mapping.host_ip.is_none() {
                let claim = names(address.is_ipv6()).claim;
                let value = Value::Fields(Key::new().number(ON_ALL));
                elements.insert(claim, key.clone(), value, &comment);
            }
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
        for set in [IPV4, IPV6].iter().flat_map(Names::sets) {
            let Some(elements) = nftables::elements(FAMILY, TABLE, set)? else {
                return Ok(None);
            };
            let of_one_pod = elements
                .into_iter()
                .filter(|element| !element.comment.is_empty());
            let keyed = of_one_pod.map(|element| (element.key.clone(), element));
            present.0.insert(set, keyed.collect());
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

    /// The claims for ports that are open on one address.
    pub(crate) fn shared_claims(&self, names: &Names) -> Vec<Element> {
        let claims = self.in_set(names.one).into_iter();
        let claims: BTreeSet<_> = claims.map(|element| element.key.without_middle()).collect();
        let claim = |key| Element {
            key,
            value: Value::Fields(Key::new().number(ON_SOME)),
            comment: String::new(),
        };
        claims.into_iter().map(claim).collect()
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
