//! The transaction of an ADD.

use cni::NetworkName;
use host_local::Store;
use kernel::Rtnl;

use crate::error::Error;
use crate::ipam::Allocation;
use crate::masquerade;

/// Everything that an ADD has created so far. It is kept once the runtime has the result, or undone.
#[must_use = "without `keep` or `undo`, the attachment is neither committed nor rolled back"]
pub(crate) struct Transaction<'a> {
    pub(crate) host: Rtnl,
    pub(crate) network: &'a NetworkName,
    store: &'a Store,
    /// The host veth, once it exists or may exist.
    pub(crate) veth: Option<String>,
    /// The link that limits what the container sends, once it exists or may exist.
    pub(crate) ifb: Option<String>,
    /// True once host ports lead to the container, or may do so.
    pub(crate) has_host_ports: bool,
    pub(crate) allocation: Option<Allocation<'a>>,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(network: &'a NetworkName, store: &'a Store) -> Result<Self, Error> {
        Ok(Self {
            host: Rtnl::connect()?,
            network,
            store,
            veth: None,
            ifb: None,
            has_host_ports: false,
            allocation: None,
        })
    }

    /// Keeps everything.
    pub(crate) fn keep(self) {
        if let Some(allocation) = self.allocation {
            allocation.keep();
        }
    }

    /// Removes everything. Failures are ignored: the runtime has to know why the ADD failed, and DEL
    /// finds what could not be removed.
    pub(crate) fn undo(mut self) {
        let Some(allocation) = self.allocation.take() else {
            self.delete_veth();
            return;
        };
        if self.has_host_ports {
            let is_gone = self.delete_host_ports(allocation.is_delegated());
            if !is_gone {
                // While a port leads to the address, no other container must get it.
                allocation.keep();
                return;
            }
        }
        if allocation.is_delegated() {
            // The other IPAM plugin may need the interface to release an address.
            drop(allocation.release());
            self.delete_veth();
            drop(masquerade::remove_if_last(
                &self.host,
                self.network,
                self.store,
            ));
        } else if self.delete_veth() {
            if let Ok(Some(empty)) = allocation.release() {
                drop(masquerade::remove(self.network, empty));
            }
        } else {
            // While the link has the address, no other container must get it.
            allocation.keep();
        }
    }

    /// Returns true if no host port leads to the container any more. Deletes the veth, too, unless
    /// another IPAM plugin may need it.
    fn delete_host_ports(&self, is_delegated: bool) -> bool {
        let Some(veth) = &self.veth else {
            return true;
        };
        match host_ports::remove(&self.host, veth) {
            Ok(Some(removed)) => {
                if !is_delegated {
                    self.delete_veth();
                }
                removed.finish().is_ok()
            }
            Ok(None) => true,
            Err(_) => {
                self.delete_veth();
                false
            }
        }
    }

    /// Returns true if there is no host veth of this ADD any more.
    fn delete_veth(&self) -> bool {
        if let Some(ifb) = &self.ifb {
            drop(self.host.delete_link(ifb));
        }
        let veth = self.veth.as_deref();
        veth.is_none_or(|veth| self.host.delete_link(veth).is_ok())
    }
}
