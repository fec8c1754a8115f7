//! The agent's interfaces for observers: `/healthz`, `/readyz`, `/metrics`, `/status`, and systemd's
//! notifications.

mod client;
pub(crate) mod http;
mod metrics;
mod report;
pub(crate) mod state;
pub(crate) mod systemd;

pub(crate) use client::{is_running, status_report};
pub(crate) use report::{NodeReport, PeerReport, PeerState, StatusReport};
pub(crate) use state::{SharedState, StoreState, lock};
