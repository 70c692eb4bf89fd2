//! A kernel in memory: plays changes with the kernel's own conditions and side effects, as far as they matter to Corax.
//!
//! What it refuses, the kernel refuses; what it takes along, the kernel takes along (a link its addresses and routes, a
//! nexthop its routes). The kernel shell's tests play the same to both and compare what is observed. Not played is what a link's
//! new hardware address takes along, which is its neighbours.

use std::collections::BTreeMap;

use crate::change::{Change, PeerUpdate};
use crate::key::PresharedKey;
use crate::object::{Device, LinkKind, Peer, Set, Tunnel, Via};
use crate::observed::{NftTable, Observed, ObservedPeer, ObservedTunnel};
use crate::prefix::Prefix;
use crate::raven::{self, Chain, Leftover};

/// Why the kernel would refuse a change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What it refers to is not there: a device, a nexthop, a source address, a table.
    #[error("{0} is not there")]
    Missing(String),
    /// The device is there, and down.
    #[error("{0} is down")]
    Down(Device),
    /// It is there, and may not be twice.
    #[error("{0} is there already")]
    Exists(String),
    /// Something else uses it.
    #[error("{0}: in use")]
    InUse(String),
}

/// The kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeKernel {
    /// What it has.
    pub state: Observed,
}

impl FakeKernel {
    /// Carries out one change.
    ///
    /// # Errors
    /// What the kernel would refuse.
    pub fn apply(&mut self, change: &Change) -> Result<(), Refusal> {
        match change {
            Change::AddLink(device, link) => {
                if self.state.links.contains_key(device) {
                    return Err(Refusal::Exists(device.to_string()));
                }
                self.state.links.insert(*device, link.clone());
                if matches!(link.kind, LinkKind::WireGuard | LinkKind::Tun) {
                    let tunnel = Tunnel { port: 0, mark: 0, key: None };
                    self.state.tunnels.insert(*device, ObservedTunnel { tunnel, peers: BTreeMap::new() });
                }
            }
            Change::SetLink(device, link) => {
                self.device(*device)?;
                self.state.links.insert(*device, link.clone());
            }
            Change::DeleteLink(device) => self.delete_link(*device),
            Change::PutSysctl(device, sysctl, value) => {
                self.device(*device)?;
                self.state.sysctls.insert((*device, *sysctl), *value);
            }
            Change::PutAddress(address, scope) => {
                self.device(address.device)?;
                self.state.addresses.insert(*address, *scope);
            }
            Change::DeleteAddress(address) => {
                // IPv6's routes by the device lose their source with it; IPv4's keep it, in tables other than main.
                if self.state.addresses.remove(address).is_some() && address.address.is_ipv6() {
                    let by = Via::Device(address.device);
                    let had = self.state.routes.values_mut().filter(|route| route.via == by);
                    had.filter(|route| route.source == Some(address.address))
                        .for_each(|route| route.source = None);
                }
            }
            Change::PutFdb(mac, to) => {
                self.device(Device::Overlay)?;
                self.state.fdb.insert(*mac, *to);
            }
            Change::DeleteFdb(mac, _) => {
                self.state.fdb.remove(mac);
            }
            Change::PutNeighbour(address, mac) => {
                self.device(Device::Overlay)?;
                self.state.neighbours.insert(*address, *mac);
            }
            Change::DeleteNeighbour(address) => {
                self.state.neighbours.remove(address);
            }
            Change::PutNexthop(id, gateway) => {
                self.up(Device::Overlay)?;
                self.state.nexthops.insert(*id, *gateway);
            }
            Change::DeleteNexthop(id) => {
                self.state.nexthops.remove(id);
                self.state.routes.retain(|_, route| route.via != Via::Nexthop(*id));
            }
            Change::PutRoute(key, route) => {
                match route.via {
                    Via::Nexthop(id) if !self.state.nexthops.contains_key(&id) => {
                        return Err(Refusal::Missing(format!("nexthop {}", id.0)));
                    }
                    Via::Device(device) => self.up(device)?,
                    _ => {}
                }
                if let Some(source) = route.source
                    && !self.state.addresses.keys().any(|address| address.address == source)
                {
                    return Err(Refusal::Missing(format!("address {source}")));
                }
                self.state.routes.insert(*key, *route);
            }
            Change::DeleteRoute(key) => {
                self.state.routes.remove(key);
            }
            Change::PutRule(rule) => {
                self.state.rules.insert(*rule, ());
            }
            Change::DeleteRule(rule) => {
                self.state.rules.remove(rule);
            }
            Change::SetTunnel(device, update) => {
                let tunnel = &mut self.tunnel(*device)?.tunnel;
                tunnel.key = update.key.or(tunnel.key);
                tunnel.port = update.port.unwrap_or(tunnel.port);
                tunnel.mark = update.mark.unwrap_or(tunnel.mark);
            }
            Change::SetPeer(device, key, update) => set_peer(self.tunnel(*device)?, *key, update),
            Change::DeletePeer(device, key) => {
                self.tunnel(*device)?.peers.remove(key);
            }
            Change::ReplaceTable(ruleset, elements) => {
                self.state.nft = NftTable::Intact(ruleset.fingerprint());
                self.state.elements.clear();
                return self.add_elements(elements);
            }
            Change::ChangeElements { delete, add } => {
                if self.state.nft == NftTable::Absent {
                    return Err(Refusal::Missing("the nftables table".to_owned()));
                }
                for element in delete {
                    self.state.elements.remove(element);
                }
                return self.add_elements(add);
            }
            Change::DeleteTable => {
                self.state.nft = NftTable::Absent;
                self.state.elements.clear();
            }
            Change::TakeAway(leftover) => return self.take_away(leftover),
        }
        Ok(())
    }

