use proptest::prelude::*;

use super::*;
use crate::api::Gateway;
use crate::desired::Options;
use crate::facts::Facts;
use crate::fake::FakeKernel;
use crate::key::PresharedKey;
use crate::object::{NexthopId, Route, RouteKey, Rule, TWIN_METRIC, Table};
use crate::sample::{demo, key, large};
use crate::topology::{Local, Topology};
use crate::view::{Settings, View};

pub(crate) fn desire(gateways: &[Gateway], node: &str, mesh: bool) -> Desired {
    let view = View::build(gateways, &Settings::default(), None);
    let (node, facts) = (node.parse().unwrap(), Facts::default());
    let local = Local { mesh, ..Local::new(&node, &facts) };
    let options =
        Options { userspace: true, listen: None, key: key("me"), preshared: PresharedKey::of_secret("x") };
    Desired::of(&Topology::of(&view, &local), &Facts::default(), &options)
}

fn settle(kernel: &mut FakeKernel, desired: &Desired) {
    for change in plan(desired, &kernel.state) {
        kernel.apply(&change).unwrap_or_else(|refusal| panic!("{change}: {refusal}"));
    }
}

fn converged(desired: &Desired) -> FakeKernel {
    let mut kernel = FakeKernel::default();
    settle(&mut kernel, desired);
    kernel
}

#[test]
fn a_second_apply_is_empty() {
    for node in ["c1", "c2", "s1", "s2", "b1"] {
        let desired = desire(&demo(), node, node.starts_with('s'));
        assert_eq!(plan(&desired, &converged(&desired).state), []);
    }
}

#[test]
fn one_member_more_is_five_messages_of_one_family() {
    let before = desire(&large(50, false), "n7", true);
    let after = desire(&large(51, false), "n7", true);
    let changes = plan(&after, &converged(&before).state);
    let labels: Vec<_> = changes.iter().map(|change| change.label().0).collect();
    assert_eq!(labels, ["nft_elements", "fdb", "neighbour", "nexthop", "route"]);
}

#[test]
fn a_new_gateway_is_one_nexthop_a_family_whatever_the_number_of_routes() {
    let mut moved = demo();
    moved[0].status.as_mut().unwrap().active_endpoints[0].node_name = "c3".to_owned();
    let kernel = converged(&desire(&demo(), "c2", false));
    let changes = plan(&desire(&moved, "c2", false), &kernel.state);
    let routes = changes.iter().filter(|change| change.label().0 == "route").count();
    let nexthops = changes.iter().filter(|change| matches!(change, Change::PutNexthop(..))).count();
    assert_eq!((routes, nexthops), (0, 2), "{changes:?}");
}

#[test]
fn what_did_not_answer_is_neither_written_nor_deleted() {
    let kernel = converged(&desire(&demo(), "c1", false));
    for backend in [Backend::Routes, Backend::Nft, Backend::WireGuard] {
        let mut observed = kernel.state.clone();
        observed.unknown.insert(backend);
        let changes = plan(&Desired::nothing(), &observed);
        assert!(changes.iter().all(|change| change.backend() != backend), "{backend:?}: {changes:?}");
    }
}

#[test]
fn a_peer_that_roamed_is_left_alone_while_it_is_heard() {
    let desired = desire(&demo(), "s1", false);
    let mut kernel = converged(&desired);
    let peer = kernel.state.tunnels.values_mut().next().unwrap().peers.values_mut().next().unwrap();
    peer.peer.endpoint = Some("198.51.100.77:5555".parse().unwrap());
    peer.handshake_age = Some(Duration::from_secs(20));
    let heard = kernel.state.clone();
    assert_eq!(plan(&desired, &heard), []);
    kernel.state.tunnels.values_mut().next().unwrap().peers.values_mut().next().unwrap().handshake_age =
        Some(STALE + Duration::from_secs(1));
    let changes = plan(&desired, &kernel.state);
    let [Change::SetPeer(_, _, update)] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!(
        **update,
        PeerUpdate {
            exists: true,
            endpoint: Some("203.0.113.1:4500".parse().unwrap()),
            ..PeerUpdate::default()
        }
    );
}

