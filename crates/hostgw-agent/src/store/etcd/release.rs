//! Releases this node's lease.

use etcd_client::TxnOp;

use super::EtcdStoreConfig;
use super::error::Error;
use super::requests::{commit, read_all, unchanged};
use super::step::LeaseClaim;
use crate::network::{Addresses, EtcdLease};

/// Deletes this node's keys. Returns a line for each.
pub(crate) async fn release(
    config: EtcdStoreConfig,
    held: Option<EtcdLease>,
    addresses: Addresses,
) -> Result<String, Error> {
    let claim = LeaseClaim {
        addresses,
        held,
        ..LeaseClaim::default()
    };
    let mut failures = Vec::new();
    for endpoint in &config.access.endpoints {
        match release_at(endpoint, &config, &claim).await {
            Ok(done) => return Ok(done),
            Err(error) => failures.push(format!("{endpoint}: {error}")),
        }
    }
    Err(Error::Release(failures.join("; ")))
}

async fn release_at(
    endpoint: &str,
    config: &EtcdStoreConfig,
    claim: &LeaseClaim,
) -> Result<String, Error> {
    let mut client = config.access.connect(endpoint).await?;
    let contents = read_all(&client, &config.prefix).await?;
    let mut lines = Vec::new();
    for (name, entry) in claim.own_entries(&contents) {
        if entry.meta.lease_id == 0 {
            lines.push(format!("{name} is a reservation and stays"));
            continue;
        }
        let key = contents.path(name);
        let conditions = vec![unchanged(&key, Some(entry.meta.modified))];
        let delete = vec![TxnOp::delete(key.as_str(), None)];
        let (is_done, _) = commit(&mut client, conditions, delete, vec![key]).await?;
        if !is_done {
            return Err(Error::Changed(name.to_owned()));
        }
        lines.push(format!("released lease {name}"));
    }
    if lines.is_empty() {
        lines.push(format!(
            "this node holds no lease below {}",
            config.prefix.trim_end_matches('/')
        ));
    }
    Ok(lines.join("\n"))
}
