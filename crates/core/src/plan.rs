//! What has to change for the kernel to be as desired. Pure, total, deterministic; nothing where nothing differs.
//!
//! Puts come before deletes: the table of nftables first, so that both locks stand before the first route; then links,
//! settings, addresses, neighbours and FDB, nexthops, tunnels, the unreachable twins, routes, rules. Deletes run the other way
//! round. What did not answer is unknown, and neither written nor deleted.
//!
//! A node that ran Raven has a path that packets go by until Corax's stands. Of the rules the one to the remote prefixes
//! comes first: from then on nobody needs Raven's catch-all route in table 9027, which has to be gone before any rule leads
//! there. What else Raven left goes once all rules stand.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Deref;
use std::time::Duration;

use foldhash::HashSet;

use crate::change::{AllowedUpdate, Change, PeerUpdate, TunnelUpdate, is_twin};
use crate::desired::{Desired, DesiredTunnel};
use crate::object::{Action, Device, Link, LinkKind, Peer, Table, Via};
use crate::observed::{Backend, NftTable, Observed, ObservedPeer, ObservedTunnel};
use crate::prefix::Prefix;
use crate::raven::is_catch_all;
use crate::sorted::{Difference, merge};

/// After this long without a handshake a peer is not where it was last heard: WireGuard's reject-after-time.
pub const STALE: Duration = Duration::from_secs(180);

/// The changes that make `observed` be `desired`, in the order in which they must be made.
#[must_use]
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let mut steps = Steps::default();
    if observed.knows(Backend::Nft) {
        nft(desired, observed, &mut steps);
    }
    if observed.knows(Backend::Routes) {
        let reborn = links(desired, observed, &mut steps);
        on_links(desired, observed, &reborn, &mut steps);
        overlay(desired, observed, &reborn, &mut steps);
        routes(desired, observed, &reborn, &mut steps);
        rules(desired, observed, &mut steps);
    }
    if observed.knows(Backend::WireGuard) {
        for (device, tunnel) in desired.tunnels.iter() {
            wireguard(*device, tunnel, observed.tunnels.get(device), &mut steps);
        }
    }
    if observed.unknown.is_empty() {
        steps.leftovers.extend(observed.leftovers.iter().cloned().map(Change::TakeAway));
    }
    steps.in_order()
}

/// The changes by the place that each has in the order.
#[derive(Default)]
struct Steps {
    nft: Vec<Change>,
    links: Vec<Change>,
    sysctls: Vec<Change>,
    addresses: Vec<Change>,
    hops: Vec<Change>,
    nexthops: Vec<Change>,
    tunnels: Vec<Change>,
    twins: Vec<Change>,
    routes: Vec<Change>,
    first_rules: Vec<Change>,
    catch_alls: Vec<Change>,
    rules: Vec<Change>,
    leftovers: Vec<Change>,
    less_rules: Vec<Change>,
    less_routes: Vec<Change>,
    less_twins: Vec<Change>,
    less_nexthops: Vec<Change>,
    less_hops: Vec<Change>,
    less_peers: Vec<Change>,
    less_addresses: Vec<Change>,
    less_links: Vec<Change>,
    less_nft: Vec<Change>,
}

impl Steps {
    fn in_order(self) -> Vec<Change> {
        let mut steps = [
            self.nft,
            self.links,
            self.sysctls,
            self.addresses,
            self.hops,
            self.nexthops,
            self.tunnels,
            self.twins,
            self.routes,
            self.first_rules,
            self.catch_alls,
            self.rules,
            self.leftovers,
            self.less_rules,
            self.less_routes,
            self.less_twins,
            self.less_nexthops,
            self.less_hops,
            self.less_peers,
            self.less_addresses,
            self.less_links,
            self.less_nft,
        ];
        // Once as long as it gets: at a hundred thousand members it is tens of megabytes.
        let mut all = Vec::with_capacity(steps.iter().map(Vec::len).sum());
        steps.iter_mut().for_each(|step| all.append(step));
        all
    }
}

