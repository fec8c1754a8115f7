//! Sees when others change their filters for forwarded packets: flows on the fast path have to pass the new rules.

use std::future::pending;
use std::time::Duration;

use kernel::nftables::{Family, filter_chains};
use tokio::time::{Instant, sleep_until};

use super::table;
use crate::firewall;

/// Rules are read no more often than this, and after a long read no sooner than this many times as long.
const INTERVAL: Duration = Duration::from_millis(500);
const REST_RATIO: u32 = 20;

/// The rules of others as they were last read.
#[derive(Default)]
pub(super) struct ForeignRules {
    fingerprint: Option<u64>,
    /// When they may be read again.
    next: Option<Instant>,
    /// True if they have not changed since.
    is_current: bool,
}

impl ForeignRules {
    /// Returns true if the rules changed since they were last read, or were not read before. Reads them after an
    /// event, but not those of `iptables-legacy`, which cause none.
    pub(super) fn changed(&mut self, is_event: bool) -> Result<bool, kernel::Error> {
        self.is_current &= !is_event;
        let started = Instant::now();
        if self.is_current || self.next.is_some_and(|next| started < next) {
            return Ok(false);
        }
        let fingerprint = fingerprint()?;
        self.is_current = true;
        self.next = Some(started + INTERVAL.max(started.elapsed() * REST_RATIO));
        Ok(self.fingerprint.replace(fingerprint) != Some(fingerprint))
    }

    /// Waits until rules that may have changed may be read.
    pub(super) async fn due(&self) {
        match self.next {
            Some(next) if !self.is_current => sleep_until(next).await,
            _ => pending().await,
        }
    }
}

/// Returns a hash of all filters for forwarded packets that are not ours.
fn fingerprint() -> Result<u64, kernel::Error> {
    const OURS: [&str; 3] = [table::TABLE, firewall::TABLE, host_ports::TABLE];
    let is_ours = |family, name: &str| family == Family::Inet && OURS.contains(&name);
    let mut text = Vec::new();
    for chain in filter_chains()? {
        if !is_ours(chain.family, &chain.table) {
            text.extend(chain.fingerprint()?.to_ne_bytes());
        }
    }
    Ok(util::fnv1a_64(&text))
}
