use std::collections::BTreeSet;

use super::*;
use crate::prefix::DisjointPrefixes;
use crate::sample::{demo, key};
use crate::topology::Local;
use crate::view::{Settings, View};
use crate::vtep::Identity;

fn options() -> Options {
    Options { userspace: false, listen: None, key: key("me"), preshared: PresharedKey::of_secret("x") }
}

fn desired(node: &str, identity: Identity, mesh: bool) -> Desired {
    desired_with(node, Settings { identity, ..Settings::default() }, mesh)
}

fn desired_with(node: &str, settings: Settings, mesh: bool) -> Desired {
    Desired::of(&topology(node, &settings, mesh), &Facts::default(), &options())
}

fn topology(node: &str, settings: &Settings, mesh: bool) -> Topology {
    let view = View::build(&demo(), settings, None);
    let (node, facts) = (node.parse().unwrap(), Facts::default());
    let local = Local { identity: settings.identity, mesh, ..Local::new(&node, &facts) };
    Topology::of(&view, &local)
}

fn route(desired: &Desired, table: Table, prefix: &str) -> Option<Via> {
    let prefix: Prefix = prefix.parse().unwrap();
    let key = RouteKey { table, prefix, metric: path_metric(prefix.family()) };
    desired.routes.get(&key).map(|route| route.via)
}

#[test]
fn mtus_are_ravens() {
    let gateway = desired("c1", Identity::NodeName, false);
    assert_eq!(gateway.links.get(&Device::Overlay).unwrap().mtu, 1420);
    assert_eq!(gateway.links.get(&Device::WireGuard(0)).unwrap().mtu, 1420);
}

#[test]
fn no_device_that_carries_ipv6_goes_under_1280() {
    let topology = topology("c1", &Settings::default(), false);
    let facts = Facts { underlay_mtu: 1280, ..Facts::default() };
    let desired = Desired::of(&topology, &facts, &options());
    assert_eq!(desired.links.get(&Device::Overlay).unwrap().mtu, 1280);
}

proptest::proptest! {
    #[test]
    fn an_interval_set_covers_exactly_its_prefixes_and_with_no_two_that_could_be_one(
        prefixes in proptest::collection::vec((0u8..32, 27u8..=32), 0..16),
    ) {
        let given: Vec<Prefix> =
            prefixes.iter().map(|(last, length)| Prefix::new(IpAddr::from([10, 0, 0, *last]), *length)).collect();
        let merged = aggregate(given.clone());
        for last in 0..64 {
            let address = IpAddr::from([10, 0, 0, last]);
            let held = merged.iter().filter(|prefix| prefix.contains(address)).count();
            let wanted = given.iter().any(|prefix| prefix.contains(address));
            proptest::prop_assert_eq!(held, usize::from(wanted));
        }
        let joinable = merged.windows(2).any(|pair| pair[0].joined(&pair[1]).is_some());
        proptest::prop_assert!(!joinable);
    }
}

#[test]
fn every_remote_prefix_has_an_unreachable_twin_in_both_tables() {
    for node in ["c1", "c2", "s1", "s2", "b1"] {
        let desired = desired(node, Identity::NodeName, false);
        let view = View::build(&demo(), &Settings::default(), None);
        let node: crate::name::NodeName = node.parse().unwrap();
        let others = view.domains.values().filter(|domain| domain.member(&node).is_none());
        let remote: Vec<Prefix> = others.flat_map(crate::view::Domain::prefixes).collect();
        assert!(!remote.is_empty());
        for prefix in remote {
            for table in [Table::Remote, Table::Tunnel] {
                let twin = desired.routes.get(&RouteKey { table, prefix, metric: TWIN_METRIC }).unwrap();
                assert_eq!(twin.via, Via::Unreachable);
            }
        }
    }
}

