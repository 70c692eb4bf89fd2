//! The mirror: what the kernel has of ours, and what of others Corax must know. Fed by dumps and events alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use corax_core::object::{Device, NexthopId, Route, RouteKey, Rule, Scope, Via};
use corax_core::observed::Observed;
use corax_core::raven::Leftover;

use super::address::{self, Held};
use super::link::{self, Interface};
use super::neighbour;
use super::nexthop;
use super::route::{self, Found};
use super::rule;
use super::sysctl;
use super::wire::{Message, NLM_F_REPLACE};

/// What must be dumped again, because no event tells what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stale {
    pub(super) addresses: bool,
    pub(super) nexthops: bool,
    pub(super) routes: bool,
    pub(super) rules: bool,
    pub(super) fdb: bool,
    pub(super) neighbours: bool,
    pub(super) sysctls: bool,
}

impl Stale {
    pub(super) const ALL: Self = Self {
        addresses: true,
        nexthops: true,
        routes: true,
        rules: true,
        fdb: true,
        neighbours: true,
        sysctls: true,
    };
}

#[derive(Default)]
pub(super) struct Mirror {
    pub(super) observed: Observed,
    /// Every link, by index.
    pub(super) links: BTreeMap<u32, Interface>,
    /// Index of the links with a name of ours.
    pub(super) devices: BTreeMap<Device, u32>,
    /// Every address.
    pub(super) addresses: BTreeMap<Held, Scope>,
    /// Routes of others in our tables, with their protocol.
    pub(super) foreign_routes: BTreeMap<RouteKey, u8>,
    /// Nexthop objects of others in our range.
    pub(super) foreign_nexthops: BTreeSet<NexthopId>,
    /// Rules of others, and those of ours that are of no form of ours.
    pub(super) foreign_rules: Vec<rule::Found>,
    /// Rules of Raven's that cannot be removed, as the kernel would take another for them.
    pub(super) hidden_rules: BTreeSet<Leftover>,
    /// Rules that are there more than once, with the number of those too many.
    pub(super) doubled_rules: BTreeMap<Rule, usize>,
    /// Routes of ours of which there are several with one key.
    pub(super) doubled_routes: BTreeSet<RouteKey>,
    /// Where the overlay sends what its forwarding database does not name.
    pub(super) flood: BTreeSet<IpAddr>,
    /// The one of them that the link itself has.
    pub(super) remote: Option<IpAddr>,
    /// How many routes use a nexthop object.
    users: HashMap<NexthopId, usize>,
    /// Something of ours changed since this was last cleared.
    pub(super) changed: bool,
    /// Something that [`corax_core::facts::Facts`] depend on did.
    pub(super) facts: bool,
    pub(super) stale: Stale,
}

impl Mirror {
    /// The index of a device.
    pub(super) fn index(&self, device: Device) -> Option<u32> {
        self.devices.get(&device).copied()
    }

    pub(super) fn overlay(&self) -> Option<u32> {
        self.index(Device::Overlay)
    }

    /// The device of an index.
    pub(super) fn device(&self, index: u32) -> Option<Device> {
        device_of(&self.devices, index)
    }

    /// Takes in one event.
    pub(super) fn event(&mut self, message: &Message<'_>) {
        match message.kind {
            link::RTM_NEWLINK => {
                if let Some(decoded) = link::decode(message) {
                    self.put_link(decoded);
                }
            }
            link::RTM_DELLINK => {
                if let Some(index) = link::decode_index(message) {
                    self.delete_link(index);
                }
            }
            address::RTM_NEWADDR | address::RTM_DELADDR => {
                if let Some((held, scope)) = address::decode(message) {
                    self.address(held, scope);
                }
            }
            neighbour::RTM_NEWNEIGH | neighbour::RTM_DELNEIGH => self.neighbour(message),
            nexthop::RTM_NEWNEXTHOP | nexthop::RTM_DELNEXTHOP => {
                if let Some(decoded) = nexthop::decode(message) {
                    self.nexthop(&decoded, message.kind == nexthop::RTM_NEWNEXTHOP);
                }
            }
            route::RTM_NEWROUTE | route::RTM_DELROUTE => match route::decode(message) {
                Some(route::Decoded::Ours(found)) => self.route(&found, message),
                Some(route::Decoded::Main) => self.facts = true,
                _ => {}
            },
            // Equal rules tell nothing from each other in events, and there are few rules.
            rule::RTM_NEWRULE | rule::RTM_DELRULE => self.stale.rules = true,
            // Those of the whole node are announced together with the devices', and facts tell of them.
            sysctl::RTM_NEWNETCONF | sysctl::RTM_DELNETCONF => {
                (self.stale.sysctls, self.facts) = (true, true);
            }
            _ => {}
        }
    }

