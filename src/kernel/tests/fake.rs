//! The kernel in memory, on which the properties of plans rest, is the kernel: the same changes and mishaps are played to both,
//! and both are observed the same, class by class; what one refuses the other refuses.

use std::collections::BTreeMap;

use corax_core::api::Gateway;
use corax_core::change::Change;
use corax_core::desired::{Desired, Options};
use corax_core::facts::Facts;
use corax_core::fake::FakeKernel;
use corax_core::key::PresharedKey;
use corax_core::object::{
    Device, Link, LinkKind, NexthopId, Route, RouteKey, Scope, SetRole, Sysctl, Table, Via,
};
use corax_core::observed::{NftTable, Observed};
use corax_core::plan::plan;
use corax_core::prefix::Family;
use corax_core::sample::{demo, domain};
use corax_core::topology::{Local, Topology};
use corax_core::view::{Settings, View};

use super::support::*;
use crate::kernel::{ApplyError, Kernel};
use crate::wireguard::Driver;
use crate::wireguard::key::PrivateKey;
use crate::wireguard::testing::{DEVICE, Process, isolated};
use crate::wireguard::userspace::Userspace;

/// The kernel of a namespace, and the one in memory. The tunnel's process is Debian's `wireguard-go`.
pub(super) struct Both {
    pub(super) real: Kernel,
    pub(super) fake: FakeKernel,
    driver: Userspace,
    tunnel: Option<Process>,
}

impl Both {
    pub(super) fn open(key: &PrivateKey) -> Self {
        Self {
            real: Kernel::open().unwrap(),
            fake: FakeKernel::default(),
            driver: Userspace::new(key.clone()),
            tunnel: None,
        }
    }

    /// Plays changes to both; both must take all of them.
    fn play(&mut self, changes: &[Change]) {
        for change in changes {
            self.fake.apply(change).unwrap_or_else(|refusal| panic!("the fake: {change}: {refusal}"));
        }
        for (change, result) in changes.iter().zip(self.apply_to_the_kernel(changes)) {
            result.unwrap_or_else(|error| panic!("the kernel: {change}: {error}"));
        }
    }

    pub(super) fn apply_to_the_kernel(&mut self, changes: &[Change]) -> Vec<Result<(), Box<ApplyError>>> {
        let Self { real, driver, tunnel, .. } = self;
        real.apply(changes, &mut |change: &Change| {
            let done = match change {
                Change::AddLink(device, _) => {
                    assert_eq!(*device, DEVICE);
                    // The one before may answer still, as it ends.
                    drop(tunnel.take());
                    *tunnel = Some(Process::start());
                    Ok(())
                }
                Change::SetTunnel(device, update) => driver.set_tunnel(*device, update),
                Change::SetPeer(device, key, update) => driver.set_peer(*device, *key, update),
                Change::DeletePeer(device, key) => driver.delete_peer(*device, *key),
                other => panic!("{other} is the kernel's"),
            };
            done.map_err(|error| ApplyError::new(change, error.to_string()))
        })
    }

    /// What the kernel has, the tunnels that answer included.
    pub(super) fn observed(&mut self) -> Observed {
        self.real.drain();
        let mut observed = self.real.observed().clone();
        let tunnels = observed.links.keys().filter(|device| matches!(device, Device::WireGuard(_)));
        observed.tunnels =
            tunnels.filter_map(|device| Some((*device, self.driver.read(*device).unwrap()?))).collect();
        observed
    }

