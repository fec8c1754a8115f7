//! The state in Prometheus' words. Everything is read when it is asked for.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::peers::{Peer, Refusal};
use crate::state::{Shared, State, lock, seconds};

/// All metrics, as text.
pub(crate) fn text(shared: Shared) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(shared)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a text takes everything");
    text
}

struct Metrics(Shared);

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
    let (wanted, installed) = state.counts();
    let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    one(to, "hostgw_build", "Which version this is", &version)?;
    gauge(
        to,
        "hostgw_ready",
        "Whether pods of this node have their network",
        number(state.is_ready()),
    )?;
    gauge(
        to,
        "hostgw_peers_wanted",
        "Subnets of other nodes",
        count(wanted),
    )?;
    gauge(
        to,
        "hostgw_peers_installed",
        "Subnets of other nodes that are routed",
        count(installed),
    )?;
    refused(state, to)?;
    counter(
        to,
        "hostgw_reconciles",
        "Comparisons of everything with the kernel",
        state.reconciles,
    )?;
    gauge(
        to,
        "hostgw_reconcile_seconds",
        "How long the last comparison took",
        state.duration.as_secs_f64(),
    )?;
    if let Some(time) = state.reconciled {
        gauge(
            to,
            "hostgw_reconcile_timestamp_seconds",
            "When the last comparison ended",
            seconds(time),
        )?;
    }
    counter(
        to,
        "hostgw_routes_written",
        "Routes added or replaced",
        state.routes_written,
    )?;
    counter(
        to,
        "hostgw_routes_deleted",
        "Routes deleted",
        state.routes_deleted,
    )?;
    counter(
        to,
        "hostgw_routes_mended",
        "Routes put right after somebody else changed them",
        state.routes_mended,
    )?;
    counter(
        to,
        "hostgw_firewall_mended",
        "Times that firewall rules were put right",
        state.firewall_mended,
    )?;
    counter(
        to,
        "hostgw_forwarding_mended",
        "Settings of forwarding that were put right",
        state.forwarding_mended,
    )?;
    gauge(
        to,
        "hostgw_warnings",
        "What is to be put right, and does not keep pods from having their network",
        count(state.warnings.len()),
    )?;
    of_store(state, to)
}

/// How it stands with the store.
fn of_store(state: &State, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    gauge(
        to,
        "hostgw_store_reached",
        "Whether the store can be read",
        number(state.store.is_reached),
    )?;
    #[expect(clippy::cast_precision_loss, reason = "exact for revisions up to 2^53")]
    let revision = state.store.revision as f64;
    gauge(
        to,
        "hostgw_store_revision",
        "How far the store was read",
        revision,
    )?;
    if let Some(lag) = state.store.lag() {
        gauge(
            to,
            "hostgw_store_lag_seconds",
            "Since when nothing was heard of the store",
            lag,
        )?;
    }
    if let Some(left) = state.store.left() {
        gauge(
            to,
            "hostgw_lease_seconds",
            "How long this node's lease still holds",
            left,
        )?;
    }
    Ok(())
}

/// How many subnets are not routed for each reason, and which.
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
    named(to, "hostgw_peer_refused", help, refused)?;
    let help =
        "A subnet of another node that is routed, and whose packets go elsewhere all the same";
    let diverted = state.peers.iter().filter(|peer| peer.diverted.is_some());
    named(
        to,
        "hostgw_peer_diverted",
        help,
        diverted.map(|peer| (peer, "diverted")),
    )
}

/// One of a kind for each of these peers.
fn named<'a>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    peers: impl Iterator<Item = (&'a Peer, &'static str)>,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (peer, reason) in peers {
        let subnet = peer.hop.map_or(String::new(), |hop| hop.subnet.to_string());
        let via = peer.hop.map_or(String::new(), |hop| hop.via.to_string());
        let labels = [
            ("node", peer.lease.node.as_str()),
            ("subnet", &subnet),
            ("next_hop", &via),
            ("reason", reason),
        ];
        ConstGauge::new(1.0).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    one(to, name, help, &ConstGauge::new(value))
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    one(to, name, help, &ConstCounter::new(value))
}

fn one(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(to.encode_descriptor(name, help, None, metric.metric_type())?)
}

fn number(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}
