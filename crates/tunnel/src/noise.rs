//! The Noise state machine of one peer: handshake, sessions, timers, cookies.

use std::net::IpAddr;
use std::sync::Arc;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;

use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::metrics::Reason;

/// First byte of a transport data message.
pub(crate) const DATA: u8 = 4;
/// First byte of a handshake initiation.
pub(crate) const INITIATION: u8 = 1;
/// First byte of a handshake response.
pub(crate) const RESPONSE: u8 = 2;
/// First byte of a cookie reply.
pub(crate) const COOKIE: u8 = 3;
/// Bytes of a message of that kind, which is not data.
pub(crate) fn handshake_length(kind: u8) -> Option<usize> {
    match kind {
        INITIATION => Some(LEAST_ROOM),
        RESPONSE => Some(92),
        COOKIE => Some(64),
        _ => None,
    }
}

/// Bytes a data message is longer than its packet.
pub(crate) const OVERHEAD: usize = 32;
/// Least room an engine wants for what it writes: a handshake initiation.
pub(crate) const LEAST_ROOM: usize = 148;

/// What became of a packet to send.
pub(crate) enum Sealed {
    /// A data message of so many bytes is in the buffer.
    Message(usize),
    /// The packet waits; a handshake initiation of so many bytes is to be sent.
    Initiation(usize),
    /// The packet waits for the handshake under way.
    Waiting,
}

/// What a message from the network was.
pub(crate) enum Opened {
    /// A packet of so many bytes is in the buffer.
    Packet(usize),
    /// An empty packet of the peer's, which only says that it lives.
    Keepalive,
    /// A message of so many bytes is to be sent back.
    Answer(usize),
    /// Nothing to be done.
    Nothing,
    /// It was not the peer's, not fresh or not whole.
    Refused(Reason),
}

/// What the guard says of a handshake message.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Admission<'a> {
    Granted,
    /// Granted under load, as it showed with a cookie that its address is its sender's.
    ByCookie,
    /// This is to be sent back instead.
    Cookie(&'a [u8]),
    Refused,
}

/// A Noise engine. Calls are made under the peer's lock, one at a time; buffers have [`OVERHEAD`] bytes more than the packet
/// and [`LEAST_ROOM`] at least.
pub(crate) trait Engine: Send {
    /// Seals an IP packet (or an empty one, a keepalive) into `out`.
    fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Sealed;
    /// Opens a message of any kind whose source was checked, into `out`.
    fn open(&mut self, message: &[u8], out: &mut [u8]) -> Opened;
    /// Seals the next packet that waited for a session; returns the message's bytes.
    fn next_waiting(&mut self, out: &mut [u8]) -> Option<usize>;
    /// Starts a handshake unless one is under way; returns the message's bytes.
    fn initiate(&mut self, out: &mut [u8]) -> Option<usize>;
    /// Lets time pass; returns the bytes of what is to be sent.
    fn tick(&mut self, out: &mut [u8]) -> Option<usize>;
    /// Whether there is a session to send with.
    fn established(&self) -> bool;
    /// Whether it gave up shaking hands, and what waited for a session.
    fn gave_up(&self) -> bool;
}

/// Who we are, and the guard before every handshake: one for the device.
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
    /// Checks both MACs of a handshake message and answers with cookies under load.
    pub(crate) gate: RateLimiter,
    /// For the engines, which want to check again: never under load.
    open: Arc<RateLimiter>,
}

impl Identity {
    /// `limit`: handshake messages a second above which cookies are asked for.
    pub(crate) fn new(private: PrivateKey, limit: u64) -> Self {
        let public = private.public();
        let point = x25519::PublicKey::from(public.0);
        Self {
            private,
            public,
            gate: RateLimiter::new(&point, limit),
            open: Arc::new(RateLimiter::new(&point, u64::MAX)),
        }
    }

    /// The public key of who sent this handshake initiation.
    pub(crate) fn initiator(&self, message: &[u8]) -> Option<PublicKey> {
        use boringtun::noise::{Packet, handshake};
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(message) else { return None };
        let public = x25519::PublicKey::from(self.public.0);
        let half = handshake::parse_handshake_anon(self.private.secret(), &public, &initiation).ok()?;
        Some(PublicKey(half.peer_static_public))
    }

    /// Whether a handshake message may go on to an engine.
    pub(crate) fn admit<'a>(&self, from: IpAddr, message: &[u8], reply: &'a mut [u8]) -> Admission<'a> {
        // Without an address it tells whether there is load, of which it tells nothing else.
        match self.gate.verify_packet(None, message, &mut []) {
            Ok(_) => return Admission::Granted,
            Err(TunnResult::Err(WireGuardError::UnderLoad)) => {}
            Err(_) => return Admission::Refused,
        }
        match self.gate.verify_packet(Some(from), message, reply) {
            Ok(_) => Admission::ByCookie,
            Err(TunnResult::WriteToNetwork(cookie)) => Admission::Cookie(cookie),
            Err(_) => Admission::Refused,
        }
    }

    /// An engine for one peer; `index` is its own 24 bits of receiver indices.
    pub(crate) fn engine(
        &self,
        peer: PublicKey,
        preshared: Option<&PresharedKey>,
        index: u32,
    ) -> Box<dyn Engine> {
        Box::new(Boringtun::from(Tunn::new(
            self.private.secret().clone(),
            x25519::PublicKey::from(peer.0),
            preshared.map(|key| *key.bytes()),
            None,
            index,
            Some(Arc::clone(&self.open)),
        )))
    }
}

struct Boringtun {
    tunn: Tunn,
    /// The peer has shown that it has a session, too. Until then the eighth answer of ours would pass for one: it takes the
    /// place where `tunn` looks for the current session.
    confirmed: bool,
}

