//! GC: removes what belongs to no valid attachment.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni::{Call, ValidAttachment};
use host_local::{Attachment, Collected, Holder, Store};
use host_ports::{Record, portmap};
use ipnetwork::IpNetwork;
use kernel::{Link, Rtnl};
use netconf::LenientConf;

use crate::bridge_lock;
use crate::config::DEFAULT_BRIDGE;
use crate::error::Error;
use crate::ipam::{Delegate, reclaim, store_from_config};
use crate::log::StepTimer;
use crate::names::{Names, Owner, belongs_to, is_ifb_of};
use crate::state::Feature;
use crate::{masquerade, port_mappings, scratch};

/// Removes the host veths, addresses, rules and scratch files of attachments that the runtime does not
/// list as valid. It goes on after a failure, and fails with all of them at the end.
///
/// If the runtime lists no attachments at all, it is unknown which are valid. Then only addresses of
/// ours are released whose veth is gone.
pub(crate) fn gc(call: &Call, steps: &mut StepTimer) -> Result<(), Error> {
    let conf = LenientConf::from_json(&call.config);
    let host = Rtnl::connect()?;
    let store = store_from_config(&call.network, &conf)?;
    let mut errors = Vec::new();
    if let Some(list) = ValidAttachment::list(&call.config)? {
        let collection = Collection {
            call,
            conf: &conf,
            valid: ValidAttachments::new(call, &list),
            host: &host,
            store: &store,
        };
        errors.extend(collection.run(steps));
    } else {
        let closed = port_mappings::collect_gone(&host);
        let reclaimed = closed.and_then(|()| reclaim(&host, &store, &call.network));
        errors.extend(reclaimed.err());
    }
    steps.done("ipam");
    match Delegate::with_known_subnets(call, &conf, &store) {
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
        Err(Error::GcIncomplete(
            errors.into_iter().map(Error::into_single_line).collect(),
        ))
    }
}

/// The valid attachments.
struct ValidAttachments {
    attachments: BTreeSet<Attachment>,
    /// Names of their links on the host.
    links: BTreeSet<String>,
}

impl ValidAttachments {
    fn new(call: &Call, list: &[ValidAttachment]) -> Self {
        let attachments: BTreeSet<_> = list
            .iter()
            .map(|valid| Attachment::new(&valid.container_id, &valid.ifname))
            .collect();
        let links = |attachment| {
            let names = Names::of(&call.network, attachment);
            [names.veth, names.ifb]
        };
        Self {
            links: attachments.iter().flat_map(links).collect(),
            attachments,
        }
    }

    fn has_container(&self, container_id: &str) -> bool {
        let mut all = self.attachments.iter();
        all.any(|attachment| attachment.container_id() == container_id)
    }

    fn has(&self, holder: &Holder) -> bool {
        match holder {
            Holder::Attachment(attachment) => self.attachments.contains(attachment),
            Holder::Container(id) => self.has_container(id),
        }
    }
}

/// One GC with a list of valid attachments.
struct Collection<'a> {
    call: &'a Call,
    conf: &'a LenientConf,
    valid: ValidAttachments,
    host: &'a Rtnl,
    store: &'a Store,
}

