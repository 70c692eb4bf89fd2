//! From the network to the TUN device: receive, open, join, write.

mod inbox;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use crate::device::{Device, Table};
use crate::inbound::inbox::Inbox;
use crate::limit::Limiter;
use crate::metrics::Reason;
use crate::net::endpoint::{self, Endpoint};
use crate::net::outbox::Outbox;
use crate::net::{Socket, control};
use crate::noise::{self, Opened};
use crate::packet::ip;
use crate::peer::State;
use crate::sys::RecvRing;
use crate::tun::Tun;

/// Datagrams of one `recvmmsg`.
const SLOTS: usize = 16;
/// Room of a slot: the largest datagram or train.
const SLOT: usize = 64 << 10;

/// Bytes of answers: a session's first are all the packets that waited for it.
const ANSWERS: usize = 512 << 10;

/// The thread's own: buffers, and what it needs to answer handshakes.
pub(crate) struct Inbound {
    device: Arc<Device>,
    thread: usize,
    ring: RecvRing,
    inbox: Inbox,
    outbox: Outbox,
    limiter: Limiter,
}

impl Inbound {
    pub(crate) fn new(device: Arc<Device>, tun: Arc<Tun>, thread: usize) -> Self {
        let inbox = Inbox::new(Arc::clone(&device), tun);
        Self {
            device,
            thread,
            ring: RecvRing::new(SLOTS, SLOT),
            inbox,
            outbox: Outbox::new(ANSWERS),
            limiter: Limiter::new(Instant::now()),
        }
    }

    /// Runs for ever; sockets come and go with the state of the device.
    pub(crate) fn run(mut self) {
        let mut socket = self.device.wait_socket(self.thread);
        loop {
            match self.ring.receive(socket.fd()) {
                Ok(count) => self.take(count, &socket),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "receive");
                }
            }
            let current = self.device.sockets();
            if !current.get(self.thread).is_some_and(|now| Arc::ptr_eq(now, &socket)) {
                // Let go of it first: the port is free only when nobody holds it.
                drop((socket, current));
                socket = self.device.wait_socket(self.thread);
            }
        }
    }

    fn take(&mut self, count: usize, socket: &Socket) {
        let device = Arc::clone(&self.device);
        let table = device.table();
        device.metrics.receive_calls.add(1);
        for slot in 0..count {
            let incoming = self.ring.incoming(slot);
            let Some(address) = endpoint::parse_name(incoming.name) else { continue };
            let received = control::parse(incoming.control);
            let from = Endpoint { address, source: received.local };
            device.metrics.received_bytes.add(incoming.data.len() as u64);
            if incoming.data.is_empty() || incoming.truncated {
                device.metrics.drop(Reason::NotWireGuard, 1);
                continue;
            }
            if !self.inbox.has_room(incoming.data.len()) {
                self.inbox.write();
            }
            let size = received.segment.unwrap_or(incoming.data.len());
            let mut batch = Batch {
                device: &device,
                table: &table,
                socket,
                from,
                ecn: received.ecn,
                held: None,
                last_source: None,
                now: Instant::now(),
            };
            let mut messages = 0;
            for message in incoming.data.chunks(size) {
                messages += 1;
                batch.message(message, &mut self.inbox, &mut self.outbox, &mut self.limiter);
            }
            device.metrics.received_packets.add(messages);
        }
        self.inbox.write();
    }
}

/// The messages of one datagram or train.
struct Batch<'a> {
    device: &'a Device,
    table: &'a Table,
    socket: &'a Socket,
    from: Endpoint,
    ecn: u8,
    /// Upper receiver index of the peer whose lock is held, and the lock.
    held: Option<(u32, MutexGuard<'a, State>)>,
    /// The source that was last found to be that peer's own.
    last_source: Option<IpAddr>,
    now: Instant,
}

