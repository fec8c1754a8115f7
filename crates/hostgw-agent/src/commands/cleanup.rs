//! `hostgw-agent cleanup`: removes what the agent set up, and with `--flannel` what flannel did. With
//! `--hand-over`, flanneld continues with the routes.

use std::fmt;
use std::path::PathBuf;

use host_ports::HostPorts;
use ipnetwork::IpNetwork;
use kernel::nftables::{self, Family};
use kernel::{Protocol, Route, RouteChange, Rtnl};
use subnet_env::SubnetEnv;

use crate::error::{Error, Result};
use crate::fast_path;
use crate::files;
use crate::firewall;
use crate::observe::is_running;
use crate::routes::plan::is_flannel_route;

/// Options of the cleanup.
pub(crate) struct Cleanup {
    /// Also flannel's tables, chains and routes.
    pub(crate) flannel: bool,
    /// Leave the routes and the subnet file to flanneld, which is already running.
    pub(crate) hands_over: bool,
    /// Only list it.
    pub(crate) dry_run: bool,
    pub(crate) subnet_file: PathBuf,
    pub(crate) state_file: PathBuf,
    pub(crate) socket: PathBuf,
}

/// One object to remove.
enum Part {
    Route(Route),
    HandedOver(Route),
    NextHops(Vec<u32>),
    Table,
    FastPath,
    HostPorts,
    ForwardRules(usize),
    IptablesChains(usize),
    Flannel(firewall::Leftover),
    File(PathBuf),
}

/// The objects that were found, and errors of the search.
#[derive(Default)]
struct Found {
    parts: Vec<Part>,
    failures: Vec<String>,
}

impl Cleanup {
    /// Removes everything. Returns a line for each part that was removed, or would be.
    pub(crate) async fn run(&self) -> Result<String> {
        if !self.dry_run && is_running(&self.socket).await {
            return Err(Error::StopAgentFirst {
                socket: self.socket.clone(),
                consequence: "restore everything",
            });
        }
        let kernel = Rtnl::connect()?;
        let Found {
            parts,
            mut failures,
        } = self.find(&kernel);
        if self.hands_over && firewall::flannel_leftovers()?.is_empty() {
            return Err(Error::Usage(
                "flannel's rules are not there: start flanneld first (--hand-over)".to_owned(),
            ));
        }
        let mut lines = Vec::new();
        for part in parts {
            // What follows the routes is needed as long as one of them is ours.
            if self.hands_over && !failures.is_empty() {
                break;
            }
            let (verb, done) = part.verbs();
            if self.dry_run {
                lines.push(format!("would {verb} {part}\n"));
                continue;
            }
            match part.remove(&kernel) {
                Ok(()) => lines.push(format!("{done} {part}\n")),
                Err(error) => failures.push(format!("{verb} {part}: {}", error.text())),
            }
        }
        if !failures.is_empty() {
            return Err(Error::Incomplete {
                done: lines.concat(),
                failed: failures.join("\n"),
            });
        }
        if lines.is_empty() {
            lines.push("nothing to remove\n".to_owned());
        }
        Ok(lines.concat())
    }