impl From<Tunn> for Boringtun {
    fn from(tunn: Tunn) -> Self {
        Self { tunn, confirmed: false }
    }
}

impl Engine for Boringtun {
    #[inline]
    fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Sealed {
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) if message.first() == Some(&DATA) => {
                Sealed::Message(message.len())
            }
            TunnResult::WriteToNetwork(message) => Sealed::Initiation(message.len()),
            _ => Sealed::Waiting,
        }
    }

    #[inline]
    fn open(&mut self, message: &[u8], out: &mut [u8]) -> Opened {
        match self.tunn.decapsulate(None, message, out) {
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                self.confirmed = true;
                Opened::Packet(packet.len())
            }
            TunnResult::WriteToNetwork(answer) => {
                self.confirmed |= message.first() == Some(&RESPONSE);
                Opened::Answer(answer.len())
            }
            TunnResult::Done if message.first() == Some(&DATA) => {
                self.confirmed = true;
                Opened::Keepalive
            }
            TunnResult::Done => Opened::Nothing,
            TunnResult::Err(error) => Opened::Refused(reason(&error)),
        }
    }

    fn next_waiting(&mut self, out: &mut [u8]) -> Option<usize> {
        written(&self.tunn.decapsulate(None, &[], out))
    }

    fn initiate(&mut self, out: &mut [u8]) -> Option<usize> {
        written(&self.tunn.format_handshake_initiation(out, false))
    }

    fn tick(&mut self, out: &mut [u8]) -> Option<usize> {
        let written = written(&self.tunn.update_timers(out));
        self.confirmed &= self.tunn.time_since_last_handshake().is_some();
        written
    }

    fn established(&self) -> bool {
        self.confirmed && self.tunn.time_since_last_handshake().is_some()
    }

    fn gave_up(&self) -> bool {
        self.tunn.is_expired()
    }
}

fn written(result: &TunnResult<'_>) -> Option<usize> {
    match result {
        TunnResult::WriteToNetwork(message) => Some(message.len()),
        _ => None,
    }
}

fn reason(error: &WireGuardError) -> Reason {
    match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => Reason::Replayed,
        WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => Reason::NoSession,
        WireGuardError::InvalidPacket => Reason::Malformed,
        WireGuardError::WrongTai64nTimestamp => Reason::OldHandshake,
        _ => Reason::NotAuthentic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_message_is_taken_once_within_the_window_and_refused_beyond() {
        // What boringtun remembers, in messages.
        const WINDOW: usize = 1024;
        let [left, right] =
            ["01", "02"].map(|hex| Identity::new(PrivateKey::parse(&hex.repeat(32)).flatten().unwrap(), 100));
        let mut sender = left.engine(right.public, None, 1);
        let mut receiver = right.engine(left.public, None, 2);
        let (mut one, mut two) = ([0; 256], [0; 256]);
        let length = sender.initiate(&mut one).unwrap();
        let Opened::Answer(length) = receiver.open(&one[..length], &mut two) else { panic!("a response") };
        let Opened::Answer(length) = sender.open(&two[..length], &mut one) else { panic!("a keepalive") };
        assert!(matches!(receiver.open(&one[..length], &mut two), Opened::Keepalive));
        let mut packet = [0; 32];
        packet[0] = 0x45;
        packet[3] = 32;
        let messages: Vec<Vec<u8>> = (0..=WINDOW)
            .map(|_| {
                let Sealed::Message(length) = sender.seal(&packet, &mut one) else { panic!("a session") };
                one[..length].to_vec()
            })
            .collect();
        let mut open = |message: &[u8]| receiver.open(message, &mut two);
        let (last, before) = messages.split_last().unwrap();
        assert!(matches!(open(last), Opened::Packet(32)), "first of all");
        for late in before[1..].iter().rev() {
            assert!(matches!(open(late), Opened::Packet(32)), "late, and for the first time");
            assert!(matches!(open(late), Opened::Refused(Reason::Replayed)), "once more");
        }
        assert!(matches!(open(&before[0]), Opened::Refused(Reason::Replayed)), "too late to tell");
        assert!(matches!(open(last), Opened::Refused(Reason::Replayed)));
    }

    #[test]
    fn a_cookie_is_looked_at_under_load_only() {
        let [own, theirs] =
            ["01", "02"].map(|hex| Identity::new(PrivateKey::parse(&hex.repeat(32)).flatten().unwrap(), 1));
        let from: IpAddr = [192, 0, 2, 1].into();
        let mut engine = Boringtun::from(Tunn::new(
            theirs.private.secret().clone(),
            x25519::PublicKey::from(own.public.0),
            None,
            None,
            1,
            None,
        ));
        let (mut message, mut reply) = ([0; LEAST_ROOM], [0; LEAST_ROOM]);
        engine.initiate(&mut message).unwrap();
        let mut forged = message;
        forged[LEAST_ROOM - 16..].fill(7);
        assert_eq!(own.admit(from, &forged, &mut reply), Admission::Granted, "anybody can write one");
        assert!(matches!(own.admit(from, &forged, &mut reply), Admission::Cookie(_)));
        let Admission::Cookie(cookie) = own.admit(from, &message, &mut reply) else {
            panic!("there is load")
        };
        assert!(matches!(engine.open(cookie, &mut [0; LEAST_ROOM]), Opened::Nothing));
        let TunnResult::WriteToNetwork(_) = engine.tunn.format_handshake_initiation(&mut message, true)
        else {
            panic!("again")
        };
        assert_eq!(own.admit(from, &message, &mut reply), Admission::ByCookie);
        assert!(matches!(own.admit([192, 0, 2, 2].into(), &message, &mut reply), Admission::Cookie(_)));
    }
}
