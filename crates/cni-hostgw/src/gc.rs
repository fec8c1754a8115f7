//! GC: takes away what no valid attachment explains.

use std::collections::BTreeSet;

use cni::{Call, ValidAttachment};
use host_local::{Attachment, Collected, Holder, Store};
use ipnetwork::IpNetwork;
use kernel::{Link, Rtnl};

use crate::error::Error;
use crate::ipam::{Delegate, reclaim, store_of};
use crate::log::Steps;
use crate::names::{Names, is_of};
use crate::{iptables, masquerade, scratch};

/// Takes away the host veths, addresses, rules and scratch files of attachments that the runtime
/// does not name. A failure stops nothing, and all of them are told at the end.
///
/// A runtime that names none at all says nothing about which are valid. Then only what is
/// certainly dead goes: addresses of ours whose veth is gone.
pub(crate) fn gc(call: &Call, steps: &mut Steps) -> Result<(), Error> {
    let host = Rtnl::connect()?;
    let store = store_of(&call.network, &call.config)?;
    let mut errors = Vec::new();
    match ValidAttachment::list(&call.config)? {
        Some(list) => collect(
            call,
            &Valid::new(call, &list),
            &host,
            &store,
            &mut errors,
            steps,
        ),
        None => errors.extend(reclaim(&host, &store, &call.network).err()),
    }
    steps.done("ipam");
    if let Some(delegate) = Delegate::named_in(call) {
        errors.extend(delegate.run("GC").err());
        steps.done("delegate");
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Collect(
            errors.into_iter().map(Error::into_line).collect(),
        ))
    }
}

/// The valid attachments, by everything that is asked for.
struct Valid {
    attachments: BTreeSet<(String, String)>,
    containers: BTreeSet<String>,
    veths: BTreeSet<String>,
}

impl Valid {
    fn new(call: &Call, list: &[ValidAttachment]) -> Self {
        let veth = |valid: &ValidAttachment| {
            let attachment = Attachment::new(&valid.container_id, &valid.ifname);
            Names::of_reserved(&call.network, &attachment).veth
        };
        let key = |valid: &ValidAttachment| (valid.container_id.clone(), valid.ifname.clone());
        Self {
            attachments: list.iter().map(key).collect(),
            containers: list
                .iter()
                .map(|valid| valid.container_id.clone())
                .collect(),
            veths: list.iter().map(veth).collect(),
        }
    }

    fn has(&self, holder: &Holder) -> bool {
        match holder {
            Holder::Attachment(a) => {
                let key = (a.container_id().to_owned(), a.ifname().to_owned());
                self.attachments.contains(&key)
            }
            Holder::Container(id) => self.containers.contains(id),
        }
    }
}

fn collect(
    call: &Call,
    valid: &Valid,
    host: &Rtnl,
    store: &Store,
    errors: &mut Vec<Error>,
    steps: &mut Steps,
) {
    errors.extend(scratch::collect(call, |id| valid.containers.contains(id)));
    let alive = match delete_veths(call, valid, host) {
        Ok(alive) => alive,
        // Without a look at the links, nobody knows which addresses are in use.
        Err(error) => return errors.push(error),
    };
    steps.done("veths");
    // While a link carries an address, nobody else must get it.
    let is_alive = |holder: &Holder| match holder {
        Holder::Attachment(a) => alive
            .left
            .contains(&Names::of_reserved(&call.network, a).veth),
        Holder::Container(_) => false,
    };
    errors.extend(alive.error);
    match store.collect(|holder| valid.has(holder) || is_alive(holder)) {
        Ok(mut collected) => {
            errors.extend(collected.errors.drain(..).map(Error::from));
            errors.extend(forget_bridges(call, store, &collected).err());
            errors.extend(clean_rules(call, valid, store, collected).err());
        }
        Err(error) => errors.push(error.into()),
    }
}

/// Host veths that could not be deleted, and why.
#[derive(Default)]
struct Alive {
    left: BTreeSet<String>,
    error: Option<Error>,
}

/// Deletes the network's host veths that are not of a valid attachment, all at once.
fn delete_veths(call: &Call, valid: &Valid, host: &Rtnl) -> Result<Alive, Error> {
    let is_doomed = |link: &Link| is_of(link, &call.network) && !valid.veths.contains(&link.name);
    let doomed: Vec<_> = host.links()?.into_iter().filter(is_doomed).collect();
    let Err(error) = host.delete_links(&doomed) else {
        return Ok(Alive::default());
    };
    Ok(Alive {
        left: doomed.into_iter().map(|link| link.name).collect(),
        error: Some(error.into()),
    })
}

/// Takes away what the `bridge` plugin made for the containers whose addresses came back, where
/// it was here at all.
fn forget_bridges(call: &Call, store: &Store, collected: &Collected<'_>) -> Result<(), Error> {
    if !store.marks()?.iter().any(|mark| mark == Store::FOREIGN) {
        return Ok(());
    }
    let ids = collected
        .freed
        .iter()
        .filter_map(|(_, holder)| match holder {
            Some(Holder::Attachment(attachment)) => Some(attachment.container_id()),
            Some(Holder::Container(id)) => Some(id.as_str()),
            None => None,
        });
    iptables::remove_bridges(&call.network, &ids.collect::<Vec<_>>())
}

/// Takes the masquerading rules away that nobody needs any more.
fn clean_rules(
    call: &Call,
    valid: &Valid,
    store: &Store,
    collected: Collected<'_>,
) -> Result<(), Error> {
    let Call { network, .. } = call;
    let is_delegated = Delegate::named_in(call).is_some();
    if let Some(vacant) = collected.vacant {
        // Another IPAM plugin does not tell us which addresses are held.
        if is_delegated && !valid.attachments.is_empty() {
            return Ok(());
        }
        return masquerade::leave(network, vacant);
    }
    if is_delegated {
        return Ok(());
    }
    let held = collected.held;
    let is_held = |subnet: IpNetwork| held.iter().any(|address| subnet.contains(*address));
    masquerade::retain(network, &store.marks()?, is_held)
}
