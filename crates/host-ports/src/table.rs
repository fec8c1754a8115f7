//! Changes of the table in the kernel: hash maps from ports to pods, and chains that look them up.
//!
//! A packet of a new connection is looked up once or twice, however many ports are mapped.

use kernel::Error;
use kernel::nftables::{self, Element, Existing, Family, Key, Transaction};

use crate::elements::{Elements, IPV4, IPV6, names, place, veth_of};
use crate::layout::BRIDGES;
use crate::mapping::Mapping;
use crate::record::Record;

/// Name of the table.
pub const TABLE: &str = "cni-hostgw";
/// Its address family.
pub(crate) const FAMILY: Family = Family::Inet;

/// The changes that add a record's elements. They fail if another attachment has one of the ports,
/// or if the table or a chain does not exist.
pub(crate) fn addition(record: &Record) -> Transaction {
    let elements = Elements::of(record);
    let mut transaction = Transaction::new();
    let bridge = Element {
        key: Key::new().interface(&record.bridge),
        ..Element::default()
    };
    transaction.add_elements(FAMILY, TABLE, BRIDGES, Existing::Stays, &[bridge]);
    for names in [IPV4, IPV6] {
        for set in names.sets() {
            let added = elements.in_set(set);
            transaction.add_elements(FAMILY, TABLE, set, Existing::Fails, &added);
        }
        let shared = elements.shared_claims(&names);
        transaction.add_elements(FAMILY, TABLE, names.claim, Existing::Stays, &shared);
    }
    transaction
}

/// The changes that delete a record's elements. They fail if one does not exist.
pub(crate) fn removal(record: &Record) -> Result<Transaction, Error> {
    deletion(&Elements::of(record))
}

/// The changes that delete elements. They fail if one does not exist.
pub(crate) fn deletion(elements: &Elements) -> Result<Transaction, Error> {
    let mut transaction = Transaction::new();
    for names in [IPV4, IPV6] {
        for set in names.sets() {
            transaction.delete_elements(FAMILY, TABLE, set, &elements.in_set(set));
        }
        let mut shared = elements.shared_claims(&names);
        if !shared.is_empty() {
            let deleted = elements.in_set(names.one);
            let mut others = nftables::elements(FAMILY, TABLE, names.one)?.unwrap_or_default();
            others.retain(|other| !deleted.iter().any(|element| element.key == other.key));
            shared.retain(|claim| !others.iter().any(|o| o.key.without_middle() == claim.key));
            // Somebody may have deleted a claim.
            let claims = nftables::elements(FAMILY, TABLE, names.claim)?.unwrap_or_default();
            shared.retain(|claim| claims.iter().any(|found| found.key == claim.key));
            transaction.delete_elements(FAMILY, TABLE, names.claim, &shared);
        }
    }
    Ok(transaction)
}

/// The fingerprint of the table's chains. `None` if the table or one of them does not exist.
pub(crate) fn fingerprint() -> Result<Option<u64>, Error> {
    let chains = nftables::chains(FAMILY, TABLE)?;
    nftables::fingerprint(FAMILY, TABLE, &chains)
}

/// The bridges from which packets to loopback addresses are dropped.
pub(crate) fn bridges() -> Result<Vec<String>, Error> {
    let elements = nftables::elements(FAMILY, TABLE, BRIDGES)?.unwrap_or_default();
    Ok(elements
        .iter()
        .map(|element| element.key.to_interface())
        .collect())
}

/// Returns whether the table exists.
pub(crate) fn exists() -> Result<bool, Error> {
    nftables::has_table(FAMILY, TABLE)
}

/// Deletes the table. Succeeds if it does not exist.
pub(crate) fn delete() -> Result<(), Error> {
    let mut transaction = Transaction::new();
    transaction.ensure_table(FAMILY, TABLE);
    transaction.delete_table(FAMILY, TABLE);
    transaction.commit("delete the table of host ports")
}

/// The owner of a port in the kernel, and the mapping's element that is taken.
pub(crate) fn taken_by(mapping: &Mapping) -> Result<Option<Element>, Error> {
    let (set, key) = place(mapping);
    if let Some(element) = nftables::element(FAMILY, TABLE, set, &key)? {
        return Ok(Some(element));
    }
    let names = names(mapping.target.is_ipv6());
    let port = Key::new()
        .protocol(mapping.protocol.number())
        .port(mapping.host_port);
    if mapping.host_ip.is_some() {
        return nftables::element(FAMILY, TABLE, names.all, &port);
    }
    let on_one_address = nftables::elements(FAMILY, TABLE, names.one)?.unwrap_or_default();
    let mut on_one_address = on_one_address.into_iter();
    Ok(on_one_address.find(|element| element.key.without_middle() == port))
}

/// The host veth that an element belongs to.
pub(crate) fn owner_of(element: &Element) -> String {
    veth_of(element).to_owned()
}