impl Collection<'_> {
    /// Returns everything that failed.
    fn run(&self, steps: &mut StepTimer) -> Vec<Error> {
        // Under the lock, no ADD has reserved an address without having its interface yet.
        let _lock = match bridge_lock::lock() {
            Ok(lock) => lock,
            Err(error) => return vec![error],
        };
        let has_container = |id: &str| self.valid.has_container(id);
        let mut errors = scratch::collect(self.call, self.conf, has_container);
        // While a port leads to an address, no other container must get it.
        let ports = self.remove_host_ports();
        if !ports.is_empty() {
            errors.extend(ports);
            return errors;
        }
        steps.done("host ports");
        // Without the links, it is unknown which addresses are in use.
        let mut undeleted = match self.delete_veths() {
            Ok(undeleted) => undeleted,
            Err(error) => {
                errors.push(error);
                return errors;
            }
        };
        steps.done("veths");
        errors.extend(undeleted.error.take());
        let foreign = match self.foreign_links() {
            Ok(foreign) => foreign,
            Err(error) => {
                errors.push(error);
                return errors;
            }
        };
        errors.extend(self.release_addresses(undeleted, &foreign));
        errors
    }

    /// Removes the host ports of the network's attachments that are not valid, and those of pods that
    /// are gone. Returns everything that failed.
    fn remove_host_ports(&self) -> Vec<Error> {
        let network = self.call.network.as_str();
        let is_valid =
            |record: &Record| record.network != network || self.valid.links.contains(&record.veth);
        let mut errors = port_mappings::collect(self.host, is_valid);
        if self.conf.maps_ports {
            let has_container = |id: &str| self.valid.has_container(id);
            let collected = portmap::collect(network, has_container);
            errors.extend(collected.err().map(Error::from));
        }
        errors
    }

    /// Deletes the network's links that belong to no valid attachment, all at once, and those of
    /// ADDs that were killed before they were complete. Under the lock, no ADD is creating one.
    fn delete_veths(&self) -> Result<Undeleted, Error> {
        let network = &self.call.network;
        let is_ours = |link: &Link| {
            belongs_to(link, network) || is_ifb_of(link, network) || link.is_incomplete()
        };
        let is_invalid = |link: &Link| is_ours(link) && !self.valid.links.contains(&link.name);
        let invalid: Vec<_> = self.host.links()?.into_iter().filter(is_invalid).collect();
        let Err(error) = self.host.delete_links(&invalid) else {
            return Ok(Undeleted::default());
        };
        Ok(Undeleted {
            veths: invalid.into_iter().map(|link| link.name).collect(),
            error: Some(error.into()),
        })
    }

    /// The addresses of containers that other plugins attached to a bridge of the node. Each has the
    /// name of its host veth if that is on the network's own bridge: a link on another bridge is not
    /// ours to delete.
    fn foreign_links(&self) -> Result<ForeignLinks, Error> {
        let own = self.conf.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE);
        let links = self.host.links()?;
        let own = links.iter().find(|link| link.name == own);
        let own = own.map(|bridge| bridge.index);
        let mut addresses = BTreeMap::new();
        let is_foreign = |link: &&Link| link.bridge.is_some() && Owner::of(link).is_none();
        for link in links
            .iter()
            .filter(|link| link.has_peer_in_other_netns())
            .filter(is_foreign)
        {
            for address in self.host.addresses_of_peer(link)? {
                let veth = (link.bridge == own).then(|| link.name.clone());
                // If two have the address, neither is deleted.
                addresses
                    .entry(address)
                    .and_modify(|known| *known = None)
                    .or_insert(veth);
            }
        }
        Ok(addresses)
    }

    /// Releases the addresses of attachments that are not valid, and removes rules that are not needed
    /// any more. Returns everything that failed.
    fn release_addresses(&self, undeleted: Undeleted, foreign: &ForeignLinks) -> Vec<Error> {
        let mut errors: Vec<_> = undeleted.error.into_iter().collect();
        // While a link has the address, no other container must get it.
        let is_in_use = |holder: &Holder| match holder {
            Holder::Attachment(attachment) => {
                let names = Names::of(&self.call.network, attachment);
                undeleted.veths.contains(&names.veth)
            }
            Holder::Container(_) => false,
        };
        // An address that host-local reserved may be of a pod of the `bridge` plugin. Its host veth has
        // another name, and is found by the address.
        let failed = RefCell::new(Vec::new());
        let free_address = |address| match foreign.get(&address) {
            None => true,
            Some(None) => false,
            Some(Some(veth)) => match self.host.delete_link(veth) {
                Ok(_) => true,
                Err(error) => {
                    failed.borrow_mut().push(Error::from(error));
                    false
                }
            },
        };
        let is_valid = |holder: &Holder| self.valid.has(holder) || is_in_use(holder);
        let collected = self.store.collect(is_valid, free_address);
        errors.extend(failed.take());
        match collected {
            Ok(mut collected) => {
                errors.extend(collected.errors.drain(..).map(Error::from));
                errors.extend(self.remove_foreign_rules(&collected).err());
                errors.extend(self.remove_rules(collected).err());
            }
            Err(error) => errors.push(error.into()),
        }
        errors
    }

    /// Removes the rules of the `bridge` and `portmap` plugins for the containers whose addresses were released.
    fn remove_foreign_rules(&self, collected: &Collected<'_>) -> Result<(), Error> {
        let foreign = collected.freed.iter().filter(|freed| freed.is_foreign);
        let ids = foreign.filter_map(|freed| match &freed.holder {
            Some(Holder::Attachment(attachment)) => Some(attachment.container_id()),
            Some(Holder::Container(id)) => Some(id.as_str()),
            None => None,
        });
        let ids: Vec<_> = ids.collect();
        if self.conf.maps_ports {
            for id in &ids {
                portmap::remove(self.call.network.as_str(), id)?;
            }
        }
        masquerade::remove_bridge_plugin_chains(&self.call.network, &ids)
    }

    /// Removes the masquerading rules that are not needed any more.
    fn remove_rules(&self, collected: Collected<'_>) -> Result<(), Error> {
        let network = &self.call.network;
        let is_delegated = self.conf.external_ipam().is_some();
        if let Some(empty) = collected.empty_network {
            // With another IPAM plugin, the store does not show which addresses are in use.
            if is_delegated && !self.valid.attachments.is_empty() {
                return Ok(());
            }
            return masquerade::remove(network, empty);
        }
        if is_delegated {
            return Ok(());
        }
        let held = collected.held;
        let is_reserved = |subnet: IpNetwork| held.iter().any(|ip| subnet.contains(*ip));
        masquerade::retain(network, &Feature::noted(self.store)?, is_reserved)
    }
}

/// Host veths that could not be deleted, with the reason.
#[derive(Default)]
struct Undeleted {
    veths: BTreeSet<String>,
    error: Option<Error>,
}

/// Addresses of containers of other plugins, each with the host veth that may be deleted for it.
type ForeignLinks = BTreeMap<IpAddr, Option<String>>;
