//! Gives the node's lease back.

use etcd_client::{Compare, CompareOp, TxnOp};

use super::own::Claim;
use super::{Options, commit, read_all};
use crate::lease::{Addresses, Held};

/// Gives this node's lease back. Says what became of it.
pub(crate) async fn release(
    options: Options,
    held: Option<Held>,
    addresses: Addresses,
) -> Result<String, String> {
    let mut failed = Vec::new();
    for endpoint in &options.access.endpoints {
        match release_by(endpoint, &options, held.clone(), addresses).await {
            Ok(said) => return Ok(said),
            Err(reason) => failed.push(format!("{endpoint}: {reason}")),
        }
    }
    Err(format!(
        "give the lease back to etcd: {}",
        failed.join("; ")
    ))
}

async fn release_by(
    endpoint: &str,
    options: &Options,
    held: Option<Held>,
    addresses: Addresses,
) -> Result<String, String> {
    let mut client = options.access.connect(endpoint).await?;
    let contents = read_all(&client, &options.prefix).await?;
    let claim = Claim {
        addresses,
        held,
        is_confirmed: false,
        granted: None,
        is_due: false,
        ended: None,
        contested: None,
        previous: Vec::new(),
    };
    let mut said = Vec::new();
    for (name, entry) in claim.ours(&contents) {
        if entry.stamp.etcd_lease == 0 {
            said.push(format!("{name} is a reservation, and stays"));
            continue;
        }
        let path = contents.path(name);
        let modified = entry.stamp.modified;
        let unchanged = Compare::mod_revision(path.as_str(), CompareOp::Equal, modified);
        let delete = TxnOp::delete(path.as_str(), None);
        let (is_done, _) = commit(&mut client, vec![unchanged], vec![delete], vec![path]).await?;
        if !is_done {
            return Err(format!("the lease of {name} changed meanwhile"));
        }
        said.push(format!("gave {name} back"));
    }
    if said.is_empty() {
        said.push(format!(
            "this node holds no lease below {}",
            options.prefix.trim_end_matches('/')
        ));
    }
    Ok(said.join("\n"))
}
