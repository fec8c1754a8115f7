//! GC: takes away what no valid attachment explains.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni::{Call, ValidAttachment};
use host_local::{Attachment, Collected, Holder, Store};
use ipnetwork::IpNetwork;
use kernel::{Link, Rtnl};

use crate::config::DEFAULT_BRIDGE;
use crate::error::Error;
use crate::ipam::{Delegate, reclaim, store_of};
use crate::log::Steps;
use crate::names::{Names, Owner, is_of};
use crate::{bridge, iptables, masquerade, scratch};

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
    match Delegate::for_leaving(call, &store) {
        Ok(Some(delegate)) => {
            errors.extend(delegate.run("GC").err());
            steps.done("delegate");
        }
        Ok(None) => {}
        Err(error) => errors.push(error),
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
    // No ADD is between its reservation and its interface.
    let _lock = match bridge::lock() {
        Ok(lock) => lock,
        Err(error) => return errors.push(error),
    };
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
    // What host-local reserved may be of a pod of the `bridge` plugin's. Its host veth has a name of
    // its own, but its address tells which it is.
    let others = match links_of_others(call, host) {
        Ok(others) => others,
        Err(error) => return errors.push(error),
    };
    let kept = RefCell::new(Vec::new());
    let make_free = |address| match others.get(&address) {
        None => true,
        Some(None) => false,
        Some(Some(veth)) => match host.delete_link(veth) {
            Ok(_) => true,
            Err(error) => {
                kept.borrow_mut().push(Error::from(error));
                false
            }
        },
    };
    let collected = store.collect(|holder| valid.has(holder) || is_alive(holder), make_free);
    errors.extend(kept.take());
    match collected {
        Ok(mut collected) => {
            errors.extend(collected.errors.drain(..).map(Error::from));
            errors.extend(forget_bridges(call, &collected).err());
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

/// The addresses of containers that other plugins put on a bridge of the node, each with the name of
/// its host veth where that is on the network's own bridge: what is on another is somebody else's.
fn links_of_others(call: &Call, host: &Rtnl) -> Result<BTreeMap<IpAddr, Option<String>>, Error> {
    let keys = call.config.object("delegate");
    let keys = keys.as_ref().unwrap_or(&call.config);
    let own = keys.get("bridge").and_then(|name| name.as_str());
    let own = own
        .filter(|name| !name.is_empty())
        .unwrap_or(DEFAULT_BRIDGE);
    let links = host.links()?;
    let own = links.iter().find(|link| link.name == own);
    let own = own.map(|bridge| bridge.index);
    let mut others = BTreeMap::new();
    let is_others = |link: &&Link| link.bridge.is_some() && Owner::of(link).is_none();
    for link in links
        .iter()
        .filter(|link| link.leads_elsewhere())
        .filter(is_others)
    {
        for address in host.addresses_of_peer(link)? {
            let veth = (link.bridge == own).then(|| link.name.clone());
            // Of two that have it, neither is deleted.
            others
                .entry(address)
                .and_modify(|known| *known = None)
                .or_insert(veth);
        }
    }
    Ok(others)
}

/// Deletes the network's host veths that are not of a valid attachment, all at once, and with them
/// those of ADDs that were killed before they were complete. Under the lock none is being made.
fn delete_veths(call: &Call, valid: &Valid, host: &Rtnl) -> Result<Alive, Error> {
    let is_ours = |link: &Link| is_of(link, &call.network) || link.is_half_made();
    let is_doomed = |link: &Link| is_ours(link) && !valid.veths.contains(&link.name);
    let doomed: Vec<_> = host.links()?.into_iter().filter(is_doomed).collect();
    let Err(error) = host.delete_links(&doomed) else {
        return Ok(Alive::default());
    };
    Ok(Alive {
        left: doomed.into_iter().map(|link| link.name).collect(),
        error: Some(error.into()),
    })
}

/// Takes away what the `bridge` plugin made for the containers whose addresses came back.
fn forget_bridges(call: &Call, collected: &Collected<'_>) -> Result<(), Error> {
    let foreign = collected.freed.iter().filter(|freed| freed.is_foreign);
    let ids = foreign.filter_map(|freed| match &freed.holder {
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
