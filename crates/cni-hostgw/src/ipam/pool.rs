//! Our own pool of addresses: the ranges and routes of the configuration, and reservations.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::{CniArgs, Dns, NetworkName, Route, Version};
use host_local::{
    Attachment, Boot, Overlap, Range, RangeSet, RangeSets, RangeSpec, Store, StoreError,
};
use ipnetwork::IpNetwork;
use kernel::Rtnl;
use netconf::{LenientConf, NetConf, RangeConf};
use subnet::Subnet;

use super::{Address, Allocation, Undo, data_dirs};
use crate::config_input::ConfigInput;
use crate::error::Error;
use crate::names::{Names, Owner};

/// An ADD that is under way may have no veth yet. None takes longer than this.
const MIN_RECLAIM_AGE: Duration = Duration::from_secs(60);

/// The ranges of addresses, and what comes with an address.
#[derive(Debug)]
pub(crate) struct Pool {
    network: NetworkName,
    ranges: RangeSets,
    requested: Vec<IpAddr>,
    routes: Vec<Route>,
    dns: Dns,
}

impl Pool {
    /// Reads the configuration. Without explicit ranges, the node's subnets are the ranges; in flannel's
    /// form they always are, after those of the runtime.
    pub(super) fn read(input: &ConfigInput<'_>) -> Result<Self, Error> {
        let ConfigInput { conf, args, .. } = input;
        let mut ranges = conf
            .range_sets()?
            .iter()
            .map(|set| specs(set))
            .collect::<Vec<_>>();
        if ranges.is_empty() || conf.has_delegate {
            ranges.extend(input.subnets.iter().map(|s| vec![RangeSpec::from(*s)]));
        }
        let ipam = conf.ipam.as_ref();
        let mut routes = ipam.map(|ipam| ipam.routes.clone()).unwrap_or_default();
        // Explicit ranges may have fewer families than the cluster.
        let has_range = |network: &&IpNetwork| {
            let mut specs = ranges.iter().flatten();
            specs.any(|range| range.subnet.is_ipv4() == network.is_ipv4())
        };
        for network in input.networks.iter().filter(has_range) {
            let route = Route::new(*network, None);
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
        Ok(Self {
            network: input.call.network.clone(),
            ranges: range_sets(&ranges, input.call.version)?,
            requested: requested(conf, args)?,
            routes,
            dns: resolver(ipam.and_then(|ipam| ipam.resolv_conf.as_deref()))?,
        })
    }

    /// Reserves one address of each range set. Before a range counts as exhausted, stale reservations are
    /// reclaimed: those whose veth is gone, because their DEL never came.
    pub(super) fn reserve<'a>(
        &'a self,
        host: &Rtnl,
        store: &'a Store,
        attachment: &Attachment,
    ) -> Result<Allocation<'a>, Error> {
        let reserve = || store.reserve(attachment, &self.ranges, &self.requested);
        let reservation = match reserve() {
            Err(error @ (StoreError::Exhausted { .. } | StoreError::Unavailable { .. })) => {
                let reclaimed = reclaim(host, store, &self.network)?;
                if reclaimed == 0 {
                    return Err(error.into());
                }
                reserve().map_err(|error| error.with_reclaimed(reclaimed))?
            }
            other => other?,
        };
        refuse_in_use(host, &reservation.reused_addresses())?;
        let address = |(address, range): &(IpAddr, Range)| Address {
            address: range.with_prefix(*address),
            gateway: Some(range.gateway()),
        };
        Ok(Allocation {
            addresses: reservation.addresses().iter().map(address).collect(),
            routes: self.routes.clone(),
            dns: self.dns.clone(),
            undo: Undo::Release(reservation),
        })
    }

    pub(super) fn gateways(&self) -> Vec<IpNetwork> {
        let gateway = |range: &Range| range.with_prefix(range.gateway());
        self.ranges().map(gateway).collect()
    }

    /// The subnets of the ranges, each once.
    pub(crate) fn subnets(&self) -> Vec<IpNetwork> {
        let mut subnets: Vec<_> = self.ranges().map(Range::subnet).collect();
        subnets.dedup();
        subnets
    }

    fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.ranges.iter().flat_map(RangeSet::ranges)
    }

    /// Fails if another network of the node has reserved addresses of these subnets: both would give out
    /// the same ones.
    pub(crate) fn refuse_shared_subnet(
        &self,
        host: &Rtnl,
        store: &Store,
        network: &NetworkName,
    ) -> Result<(), Error> {
        let data_dirs = data_dirs::all(store)?;
        let is_gone = is_gone(host);
        match store.overlap(&data_dirs, &self.ranges, MIN_RECLAIM_AGE, is_gone)? {
            None => Ok(()),
            Some(other) => Err(shared(network, self.subnets(), other)),
        }
    }

    /// Fails if a route's gateway is not in any of the subnets, so that the kernel would refuse the route.
    pub(crate) fn check_gateways(&self) -> Result<(), Error> {
        let subnets = self.subnets();
        let unreachable = |route: &&Route| route.is_unreachable_from(&subnets);
        match self.routes.iter().find(unreachable) {
            None => Ok(()),
            Some(route) => Err(Error::Config {
                key: "ipam.routes",
                value: unreachable_route(route),
                source: "the gw is not in any of the subnets".into(),
            }),
        }
    }
}

fn unreachable_route(route: &Route) -> String {
    let gw = route.gw.map(|gw| format!(", gw {gw}")).unwrap_or_default();
    format!("dst {}{gw}", route.dst)
}

