//! What to change so that the kernel's routes become the wanted ones. Pure.

use std::collections::{HashMap, HashSet};
use std::fmt;

use ipnetwork::IpNetwork;
use kernel::{Protocol, Route};

/// One change to the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Put this route there, in the place of whatever has its destination and metric.
    Replace {
        route: Route,
        displaced: Option<Route>,
    },
    /// Delete this route, and why.
    Delete { route: Route, why: Why },
}

/// Why a route goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Ours, to a subnet that no node has any more.
    Stale,
    /// Another's, in front of ours.
    Shadows,
    /// Another's, leading this node's own subnet away from it.
    Hijacks,
}

/// Compares wanted routes with present ones. `own` are this node's subnets.
///
/// Only ours are deleted, but for a foreign route that would take a subnet's traffic before
/// ours does: one to the same destination with a smaller metric, or with the same.
pub(crate) fn plan(wanted: &[Route], present: &[Route], own: &[IpNetwork]) -> Vec<Change> {
    let is_present: HashSet<_> = present.iter().collect();
    // Of several in one place the kernel uses, and replaces, the first.
    let mut in_place = HashMap::new();
    for route in present {
        in_place.entry((route.to, route.metric)).or_insert(route);
    }
    let missing = wanted.iter().filter(|route| !is_present.contains(route));
    // What is new comes first, so that no subnet is ever without a route.
    let mut changes: Vec<_> = missing
        .map(|route| {
            let displaced = in_place
                .get(&(route.to, route.metric))
                .map(|other| (*other).clone());
            Change::Replace {
                route: route.clone(),
                displaced,
            }
        })
        .collect();
    let wanted: HashMap<_, _> = wanted.iter().map(|route| (route.to, route)).collect();
    for route in present {
        let is_ours = route.protocol == Protocol::HOSTGW;
        let why = match wanted.get(&route.to) {
            Some(wanted) if *wanted == route => continue,
            _ if own.iter().any(|own| hijacks(route, *own)) => Why::Hijacks,
            // It is there for what no other route leads anywhere.
            Some(wanted) if !wanted.is_unicast && !is_ours => continue,
            // Where ours is not there yet, it takes this one's place.
            Some(wanted) if route.metric == wanted.metric && !is_present.contains(wanted) => {
                continue;
            }
            _ if is_ours => Why::Stale,
            Some(wanted) if route.metric <= wanted.metric => Why::Shadows,
            _ => continue,
        };
        changes.push(Change::Delete {
            route: route.clone(),
            why,
        });
    }
    changes
}

/// Makes `routes` what they are after these changes.
pub(crate) fn record(changes: &[&Change], routes: &mut Vec<Route>) {
    let mut places = HashMap::new();
    for change in changes {
        let (before, after) = match change {
            Change::Replace { route, displaced } => (displaced.as_ref(), Some(route)),
            Change::Delete { route, .. } => (Some(route), None),
        };
        match before {
            Some(before) => drop(places.insert(before, after)),
            None => routes.extend(after.cloned()),
        }
    }
    if places.is_empty() {
        return;
    }
    // Of several that are alike, the first is the one.
    routes.retain_mut(|route| match places.remove(route) {
        Some(Some(after)) => {
            after.clone_into(route);
            true
        }
        Some(None) => false,
        None => true,
    });
}

/// Whether a route leads `own`, or a part of it, anywhere but to the node's own bridge.
fn hijacks(route: &Route, own: IpNetwork) -> bool {
    let is_within = own.prefix() <= route.to.prefix()
        && own.is_ipv4() == route.to.is_ipv4()
        && own.contains(route.to.network());
    let leads_away = route.via.is_some() || route.dev == 0 || !route.is_unicast;
    is_within && leads_away && route.protocol != Protocol::KERNEL
}

/// flanneld's routes bear no mark: they are by a next hop, or lead nowhere (`--ip-blackhole-route`), to a
/// part of the cluster's network, and nobody in particular put them there.
pub(crate) fn is_of_flannel(route: &Route, networks: &[IpNetwork]) -> bool {
    let mut around = networks
        .iter()
        .filter(|network| network.prefix() < route.to.prefix() && network.contains(route.to.ip()));
    route.protocol == Protocol::BOOT
        && (route.via.is_some() || !route.is_unicast)
        && around.next().is_some()
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace {
                route,
                displaced: None,
            } => write!(f, "add route {route}"),
            Self::Replace {
                route,
                displaced: Some(other),
            } => {
                write!(f, "replace route {other} by {route}")
            }
            Self::Delete {
                route,
                why: Why::Stale,
            } => {
                write!(
                    f,
                    "delete route {route}: it is not wanted any more, or cannot be for now"
                )
            }
            Self::Delete {
                route,
                why: Why::Shadows,
            } => {
                write!(f, "delete foreign route {route}: it takes a node's traffic")
            }
            Self::Delete {
                route,
                why: Why::Hijacks,
            } => {
                write!(
                    f,
                    "delete route {route}: it leads this node's own subnet away"
                )
            }
        }
    }
}

