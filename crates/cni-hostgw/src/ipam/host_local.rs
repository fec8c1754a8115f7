//! Our own address management: what the configuration says of it, and the reservation.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::{
    Attached, CniArgs, Dns, Ipam, Json, NetConf, NetworkName, RangeConf, RouteConf, Version,
};
use host_local::{Attachment, Boot, Range, RangeSet, RangeSets, RangeSpec, Store, StoreError};
use ipnetwork::IpNetwork;
use kernel::Rtnl;
use serde::Deserialize;

use super::{Address, Allocation, Undo};
use crate::error::Error;
use crate::names::Names;
use crate::source::Source;

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// An ADD in flight has no veth yet; one that takes longer than this is none.
const IN_FLIGHT: Duration = Duration::from_secs(60);

/// Where addresses come from, and what goes with them.
#[derive(Debug)]
pub(crate) struct Pool {
    network: NetworkName,
    ranges: RangeSets,
    requested: Vec<IpAddr>,
    routes: Vec<RouteConf>,
    dns: Dns,
}

impl Pool {
    /// Explicit ranges are taken as they are; without any, the node's subnets are the ranges.
    pub(super) fn read(source: &Source<'_>) -> Result<Self, Error> {
        let Source { conf, args, .. } = source;
        let mut ranges = explicit_ranges(conf)?;
        if ranges.is_empty() {
            let range = |subnet: &IpNetwork| vec![RangeSpec::from(*subnet)];
            ranges = source.subnets.iter().map(range).collect();
        }
        let ipam = conf.ipam.as_ref();
        let mut routes = ipam.map(|ipam| ipam.routes.clone()).unwrap_or_default();
        // Explicit ranges may be of fewer families than the cluster.
        let has_range = |network: &&IpNetwork| {
            let mut specs = ranges.iter().flatten();
            specs.any(|range| range.subnet.is_ipv4() == network.is_ipv4())
        };
        let networks = source.networks.iter().filter(has_range);
        routes.extend(networks.map(|network| RouteConf::new(*network, None)));
        Ok(Self {
            network: source.call.network.clone(),
            ranges: range_sets(&ranges, source.call.version)?,
            requested: requested(conf, args)?,
            routes,
            dns: resolver(ipam.and_then(|ipam| ipam.resolv_conf.as_deref()))?,
        })
    }

    /// Reserves one address of each range set. Before a range counts as exhausted, reservations
    /// whose veth is gone are given back: nobody sent their DEL.
    pub(super) fn reserve<'a>(
        &'a self,
        host: &Rtnl,
        store: &'a Store,
        attached: &Attached,
    ) -> Result<Allocation<'a>, Error> {
        let attachment = Attachment::new(attached.container_id.as_str(), attached.ifname.as_str());
        let reserve = || store.reserve(&attachment, &self.ranges, &self.requested);
        let reservation = match reserve() {
            Err(error @ StoreError::Exhausted { .. }) => {
                let taken_back = reclaim(host, store, &self.network)?;
                if taken_back == 0 {
                    return Err(error.into());
                }
                reserve().map_err(|error| error.after_reclaiming(taken_back))?
            }
            other => other?,
        };
        let address = |(address, range): &(IpAddr, Range)| Address {
            address: range.with_prefix(*address),
            gateway: Some(range.gateway()),
        };
        Ok(Allocation {
            addresses: reservation.addresses().iter().map(address).collect(),
            routes: self.routes.clone(),
            dns: self.dns.clone(),
            undo: Undo::GiveBack(reservation),
        })
    }

    pub(super) fn gateways(&self) -> Vec<IpNetwork> {
        let ranges = self.ranges.iter().flat_map(RangeSet::ranges);
        ranges
            .map(|range| range.with_prefix(range.gateway()))
            .collect()
    }
}

/// Gives back what is reserved for attachments whose veth is gone, and says how many addresses
/// that were.
pub(crate) fn reclaim(host: &Rtnl, store: &Store, network: &NetworkName) -> Result<usize, Error> {
    let links = host.links()?;
    let names: BTreeSet<_> = links.iter().map(|link| link.name.as_str()).collect();
    let is_gone = |attachment: &Attachment| {
        let veth = Names::of_reserved(network, attachment).veth;
        !names.contains(veth.as_str())
    };
    Ok(store.reclaim(IN_FLIGHT, is_gone)?)
}

