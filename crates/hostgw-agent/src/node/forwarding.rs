//! The node's sysctls for its pods: forwarding is on, and bridges ignore router advertisements.

use kernel::{Link, Rtnl, sysctl};
use tracing::info;

/// Why forwarding cannot be turned on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(
        "{0} is not 1, so packets from and to pods are not forwarded, and /proc/sys is read-only here; run `sysctl -w {0}=1` on the node"
    )]
    ReadOnly(String),
}

/// Which sysctls were changed, and which could not be.
#[derive(Default)]
pub(crate) struct SysctlOutcome {
    /// A sentence for each sysctl that had another value.
    pub(crate) corrected: Vec<String>,
    pub(crate) problems: Vec<Error>,
}

/// The families and interfaces for which a node has to forward.
pub(crate) struct Forwarding<'a> {
    /// The interface to the other nodes.
    pub(crate) uplink: &'a Link,
    /// The bridges of its pods.
    pub(crate) bridges: &'a [Link],
    /// The families of its pods.
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
}

impl Forwarding<'_> {
    /// Turns forwarding on for the uplink, the bridges with pods, and interfaces that are still to
    /// be created. In a container that may not write sysctls, the problem names the command.
    pub(crate) fn ensure(&self, kernel: &Rtnl) -> SysctlOutcome {
        let mut outcome = SysctlOutcome::default();
        if self.ipv4 {
            outcome.turn_on("net/ipv4/ip_forward", |name| sysctl::set(name, "1"));
            self.turn_on_interfaces("ipv4", &mut outcome);
        }
        if self.ipv6 {
            self.keep_router_of_uplink(&mut outcome);
            outcome.turn_on("net/ipv6/conf/all/forwarding", |_| {
                kernel.enable_ipv6_forwarding(Link::may_be_uplink)
            });
            self.turn_on_interfaces("ipv6", &mut outcome);
        }
        outcome
    }

    fn turn_on_interfaces(&self, family: &str, outcome: &mut SysctlOutcome) {
        let path = |interface: &str| format!("net/{family}/conf/{interface}/forwarding");
        let mut defaults = SysctlOutcome::default();
        defaults.turn_on(&path("default"), |name| sysctl::set(name, "1"));
        if !self.bridges.is_empty() {
            // The default is for a bridge that is still to be created, and there is one.
            defaults.problems.clear();
        }
        outcome.corrected.append(&mut defaults.corrected);
        outcome.problems.append(&mut defaults.problems);
        let bridges = self.bridges.iter().map(|bridge| &bridge.name);
        for interface in [&self.uplink.name].into_iter().chain(bridges) {
            outcome.turn_on(&path(interface), |name| sysctl::set(name, "1"));
        }
    }

    /// A node that forwards ignores router advertisements unless `accept_ra` is 2. The uplink may
    /// get its default route only later. Where this cannot be written, the plugin writes it when it
    /// attaches the first pod.
    fn keep_router_of_uplink(&self, outcome: &mut SysctlOutcome) {
        let accept_ra = format!("net/ipv6/conf/{}/accept_ra", self.uplink.name);
        if !sysctl::get(&accept_ra).is_ok_and(|value| value == "1") {
            return;
        }
        match sysctl::set(&accept_ra, "2") {
            Err(error) if !error.is_read_only() => outcome.problems.push(error.into()),
            _ => {}
        }
    }
}

impl SysctlOutcome {
    /// Sets a sysctl to 1. One that this kernel does not have, or of an interface that was just
    /// deleted, is ignored.
    fn turn_on(&mut self, name: &str, set: impl Fn(&str) -> Result<(), kernel::Error>) {
        let value = match sysctl::get(name) {
            Err(error) if error.is_gone() => return,
            other => other,
        };
        let shown = sysctl_name(name);
        match value.and_then(|value| set(name).map(|()| value)) {
            Ok(value) if value == "1" => {}
            Ok(value) => self
                .corrected
                .push(format!("{shown} was {value}; set it to 1")),
            Err(error) if error.is_gone() => {}
            Err(error) if error.is_read_only() => self.problems.push(Error::ReadOnly(shown)),
            Err(error) => self.problems.push(error.into()),
        }
    }
}

/// A path below `/proc/sys` as `sysctl` writes it: dots for slashes, and a slash for a dot in an
/// interface's name.
fn sysctl_name(path: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    path.chars().map(swap).collect()
}

/// Makes bridges with pods ignore router advertisements: otherwise a pod could become the node's
/// router. In a container that may not write sysctls, the plugin does this at each ADD.
pub(crate) fn disable_ra(kernel: &Rtnl, bridges: &[Link]) -> Result<(), kernel::Error> {
    for bridge in bridges {
        if !kernel.accepts_ra(bridge)? {
            continue;
        }
        match kernel.disable_ra(bridge) {
            Err(error) if error.is_read_only() => continue,
            other => other?,
        }
        info!("set accept_ra of {} to 0: pods are on it", bridge.name);
        // If the node itself has a port on it, routes that a router announced expire by themselves.
        if kernel
            .ports(bridge)?
            .iter()
            .all(Link::has_peer_in_other_netns)
        {
            kernel.delete_ra_state(bridge)?;
        }
    }
    Ok(())
}
