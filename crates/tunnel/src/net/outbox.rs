//! Messages to send: written one after the other into one buffer, sent as trains.

use std::io;
use std::net::SocketAddr;

use super::Socket;
use super::control::Builder;
use super::endpoint::{Endpoint, Name};
use crate::metrics::{Metrics, Reason};
use crate::noise::{LEAST_ROOM, OVERHEAD};
use crate::packet::segment::SLACK;
use crate::sys::{CONTROL, Control, Outgoing, SendRing};

/// Most messages of a train: UDP_MAX_SEGMENTS of every kernel that has UDP_SEGMENT.
const MAX_TRAIN: usize = 64;
/// Most payload of one UDP datagram over IPv4, trains included.
const MAX_DATAGRAM: usize = 65_507;
/// Datagrams of one `sendmmsg`.
const SLOTS: usize = 64;
/// Room a message may need: the largest packet, padded, and what sealing adds.
const ROOM: usize = 65_535 + SLACK + OVERHEAD;

/// A train: messages of one size (the last may be shorter) to one endpoint.
struct Train {
    endpoint: Endpoint,
    ecn: u8,
    start: usize,
    end: usize,
    size: usize,
    messages: usize,
    /// Sent as a train; else one by one.
    together: bool,
}

/// Collects sealed messages; see the module.
pub(crate) struct Outbox {
    buffer: Box<[u8]>,
    used: usize,
    /// Bytes that [`send`](Self::send) saw, of which some may be left.
    offered: usize,
    trains: Vec<Train>,
    /// Trains that are done with.
    done: usize,
    ring: SendRing,
    controls: Box<[Control]>,
}

/// What the peer of a failed train should know.
pub(crate) struct Failure {
    pub(crate) address: SocketAddr,
    pub(crate) kind: FailureKind,
}

/// What a failure says about the peer's endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FailureKind {
    /// The source address is no longer ours.
    Source,
    /// Trains do not fit the path.
    Train,
}

impl Outbox {
    /// `size`: bytes above which the owner should [`send`](Self::send).
    pub(crate) fn new(size: usize) -> Self {
        Self {
            buffer: vec![0; size + ROOM].into(),
            used: 0,
            offered: 0,
            trains: Vec::with_capacity(2 * SLOTS),
            done: 0,
            ring: SendRing::new(SLOTS),
            controls: vec![Control([0; CONTROL]); SLOTS].into(),
        }
    }

    /// Whether there is no room for a further message.
    #[inline]
    pub(crate) fn full(&self) -> bool {
        self.buffer.len() - self.used < ROOM
    }

