//! Doing what a request asks: only what differs is changed, so that a session outlives being configured again.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use super::request::{Allowed, Set, SetPeer};
use crate::device::Device;
use crate::key::PublicKey;
use crate::net::outbox::Outbox;
use crate::prefix::Prefix;

/// Carries out `set`. An error is one of the network (a port in use, a mark not permitted); the rest is done then.
pub(crate) fn apply(device: &Device, set: &Set) -> io::Result<()> {
    if let Some(private) = &set.private_key {
        device.set_identity(private.clone());
    }
    let link = device.set_link(|link| {
        link.port = set.listen_port.unwrap_or(link.port);
        link.fwmark = set.fwmark.unwrap_or(link.fwmark);
    });
    if set.replace_peers {
        let named: BTreeSet<PublicKey> = set.peers.iter().map(|peer| peer.key).collect();
        let mut table = device.table_mut();
        let gone: Vec<_> =
            table.entries().map(|entry| entry.peer.key).filter(|key| !named.contains(key)).collect();
        gone.iter().for_each(|key| table.remove(key));
    }
    let mut outbox = None;
    let mut seen = BTreeSet::new();
    for peer in &set.peers {
        // Replacing all peers starts each named one afresh, but for its session.
        let afresh = set.replace_peers && seen.insert(peer.key);
        self::peer(device, peer, afresh, &mut outbox);
    }
    link
}

fn peer(device: &Device, set: &SetPeer, afresh: bool, outbox: &mut Option<Outbox>) {
    let known = device.table().get(&set.key).is_some();
    let ourselves = device.table().identity.as_ref().is_some_and(|identity| identity.public == set.key);
    if set.remove {
        return device.table_mut().remove(&set.key);
    }
    if ourselves || (set.update_only && !known) {
        return;
    }
    let peer = device.peer(set.key);
    {
        let mut state = peer.lock();
        if set.preshared_key.is_some() || afresh {
            state.set_preshared(set.preshared_key.clone().flatten(), &device.metrics);
        }
        if let Some(endpoint) = set.endpoint {
            state.set_endpoint(endpoint);
        }
    }
    allow(device, set, afresh);

    let interval = set.keepalive.or(afresh.then_some(0));
    let Some(interval) = interval else { return };
    // Asked before the peer is locked: who holds the link may be waiting for a thread that waits for the peer.
    let up = device.link().up;
    let mut state = peer.lock();
    let begins = state.set_keepalive(Duration::from_secs(interval.into()));
    if begins && !up {
        state.greet_later();
    } else if begins {
        let outbox = outbox.get_or_insert_with(|| Outbox::new(0));
        state.send_keepalive(Instant::now(), outbox, &device.metrics);
        drop(state);
        device.send(outbox, &device.table());
    }
}

/// Prefixes that stay the peer's are its own all the time: no packet of theirs is lost.
fn allow(device: &Device, set: &SetPeer, afresh: bool) {
    let mut table = device.table_mut();
    if !set.replace_allowed && !afresh {
        for allowed in &set.allowed {
            match allowed {
                Allowed::Add(prefix) => table.allow(&set.key, *prefix),
                Allowed::Remove(prefix) => table.disallow(&set.key, *prefix),
            }
        }
        return;
    }
    let mut prefixes = BTreeSet::<Prefix>::new();
    for allowed in &set.allowed {
        match allowed {
            Allowed::Add(prefix) => prefixes.insert(*prefix),
            Allowed::Remove(prefix) => prefixes.remove(prefix),
        };
    }
    table.allow_only(&set.key, &prefixes);
}