/// Releases the addresses of attachments whose veth is gone. Returns how many there were.
pub(crate) fn reclaim(host: &Rtnl, store: &Store, network: &NetworkName) -> Result<usize, Error> {
    let links = host.links()?;
    let is_gone = |attachment: &Attachment| {
        let names = Names::of(network, attachment);
        !links.iter().any(|link| names.is_of(link))
    };
    Ok(store.reclaim(MIN_RECLAIM_AGE, is_gone)?)
}

/// The store of `network` for DEL and GC, which need only `ipam.dataDir`.
pub(crate) fn store_from_config(network: &NetworkName, conf: &LenientConf) -> Result<Store, Error> {
    open_store(conf.ipam_data_dir.clone(), network)
}

/// The store of `network` in `data_dir`, or in the default folder, which is host-local's.
pub(crate) fn open_store(data_dir: Option<PathBuf>, network: &NetworkName) -> Result<Store, Error> {
    // An empty path counts as missing: it would mean the runtime's working directory.
    let data_dir = data_dir.filter(|path| !path.as_os_str().is_empty());
    let data_dir = data_dir
        .as_deref()
        .unwrap_or(Path::new(data_dirs::DEFAULT_DATA_DIR));
    let boot = Boot::current().map_err(Error::Boot)?;
    Ok(Store::new(data_dir, network.as_str(), boot))
}

/// Fails if a pod of another plugin has one of the addresses that an ADD reserves again: the attachment
/// already exists in another namespace, or under another interface name.
fn refuse_in_use(host: &Rtnl, reused_addresses: &[IpAddr]) -> Result<(), Error> {
    if reused_addresses.is_empty() {
        return Ok(());
    }
    for link in host.links()? {
        let is_foreign = link.has_peer_in_other_netns() && Owner::of(&link).is_none();
        if is_foreign {
            let has = host.addresses_of_peer(&link)?;
            if reused_addresses.iter().any(|address| has.contains(address)) {
                return Err(Error::Exists(link.name));
            }
        }
    }
    Ok(())
}

/// Fails if another network of the node has reserved one of these addresses.
pub(super) fn refuse_shared_addresses(
    host: &Rtnl,
    store: &Store,
    network: &NetworkName,
    addresses: &[Address],
) -> Result<(), Error> {
    let data_dirs = data_dirs::all(store)?;
    for address in addresses {
        let ip = address.address.ip();
        let held = store.held_by_other_network(&data_dirs, ip, MIN_RECLAIM_AGE, is_gone(host))?;
        if let Some(other) = held {
            return Err(shared(
                network,
                vec![Subnet::of(address.address).network()],
                other,
            ));
        }
    }
    Ok(())
}

fn shared(network: &NetworkName, subnets: Vec<IpNetwork>, other: Overlap) -> Error {
    Error::SharedSubnet {
        network: network.to_string(),
        subnets,
        other: Box::new(other),
    }
}

/// Returns true if the interface of another network's attachment certainly does not exist.
fn is_gone(host: &Rtnl) -> impl Fn(&str, &Attachment) -> bool {
    |network, attachment| {
        // If the link cannot be looked up, it may exist.
        let link = |network| host.link(&Names::of(&network, attachment).veth);
        NetworkName::new(network).is_ok_and(|network| matches!(link(network), Ok(None)))
    }
}

fn specs(set: &[RangeConf]) -> Vec<RangeSpec> {
    let spec = |range: &RangeConf| RangeSpec {
        subnet: range.subnet,
        start: range.range_start,
        end: range.range_end,
        gateway: range.gateway,
    };
    set.iter().map(spec).collect()
}

fn range_sets(specs: &[Vec<RangeSpec>], version: Version) -> Result<RangeSets, Error> {
    let sets = RangeSets::new(specs)?;
    let families = specs
        .iter()
        .filter_map(|set| set.first())
        .map(|range| range.subnet.is_ipv4());
    let (v4, v6): (Vec<bool>, Vec<bool>) = families.partition(|is_ipv4| *is_ipv4);
    if version < Version::V0_3_0 && (v4.len() > 1 || v6.len() > 1) {
        let source =
            format!("CNI version {version} does not support more than 1 address per family");
        let value = format!("{} range sets", specs.len());
        return Err(Error::Config {
            key: "ipam.ranges",
            value,
            source: source.into(),
        });
    }
    Ok(sets)
}

/// The requested addresses, each once: from the runtime's capability, `args.cni` and `CNI_ARGS`.
fn requested(conf: &NetConf, args: &CniArgs) -> Result<Vec<IpAddr>, Error> {
    let keyed = |key| move |text| (key, text);
    let all = conf
        .runtime_config
        .ips
        .iter()
        .map(keyed("runtimeConfig.ips"));
    let all = all.chain(conf.args.ips.iter().map(keyed("args.cni.ips")));
    let all = all.chain(args.ip.iter().map(keyed("CNI_ARGS IP")));
    let all = all.filter(|(_, text)| !text.is_empty());
    let mut seen = BTreeSet::new();
    let mut requested = Vec::new();
    for (key, text) in all {
        // A prefix length is ignored: the range has its own.
        let address = if text.contains('/') {
            cni::network(text).map(|network| network.ip().to_canonical())
        } else {
            cni::address(text)
        };
        let address = address.ok_or_else(|| Error::Config {
            key,
            value: format!("{text:?}"),
            source: "must be an IP address, optionally with a prefix length".into(),
        })?;
        if seen.insert(address) {
            requested.push(address);
        }
    }
    Ok(requested)
}

/// Reads a resolver's file (resolv.conf(5)).
fn resolver(path: Option<&Path>) -> Result<Dns, Error> {
    let mut dns = Dns::default();
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(dns);
    };
    let text = fs::read(path).map_err(|source| Error::Config {
        key: "ipam.resolvConf",
        value: path.display().to_string(),
        source: source.into(),
    })?;
    // Comments may have any encoding.
    for line in String::from_utf8_lossy(&text).lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}