impl Change {
    /// Whether one of ours goes because nobody wants it any more.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(
            self,
            Self::Delete {
                why: Why::Stale,
                ..
            }
        )
    }

    /// What it is, in few words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Replace {
                displaced: None, ..
            } => "add route",
            Self::Replace { .. } => "replace route",
            Self::Delete {
                why: Why::Stale, ..
            } => "delete route",
            Self::Delete {
                why: Why::Shadows, ..
            } => "delete foreign route",
            Self::Delete {
                why: Why::Hijacks, ..
            } => "delete route of this node's own subnet",
        }
    }

    /// Whether somebody else's route goes.
    pub(crate) fn is_against_foreign(&self) -> bool {
        let gone = match self {
            Self::Replace { displaced, .. } => displaced.as_ref(),
            Self::Delete { route, .. } => Some(route),
        };
        gone.is_some_and(|route| route.protocol != Protocol::HOSTGW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: u32 = 2;

    /// "10.10.2.0/24 via 192.168.2.15 proto 104 metric 5", as people write routes.
    fn route(text: &str) -> Route {
        let mut words = text.split(' ');
        let to: IpNetwork = words
            .next()
            .expect("a destination")
            .parse()
            .expect("a network");
        let mut route = Route::new(to, None, DEV, Protocol::HOSTGW);
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            match key {
                "via" => route.via = value.parse().ok(),
                "proto" => route.protocol = Protocol(value.parse().expect("a number")),
                "metric" => route.metric = value.parse().expect("a number"),
                "dev" => route.dev = value.parse().expect("a number"),
                other => panic!("{other} is no part of a route"),
            }
        }
        route
    }

    fn plan_of(wanted: &[&str], present: &[&str]) -> Vec<String> {
        let routes = |list: &[&str]| list.iter().map(|text| route(text)).collect::<Vec<_>>();
        let own = ["10.10.1.0/24".parse().expect("a network")];
        let (wanted, mut present) = (routes(wanted), routes(present));
        let changes = plan(&wanted, &present, &own);
        record(&changes.iter().collect::<Vec<_>>(), &mut present);
        for route in &wanted {
            assert_eq!(present.iter().filter(|other| *other == route).count(), 1);
        }
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let right = [
            "10.10.2.0/24 via 192.168.2.15",
            "fd00:10:10:2::/64 via fd00::15",
        ];
        let others = [
            "0.0.0.0/0 via 192.168.2.1 proto 3",
            "10.10.1.0/24 proto 2",
            "192.168.2.0/24 proto 2",
        ];
        assert!(plan_of(&right, &[&right[..], &others[..]].concat()).is_empty());
    }

    #[test]
    fn missing_is_added_and_stale_is_deleted_in_this_order() {
        assert_eq!(
            plan_of(
                &["10.10.2.0/24 via 192.168.2.15"],
                &["10.10.3.0/24 via 192.168.2.18"]
            ),
            [
                "add route 10.10.2.0/24 via 192.168.2.15 proto 104",
                "delete route 10.10.3.0/24 via 192.168.2.18 proto 104: it is not wanted any more, or cannot be for now",
            ]
        );
    }

    #[test]
    fn a_moved_node_is_replaced_in_place() {
        assert_eq!(
            plan_of(
                &["10.10.2.0/24 via 192.168.2.15"],
                &["10.10.2.0/24 via 192.168.2.99"]
            ),
            [
                "replace route 10.10.2.0/24 via 192.168.2.99 proto 104 by 10.10.2.0/24 via 192.168.2.15 proto 104"
            ]
        );
        assert_eq!(
            plan_of(
                &["10.10.2.0/24 via 192.168.2.15"],
                &["10.10.2.0/24 via 192.168.2.15 dev 7"]
            )
            .len(),
            1,
            "the interface came back with another number"
        );
    }

    #[test]
    fn a_foreign_route_in_our_place_is_replaced_and_a_lesser_one_is_left() {
        let wanted = ["10.10.2.0/24 via 192.168.2.15"];
        assert_eq!(
            plan_of(
                &wanted,
                &[
                    "10.10.2.0/24 via 192.168.2.15 proto 3",
                    "10.10.2.0/24 via 192.168.2.9 proto 3 metric 50"
                ]
            ),
            [
                "replace route 10.10.2.0/24 via 192.168.2.15 proto 3 by 10.10.2.0/24 via 192.168.2.15 proto 104"
            ]
        );
    }

    #[test]
    fn a_foreign_route_in_front_of_ours_goes() {
        assert_eq!(
            plan_of(
                &["fd00:10:10:2::/64 via fd00::15"],
                &[
                    "fd00:10:10:2::/64 via fd00::15",
                    "fd00:10:10:2::/64 via fd00::9 proto 3 metric 1"
                ]
            ),
            [
                "delete foreign route fd00:10:10:2::/64 via fd00::9 proto 3: it takes a node's traffic"
            ]
        );
        assert_eq!(
            plan_of(
                &["10.10.2.0/24 via 192.168.2.15"],
                &[
                    "10.10.2.0/24 via 192.168.2.9 proto 3",
                    "10.10.2.0/24 via 192.168.2.15"
                ]
            )
            .len(),
            1,
            "put before ours by `ip route prepend`"
        );
    }

    #[test]
    fn a_part_of_our_own_subnet_is_ours_too() {
        let away = [
            "10.10.1.128/25 via 192.168.2.99 proto 3",
            "10.10.1.9/32 proto 3 dev 0",
        ];
        assert_eq!(plan_of(&[], &away).len(), 2);
        let others = [
            "10.10.0.0/16 via 192.168.2.99 proto 3",
            "10.10.1.9/32 proto 3",
            "fd00::/64 via fd00::9 proto 3",
        ];
        assert!(plan_of(&[], &others).is_empty());
    }

    #[test]
    fn nobody_leads_our_own_subnet_away() {
        assert_eq!(
            plan_of(
                &[],
                &[
                    "10.10.1.0/24 via 192.168.2.99 proto 3",
                    "10.10.1.0/24 proto 2"
                ]
            ),
            [
                "delete route 10.10.1.0/24 via 192.168.2.99 proto 3: it leads this node's own subnet away"
            ]
        );
    }
}