fn nft(desired: &Desired, observed: &Observed, steps: &mut Steps) {
    let Some(ruleset) = &desired.ruleset else {
        if observed.nft != NftTable::Absent {
            steps.less_nft.push(Change::DeleteTable);
        }
        return;
    };
    if observed.nft != NftTable::Intact(ruleset.fingerprint()) {
        let elements = desired.elements.keys().copied().collect();
        steps.nft.push(Change::ReplaceTable(Box::new(ruleset.clone()), elements));
        return;
    }
    let (mut delete, mut add) = (Vec::new(), Vec::new());
    merge(desired.elements.iter(), observed.elements.iter(), |difference| match difference {
        Difference::Missing(element, ()) => add.push(*element),
        Difference::Both(..) => {}
        Difference::Extra(element, ()) => delete.push(*element),
    });
    if !delete.is_empty() || !add.is_empty() {
        steps.nft.push(Change::ChangeElements { delete, add });
    }
}

/// Plans the links; gives those that are made anew, and so have lost everything that was on them.
fn links(desired: &Desired, observed: &Observed, steps: &mut Steps) -> BTreeSet<Device> {
    let mut reborn = BTreeSet::new();
    merge(desired.links.iter(), observed.links.iter(), |difference| match difference {
        Difference::Missing(device, link) => steps.links.push(Change::AddLink(*device, link.clone())),
        Difference::Both(device, link, there) if !can_become(there, link) => {
            steps.links.push(Change::DeleteLink(*device));
            steps.links.push(Change::AddLink(*device, link.clone()));
            reborn.insert(*device);
        }
        Difference::Both(device, link, there) => {
            if needs_setting(there, link) {
                steps.links.push(Change::SetLink(*device, link.clone()));
            }
        }
        Difference::Extra(device, there) => {
            if there.owned {
                steps.less_links.push(Change::DeleteLink(*device));
            }
        }
    });
    reborn
}

/// Whether a link can be made the desired one in place: VNI, port and family of a VXLAN device are for life.
fn can_become(there: &Link, wanted: &Link) -> bool {
    match (&there.kind, &wanted.kind) {
        (LinkKind::Vxlan(there), LinkKind::Vxlan(wanted)) => {
            there.vni == wanted.vni
                && there.port == wanted.port
                && there.underlay == wanted.underlay
                && (wanted.local.is_none() || there.local == wanted.local)
        }
        (there, wanted) => there == wanted,
    }
}

fn needs_setting(there: &Link, wanted: &Link) -> bool {
    let parameters = match (&there.kind, &wanted.kind) {
        (LinkKind::Vxlan(there), LinkKind::Vxlan(wanted)) => {
            there.learning != wanted.learning || there.ageing != wanted.ageing
        }
        _ => false,
    };
    let mac = wanted.mac.is_some() && there.mac != wanted.mac;
    parameters || mac || there.mtu != wanted.mtu || there.up != wanted.up || there.owned != wanted.owned
}

/// Plans settings and addresses.
fn on_links(desired: &Desired, observed: &Observed, reborn: &BTreeSet<Device>, steps: &mut Steps) {
    for ((device, sysctl), value) in desired.sysctls.iter() {
        let there = observed.sysctls.get(&(*device, *sysctl));
        if there != Some(value) || reborn.contains(device) {
            steps.sysctls.push(Change::PutSysctl(*device, *sysctl, *value));
        }
    }
    let there = observed.addresses.iter().filter(|(address, _)| !reborn.contains(&address.device));
    merge(desired.addresses.iter(), there, |difference| match difference {
        Difference::Missing(address, scope) => steps.addresses.push(Change::PutAddress(*address, *scope)),
        Difference::Both(address, scope, there) => {
            if scope != there {
                // The scope of an address is for life.
                steps.addresses.push(Change::DeleteAddress(*address));
                steps.addresses.push(Change::PutAddress(*address, *scope));
            }
        }
        Difference::Extra(address, _) => {
            if owned(desired, observed, address.device) {
                steps.less_addresses.push(Change::DeleteAddress(*address));
            }
        }
    });
}

