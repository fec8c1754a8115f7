//! CHECK: compares an attachment with its result.

use std::net::IpAddr;

use cni::{AddResult, Call, Interface, NetworkName, Parameters, Route};
use host_local::Attachment;
use ipnetwork::IpNetwork;
use kernel::{HostNetns, Kind, Link, Rtnl, sysctl};
use subnet::Subnet;

use crate::add::open_netns;
use crate::config::Config;
use crate::error::Error;
use crate::ipam::Ipam;
use crate::log::StepTimer;
use crate::names::{Names, attachment};
use crate::port_mappings;

/// Compares `prevResult` with the kernel, and fails with the first difference. Changes by later plugins
/// of the list are in `prevResult`; what they added is ignored.
pub(crate) fn check(
    call: &Call,
    parameters: &Parameters,
    config: &Config,
    steps: &mut StepTimer,
) -> Result<(), Error> {
    let Some(previous) = AddResult::previous(&call.config, call.version)? else {
        return Err(Error::Conflict("required prevResult missing"));
    };
    let host_netns = HostNetns::current()?;
    let netns = open_netns(&host_netns, parameters)?;
    let attachment = attachment(parameters);
    let check = Check {
        names: Names::of(&call.network, &attachment),
        attachment,
        config,
        previous: &previous,
        host: Rtnl::connect()?,
        container: Rtnl::connect_in(&host_netns, &netns)?,
    };
    steps.done("netns");
    let bridge = check.bridge()?;
    let container_link = check.interface()?;
    let host_veth = check.host_veth(&bridge, &container_link)?;
    steps.done("links");
    check.addresses(&container_link)?;
    check.routes()?;
    check.neighbours(&bridge, &container_link)?;
    steps.done("addresses");
    check.reservation()?;
    steps.done("ipam");
    // Pods of the `bridge` plugin have rules of their own.
    if host_veth.name == check.names.veth {
        check.masquerade()?;
        steps.done("masquerade");
        check.host_ports(&call.network)?;
        steps.done("host ports");
        let bandwidth = &config.bandwidth;
        if let Some(what) = bandwidth.find_difference(&check.host, &host_veth, &check.names)? {
            return check_failed(what);
        }
        steps.done("bandwidth");
    }
    Ok(())
}

/// One CHECK.
struct Check<'a> {
    attachment: Attachment,
    config: &'a Config,
    previous: &'a AddResult,
    names: Names,
    host: Rtnl,
    container: Rtnl,
}

