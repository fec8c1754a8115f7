//! How much of one processor comparing takes at most, however much changes.

use std::time::Duration;

use tokio::time::Instant;

/// Comparing is paid for by resting this many times as long: it takes a few hundredths of one
/// processor, and what comes meanwhile is compared together.
const PRICE: u32 = 48;
/// One comparison is never paid for by more than this.
const HIGHEST: Duration = Duration::from_secs(5);
/// So much rest may be owed: what comes alone, or few at a time, does not wait.
const CREDIT: Duration = Duration::from_secs(2);

/// Until when everything is paid for.
pub(crate) struct Pace(Instant);

impl Pace {
    /// Nothing is owed.
    pub(crate) fn new(now: Instant) -> Self {
        Self(now)
    }

    /// Charges a comparison that took so long and ended now. Says when the next may begin.
    pub(crate) fn after(&mut self, took: Duration, now: Instant) -> Instant {
        let price = (took * PRICE).min(HIGHEST);
        // What is not waited for is not owed for ever.
        self.0 = (self.0.max(now) + price).min(now + CREDIT + HIGHEST);
        now.max(self.0 - CREDIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_alone_does_not_wait_and_a_flood_is_held_up() {
        let begin = Instant::now();
        let took = Duration::from_millis(10);
        let mut pace = Pace::new(begin);
        for _ in 0..4 {
            assert_eq!(pace.after(took, begin), begin);
        }
        let next = pace.after(took, begin);
        assert_eq!(next - begin, Duration::from_millis(5 * 480 - 2000));
        // From then on, each waits until the one before is paid for.
        assert_eq!(pace.after(took, next) - next, Duration::from_millis(480));
        let later = next + Duration::from_secs(10);
        assert_eq!(pace.after(took, later), later);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let next = pace.after(Duration::from_secs(60), begin);
        assert_eq!(next - begin, Duration::from_secs(3));
        for _ in 0..100 {
            let next = pace.after(Duration::from_secs(60), begin);
            assert_eq!(next - begin, HIGHEST);
        }
    }
}