/// Whether a device is Corax's: it is wanted, or carries the alias. It may be neither, and somebody else's.
fn owned(desired: &Desired, observed: &Observed, device: Device) -> bool {
    desired.links.contains_key(&device) || observed.links.get(&device).is_some_and(|link| link.owned)
}

/// Plans FDB, neighbours and nexthops, which all are on the overlay.
fn overlay(desired: &Desired, observed: &Observed, reborn: &BTreeSet<Device>, steps: &mut Steps) {
    let fresh = reborn.contains(&Device::Overlay);
    let ours = owned(desired, observed, Device::Overlay);
    merge(desired.fdb.iter(), observed.fdb.iter().filter(|_| !fresh), |difference| match difference {
        Difference::Missing(mac, to) => steps.hops.push(Change::PutFdb(*mac, *to)),
        Difference::Both(mac, to, there) => {
            if to != there {
                steps.hops.push(Change::PutFdb(*mac, *to));
            }
        }
        Difference::Extra(mac, to) => {
            if ours {
                steps.less_hops.push(Change::DeleteFdb(*mac, *to));
            }
        }
    });
    merge(desired.neighbours.iter(), observed.neighbours.iter().filter(|_| !fresh), |difference| {
        match difference {
            Difference::Missing(address, mac) => steps.hops.push(Change::PutNeighbour(*address, *mac)),
            Difference::Both(address, mac, there) => {
                if mac != there {
                    steps.hops.push(Change::PutNeighbour(*address, *mac));
                }
            }
            Difference::Extra(address, _) => {
                if ours {
                    steps.less_hops.push(Change::DeleteNeighbour(*address));
                }
            }
        }
    });
    merge(
        desired.nexthops.iter(),
        observed.nexthops.iter().filter(|_| !fresh),
        |difference| match difference {
            Difference::Missing(id, gateway) => steps.nexthops.push(Change::PutNexthop(*id, *gateway)),
            Difference::Both(id, gateway, there) => {
                if gateway != there {
                    steps.nexthops.push(Change::PutNexthop(*id, *gateway));
                }
            }
            Difference::Extra(id, _) => steps.less_nexthops.push(Change::DeleteNexthop(*id)),
        },
    );
}

fn routes(desired: &Desired, observed: &Observed, reborn: &BTreeSet<Device>, steps: &mut Steps) {
    let survives = |via: &Via| match via {
        Via::Nexthop(_) => !reborn.contains(&Device::Overlay),
        Via::Device(device) => !reborn.contains(device),
        Via::Unreachable | Via::Other => true,
    };
    let there = observed.routes.iter().filter(|(_, route)| survives(&route.via));
    merge(desired.routes.iter(), there, |difference| match difference {
        Difference::Both(_, route, there) if route == there => {}
        Difference::Missing(key, route) | Difference::Both(key, route, _) => {
            let step = if is_twin(key, route) { &mut steps.twins } else { &mut steps.routes };
            step.push(Change::PutRoute(*key, *route));
        }
        Difference::Extra(key, there) => {
            let step = match there {
                _ if is_catch_all(key) => &mut steps.catch_alls,
                there if is_twin(key, there) => &mut steps.less_twins,
                _ => &mut steps.less_routes,
            };
            step.push(Change::DeleteRoute(*key));
        }
    });
}

fn rules(desired: &Desired, observed: &Observed, steps: &mut Steps) {
    merge(desired.rules.iter(), observed.rules.iter(), |difference| match difference {
        Difference::Missing(rule, ()) => {
            let first = rule.action == Action::Main && rule.mark.is_some()
                || rule.action == Action::Lookup(Table::Remote);
            let step = if first { &mut steps.first_rules } else { &mut steps.rules };
            step.push(Change::PutRule(*rule));
        }
        Difference::Both(..) => {}
        Difference::Extra(rule, ()) => steps.less_rules.push(Change::DeleteRule(*rule)),
    });
}

