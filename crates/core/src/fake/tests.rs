//! What is not Corax's, of every class, as far as the types can name it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::api::Gateway;
use crate::desired::{Desired, Options};
use crate::facts::Facts;
use crate::object::{Link, NexthopId};
use crate::plan::plan;
use crate::prefix::Family;
use crate::sample::{demo, key};
use crate::topology::{Local, Topology};
use crate::view::tests::small_gateways;
use crate::view::{Settings, View};

fn desire(gateways: &[Gateway], node: &str, mesh: bool, facts: &Facts) -> Desired {
    let view = View::build(gateways, &Settings::default(), None);
    let node = node.parse().unwrap();
    let local = Local { mesh, ..Local::new(&node, facts) };
    let options =
        Options { userspace: true, listen: None, key: key("me"), preshared: PresharedKey::of_secret("x") };
    Desired::of(&Topology::of(&view, &local), facts, &options)
}

/// A state of a kernel, from Gateways, a node and whether it is in mesh.
fn any_node() -> impl Strategy<Value = (Vec<Gateway>, String, bool)> {
    (small_gateways(), (0u8..6).prop_map(|number| format!("n{number}")), any::<bool>())
}

fn converged(desired: &Desired) -> FakeKernel {
    let mut kernel = FakeKernel::default();
    for change in plan(desired, &kernel.state) {
        kernel.apply(&change).unwrap_or_else(|refusal| panic!("{change}: {refusal}"));
    }
    kernel
}

/// Whether what a change takes away is there as Corax's, and what it puts is asked for. Nothing else may be named: what is
/// somebody else's is in neither.
fn is_of_ours(change: &Change, observed: &Observed, desired: &Desired) -> bool {
    let Observed { links, addresses, fdb, neighbours, nexthops, routes, rules, tunnels, .. } = observed;
    let owned = |device: &Device| links.get(device).is_some_and(|link| link.owned);
    match change {
        Change::AddLink(device, _) => desired.links.get(device).is_some() && !links.contains_key(device),
        Change::SetLink(device, _) => desired.links.get(device).is_some(),
        Change::DeleteLink(device) => owned(device),
        Change::PutSysctl(device, sysctl, _) => desired.sysctls.get(&(*device, *sysctl)).is_some(),
        Change::PutAddress(address, _) => desired.addresses.get(address).is_some(),
        Change::DeleteAddress(address) => addresses.contains_key(address) && owned(&address.device),
        Change::PutFdb(mac, _) => desired.fdb.get(mac).is_some(),
        Change::DeleteFdb(mac, _) => fdb.contains_key(mac),
        Change::PutNeighbour(address, _) => desired.neighbours.get(address).is_some(),
        Change::DeleteNeighbour(address) => neighbours.contains_key(address),
        Change::PutNexthop(id, _) => desired.nexthops.get(id).is_some(),
        Change::DeleteNexthop(id) => nexthops.contains_key(id),
        Change::PutRoute(key, _) => desired.routes.get(key).is_some(),
        Change::DeleteRoute(key) => routes.contains_key(key),
        Change::PutRule(rule) => desired.rules.get(rule).is_some(),
        Change::DeleteRule(rule) => rules.contains_key(rule),
        Change::SetTunnel(device, _) | Change::SetPeer(device, ..) => desired.tunnels.get(device).is_some(),
        Change::DeletePeer(device, key) => {
            tunnels.get(device).is_some_and(|tunnel| tunnel.peers.contains_key(key))
        }
        Change::ReplaceTable(..) | Change::ChangeElements { .. } | Change::DeleteTable => true,
        Change::TakeAway(leftover) => observed.leftovers.contains(leftover),
    }
}

fn settle(kernel: &mut FakeKernel, desired: &Desired) {
    // What the kernel took along with what was deleted, a second plan puts back.
    for _ in 0..2 {
        for change in plan(desired, &kernel.state) {
            let _ = kernel.apply(&change);
        }
    }
}

