//! Acquires, renews and restores this node's lease.

mod write;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_client::Client;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::error::Error;
use super::format::Subnets;
use super::requests::{REQUEST_TIMEOUT, keep_alive, within};
use super::step::{LeaseClaim, Renewal, Step, Write};
use super::{EtcdStoreConfig, NodeIdentity, State};
use crate::network::{Addresses, BootTime, EtcdLease, Lease};
use crate::store::session::Backoff;
use crate::store::task_state::TaskState;

/// The shortest and the longest pause after a write that etcd refused.
const REFUSED_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// If our key is overwritten again within this time, another agent writes it.
const CONTEST: Duration = Duration::from_secs(1);
/// How often others may change leases while we try to write ours.
const MAX_TRIES: usize = 100;

/// Holds this node's lease.
pub(super) struct LeaseHolder {
    prefix: String,
    ttl: Duration,
    /// How long before its end the lease is renewed.
    margin: Duration,
    shared: Arc<TaskState<State>>,
    /// This node's lease, once it was confirmed after the start.
    held: Option<EtcdLease>,
    /// Subnets that this node had before.
    previous: Vec<Subnets>,
    /// The ID of the etcd lease that was granted last.
    granted: Option<i64>,
    /// The ID of an etcd lease that has expired.
    expired: Option<i64>,
    /// The ID of an etcd lease that replaced ours again after we had restored it.
    contested: Option<i64>,
    /// When we last restored our key after someone else had written it.
    restored_at: Option<Instant>,
    /// True if another node keeps the lease alive that is in the saved state.
    saved_lease_is_foreign: bool,
    /// When the lease has to be renewed.
    due: Option<Instant>,
    /// When etcd refused a write, and when to try again.
    refused: Option<[Instant; 2]>,
    backoff: Backoff,
}

/// Problem and warning about the lease.
#[derive(Default, PartialEq, Eq)]
struct LeaseStatus {
    problem: Option<Error>,
    warning: Option<String>,
}

impl LeaseHolder {
    pub(super) fn new(
        config: &EtcdStoreConfig,
        shared: Arc<TaskState<State>>,
        previous: Vec<Subnets>,
    ) -> Self {
        Self {
            prefix: config.prefix.clone(),
            ttl: config.ttl,
            margin: config.margin,
            shared,
            held: None,
            previous,
            granted: None,
            expired: None,
            contested: None,
            restored_at: None,
            saved_lease_is_foreign: false,
            due: None,
            refused: None,
            backoff: Backoff::new(REFUSED_PAUSES),
        }
    }

    /// Makes this node hold its lease. If etcd can be read but refuses to write, the present lease is
    /// kept alive, and the session goes on.
    pub(super) async fn hold(
        &mut self,
        client: &mut Client,
        identity: Option<NodeIdentity>,
    ) -> Result<(), Error> {
        let Some(identity) = identity else {
            return Ok(());
        };
        if self.must_wait() {
            return Ok(());
        }
        let status = match self.reach_steady_state(client, &identity).await {
            Ok(status) => {
                self.refused = None;
                self.backoff.reset();
                status
            }
            Err(error @ (Error::Refused(_) | Error::Contention)) => {
                let now = Instant::now();
                self.refused = Some([now, now + self.backoff.next()]);
                let error = Error::Write(error.into());
                if self.is_reachable(&identity) {
                    LeaseStatus {
                        problem: None,
                        warning: Some(error.to_string()),
                    }
                } else {
                    LeaseStatus {
                        problem: Some(error),
                        warning: None,
                    }
                }
            }
            Err(error) => return Err(error),
        };
        let mut state = self.shared.lock();
        if state.lease_problem != status.problem || state.lease_warning != status.warning {
            state.lease_problem = status.problem;
            state.lease_warning = status.warning;
            self.shared.notify();
        }
        Ok(())
    }

    /// True if a refused write is tried again later. A renewal that is due does not wait for the
    /// longest pauses.
    fn must_wait(&self) -> bool {
        let Some([refused_at, retry_at]) = self.refused else {
            return false;
        };
        let now = Instant::now();
        let is_due = self.due.is_some_and(|due| due <= now);
        let soon = refused_at + REFUSED_PAUSES[0];
        now < if is_due { soon.min(retry_at) } else { retry_at }
    }

