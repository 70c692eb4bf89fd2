//! From the network to the TUN device: receive, open, join, write.

mod batch;
pub(crate) mod inbox;

use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use self::batch::Batch;
use self::inbox::{Inbox, Sink};
use crate::device::{Device, Table};
use crate::metrics::Reason;
use crate::net::endpoint::{self, Endpoint};
use crate::net::outbox::Outbox;
use crate::net::{Socket, control};
use crate::sys::{Incoming, RecvRing};
use crate::tun::Tun;

/// Datagrams of one `recvmmsg`.
const SLOTS: usize = 16;
/// Room of a slot: the largest datagram or train.
const SLOT: usize = 64 << 10;

/// Bytes of answers: a session's first are all the packets that waited for it.
const ANSWERS: usize = 512 << 10;

/// A worker's own: buffers, and what it needs to answer handshakes.
pub(crate) struct Inbound {
    ring: RecvRing,
    /// Slots that hold what was received and not looked at yet.
    slots: Range<usize>,
    receiver: Receiver<Tun>,
}

/// What happens to a datagram once it is here.
pub(crate) struct Receiver<S> {
    device: Arc<Device>,
    inbox: Inbox<S>,
    outbox: Outbox,
}

impl Inbound {
    pub(crate) fn new(device: Arc<Device>, tun: Arc<Tun>) -> Self {
        Self { ring: RecvRing::new(SLOTS, SLOT), slots: 0..0, receiver: Receiver::new(device, tun) }
    }

    /// Whether there is more to do without asking the socket.
    pub(crate) fn has_more(&self) -> bool {
        !self.slots.is_empty()
    }

    /// Takes what has arrived, as far as slots go, and writes one batch of it; returns at once where there is nothing.
    pub(crate) fn turn(&mut self, socket: &Socket) {
        let device = Arc::clone(&self.receiver.device);
        if !self.has_more() {
            match self.ring.receive(socket.fd()) {
                Ok(count) => self.slots = 0..count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return tracing::debug!(%error, "receive"),
            }
            device.metrics.receive_calls.add(1);
        }
        let table = device.table();
        while self.has_more() {
            let incoming = self.ring.incoming(self.slots.start);
            if !self.receiver.inbox.has_room(incoming.data.len()) {
                break;
            }
            self.receiver.datagram(&incoming, &table, socket);
            self.slots.start += 1;
        }
        self.receiver.flush();
    }
}

impl<S: Sink> Receiver<S> {
    pub(crate) fn new(device: Arc<Device>, sink: Arc<S>) -> Self {
        Self { inbox: Inbox::new(Arc::clone(&device), sink), device, outbox: Outbox::new(ANSWERS) }
    }

    /// Takes a datagram or a train; its packets are written when there are many, or by [`flush`](Self::flush).
    pub(crate) fn datagram(&mut self, incoming: &Incoming<'_>, table: &Table, socket: &Socket) {
        let Some(address) = endpoint::parse_name(incoming.name) else { return };
        let received = control::parse(incoming.control);
        let from = Endpoint { address, source: received.local };
        self.device.metrics.received_bytes.add(incoming.data.len() as u64);
        if incoming.data.is_empty() || incoming.truncated {
            return self.device.metrics.drop(Reason::NotWireGuard, 1);
        }
        if !self.inbox.has_room(incoming.data.len()) {
            self.inbox.write();
        }
        let size = received.segment.unwrap_or(incoming.data.len());
        let mut batch = Batch {
            device: &self.device,
            table,
            socket,
            from,
            ecn: received.ecn,
            held: None,
            last_source: None,
            now: Instant::now(),
        };
        let messages = incoming.data.chunks(size);
        self.device.metrics.received_packets.add(messages.len() as u64);
        self.device.metrics.receive_sizes.add(messages.len());
        for message in messages {
            batch.message(message, &mut self.inbox, &mut self.outbox);
        }
    }

    /// Writes what was received.
    pub(crate) fn flush(&mut self) {
        self.inbox.write();
    }
}