    /// A chain that a jump leads to, and a set that a chain uses, are kept by that.
    fn take_away(&mut self, leftover: &Leftover) -> Result<(), Refusal> {
        let used = |left: &Leftover| match (leftover, left) {
            (Leftover::Chain(tables, chain), Leftover::Jump(jump)) => {
                (jump.tables, jump.to) == (*tables, *chain)
            }
            (Leftover::Set(raven::Set::Mark), Leftover::Chain(_, Chain::Mark)) => true,
            (Leftover::Set(raven::Set::SkipNat), Leftover::Chain(_, Chain::Postrouting)) => true,
            _ => false,
        };
        if self.state.leftovers.iter().any(used) {
            return Err(Refusal::InUse(leftover.to_string()));
        }
        self.state.leftovers.remove(leftover);
        Ok(())
    }

    /// A link goes, as by `ip link del`, with all that is on it.
    pub fn delete_link(&mut self, device: Device) {
        let state = &mut self.state;
        state.links.remove(&device);
        state.tunnels.remove(&device);
        state.sysctls.retain(|(of, _), _| *of != device);
        state.addresses.retain(|address, _| address.device != device);
        if device == Device::Overlay {
            state.fdb.clear();
            state.neighbours.clear();
            state.nexthops.clear();
            state.leftovers.retain(|left| !matches!(left, Leftover::Flood(_) | Leftover::Filter));
        }
        self.drop_routes(device);
    }

    /// A link goes down, as by `ip link set down`: its routes, nexthops, neighbours and IPv6 addresses go.
    pub fn link_down(&mut self, device: Device) {
        if let Some(link) = self.state.links.get_mut(&device) {
            link.up = false;
        }
        self.state.addresses.retain(|address, _| address.device != device || address.address.is_ipv4());
        if device == Device::Overlay {
            self.state.nexthops.clear();
            self.state.neighbours.clear();
        }
        self.drop_routes(device);
    }

    fn drop_routes(&mut self, device: Device) {
        self.state.routes.retain(|_, route| match route.via {
            Via::Nexthop(_) => device != Device::Overlay,
            Via::Device(by) => by != device,
            Via::Unreachable | Via::Other => true,
        });
    }

    fn device(&self, device: Device) -> Result<(), Refusal> {
        match self.state.links.get(&device) {
            Some(_) => Ok(()),
            None => Err(Refusal::Missing(device.to_string())),
        }
    }

    fn up(&self, device: Device) -> Result<(), Refusal> {
        match self.state.links.get(&device) {
            Some(link) if link.up => Ok(()),
            Some(_) => Err(Refusal::Down(device)),
            None => Err(Refusal::Missing(device.to_string())),
        }
    }

    fn tunnel(&mut self, device: Device) -> Result<&mut ObservedTunnel, Refusal> {
        self.state.tunnels.get_mut(&device).ok_or_else(|| Refusal::Missing(device.to_string()))
    }

    fn add_elements(&mut self, elements: &[(Set, Prefix)]) -> Result<(), Refusal> {
        for (set, prefix) in elements {
            let overlaps = |(other, held): &(Set, Prefix)| other == set && held.overlaps(prefix);
            if self.state.elements.keys().any(overlaps) {
                return Err(Refusal::Exists(format!("{prefix} of set {set}")));
            }
            self.state.elements.insert((*set, *prefix), ());
        }
        Ok(())
    }
}

fn set_peer(tunnel: &mut ObservedTunnel, key: crate::key::PublicKey, update: &PeerUpdate) {
    if let Some(allowed) = &update.allowed {
        // An allowed IP belongs to one peer: who gets it takes it. What is to go is taken from whoever has it.
        for peer in tunnel.peers.values_mut() {
            peer.peer
                .allowed
                .retain(|prefix| !allowed.add.contains(prefix) && !allowed.remove.contains(prefix));
        }
    }
    let peer = tunnel.peers.entry(key).or_insert_with(|| ObservedPeer {
        peer: Peer {
            preshared: PresharedKey::from_bytes([0; 32]),
            endpoint: None,
            keepalive: 0,
            allowed: Vec::new(),
        },
        configured: None,
        handshake_age: None,
        received: 0,
        sent: 0,
    });
    if let Some(preshared) = &update.preshared {
        peer.peer.preshared = preshared.clone();
    }
    if update.endpoint.is_some() {
        peer.peer.endpoint = update.endpoint;
        peer.configured = update.endpoint;
    }
    if let Some(keepalive) = update.keepalive {
        peer.peer.keepalive = keepalive;
    }
    if let Some(allowed) = &update.allowed {
        peer.peer.allowed.extend(&allowed.add);
        peer.peer.allowed.sort();
    }
}

#[cfg(test)]
mod tests;
