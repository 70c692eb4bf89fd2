//! What a WireGuard device does not tell: which endpoint this process set last, and since when a handshake is known.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corax_core::key::{PresharedKey, PublicKey};
use corax_core::object::{Device, Peer, Tunnel};
use corax_core::observed::{ObservedPeer, ObservedTunnel};
use corax_core::prefix::Prefix;

/// A device as its interface gives it.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// UDP port.
    pub(super) port: u16,
    /// Mark of its socket.
    pub(super) mark: u32,
    /// Its public key.
    pub(super) key: Option<PublicKey>,
    /// Its peers.
    pub(super) peers: BTreeMap<PublicKey, PeerReading>,
}

/// A peer as its interface gives it.
#[derive(Debug)]
pub(super) struct PeerReading {
    /// The second key; zero where there is none.
    pub(super) preshared: PresharedKey,
    /// Where it was last heard or was said to be.
    pub(super) endpoint: Option<SocketAddr>,
    /// Seconds between keepalives.
    pub(super) keepalive: u16,
    /// Allowed IPs, in any order.
    pub(super) allowed: Vec<Prefix>,
    /// The last handshake by the wall clock, since 1970; zero for none.
    pub(super) handshake: Duration,
    /// Bytes received.
    pub(super) received: u64,
    /// Bytes sent.
    pub(super) sent: u64,
}

impl Default for PeerReading {
    fn default() -> Self {
        Self {
            preshared: PresharedKey::from_bytes([0; 32]),
            endpoint: None,
            keepalive: 0,
            allowed: Vec::new(),
            handshake: Duration::ZERO,
            received: 0,
            sent: 0,
        }
    }
}

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    wall: Duration,
    now: Instant,
}

impl Clocks {
    /// This moment.
    pub(super) fn read() -> Self {
        Self { wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), now: Instant::now() }
    }
}

/// What is remembered of every peer, from one reading to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    devices: BTreeMap<Device, BTreeMap<PublicKey, Remembered>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Remembered {
    configured: Option<SocketAddr>,
    read: Option<Instant>,
    handshake: Option<Handshake>,
}

/// A handshake's time as it was read first, and its age at that moment.
#[derive(Clone, Copy, Debug)]
struct Handshake {
    stamp: Duration,
    age: Duration,
    seen: Instant,
}

impl Memory {
    /// This process has set a peer's endpoint.
    pub(super) fn configure(&mut self, device: Device, key: PublicKey, endpoint: SocketAddr) {
        self.devices.entry(device).or_default().entry(key).or_default().configured = Some(endpoint);
    }

    /// The device is gone, and with it everything that was set on it.
    pub(super) fn forget_device(&mut self, device: Device) {
        self.devices.remove(&device);
    }

    /// The peer is gone.
    pub(super) fn forget_peer(&mut self, device: Device, key: PublicKey) {
        if let Some(peers) = self.devices.get_mut(&device) {
            peers.remove(&key);
        }
    }

    /// Adds what is remembered to what was read, and remembers that. A peer that is no more is forgotten.
    pub(super) fn observe(&mut self, device: Device, reading: Reading, clocks: Clocks) -> ObservedTunnel {
        let Reading { port, mark, key, peers } = reading;
        let known = self.devices.entry(device).or_default();
        known.retain(|key, _| peers.contains_key(key));
        let peers = peers.into_iter().map(|(key, peer)| {
            let remembered = known.entry(key).or_default();
            (key, observed(remembered, peer, clocks))
        });
        ObservedTunnel { tunnel: Tunnel { port, mark, key }, peers: peers.collect() }
    }
}

fn observed(remembered: &mut Remembered, reading: PeerReading, clocks: Clocks) -> ObservedPeer {
    let PeerReading { preshared, endpoint, keepalive, mut allowed, handshake, received, sent } = reading;
    allowed.sort_unstable();
    allowed.dedup();
    let handshake_age = (!handshake.is_zero()).then(|| remembered.age(handshake, clocks));
    remembered.read = Some(clocks.now);
    ObservedPeer {
        peer: Peer { preshared, endpoint, keepalive, allowed },
        configured: remembered.configured,
        handshake_age,
        received,
        sent,
    }
}

impl Remembered {
    /// Time since a handshake whose wall-clock time is `stamp`. The wall clock is asked once a handshake, and is not
    /// believed beyond the reading before, which had not seen it: a clock that is set ages no tunnel.
    fn age(&mut self, stamp: Duration, clocks: Clocks) -> Duration {
        let known = self.handshake.filter(|handshake| handshake.stamp == stamp);
        let handshake = known.unwrap_or_else(|| {
            let by_wall = clocks.wall.saturating_sub(stamp);
            let limit = self.read.map(|read| clocks.now.saturating_duration_since(read));
            Handshake { stamp, age: limit.map_or(by_wall, |limit| by_wall.min(limit)), seen: clocks.now }
        });
        self.handshake = Some(handshake);
        handshake.age + clocks.now.saturating_duration_since(handshake.seen)
    }
}

#[cfg(test)]
mod tests;
