//! Flows of connection tracking that were translated before a mapping was added, or while it existed.
//!
//! The kernel translates the packets of a known flow as it did the first one. A UDP client that keeps
//! its socket would reach the previous pod, or the node itself, for as long as it sends.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::conntrack::{self, Flow};
use kernel::{Error, Rtnl};

use crate::mapping::{Mapping, Protocol};

/// Up to how many ports the kernel is asked for each port alone.
const SINGLE_PORTS: usize = 4;

/// Deletes flows to the mapped ports of the node that do not lead to the mapping's target.
pub(crate) fn delete_older(host: &Rtnl, mappings: &[Mapping]) -> Result<(), Error> {
    if !mappings.iter().any(|mapping| mapping.protocol.is_silent()) {
        return Ok(());
    }
    let own: BTreeSet<_> = host.local_addresses()?.into_iter().collect();
    delete(mappings, |flow, mapping| {
        let is_to_node = match mapping.host_ip {
            Some(ip) => flow.destination.ip() == ip,
            None => own.contains(&flow.destination.ip()),
        };
        is_to_node && flow.reply_source != mapping.target
    })
}

/// Deletes flows that lead to the mappings' targets.
pub(crate) fn delete_current(mappings: &[Mapping]) -> Result<(), Error> {
    delete(mappings, |flow, mapping| {
        let ip: IpAddr = flow.destination.ip();
        flow.reply_source == mapping.target && mapping.host_ip.is_none_or(|host| host == ip)
    })
}

fn delete(
    mappings: &[Mapping],
    is_unwanted: impl Fn(&Flow, &Mapping) -> bool,
) -> Result<(), Error> {
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        for is_ipv6 in [false, true] {
            let of_kind = mappings
                .iter()
                .filter(|m| m.protocol == protocol && m.target.is_ipv6() == is_ipv6);
            let of_kind: Vec<_> = of_kind.collect();
            let ports: BTreeSet<_> = of_kind.iter().map(|mapping| mapping.host_port).collect();
            let mut flows = Vec::new();
            if ports.len() > SINGLE_PORTS {
                flows = conntrack::flows(is_ipv6, protocol.number(), None)?;
            } else {
                for port in ports {
                    flows.extend(conntrack::flows(is_ipv6, protocol.number(), Some(port))?);
                }
            }
            for flow in flows {
                let mut same_port = of_kind
                    .iter()
                    .filter(|mapping| mapping.host_port == flow.destination.port());
                if same_port.any(|mapping| is_unwanted(&flow, mapping)) {
                    flow.delete()?;
                }
            }
        }
    }
    Ok(())
}
