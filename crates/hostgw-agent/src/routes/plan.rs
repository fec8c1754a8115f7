//! Computes the changes that turn the kernel's routes into the desired ones. No I/O.

use std::collections::{HashMap, HashSet};
use std::fmt;

use ipnetwork::IpNetwork;
use kernel::{Protocol, Route};

/// One change to the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Writes this route in place of the one with its destination and metric, if there is one.
    Replace {
        route: Route,
        displaced: Option<Route>,
    },
    /// Deletes this route, for this reason.
    Delete { route: Route, why: DeleteReason },
}

/// The reason for deleting a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeleteReason {
    /// It is ours, to a subnet that no node has any more.
    Stale,
    /// It is of another program, and takes precedence over ours.
    Shadows,
    /// It is of another program, and diverts this node's own subnet.
    Hijacks,
}

/// Compares desired routes with present ones, and returns the changes. `own` are this node's
/// subnets.
///
/// Routes of other programs are only deleted if they divert traffic: a route to the same
/// destination as ours with a smaller or the same metric, or one that leads this node's own subnet
/// away.
pub(crate) fn plan(wanted: &[Route], present: &[Route], own: &[IpNetwork]) -> Vec<Change> {
    let is_present: HashSet<_> = present.iter().map(Route::identity).collect();
    // Of several routes with one destination and metric, the kernel uses and replaces the first.
    let mut in_place = HashMap::new();
    for route in present {
        in_place.entry((route.to, route.metric)).or_insert(route);
    }
    let missing = wanted
        .iter()
        .filter(|route| !is_present.contains(&route.identity()));
    // New routes come first, so that no subnet is ever without a route.
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
            Some(wanted) if wanted.identity() == route.identity() => continue,
            _ if own.iter().any(|own| diverts_subnet(route, *own)) => DeleteReason::Hijacks,
            // Our blackhole route is only for packets that no other route leads anywhere.
            Some(wanted) if !wanted.is_unicast && !is_ours => continue,
            // If our route is not there yet, it replaces this one.
            Some(wanted)
                if route.metric == wanted.metric && !is_present.contains(&wanted.identity()) =>
            {
                continue;
            }
            _ if is_ours => DeleteReason::Stale,
            Some(wanted) if route.metric <= wanted.metric => DeleteReason::Shadows,
            _ => continue,
        };
        changes.push(Change::Delete {
            route: route.clone(),
            why,
        });
    }
    changes
}

/// Updates `routes` to what they are after these changes.
pub(crate) fn record(changes: &[Change], routes: &mut Vec<Route>) {
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
    // Of several equal routes, the first one is the one that changed.
    routes.retain_mut(|route| match places.remove(route) {
        Some(Some(after)) => {
            after.clone_into(route);
            true
        }
        Some(None) => false,
        None => true,
    });
}

/// Returns true if a route sends `own`, or a part of it, anywhere but to the node's own bridge.
fn diverts_subnet(route: &Route, own: IpNetwork) -> bool {
    let is_within = own.prefix() <= route.to.prefix()
        && own.is_ipv4() == route.to.is_ipv4()
        && own.contains(route.to.network());
    let leads_away = route.via.is_some() || route.dev == 0 || !route.is_unicast;
    is_within && leads_away && route.protocol != Protocol::KERNEL
}

/// Returns true if a route is flanneld's. Its routes have no protocol number of their own: they
/// have a next hop or are blackholes (`--ip-blackhole-route`), lead to a part of the cluster's
/// network, and have the protocol `boot`, which is the default.
pub(crate) fn is_flannel_route(route: &Route, networks: &[IpNetwork]) -> bool {
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
                write!(f, "replace route {other} with {route}")
            }
            Self::Delete {
                route,
                why: DeleteReason::Stale,
            } => {
                write!(
                    f,
                    "delete route {route}: it is no longer wanted, or cannot be used at present"
                )
            }
            Self::Delete {
                route,
                why: DeleteReason::Shadows,
            } => {
                write!(
                    f,
                    "delete foreign route {route}: it diverts a node's traffic"
                )
            }
            Self::Delete {
                route,
                why: DeleteReason::Hijacks,
            } => {
                write!(f, "delete route {route}: it diverts this node's own subnet")
            }
        }
    }
}

