//! Our own address management: what the configuration says of it, and the reservation.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cni::{Attached, CniArgs, Dns, Json, NetConf, NetworkName, RangeConf, RouteConf, Version};
use host_local::{
    Attachment, Boot, Overlap, Range, RangeSet, RangeSets, RangeSpec, Store, StoreError,
    unless_absent,
};
use ipnetwork::IpNetwork;
use kernel::Rtnl;
use serde::Deserialize;

use super::{Address, Allocation, Undo};
use crate::error::Error;
use crate::names::{Names, Owner};
use crate::routes::masked;
use crate::source::Source;

const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// An ADD in flight has no veth yet; one that takes longer than this is none.
const IN_FLIGHT: Duration = Duration::from_secs(60);

/// Where stores of this node are that have a `dataDir` of their own: a line each. What is there
/// goes with the boot, as reservations do.
const DATA_DIRS: &str = "/run/cni-hostgw/data-dirs";

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
    /// Explicit ranges are taken as they are; without any, the node's subnets are the ranges. In
    /// flannel's form they always are, behind the runtime's.
    pub(super) fn read(source: &Source<'_>) -> Result<Self, Error> {
        let Source { conf, args, .. } = source;
        let mut ranges = conf
            .range_sets()?
            .iter()
            .map(|set| specs(set))
            .collect::<Vec<_>>();
        if ranges.is_empty() || conf.has_delegate {
            ranges.extend(source.subnets.iter().map(|s| vec![RangeSpec::from(*s)]));
        }
        let ipam = conf.ipam.as_ref();
        let mut routes = ipam.map(|ipam| ipam.routes.clone()).unwrap_or_default();
        // Explicit ranges may be of fewer families than the cluster.
        let has_range = |network: &&IpNetwork| {
            let mut specs = ranges.iter().flatten();
            specs.any(|range| range.subnet.is_ipv4() == network.is_ipv4())
        };
        for network in source.networks.iter().filter(has_range) {
            let route = RouteConf::new(*network, None);
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
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
            Err(error @ (StoreError::Exhausted { .. } | StoreError::Unavailable { .. })) => {
                let taken_back = reclaim(host, store, &self.network)?;
                if taken_back == 0 {
                    return Err(error.into());
                }
                reserve().map_err(|error| error.after_reclaiming(taken_back))?
            }
            other => other?,
        };
        refuse_live(host, &reservation.taken_up())?;
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
        let gateway = |range: &Range| range.with_prefix(range.gateway());
        self.ranges().map(gateway).collect()
    }

    /// The subnets that addresses are given out from, each once.
    pub(crate) fn subnets(&self) -> Vec<IpNetwork> {
        let mut subnets: Vec<_> = self.ranges().map(Range::subnet).collect();
        subnets.dedup();
        subnets
    }

    fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.ranges.iter().flat_map(RangeSet::ranges)
    }

    /// Errors when another network of the node holds addresses of these subnets: both would give
    /// out the same ones.
    pub(crate) fn refuse_shared_subnet(
        &self,
        host: &Rtnl,
        store: &Store,
        network: &NetworkName,
    ) -> Result<(), Error> {
        let data_dirs = data_dirs(store)?;
        let is_gone = is_gone(host);
        match store.overlap(&data_dirs, &self.ranges, IN_FLIGHT, is_gone)? {
            None => Ok(()),
            Some(other) => Err(shared(network, self.subnets(), other)),
        }
    }

    /// Errors when a route has a gateway that the container has no way to. The kernel would refuse
    /// it.
    pub(crate) fn check_gateways(&self) -> Result<(), Error> {
        let subnets = self.subnets();
        let unreachable = |route: &&RouteConf| route.is_unreachable_from(&subnets);
        match self.routes.iter().find(unreachable) {
            None => Ok(()),
            Some(route) => Err(Error::Config {
                key: "ipam.routes",
                value: unreachable_route(route),
                source: "the gw is in none of the subnets".into(),
            }),
        }
    }
}

fn unreachable_route(route: &RouteConf) -> String {
    let gw = route.gw.map(|gw| format!(", gw {gw}")).unwrap_or_default();
    format!("dst {}{gw}", route.dst)
}