    /// Room for the next message; at least [`LEAST_ROOM`] and enough for any packet unless [`full`](Self::full).
    #[inline]
    pub(crate) fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.buffer.len() - self.used >= LEAST_ROOM, "sent before it was full");
        &mut self.buffer[self.used..]
    }

    /// Takes the `length` bytes that were written into [`room`](Self::room).
    #[inline]
    pub(crate) fn push(&mut self, endpoint: &Endpoint, ecn: u8, length: usize, together: bool) {
        let start = self.used;
        self.used += length;
        if let Some(train) = self.trains.last_mut() {
            let whole = (train.end - train.start) == train.messages * train.size;
            if together
                && train.together
                && whole
                && length <= train.size
                && train.messages < MAX_TRAIN
                && self.used - train.start <= MAX_DATAGRAM
                && train.ecn == ecn
                && train.endpoint == *endpoint
            {
                train.end = self.used;
                train.messages += 1;
                return;
            }
        }
        self.trains.push(Train {
            endpoint: *endpoint,
            ecn,
            start,
            end: self.used,
            size: length,
            messages: 1,
            together,
        });
    }

    /// Bytes of messages that were not yet offered to a socket.
    pub(crate) fn fresh(&self) -> usize {
        self.used - self.offered
    }

    /// Whether all was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    /// Sends everything, or as much as the socket's buffer takes: the rest is for the next time. What cannot be sent is
    /// lost, counted, and told to `failed` where the sender can do better next time.
    pub(crate) fn send(
        &mut self,
        socket: Option<&Socket>,
        metrics: &Metrics,
        mut failed: impl FnMut(Failure),
    ) {
        let Some(socket) = socket else { return self.drop_rest(Reason::NoSocket, metrics) };
        self.offered = self.used;
        while self.done < self.trains.len() {
            let Some(done) = self.send_some(self.done, socket, metrics, &mut failed) else { return };
            self.done += done;
        }
        self.clear();
    }

    /// Is empty afterwards; what had not been sent is lost.
    pub(crate) fn drop_rest(&mut self, reason: Reason, metrics: &Metrics) {
        let rest: usize = self.trains[self.done..].iter().map(|train| train.messages).sum();
        metrics.drop(reason, rest as u64);
        self.clear();
    }

    fn clear(&mut self) {
        self.trains.clear();
        self.done = 0;
        self.used = 0;
        self.offered = 0;
    }

    /// Sends trains from `first` on; returns how many are done with. None: the socket's buffer is full.
    fn send_some(
        &mut self,
        first: usize,
        socket: &Socket,
        metrics: &Metrics,
        failed: &mut impl FnMut(Failure),
    ) -> Option<usize> {
        let trains = &self.trains[first..];
        let single = |train: &Train| train.messages == 1 || (socket.segmentation && train.together);
        if !single(&trains[0]) {
            return self.send_singly(first, socket, metrics, failed);
        }
        let refused =
            |train: &Train| if train.messages > 1 { socket.refuses(train.endpoint.address) } else { None };
        if let Some(error) = refused(&trains[0]) {
            return Some(self.recover(first, &error, metrics, failed));
        }
        let taken = |train: &&Train| single(train) && refused(train).is_none();
        let count = trains.iter().take(SLOTS).take_while(taken).count();
        let trains = &trains[..count];
        let mut names = [const { None }; SLOTS];
        let mut lengths = [0; SLOTS];
        for (index, train) in trains.iter().enumerate() {
            names[index] = Name::new(train.endpoint.address, socket.dual);
            lengths[index] = train.control(&mut self.controls[index]);
        }
        // IPv6 where there is none: such a train ends the batch and, alone, fails.
        let reachable = names[..count].iter().take_while(|name| name.is_some()).count();
        if reachable == 0 {
            metrics.drop(Reason::SendFailed, trains[0].messages as u64);
            return Some(1);
        }
        let datagrams = trains[..reachable].iter().enumerate().filter_map(|(index, train)| {
            Some(Outgoing {
                name: names[index].as_ref()?.bytes(),
                control: &self.controls[index].0[..lengths[index]],
                data: &self.buffer[train.start..train.end],
            })
        });
        metrics.send_calls.add(1);
        match self.ring.send(socket.fd(), datagrams) {
            Ok(sent) => {
                for train in &trains[..sent] {
                    metrics.sent(train.messages, train.messages, train.end - train.start);
                }
                Some(sent.max(1))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(self.recover(first, &error, metrics, failed)),
        }
    }

    /// Train `first` was refused; returns how many trains are done with.
    fn recover(
        &mut self,
        first: usize,
        error: &io::Error,
        metrics: &Metrics,
        failed: &mut impl FnMut(Failure),
    ) -> usize {
        let train = &self.trains[first];
        let address = train.endpoint.address;
        match error.raw_os_error() {
            Some(libc::EINTR) => return 0,
            // This path takes no trains: a device on it cannot finish their checksums, or they are to be transformed (EIO); or
            // its MTU is smaller than a message, and fragments cannot be made of a train (EMSGSIZE). Older kernels say EINVAL
            // then, so this is tried before the source is blamed.
            Some(libc::EIO | libc::EMSGSIZE | libc::EINVAL) if train.messages > 1 => {
                tracing::debug!(%error, endpoint = %address, "no datagram trains on this path for a while");
                for train in self.trains[first..].iter_mut().filter(|train| train.endpoint.address == address)
                {
                    train.together = false;
                }
                metrics.fallbacks.add(1);
                failed(Failure { address, kind: FailureKind::Train });
                return 0;
            }
            Some(code) if self.let_go_of_source(first, code, failed) => return 0,
            _ => {}
        }
        let train = &self.trains[first];
        tracing::debug!(%error, endpoint = %address, "a datagram was not sent");
        metrics.drop(Reason::SendFailed, train.messages as u64);
        1
    }

    /// Whether `code` speaks of the source of train `first`, which that and those after it go without from now on.
    fn let_go_of_source(&mut self, first: usize, code: i32, failed: &mut impl FnMut(Failure)) -> bool {
        let Endpoint { address, source } = self.trains[first].endpoint;
        let speaks =
            matches!(code, libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH);
        if !speaks || source.is_none() {
            return false;
        }
        for train in self.trains[first..].iter_mut().filter(|train| train.endpoint.address == address) {
            train.endpoint.source = None;
        }
        failed(Failure { address, kind: FailureKind::Source });
        true
    }

    /// Sends messages of train `index` each for itself; returns 1 when it is done with, else 0. None: the socket's buffer is
    /// full.
    fn send_singly(
        &mut self,
        index: usize,
        socket: &Socket,
        metrics: &Metrics,
        failed: &mut impl FnMut(Failure),
    ) -> Option<usize> {
        let train = &self.trains[index];
        let address = train.endpoint.address;
        let Some(name) = Name::new(address, socket.dual) else {
            metrics.drop(Reason::SendFailed, train.messages as u64);
            return Some(1);
        };
        let control = &mut self.controls[0];
        let length = Train { messages: 1, ..*train }.control(control);
        let datagrams = self.buffer[train.start..train.end].chunks(train.size).map(|data| Outgoing {
            name: name.bytes(),
            control: &control.0[..length],
            data,
        });
        metrics.send_calls.add(1);
        let done = match self.ring.send(socket.fd(), datagrams) {
            Ok(sent) => {
                let bytes = (sent * train.size).min(train.end - train.start);
                metrics.sent(sent, 1, bytes);
                sent
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => 0,
                Some(code) if self.let_go_of_source(index, code, failed) => 0,
                _ => {
                    tracing::debug!(%error, endpoint = %address, "a datagram was not sent");
                    metrics.drop(Reason::SendFailed, 1);
                    1
                }
            },
        };
        let train = &mut self.trains[index];
        train.start = (train.start + done * train.size).min(train.end);
        train.messages -= done;
        Some(usize::from(train.messages == 0))
    }
}

impl Train {
    fn control(&self, control: &mut Control) -> usize {
        let mut builder = Builder::new(&mut control.0);
        let v4 = self.endpoint.address.is_ipv4();
        if self.messages > 1 {
            builder.segment(self.size as u16);
        }
        if self.ecn != 0 {
            builder.ecn(v4, self.ecn);
        }
        if let Some(source) = self.endpoint.source {
            builder.source(source);
        }
        builder.len()
    }
}

#[cfg(test)]
mod tests;
