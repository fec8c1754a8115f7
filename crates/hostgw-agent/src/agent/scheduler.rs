//! Decides when the agent reconciles: on events, one second after a problem, and at least every ten
//! seconds.

use std::time::Duration;

use kernel::{ChangeEvent, Monitor, Rtnl};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::rate_limiter::RateLimiter;
use crate::error::{Error, Result};
use crate::fast_path::FastPath;
use crate::store::Store;

/// Everything is reconciled this often, even without an event.
const RESYNC_INTERVAL: Duration = Duration::from_secs(10);
/// After a problem, everything is reconciled this soon.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// One edit or one link flap causes many events within this time.
const DEBOUNCE: Duration = Duration::from_millis(3);
/// Changes of the kernel's routes by others wait no longer than this, whatever the rate limiter says.
const MAX_ROUTE_DELAY: Duration = Duration::from_millis(25);

/// Why the agent reconciles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trigger {
    /// The changes that the kernel reported.
    pub(crate) kernel: ChangeEvent,
    /// True if everything is compared, including what causes no event.
    pub(crate) is_resync: bool,
}

impl Trigger {
    /// Compares everything.
    pub(super) fn resync() -> Self {
        let kernel = ChangeEvent {
            network: true,
            firewall: true,
        };
        Self {
            kernel,
            is_resync: true,
        }
    }

    fn store() -> Self {
        Self::kernel(ChangeEvent::default())
    }

    fn firewall() -> Self {
        Self::kernel(ChangeEvent {
            firewall: true,
            ..ChangeEvent::default()
        })
    }

    fn kernel(kernel: ChangeEvent) -> Self {
        Self {
            kernel,
            is_resync: false,
        }
    }
}

/// Facts about the last reconcile, for the scheduler.
pub(super) struct Timing {
    pub(super) started: Instant,
    /// How long comparing and changing routes took. Other programs and the disk do not count.
    pub(super) cost: Duration,
    /// True if there was a problem that a retry may solve.
    pub(super) needs_retry: bool,
    /// How soon to look again at what causes no event.
    pub(super) poll: Option<Duration>,
    /// True if this node has routes: until then, nothing waits for the rate limiter.
    pub(super) is_routing: bool,
}

/// Waits for the next reason to reconcile.
pub(super) struct Scheduler {
    monitor: Monitor,
    stop: StopSignals,
    hangup: Signal,
    /// When the next resync is due. Events never postpone it.
    resync: Instant,
    limiter: RateLimiter,
}

impl Scheduler {
    /// Subscribes to the kernel's events, except those for route changes by `ours`, and to signals.
    pub(super) fn new(ours: &Rtnl) -> Result<Self> {
        Ok(Self {
            monitor: Monitor::open(ours)?,
            stop: StopSignals {
                terminate: listen(SignalKind::terminate())?,
                interrupt: listen(SignalKind::interrupt())?,
            },
            hangup: listen(SignalKind::hangup())?,
            resync: Instant::now() + RESYNC_INTERVAL,
            limiter: RateLimiter::new(Instant::now()),
        })
    }

    /// Waits until the next reconcile is due. Returns `None` on SIGTERM and SIGINT.
    pub(super) async fn next(
        &mut self,
        store: &Store,
        fast_path: &mut FastPath,
        last: &Timing,
    ) -> Result<Option<Trigger>> {
        let ended = Instant::now();
        if last.needs_retry {
            self.resync = self.resync.min(last.started + RETRY_INTERVAL);
        }
        if let Some(poll) = last.poll {
            self.resync = self.resync.min(last.started + poll);
        }
        let mut trigger = tokio::select! {
            () = store.changed() => Trigger::store(),
            event = self.monitor.changed() => Trigger::kernel(event?),
            () = fast_path.due() => Trigger::firewall(),
            () = sleep_until(self.resync) => Trigger::resync(),
            _ = self.hangup.recv() => Trigger::resync(),
            () = self.stop.received() => return Ok(None),
        };
        if trigger.is_resync {
            self.resync = Instant::now() + RESYNC_INTERVAL;
        }
        let latest = if last.is_routing {
            self.limiter.charge(last.cost, ended)
        } else {
            ended
        };
        let route_limit = latest.min(ended + MAX_ROUTE_DELAY);
        let deadlines = if trigger.kernel.network {
            [route_limit; 2]
        } else {
            [latest, route_limit]
        };
        tokio::select! {
            more = debounce(&mut self.monitor, store, deadlines) => trigger.kernel |= more?,
            () = self.stop.received() => return Ok(None),
        }
        Ok(Some(trigger))
    }
}

/// Collects the events that follow the first one, until the first of the deadlines; as soon as one
/// of them is about routes, until the second.
async fn debounce(
    monitor: &mut Monitor,
    store: &Store,
    [latest, route_limit]: [Instant; 2],
) -> Result<ChangeEvent> {
    let mut event = ChangeEvent::default();
    let earliest = Instant::now() + DEBOUNCE;
    loop {
        let until = if event.network { route_limit } else { latest };
        tokio::select! {
            () = sleep_until(until.max(earliest)) => return Ok(event),
            () = store.changed() => {}
            more = monitor.changed() => event |= more?,
        }
    }
}

struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(Error::Signal)
}
