//! Masquerading: what leaves a subnet of ours has the node's address.
//!
//! The rules are of the network and not of a pod: one chain for each subnet, made by the first
//! pod that needs it and taken away with the last. The store remembers by which backend.

use cni::NetworkName;
use host_local::{Store, Vacant};
use ipnetwork::IpNetwork;
use kernel::{Rtnl, nftables};

use crate::error::Error;
use crate::ipam::Address;
use crate::names::{is_of, shortened};
use crate::{bridge, iptables};

/// How the rules get into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// By netlink.
    Nftables,
    /// By the programs `iptables` and `ip6tables`.
    Iptables,
}

/// By what, and but for what, a network is masqueraded.
#[derive(Debug)]
pub(crate) struct Masquerade {
    backend: Backend,
    network: NetworkName,
    table: String,
    /// The cluster's networks, as far as they are known.
    networks: Vec<IpNetwork>,
}

impl Backend {
    const ALL: [Self; 2] = [Self::Nftables, Self::Iptables];

    /// `ipMasqBackend`. Errors with code 2 for another one.
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

    /// The store's mark of a network that it masquerades: what is to be asked for the end.
    fn mark(self, is_ipv6: bool) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => iptables::program(is_ipv6),
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

    /// Makes sure that the rules of each address's subnet are there.
    pub(crate) fn ensure(&self, store: &Store, addresses: &[Address]) -> Result<(), Error> {
        for address in addresses {
            let subnet = subnet_of(address);
            // Noted first: a crash behind it leaves a note of nothing, which is no harm.
            store.mark(self.backend.mark(subnet.is_ipv6()))?;
            let except = self.except(subnet);
            match self.backend {
                Backend::Nftables => self.nftables(subnet, &except).ensure()?,
                Backend::Iptables => self.iptables(subnet, &except).ensure(store)?,
            }
        }
        Ok(())
    }

    /// Whether they are there. Names the first subnet whose rules are not.
    pub(crate) fn missing(&self, subnets: &[IpNetwork]) -> Result<Option<IpNetwork>, Error> {
        for subnet in subnets {
            let except = self.except(*subnet);
            let is_there = match self.backend {
                Backend::Nftables => self.nftables(*subnet, &except).is_there()?,
                Backend::Iptables => self.iptables(*subnet, &except).is_there()?,
            };
            if !is_there {
                return Ok(Some(*subnet));
            }
        }
        Ok(None)
    }

    /// Whether the node has what makes them, for these subnets.
    pub(crate) fn is_available(&self, subnets: &[IpNetwork]) -> Result<(), Error> {
        match self.backend {
            Backend::Nftables => Ok(nftables::is_available()?),
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

    /// What stays in the cluster's network, or in the subnet where no more is known, keeps its
    /// source address.
    fn except(&self, subnet: IpNetwork) -> Vec<IpNetwork> {
        let is_around = |network: &IpNetwork| {
            network.is_ipv4() == subnet.is_ipv4() && network.contains(subnet.ip())
        };
        let mut except = self.networks.clone();
        if !self.networks.iter().any(is_around) {
            except.push(subnet);
        }
        except
    }
}

/// Takes the rules of a network away that has no attachment left.
pub(crate) fn leave(network: &NetworkName, vacant: Vacant<'_>) -> Result<(), Error> {
    retain(network, vacant.marks(), |_| false)?;
    Ok(vacant.unmark()?)
}

/// Takes the rules of a network away that has no host veth left: where another IPAM plugin gives the
/// addresses, nothing else tells.
pub(crate) fn leave_if_last(
    host: &Rtnl,
    network: &NetworkName,
    store: &Store,
) -> Result<(), Error> {
    let _lock = bridge::lock()?;
    if host.links()?.iter().any(|link| is_of(link, network)) {
        return Ok(());
    }
    match store.vacant()? {
        Some(vacant) => leave(network, vacant),
        None => Ok(()),
    }
}

/// Takes the rules of those subnets away of which no address is held.
pub(crate) fn retain(
    network: &NetworkName,
    marks: &[String],
    is_held: impl Fn(IpNetwork) -> bool,
) -> Result<(), Error> {
    for is_ipv6 in [false, true] {
        let mark = Backend::Iptables.mark(is_ipv6);
        if marks.iter().any(|known| known == mark) {
            iptables::retain(network, is_ipv6, &is_held)?;
        }
    }
    let mark = Backend::Nftables.mark(false);
    if marks.iter().any(|known| known == mark) {
        nftables::retain_masquerade(&table(network), &is_held)?;
    }
    Ok(())
}

/// The kernel gives a table's name 127 bytes.
fn table(network: &NetworkName) -> String {
    format!("cni-hostgw-{}", shortened(network))
}

fn subnet_of(address: &Address) -> IpNetwork {
    let address = address.address;
    IpNetwork::new(address.network(), address.prefix()).expect("it has that prefix length already")
}
