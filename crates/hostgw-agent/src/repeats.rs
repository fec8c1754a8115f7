//! What happens again and again is told a few times, and then counted.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

/// So many of one kind are told within this time.
const MOST: u32 = 5;
const WITHIN: Duration = Duration::from_secs(10);

/// How often each kind of event was told. What is worth a line of its own is a kind of its own.
#[derive(Default)]
pub(crate) struct Repeats(BTreeMap<String, Told>);

struct Told {
    since: Instant,
    count: u32,
}

impl Repeats {
    /// Warns, unless enough was told of this kind for now.
    pub(crate) fn warn(&mut self, kind: &str, text: &str) {
        if self.is_to_be_told(kind) {
            warn!("{text}");
        }
    }

    /// The same for what keeps this node from working.
    pub(crate) fn error(&mut self, kind: &str, text: &str) {
        if self.is_to_be_told(kind) {
            error!("{text}");
        }
    }

    /// The same for what is no fault.
    pub(crate) fn info(&mut self, kind: &str, text: &str) {
        if self.is_to_be_told(kind) {
            info!("{text}");
        }
    }

    fn is_to_be_told(&mut self, kind: &str) -> bool {
        self.end(|other| other == kind);
        let told = self.0.entry(kind.to_owned()).or_insert_with(|| Told {
            since: Instant::now(),
            count: 0,
        });
        told.count += 1;
        told.count <= MOST
    }

    /// Says how much was left out, where its time is over.
    pub(crate) fn sum_up(&mut self) {
        self.end(|_| true);
    }

    fn end(&mut self, is_asked: impl Fn(&str) -> bool) {
        self.0.retain(|kind, told| {
            if told.since.elapsed() < WITHIN || !is_asked(kind) {
                return true;
            }
            let more = told.count.saturating_sub(MOST);
            if more > 0 {
                let seconds = told.since.elapsed().as_secs();
                warn!("{kind}: {more} times more in the last {seconds} s, not told one by one");
            }
            false
        });
    }
}