    /// Both are observed the same, class by class. A setting that nobody put is the kernel's own in one of them.
    #[track_caller]
    fn are_alike(&mut self, after: &str) {
        assert_mirror_is_fresh(&mut self.real, after);
        let mut real = self.observed();
        let fake = &self.fake.state;
        real.sysctls.retain(|setting, _| fake.sysctls.contains_key(setting));
        alike(after, "links", &real.links, &fake.links);
        alike(after, "settings", &real.sysctls, &fake.sysctls);
        alike(after, "addresses", &real.addresses, &fake.addresses);
        alike(after, "forwarding entries", &real.fdb, &fake.fdb);
        alike(after, "neighbours", &real.neighbours, &fake.neighbours);
        alike(after, "nexthops", &real.nexthops, &fake.nexthops);
        alike(after, "routes", &real.routes, &fake.routes);
        alike(after, "rules", &real.rules, &fake.rules);
        alike(after, "tunnels", &real.tunnels, &fake.tunnels);
        assert_eq!(real.nft, fake.nft, "after {after}: the nftables table");
        alike(after, "elements", &real.elements, &fake.elements);
        assert_eq!(real.leftovers, fake.leftovers, "after {after}: what Raven left");
        assert_eq!(real.unknown, fake.unknown, "after {after}: who did not answer");
        // And whatever else there is in it.
        assert!(real == *fake, "after {after}: {real:#?}\n{fake:#?}");
    }

    /// Makes both be as desired. What is to be done is the same for both, and for both it is all.
    #[track_caller]
    fn converge(&mut self, desired: &Desired, to: &str) {
        // What the kernel took along with what was deleted, a second plan puts back.
        for _ in 0..2 {
            let changes = plan(desired, &self.fake.state);
            let of_the_kernel = plan(desired, &self.observed());
            assert_eq!(without_settings(&changes), without_settings(&of_the_kernel), "{to}");
            self.play(&with_its_link_set(changes));
            self.are_alike(to);
        }
        assert_eq!(plan(desired, &self.fake.state), [], "{to}");
        assert_eq!(plan(desired, &self.observed()), [], "{to}");
    }
}

#[track_caller]
fn alike<K, V>(after: &str, class: &str, real: &BTreeMap<K, V>, fake: &BTreeMap<K, V>)
where
    K: Ord + std::fmt::Debug,
    V: PartialEq + std::fmt::Debug,
{
    let beside = |one: &BTreeMap<K, V>, other: &BTreeMap<K, V>| -> Vec<String> {
        let differs = one.iter().filter(|(key, value)| other.get(key) != Some(value));
        differs.map(|(key, value)| format!("{key:?}: {value:?}")).collect()
    };
    let (only_real, only_fake) = (beside(real, fake), beside(fake, real));
    assert!(
        only_real.is_empty() && only_fake.is_empty(),
        "after {after}, {class}: only in the kernel {only_real:#?}, only in the fake {only_fake:#?}"
    );
}

/// What a device is set to by itself decides whether it has to be put.
fn without_settings(changes: &[Change]) -> Vec<&Change> {
    changes.iter().filter(|change| !matches!(change, Change::PutSysctl(..))).collect()
}

/// A process makes its device as it likes; the agent sets it once it is there.
pub(super) fn with_its_link_set(changes: Vec<Change>) -> Vec<Change> {
    let set = |change: Change| match &change {
        Change::AddLink(device, link @ Link { kind: LinkKind::Tun, .. }) => {
            vec![change.clone(), Change::SetLink(*device, link.clone())]
        }
        _ => vec![change],
    };
    changes.into_iter().flat_map(set).collect()
}

pub(super) fn desire(gateways: &[Gateway], node: &str, key: &PrivateKey) -> Desired {
    let view = View::build(gateways, &Settings::default(), None);
    let (name, facts) = (node.parse().unwrap(), Facts::default());
    let local = Local { mesh: node.starts_with('s'), ..Local::new(&name, &facts) };
    let preshared = PresharedKey::of_secret("x");
    let options = Options { userspace: true, listen: None, key: key.public(), preshared };
    Desired::of(&Topology::of(&view, &local), &facts, &options)
}

/// The demo's networks some time later: another gateway, a member less, one more, one whose pods are others, a box that can
/// be spoken to, and a domain more.
fn later() -> Vec<Gateway> {
    let cloud = domain("cloud")
        .node("c1", "10.0.0.1", &["10.10.1.0/24", "fd00:10:1::/64"])
        .node("c2", "10.0.0.2", &["10.10.2.0/24", "10.10.32.0/24", "fd00:10:2::/64"])
        .node("c4", "10.0.0.4", &["10.10.4.0/24", "fd00:10:4::/64"])
        .public("c2", "203.0.113.2");
    let site = domain("site")
        .node("s1", "192.168.1.1", &["10.10.11.0/24", "fd00:10:11::/64"])
        .node("s2", "192.168.1.9", &["10.10.12.0/24", "fd00:10:12::/64"])
        .nat("s1");
    let single = domain("box")
        .node("b1", "192.168.1.1", &["10.10.21.0/24", "fd00:10:21::/64"])
        .public("b1", "203.0.113.50");
    let shop = domain("shop").node("p1", "172.20.0.1", &["10.10.41.0/24"]).public("p1", "203.0.113.60");
    vec![cloud.into(), site.into(), single.into(), shop.into()]
}

