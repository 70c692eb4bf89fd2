use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::Ordering;

use super::*;
use crate::device::Device;
use crate::key::PrivateKey;
use crate::net::{Socket, Wanted};
use crate::noise::INITIATION;

/// A peer's state on our side, and the peer itself: an engine behind a socket.
struct World {
    state: State,
    metrics: Metrics,
    outbox: Outbox,
    own: Socket,
    engine: Box<dyn Engine>,
    /// For further engines of the peer's.
    identity: Arc<Identity>,
    /// Our key, as the peer knows it.
    key: PublicKey,
    socket: UdpSocket,
}

impl World {
    fn new() -> Self {
        let identity =
            |hex: &str| Arc::new(Identity::new(PrivateKey::parse(&hex.repeat(32)).flatten().unwrap(), 100));
        let (left, right) = (identity("01"), identity("02"));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut state = Peer::new(right.public, 1, 0, Some(Arc::clone(&left)), Arc::default())
            .state
            .into_inner()
            .unwrap();
        state.set_endpoint(socket.local_addr().unwrap());
        Self {
            state,
            metrics: Metrics::default(),
            outbox: Outbox::new(64 << 10),
            own: Socket::bind(0, 0, Wanted { segmentation: false, grouping: false, refusal: None }, false)
                .unwrap(),
            engine: right.engine(left.public, None, 2),
            identity: right,
            key: left.public,
            socket,
        }
    }

    /// Where the peer is, reached from `source`.
    fn from(&self, source: Option<Ipv4Addr>) -> Endpoint {
        Endpoint { address: self.socket.local_addr().unwrap(), source: source.map(Into::into) }
    }

    /// What the peer gets next.
    fn arrived(&mut self) -> Vec<u8> {
        self.outbox.send(Some(&self.own), &self.metrics, |failure| panic!("{:?}", failure.kind));
        let mut buffer = vec![0; 2048];
        let length = self.socket.recv(&mut buffer).unwrap();
        buffer.truncate(length);
        buffer
    }

    /// The peer begins a session; returns what it sends first.
    fn peer_begins(&mut self) -> Vec<u8> {
        let mut out = [0; 256];
        let length = self.engine.initiate(&mut out).unwrap();
        self.state.handshake(&out[..length], self.from(None), &mut self.outbox, &self.metrics);
        let answer = self.arrived();
        let Opened::Answer(length) = self.engine.open(&answer, &mut out) else { panic!("a response") };
        out[..length].to_vec()
    }

    fn peer_sends(&mut self) -> Vec<u8> {
        let mut out = [0; 256];
        let Sealed::Message(length) = self.engine.seal(&packet(), &mut out) else { panic!("a session") };
        out[..length].to_vec()
    }

    fn open(&mut self, message: &[u8], from: Endpoint) {
        assert!(matches!(self.opened(message, from), Opened::Packet(_) | Opened::Keepalive));
    }

    fn opened(&mut self, message: &[u8], from: Endpoint) -> Opened {
        let index = u32::from_le_bytes(*message[4..].first_chunk().unwrap());
        self.state.open(message, index, from, Instant::now(), &mut [0; 256])
    }

    /// What we send reaches the peer.
    fn is_heard(&mut self) -> bool {
        self.state.seal(&packet(), &mut self.outbox, &self.metrics);
        let message = self.arrived();
        matches!(self.engine.open(&message, &mut [0; 256]), Opened::Packet(32))
    }

    /// Sets the preshared key on our side alone; returns the peer's engine that will have it, too.
    fn preshared(&mut self, hex: &str) -> Box<dyn Engine> {
        let key = PresharedKey::parse(&hex.repeat(32)).unwrap();
        self.state.set_preshared(key.clone(), &self.metrics);
        self.identity.engine(self.key, key.as_ref(), 2)
    }
}

/// A packet of IPv4.
fn packet() -> [u8; 32] {
    let mut packet = [0; 32];
    packet[0] = 0x45;
    packet[3] = 32;
    packet
}

#[test]
fn a_session_counts_once_though_messages_of_the_one_before_come_late() {
    let mut world = World::new();
    let first = world.peer_begins();
    world.open(&first, world.from(None));
    let late: Vec<_> = (0..3).map(|_| world.peer_sends()).collect();
    std::thread::sleep(Duration::from_millis(20));
    let second = world.peer_begins();
    assert_ne!(first[4..8], second[4..8]);
    world.open(&second, world.from(None));
    for message in late {
        world.open(&message, world.from(None));
        let message = world.peer_sends();
        world.open(&message, world.from(None));
    }
    assert_eq!(world.state.handshakes, 2);
}

#[test]
fn what_is_known_of_a_path_outlives_another_source_but_not_another_address() {
    let mut world = World::new();
    let first = world.peer_begins();
    world.open(&first, world.from(None));
    world.state.send_failed(FailureKind::Train, Instant::now());
    let message = world.peer_sends();
    world.open(&message, world.from(Some(Ipv4Addr::LOCALHOST)));
    assert!(world.state.singles_until.is_some());
    let message = world.peer_sends();
    world.open(&message, Endpoint { address: "192.0.2.1:1".parse().unwrap(), source: None });
    assert!(world.state.singles_until.is_none());
}

