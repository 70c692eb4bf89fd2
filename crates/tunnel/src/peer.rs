//! One peer: its engine, its endpoint, its counters, behind one lock.

use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use crate::key::{PresharedKey, PublicKey};
use crate::metrics::{Metrics, Reason};
use crate::net::endpoint::Endpoint;
use crate::net::outbox::{FailureKind, Outbox};
use crate::noise::{Engine, Identity, Opened, Sealed};
use crate::packet::ip;
use crate::waiting::Waiting;

/// How long a path that refused a datagram train is sent single datagrams.
const SINGLES: Duration = Duration::from_secs(60);
/// How long a peer whose handshake is under way may be silent before its source address is in doubt: WireGuard's time between
/// two tries.
const SILENCE: Duration = Duration::from_secs(5);
/// A clock that is this much ahead of where it was expected was set, and did not merely drift.
const CLOCK_STEP: Duration = Duration::from_secs(1);
/// How late messages of a session may come that another preshared key has replaced.
const LATE: Duration = Duration::from_secs(10);

/// A peer. Its key, index and worker never change; the rest is behind the lock, which is held for a batch.
pub(crate) struct Peer {
    pub(crate) key: PublicKey,
    /// The upper 24 bits of the receiver indices it is given.
    pub(crate) index: u32,
    /// Which of the workers all goes by that is the peer's.
    pub(crate) worker: usize,
    state: Mutex<State>,
}

/// What changes.
pub(crate) struct State {
    key: PublicKey,
    index: u32,
    identity: Option<Arc<Identity>>,
    /// Made when first needed: a peer that never speaks costs no handshake state.
    engine: Option<Box<dyn Engine>>,
    /// Of an earlier preshared key.
    before: Option<Before>,
    /// Packets that the engine keeps until there is a session.
    waiting: Waiting,
    /// Wall clock and monotonic clock when the engine was made, which is what its handshakes are stamped with.
    made: (SystemTime, Instant),
    preshared: Option<PresharedKey>,
    endpoint: Option<Endpoint>,
    /// The path refuses datagram trains until then.
    singles_until: Option<Instant>,
    /// Zero for none.
    keepalive: Duration,
    /// Keepalives began while the device was down, and may have ended since.
    greet: bool,
    /// Last authentic message in either direction.
    last_traffic: Instant,
    /// Last authentic message of the peer's.
    heard: Instant,
    /// Receiver index of the session that we answered for, until it carries a message to us.
    answered: Option<u32>,
    pub(crate) last_handshake: Option<SystemTime>,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) tx_packets: u64,
    pub(crate) handshakes: u64,
}

/// An engine whose preshared key is another now: its session is used until the new key has made one. Its handshakes are over.
struct Before {
    engine: Box<dyn Engine>,
    /// There is a newer session; until then messages of this one are taken.
    until: Option<Instant>,
}

impl Peer {
    /// `waiting`: bytes that wait for sessions of the device.
    pub(crate) fn new(
        key: PublicKey,
        index: u32,
        worker: usize,
        identity: Option<Arc<Identity>>,
        waiting: Arc<AtomicUsize>,
    ) -> Self {
        let state = State {
            key,
            index,
            identity,
            engine: None,
            before: None,
            waiting: Waiting::new(waiting),
            made: (SystemTime::now(), Instant::now()),
            preshared: None,
            endpoint: None,
            singles_until: None,
            keepalive: Duration::ZERO,
            greet: false,
            last_traffic: Instant::now(),
            heard: Instant::now(),
            answered: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
            handshakes: 0,
        };
        Self { key, index, worker, state: Mutex::new(state) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic ends the process, so no lock is poisoned")
    }
}

impl State {
    /// Takes over a new key of our own (or none); what was agreed with the old one ends.
    pub(crate) fn set_identity(&mut self, identity: Option<Arc<Identity>>, metrics: &Metrics) {
        self.identity = identity;
        self.before = None;
        self.forget(metrics);
    }

