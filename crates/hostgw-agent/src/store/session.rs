//! Mechanics of every session with a server: pauses between attempts, and detection of silence.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

/// A session that lasted longer than this was a good one: the next pause is the shortest again.
pub(super) const GOOD_SESSION: Duration = Duration::from_secs(5);
/// How often a session checks what causes no event: due dates, silence, files.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// Pauses between attempts: each twice as long as the one before, and random, so that not all nodes
/// of a cluster try at once.
pub(super) struct Backoff {
    range: [Duration; 2],
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// Pauses from `range[0]` to `range[1]`, without the random part, which makes a pause up to
    /// twice as long.
    pub(super) fn new(range: [Duration; 2]) -> Self {
        Self {
            range,
            pauses: pauses(range),
        }
    }

    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        self.pauses.next().expect("it has no end")
    }

    /// The next pause within another range, of which it is the first if the range is new.
    pub(super) fn next_within(&mut self, range: [Duration; 2]) -> Duration {
        if range != self.range {
            *self = Self::new(range);
        }
        self.next()
    }

    /// Makes the next pause the shortest again.
    pub(super) fn reset(&mut self) {
        self.pauses = pauses(self.range);
    }
}

fn pauses([min, max]: [Duration; 2]) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(min)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Watches for silence of a server.
pub(super) struct Liveness {
    /// After this time without a message, the server is asked for a sign of life.
    quiet: Duration,
    /// After this time, the connection counts as broken.
    dead: Duration,
    last_heard: Instant,
    last_asked: Option<Instant>,
}

/// The reaction to a server that is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nothing: it was heard lately.
    None,
    /// Ask for a sign of life.
    Ask,
    /// The connection is broken.
    Dead,
}

impl Liveness {
    pub(super) fn new(quiet: Duration, dead: Duration) -> Self {
        Self {
            quiet,
            dead,
            last_heard: Instant::now(),
            last_asked: None,
        }
    }

    /// Notes that the server answered or sent something.
    pub(super) fn heard(&mut self) {
        self.last_heard = Instant::now();
        self.last_asked = None;
    }

    /// Checks the silence. After [`Silence::Ask`], the next one is due after another quiet time.
    pub(super) fn check(&mut self) -> Silence {
        if self.last_heard.elapsed() > self.dead {
            return Silence::Dead;
        }
        let since = self.last_asked.unwrap_or(self.last_heard);
        if since.elapsed() < self.quiet {
            return Silence::None;
        }
        self.last_asked = Some(Instant::now());
        Silence::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(RANGE);
        for seconds in [1, 2, 4, 4, 4] {
            let pause = backoff.next();
            let shortest = Duration::from_secs(seconds);
            assert!(pause >= shortest && pause <= 2 * shortest, "{pause:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= 2 * RANGE[0]);
    }

    #[test]
    fn another_range_starts_with_its_shortest_pause() {
        let mut backoff = Backoff::new(RANGE);
        backoff.next();
        backoff.next();
        let other = [Duration::from_millis(10), Duration::from_secs(30)];
        assert!(backoff.next_within(other) <= 2 * other[0]);
        assert!(backoff.next_within(other) >= 2 * other[0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_asked_and_then_given_up() {
        let mut liveness = Liveness::new(Duration::from_secs(2), Duration::from_secs(5));
        let mut seen = Vec::new();
        for _ in 0..6 {
            tokio::time::advance(Duration::from_millis(1001)).await;
            seen.push(liveness.check());
        }
        let [none, ask, dead] = [Silence::None, Silence::Ask, Silence::Dead];
        assert_eq!(seen, [none, ask, none, ask, dead, dead]);
        liveness.heard();
        assert_eq!(liveness.check(), Silence::None);
    }
}
