//! CHECK: whether an attachment is still what ADD made of it.

use std::net::IpAddr;

use cni::{AddResult, Attached, Call, Interface, RouteConf};
use host_local::Attachment;
use ipnetwork::IpNetwork;
use kernel::{Home, Kind, Link, Rtnl, sysctl};

use crate::add::open_netns;
use crate::config::Config;
use crate::error::Error;
use crate::ipam::Ipam;
use crate::log::Steps;
use crate::names::Names;
use crate::routes::masked;

/// Compares what `prevResult` promises with what is there, and names the first difference.
/// What later plugins changed is in `prevResult`, and what they added does not matter.
pub(crate) fn check(
    call: &Call,
    attached: &Attached,
    config: &Config,
    steps: &mut Steps,
) -> Result<(), Error> {
    let Some(previous) = AddResult::previous(&call.config, call.version)? else {
        return Err(Error::Conflict("required prevResult missing"));
    };
    let home = Home::current()?;
    let netns = open_netns(&home, attached)?;
    let attachment = Promised {
        attached,
        config,
        previous: &previous,
        names: Names::of(&call.network, attached),
        host: Rtnl::connect()?,
        container: Rtnl::connect_in(&home, &netns)?,
    };
    steps.done("netns");
    let bridge = attachment.bridge()?;
    let inside = attachment.interface()?;
    let host_veth = attachment.host_veth(&bridge, &inside)?;
    steps.done("links");
    attachment.addresses(&inside)?;
    attachment.routes()?;
    attachment.neighbours(&bridge, &inside)?;
    steps.done("addresses");
    attachment.reservation()?;
    steps.done("ipam");
    // The `bridge` plugin's own pods have rules of their own.
    if host_veth.name == attachment.names.veth {
        attachment.masquerade()?;
        steps.done("masquerade");
    }
    Ok(())
}

/// What ADD promised, and where to look.
struct Promised<'a> {
    attached: &'a Attached,
    config: &'a Config,
    previous: &'a AddResult,
    names: Names,
    host: Rtnl,
    container: Rtnl,
}