#[test]
fn a_source_is_in_doubt_when_a_handshake_begins_and_nothing_is_heard() {
    let mut world = World::new();
    let first = world.peer_begins();
    let pinned = world.from(Some(Ipv4Addr::LOCALHOST));
    world.open(&first, pinned);
    world.state.forget(&world.metrics);
    let now = world.state.heard;
    world.state.send_keepalive(now + SILENCE / 2, &mut world.outbox, &world.metrics);
    assert_eq!(world.arrived()[0], INITIATION);
    assert_eq!(world.state.endpoint(), Some(pinned), "it was heard a moment ago");
    world.state.forget(&world.metrics);
    world.state.send_keepalive(now + SILENCE, &mut world.outbox, &world.metrics);
    assert_eq!(world.arrived()[0], INITIATION);
    assert_eq!(world.state.endpoint(), Some(world.from(None)));
}

#[test]
fn setting_the_address_it_has_keeps_the_source_of_a_peer_that_is_heard() {
    let mut world = World::new();
    let first = world.peer_begins();
    let pinned = world.from(Some(Ipv4Addr::LOCALHOST));
    world.open(&first, pinned);
    world.state.set_endpoint(pinned.address);
    assert_eq!(world.state.endpoint(), Some(pinned));
    world.state.heard -= SILENCE;
    world.state.set_endpoint(pinned.address);
    assert_eq!(world.state.endpoint(), Some(world.from(None)));
}

fn drops(world: &World, reason: Reason) -> u64 {
    world.metrics.drops().find(|(name, _)| *name == reason.name()).unwrap().1
}

#[test]
fn few_packets_wait_for_a_session_and_all_others_are_counted() {
    let mut world = World::new();
    for _ in 0..200 {
        world.state.seal(&packet(), &mut world.outbox, &world.metrics);
    }
    assert_eq!(world.metrics.initiations_sent.get(), 1);
    assert_eq!(drops(&world, Reason::TooManyWaiting), 72);
    let mut out = [0; 256];
    let initiation = world.arrived();
    let Opened::Answer(length) = world.engine.open(&initiation, &mut out) else { panic!("a response") };
    world.state.handshake(&out[..length], world.from(None), &mut world.outbox, &world.metrics);
    let arrived = (0..129).filter(|_| world.arrived().len() == 64).count();
    assert_eq!(arrived, 128, "and a keepalive");
    for _ in 0..200 {
        world.state.seal(&packet(), &mut world.outbox, &world.metrics);
    }
    assert_eq!(drops(&world, Reason::TooManyWaiting), 72, "there is a session");
}

#[test]
fn what_waits_for_the_sessions_of_a_device_has_a_limit() {
    let mut world = World::new();
    let total = Arc::new(AtomicUsize::new(0));
    world.state.waiting = Waiting::new(Arc::clone(&total));
    let mut others = Waiting::new(Arc::clone(&total));
    others.add(1 << 20);
    world.state.seal(&packet(), &mut world.outbox, &world.metrics);
    assert_eq!(drops(&world, Reason::TooManyWaiting), 1);
    assert_eq!(world.arrived()[0], INITIATION, "the handshake begins all the same");
    drop(others);
    world.state.seal(&packet(), &mut world.outbox, &world.metrics);
    assert_eq!(total.load(Ordering::Relaxed), packet().len());
    world.state.forget(&world.metrics);
    assert_eq!((total.load(Ordering::Relaxed), drops(&world, Reason::NoHandshake)), (0, 1));
}

#[test]
fn a_session_outlives_its_preshared_key_until_the_new_one_has_made_another() {
    let mut world = World::new();
    let first = world.peer_begins();
    world.open(&first, world.from(None));
    let with_new = world.preshared("cd");
    for _ in 0..3 {
        let message = world.peer_sends();
        world.open(&message, world.from(None));
        let again = world.opened(&message, world.from(None));
        assert!(matches!(again, Opened::Refused(Reason::Replayed)));
        assert!(world.is_heard());
    }
    let late = world.peer_sends();
    world.engine = with_new;
    let first = world.peer_begins();
    assert!(!world.is_heard(), "what the peer has not confirmed is not used yet");
    world.open(&first, world.from(None));
    assert!(world.is_heard());
    let message = world.peer_sends();
    world.open(&message, world.from(None));
    assert!(matches!(world.opened(&message, world.from(None)), Opened::Refused(Reason::Replayed)));
    world.open(&late, world.from(None));
    assert_eq!(world.state.handshakes, 2);
    world.preshared("ef");
    assert!(world.is_heard(), "a further key leaves the newer session");
    world.preshared("cd");
    assert!(world.is_heard(), "though there is none of the last");
}

