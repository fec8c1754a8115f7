//! Limits how much of one processor the agent uses, however often something changes.

use std::time::Duration;

use tokio::time::Instant;

/// After a reconcile, the agent pauses this many times as long: it uses about 2 % of one
/// processor. Changes that arrive meanwhile are reconciled together.
const REST_RATIO: u32 = 48;
/// The longest pause after one reconcile.
const MAX_REST: Duration = Duration::from_secs(5);
/// Pauses up to this sum may be taken later, so that a few changes need not wait.
const BURST: Duration = Duration::from_secs(2);

/// A token bucket of time: each reconcile adds a pause, and up to [`BURST`] of them can wait.
pub(super) struct RateLimiter {
    /// The end of all pauses that are due.
    rested_at: Instant,
}

impl RateLimiter {
    /// A limiter without a pause.
    pub(super) fn new(now: Instant) -> Self {
        Self { rested_at: now }
    }

    /// Charges a reconcile that took `took` and ended `now`. Returns when the next may start.
    pub(super) fn charge(&mut self, took: Duration, now: Instant) -> Instant {
        let rest = (took * REST_RATIO).min(MAX_REST);
        let latest = now + BURST + MAX_REST;
        self.rested_at = (self.rested_at.max(now) + rest).min(latest);
        now.max(self.rested_at - BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_change_does_not_wait_and_a_flood_does() {
        let start = Instant::now();
        let took = Duration::from_millis(10);
        let mut limiter = RateLimiter::new(start);
        for _ in 0..4 {
            assert_eq!(limiter.charge(took, start), start);
        }
        let next = limiter.charge(took, start);
        assert_eq!(next - start, Duration::from_millis(5 * 480 - 2000));
        // From then on, each waits until the rest of the one before is over.
        assert_eq!(
            limiter.charge(took, next) - next,
            Duration::from_millis(480)
        );
        let later = next + Duration::from_secs(10);
        assert_eq!(limiter.charge(took, later), later);
    }

    #[test]
    fn the_wait_is_bounded() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(start);
        let next = limiter.charge(Duration::from_secs(60), start);
        assert_eq!(next - start, Duration::from_secs(3));
        for _ in 0..100 {
            let next = limiter.charge(Duration::from_secs(60), start);
            assert_eq!(next - start, MAX_REST);
        }
    }
}