#[test]
fn the_same_desired_state_is_observed_the_same() {
    for node in ["c1", "c2", "s1", "s2", "b1"] {
        isolated(move || {
            sh("ip link set lo up");
            let key = PrivateKey::generate();
            let mut both = Both::open(&key);
            let (first, second) = (desire(&demo(), node, &key), desire(&later(), node, &key));
            both.converge(&first, &format!("the demo's state on {node}"));
            assert_ne!(both.fake.state, Observed::default());
            both.converge(&second, &format!("a later state on {node}"));
            both.converge(&first, &format!("the demo's state again on {node}"));
            for (mishap, lines) in
                [("raven0 is deleted", "ip link del raven0"), ("raven0 is down", "ip link set raven0 down")]
            {
                sh(lines);
                match lines {
                    "ip link del raven0" => both.fake.delete_link(Device::Overlay),
                    _ => both.fake.link_down(Device::Overlay),
                }
                both.are_alike(&format!("{mishap} on {node}"));
                both.converge(&first, &format!("{mishap} on {node} and it is repaired"));
            }
            both.converge(&Desired::nothing(), &format!("an uninstall of {node}"));
            assert_eq!(both.observed(), Observed::default());
        });
    }
}

/// Every class of changes, so that each is possible by itself as well: the overlay comes up where its table stands.
fn every_class_one_by_one() -> Vec<Change> {
    let (mut first, rest): (Vec<_>, Vec<_>) =
        every_class().into_iter().partition(|change| matches!(change, Change::ReplaceTable(..)));
    first.extend(rest);
    first
}

#[test]
fn every_class_of_changes_is_observed_the_same_after_each_of_them() {
    in_namespace(|| {
        let mut both = Both::open(&PrivateKey::generate());
        let changes = every_class_one_by_one();
        for change in &changes {
            both.play(std::slice::from_ref(change));
            both.are_alike(&change.to_string());
        }
        for change in changes.iter().rev().filter_map(opposite) {
            both.play(std::slice::from_ref(&change));
            both.are_alike(&change.to_string());
        }
        assert_eq!(both.fake.state, Observed::default());
    });
}

/// Runs with every class of changes made in both.
fn with_every_class(test: impl FnOnce(&mut Both) + Send + 'static) {
    in_namespace(|| {
        let mut both = Both::open(&PrivateKey::generate());
        both.play(&every_class());
        both.are_alike("every class");
        test(&mut both);
    });
}

#[test]
fn what_the_kernel_takes_along_the_fake_takes_along() {
    for (lines, what) in [("ip link del raven0", 0), ("ip link set raven0 down", 1)] {
        with_every_class(move |both| {
            sh(lines);
            match what {
                0 => both.fake.delete_link(Device::Overlay),
                _ => both.fake.link_down(Device::Overlay),
            }
            both.are_alike(lines);
        });
    }
    let own = own_address();
    let six = corax_core::object::Address { address: address("fd00::ff"), length: 128, ..own };
    let id = NexthopId(NexthopId::FIRST + 2);
    let id6 = NexthopId(NexthopId::FIRST + 0x10_0000 + 2);
    let twin = RouteKey { table: Table::Domain, prefix: prefix("10.0.2.0/24"), metric: 0 };
    for change in [
        Change::DeleteLink(Device::Overlay),
        Change::DeleteAddress(own),
        Change::DeleteAddress(six),
        Change::DeleteNexthop(id),
        Change::DeleteNexthop(id6),
        Change::DeleteFdb(mac(2), address("172.16.0.2")),
        Change::DeleteNeighbour(address("240.0.0.2")),
        // Put anew, otherwise than they are.
        Change::PutAddress(own, Scope::Link),
        Change::PutFdb(mac(2), address("172.16.0.77")),
        Change::PutNeighbour(address("240.0.0.2"), mac(3)),
        Change::PutNexthop(id, address("240.0.0.3")),
        Change::PutRoute(twin, Route { via: Via::Unreachable, source: None }),
        Change::SetLink(Device::Overlay, Link { mtu: 1300, ..overlay(mac(1)) }),
        Change::PutSysctl(Device::Overlay, Sysctl::RpFilter, 0),
        Change::ReplaceTable(
            Box::new(ruleset()),
            vec![(set(SetRole::Own, Family::V4), prefix("10.9.0.0/16"))],
        ),
        Change::DeleteTable,
    ] {
        with_every_class(move |both| {
            both.play(std::slice::from_ref(&change));
            both.are_alike(&change.to_string());
        });
    }
}