    /// Finds the parts. Routes come before the files that name their network.
    fn find(&self, kernel: &Rtnl) -> Found {
        let mut found = Found::default();
        let file = SubnetEnv::read(&self.subnet_file).ok();
        let networks: Vec<_> = file.iter().flat_map(networks).collect();
        let is_part = |route: &Route| {
            let is_ours = route.protocol == Protocol::HOSTGW;
            is_ours || self.flannel && is_flannel_route(route, &networks)
        };
        let part = |route: Route| {
            // flanneld does not look at the protocol, and leaves a route with its destination and next hop.
            if self.hands_over && route.is_unicast {
                Part::HandedOver(route)
            } else {
                Part::Route(route)
            }
        };
        found.add(kernel.routes(), |routes| {
            routes.into_iter().filter(is_part).map(part).collect()
        });
        if kernel::has_nexthop_objects() {
            found.add(kernel.nexthops(Protocol::HOSTGW), |ids| {
                part_if(!ids.is_empty(), Part::NextHops(ids))
            });
        }
        found.add(
            nftables::has_table(Family::Inet, firewall::TABLE),
            |exists| part_if(exists, Part::Table),
        );
        found.add(
            nftables::has_table(Family::Inet, fast_path::TABLE),
            |exists| part_if(exists, Part::FastPath),
        );
        // With host ports of pods, the plugin's table stays.
        found.add(host_ports::has_unused_table(), |is_unused| {
            part_if(is_unused, Part::HostPorts)
        });
        found.add(firewall::remove_forward(true), |count| {
            part_if(count > 0, Part::ForwardRules(count))
        });
        found.add(firewall::remove_iptables(true), |count| {
            part_if(count > 0, Part::IptablesChains(count))
        });
        if self.flannel {
            found.add(firewall::flannel_leftovers(), |leftovers| {
                leftovers.into_iter().map(Part::Flannel).collect()
            });
        }
        let subnet_file = Some(&self.subnet_file).filter(|_| !self.hands_over);
        for path in subnet_file
            .into_iter()
            .chain([&self.state_file, &self.socket])
        {
            let exists = path
                .try_exists()
                .map_err(|source| files::Error::io("look for", path, source));
            found.add(exists, |exists| part_if(exists, Part::File(path.clone())));
        }
        found
    }
}

impl Found {
    fn add<T, E: Into<Error>>(&mut self, looked: Result<T, E>, parts: impl Fn(T) -> Vec<Part>) {
        match looked {
            Ok(value) => self.parts.extend(parts(value)),
            Err(error) => self.failures.push(error.into().text()),
        }
    }
}

/// The part, if it exists.
fn part_if(exists: bool, part: Part) -> Vec<Part> {
    if exists { vec![part] } else { Vec::new() }
}

/// The cluster's networks in a subnet file.
fn networks(file: &SubnetEnv) -> impl Iterator<Item = IpNetwork> {
    let ipv4 = file.network.iter().copied().map(IpNetwork::V4);
    ipv4.chain(file.ipv6_network.iter().copied().map(IpNetwork::V6))
}

impl Part {
    /// Returns what is done with the part, in the present and in the past.
    fn verbs(&self) -> (&'static str, &'static str) {
        match self {
            Self::HandedOver(_) => ("hand over", "handed over"),
            _ => ("remove", "removed"),
        }
    }

    fn remove(&self, kernel: &Rtnl) -> Result<()> {
        match self {
            Self::Route(route) => {
                let changes = [RouteChange::Delete(route.clone())];
                for outcome in kernel.change_routes(&changes)? {
                    outcome?;
                }
            }
            Self::HandedOver(route) => {
                let theirs = Route {
                    protocol: Protocol::BOOT,
                    nexthop: None,
                    ..route.clone()
                };
                for outcome in kernel.change_routes(&[RouteChange::Replace(theirs)])? {
                    outcome?;
                }
            }
            Self::NextHops(ids) => kernel.delete_nexthops(ids)?,
            Self::Table => firewall::delete_table()?,
            Self::FastPath => fast_path::delete_table()?,
            Self::HostPorts => drop(HostPorts::lock(kernel)?.delete_unused_table()?),
            Self::ForwardRules(_) => drop(firewall::remove_forward(false)?),
            Self::IptablesChains(_) => drop(firewall::remove_iptables(false)?),
            Self::Flannel(leftover) => leftover.remove()?,
            Self::File(path) => files::remove(path)?,
        }
        Ok(())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(route) | Self::HandedOver(route) => write!(f, "route {route}"),
            Self::NextHops(ids) => write!(f, "{} next hop(s) of ours", ids.len()),
            Self::Table => write!(f, "nf_tables table inet {}", firewall::TABLE),
            Self::FastPath => write!(f, "nf_tables table inet {}", fast_path::TABLE),
            Self::HostPorts => {
                write!(
                    f,
                    "nf_tables table inet {}, without ports",
                    host_ports::TABLE
                )
            }
            Self::ForwardRules(count) => {
                write!(f, "{count} rule(s) of ours in iptables' FORWARD chains")
            }
            Self::IptablesChains(count) => write!(f, "{count} iptables chain(s) of ours"),
            Self::Flannel(leftover) => write!(f, "flannel's {leftover}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}
