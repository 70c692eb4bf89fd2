//! Opened packets on their way to the TUN device: joined, and written a frame at a time.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::device::Device;
use crate::metrics::Reason;
use crate::packet::coalesce::{Abilities, Coalescer, MAX_PACKETS};
use crate::packet::vnet::{Gso, Header};
use crate::tun::Tun;

/// Where frames go.
pub(crate) trait Sink {
    /// Takes one frame; the first piece is the virtio header if there is one.
    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Whether there is a virtio header, and joined packets of TCP and of UDP may follow it.
    fn takes(&self) -> (bool, Abilities);
}

impl Sink for Tun {
    #[inline]
    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write(pieces)
    }

    fn takes(&self) -> (bool, Abilities) {
        (self.vnet, Abilities { tcp: self.tso, udp: self.uso })
    }
}

/// Bytes after which packets are written: four of the longest trains, as only the last frame of a batch is short.
const BUFFER: usize = 256 << 10;
/// Packets of a batch that are expected; more cost an allocation, once.
const PACKETS: usize = 2048;

/// One buffer of opened packets and the frames they form.
pub(crate) struct Inbox<S = Tun> {
    device: Arc<Device>,
    sink: Arc<S>,
    /// A virtio header stands before each frame.
    vnet: bool,
    buffer: Box<[u8]>,
    used: usize,
    /// What is joined.
    abilities: Abilities,
    frames: Coalescer,
}

impl<S: Sink> Inbox<S> {
    pub(crate) fn new(device: Arc<Device>, sink: Arc<S>) -> Self {
        let (vnet, abilities) = sink.takes();
        let abilities = Abilities {
            tcp: vnet && abilities.tcp && device.joins.tcp.load(Ordering::Relaxed),
            udp: vnet && abilities.udp && device.joins.udp.load(Ordering::Relaxed),
        };
        let frames = Coalescer::new(abilities, PACKETS);
        Self { device, sink, vnet, buffer: vec![0; BUFFER].into(), used: 0, abilities, frames }
    }

    /// Whether a train of so many bytes can be opened.
    pub(crate) fn has_room(&self, train: usize) -> bool {
        self.buffer.len() - self.used >= train
    }

    /// Room to open a message of so many bytes.
    #[inline]
    pub(crate) fn room(&mut self, message: usize) -> &mut [u8] {
        &mut self.buffer[self.used..][..message]
    }

    /// Takes the packet of `length` bytes that was opened into [`room`](Self::room).
    #[inline]
    pub(crate) fn push(&mut self, length: usize) {
        self.frames.push(&self.buffer, self.used, length);
        self.used += length;
    }

    /// Writes everything and is empty afterwards.
    pub(crate) fn write(&mut self) {
        for frame in 0..self.frames.len() {
            self.write_frame(frame);
        }
        self.frames.clear();
        self.used = 0;
    }

    fn write_frame(&mut self, frame: usize) {
        let packets = self.frames.packets(frame);
        self.device.metrics.write_sizes.add(packets);
        let header = self.frames.finish(frame, &mut self.buffer);
        let gso = header.gso;
        let header = header.bytes();
        let mut pieces = [IoSlice::new(&[]); MAX_PACKETS + 1];
        let mut count = 0;
        if self.vnet {
            pieces[0] = IoSlice::new(&header);
            count = 1;
        }
        for (start, length) in self.frames.pieces(frame) {
            pieces[count] = IoSlice::new(&self.buffer[start..start + length]);
            count += 1;
        }
        let Err(error) = self.sink.write(&pieces[..count]) else { return };
        if packets == 1 || error.raw_os_error() != Some(libc::EINVAL) {
            return self.failed(&error, packets);
        }
        self.give_up(gso, &error);
        let plain = Header::PLAIN.bytes();
        let whole = self.frames.separate(frame, &mut self.buffer);
        for (start, length) in whole {
            let packet = IoSlice::new(&self.buffer[start..start + length]);
            if let Err(error) = self.sink.write(&[IoSlice::new(&plain), packet]) {
                self.failed(&error, 1);
            }
        }
    }

    /// Joins no more of a kind; some kernels (6.1, 6.6, 6.10 for a while) refuse what others take.
    fn give_up(&mut self, gso: Gso, error: &io::Error) {
        let (able, joins, kind) = match gso {
            Gso::Udp => (&mut self.abilities.udp, &self.device.joins.udp, "UDP"),
            _ => (&mut self.abilities.tcp, &self.device.joins.tcp, "TCP"),
        };
        // More frames of the batch may have been joined before.
        if std::mem::take(able) {
            tracing::warn!(%error, kind, "the TUN device refuses joined packets: one at a time from now on");
            self.device.metrics.fallbacks.add(1);
            joins.store(false, Ordering::Relaxed);
            self.frames.set_abilities(self.abilities);
        }
    }

    fn failed(&self, error: &io::Error, packets: usize) {
        tracing::debug!(%error, packets, "packets could not be written to the TUN device");
        self.device.metrics.drop(Reason::WriteFailed, packets as u64);
    }
}

#[cfg(test)]
mod tests;
