//! Sees when others change their rules for forwarded packets: flows on the fast path have to pass the new rules.

use std::time::Duration;

use kernel::nftables::{Family, forward_chains};
use tokio::time::Instant;

use super::table;
use crate::firewall;

/// Rules are read no more often than this.
const INTERVAL: Duration = Duration::from_millis(500);

/// The rules of others as they were last read.
#[derive(Default)]
pub(super) struct ForeignRules {
    fingerprint: Option<u64>,
    read_at: Option<Instant>,
    /// True if they may have changed since.
    is_due: bool,
}

impl ForeignRules {
    /// Returns true if the rules changed since the last call that read them. Reads them after an event, and with
    /// each resync: no event tells of `iptables-legacy`, whose rules are not read either.
    pub(super) fn changed(&mut self, is_event: bool) -> Result<bool, kernel::Error> {
        self.is_due |= is_event;
        let is_early = self.read_at.is_some_and(|at| at.elapsed() < INTERVAL);
        if !self.is_due || is_early {
            return Ok(false);
        }
        self.read_at = Some(Instant::now());
        let fingerprint = fingerprint()?;
        self.is_due = false;
        let before = self.fingerprint.replace(fingerprint);
        Ok(before.is_some_and(|before| before != fingerprint))
    }

    /// How soon to look again. `None` if nothing is due.
    pub(super) fn poll(&self) -> Option<Duration> {
        self.is_due.then_some(INTERVAL)
    }
}

/// Returns a hash of all chains for forwarded packets that are not ours.
fn fingerprint() -> Result<u64, kernel::Error> {
    let is_ours = |family, name: &str| {
        family == Family::Inet && (name == table::TABLE || name == firewall::TABLE)
    };
    let mut text = Vec::new();
    for chain in forward_chains()? {
        if !is_ours(chain.family, &chain.table) {
            text.extend(chain.fingerprint()?.to_ne_bytes());
        }
    }
    Ok(util::fnv1a_64(&text))
}
