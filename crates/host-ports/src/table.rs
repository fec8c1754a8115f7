//! Changes of the table in the kernel: hash maps from ports to pods, and chains that look them up.
//!
//! A packet of a new connection is looked up once or twice, however many ports are mapped.

use kernel::Error;
use kernel::nftables::{self, Element, Existing, Family, Key, Transaction, Value};

use crate::elements::{Elements, IPV4, IPV6, Names, counted, names, place, veth_of};
use crate::layout::BRIDGES;
use crate::mapping::Mapping;
use crate::record::Record;

/// Name of the table.
pub const TABLE: &str = "cni-hostgw";
/// Its address family.
pub(crate) const FAMILY: Family = Family::Inet;

/// The changes that add a record's elements. They fail if another attachment has one of the ports,
/// or if the table or a chain does not exist.
pub(crate) fn addition(record: &Record) -> Result<Transaction, Error> {
    let elements = Elements::of(record);
    let mut transaction = Transaction::new();
    let bridge = Element {
        key: Key::new().interface(&record.bridge),
        ..Element::default()
    };
    transaction.add_elements(FAMILY, TABLE, BRIDGES, Existing::Stays, &[bridge]);
    for names in [IPV4, IPV6] {
        // A port that is open on all addresses must not be open on one for another pod, and the
        // other way round. These elements fail if there is such a port, and do not stay.
        for (set, probes) in [
            (names.count, elements.probes(names.all)),
            (names.all, elements.probes(names.one)),
        ] {
            transaction.add_elements(FAMILY, TABLE, set, Existing::Fails, &probes);
            transaction.delete_elements(FAMILY, TABLE, set, &probes);
        }
        for set in [names.all, names.one] {
            let added = elements.in_set(set);
            transaction.add_elements(FAMILY, TABLE, set, Existing::Fails, &added);
        }
        let masqueraded = elements.in_set(names.masquerade);
        transaction.add_elements(
            FAMILY,
            TABLE,
            names.masquerade,
            Existing::Fails,
            &masqueraded,
        );
        count(&mut transaction, &names, &elements, i64::from)?;
    }
    Ok(transaction)
}

/// The changes that delete a record's elements. They fail if one does not exist.
pub(crate) fn removal(record: &Record) -> Result<Transaction, Error> {
    deletion(&Elements::of(record))
}

/// The changes that delete elements. They fail if one does not exist.
pub(crate) fn deletion(elements: &Elements) -> Result<Transaction, Error> {
    let mut transaction = Transaction::new();
    for names in [IPV4, IPV6] {
        for set in [names.all, names.one, names.masquerade] {
            transaction.delete_elements(FAMILY, TABLE, set, &elements.in_set(set));
        }
        count(&mut transaction, &names, elements, |number| {
            -i64::from(number)
        })?;
    }
    Ok(transaction)
}

/// Changes the counts of ports that are open on one address.
fn count(
    transaction: &mut Transaction,
    names: &Names,
    elements: &Elements,
    change: impl Fn(u32) -> i64,
) -> Result<(), Error> {
    for (key, number) in elements.counts(names) {
        let known = nftables::element(FAMILY, TABLE, names.count, &key)?;
        let before = known.as_ref().map_or(0, |element| match &element.value {
            Value::Fields(value) => value.as_number().unwrap_or_default(),
            _ => 0,
        });
        transaction.delete_elements(FAMILY, TABLE, names.count, known.as_slice());
        let after = u32::try_from(i64::from(before) + change(number)).unwrap_or(0);
        if after > 0 {
            let counted = counted(key, after);
            transaction.add_elements(FAMILY, TABLE, names.count, Existing::Fails, &[counted]);
        }
    }
    Ok(())
}

/// The fingerprint of the table's chains. `None` if the table or one of them does not exist.
pub(crate) fn fingerprint() -> Result<Option<u64>, Error> {
    let chains = nftables::chains(FAMILY, TABLE)?;
    nftables::fingerprint(FAMILY, TABLE, &chains)
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
