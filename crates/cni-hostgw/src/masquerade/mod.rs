//! Masquerading: packets that leave a subnet of ours get the node's address.
//!
//! The rules belong to the network and not to a pod: there is one chain for each subnet, created with
//! the first pod that needs it and removed with the last. The store remembers the backend.

mod iptables;
mod nftables;

use cni::NetworkName;
use host_local::{EmptyNetwork, Store};
use ipnetwork::IpNetwork;
use kernel::Rtnl;
use subnet::Subnet;

pub(crate) use iptables::remove_bridge_plugin_chains;

use crate::bridge_lock;
use crate::error::Error;
use crate::ipam::Address;
use crate::names::{belongs_to, shortened};
use crate::state::Feature;

/// How the rules are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// `nf_tables` by netlink.
    Nftables,
    /// The programs `iptables` and `ip6tables`.
    Iptables,
}

/// The masquerading of one network.
#[derive(Debug)]
pub(crate) struct Masquerade {
    backend: Backend,
    network: NetworkName,
    table: String,
    /// Networks of the cluster, as far as they are known.
    networks: Vec<IpNetwork>,
}

impl Backend {
    const ALL: [Self; 2] = [Self::Nftables, Self::Iptables];

    /// Reads `ipMasqBackend`. Fails with code 2 for an unknown one.
    pub(crate) fn read(key: Option<&str>) -> Result<Self, Error> {
        match key.unwrap_or_default() {
            "" => Ok(Self::Nftables),
            text => Self::ALL
                .into_iter()
                .find(|backend| backend.name() == text)
                .ok_or_else(|| Error::Unsupported("ipMasqBackend", text.to_owned())),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// Returns the feature of a network that this backend creates.
    fn feature(self, is_ipv6: bool) -> Feature {
        match (self, is_ipv6) {
            (Self::Nftables, _) => Feature::Nftables,
            (Self::Iptables, false) => Feature::Iptables,
            (Self::Iptables, true) => Feature::Ip6tables,
        }
    }
}

impl Masquerade {
    pub(crate) fn new(network: &NetworkName, backend: Backend, networks: &[IpNetwork]) -> Self {
        Self {
            backend,
            network: network.clone(),
            table: table(network),
            networks: networks.to_vec(),
        }
    }

    /// Makes sure that the rules for each address's subnet exist.
    pub(crate) fn ensure(&self, store: &Store, addresses: &[Address]) -> Result<(), Error> {
        for address in addresses {
            let subnet = Subnet::of(address.address).network();
            self.backend.feature(subnet.is_ipv6()).note(store)?;
            let except = self.except(subnet);
            match self.backend {
                Backend::Nftables => self.nftables(subnet, &except).ensure()?,
                Backend::Iptables => self.iptables(subnet, &except).ensure(store)?,
            }
        }
        Ok(())
    }

    /// Returns the first subnet whose rules are missing.
    pub(crate) fn missing(&self, subnets: &[IpNetwork]) -> Result<Option<IpNetwork>, Error> {
        for subnet in subnets {
            let except = self.except(*subnet);
            let is_present = match self.backend {
                Backend::Nftables => self.nftables(*subnet, &except).is_present()?,
                Backend::Iptables => self.iptables(*subnet, &except).is_present()?,
            };
            if !is_present {
                return Ok(Some(*subnet));
            }
        }
        Ok(None)
    }

    /// Fails if the node cannot make rules for these subnets.
    pub(crate) fn is_available(&self, subnets: &[IpNetwork]) -> Result<(), Error> {
        match self.backend {
            Backend::Nftables => Ok(kernel::nftables::is_available()?),
            Backend::Iptables => subnets
                .iter()
                .try_for_each(|subnet| iptables::is_available(subnet.is_ipv6())),
        }
    }

    fn nftables<'a>(
        &'a self,
        subnet: IpNetwork,
        except: &'a [IpNetwork],
    ) -> nftables::Masquerade<'a> {
        nftables::Masquerade {
            table: &self.table,
            subnet,
            except,
        }
    }

    fn iptables(&self, subnet: IpNetwork, except: &[IpNetwork]) -> iptables::Masquerade<'_> {
        iptables::Masquerade::new(&self.network, subnet, except)
    }

    /// Destinations for which packets keep their source address: the cluster's networks, or the subnet
    /// if no network that contains it is known.
    fn except(&self, subnet: IpNetwork) -> Vec<IpNetwork> {
        let contains_subnet = |network: &IpNetwork| {
            network.is_ipv4() == subnet.is_ipv4() && network.contains(subnet.ip())
        };
        let mut except = self.networks.clone();
        if !self.networks.iter().any(contains_subnet) {
            except.push(subnet);
        }
        except
    }
}

/// Removes the rules of a network that has no attachment left.
pub(crate) fn remove(network: &NetworkName, empty: EmptyNetwork<'_>) -> Result<(), Error> {
    retain(network, &Feature::of_empty(&empty), |_| false)?;
    Ok(empty.clear_features()?)
}

/// Removes the rules of a network that has no host veth left. If another IPAM plugin gives the
/// addresses, nothing else shows that.
pub(crate) fn remove_if_last(
    host: &Rtnl,
    network: &NetworkName,
    store: &Store,
) -> Result<(), Error> {
    let _lock = bridge_lock::lock()?;
    if host.links()?.iter().any(|link| belongs_to(link, network)) {
        return Ok(());
    }
    match store.empty_network()? {
        Some(empty) => remove(network, empty),
        None => Ok(()),
    }
}

/// Removes the rules of subnets in which no address is reserved.
pub(crate) fn retain(
    network: &NetworkName,
    features: &[Feature],
    is_reserved: impl Fn(IpNetwork) -> bool,
) -> Result<(), Error> {
    for is_ipv6 in [false, true] {
        if features.contains(&Backend::Iptables.feature(is_ipv6)) {
            iptables::retain(network, is_ipv6, &is_reserved)?;
        }
    }
    if features.contains(&Feature::Nftables) {
        nftables::retain(&table(network), &is_reserved)?;
    }
    Ok(())
}

/// The name of the network's table, of at most 127 bytes.
fn table(network: &NetworkName) -> String {
    format!("cni-hostgw-{}", shortened(network))
}