    /// True if this node holds a lease by which other nodes find it.
    fn is_reachable(&self, identity: &NodeIdentity) -> bool {
        let state = self.shared.lock();
        let is_valid = state.expires.is_none_or(|end| end > Instant::now());
        let held = self.held.as_ref();
        is_valid && held.is_some_and(|held| held.addresses.are_of(identity.addresses))
    }

    /// Takes steps until there is nothing more to do.
    async fn reach_steady_state(
        &mut self,
        client: &mut Client,
        identity: &NodeIdentity,
    ) -> Result<LeaseStatus, Error> {
        for _ in 0..MAX_TRIES {
            let claim = self.claim(client, identity).await?;
            let next = {
                let state = self.shared.lock();
                let contents = state.contents.as_ref();
                contents.map(|contents| (claim.step(contents), claim.warning(contents)))
            };
            let Some((step, warning)) = next else {
                return Ok(LeaseStatus::default());
            };
            match step {
                Step::Keep => {
                    return Ok(LeaseStatus {
                        problem: None,
                        warning,
                    });
                }
                Step::Blocked(error) => {
                    return Ok(LeaseStatus {
                        problem: Some(error),
                        warning: None,
                    });
                }
                Step::Renew(renewal) => self.renew(client, renewal).await?,
                Step::Write(write) => self.write_or_renew(client, write).await?,
            }
        }
        Err(Error::Contention)
    }

    /// Collects this node's claim to its lease.
    async fn claim(
        &mut self,
        client: &mut Client,
        identity: &NodeIdentity,
    ) -> Result<LeaseClaim, Error> {
        let mut saved = identity.saved_lease.clone();
        saved = saved.filter(|_| self.held.is_none());
        if let Some(lease) = &saved {
            self.saved_lease_is_foreign =
                self.is_renewed_elsewhere(client, lease, identity).await?;
        }
        let saved = saved.filter(|_| !self.saved_lease_is_foreign);
        let claim = LeaseClaim {
            addresses: identity.addresses,
            held: self.held.clone().or(saved),
            is_confirmed: self.held.is_some(),
            granted: self.granted,
            is_due: self.due.is_some_and(|due| due <= Instant::now()),
            expired: self.expired,
            contested: self.contested,
            previous: self.previous.clone(),
        };
        Ok(self.with_contest(claim))
    }

    /// Notes whether someone else wrote this node's key. Once does not matter, because we restore it;
    /// again and soon means another node with this node's address.
    fn with_contest(&mut self, mut claim: LeaseClaim) -> LeaseClaim {
        let foreign = self.foreign_lease(&claim);
        if foreign.is_none() || self.contested == foreign {
            return claim;
        }
        if self.restored_at.is_some_and(|at| at.elapsed() < CONTEST) {
            self.contested = foreign;
            claim.contested = foreign;
        } else {
            self.restored_at = Some(Instant::now());
            warn!("someone else wrote this node's lease, with this node's address; restoring ours");
        }
        claim
    }

    /// The ID of the etcd lease with which someone else wrote this node's key.
    fn foreign_lease(&self, claim: &LeaseClaim) -> Option<i64> {
        let state = self.shared.lock();
        let held = self.held.as_ref()?;
        let entry = state.contents.as_ref()?.get(&held.name)?;
        let is_foreign = claim.is_foreign(held, entry);
        is_foreign.then_some(entry.meta.lease_id)
    }

