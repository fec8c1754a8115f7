//! The kernel's limits on neighbour entries, raised to what this node needs: with the default of 1,024
//! entries, a node cannot send to all nodes of a larger cluster.

use ipnetwork::IpNetwork;
use kernel::{NeighbourLimits, Rtnl};
use tracing::info;

/// At most this many pods of this node count: more than a kubelet starts by default.
const MOST_PODS: u32 = 256;

/// The limits that were in effect at the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NeighbourStatus {
    /// `None` if this network namespace has no limits: it is not the host's.
    pub(crate) ipv4: Option<NeighbourLimits>,
    /// The same for IPv6.
    pub(crate) ipv6: Option<NeighbourLimits>,
}

impl NeighbourStatus {
    /// Raises the limits to what the pods in the subnets `own` and next hops of `peers` need. They are never
    /// lowered.
    pub(crate) fn ensure(
        kernel: &Rtnl,
        own: &[IpNetwork],
        peers: &[IpNetwork],
    ) -> Result<Self, kernel::Error> {
        let family = |is_ipv4: bool| {
            let of_family = |networks: &[IpNetwork]| {
                let count = networks.iter().filter(|net| net.is_ipv4() == is_ipv4);
                u32::try_from(count.count()).unwrap_or(u32::MAX)
            };
            let Some(present) = NeighbourLimits::read(is_ipv4)? else {
                return Ok(None);
            };
            let pods = own.iter().filter(|subnet| subnet.is_ipv4() == is_ipv4);
            let pods: u32 = pods.map(|subnet| capacity(*subnet)).sum();
            if pods == 0 {
                return Ok(Some(present));
            }
            let needed = of_family(peers).saturating_add(pods);
            let limits = NeighbourLimits::for_neighbours(needed).max(present);
            if limits != present {
                kernel.set_neighbour_limits(is_ipv4, limits)?;
                let version = if is_ipv4 { "IPv4" } else { "IPv6" };
                info!(
                    "raised the limits of {version} neighbour entries from {present} to {limits} (gc_thresh1/2/3)"
                );
            }
            Ok(Some(limits))
        };
        Ok(Self {
            ipv4: family(true)?,
            ipv6: family(false)?,
        })
    }

    /// The limits in words; empty if there are none.
    pub(crate) fn describe(self) -> String {
        let of = |version, limits: Option<NeighbourLimits>| {
            limits.map(|limits| format!("{version} {limits}"))
        };
        let families = [of("IPv4", self.ipv4), of("IPv6", self.ipv6)];
        families
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// The number of pods that a subnet has room for, as far as it counts.
fn capacity(subnet: IpNetwork) -> u32 {
    let bits = if subnet.is_ipv4() { 32 } else { 128 };
    let size = 1_u32.checked_shl(u32::from(bits - subnet.prefix()));
    size.map_or(MOST_PODS, |size| size.min(MOST_PODS))
}