proptest! {
    #[test]
    fn a_plan_names_nothing_but_what_is_there_as_ours_or_asked_for(before in any_node(), after in any_node()) {
        let facts = Facts::default();
        let kernel = converged(&desire(&before.0, &before.1, before.2, &facts));
        let desired = desire(&after.0, &after.1, after.2, &facts);
        for change in plan(&desired, &kernel.state) {
            prop_assert!(is_of_ours(&change, &kernel.state, &desired), "{}", change);
        }
    }

    #[test]
    fn a_nexthop_id_of_somebody_else_is_in_no_change(
        before in any_node(), after in any_node(), taken in prop::collection::vec(any::<bool>(), 0..16),
    ) {
        let mut kernel = converged(&desire(&before.0, &before.1, before.2, &Facts::default()));
        // Of those that would be used, some are somebody else's, and of those that were.
        let wished = desire(&after.0, &after.1, after.2, &Facts::default());
        let ids: BTreeSet<NexthopId> =
            wished.nexthops.iter().map(|(id, _)| *id).chain(kernel.state.nexthops.keys().copied()).collect();
        let foreign: BTreeSet<NexthopId> =
            ids.into_iter().zip(taken).filter(|(_, taken)| *taken).map(|(id, _)| id).collect();
        // Who has one took Corax's away, and with it the routes by it.
        for id in &foreign {
            kernel.apply(&Change::DeleteNexthop(*id)).unwrap();
        }
        let facts = Facts { foreign_nexthops: foreign.clone(), ..Facts::default() };
        let desired = desire(&after.0, &after.1, after.2, &facts);
        prop_assert_eq!(desired.nexthops.iter().count(), wished.nexthops.iter().count(), "each path has another");
        for change in plan(&desired, &kernel.state) {
            let named = match change {
                Change::PutNexthop(id, _) | Change::DeleteNexthop(id) => Some(id),
                Change::PutRoute(_, route) => match route.via {
                    Via::Nexthop(id) => Some(id),
                    _ => None,
                },
                _ => None,
            };
            prop_assert!(named.is_none_or(|id| !foreign.contains(&id)), "{:?}", named);
        }
        settle(&mut kernel, &desired);
        prop_assert_eq!(plan(&desired, &kernel.state), vec![]);
    }

    #[test]
    fn a_foreign_raven0_is_in_no_change(before in any_node(), after in any_node(), kind in "veth|bridge|vxlan") {
        let mut kernel = converged(&desire(&before.0, &before.1, before.2, &Facts::default()));
        kernel.delete_link(Device::Overlay);
        let theirs = Link { kind: LinkKind::Other(kind.into()), mac: None, mtu: 9000, up: true, owned: false };
        kernel.state.links.insert(Device::Overlay, theirs.clone());
        let reason = "kind bridge".to_owned();
        let facts = Facts { foreign_links: [(Device::Overlay, reason)].into(), ..Facts::default() };
        let desired = desire(&after.0, &after.1, after.2, &facts);
        for change in plan(&desired, &kernel.state) {
            // Rules of Corax's own that named it go; those of nftables are about packets.
            let others = matches!(change, Change::DeleteRule(_) | Change::ReplaceTable(..));
            prop_assert!(others || !change.to_string().contains("raven0"), "{}", change);
        }
        settle(&mut kernel, &desired);
        prop_assert_eq!(kernel.state.links.get(&Device::Overlay), Some(&theirs));
        prop_assert_eq!(plan(&desired, &kernel.state), vec![]);
        for change in plan(&Desired::nothing(), &kernel.state) {
            prop_assert!(!matches!(change, Change::DeleteLink(Device::Overlay)), "{}", change);
        }
    }
}

#[test]
fn the_domains_of_these_tests_have_nexthops_of_both_kinds() {
    // Else the properties above would say nothing.
    let facts = Facts::default();
    let of = |node, family| {
        let desired = desire(&demo(), node, node == "s2", &facts);
        desired.nexthops.iter().filter(|(_, to)| Family::of(**to) == family).count()
    };
    assert_eq!((of("s2", Family::V4), of("c1", Family::V6)), (2, 2));
}
