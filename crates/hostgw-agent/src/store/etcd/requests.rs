//! Single requests to etcd, each with a time limit.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, ResponseHeader, Txn, TxnOp, TxnOpResponse,
};
use tokio::time::timeout;

use super::contents::Contents;
use super::error::Error;

/// How long a server may take to answer.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server may take to send everything.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest message in bytes: 50,000 leases are 12 MB.
pub(super) const MAX_MESSAGE: usize = 256 << 20;

/// Waits for an answer, at most for `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(Error::from),
        Err(_) => Err(Error::Timeout(limit.as_secs())),
    }
}

/// Reads all keys below the prefix in one range request.
pub(super) async fn read_all(client: &Client, prefix: &str) -> Result<Contents, Error> {
    let mut contents = Contents::new(prefix);
    let mut reader = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
    // A small request first: a server that hangs does not get the time that all leases take.
    let count = GetOptions::new().with_count_only();
    let key = format!("{prefix}config");
    within(REQUEST_TIMEOUT, reader.get(key, Some(count))).await?;
    let all = reader.get(contents.folder(), Some(GetOptions::new().with_prefix()));
    let all = within(SNAPSHOT_TIMEOUT, all).await?;
    contents.revision = all.header().map_or(0, ResponseHeader::revision);
    contents.seen = contents.revision;
    for pair in all.kvs() {
        contents.put(pair);
    }
    Ok(contents)
}

/// Keys, each with its value if there is one.
pub(super) type KeyValues = Vec<(String, Option<KeyValue>)>;

/// The condition that a key was not changed since `revision`; with `None`, that it does not exist.
pub(super) fn unchanged(key: &str, revision: Option<i64>) -> Compare {
    match revision {
        Some(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
        None => Compare::version(key, CompareOp::Equal, 0),
    }
}

/// Makes changes if all conditions hold. Returns whether they did, and what `keys` have afterwards in
/// both cases.
pub(super) async fn commit(
    client: &mut Client,
    conditions: Vec<Compare>,
    mut changes: Vec<TxnOp>,
    keys: Vec<String>,
) -> Result<(bool, KeyValues), Error> {
    let reads: Vec<_> = keys
        .iter()
        .map(|key| TxnOp::get(key.as_str(), None))
        .collect();
    changes.extend(reads.clone());
    let txn = Txn::new().when(conditions).and_then(changes).or_else(reads);
    let answer = within(REQUEST_TIMEOUT, client.txn(txn)).await?;
    let values = answer
        .op_responses()
        .into_iter()
        .filter_map(|answer| match answer {
            TxnOpResponse::Get(found) => Some(found.kvs().first().cloned()),
            _ => None,
        });
    Ok((answer.succeeded(), keys.into_iter().zip(values).collect()))
}

/// Keeps an etcd lease alive, which writes nothing. Returns its new time to live; zero if it has
/// expired.
pub(super) async fn keep_alive(client: &mut Client, lease_id: i64) -> Result<Duration, Error> {
    let ttl = async {
        let (mut keeper, mut answers) = match client.lease_keep_alive(lease_id).await {
            // The library's error for a lease that does not exist.
            Err(etcd_client::Error::LeaseKeepAliveError(_)) => return Ok(0),
            other => other?,
        };
        // The library does not pass on the first answer.
        keeper.keep_alive().await?;
        let answer = answers.message().await?;
        Ok(answer.map_or(0, |answer| answer.ttl()))
    };
    let ttl = within(REQUEST_TIMEOUT, ttl).await?;
    Ok(Duration::from_secs(u64::try_from(ttl).unwrap_or_default()))
}
