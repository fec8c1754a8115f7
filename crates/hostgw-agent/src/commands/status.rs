//! `hostgw-agent status`: shows what the agent of this node does.

use std::fmt::Write;
use std::path::Path;

use crate::error::Result;
use crate::observe::{NodeReport, PeerReport, PeerState, StatusReport, status_report};

/// Asks the agent, and returns its answer: as it is with `as_json`, else as text for people.
pub(crate) async fn show(socket: &Path, as_json: bool) -> Result<String> {
    let (json, report) = status_report(socket).await?;
    Ok(if as_json {
        json + "\n"
    } else {
        describe(&report)
    })
}

/// A line for each fact, and then a table of peers.
fn describe(report: &StatusReport) -> String {
    let mut text = Lines::default();
    text.line("ready", if report.ready { "yes" } else { "no" });
    for reason in &report.reasons {
        text.line("", reason);
    }
    for warning in &report.warnings {
        text.line("warning", warning);
    }
    if let Some(node) = &report.node {
        text.node(node);
    }
    let store = &report.store;
    let reached = if store.reached { "" } else { " (not reached)" };
    text.line("store", &format!("{}{reached}", store.name));
    text.line("", store.warning.as_deref().unwrap_or_default());
    if let Some(left) = store.lease_seconds_left {
        text.line("lease", &format!("{left:.0} s left"));
    }
    text.line("firewall", &report.firewall.backend);
    text.line("fast path", &report.fast_path);
    text.line("neighbours", &report.neighbours);
    let peers = &report.peers;
    let is_routed = |peer: &&PeerReport| peer.state != PeerState::Refused;
    let routed = peers.iter().filter(is_routed).count();
    text.line("peers", &format!("{routed} of {} routed", peers.len()));
    if !peers.is_empty() {
        text.0.push('\n');
        text.0.push_str(&table(peers));
    }
    text.0
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    /// Adds a line, unless its value is empty.
    fn line(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            writeln!(self.0, "{name:<10} {value}").expect("a String takes everything");
        }
    }

    fn node(&mut self, node: &NodeReport) {
        let subnets: Vec<_> = node.subnets.iter().map(ToString::to_string).collect();
        let ipv4 = node.public_ip.map(|ip| ip.to_string()).unwrap_or_default();
        let ipv6 = node.public_ipv6.map(|ip| ip.to_string());
        let ipv6 = ipv6.unwrap_or_default();
        let interface = format!("{} mtu {} {ipv4} {ipv6}", node.interface, node.mtu);
        self.line("node", &node.name);
        self.line("subnet", &subnets.join(" "));
        self.line("interface", interface.trim_end());
        self.line("", &format!("because {}", node.because));
    }
}

/// The peers in columns.
fn table(peers: &[PeerReport]) -> String {
    const HEADER: [&str; 6] = ["SUBNET", "NEXT HOP", "DEVICE", "STATE", "NODE", "REASON"];
    let row = |peer: &PeerReport| {
        [
            peer.subnet
                .map(|subnet| subnet.to_string())
                .unwrap_or_default(),
            peer.next_hop.map(|via| via.to_string()).unwrap_or_default(),
            peer.device.clone().unwrap_or_default(),
            peer.state.as_str().to_owned(),
            peer.node.clone(),
            peer.reason.clone().unwrap_or_default(),
        ]
    };
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(peers.iter().map(row));
    let width = |i: usize| rows.iter().map(|row| row[i].len()).max();
    let widths: [usize; 6] = std::array::from_fn(|i| width(i).unwrap_or_default());
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