impl Promised<'_> {
    /// The bridge is there, up, and with the gateways' addresses; the node forwards.
    fn bridge(&self) -> Result<Link, Error> {
        let name = &self.config.bridge;
        let Some(bridge) = self.host.link(name)? else {
            return different(format!("bridge {name} is gone"));
        };
        if bridge.kind != Kind::Bridge {
            return different(format!("{name} is not a bridge"));
        }
        if !bridge.is_up {
            return different(format!("bridge {name} is down"));
        }
        if self.config.promiscuous && !bridge.is_promiscuous {
            return different(format!("bridge {name} is not promiscuous"));
        }
        let gateway = |ip: &cni::Ip| IpNetwork::new(ip.gateway?, ip.address.prefix()).ok();
        let gateways: Vec<_> = self.ips().filter_map(gateway).collect();
        if !self.config.is_gateway || gateways.is_empty() {
            return Ok(bridge);
        }
        let present = self.host.addresses(&bridge)?;
        if let Some(missing) = gateways.iter().find(|gateway| !present.contains(gateway)) {
            return different(format!("bridge {name} lacks address {missing}"));
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
                return different(format!("the node does not forward: {setting} is 0"));
            }
        }
        Ok(bridge)
    }

    /// The container's interface is there and up, with its hardware address and MTU.
    fn interface(&self) -> Result<Link, Error> {
        let ifname = self.attached.ifname.as_str();
        let Some(link) = self.container.link(ifname)? else {
            return different(format!("interface {ifname} is gone"));
        };
        if link.kind != Kind::Veth {
            return different(format!("interface {ifname} is not a veth"));
        }
        if self.config.is_up && !link.is_up {
            return different(format!("interface {ifname} is down"));
        }
        let is_it = |i: &&Interface| i.name == ifname && !i.sandbox.is_empty();
        let promised = self.previous.interfaces.iter().find(is_it);
        has_promised_mac(&link, "interface", promised)?;
        // Told only from 1.1.0 on. A smaller one is what `tuning` sets without a word in its
        // result, and does no harm.
        let mtu = promised.and_then(|promised| promised.mtu);
        if let Some(mtu) = mtu.filter(|mtu| *mtu != 0 && *mtu < link.mtu) {
            return different(format!(
                "interface {ifname} has MTU {}, not {mtu}",
                link.mtu
            ));
        }
        Ok(link)
    }

    /// The host veth is the container's other end, up, and a port of the bridge as configured.
    fn host_veth(&self, bridge: &Link, inside: &Link) -> Result<Link, Error> {
        // The bridge plugin gave its host veths names of its own; they stand in its result.
        let is_theirs = |i: &&Interface| i.sandbox.is_empty() && i.name != self.config.bridge;
        let promised = || self.previous.interfaces.iter().filter(is_theirs);
        let mut candidates = vec![self.names.veth.as_str()];
        candidates.extend(promised().map(|i| i.name.as_str()));
        for name in candidates {
            let Some(link) = self.host.link(name)?.filter(|link| link.kind == Kind::Veth) else {
                continue;
            };
            if link.peer != Some(inside.index) || inside.peer != Some(link.index) {
                let what = format!("host veth {name} is not the other end of {}", inside.name);
                return different(what);
            }
            if link.bridge != Some(bridge.index) {
                return different(format!("host veth {name} is no port of {}", bridge.name));
            }
            if !link.is_up {
                return different(format!("host veth {name} is down"));
            }
            let promised = promised().find(|i| i.name == name);
            has_promised_mac(&link, "host veth", promised)?;
            let mtu = promised.and_then(|promised| promised.mtu);
            if let Some(mtu) = mtu.filter(|mtu| *mtu != 0 && *mtu != link.mtu) {
                return different(format!("host veth {name} has MTU {}, not {mtu}", link.mtu));
            }
            let (port, wanted) = (link.port.unwrap_or_default(), self.config.port);
            for (what, is_on, is_wanted) in [
                ("hairpin mode", port.hairpin, wanted.hairpin),
                ("port isolation", port.isolated, wanted.isolated),
            ] {
                if is_on != is_wanted {
                    let is_on = if is_on { "on" } else { "off" };
                    return different(format!("host veth {name} has {what} {is_on}"));
                }
            }
            return Ok(link);
        }
        different(format!("host veth {} is gone", self.names.veth))
    }

    fn addresses(&self, inside: &Link) -> Result<(), Error> {
        let present = self.container.addresses(inside)?;
        let missing = |ip: &&cni::Ip| !present.contains(&ip.address);
        match self.ips().find(missing) {
            Some(ip) => {
                let what = format!("interface {} lacks address {}", inside.name, ip.address);
                different(what)
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
            // A route of a family without an address may have been left out.
            if !has_family(route.dst.is_ipv4()) {
                continue;
            }
            let elsewhere = match route.table.filter(|table| *table != 0) {
                Some(table) => Some(self.container.routes_in(table)?),
                None => None,
            };
            let is_it = |r: &kernel::Route| is_it(r, route);
            if !elsewhere.as_ref().unwrap_or(&main).iter().any(is_it) && !self.is_moved(route)? {
                let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
                return different(format!("route {}{via} is gone", route.dst));
            }
        }
        Ok(())
    }

    /// Whether the route is in a table that a rule leads to: `sbr` moves them there.
    fn is_moved(&self, route: &RouteConf) -> Result<bool, Error> {
        for table in self.container.tables_of_rules()? {
            let routes = self.container.routes_in(table)?;
            if routes.iter().any(|r| is_it(r, route)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the node believes of the container's addresses is right. Nothing is, too: an entry
    /// that nobody used ages.
    fn neighbours(&self, bridge: &Link, inside: &Link) -> Result<(), Error> {
        for ip in self.ips().map(|ip| ip.address.ip()) {
            let known = self.host.neighbour(bridge, ip)?;
            if let (Some(known), Some(mac)) = (known, inside.mac)
                && known != mac
            {
                return different(format!(
                    "the node believes {ip} at {known}, and {} has {mac}",
                    inside.name
                ));
            }
        }
        Ok(())
    }

    fn reservation(&self) -> Result<(), Error> {
        let Attached {
            container_id,
            ifname,
            ..
        } = self.attached;
        match &self.config.ipam {
            Ipam::Delegate(delegate) => delegate.run("CHECK").map(drop),
            Ipam::None => Ok(()),
            Ipam::HostLocal(_) => {
                let who = Attachment::new(container_id.as_str(), ifname.as_str());
                let held = self.config.store.held(&who)?;
                let is_free = |ip: &IpAddr| !held.contains(ip);
                match self.ips().map(|ip| ip.address.ip()).find(is_free) {
                    Some(ip) => different(format!("address {ip} is not reserved for it")),
                    None => Ok(()),
                }
            }
        }
    }

    fn masquerade(&self) -> Result<(), Error> {
        let Some(masquerade) = &self.config.masquerade else {
            return Ok(());
        };
        let subnet = |ip: &cni::Ip| IpNetwork::new(ip.address.network(), ip.address.prefix()).ok();
        let subnets: Vec<_> = self.ips().filter_map(subnet).collect();
        match masquerade.missing(&subnets)? {
            Some(subnet) => different(format!("{subnet} is not masqueraded")),
            None => Ok(()),
        }
    }

    /// The addresses of the attachment's own interface.
    fn ips(&self) -> impl Iterator<Item = &cni::Ip> {
        let ifname = self.attached.ifname.as_str();
        self.previous.ips.iter().filter(move |ip| {
            let interface = ip.interface.and_then(|i| self.previous.interfaces.get(i));
            interface.is_none_or(|i| i.name == ifname && !i.sandbox.is_empty())
        })
    }
}

/// Of two IPv6 routes to one destination, the kernel makes one with two next hops.
fn is_it(route: &kernel::Route, promised: &RouteConf) -> bool {
    route.to == masked(promised.dst)
        && route.is_unicast
        && (promised.gw.is_none() || route.via == promised.gw || route.to.is_ipv6())
        && promised
            .priority
            .is_none_or(|priority| priority == 0 || route.metric == priority)
}

/// The hardware address, as far as the result says anything of it.
fn has_promised_mac(link: &Link, what: &str, promised: Option<&Interface>) -> Result<(), Error> {
    let Some(promised) = promised else {
        return Ok(());
    };
    let name = &link.name;
    let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !promised.mac.is_empty() && !promised.mac.eq_ignore_ascii_case(&mac) {
        let wanted = &promised.mac;
        return different(format!(
            "{what} {name} has hardware address {mac}, not {wanted}"
        ));
    }
    Ok(())
}

fn different<T>(what: String) -> Result<T, Error> {
    Err(Error::Different(what))
}