#[test]
fn an_endpoint_that_the_gateway_changes_is_set_at_once() {
    let mut kernel = converged(&desire(&demo(), "s1", false));
    let peer = kernel.state.tunnels.values_mut().next().unwrap().peers.values_mut().next().unwrap();
    peer.handshake_age = Some(Duration::from_secs(1));
    let mut moved = demo();
    moved[0].status.as_mut().unwrap().active_endpoints[0].public_ip = "203.0.113.99".to_owned();
    let changes = plan(&desire(&moved, "s1", false), &kernel.state);
    assert!(matches!(changes.as_slice(), [Change::SetPeer(..)]), "{changes:?}");
}

#[test]
fn a_prefix_that_moves_to_another_peer_is_never_nobodys() {
    // The box's gateway becomes public: its prefixes leave the relay's peer for one of its own.
    let mut moved = demo();
    let endpoint = &mut moved[2].status.as_mut().unwrap().active_endpoints[0];
    (endpoint.under_nat, endpoint.public_ip) = (false, "203.0.113.50".to_owned());
    let mut kernel = converged(&desire(&demo(), "s1", false));
    let prefix: crate::prefix::Prefix = "10.10.21.0/24".parse().unwrap();
    for change in plan(&desire(&moved, "s1", false), &kernel.state) {
        kernel.apply(&change).unwrap();
        let tunnel = kernel.state.tunnels.values().next().unwrap();
        assert!(tunnel.peers.values().any(|peer| peer.peer.allowed.contains(&prefix)), "after {change}");
    }
}

/// Something that happens to a kernel behind the agent's back.
#[derive(Clone, Debug)]
enum Mishap {
    Delete(Device),
    Down(Device),
    LoseAddresses,
    LoseRules,
    LoseRoutes,
    LoseNexthops,
    LoseHops,
    LoseTable,
    AlterTable,
    LosePeers,
    StrangeRoute,
    StrangeRule,
    StrangeNexthop,
}

fn mishap() -> impl Strategy<Value = Mishap> {
    let device = prop::sample::select(vec![Device::Overlay, Device::WireGuard(0)]);
    prop_oneof![
        device.clone().prop_map(Mishap::Delete),
        device.prop_map(Mishap::Down),
        Just(Mishap::LoseAddresses),
        Just(Mishap::LoseRules),
        Just(Mishap::LoseRoutes),
        Just(Mishap::LoseNexthops),
        Just(Mishap::LoseHops),
        Just(Mishap::LoseTable),
        Just(Mishap::AlterTable),
        Just(Mishap::LosePeers),
        Just(Mishap::StrangeRoute),
        Just(Mishap::StrangeRule),
        Just(Mishap::StrangeNexthop),
    ]
}

fn happen(kernel: &mut FakeKernel, mishap: &Mishap) {
    let state = &mut kernel.state;
    match mishap {
        Mishap::Delete(device) => kernel.delete_link(*device),
        Mishap::Down(device) => kernel.link_down(*device),
        Mishap::LoseAddresses => state.addresses.clear(),
        Mishap::LoseRules => state.rules.clear(),
        Mishap::LoseRoutes => state.routes.clear(),
        Mishap::LoseNexthops => {
            state.nexthops.clear();
            state.routes.retain(|_, route| !matches!(route.via, Via::Nexthop(_)));
        }
        Mishap::LoseHops => {
            state.fdb.clear();
            state.neighbours.clear();
        }
        Mishap::LoseTable => {
            state.nft = NftTable::Absent;
            state.elements.clear();
        }
        Mishap::AlterTable => state.nft = NftTable::Altered,
        Mishap::LosePeers => state.tunnels.values_mut().for_each(|tunnel| tunnel.peers.clear()),
        Mishap::StrangeRoute => {
            let key = RouteKey { table: Table::Remote, prefix: "10.77.0.0/16".parse().unwrap(), metric: 5 };
            state.routes.insert(key, Route { via: Via::Other, source: None });
        }
        Mishap::StrangeRule => {
            let rule = Rule {
                priority: 100,
                family: crate::prefix::Family::V4,
                input: None,
                mark: Some(1),
                destination: None,
                action: crate::object::Action::Main,
            };
            state.rules.insert(rule, ());
        }
        Mishap::StrangeNexthop => {
            state.nexthops.insert(NexthopId(NexthopId::FIRST + 1), "240.9.9.9".parse().unwrap());
        }
    }
}

