//! `hostgw-agent cleanup`: takes away what the agent set up, and what flannel did.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use kernel::nftables::{self, Family, Transaction};
use kernel::{Protocol, Route, RouteChange, Rtnl};
use subnet_env::SubnetEnv;

use crate::error::chain;
use crate::firewall;
use crate::plan::is_of_flannel;
use crate::status::is_running;

/// What is to go.
pub(crate) struct Cleanup {
    pub(crate) flannel: bool,
    /// Only say so.
    pub(crate) is_dry: bool,
    pub(crate) subnet_file: PathBuf,
    pub(crate) state_file: PathBuf,
    pub(crate) socket: PathBuf,
}

/// One thing that goes.
enum Part {
    Route(Route),
    NextHops(Vec<u32>),
    Table,
    Forward(usize),
    Iptables(usize),
    Flannel(firewall::Remain),
    File(PathBuf),
}

impl Cleanup {
    /// Does it, and says what went, or would go.
    pub(crate) async fn run(&self) -> Result<String, String> {
        if !self.is_dry && is_running(&self.socket).await {
            let socket = self.socket.display();
            return Err(format!(
                "an agent runs here (it answers at {socket}), and would put everything back; stop it first"
            ));
        }
        let kernel = Rtnl::connect().map_err(|error| chain(&error))?;
        let (parts, mut failed) = self.parts(&kernel);
        let mut lines = Vec::new();
        for part in parts {
            if self.is_dry {
                lines.push(format!("would remove {part}\n"));
                continue;
            }
            match part.remove(&kernel) {
                Ok(()) => lines.push(format!("removed {part}\n")),
                Err(reason) => failed.push(format!("remove {part}: {reason}")),
            }
        }
        if !failed.is_empty() {
            // What went went.
            return Err(format!("{}{}", lines.concat(), failed.join("\n")));
        }
        if lines.is_empty() {
            lines.push("nothing is left\n".to_owned());
        }
        Ok(lines.concat())
    }

    /// What there is, and what could not be looked at. Routes go before the files that name their
    /// network.
    fn parts(&self, kernel: &Rtnl) -> (Vec<Part>, Vec<String>) {
        let mut parts = Vec::new();
        let mut failed = Vec::new();
        let mut look = |found: Result<Vec<Part>, String>| match found {
            Ok(found) => parts.extend(found),
            Err(reason) => failed.push(reason),
        };
        let file = SubnetEnv::read(&self.subnet_file).ok();
        let networks: Vec<_> = file.iter().flat_map(networks).collect();
        let goes = |route: &Route| {
            let is_ours = route.protocol == Protocol::HOSTGW;
            is_ours || self.flannel && is_of_flannel(route, &networks)
        };
        let routes = kernel.routes().map_err(|error| chain(&error));
        let routes = routes.map(|routes| routes.into_iter().filter(goes));
        look(routes.map(|routes| routes.map(Part::Route).collect()));
        if kernel::has_nexthops() {
            let ids = kernel
                .nexthops(Protocol::HOSTGW)
                .map_err(|error| chain(&error));
            look(ids.map(|ids| some(!ids.is_empty(), Part::NextHops(ids))));
        }
        let table = nftables::has_table(Family::Inet, firewall::TABLE);
        look(
            table
                .map(|is_there| some(is_there, Part::Table))
                .map_err(|error| chain(&error)),
        );
        look(firewall::remove_forward(true).map(|count| some(count > 0, Part::Forward(count))));
        look(firewall::remove_iptables(true).map(|count| some(count > 0, Part::Iptables(count))));
        if self.flannel {
            let remains = firewall::flannels_remains();
            look(remains.map(|remains| remains.into_iter().map(Part::Flannel).collect()));
        }
        let files = [&self.subnet_file, &self.state_file, &self.socket];
        for path in files {
            let is_there = path.try_exists();
            look(
                is_there
                    .map(|is_there| some(is_there, Part::File(path.clone())))
                    .map_err(|error| format!("look for {}: {error}", path.display())),
            );
        }
        (parts, failed)
    }
}

/// A part, if it is there.
fn some(is_there: bool, part: Part) -> Vec<Part> {
    if is_there { vec![part] } else { Vec::new() }
}

/// The cluster's networks, as a subnet file has them.
fn networks(file: &SubnetEnv) -> impl Iterator<Item = IpNetwork> {
    let ipv4 = file.network.iter().copied().map(IpNetwork::V4);
    ipv4.chain(file.ipv6_network.iter().copied().map(IpNetwork::V6))
}

impl Part {
    fn remove(&self, kernel: &Rtnl) -> Result<(), String> {
        match self {
            Self::Route(route) => {
                let changes = [RouteChange::Delete(route.clone())];
                let outcomes = kernel
                    .change_routes(&changes)
                    .map_err(|error| chain(&error))?;
                let done: Result<Vec<()>, _> = outcomes.into_iter().collect();
                done.map(drop).map_err(|error| chain(&error))
            }
            Self::NextHops(ids) => kernel.delete_nexthops(ids).map_err(|error| chain(&error)),
            Self::Table => {
                let mut transaction = Transaction::new();
                transaction.delete_table(Family::Inet, firewall::TABLE);
                transaction
                    .commit("delete our table")
                    .map_err(|error| chain(&error))
            }
            Self::Forward(_) => firewall::remove_forward(false).map(drop),
            Self::Iptables(_) => firewall::remove_iptables(false).map(drop),
            Self::Flannel(remain) => remain.remove(),
            Self::File(path) => remove_file(path).map_err(|error| error.to_string()),
        }
    }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(route) => write!(f, "route {route}"),
            Self::NextHops(ids) => write!(f, "{} next hop(s) of ours", ids.len()),
            Self::Table => write!(f, "nf_tables table inet {}", firewall::TABLE),
            Self::Forward(count) => {
                write!(f, "{count} rule(s) of ours in iptables' FORWARD chains")
            }
            Self::Iptables(count) => write!(f, "{count} iptables chain(s) of ours"),
            Self::Flannel(remain) => write!(f, "flannel's {remain}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}