/// The store of `network`, as DEL finds it: with the one key that says where it is. Whatever
/// else became of the configuration since ADD does not matter.
pub(crate) fn store_of(network: &NetworkName, json: &Json) -> Result<Store, Error> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Where {
        data_dir: Option<PathBuf>,
    }
    let ipam = json
        .object("ipam")
        .and_then(|ipam| ipam.to::<Where>().ok())
        .unwrap_or_default();
    open_store(ipam.data_dir, network)
}

/// The store of `network` under `data_dir`, or where host-local has it.
pub(crate) fn open_store(data_dir: Option<PathBuf>, network: &NetworkName) -> Result<Store, Error> {
    // An empty path is no path: it would mean wherever the runtime happens to stand.
    let data_dir = data_dir.filter(|path| !path.as_os_str().is_empty());
    let data_dir = data_dir.as_deref().unwrap_or(Path::new(DEFAULT_DATA_DIR));
    let boot = Boot::current().map_err(Error::Boot)?;
    Ok(Store::new(data_dir, network.as_str(), boot))
}

/// Whether the configuration names ranges, so that the node's subnets need not be known.
pub(crate) fn has_ranges(conf: &NetConf) -> bool {
    let names_some = |ipam: &Ipam| {
        let part = ipam.range_start.or(ipam.range_end).or(ipam.gateway);
        ipam.subnet.is_some() || part.is_some() || !ipam.ranges.is_empty()
    };
    !conf.runtime_config.ip_ranges.is_empty() || conf.ipam.as_ref().is_some_and(names_some)
}

/// The ranges that the configuration names, in host-local's order: the runtime's, the older
/// form's single one, the list's.
fn explicit_ranges(conf: &NetConf) -> Result<Vec<Vec<RangeSpec>>, Error> {
    let default = Ipam::default();
    let Ipam {
        subnet,
        range_start,
        range_end,
        gateway,
        ref ranges,
        ..
    } = *conf.ipam.as_ref().unwrap_or(&default);
    if let (None, Some(address)) = (subnet, range_start.or(range_end).or(gateway)) {
        let source = "rangeStart, rangeEnd and gateway belong to a subnet".into();
        let value = format!("missing, with {address}");
        return Err(Error::Config {
            key: "ipam.subnet",
            value,
            source,
        });
    }
    let single = subnet.map(|subnet| {
        vec![RangeConf {
            subnet,
            range_start,
            range_end,
            gateway,
        }]
    });
    let spec = |range: &RangeConf| RangeSpec {
        subnet: range.subnet,
        start: range.range_start,
        end: range.range_end,
        gateway: range.gateway,
    };
    let sets = conf
        .runtime_config
        .ip_ranges
        .iter()
        .chain(&single)
        .chain(ranges);
    Ok(sets.map(|set| set.iter().map(spec).collect()).collect())
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

/// Requested addresses: the runtime's capability, `args.cni`, `CNI_ARGS`, each once.
fn requested(conf: &NetConf, args: &CniArgs) -> Result<Vec<IpAddr>, Error> {
    let keyed = |key| move |text| (key, text);
    let all = conf
        .runtime_config
        .ips
        .iter()
        .map(keyed("runtimeConfig.ips"));
    let all = all.chain(conf.args.ips.iter().map(keyed("args.cni.ips")));
    let all = all.chain(args.ip.iter().map(keyed("CNI_ARGS IP")));
    // Nothing is no address to ask for.
    let all = all.filter(|(_, text)| !text.is_empty());
    let mut seen = BTreeSet::new();
    let mut requested = Vec::new();
    for (key, text) in all {
        // The prefix length is the range's; what is asked for is an address.
        let address = text.split('/').next().unwrap_or_default();
        let address = address
            .parse()
            .map_err(|source: std::net::AddrParseError| Error::Config {
                key,
                value: format!("{text:?}"),
                source: source.into(),
            })?;
        if seen.insert(address) {
            requested.push(address);
        }
    }
    Ok(requested)
}

/// What a resolver's file says (resolv.conf(5)).
fn resolver(path: Option<&Path>) -> Result<Dns, Error> {
    let mut dns = Dns::default();
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(dns);
    };
    let text = fs::read_to_string(path).map_err(|source| Error::Config {
        key: "ipam.resolvConf",
        value: path.display().to_string(),
        source: source.into(),
    })?;
    for line in text.lines() {
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
