//! Comparing the table with the records, and writing it again.

use std::collections::BTreeSet;

use crate::elements::Elements;
use crate::error::{Error, files, refused};
use crate::layout::{self, Places};
use crate::record::{self, Record, Written};
use kernel::sysctl;

use crate::{
    HostPorts, Removed, is_alive, is_intact, records, remove_elements, route_localnet, table,
};

/// Changes by [`HostPorts::restore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// True if the table was missing or had been changed, and was written again.
    pub table: bool,
    /// Number of records of pods that are gone.
    pub removed: usize,
}

/// Returns whether the table exists, and no pod has a host port.
pub fn has_unused_table() -> Result<bool, Error> {
    let present = Elements::present().map_err(refused("read the table of host ports"))?;
    Ok(present.is_some_and(|present| present.is_empty()))
}

impl HostPorts<'_> {
    /// Removes the mappings of the attachments that are not wanted, and [restores](Self::restore) the
    /// rest. Returns everything that failed.
    pub fn collect(&self, is_wanted: impl Fn(&Record) -> bool) -> Vec<Error> {
        let records = match records() {
            Ok(records) => records,
            Err(error) => return vec![error],
        };
        let (mut errors, mut removed) = (Vec::new(), Vec::new());
        for record in records.values().filter(|record| !is_wanted(record)) {
            match self.remove(&record.veth) {
                Ok(one) => removed.push(one),
                Err(error) => errors.push(error),
            }
        }
        let finished = removed.into_iter().map(Removed::finish);
        errors.extend(finished.filter_map(Result::err));
        errors.extend(self.restore().err());
        errors
    }

    /// Removes the mappings that have no record and whose host veth does not exist.
    pub(crate) fn remove_unowned(&self) -> Result<(), Error> {
        let links = self.links()?;
        let known = record::veths().map_err(files("list the records"))?;
        let known: BTreeSet<_> = known.into_iter().flatten().collect();
        remove_elements(|veth| !known.contains(veth) && !is_alive(&links, veth, None))
    }

    /// Writes the table again if it was deleted or changed, and removes the mappings of pods that are
    /// gone.
    pub fn restore(&self) -> Result<Restored, Error> {
        let failed = refused("read the table of host ports");
        let links = self.links()?;
        let mut restored = Restored::default();
        let mut expected = Elements::default();
        for record in records()?.into_values() {
            if is_alive(&links, &record.veth, Some(&record)) {
                if !record.is_closed {
                    expected.extend(Elements::of(&record));
                }
            } else {
                self.remove(&record.veth)?.finish()?;
                restored.removed += 1;
            }
        }
        let present = Elements::present().map_err(&failed)?;
        let is_complete = present.as_ref().is_some_and(|p| expected.are_in(p));
        if is_complete && is_intact()? {
            let mut unknown = present.unwrap_or_default();
            unknown.subtract(&expected);
            unknown.retain(|veth| !is_alive(&links, veth, None));
            if !unknown.is_empty() {
                self.remove_unowned()?;
            }
        } else if !expected.is_empty() || present.is_some() || !saved_bridges()?.is_empty() {
            self.rebuild(&|_| true, None)?;
            restored.table = true;
        }
        Ok(restored)
    }

    /// Deletes the table if no pod has a host port, and lets no bridge route loopback addresses any more. Returns whether it was deleted.
    pub fn delete_unused_table(&self) -> Result<bool, Error> {
        let is_unused = has_unused_table()?;
        if is_unused {
            for bridge in table::bridges().map_err(refused("read the guarded bridges"))? {
                forbid_loopback(&bridge)?;
            }
            Written::forget().map_err(files("forget the table"))?;
            table::delete().map_err(refused("delete the table of host ports"))?;
        }
        Ok(is_unused)
    }

    /// Replaces the table, with the mappings of the selected records, and those of pods that have no
    /// record any more. There is a chain for `extra`, too.
    pub(crate) fn rebuild(
        &self,
        is_selected: &dyn Fn(&Record) -> bool,
        extra: Option<&Record>,
    ) -> Result<(), Error> {
        let failed = refused("write the table of host ports");
        let links = self.links()?;
        let (mut elements, mut places) = (Elements::default(), Places::default());
        if let Some(record) = extra {
            places.add(record);
        }
        for record in records()?.values() {
            if is_selected(record)
                && !record.is_closed
                && is_alive(&links, &record.veth, Some(record))
            {
                elements.extend(Elements::of(record));
                places.add(record);
            }
        }
        let own = extra.map(|record| record.veth.as_str());
        // A bridge that may route loopback addresses keeps its guard.
        places.add_bridges(table::bridges().map_err(&failed)?);
        places.add_bridges(saved_bridges()?);
        if let Some(mut present) = Elements::present().map_err(&failed)? {
            present.retain(|veth| Some(veth) != own && is_alive(&links, veth, None));
            elements.extend(present);
        }
        let replacement = layout::replacement(&elements, &places);
        replacement.commit("commit").map_err(failed)?;
        save_written_table()
    }
}

fn save_written_table() -> Result<(), Error> {
    let failed = refused("read the table of host ports");
    let written = Written {
        fingerprint: table::fingerprint().map_err(&failed)?.unwrap_or_default(),
        bridges: table::bridges().map_err(failed)?,
    };
    written
        .save()
        .map_err(files("save the fingerprint of the table"))
}

fn saved_bridges() -> Result<Vec<String>, Error> {
    let saved = Written::saved().map_err(files("read the table's fingerprint"))?;
    Ok(saved.unwrap_or_default().bridges)
}

/// Lets a bridge route loopback addresses no more. Nothing needs that without host ports, and the table
/// with the rules against its misuse is about to go.
fn forbid_loopback(bridge: &str) -> Result<(), Error> {
    match sysctl::set(&route_localnet(bridge), "0") {
        Err(error) if !error.is_gone() => {
            Err(refused("forbid routing of loopback addresses")(error))
        }
        _ => Ok(()),
    }
}
