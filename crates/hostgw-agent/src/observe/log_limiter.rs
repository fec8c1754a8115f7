//! Logs an event that repeats a few times, and then only counts it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

/// How many lines of one kind are logged within [`WINDOW`].
const BURST: u32 = 5;
/// The most different lines of one group that are logged within [`WINDOW`].
const GROUP_BURST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts the lines of each kind. Events that each deserve a line of their own are kinds of their
/// own.
#[derive(Default)]
pub(crate) struct LogLimiter(BTreeMap<String, Window>);

struct Window {
    start: Instant,
    count: u32,
    /// The most lines that are logged.
    burst: u32,
}

impl LogLimiter {
    /// Logs a warning, unless this kind was logged too often.
    pub(crate) fn warn(&mut self, kind: &str, text: &str) {
        if self.allows(kind, BURST) {
            warn!("{text}");
        }
    }

    /// Logs a warning, unless this text, or others of its group, were logged too often. A store can
    /// cause any number of different texts.
    pub(crate) fn warn_in(&mut self, group: &str, text: &str) {
        if self.allows_in(group, text) {
            warn!("{text}");
        }
    }

    /// Logs an error, unless this text, or others of its group, were logged too often.
    pub(crate) fn error_in(&mut self, group: &str, text: &str) {
        if self.allows_in(group, text) {
            error!("{text}");
        }
    }

    /// Logs a line of information, unless this kind was logged too often.
    pub(crate) fn info(&mut self, kind: &str, text: &str) {
        if self.allows(kind, BURST) {
            info!("{text}");
        }
    }

    /// Logs a line of information, unless this text, or others of its group, were logged too often.
    pub(crate) fn info_in(&mut self, group: &str, text: &str) {
        if self.allows_in(group, text) {
            info!("{text}");
        }
    }

    /// Returns true if neither this text nor its group was logged too often. A text that repeats leaves room
    /// for the others of its group.
    fn allows_in(&mut self, group: &str, text: &str) -> bool {
        let is_repeated = self.0.contains_key(text);
        (is_repeated || self.allows(group, GROUP_BURST)) && self.allows(text, BURST)
    }

    fn allows(&mut self, kind: &str, burst: u32) -> bool {
        self.close_windows(|other| other == kind);
        let window = self.0.entry(kind.to_owned()).or_insert_with(|| Window {
            start: Instant::now(),
            count: 0,
            burst,
        });
        window.count += 1;
        window.count <= burst
    }

    /// Logs how many lines were left out, for each kind whose window is over.
    pub(crate) fn summarize(&mut self) {
        self.close_windows(|_| true);
    }

    fn close_windows(&mut self, selects: impl Fn(&str) -> bool) {
        self.0.retain(|kind, window| {
            if window.start.elapsed() < WINDOW || !selects(kind) {
                return true;
            }
            let suppressed = window.count.saturating_sub(window.burst);
            if suppressed > 0 {
                let seconds = window.start.elapsed().as_secs();
                warn!("{kind}: {suppressed} more in the last {seconds} s, not logged one by one");
            }
            false
        });
    }
}