/// Gives back what is reserved for attachments whose veth is gone, and says how many addresses
/// that were.
pub(crate) fn reclaim(host: &Rtnl, store: &Store, network: &NetworkName) -> Result<usize, Error> {
    let links = host.links()?;
    let is_gone = |attachment: &Attachment| {
        let names = Names::of_reserved(network, attachment);
        !links.iter().any(|link| names.is_of(link))
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

/// Errors when a pod of another plugin's has one of the addresses that an ADD takes up again: the
/// attachment lives, in another namespace or under another interface's name.
fn refuse_live(host: &Rtnl, taken_up: &[IpAddr]) -> Result<(), Error> {
    if taken_up.is_empty() {
        return Ok(());
    }
    for link in host.links()? {
        let is_others = link.leads_elsewhere() && Owner::of(&link).is_none();
        if is_others {
            let has = host.addresses_of_peer(&link)?;
            if taken_up.iter().any(|address| has.contains(address)) {
                return Err(Error::Live(link.name));
            }
        }
    }
    Ok(())
}

/// Errors when another network of the node holds one of these addresses.
pub(super) fn refuse_shared_addresses(
    host: &Rtnl,
    store: &Store,
    network: &NetworkName,
    addresses: &[Address],
) -> Result<(), Error> {
    let data_dirs = data_dirs(store)?;
    for address in addresses {
        let ip = address.address.ip();
        let held = store.held_elsewhere(&data_dirs, ip, IN_FLIGHT, is_gone(host))?;
        if let Some(other) = held {
            return Err(shared(network, vec![masked(address.address)], other));
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

/// Whether the interface of another network's attachment is gone for certain.
fn is_gone(host: &Rtnl) -> impl Fn(&str, &Attachment) -> bool {
    |network, attachment| {
        // What cannot be looked up is not known to be gone.
        let link = |network| host.link(&Names::of_reserved(&network, attachment).veth);
        NetworkName::new(network).is_ok_and(|network| matches!(link(network), Ok(None)))
    }
}

/// The folder that a store lies in.
fn data_dir(store: &Store) -> &Path {
    store.dir().parent().unwrap_or(Path::new("/"))
}

/// The folders that stores of this node lie in.
fn data_dirs(store: &Store) -> Result<Vec<PathBuf>, Error> {
    let noted = unless_absent(fs::read(DATA_DIRS)).map_err(Error::DataDirs)?;
    let noted = String::from_utf8_lossy(&noted.unwrap_or_default()).into_owned();
    // What is no path is not one that we noted.
    let paths = noted.lines().filter(|line| !line.contains('\0'));
    let mut all: Vec<_> = paths.map(PathBuf::from).collect();
    for known in [Path::new(DEFAULT_DATA_DIR), data_dir(store)] {
        if !all.iter().any(|dir| dir == known) {
            all.push(known.to_owned());
        }
    }
    Ok(all)
}

/// Notes the folder of a store for other networks, where it has one of its own. To be called under
/// the lock of the node's bridges.
pub(crate) fn note_data_dir(store: &Store) -> Result<(), Error> {
    let own = data_dir(store);
    if own == Path::new(DEFAULT_DATA_DIR) {
        return Ok(());
    }
    let note = || -> io::Result<()> {
        let noted = unless_absent(fs::read(DATA_DIRS))?.unwrap_or_default();
        let noted = String::from_utf8_lossy(&noted);
        if noted.lines().any(|line| Path::new(line) == own) {
            return Ok(());
        }
        let path = Path::new(DATA_DIRS);
        fs::create_dir_all(path.parent().expect("a file lies in a folder"))?;
        let mut file = File::options().append(true).create(true).open(path)?;
        file.write_all(format!("{}\n", own.display()).as_bytes())
    };
    note().map_err(Error::DataDirs)
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
        let address = if text.contains('/') {
            cni::network(text).map(|network| network.ip().to_canonical())
        } else {
            cni::address(text)
        };
        let address = address.ok_or_else(|| Error::Config {
            key,
            value: format!("{text:?}"),
            source: "is not an IP address, perhaps with a prefix length".into(),
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
    let text = fs::read(path).map_err(|source| Error::Config {
        key: "ipam.resolvConf",
        value: path.display().to_string(),
        source: source.into(),
    })?;
    // A comment may be in any encoding.
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
