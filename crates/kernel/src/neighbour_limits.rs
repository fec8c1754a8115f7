//! The kernel's limits on neighbour entries. All network namespaces share the tables of entries, and only
//! the first one, the host's, has the limits.

use std::fmt;

use netlink_packet_route::neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Error, Rtnl, sysctl};

/// The limits of one family, in entries (`gc_thresh1` to `gc_thresh3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourLimits {
    /// Up to this number, the kernel removes no entry.
    pub low: u32,
    /// Above this number, it removes unused entries after five seconds.
    pub high: u32,
    /// It never has more entries than this, and refuses to send to further neighbours.
    pub most: u32,
}

impl NeighbourLimits {
    /// Returns limits for `count` neighbours in use, in the proportions of the kernel's defaults: twice as
    /// many before unused entries are removed, and four times as many in all.
    #[must_use]
    pub fn for_neighbours(count: u32) -> Self {
        let low = count.min(1 << 29).next_power_of_two();
        Self {
            low,
            high: low * 2,
            most: low * 4,
        }
    }

    /// Returns the larger one of each limit.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            low: self.low.max(other.low),
            high: self.high.max(other.high),
            most: self.most.max(other.most),
        }
    }

    /// Reads the limits of IPv4 or of IPv6. Returns `None` in a network namespace that has none.
    pub fn read(is_ipv4: bool) -> Result<Option<Self>, Error> {
        let get = |number: u32| {
            let version = if is_ipv4 { 4 } else { 6 };
            let name = format!("net/ipv{version}/neigh/default/gc_thresh{number}");
            match sysctl::get(&name) {
                Ok(text) => Ok(text.trim().parse().ok()),
                Err(error) if error.is_gone() => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (low, high, most) = (get(1)?, get(2)?, get(3)?);
        Ok(match (low, high, most) {
            (Some(low), Some(high), Some(most)) => Some(Self { low, high, most }),
            _ => None,
        })
    }
}

impl Rtnl {
    /// Sets the limits of IPv4 or of IPv6. That takes `CAP_NET_ADMIN`, and works where `/proc/sys` is read-only.
    pub fn set_neighbour_limits(
        &self,
        is_ipv4: bool,
        limits: NeighbourLimits,
    ) -> Result<(), Error> {
        let mut message = NeighbourTableMessage::default();
        let (family, name) = if is_ipv4 {
            (AddressFamily::Inet, "arp_cache")
        } else {
            (AddressFamily::Inet6, "ndisc_cache")
        };
        message.header.family = family;
        message.attributes = vec![
            NeighbourTableAttribute::Name(name.to_owned()),
            NeighbourTableAttribute::Threshold1(limits.low),
            NeighbourTableAttribute::Threshold2(limits.high),
            NeighbourTableAttribute::Threshold3(limits.most),
        ];
        let request = RouteNetlinkMessage::SetNeighbourTable(message);
        self.change((request, 0), || {
            format!("set the limits of the neighbour table {name} to {limits}")
        })
    }
}

impl fmt::Display for NeighbourLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.low, self.high, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_room_for_twice_the_neighbours() {
        let text = |count| NeighbourLimits::for_neighbours(count).to_string();
        assert_eq!(text(0), "1/2/4");
        assert_eq!(text(256), "256/512/1024");
        assert_eq!(text(5257), "8192/16384/32768");
        assert_eq!(text(u32::MAX), "536870912/1073741824/2147483648");
        let default = NeighbourLimits {
            low: 128,
            high: 512,
            most: 1024,
        };
        let small = NeighbourLimits::for_neighbours(100);
        assert_eq!(small.max(default), default);
    }
}
