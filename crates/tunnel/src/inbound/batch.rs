//! Messages of one sender: told apart, opened, answered.

use std::net::IpAddr;
use std::sync::MutexGuard;
use std::time::Instant;

use crate::device::{Device, Table};
use crate::inbound::inbox::{Inbox, Sink};
use crate::metrics::Reason;
use crate::net::Socket;
use crate::net::endpoint::Endpoint;
use crate::net::outbox::Outbox;
use crate::noise::{self, Admission, Opened};
use crate::packet::ip;
use crate::peer::State;

/// The messages of one datagram or train.
pub(super) struct Batch<'a> {
    pub(super) device: &'a Device,
    pub(super) table: &'a Table,
    pub(super) socket: &'a Socket,
    pub(super) from: Endpoint,
    pub(super) ecn: u8,
    /// Upper receiver index of the peer whose lock is held, and the lock.
    pub(super) held: Option<(u32, MutexGuard<'a, State>)>,
    /// The source that was last found to be that peer's own.
    pub(super) last_source: Option<IpAddr>,
    pub(super) now: Instant,
}

impl Batch<'_> {
    #[inline]
    pub(super) fn message<S: Sink>(&mut self, message: &[u8], inbox: &mut Inbox<S>, outbox: &mut Outbox) {
        let refused = match message {
            [noise::DATA, 0, 0, 0, rest @ ..] if message.len() >= noise::OVERHEAD => {
                self.data(message, rest, inbox, outbox)
            }
            [kind, 0, 0, 0, ..] if noise::handshake_length(*kind) == Some(message.len()) => {
                self.held = None;
                self.handshake(message, outbox)
            }
            _ => Err(Reason::NotWireGuard),
        };
        if let Err(reason) = refused {
            self.device.metrics.drop(reason, 1);
        }
    }

    #[inline]
    fn data<S: Sink>(
        &mut self,
        message: &[u8],
        rest: &[u8],
        inbox: &mut Inbox<S>,
        outbox: &mut Outbox,
    ) -> Result<(), Reason> {
        let index = rest.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if self.held.as_ref().is_none_or(|(held, _)| *held != index >> 8) {
            self.held = None;
            self.last_source = None;
            let peer = self.table.receiver(index).ok_or(Reason::UnknownIndex)?;
            self.held = Some((peer.index, peer.lock()));
        }
        let Some((peer, state)) = &mut self.held else { return Err(Reason::UnknownIndex) };
        let handshakes = state.handshakes;
        let room = inbox.room(message.len());
        let opened = state.open(message, index, self.from, self.now, room);
        let waiting = state.handshakes != handshakes;
        let accepted = match opened {
            Opened::Packet(length) => {
                let packet = &mut room[..length];
                let own = own_source(packet, *peer, self.table, &mut self.last_source);
                if own.is_ok() {
                    state.rx_packets += 1;
                    if self.ecn == 3 {
                        ip::mark_congestion(packet);
                    }
                    inbox.push(length);
                }
                own
            }
            Opened::Refused(reason) => Err(reason),
            _ => Ok(()),
        };
        if waiting {
            // A session has just become usable: what waited for it goes before anything newer.
            self.device.metrics.handshakes.add(1);
            state.send_waiting(outbox, &self.device.metrics);
            self.held = None;
            self.send(index, outbox);
        }
        accepted
    }

    /// Sends the outbox, and what waited for a session of the peer with this receiver index and found no room there.
    fn send(&self, index: u32, outbox: &mut Outbox) {
        while outbox.full() {
            self.device.send_by(outbox, self.table, Some(self.socket));
            if let Some(peer) = self.table.receiver(index) {
                peer.lock().send_waiting(outbox, &self.device.metrics);
            }
        }
        self.device.send_by(outbox, self.table, Some(self.socket));
    }

    fn handshake(&mut self, message: &[u8], outbox: &mut Outbox) -> Result<(), Reason> {
        let identity = self.table.identity.as_ref().ok_or(Reason::NoKey)?;
        let kind = message[0];
        if kind != noise::COOKIE {
            let mut reply = [0; noise::LEAST_ROOM];
            let ip = self.from.address.ip();
            match identity.admit(ip, message, &mut reply) {
                Admission::Granted => {}
                Admission::ByCookie if self.device.admit(ip, self.now) => {
                    self.device.metrics.handshakes_by_cookie.add(1);
                }
                Admission::ByCookie => return Err(Reason::RateLimited),
                Admission::Cookie(cookie) => {
                    let length = cookie.len();
                    outbox.room()[..length].copy_from_slice(cookie);
                    outbox.push(&self.from, 0, length, true);
                    self.device.metrics.cookies_sent.add(1);
                    self.device.send_by(outbox, self.table, Some(self.socket));
                    return Err(Reason::UnderLoad);
                }
                Admission::Refused => return Err(Reason::UnknownPeer),
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
        self.send(peer.index << 8, outbox);
        match opened {
            Opened::Refused(reason) => Err(reason),
            _ => Ok(()),
        }
    }
}

/// Whether a packet's source is the peer's own; `last` is the one that was last found to be.
#[inline]
fn own_source(packet: &[u8], peer: u32, table: &Table, last: &mut Option<IpAddr>) -> Result<(), Reason> {
    let source = ip::source(packet).ok_or(Reason::Malformed)?;
    if *last != Some(source) {
        if table.route(source).is_none_or(|owner| owner.index != peer) {
            return Err(Reason::SourceNotAllowed);
        }
        *last = Some(source);
    }
    Ok(())
}