    /// The key counts from the next handshake on, as in the kernel's WireGuard: a session goes on until then.
    pub(crate) fn set_preshared(&mut self, preshared: Option<PresharedKey>, metrics: &Metrics) {
        if self.preshared == preshared {
            return;
        }
        self.preshared = preshared;
        if let Some(engine) = self.engine.take_if(|engine| engine.established()) {
            self.before = Some(Before { engine, until: None });
        }
        self.forget(metrics);
    }

    pub(crate) fn preshared(&self) -> Option<&PresharedKey> {
        self.preshared.as_ref()
    }

    /// Setting the address it has keeps the source it was reached from, unless it is silent.
    pub(crate) fn set_endpoint(&mut self, address: SocketAddr) {
        let source = self.endpoint.and_then(|endpoint| endpoint.source);
        let same = self.endpoint.is_some_and(|endpoint| endpoint.address == address);
        let source = source.filter(|_| same && !self.is_silent(Instant::now()));
        self.is_at(Endpoint { address, source });
    }

    /// Takes over where the peer is.
    fn is_at(&mut self, endpoint: Endpoint) {
        if self.endpoint.is_none_or(|before| before.address != endpoint.address) {
            self.singles_until = None;
        }
        self.endpoint = Some(endpoint);
    }

    /// The kernel chooses the source address again, until the peer tells at which it reaches us.
    pub(crate) fn forget_source(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.source = None;
        }
    }

    fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) >= SILENCE
    }

    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint
    }

    /// Whether keepalives were off before and are on now.
    pub(crate) fn set_keepalive(&mut self, interval: Duration) -> bool {
        let begins = self.keepalive.is_zero() && !interval.is_zero();
        self.keepalive = interval;
        begins
    }

    pub(crate) fn keepalive(&self) -> Duration {
        self.keepalive
    }

    /// The device is down: it is spoken to when that comes up.
    pub(crate) fn greet_later(&mut self) {
        self.greet = true;
    }

    /// Whether it is to be spoken to as the device comes up.
    pub(crate) fn is_to_be_greeted(&mut self) -> bool {
        std::mem::take(&mut self.greet) || !self.keepalive.is_zero()
    }

    /// Begins anew, but for the session of an earlier preshared key.
    fn forget(&mut self, metrics: &Metrics) {
        metrics.drop(Reason::NoHandshake, self.waiting.clear() as u64);
        self.engine = None;
        self.answered = None;
    }

    fn engine(&mut self) -> Option<&mut Box<dyn Engine>> {
        if self.engine.is_none() {
            let identity = self.identity.as_ref()?;
            self.made = (SystemTime::now(), Instant::now());
            self.engine = Some(identity.engine(self.key, self.preshared.as_ref(), self.index));
        }
        self.engine.as_mut()
    }

    /// The engine to seal with: that of an earlier preshared key where it alone has a session.
    fn sealer(&mut self) -> Option<&mut Box<dyn Engine>> {
        if let Some(before) = &self.before
            && !self.engine.as_ref().is_some_and(|engine| engine.established())
            && before.engine.established()
        {
            return self.before.as_mut().map(|before| &mut before.engine);
        }
        self.engine()
    }

    /// Seals one packet into the outbox. The caller has made sure that there is room.
    #[inline]
    pub(crate) fn seal(&mut self, packet: &[u8], outbox: &mut Outbox, metrics: &Metrics) {
        let Some(endpoint) = self.endpoint else {
            return metrics.drop(Reason::NoEndpoint, 1);
        };
        let together = self.singles_until.is_none();
        let may_wait = self.waiting.has_room(packet.len());
        let Some(engine) = self.sealer() else {
            return metrics.drop(Reason::NoKey, 1);
        };
        let sealed = if may_wait || engine.established() {
            engine.seal(packet, outbox.room())
        } else {
            metrics.drop(Reason::TooManyWaiting, 1);
            let Some(length) = engine.initiate(outbox.room()) else { return };
            return self.sent_initiation(&endpoint, length, outbox, metrics);
        };
        match sealed {
            Sealed::Message(length) => {
                outbox.push(&endpoint, ip::outer_ecn(ip::ecn(packet)), length, together);
                self.tx_bytes += length as u64;
                self.tx_packets += 1;
            }
            Sealed::Initiation(length) => {
                self.waiting.add(packet.len());
                self.sent_initiation(&endpoint, length, outbox, metrics);
            }
            Sealed::Waiting => self.waiting.add(packet.len()),
        }
    }

    fn sent_initiation(&mut self, to: &Endpoint, length: usize, outbox: &mut Outbox, metrics: &Metrics) {
        metrics.initiations_sent.add(1);
        outbox.push(to, 0, length, true);
        self.tx_bytes += length as u64;
    }

    /// Notes that a batch goes to the peer at `now`.
    #[inline]
    pub(crate) fn touched(&mut self, now: Instant) {
        self.last_traffic = now;
        if self.singles_until.is_some_and(|until| until <= now) {
            self.singles_until = None;
        }
    }

    /// What the network said of a train to this peer.
    pub(crate) fn send_failed(&mut self, kind: FailureKind, now: Instant) {
        match kind {
            FailureKind::Source => {
                self.forget_source();
                // Some kernels say the same of both, and the train was asked first.
                self.singles_until = None;
            }
            FailureKind::Train => self.singles_until = Some(now + SINGLES),
        }
    }

    /// Opens a data message from `from` into `out`. An authentic one tells where the peer is now.
    #[inline]
    pub(crate) fn open(
        &mut self,
        message: &[u8],
        index: u32,
        from: Endpoint,
        now: Instant,
        out: &mut [u8],
    ) -> Opened {
        let mut opened = match &mut self.engine {
            Some(engine) => engine.open(message, out),
            None => Opened::Refused(Reason::NoSession),
        };
        let authentic = |opened: &Opened| matches!(opened, Opened::Packet(_) | Opened::Keepalive);
        let of_engine = authentic(&opened);
        if let (false, Some(before)) = (of_engine, &mut self.before) {
            // Both number their sessions alike.
            let by_before = before.engine.open(message, out);
            if authentic(&by_before) || !matches!(opened, Opened::Refused(Reason::Replayed)) {
                opened = by_before;
            }
        }
        if authentic(&opened) {
            if self.endpoint != Some(from) {
                self.is_at(from);
            }
            self.last_traffic = now;
            self.heard = now;
            self.rx_bytes += message.len() as u64;
            if of_engine && self.answered == Some(index) {
                // Now both sides have the session.
                self.answered = None;
                self.handshake_done();
            }
        }
        opened
    }

    /// Takes a handshake message or a cookie that was admitted; answers and what waited go to the outbox, which has room.
    pub(crate) fn handshake(
        &mut self,
        message: &[u8],
        from: Endpoint,
        outbox: &mut Outbox,
        metrics: &Metrics,
    ) -> Opened {
        let Some(engine) = self.engine() else {
            return Opened::Refused(Reason::NoKey);
        };
        let opened = engine.open(message, outbox.room());
        if let Opened::Answer(length) = opened {
            let sender = outbox.room()[4..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
            outbox.push(&from, 0, length, true);
            self.rx_bytes += message.len() as u64;
            self.tx_bytes += length as u64;
            self.last_traffic = Instant::now();
            if message[0] == crate::noise::RESPONSE {
                self.heard = self.last_traffic;
                self.is_at(from);
                self.handshake_done();
                self.send_waiting(outbox, metrics);
            } else {
                self.answered = sender;
                // An initiation does not say where the peer is: it may be an old one, sent again by somebody else.
                self.endpoint.get_or_insert(from);
            }
        }
        opened
    }

    fn handshake_done(&mut self) {
        self.last_handshake = Some(SystemTime::now());
        self.handshakes += 1;
    }

    /// Sends the packets that waited for a session, until the outbox is full.
    pub(crate) fn send_waiting(&mut self, outbox: &mut Outbox, metrics: &Metrics) {
        let (Some(endpoint), Some(engine)) = (self.endpoint, self.engine.as_mut()) else { return };
        while !outbox.full() {
            let Some(length) = engine.next_waiting(outbox.room()) else {
                self.waiting.clear();
                return;
            };
            if outbox.room()[0] != crate::noise::DATA {
                metrics.initiations_sent.add(1);
            }
            outbox.push(&endpoint, 0, length, true);
            self.tx_bytes += length as u64;
            self.tx_packets += 1;
        }
    }

    /// Lets time pass: keepalives, retries, new handshakes, old keys.
    pub(crate) fn tick(&mut self, now: Instant, outbox: &mut Outbox, metrics: &Metrics) {
        if self.endpoint.is_none() {
            return;
        }
        if let Some(length) = self.age(outbox.room(), metrics) {
            self.sent_by_timer(now, length, outbox, metrics);
        } else if let Some(engine) = &self.engine {
            if engine.established() {
                self.send_waiting(outbox, metrics);
            } else if self.clock_was_set(now) {
                // Handshakes would go on to carry the time of before, which the peer may have seen already.
                self.forget(metrics);
            }
        }
        if !outbox.full()
            && !self.keepalive.is_zero()
            && now.duration_since(self.last_traffic) >= self.keepalive
        {
            self.send_keepalive(now, outbox, metrics);
        }
    }

    /// Lets time pass for the engines, whose old keys end; returns the bytes of what they want sent.
    pub(crate) fn age(&mut self, out: &mut [u8], metrics: &Metrics) -> Option<usize> {
        if let Some(length) = self.age_before(out) {
            return Some(length);
        }
        let engine = self.engine.as_mut()?;
        let written = engine.tick(out);
        if engine.gave_up() {
            metrics.drop(Reason::NoHandshake, self.waiting.clear() as u64);
        }
        written
    }

    /// The same for that of an earlier preshared key: the handshake that it would begin, the new key begins.
    fn age_before(&mut self, out: &mut [u8]) -> Option<usize> {
        let before = self.before.as_mut()?;
        if self.engine.as_ref().is_some_and(|engine| engine.established()) {
            let now = Instant::now();
            if *before.until.get_or_insert(now + LATE) <= now {
                self.before = None;
            }
            return None;
        }
        let length = before.engine.tick(out);
        if !before.engine.established() {
            self.before = None;
        }
        let length = length?;
        if out[0] == crate::noise::DATA { Some(length) } else { self.engine()?.initiate(out) }
    }

    /// Sends an empty packet, or starts the handshake that it needs.
    pub(crate) fn send_keepalive(&mut self, now: Instant, outbox: &mut Outbox, metrics: &Metrics) {
        if self.endpoint.is_none() {
            return;
        }
        self.last_traffic = now;
        let Some(engine) = self.sealer() else { return };
        let length = if engine.established() {
            match engine.seal(&[], outbox.room()) {
                Sealed::Message(length) | Sealed::Initiation(length) => Some(length),
                Sealed::Waiting => None,
            }
        } else {
            engine.initiate(outbox.room())
        };
        if let Some(length) = length {
            self.sent_by_timer(now, length, outbox, metrics);
        }
    }

    fn sent_by_timer(&mut self, now: Instant, length: usize, outbox: &mut Outbox, metrics: &Metrics) {
        if outbox.room()[0] == crate::noise::INITIATION {
            metrics.initiations_sent.add(1);
            if self.is_silent(now) {
                // The address may be ours still while the route went elsewhere, where its answers do not come.
                self.forget_source();
            }
        }
        let Some(endpoint) = self.endpoint else { return };
        outbox.push(&endpoint, 0, length, true);
        self.tx_bytes += length as u64;
        self.last_traffic = Instant::now();
    }

    fn clock_was_set(&self, now: Instant) -> bool {
        let (wall, monotonic) = self.made;
        let expected = wall + now.saturating_duration_since(monotonic);
        SystemTime::now().duration_since(expected).is_ok_and(|ahead| ahead > CLOCK_STEP)
    }
}

#[cfg(test)]
mod tests;