    pub(super) fn put_link(&mut self, decoded: link::Decoded) {
        let link::Decoded { index, interface, ours, remote } = decoded;
        let before = self.device(index);
        let now = ours.as_ref().map(|(device, _)| *device);
        if before != now {
            self.rename(index, before, now);
        }
        if let Some((device, link)) = ours {
            let held = self.observed.links.get(&device);
            if held != Some(&link) {
                // Down takes nexthops and IPv4 routes along, silently; so does another hardware address in part.
                if held.is_some_and(|held| held.up != link.up) {
                    self.stale.nexthops = true;
                    self.stale.routes = true;
                }
                self.stale.sysctls = true;
                self.observed.links.insert(device, link);
                self.changed = true;
                self.facts = true;
            }
            if device == Device::Overlay {
                self.remote = remote;
                self.set_flood();
            }
        }
        if self.links.get(&index) != Some(&interface) {
            self.links.insert(index, interface);
            self.facts = true;
        }
    }

    fn delete_link(&mut self, index: u32) {
        if let Some(device) = self.device(index) {
            self.rename(index, Some(device), None);
        }
        self.addresses.retain(|held, _| held.index != index);
        if self.links.remove(&index).is_some() {
            self.facts = true;
        }
    }

    /// A link takes a name of ours, or loses it: what is on it is to be read anew.
    fn rename(&mut self, index: u32, before: Option<Device>, now: Option<Device>) {
        if let Some(device) = before {
            self.devices.remove(&device);
            self.observed.links.remove(&device);
            self.observed.sysctls.retain(|(of, _), _| *of != device);
            if device == Device::Overlay {
                self.flood.clear();
                self.remote = None;
                self.set_flood();
            }
        }
        if let Some(device) = now {
            self.devices.insert(device, index);
        }
        self.observed.addresses = self.own_addresses();
        self.changed = true;
        self.facts = true;
        self.stale = Stale { rules: self.stale.rules, addresses: self.stale.addresses, ..Stale::ALL };
    }

    /// Addresses of our devices.
    pub(super) fn own_addresses(&self) -> BTreeMap<corax_core::object::Address, Scope> {
        let own = self.addresses.iter().filter_map(|(held, scope)| Some((self.own_address(held)?, *scope)));
        own.collect()
    }

    fn own_address(&self, held: &Held) -> Option<corax_core::object::Address> {
        let device = self.device(held.index)?;
        Some(corax_core::object::Address { device, address: held.address, length: held.length })
    }

    fn address(&mut self, held: Held, scope: Option<Scope>) {
        let own = self.own_address(&held);
        let before = match scope {
            Some(scope) => self.addresses.insert(held, scope),
            None => self.addresses.remove(&held),
        };
        // The last IPv4 address of a device takes its routes along, silently.
        self.stale.routes |= scope.is_none() && own.is_some();
        // IPv6 that is switched off takes addresses along, and is announced by that alone.
        self.stale.sysctls |= own.is_some() && held.address.is_ipv6();
        if before == scope {
            return;
        }
        self.facts = true;
        if let Some(own) = own {
            match scope {
                Some(scope) => self.observed.addresses.insert(own, scope),
                None => self.observed.addresses.remove(&own),
            };
            self.changed = true;
        }
    }