/// Neither takes a change, and neither is another one for it.
fn both_refuse(both: &mut Both, changes: Vec<Change>) {
    let before = both.observed();
    for change in changes {
        let fake = both.fake.apply(&change);
        let real = both.apply_to_the_kernel(std::slice::from_ref(&change)).pop().unwrap();
        assert!(fake.is_err() && real.is_err(), "{change}: the fake {fake:?}, the kernel {real:?}");
        both.are_alike(&change.to_string());
    }
    assert_eq!(both.observed(), before);
}

#[test]
fn what_the_kernel_refuses_the_fake_refuses() {
    let id = NexthopId(NexthopId::FIRST + 77);
    let key = RouteKey { table: Table::Domain, prefix: prefix("10.77.0.0/16"), metric: 0 };
    let key6 = RouteKey { table: Table::Domain, prefix: prefix("fd00:77::/64"), metric: 1024 };
    let to = |via| Route { via, source: None };
    let own = set(SetRole::Own, Family::V4);
    in_namespace(move || {
        let mut both = Both::open(&PrivateKey::generate());
        let changes = vec![
            Change::SetLink(Device::Overlay, overlay(mac(1))),
            Change::PutSysctl(Device::Overlay, Sysctl::RpFilter, 2),
            Change::PutAddress(own_address(), Scope::Global),
            Change::PutFdb(mac(2), address("172.16.0.2")),
            Change::PutNeighbour(address("240.0.0.2"), mac(2)),
            Change::PutNexthop(id, address("240.0.0.2")),
            Change::PutRoute(key, to(Via::Device(Device::Overlay))),
            Change::PutRoute(key, to(Via::Nexthop(id))),
            Change::PutRoute(key6, to(Via::Nexthop(id))),
            Change::ChangeElements { delete: vec![], add: vec![(own, prefix("10.10.4.0/24"))] },
        ];
        both_refuse(&mut both, changes);
        assert_eq!(both.observed().nft, NftTable::Absent);
    });
    with_every_class(move |both| {
        let elsewhere = |text| Some(address(text));
        let changes = vec![
            Change::AddLink(Device::Overlay, overlay(mac(9))),
            Change::PutRoute(key, to(Via::Nexthop(id))),
            Change::PutRoute(key6, to(Via::Nexthop(id))),
            Change::PutRoute(
                key,
                Route { source: elsewhere("192.0.2.7"), ..to(Via::Device(Device::Overlay)) },
            ),
            Change::PutRoute(
                key6,
                Route { source: elsewhere("fd77::1"), ..to(Via::Device(Device::Overlay)) },
            ),
            Change::PutRoute(key, to(Via::Device(Device::WireGuard(0)))),
            Change::ChangeElements { delete: vec![], add: vec![(own, prefix("10.10.4.0/22"))] },
        ];
        both_refuse(both, changes);
    });
    with_every_class(move |both| {
        sh("ip link set raven0 down");
        both.fake.link_down(Device::Overlay);
        let changes = vec![
            Change::PutNexthop(id, address("240.0.0.2")),
            Change::PutRoute(key, to(Via::Device(Device::Overlay))),
        ];
        both_refuse(both, changes);
    });
}