#[test]
fn a_member_has_one_nexthop_a_family_for_all_other_domains_whoever_the_gateway_is() {
    let member = desired("c2", Identity::NodeName, false);
    assert_eq!(member.nexthops.len(), 2);
    let vias: BTreeSet<_> = member
        .routes
        .iter()
        .filter(|(_, route)| route.via != Via::Unreachable)
        .map(|(_, route)| route.via)
        .collect();
    assert_eq!(vias.len(), 2);
    assert_eq!(route(&member, Table::Domain, "10.10.3.0/24"), None, "without mesh the CNI has these");
    assert!(matches!(route(&member, Table::Remote, "10.10.21.0/24"), Some(Via::Nexthop(_))));
    assert_eq!(route(&member, Table::Tunnel, "10.10.21.0/24"), None, "no tunnel, so no loop");
    // A new gateway moves the nexthops and nothing else of the routes.
    let view = |gateway: &str| {
        let mut gateways = demo();
        gateways[0].status.as_mut().unwrap().active_endpoints[0].node_name = gateway.to_owned();
        View::build(&gateways, &Settings::default(), None)
    };
    let of = |gateway: &str| {
        let (node, facts) = ("c2".parse().unwrap(), Facts::default());
        let local = Local::new(&node, &facts);
        Desired::of(&Topology::of(&view(gateway), &local), &Facts::default(), &options())
    };
    let (before, after) = (of("c1"), of("c3"));
    assert_eq!(before.routes, after.routes);
    assert_ne!(before.nexthops, after.nexthops);
}

#[test]
fn a_gateway_routes_by_tunnel_and_to_its_members_over_the_overlay() {
    let gateway = desired("c1", Identity::NodeName, false);
    for table in [Table::Remote, Table::Tunnel] {
        assert_eq!(route(&gateway, table, "10.10.12.0/24"), Some(Via::Device(Device::WireGuard(0))));
    }
    assert!(matches!(route(&gateway, Table::Domain, "10.10.2.0/24"), Some(Via::Nexthop(_))));
}

#[test]
fn there_is_never_a_default_route() {
    for node in ["c1", "c2", "s1", "s2", "b1"] {
        for mesh in [false, true] {
            let desired = desired(node, Identity::NodeIp, mesh);
            assert!(desired.routes.keys().all(|key| key.prefix.length() > 0));
        }
    }
}

#[test]
fn a_source_is_the_pod_side_address_on_every_device() {
    let gateway = desired("c1", Identity::NodeName, false);
    for device in [Device::Overlay, Device::WireGuard(0)] {
        for (address, length) in [("10.10.1.0", 32), ("fd00:10:1:0:ffff:ffff:ffff:ffff", 128)] {
            let address = Address { device, address: address.parse().unwrap(), length };
            assert_eq!(gateway.addresses.get(&address), Some(&Scope::Global));
        }
    }
    let sources: BTreeSet<_> = gateway.routes.iter().filter_map(|(_, route)| route.source).collect();
    assert_eq!(sources.len(), 2);
}

