//! The state as metrics for Prometheus, computed when they are scraped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::state::{SharedState, State, lock, unix_seconds};
use crate::fast_path;
use crate::routes::{Peer, Refusal};

/// Returns all metrics, as text.
pub(crate) fn text(shared: SharedState) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(shared)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a string cannot fail");
    text
}

struct Metrics(SharedState);

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        write(&lock(&self.0), &mut encoder)
    }
}

fn write(state: &State, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    one(to, "hostgw_build", "Version of the agent", &version)?;
    for (name, help, value) in gauges(state) {
        if let Some(value) = value {
            one(to, name, help, &ConstGauge::new(value))?;
        }
    }
    for (name, help, value) in counters(state) {
        one(to, name, help, &ConstCounter::new(value))?;
    }
    refused(state, to)
}

/// The gauges without labels: name, help and value. One without a value is left out.
fn gauges(state: &State) -> [(&'static str, &'static str, Option<f64>); 13] {
    let fast_path = state.fast_path.as_ref();
    let (total, routed) = state.counts();
    #[expect(clippy::cast_precision_loss, reason = "exact for revisions up to 2^53")]
    let revision = state.store.revision as f64;
    [
        (
            "hostgw_ready",
            "1 if pods of this node have their network",
            Some(flag(state.is_ready())),
        ),
        (
            "hostgw_peers_wanted",
            "Subnets of other nodes",
            Some(count(total)),
        ),
        (
            "hostgw_peers_installed",
            "Subnets of other nodes that are routed",
            Some(count(routed)),
        ),
        (
            "hostgw_reconcile_seconds",
            "Duration of the last reconcile",
            Some(state.duration.as_secs_f64()),
        ),
        (
            "hostgw_reconcile_timestamp_seconds",
            "End of the last reconcile, in seconds since 1970",
            state.last_reconcile.map(unix_seconds),
        ),
        (
            "hostgw_warnings",
            "Warnings, which do not keep pods from having their network",
            Some(count(state.warnings.len())),
        ),
        (
            "hostgw_store_reached",
            "1 if the store can be read",
            Some(flag(state.store.is_reached)),
        ),
        (
            "hostgw_store_revision",
            "Revision up to which the store was read",
            Some(revision),
        ),
        (
            "hostgw_store_lag_seconds",
            "Time since the store last answered or sent something",
            state.store.silence(),
        ),
        (
            "hostgw_fast_path",
            "1 if packets of established flows take the fast path",
            fast_path.map(|path| flag(path.is_on())),
        ),
        (
            "hostgw_fast_path_devices",
            "Interfaces on the fast path",
            fast_path.and_then(fast_path::Status::devices).map(count),
        ),
        (
            "hostgw_fast_path_flows",
            "Flows on the fast path, when they were last counted",
            fast_path.and_then(fast_path::Status::flows).map(count),
        ),
        (
            "hostgw_lease_seconds",
            "Time until this node's lease expires",
            state.store.lease_left(),
        ),
    ]
}

/// The counters: name without `_total`, which is added, help and value. The word "mended" is older
/// than "restored", and stays because names of metrics do not change.
fn counters(state: &State) -> [(&'static str, &'static str, u64); 7] {
    [
        (
            "hostgw_reconciles",
            "Reconciles of the node with the store and the kernel",
            state.reconciles,
        ),
        (
            "hostgw_routes_written",
            "Routes added or replaced",
            state.routes_written,
        ),
        (
            "hostgw_routes_deleted",
            "Routes deleted",
            state.routes_deleted,
        ),
        (
            "hostgw_routes_mended",
            "Routes restored after someone else changed them",
            state.routes_restored,
        ),
        (
            "hostgw_firewall_mended",
            "Times that firewall rules were restored",
            state.firewall_restored,
        ),
        (
            "hostgw_fast_path_flushes",
            "Times that all flows had to pass changed firewall rules of others",
            state.fast_path_flushes,
        ),
        (
            "hostgw_forwarding_mended",
            "Forwarding sysctls that were restored",
            state.forwarding_restored,
        ),
    ]
}

/// Each peer that is refused or diverted is a series of its own, but no more of them than this: a store
/// full of invalid leases must not fill Prometheus.
const MAX_PEER_SERIES: usize = 500;

/// The number of subnets that are not routed by reason, and each of them.
fn refused(state: &State, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut counts: BTreeMap<_, usize> = Refusal::LABELS.iter().map(|label| (*label, 0)).collect();
    let refused = || {
        state
            .peers
            .iter()
            .filter_map(|peer| Some((peer, peer.refused.as_ref()?)))
    };
    for (_, reason) in refused() {
        *counts.entry(reason.label()).or_default() += 1;
    }
    let help = "Subnets of other nodes that are not routed, by reason";
    let mut family = to.encode_descriptor("hostgw_peers_refused", help, None, MetricType::Gauge)?;
    for (reason, number) in counts {
        let gauge = ConstGauge::new(count(number));
        gauge.encode(family.encode_family(&[("reason", reason)])?)?;
    }
    let help = "A subnet of another node that is not routed, and why";
    let refused = refused().map(|(peer, reason)| (peer, reason.label()));
    peer_gauges(to, "hostgw_peer_refused", help, refused)?;
    let help = "A subnet of another node that is routed, but whose packets go elsewhere";
    let diverted = state.peers.iter().filter(|peer| peer.diverted.is_some());
    peer_gauges(
        to,
        "hostgw_peer_diverted",
        help,
        diverted.map(|peer| (peer, "diverted")),
    )
}

/// A gauge of 1 for each of these peers, with its labels.
fn peer_gauges<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    peers: impl Iterator<Item = (&'a Peer, &'static str)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    let mut seen = BTreeSet::new();
    for (peer, reason) in peers {
        let subnet = peer.hop.map_or(String::new(), |hop| hop.subnet.to_string());
        let via = peer.hop.map_or(String::new(), |hop| hop.via.to_string());
        let labels = [
            ("node", peer.lease.node.as_str()),
            ("subnet", &subnet),
            ("next_hop", &via),
            ("reason", reason),
        ];
        // Prometheus refuses a page with the same series twice.
        if seen.len() < MAX_PEER_SERIES && seen.insert(labels.map(|(_, value)| value.to_owned())) {
            ConstGauge::new(1.0).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn one(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(to.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented_with_its_type_and_every_documented_metric_exists() {
        let state = SharedState::default();
        // Those without a value now are not in the text.
        let valued =
            |(name, _, _): (&str, &str, Option<f64>)| (name.to_owned(), "gauge".to_owned());
        let mut exported: BTreeSet<_> = gauges(&lock(&state)).into_iter().map(valued).collect();
        let text = text(state);
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        exported.extend(types.map(|line| {
            let (name, kind) = line.split_once(' ').expect("name and type");
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            (format!("{name}{suffix}"), kind.to_owned())
        }));
        let documentation = include_str!("../../README.md");
        let rows = documentation
            .lines()
            .filter(|line| line.starts_with("| `hostgw_"));
        let documented: BTreeSet<_> = rows
            .map(|row| {
                let mut cells = row.trim_start_matches("| `").split(" | ");
                let name = cells.next().unwrap_or_default().trim_end_matches('`');
                let name = name.split('{').next().unwrap_or_default();
                (name.to_owned(), cells.next().unwrap_or_default().to_owned())
            })
            .collect();
        assert_eq!(documented, exported);
    }
}