impl Change {
    /// True if one of our routes is deleted because no node has its subnet any more.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(
            self,
            Self::Delete {
                why: DeleteReason::Stale,
                ..
            }
        )
    }

    /// Returns the kind of change, in a few words.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Replace {
                displaced: None, ..
            } => "add route",
            Self::Replace { .. } => "replace route",
            Self::Delete {
                why: DeleteReason::Stale,
                ..
            } => "delete route",
            Self::Delete {
                why: DeleteReason::Shadows,
                ..
            } => "delete foreign route",
            Self::Delete {
                why: DeleteReason::Hijacks,
                ..
            } => "delete route of this node's own subnet",
        }
    }

    /// The route that is not there any more afterwards.
    pub(crate) fn removed(&self) -> Option<&Route> {
        match self {
            Self::Replace { displaced, .. } => displaced.as_ref(),
            Self::Delete { route, .. } => Some(route),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const DEV: u32 = 2;

    /// Parses a route such as "10.10.2.0/24 via 192.168.2.15 proto 104 metric 5".
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
        record(&changes, &mut present);
        for route in &wanted {
            assert_eq!(present.iter().filter(|other| *other == route).count(), 1);
        }
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn correct_routes_are_left_alone() {
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
    fn missing_routes_are_added_before_stale_routes_are_deleted() {
        assert_eq!(
            plan_of(
                &["10.10.2.0/24 via 192.168.2.15"],
                &["10.10.3.0/24 via 192.168.2.18"]
            ),
            [
                "add route 10.10.2.0/24 via 192.168.2.15 proto 104",
                "delete route 10.10.3.0/24 via 192.168.2.18 proto 104: it is no longer wanted, or cannot be used at present",
            ]
        );
    }

    #[test]
    fn the_route_to_a_moved_node_is_replaced_in_place() {
        assert_eq!(
            plan_of(
                &["10.10.2.0/24 via 192.168.2.15"],
                &["10.10.2.0/24 via 192.168.2.99"]
            ),
            [
                "replace route 10.10.2.0/24 via 192.168.2.99 proto 104 with 10.10.2.0/24 via 192.168.2.15 proto 104"
            ]
        );
        assert_eq!(
            plan_of(
                &["10.10.2.0/24 via 192.168.2.15"],
                &["10.10.2.0/24 via 192.168.2.15 dev 7"]
            )
            .len(),
            1,
            "the interface came back with another index"
        );
    }

    #[test]
    fn a_foreign_route_with_our_metric_is_replaced_and_one_with_a_larger_metric_is_left() {
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
                "replace route 10.10.2.0/24 via 192.168.2.15 proto 3 with 10.10.2.0/24 via 192.168.2.15 proto 104"
            ]
        );
    }

    #[test]
    fn a_foreign_route_that_takes_precedence_is_deleted() {
        assert_eq!(
            plan_of(
                &["fd00:10:10:2::/64 via fd00::15"],
                &[
                    "fd00:10:10:2::/64 via fd00::15",
                    "fd00:10:10:2::/64 via fd00::9 proto 3 metric 1"
                ]
            ),
            [
                "delete foreign route fd00:10:10:2::/64 via fd00::9 proto 3: it diverts a node's traffic"
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
    fn a_foreign_route_to_a_part_of_our_own_subnet_is_deleted() {
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
    fn a_foreign_route_that_diverts_our_own_subnet_is_deleted() {
        assert_eq!(
            plan_of(
                &[],
                &[
                    "10.10.1.0/24 via 192.168.2.99 proto 3",
                    "10.10.1.0/24 proto 2"
                ]
            ),
            [
                "delete route 10.10.1.0/24 via 192.168.2.99 proto 3: it diverts this node's own subnet"
            ]
        );
    }

    /// Routes of which many have the same destination, metric or next hop.
    fn any_route() -> impl Strategy<Value = Route> {
        let to = select(vec![
            "10.10.0.0/16",
            "10.10.1.0/24",
            "10.10.1.128/25",
            "10.10.2.0/24",
            "10.10.3.0/24",
            "10.10.3.0/25",
            "0.0.0.0/0",
            "fd00:10:10:2::/64",
            "fd00:10:10:1::/64",
            "192.168.2.0/24",
        ]);
        let via = select(vec![
            None,
            Some("192.168.2.15"),
            Some("192.168.2.18"),
            Some("fd00::15"),
        ]);
        let protocol = select(vec![
            Protocol::HOSTGW,
            Protocol::KERNEL,
            Protocol::BOOT,
            Protocol(4),
        ]);
        let metric = select(vec![0, 0, 100, 1024]);
        (
            to,
            via,
            protocol,
            metric,
            1..3_u32,
            proptest::bool::weighted(0.9),
        )
            .prop_map(|(to, via, protocol, metric, dev, is_unicast)| {
                let via = via.map(|via| via.parse().expect("an address"));
                let mut route = Route::new(to.parse().expect("a network"), via, dev, protocol);
                route.metric = metric;
                route.is_unicast = is_unicast;
                route
            })
    }

    /// Of several routes with one destination and metric, keeps the first, as the kernel does.
    fn distinct(mut routes: Vec<Route>) -> Vec<Route> {
        let mut seen = HashSet::new();
        routes.retain(|route| seen.insert((route.to, route.metric)));
        routes
    }

    #[test]
    fn any_routes_become_the_wanted_ones_and_nothing_else_changes() {
        let own: IpNetwork = "10.10.1.0/24".parse().expect("a network");
        let wanted = vec(any_route(), 0..6).prop_map(move |routes| {
            let mut destinations = HashSet::new();
            let peers = routes.into_iter().filter(|route| {
                let is_peer = route.to.prefix() >= 24
                    && !route.to.contains(own.ip())
                    && !own.contains(route.to.ip());
                is_peer && destinations.insert(route.to)
            });
            let ours = |mut route: Route| {
                (route.protocol, route.metric) = (Protocol::HOSTGW, 0);
                (route.is_unicast, route.dev) = (true, DEV);
                route.via = Some(
                    if route.to.is_ipv4() {
                        "192.168.2.15"
                    } else {
                        "fd00::15"
                    }
                    .parse()
                    .expect("an address"),
                );
                route
            };
            peers.map(ours).collect::<Vec<_>>()
        });
        let present = vec(any_route(), 0..12).prop_map(distinct);
        let cases = (wanted, present).prop_flat_map(|(wanted, present)| {
            let shuffled = Just(present.clone()).prop_shuffle();
            (Just(wanted), Just(present), shuffled)
        });
        let result = random_input::runner().run(&cases, |(wanted, present, shuffled)| {
            let after = |present: &[Route]| {
                let mut routes = present.to_vec();
                let changes = plan(&wanted, present, &[own]);
                record(&changes, &mut routes);
                (changes, routes)
            };
            let (changes, routes) = after(&present);
            // Convergent and idempotent.
            for route in &wanted {
                prop_assert_eq!(routes.iter().filter(|other| *other == route).count(), 1);
            }
            prop_assert_eq!(plan(&wanted, &routes, &[own]), Vec::new());
            // No route of ours is left that is not wanted.
            let mut ours = routes
                .iter()
                .filter(|route| route.protocol == Protocol::HOSTGW);
            prop_assert!(ours.all(|route| wanted.contains(route)));
            // Independent of the order.
            let sorted = |routes: Vec<Route>| {
                let mut texts: Vec<_> = routes.iter().map(|route| format!("{route:?}")).collect();
                texts.sort();
                texts
            };
            prop_assert_eq!(sorted(after(&shuffled).1), sorted(routes));
            // A route of another program goes only if it leads traffic of a pod elsewhere.
            for change in &changes {
                if let Change::Delete { route, why } = change {
                    let competes = wanted
                        .iter()
                        .any(|ours| ours.to == route.to && route.metric <= ours.metric);
                    let is_allowed = match why {
                        DeleteReason::Stale => route.protocol == Protocol::HOSTGW,
                        DeleteReason::Shadows => competes,
                        DeleteReason::Hijacks => {
                            own.contains(route.to.ip()) && route.protocol != Protocol::KERNEL
                        }
                    };
                    prop_assert!(is_allowed, "{change}");
                }
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    }
}