    /// True if someone has kept the saved lease alive since it was saved, with another address than
    /// this node's. Then the saved state is a copy, and the node that it is from is alive.
    async fn is_renewed_elsewhere(
        &self,
        client: &mut Client,
        saved: &EtcdLease,
        identity: &NodeIdentity,
    ) -> Result<bool, Error> {
        /// The largest difference in seconds that clocks and rounding can cause.
        const TOLERANCE: u64 = 3;
        let is_ours = saved.addresses.are_of(identity.addresses);
        let (Some(expires), false) = (saved.expires, is_ours || saved.id == 0) else {
            return Ok(false);
        };
        let answer = within(REQUEST_TIMEOUT, client.lease_time_to_live(saved.id, None)).await?;
        let left = u64::try_from(answer.ttl()).unwrap_or_default();
        // Within a boot, a clock that was set does not matter.
        let (now, expires) = match (BootTime::now(), &saved.expires_in_boot) {
            (Some(now), Some(saved)) if now.boot == saved.boot => (now.seconds, saved.seconds),
            _ => (unix_seconds(), expires),
        };
        let is_renewed = left > 0 && now + left > expires + TOLERANCE;
        if is_renewed && !self.saved_lease_is_foreign {
            warn!(
                "the saved state says that this node holds {}, but {} keeps renewing it: the saved state is a copy, and is ignored",
                saved.name, saved.addresses
            );
        }
        Ok(is_renewed)
    }

    /// Keeps a lease alive as it is.
    async fn renew(&mut self, client: &mut Client, renewal: Renewal) -> Result<(), Error> {
        let Renewal {
            name,
            addresses,
            lease_id,
        } = renewal;
        let ttl = if lease_id == 0 {
            None
        } else {
            let ttl = keep_alive(client, lease_id).await?;
            if ttl.is_zero() {
                self.expired = Some(lease_id);
                return Ok(());
            }
            Some(ttl)
        };
        let Some(lease) = self.lease(&name) else {
            return Ok(());
        };
        if self.held.as_ref().is_none_or(|held| held.name != name) {
            info!("took over lease {name} of {addresses}");
        } else {
            debug!("renewed lease {name}");
        }
        self.confirm((name, addresses, lease_id), ttl, lease);
        Ok(())
    }

    /// Writes the lease. If etcd refuses that, the present lease is kept alive.
    async fn write_or_renew(&mut self, client: &mut Client, write: Write) -> Result<(), Error> {
        let name = write.revision.map(|_| write.name.clone());
        let refusal = match self.write(client, write).await {
            Err(refusal @ Error::Refused(_)) => refusal,
            other => return other,
        };
        let present = name.and_then(|name| {
            let state = self.shared.lock();
            let entry = state.contents.as_ref()?.get(&name)?;
            let addresses = entry.value.as_ref().ok()?.addresses();
            let lease_id = entry.meta.lease_id;
            let lease = Arc::clone(&entry.lease);
            (lease_id != 0).then_some((name, addresses, lease_id, lease))
        });
        if let Some((name, addresses, lease_id, lease)) = present {
            let ttl = keep_alive(client, lease_id).await?;
            if !ttl.is_zero() {
                self.confirm((name, addresses, lease_id), Some(ttl), lease);
            }
        }
        Err(refusal)
    }

    /// Notes that this node holds a lease, for `ttl`.
    fn confirm(
        &mut self,
        (name, addresses, id): (String, Addresses, i64),
        ttl: Option<Duration>,
        lease: Arc<Lease>,
    ) {
        let in_boot = |ttl: Duration| {
            let BootTime { boot, seconds } = BootTime::now()?;
            let seconds = seconds + ttl.as_secs();
            Some(BootTime { boot, seconds })
        };
        let held = EtcdLease {
            name,
            addresses,
            id,
            expires: ttl.map(|ttl| unix_seconds() + ttl.as_secs()),
            expires_in_boot: ttl.and_then(in_boot),
        };
        let now = Instant::now();
        // A short lease is renewed after half its time.
        let margin = |ttl: Duration| self.margin.min(ttl / 2);
        self.due = ttl.map(|ttl| now + ttl.saturating_sub(margin(ttl)));
        self.held = Some(held.clone());
        self.shared.update(|state| {
            state.own = Some((lease, held));
            state.expires = ttl.map(|ttl| now + ttl);
        });
    }

    fn lease(&self, name: &str) -> Option<Arc<Lease>> {
        let state = self.shared.lock();
        let entry = state.contents.as_ref()?.get(name)?;
        Some(Arc::clone(&entry.lease))
    }
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