    fn neighbour(&mut self, message: &Message<'_>) {
        let Some((index, decoded)) = neighbour::decode(message) else { return };
        if Some(index) != self.overlay() {
            return;
        }
        let there = message.kind == neighbour::RTM_NEWNEIGH;
        self.changed |= match decoded {
            neighbour::Decoded::Flood(to) => {
                if there {
                    self.flood.insert(to);
                } else {
                    self.flood.remove(&to);
                }
                return self.set_flood();
            }
            neighbour::Decoded::BareFdb(_) if there => false,
            neighbour::Decoded::BareFdb(mac) => self.observed.fdb.remove(&mac).is_some(),
            neighbour::Decoded::Fdb(mac, to) if there => self.observed.fdb.insert(mac, to) != Some(to),
            neighbour::Decoded::Fdb(mac, _) => {
                // A group address may stand for several.
                self.stale.fdb |= mac.0.first().is_some_and(|byte| byte & 1 != 0);
                self.observed.fdb.remove(&mac).is_some()
            }
            neighbour::Decoded::Neighbour(address, Some(mac)) if there => {
                self.observed.neighbours.insert(address, mac) != Some(mac)
            }
            neighbour::Decoded::Neighbour(address, _) => self.observed.neighbours.remove(&address).is_some(),
        };
    }

    fn nexthop(&mut self, decoded: &nexthop::Decoded, there: bool) {
        let id = decoded.id;
        if there && decoded.owned {
            let to = decoded.on(self.overlay());
            self.changed |= self.observed.nexthops.insert(id, to) != Some(to);
            self.facts |= self.foreign_nexthops.remove(&id);
        } else {
            self.changed |= self.observed.nexthops.remove(&id).is_some();
            self.facts |= if there && id.is_ours() {
                self.foreign_nexthops.insert(id)
            } else {
                self.foreign_nexthops.remove(&id)
            };
        }
        // Its routes go with it, IPv4's silently.
        self.stale.routes |= !there && [id, SOME].iter().any(|id| self.users.contains_key(id));
    }

    fn route(&mut self, found: &Found, message: &Message<'_>) {
        let there = message.kind == route::RTM_NEWROUTE;
        if !found.is_owned(|index| self.device(index)) {
            let before = if there {
                self.foreign_routes.insert(found.key, found.protocol)
            } else {
                self.foreign_routes.remove(&found.key)
            };
            // In the place of one of ours.
            self.stale.routes |= self.observed.routes.contains_key(&found.key);
            self.facts |= before.is_none() == there;
            return;
        }
        let replaces = message.flags & NLM_F_REPLACE != 0;
        let held = self.observed.routes.get(&found.key);
        if self.doubled_routes.contains(&found.key) || (there && !replaces && held.is_some()) {
            self.stale.routes = true;
            return;
        }
        if there {
            let route = found.route(|index| self.device(index));
            self.stale.routes |= self.foreign_routes.contains_key(&found.key);
            self.set_route(found.key, Some(route));
        } else {
            self.set_route(found.key, None);
        }
    }

    fn set_route(&mut self, key: RouteKey, route: Option<Route>) {
        let before = match route {
            Some(route) => self.observed.routes.insert(key, route),
            None => self.observed.routes.remove(&key),
        };
        if before == route {
            return;
        }
        self.changed = true;
        if let Some(id) = before.and_then(|route| user_of(&route)) {
            let users = self.users.get_mut(&id).map(|users| {
                *users -= 1;
                *users
            });
            if users == Some(0) {
                self.users.remove(&id);
            }
        }
        if let Some(id) = route.and_then(|route| user_of(&route)) {
            *self.users.entry(id).or_default() += 1;
        }
    }

    /// Takes in a dump of the routes.
    pub(super) fn set_routes(&mut self, routes: Routes) {
        self.changed |= routes.ours != self.observed.routes;
        self.facts |= routes.foreign != self.foreign_routes;
        self.observed.routes = routes.ours;
        self.foreign_routes = routes.foreign;
        self.doubled_routes = routes.doubled;
        self.users.clear();
        for route in self.observed.routes.values() {
            if let Some(id) = user_of(route) {
                *self.users.entry(id).or_default() += 1;
            }
        }
    }