/// A kernel that had another view, and mishaps since.
fn any_kernel() -> impl Strategy<Value = FakeKernel> {
    let gateways = crate::view::tests::small_gateways();
    (gateways, 0u8..6, any::<bool>(), prop::collection::vec(mishap(), 0..4)).prop_map(
        |(gateways, node, mesh, mishaps)| {
            let mut kernel = converged(&desire(&gateways, &format!("n{node}"), mesh));
            mishaps.iter().for_each(|mishap| happen(&mut kernel, mishap));
            kernel
        },
    )
}

pub(crate) fn any_desired() -> impl Strategy<Value = Desired> {
    (crate::view::tests::small_gateways(), 0u8..6, any::<bool>())
        .prop_map(|(gateways, node, mesh)| desire(&gateways, &format!("n{node}"), mesh))
}

/// No live route without what it needs, after any number of steps.
pub(crate) fn sound(kernel: &FakeKernel) -> Result<(), String> {
    for (key, route) in &kernel.state.routes {
        let Via::Nexthop(id) = route.via else { continue };
        let Some(gateway) = kernel.state.nexthops.get(&id) else {
            return Err(format!("{key:?} has no nexthop"));
        };
        let Some(mac) = kernel.state.neighbours.get(gateway) else {
            return Err(format!("{key:?}: {gateway} is no neighbour"));
        };
        if !kernel.state.fdb.contains_key(mac) {
            return Err(format!("{key:?}: {mac} is not in the FDB"));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_plan_converges_from_any_state(mut kernel in any_kernel(), desired in any_desired()) {
        settle(&mut kernel, &desired);
        // What the kernel took along with what was deleted, a second plan puts back.
        settle(&mut kernel, &desired);
        prop_assert_eq!(plan(&desired, &kernel.state), vec![]);
    }

    #[test]
    fn whatever_of_it_fails_the_next_plans_converge(
        mut kernel in any_kernel(), desired in any_desired(), fails in prop::collection::vec(any::<bool>(), 0..200),
    ) {
        for (at, change) in plan(&desired, &kernel.state).iter().enumerate() {
            if !fails.get(at).copied().unwrap_or(false) {
                let _ = kernel.apply(change);
            }
        }
        for _ in 0..3 {
            for change in plan(&desired, &kernel.state) {
                let _ = kernel.apply(&change);
            }
        }
        prop_assert_eq!(plan(&desired, &kernel.state), vec![]);
    }

    #[test]
    fn no_prefix_of_a_plan_leaves_a_route_without_its_neighbour(desired in any_desired(), next in any_desired()) {
        let mut kernel = FakeKernel::default();
        for desired in [desired, next] {
            for change in plan(&desired, &kernel.state) {
                kernel.apply(&change).map_err(|refusal| TestCaseError::fail(format!("{change}: {refusal}")))?;
                sound(&kernel).map_err(|what| TestCaseError::fail(format!("after {change}: {what}")))?;
            }
        }
    }

    #[test]
    fn a_remote_prefix_has_its_twin_before_its_first_route_and_until_after_its_last(
        desired in any_desired(), next in any_desired(),
    ) {
        let mut kernel = FakeKernel::default();
        for desired in [desired, next] {
            for change in plan(&desired, &kernel.state) {
                let _ = kernel.apply(&change);
                for key in kernel.state.routes.keys().filter(|key| key.table != Table::Domain) {
                    let twin = RouteKey { metric: TWIN_METRIC, ..*key };
                    prop_assert!(kernel.state.routes.contains_key(&twin), "after {}: {:?}", change, key);
                }
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_not_named(mut kernel in any_kernel(), desired in any_desired()) {
        let foreign = Link { kind: LinkKind::Other("bridge".into()), mac: None, mtu: 9000, up: false, owned: false };
        kernel.delete_link(Device::WireGuard(7));
        kernel.state.links.insert(Device::WireGuard(7), foreign.clone());
        settle(&mut kernel, &desired);
        prop_assert_eq!(kernel.state.links.get(&Device::WireGuard(7)), Some(&foreign));
    }

    #[test]
    fn after_cleanup_nothing_is_left(mut kernel in any_kernel()) {
        settle(&mut kernel, &Desired::nothing());
        prop_assert_eq!(kernel.state, crate::observed::Observed::default());
    }
}
