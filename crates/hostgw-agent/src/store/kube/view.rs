//! What the API server and the network's configuration say together of this node and of all others.

use std::net::IpAddr;
use std::sync::Arc;

use super::{KubeStore, Node, Options, Verdict};
use crate::cache::Kept;
use crate::error::chain;
use crate::lease::{Addresses, Hop, Lease, Snapshot};
use crate::net_conf::{self, NetConf};
use crate::node;
use crate::state::StoreState;
use crate::store::file::{self, Watched};
use crate::store::{Surroundings, View};
use crate::uplink::{Knowledge, Uplink};

/// The API server, and the network's configuration beside it.
pub(crate) struct Kube {
    store: KubeStore,
    net_conf: Watched<NetConf>,
    /// This node's interface, as of the last notice of a change, and by what it was found.
    uplink: Option<(Basis, Result<Uplink, String>)>,
}

/// What decides on this node's interface beside the kernel.
#[derive(PartialEq, Eq)]
struct Basis {
    network: Option<NetConf>,
    /// By an administrator's annotations.
    asked: Vec<IpAddr>,
    /// The Node's own addresses.
    internal: Addresses,
    /// Those that the others were told last.
    announced: Addresses,
}

impl Kube {
    /// Begins; an earlier run knew the store up to `version`. Needs a tokio runtime.
    pub(crate) fn start(options: Options, version: Option<String>) -> Result<Self, file::Error> {
        Ok(Self {
            net_conf: Watched::new(options.net_conf.clone(), net_conf::parse)?,
            store: KubeStore::start(options, version),
            uplink: None,
        })
    }

    /// Waits until something changed.
    pub(crate) async fn changed(&self) {
        tokio::select! {
            () = self.store.changed() => {}
            () = self.net_conf.changed() => {}
        }
    }

    /// Says how this node is.
    pub(crate) fn tell(&self, verdict: Option<Verdict>) {
        self.store.wish(|wish| wish.verdict = verdict);
    }

    /// What they say now.
    pub(crate) fn view(&mut self, around: Surroundings<'_>) -> View {
        if around.is_slow {
            self.net_conf.watch();
        }
        let file = self.net_conf.path().display().to_string();
        let network = match self.net_conf.latest(around.is_slow) {
            Ok(network) => Ok(*network),
            Err(error) => Err(chain(error)),
        };
        let report = self.store.report();
        let own = report.own.as_ref().and_then(|own| own.as_ref().ok());
        let uplink = self.uplink(own.map(AsRef::as_ref), network.as_ref().ok(), around);
        let (mut troubles, mut warnings) = (Vec::new(), Vec::new());
        let mut state = StoreState {
            name: String::new(),
            is_reached: report.unreachable.is_none() && report.leases.is_some(),
            warning: report.unreachable.clone(),
            revision: report
                .version
                .as_ref()
                .and_then(|version| version.parse().ok())
                .unwrap_or_default(),
            heard: report.heard,
            expires: None,
        };
        match report.unwritten {
            Some(unwritten) if unwritten.hides_node => troubles.push(unwritten.reason),
            Some(unwritten) => state.warning = state.warning.or(Some(unwritten.reason)),
            None => {}
        }
        let kept = |uplink: Result<Uplink, String>| {
            let kept = around.kept?;
            Some(uplink.map(|uplink| kept.node(uplink)))
        };
        let node = match (network, report.leases, report.own, report.unreachable) {
            (Ok(network), Some(leases), Some(Ok(own)), _) => Some(uplink.and_then(|uplink| {
                let addresses = uplink.public(Some(&network));
                let (own, missing) = own.own_lease(&network, &file, addresses)?;
                warnings.extend(missing);
                Ok(node::Node {
                    snapshot: snapshot(network, leases, &own),
                    own,
                    uplink,
                    held: None,
                    version: report.version.clone(),
                    is_kept: false,
                })
            })),
            (Ok(_), _, Some(Err(name)), _) => Some(Err(format!(
                "there is no Node {name:?} (--node-name, NODE_NAME)"
            ))),
            // A node that starts without the configuration, or without the API server, has what it
            // had.
            (Err(reason), ..) if around.kept.is_some() => {
                troubles.push(reason);
                kept(uplink)
            }
            (Err(reason), ..) => Some(Err(reason)),
            (_, _, _, Some(reason)) if around.kept.is_some() => {
                state.warning = Some(format!("{reason}; going by what it said last"));
                kept(uplink)
            }
            (_, _, _, Some(reason)) => {
                state.warning = None;
                Some(Err(reason))
            }
            _ => uplink.err().map(Err),
        };
        // Nobody is sent to a node that has no subnet.
        let addresses = match &node {
            Some(Ok(node)) if !node.is_kept => {
                Some(node.uplink.public(Some(&node.snapshot.network)))
            }
            _ => None,
        };
        self.store.wish(|wish| wish.addresses = addresses);
        View {
            node,
            troubles,
            warnings,
            state,
        }
    }

    /// This node's interface. An administrator's annotations go before everything but flags; without
    /// any of these, the interface that has the Node's own address goes before the default route's.
    fn uplink(
        &mut self,
        own: Option<&Node>,
        network: Option<&NetConf>,
        around: Surroundings<'_>,
    ) -> Result<Uplink, String> {
        let kept = || around.kept.map(Kept::addresses);
        let basis = Basis {
            network: network.copied(),
            asked: own.map_or(Ok(Vec::new()), Node::asked)?,
            internal: own.map(|own| own.internal).unwrap_or_default(),
            announced: own.map(Node::announced).or_else(kept).unwrap_or_default(),
        };
        if around.has_moved || self.uplink.as_ref().is_none_or(|(old, _)| *old != basis) {
            let find = || {
                let mut selection = around.selection.clone();
                if !basis.asked.is_empty() {
                    selection.public.clone_from(&basis.asked);
                }
                let known = Knowledge {
                    network,
                    internal: basis.internal,
                    announced: basis.announced,
                    before: None,
                };
                around.uplink(&selection, known)
            };
            let found = find();
            self.uplink = Some((basis, found));
        }
        let (_, found) = self.uplink.as_ref().expect("it was just found");
        found.clone()
    }
}

/// All nodes, of the families that the network has; this one as it is now, whatever its Node says
/// yet.
fn snapshot(network: NetConf, leases: Vec<Arc<Lease>>, own: &Lease) -> Snapshot {
    let has = |hop: &Hop| network.space(hop.subnet).is_some();
    let fit = |lease: Arc<Lease>| {
        if lease.node == own.node {
            return Arc::new(own.clone());
        }
        if lease.hops.iter().all(has) {
            return lease;
        }
        let hops: Vec<_> = lease.hops.iter().copied().filter(has).collect();
        let missing = || "its Node has no subnet and address of the network's family".to_owned();
        let flaw = lease.flaw.clone().or_else(|| hops.is_empty().then(missing));
        Arc::new(Lease {
            node: lease.node.clone(),
            hops,
            flaw,
        })
    };
    Snapshot {
        network,
        leases: leases.into_iter().map(fit).collect(),
    }
}