impl Check<'_> {
    /// Checks that the bridge exists, is up and has the gateways' addresses, and that the node forwards.
    fn bridge(&self) -> Result<Link, Error> {
        let name = &self.config.bridge;
        let Some(bridge) = self.host.link(name)? else {
            return check_failed(format!("bridge {name} is gone"));
        };
        if bridge.kind != Kind::Bridge {
            return check_failed(format!("{name} is not a bridge"));
        }
        if !bridge.is_up {
            return check_failed(format!("bridge {name} is down"));
        }
        if self.config.promiscuous && !bridge.is_promiscuous {
            return check_failed(format!("bridge {name} is not promiscuous"));
        }
        let gateway = |ip: &cni::Ip| IpNetwork::new(ip.gateway?, ip.address.prefix()).ok();
        let gateways: Vec<_> = self.ips().filter_map(gateway).collect();
        if !self.config.is_gateway || gateways.is_empty() {
            return Ok(bridge);
        }
        let present = self.host.addresses(&bridge)?;
        if let Some(missing) = gateways.iter().find(|gateway| !present.contains(gateway)) {
            return check_failed(format!("bridge {name} lacks address {missing}"));
        }
        for (setting, is_needed) in [
            (
                "net/ipv4/ip_forward",
                gateways.iter().any(IpNetwork::is_ipv4),
            ),
            (
                "net/ipv6/conf/all/forwarding",
                gateways.iter().any(IpNetwork::is_ipv6),
            ),
        ] {
            if is_needed && sysctl::get(setting)? == "0" {
                return check_failed(format!("the node does not forward: {setting} is 0"));
            }
        }
        Ok(bridge)
    }

    /// Checks that the container's interface exists and is up, with its hardware address and MTU.
    fn interface(&self) -> Result<Link, Error> {
        let ifname = self.attachment.ifname();
        let Some(link) = self.container.link(ifname)? else {
            return check_failed(format!("interface {ifname} is gone"));
        };
        if link.kind != Kind::Veth {
            return check_failed(format!("interface {ifname} is not a veth"));
        }
        if self.config.is_up && !link.is_up {
            return check_failed(format!("interface {ifname} is down"));
        }
        let is_own = |i: &&Interface| i.name == ifname && !i.sandbox.is_empty();
        let expected = self.previous.interfaces.iter().find(is_own);
        check_mac(&link, "interface", expected)?;
        // Results have the MTU only from 1.1.0 on. `tuning` may set a smaller one without a change
        // in its result, which does no harm.
        let mtu = expected.and_then(|expected| expected.mtu);
        if let Some(mtu) = mtu.filter(|mtu| *mtu != 0 && *mtu < link.mtu) {
            return check_failed(format!(
                "interface {ifname} has MTU {}, not {mtu}",
                link.mtu
            ));
        }
        Ok(link)
    }

    /// Checks that the host veth is the container's other end, up, and a port of the bridge as configured.
    fn host_veth(&self, bridge: &Link, container_link: &Link) -> Result<Link, Error> {
        // Host veths of the bridge plugin have other names, which are in its result.
        let is_host_end = |i: &&Interface| i.sandbox.is_empty() && i.name != self.config.bridge;
        let expected = || self.previous.interfaces.iter().filter(is_host_end);
        let mut candidates = vec![self.names.veth.as_str()];
        candidates.extend(expected().map(|i| i.name.as_str()));
        for name in candidates {
            let Some(link) = self.host.link(name)?.filter(|link| link.kind == Kind::Veth) else {
                continue;
            };
            if link.peer != Some(container_link.index) || container_link.peer != Some(link.index) {
                let what = format!(
                    "host veth {name} is not the other end of {}",
                    container_link.name
                );
                return check_failed(what);
            }
            if link.bridge != Some(bridge.index) {
                return check_failed(format!("host veth {name} is not a port of {}", bridge.name));
            }
            if !link.is_up {
                return check_failed(format!("host veth {name} is down"));
            }
            let expected = expected().find(|i| i.name == name);
            check_mac(&link, "host veth", expected)?;
            let mtu = expected.and_then(|expected| expected.mtu);
            if let Some(mtu) = mtu.filter(|mtu| *mtu != 0 && *mtu != link.mtu) {
                return check_failed(format!("host veth {name} has MTU {}, not {mtu}", link.mtu));
            }
            let (port, wanted) = (link.port.unwrap_or_default(), self.config.port);
            for (what, is_on, is_wanted) in [
                ("hairpin mode", port.hairpin, wanted.hairpin),
                ("port isolation", port.isolated, wanted.isolated),
            ] {
                if is_on != is_wanted {
                    let is_on = if is_on { "on" } else { "off" };
                    return check_failed(format!("host veth {name} has {what} {is_on}"));
                }
            }
            return Ok(link);
        }
        check_failed(format!("host veth {} is gone", self.names.veth))
    }

    fn addresses(&self, container_link: &Link) -> Result<(), Error> {
        let present = self.container.addresses(container_link)?;
        let missing = |ip: &&cni::Ip| !present.contains(&ip.address);
        match self.ips().find(missing) {
            Some(ip) => {
                let what = format!(
                    "interface {} lacks address {}",
                    container_link.name, ip.address
                );
                check_failed(what)
            }
            None => Ok(()),
        }
    }

    fn routes(&self) -> Result<(), Error> {
        if !self.config.is_up {
            return Ok(());
        }
        let main = self.container.routes()?;
        let has_family = |is_ipv4| self.ips().any(|ip| ip.address.is_ipv4() == is_ipv4);
        for route in &self.previous.routes {
            // ADD may have skipped a route of a family without an address.
            if !has_family(route.dst.is_ipv4()) {
                continue;
            }
            let elsewhere = match route.table.filter(|table| *table != 0) {
                Some(table) => Some(self.container.routes_in(table)?),
                None => None,
            };
            let table = elsewhere.as_ref().unwrap_or(&main);
            if !table.iter().any(|found| matches(found, route)) && !self.is_in_rule_table(route)? {
                let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
                return check_failed(format!("route {}{via} is gone", route.dst));
            }
        }
        Ok(())
    }

    /// True if the route is in a table of a policy rule: the `sbr` plugin moves routes there.
    fn is_in_rule_table(&self, route: &Route) -> Result<bool, Error> {
        for table in self.container.rule_tables()? {
            let routes = self.container.routes_in(table)?;
            if routes.iter().any(|found| matches(found, route)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Checks the node's neighbour entries for the container's addresses. A missing one is no
    /// difference: entries expire.
    fn neighbours(&self, bridge: &Link, container_link: &Link) -> Result<(), Error> {
        for ip in self.ips().map(|ip| ip.address.ip()) {
            let known = self.host.neighbour(bridge, ip)?;
            if let (Some(known), Some(mac)) = (known, container_link.mac)
                && known != mac
            {
                return check_failed(format!(
                    "stale neighbour entry for {ip}: {known}, expected {mac}"
                ));
            }
        }
        Ok(())
    }

    fn reservation(&self) -> Result<(), Error> {
        match &self.config.ipam {
            Ipam::Delegate(delegate) => delegate.run("CHECK").map(drop),
            Ipam::None => Ok(()),
            Ipam::HostLocal(_) => {
                let reserved = self.config.store.held(&self.attachment)?;
                let is_free = |ip: &IpAddr| !reserved.contains(ip);
                match self.ips().map(|ip| ip.address.ip()).find(is_free) {
                    Some(ip) => {
                        check_failed(format!("address {ip} is not reserved for this attachment"))
                    }
                    None => Ok(()),
                }
            }
        }
    }

    fn masquerade(&self) -> Result<(), Error> {
        let Some(masquerade) = &self.config.masquerade else {
            return Ok(());
        };
        let subnet = |ip: &cni::Ip| Subnet::of(ip.address).network();
        let subnets: Vec<_> = self.ips().map(subnet).collect();
        match masquerade.missing(&subnets)? {
            Some(subnet) => check_failed(format!("{subnet} is not masqueraded")),
            None => Ok(()),
        }
    }

    fn host_ports(&self, network: &NetworkName) -> Result<(), Error> {
        let addresses = self.ips().map(|ip| ip.address).collect();
        let (attachment, names) = (&self.attachment, &self.names);
        let config = &self.config.port_mappings;
        let record = config.record(network, attachment, names, self.config, addresses)?;
        match record.map(|record| port_mappings::find_difference(&self.host, &record)) {
            Some(Ok(Some(what))) => check_failed(what),
            Some(Err(error)) => Err(error),
            Some(Ok(None)) | None => Ok(()),
        }
    }

    /// Returns the addresses of the attachment's own interface.
    fn ips(&self) -> impl Iterator<Item = &cni::Ip> {
        let ifname = self.attachment.ifname();
        self.previous.ips.iter().filter(move |ip| {
            let interface = ip.interface.and_then(|i| self.previous.interfaces.get(i));
            interface.is_none_or(|i| i.name == ifname && !i.sandbox.is_empty())
        })
    }
}

/// True if the kernel's route is the one in the result. The gateway of an IPv6 route is not compared: the
/// kernel merges two routes to one destination into one with two next hops.
fn matches(route: &kernel::Route, expected: &Route) -> bool {
    route.to == Subnet::of(expected.dst).network()
        && route.is_unicast
        && (expected.gw.is_none() || route.via == expected.gw || route.to.is_ipv6())
        && expected
            .priority
            .is_none_or(|priority| priority == 0 || route.metric == priority)
}

/// Checks the hardware address, if the result has one.
fn check_mac(link: &Link, what: &str, expected: Option<&Interface>) -> Result<(), Error> {
    let Some(expected) = expected else {
        return Ok(());
    };
    let name = &link.name;
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !expected.mac.is_empty() && !expected.mac.eq_ignore_ascii_case(&mac) {
        let wanted = &expected.mac;
        return check_failed(format!(
            "{what} {name} has hardware address {mac}, not {wanted}"
        ));
    }
    Ok(())
}

fn check_failed<T>(what: String) -> Result<T, Error> {
    Err(Error::CheckFailed(what))
}