fn wireguard(device: Device, desired: &DesiredTunnel, observed: Option<&ObservedTunnel>, steps: &mut Steps) {
    let wanted = desired.tunnel;
    let update = match observed.map(|observed| observed.tunnel) {
        None => TunnelUpdate::from(wanted),
        Some(there) => TunnelUpdate {
            key: wanted.key.filter(|key| there.key != Some(*key)),
            port: (there.port != wanted.port).then_some(wanted.port),
            mark: (there.mark != wanted.mark).then_some(wanted.mark),
        },
    };
    if update != TunnelUpdate::default() {
        steps.tunnels.push(Change::SetTunnel(device, update));
    }
    let none = std::collections::BTreeMap::new();
    let there = observed.map_or(&none, |observed| &observed.peers);
    let (mut grow, mut shrink) = (Vec::new(), Vec::new());
    let somebodys = LazyCell::new(|| {
        desired.peers.iter().flat_map(|(_, peer)| peer.allowed.iter().copied()).collect::<HashSet<Prefix>>()
    });
    merge(desired.peers.iter(), there.iter(), |difference| match difference {
        Difference::Missing(key, peer) => grow.push(Change::SetPeer(device, *key, Box::new(whole(peer)))),
        Difference::Both(key, peer, there) => {
            let update = peer_update(peer, there, &somebodys);
            // First those that only get something: a driver may replace all that the others have.
            let loses = update.allowed.as_ref().is_some_and(|allowed| !allowed.remove.is_empty());
            if (PeerUpdate { exists: false, ..update.clone() }) != PeerUpdate::default() {
                let step = if loses { &mut shrink } else { &mut grow };
                step.push(Change::SetPeer(device, *key, Box::new(update)));
            }
        }
        Difference::Extra(key, _) => steps.less_peers.push(Change::DeletePeer(device, *key)),
    });
    steps.tunnels.append(&mut grow);
    steps.tunnels.append(&mut shrink);
}

/// Everything of a new peer.
fn whole(peer: &Peer) -> PeerUpdate {
    PeerUpdate {
        exists: false,
        preshared: Some(peer.preshared.clone()),
        endpoint: peer.endpoint,
        keepalive: Some(peer.keepalive),
        allowed: Some(AllowedUpdate {
            all: peer.allowed.clone(),
            add: peer.allowed.clone(),
            remove: Vec::new(),
        }),
    }
}

/// What differs of a peer that is there. It loses what another peer gets by that alone: `somebodys` are the prefixes of all.
fn peer_update(
    wanted: &Peer,
    there: &ObservedPeer,
    somebodys: &impl Deref<Target = HashSet<Prefix>>,
) -> PeerUpdate {
    let held = &there.peer;
    let missing = |from: &[Prefix], of: &[Prefix]| -> Vec<Prefix> {
        // Both are sorted.
        from.iter().filter(|prefix| of.binary_search(prefix).is_err()).copied().collect()
    };
    let add = missing(&wanted.allowed, &held.allowed);
    let mut remove = missing(&held.allowed, &wanted.allowed);
    remove.retain(|prefix| !somebodys.contains(prefix));
    let allowed = !(add.is_empty() && remove.is_empty());
    PeerUpdate {
        exists: true,
        preshared: (wanted.preshared != held.preshared).then(|| wanted.preshared.clone()),
        endpoint: wanted.endpoint.filter(|wanted| must_set_endpoint(*wanted, there)),
        keepalive: (wanted.keepalive != held.keepalive).then_some(wanted.keepalive),
        allowed: allowed.then(|| AllowedUpdate { all: wanted.allowed.clone(), add, remove }),
    }
}

/// Whether an endpoint has to be set. One that differs because the peer roamed is left alone while it is heard.
fn must_set_endpoint(wanted: SocketAddr, there: &ObservedPeer) -> bool {
    if there.peer.endpoint == Some(wanted) {
        return false;
    }
    let asked_anew = there.configured.is_some_and(|configured| configured != wanted);
    let silent = there.handshake_age.is_none_or(|age| age > STALE);
    there.peer.endpoint.is_none() || asked_anew || silent
}

#[cfg(test)]
pub(crate) mod tests;