    /// Takes in a dump of the rules.
    pub(super) fn set_rules(&mut self, found: Vec<rule::Found>) {
        let mut ours: BTreeMap<Rule, usize> = BTreeMap::new();
        let (mut foreign, mut ravens, mut hidden) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for rule in found {
            match rule {
                rule::Found::Ours(rule) => *ours.entry(rule).or_default() += 1,
                rule::Found::Ravens(leftover) => {
                    let into = if is_hidden(&leftover, &foreign) { &mut hidden } else { &mut ravens };
                    into.insert(leftover);
                }
                other @ rule::Found::Foreign { .. } => foreign.push(other),
            }
        }
        let is_rule = |left: &Leftover| matches!(left, Leftover::MarkRule(_) | Leftover::TunnelRule(_));
        self.set_leftovers(is_rule, ravens);
        let doubled: BTreeMap<Rule, usize> =
            ours.iter().filter(|(_, count)| **count > 1).map(|(rule, count)| (*rule, count - 1)).collect();
        let rules: BTreeMap<Rule, ()> = ours.into_keys().map(|rule| (rule, ())).collect();
        self.changed |= rules != self.observed.rules || doubled != self.doubled_rules;
        self.facts |= foreign != self.foreign_rules || hidden != self.hidden_rules;
        self.hidden_rules = hidden;
        self.observed.rules = rules;
        self.doubled_rules = doubled;
        self.foreign_rules = foreign;
    }

    /// Takes in what Raven left of some classes.
    pub(super) fn set_leftovers(&mut self, of: impl Fn(&Leftover) -> bool, found: BTreeSet<Leftover>) {
        let held = &mut self.observed.leftovers;
        self.changed |= !held.iter().filter(|left| of(left)).eq(found.iter());
        held.retain(|left| !of(left));
        held.extend(found);
    }

    /// Takes in where the overlay floods to, if it is ours or Raven's.
    pub(super) fn set_flood(&mut self) {
        let overlay = self.observed.links.get(&Device::Overlay);
        let ours = overlay.is_some_and(|link| link.owned || link::is_taken_over(Device::Overlay, link));
        let flood = self.flood.iter().chain(&self.remote).filter(|_| ours);
        let flood = flood.map(|to| Leftover::Flood(*to)).collect();
        self.set_leftovers(|left| matches!(left, Leftover::Flood(_)), flood);
    }

    /// Addresses on links that are not ours.
    pub(super) fn foreign_addresses(&self) -> impl Iterator<Item = &Held> {
        self.addresses.keys().filter(|held| self.device(held.index).is_none())
    }
}

/// Whether the kernel would remove a rule of others, which stands before it, in place of one of Raven's. Protocol zero is
/// any protocol.
fn is_hidden(leftover: &Leftover, before: &[rule::Found]) -> bool {
    let alike = |found: &rule::Found| {
        let rule::Found::Foreign { taken_for, .. } = found else { return false };
        match (leftover, taken_for) {
            (Leftover::MarkRule(ravens), Some(Leftover::MarkRule(other)))
            | (Leftover::TunnelRule(ravens), Some(Leftover::TunnelRule(other))) => {
                *ravens == 0 || ravens == other
            }
            _ => false,
        }
    };
    before.iter().any(alike)
}

/// Stands for a nexthop object that is not known: no object has this number.
const SOME: NexthopId = NexthopId(0);

/// The nexthop object that a route may use.
const fn user_of(route: &Route) -> Option<NexthopId> {
    match route.via {
        Via::Nexthop(id) => Some(id),
        Via::Other => Some(SOME),
        Via::Device(_) | Via::Unreachable => None,
    }
}

pub(super) fn device_of(devices: &BTreeMap<Device, u32>, index: u32) -> Option<Device> {
    devices.iter().find(|(_, held)| **held == index).map(|(device, _)| *device)
}

/// Routes in our tables, as a dump tells them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    ours: BTreeMap<RouteKey, Route>,
    foreign: BTreeMap<RouteKey, u8>,
    doubled: BTreeSet<RouteKey>,
}

impl Routes {
    pub(super) fn add(&mut self, found: &Found, devices: &BTreeMap<Device, u32>) {
        if !found.is_owned(|index| device_of(devices, index)) {
            self.foreign.insert(found.key, found.protocol);
            return;
        }
        let route = found.route(|index| device_of(devices, index));
        if let Some(before) = self.ours.insert(found.key, route) {
            // Neither is what was asked for: the plan puts one in place of both.
            self.doubled.insert(found.key);
            self.ours.insert(found.key, Route { via: Via::Other, ..before });
        }
    }

    pub(super) fn extend(&mut self, mut other: Self) {
        self.ours.append(&mut other.ours);
        self.foreign.append(&mut other.foreign);
        self.doubled.append(&mut other.doubled);
    }
}
