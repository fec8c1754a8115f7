//! Routes, as `ipam.routes` and results have them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::network::{deserialize_network, deserialize_optional_address, serialize_as_text};

/// One route in a container.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Route {
    /// Destination.
    #[serde(
        deserialize_with = "deserialize_network",
        serialize_with = "serialize_as_text"
    )]
    pub dst: IpNetwork,
    /// Next hop. Default: the gateway of the destination's family.
    #[serde(
        default,
        deserialize_with = "deserialize_optional_address",
        skip_serializing_if = "Option::is_none"
    )]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Advertised maximum segment size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope, as the kernel's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// True if the route's gateway is in none of `subnets`, the subnets of the container's addresses,
    /// so that the kernel would refuse the route. Without an address of the route's family, it is
    /// false.
    #[must_use]
    pub fn is_unreachable_from(&self, subnets: &[IpNetwork]) -> bool {
        let Some(gw) = self.gw.filter(|gw| !gw.is_unspecified()) else {
            return false;
        };
        let is_of_link = matches!(gw, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let has_family = subnets.iter().any(|s| s.is_ipv4() == gw.is_ipv4());
        has_family && !is_of_link && !subnets.iter().any(|subnet| subnet.contains(gw))
    }

    /// A route to `dst` by `gw`, without other settings.
    #[must_use]
    pub fn new(dst: IpNetwork, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}