#[test]
fn ravens_vectors_hold_with_its_identity() {
    // raven-contract: gateway 192.168.1.1, member 192.168.1.4 with 10.10.4.0/24, MTU 1420.
    let gateways = [crate::sample::domain("g")
        .node("gw", "192.168.1.1", &["10.10.1.0/24"])
        .node("member", "192.168.1.4", &["10.10.4.0/24"])
        .public("gw", "203.0.113.1")
        .into()];
    let settings = Settings { identity: Identity::NodeIp, ..Settings::default() };
    let view = View::build(&gateways, &settings, None);
    let of = |name: &str| {
        let (node, facts) = (name.parse().unwrap(), Facts::default());
        let local = Local { identity: Identity::NodeIp, ..Local::new(&node, &facts) };
        Desired::of(&Topology::of(&view, &local), &Facts::default(), &options())
    };
    let (gateway, member) = (of("gw"), of("member"));
    for (desired, mac, own) in
        [(&gateway, "aa:0f:f0:a8:01:01", [240, 168, 1, 1]), (&member, "aa:0f:f0:a8:01:04", [240, 168, 1, 4])]
    {
        let link = desired.links.get(&Device::Overlay).unwrap();
        assert_eq!((link.mac, link.mtu), (Some(mac.parse().unwrap()), 1420));
        let LinkKind::Vxlan(vxlan) = &link.kind else { panic!("no vxlan") };
        assert_eq!(
            (vxlan.vni, vxlan.port, vxlan.learning, vxlan.ageing, vxlan.local),
            (200, 4472, false, 300, None)
        );
        let address = Address { device: Device::Overlay, address: IpAddr::from(own), length: 8 };
        assert_eq!(desired.addresses.get(&address), Some(&Scope::Link));
    }
    let fdb =
        |desired: &Desired| desired.fdb.iter().map(|(mac, to)| format!("{mac} {to}")).collect::<Vec<_>>();
    let neighbours = |desired: &Desired| {
        desired.neighbours.iter().map(|(to, mac)| format!("{to} {mac}")).collect::<Vec<_>>()
    };
    assert_eq!(fdb(&gateway), ["aa:0f:f0:a8:01:04 192.168.1.4"]);
    assert_eq!(neighbours(&gateway), ["240.168.1.4 aa:0f:f0:a8:01:04"]);
    assert_eq!(fdb(&member), ["aa:0f:f0:a8:01:01 192.168.1.1"]);
    assert_eq!(neighbours(&member), ["240.168.1.1 aa:0f:f0:a8:01:01"]);
}

#[test]
fn a_foreign_overlay_device_is_left_out_and_remote_prefixes_stay_locked() {
    let topology = topology("c2", &Settings::default(), false);
    let facts =
        Facts { foreign_links: [(Device::Overlay, "a bridge".to_owned())].into(), ..Facts::default() };
    let desired = Desired::of(&topology, &facts, &options());
    assert!(desired.links.is_empty() && desired.addresses.is_empty() && desired.fdb.is_empty());
    assert!(desired.routes.iter().all(|(_, route)| route.via == Via::Unreachable));
    assert_eq!(desired.ruleset.unwrap().devices, [Device::WireGuard(0)]);
}

#[test]
fn elements_of_every_interval_set_are_disjoint() {
    for node in ["c1", "c2", "s1"] {
        let desired = desired(node, Identity::NodeName, true);
        for set in Set::all().filter(|set| set.is_interval()) {
            let mut held = DisjointPrefixes::new();
            for (_, prefix) in desired.elements.keys().filter(|(of, _)| *of == set) {
                assert!(held.insert(*prefix, ()).is_ok(), "{set} {prefix}");
            }
        }
    }
}

#[test]
fn nexthop_ids_are_in_the_own_range_and_avoid_foreign_ones() {
    let ids: Vec<NexthopId> = desired("c1", Identity::NodeName, false).nexthops.keys().copied().collect();
    assert!(ids.iter().all(|id| id.is_ours()));
    let topology = topology("c1", &Settings::default(), false);
    let facts = Facts { foreign_nexthops: ids.iter().copied().collect(), ..Facts::default() };
    let moved = Desired::of(&topology, &facts, &options());
    assert_eq!(moved.nexthops.len(), ids.len());
    assert!(moved.nexthops.keys().all(|id| !ids.contains(id) && id.is_ours()));
}

#[test]
fn what_vxlan_goes_to_is_steered_for_packets_out_of_a_tunnel_only() {
    let gateway = desired_with("c1", Settings { forward_node_ip: true, ..Settings::default() }, true);
    let node = "10.0.0.2/32";
    assert!(matches!(route(&gateway, Table::Nodes, node), Some(Via::Nexthop(_))));
    assert_eq!(route(&gateway, Table::Domain, node), None);
    for (rule, ()) in gateway.rules.iter().filter(|(rule, ())| rule.action == Action::Lookup(Table::Nodes)) {
        assert_eq!(rule.input, Some(Device::WireGuard(0)));
    }
    let without = desired("c1", Identity::NodeName, true);
    assert!(without.routes.keys().all(|key| key.table != Table::Nodes));
}
