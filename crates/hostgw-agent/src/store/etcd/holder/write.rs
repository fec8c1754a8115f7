//! Writes this node's lease, unless another node is faster.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, LeaseGrantResponse, PutOptions, TxnOp};
use rand::RngExt;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::LeaseHolder;
use crate::network::Lease;
use crate::store::etcd::error::Error;
use crate::store::etcd::format::Value;
use crate::store::etcd::requests::{
    KeyValues, REQUEST_TIMEOUT, commit, read_all, unchanged, within,
};
use crate::store::etcd::step::Write;

/// The random pause in milliseconds before we try again after someone else was faster.
const LOST_RACE_PAUSE: std::ops::Range<u64> = 0..30;

impl LeaseHolder {
    /// Writes the lease. If someone else was faster, reads what they wrote.
    pub(super) async fn write(&mut self, client: &mut Client, write: Write) -> Result<(), Error> {
        let granted = if write.is_reservation {
            None
        } else {
            let ttl = i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX);
            Some(within(REQUEST_TIMEOUT, client.lease_grant(ttl, None)).await?)
        };
        let lease_id = granted.as_ref().map_or(0, LeaseGrantResponse::id);
        self.granted = granted.as_ref().map(LeaseGrantResponse::id);
        let result = self.transact(client, &write, lease_id).await;
        let is_done = matches!(result, Ok((true, _)));
        let is_refused = matches!(result, Ok((false, _)) | Err(Error::Refused(_)));
        // Without an answer, the key may have been written: the granted lease is left to expire.
        if is_refused && lease_id != 0 {
            within(REQUEST_TIMEOUT, client.lease_revoke(lease_id)).await?;
        }
        let lease = self.learn(result?.1, &write.name);
        let (true, Some(lease)) = (is_done, lease) else {
            // Someone was faster, with this subnet or with any other.
            let pause = rand::rng().random_range(LOST_RACE_PAUSE);
            sleep(Duration::from_millis(pause)).await;
            let contents = read_all(client, &self.prefix).await?;
            self.shared.update(|state| state.contents = Some(contents));
            return Ok(());
        };
        self.log_write(&write);
        let old = self.held.clone();
        let ttl = granted.map(|granted| u64::try_from(granted.ttl()).unwrap_or_default());
        let ttl = ttl.map(Duration::from_secs);
        self.expired = None;
        let addresses = write.value.addresses();
        self.confirm((write.name, addresses, lease_id), ttl, lease);
        // Only what we had granted ourselves: others may have attached more keys to theirs.
        if let Some(old) = old.filter(|old| old.id != 0 && old.id != lease_id) {
            drop(within(REQUEST_TIMEOUT, client.lease_revoke(old.id)).await);
        }
        Ok(())
    }

    /// The transaction that writes the lease.
    async fn transact(
        &self,
        client: &mut Client,
        write: &Write,
        lease_id: i64,
    ) -> Result<(bool, KeyValues), Error> {
        let key_of = |name: &str| format!("{}subnets/{name}", self.prefix);
        let key = key_of(&write.name);
        let mut conditions = vec![unchanged(&key, write.revision)];
        if write.revision.is_none() {
            // A subnet has several names, in two families and in several sizes: it is free only if
            // no lease at all has changed since we read them.
            let seen = self.shared.lock();
            let seen = seen.contents.as_ref().map_or(0, |contents| contents.seen);
            let all = Compare::mod_revision(key_of(""), CompareOp::Less, seen + 1);
            conditions.push(all.with_prefix());
        }
        let mut changes = Vec::new();
        let mut keys = vec![key.clone()];
        // The old key goes first: flanneld takes a new key for the same subnet as the old one, and
        // would take the end of the old one for the end of both.
        if let Some((old, revision)) = &write.replaces {
            let old = key_of(old);
            conditions.push(unchanged(&old, Some(*revision)));
            changes.push(TxnOp::delete(old.as_str(), None));
            keys.push(old);
        }
        // A reservation with the right value is not touched.
        if !(write.is_reservation && self.has_value(&write.name, &write.value)) {
            let text = serde_json::to_string(&write.value).expect("texts and numbers");
            let options = PutOptions::new().with_lease(lease_id);
            changes.push(TxnOp::put(key.as_str(), text, Some(options)));
        }
        commit(client, conditions, changes, keys).await
    }

    fn has_value(&self, name: &str, value: &Value) -> bool {
        let state = self.shared.lock();
        let contents = state.contents.as_ref();
        let entry = contents.and_then(|contents| contents.get(name));
        entry.is_some_and(|entry| entry.value.as_ref() == Ok(value))
    }

    /// Updates the contents with the keys that a transaction returned. Returns the lease `name`.
    fn learn(&self, keys: KeyValues, name: &str) -> Option<Arc<Lease>> {
        let mut state = self.shared.lock();
        let contents = state.contents.as_mut()?;
        for (key, pair) in keys {
            match pair {
                Some(pair) => contents.put(&pair),
                None => contents.delete(key.as_bytes()),
            }
        }
        drop(state);
        self.lease(name)
    }

    /// Logs what a write changed.
    fn log_write(&self, write: &Write) {
        let (name, address) = (&write.name, write.value.addresses());
        match (write.revision, &write.replaces, &self.held) {
            (None, None, Some(held)) if held.name == *name => {
                warn!("lease {name} was gone; acquired it again");
            }
            (None, Some((old, _)), _) => {
                info!("acquired lease {name} for {address} instead of {old}");
            }
            (None, ..) => info!("acquired lease {name} for {address}"),
            (_, _, Some(held)) if held.addresses != address => {
                info!("lease {name} now has the address {address}");
            }
            (_, _, None) => info!("took over lease {name} of {address}"),
            _ => debug!("renewed lease {name}"),
        }
    }
}