impl Batch<'_> {
    #[inline]
    fn message(&mut self, message: &[u8], inbox: &mut Inbox, outbox: &mut Outbox, limiter: &mut Limiter) {
        let refused = match message {
            [noise::DATA, 0, 0, 0, rest @ ..] if message.len() >= noise::OVERHEAD => {
                self.data(message, rest, inbox, outbox)
            }
            [kind, 0, 0, 0, ..] if noise::handshake_length(*kind) == Some(message.len()) => {
                self.held = None;
                self.handshake(message, outbox, limiter)
            }
            _ => Err(Reason::NotWireGuard),
        };
        if let Err(reason) = refused {
            self.device.metrics.drop(reason, 1);
        }
    }

    #[inline]
    fn data(
        &mut self,
        message: &[u8],
        rest: &[u8],
        inbox: &mut Inbox,
        outbox: &mut Outbox,
    ) -> Result<(), Reason> {
        let index = rest.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if self.held.as_ref().is_none_or(|(held, _)| *held != index >> 8) {
            self.held = None;
            self.last_source = None;
            let peer = self.table.receiver(index).ok_or(Reason::UnknownIndex)?;
            let mut state = peer.lock();
            state.touched(self.now);
            self.held = Some((peer.index, state));
        }
        let Some((peer, state)) = &mut self.held else { return Err(Reason::UnknownIndex) };
        let handshakes = state.handshakes;
        let room = inbox.room(message.len());
        let opened = state.open(message, index, self.from, room);
        if state.handshakes != handshakes {
            // What waited for this session goes before anything newer.
            self.device.metrics.handshakes.add(1);
            state.send_waiting(outbox, &self.device.metrics);
        }
        let result = match opened {
            Opened::Packet(length) => {
                let packet = &mut room[..length];
                let source = ip::source(packet).ok_or(Reason::Malformed)?;
                if self.last_source != Some(source) {
                    let owner = self.table.route(source);
                    if owner.is_none_or(|owner| owner.index != *peer) {
                        self.device.metrics.drop(Reason::SourceNotAllowed, 1);
                        return Ok(());
                    }
                    self.last_source = Some(source);
                }
                state.rx_packets += 1;
                if self.ecn == 3 {
                    ip::mark_congestion(packet);
                }
                inbox.push(length);
                Ok(())
            }
            Opened::Refused(reason) => Err(reason),
            _ => Ok(()),
        };
        if !outbox.is_empty() {
            self.held = None;
            self.device.send_by(outbox, self.table, Some(self.socket));
        }
        result
    }

    fn handshake(
        &mut self,
        message: &[u8],
        outbox: &mut Outbox,
        limiter: &mut Limiter,
    ) -> Result<(), Reason> {
        let identity = self.table.identity.as_ref().ok_or(Reason::NoKey)?;
        let kind = message[0];
        if kind != noise::COOKIE {
            let mut reply = [0; noise::LEAST_ROOM];
            if let Err(cookie) = identity.admit(self.from.address.ip(), message, &mut reply) {
                let Some(cookie) = cookie else { return Err(Reason::UnknownPeer) };
                let length = cookie.len();
                outbox.room()[..length].copy_from_slice(cookie);
                outbox.push(&self.from, 0, length, true);
                self.device.metrics.cookies_sent.add(1);
                self.device.send_by(outbox, self.table, Some(self.socket));
                return Err(Reason::UnderLoad);
            }
            // A cookie is only asked for, and so only used, under load.
            let with_cookie = message[message.len() - 16..] != [0; 16];
            if with_cookie && !limiter.admit(self.from.address.ip(), self.now) {
                return Err(Reason::RateLimited);
            }
        }
        let peer = if kind == noise::INITIATION {
            let key = identity.initiator(message).ok_or(Reason::UnknownPeer)?;
            &self.table.get(&key).ok_or(Reason::UnknownPeer)?.peer
        } else {
            // A response names sender and receiver, a cookie only the receiver.
            let at = if kind == noise::RESPONSE { 8 } else { 4 };
            let index =
                message.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| u32::from_le_bytes(*bytes));
            self.table.receiver(index.ok_or(Reason::NotWireGuard)?).ok_or(Reason::UnknownIndex)?
        };
        let mut state = peer.lock();
        let opened = state.handshake(message, self.from, outbox, &self.device.metrics);
        drop(state);
        if let Opened::Answer(_) = opened {
            if kind == noise::INITIATION {
                self.device.metrics.initiations_received.add(1);
            } else {
                self.device.metrics.handshakes.add(1);
            }
        }
        self.device.send_by(outbox, self.table, Some(self.socket));
        match opened {
            Opened::Refused(reason) => Err(reason),
            _ => Ok(()),
        }
    }
}