#[test]
fn a_key_that_nobody_else_has_makes_no_session_and_a_new_identity_ends_every_one() {
    let mut world = World::new();
    let first = world.peer_begins();
    world.open(&first, world.from(None));
    world.preshared("cd");
    // As many as boringtun keeps sessions.
    for _ in 0..8 {
        let mut out = [0; 256];
        let mut with_old = world.identity.engine(world.key, None, 2);
        let length = with_old.initiate(&mut out).unwrap();
        world.state.handshake(&out[..length], world.from(None), &mut world.outbox, &world.metrics);
        let answer = world.arrived();
        assert!(matches!(with_old.open(&answer, &mut out), Opened::Refused(_)));
        assert!(world.is_heard(), "the session goes on all the same");
    }
    world.state.set_preshared(None, &world.metrics);
    assert!(world.is_heard(), "the key before is set again");
    let identity = world.state.identity.clone();
    world.state.set_identity(identity, &world.metrics);
    let message = world.peer_sends();
    assert!(matches!(world.opened(&message, world.from(None)), Opened::Refused(_)));
    assert!(!world.is_heard());
}

#[test]
fn the_handshake_that_an_old_session_asks_for_is_begun_with_the_new_key() {
    let mut world = World::new();
    world.engine = world.preshared("cd");
    let engine = Box::new(Weary { ticks: Arc::default(), session: true });
    world.state.before = Some(Before { engine, until: None });
    world.state.tick(Instant::now(), &mut world.outbox, &world.metrics);
    let initiation = world.arrived();
    let mut out = [0; 256];
    let Opened::Answer(length) = world.engine.open(&initiation, &mut out) else { panic!("a response") };
    assert!(world.state.before.is_some());
    world.state.tick(Instant::now(), &mut world.outbox, &world.metrics);
    assert!(world.outbox.is_empty(), "one handshake at a time");
    world.state.handshake(&out[..length], world.from(None), &mut world.outbox, &world.metrics);
    let confirmation = world.arrived();
    assert!(matches!(world.engine.open(&confirmation, &mut out), Opened::Keepalive));
    assert!(world.is_heard(), "by the new session, though the old one is there");
    for _ in 0..2 {
        world.state.tick(Instant::now(), &mut world.outbox, &world.metrics);
        assert!(world.outbox.is_empty(), "nothing more is done for the old one");
        let until = &mut world.state.before.as_mut().expect("what comes late is taken").until;
        *until = until.map(|until| until - LATE / 2);
    }
    world.state.tick(Instant::now(), &mut world.outbox, &world.metrics);
    assert!(world.state.before.is_none(), "nothing comes so late");
}

#[test]
fn an_old_session_without_a_newer_one_ends_in_its_own_time() {
    let mut world = World::new();
    let engine = Box::new(Weary { ticks: Arc::default(), session: false });
    world.state.before = Some(Before { engine, until: None });
    world.state.tick(Instant::now(), &mut world.outbox, &world.metrics);
    assert!(world.state.before.is_none());
}

/// An engine that gives up at once, and counts in its way out.
struct Weary {
    ticks: Arc<AtomicUsize>,
    session: bool,
}

impl Engine for Weary {
    fn seal(&mut self, _: &[u8], _: &mut [u8]) -> Sealed {
        Sealed::Waiting
    }

    fn open(&mut self, _: &[u8], _: &mut [u8]) -> Opened {
        Opened::Nothing
    }

    fn next_waiting(&mut self, _: &mut [u8]) -> Option<usize> {
        None
    }

    fn initiate(&mut self, _: &mut [u8]) -> Option<usize> {
        None
    }

    fn tick(&mut self, out: &mut [u8]) -> Option<usize> {
        self.ticks.fetch_add(1, Ordering::Relaxed);
        out[0] = INITIATION;
        Some(148)
    }

    fn established(&self) -> bool {
        self.session
    }

    fn gave_up(&self) -> bool {
        self.ticks.load(Ordering::Relaxed) > 0
    }
}

#[test]
fn keys_grow_old_while_the_device_is_down_and_what_waited_is_counted() {
    let mut world = World::new();
    let device =
        Device::new("test".into(), Wanted { segmentation: false, grouping: false, refusal: None }, 1, 1420)
            .unwrap();
    let peer = device.peer(world.state.key);
    let ticks = Arc::new(AtomicUsize::new(0));
    {
        let mut state = peer.lock();
        state.set_endpoint(world.from(None).address);
        state.engine = Some(Box::new(Weary { ticks: Arc::clone(&ticks), session: false }));
        state.seal(&packet(), &mut world.outbox, &device.metrics);
    }
    device.tick(&mut world.outbox);
    assert_eq!(ticks.load(Ordering::Relaxed), 1);
    let lost = device.metrics.drops().filter(|(_, count)| *count > 0).collect::<Vec<_>>();
    assert_eq!(lost, [("no_handshake", 1)]);
    assert!(world.outbox.is_empty());
    assert_eq!(device.metrics.initiations_sent.get(), 0);
}
