//! The agent's interfaces for observers: `/healthz`, `/readyz`, `/metrics`, `/status`, and systemd's
//! notifications.

mod client;
pub(crate) mod http;
mod log_limiter;
mod metrics;
mod report;
pub(crate) mod state;
pub(crate) mod systemd;

pub(crate) use client::{is_running, status_report};
pub(crate) use log_limiter::LogLimiter;
pub(crate) use report::{NodeReport, PeerReport, PeerState, StatusReport};
pub(crate) use state::{SharedState, StoreState, lock};
