//! Opened packets on their way to the TUN device: joined, and written a frame at a time.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::device::Device;
use crate::metrics::Reason;
use crate::packet::coalesce::{Abilities, Coalescer, MAX_PACKETS};
use crate::packet::vnet::{self, Header};
use crate::tun::Tun;

/// Bytes after which packets are written.
const BUFFER: usize = 128 << 10;
/// Packets of a batch that are expected; more cost an allocation, once.
const PACKETS: usize = 2048;

/// One buffer of opened packets and the frames they form.
pub(super) struct Inbox {
    device: Arc<Device>,
    tun: Arc<Tun>,
    buffer: Box<[u8]>,
    used: usize,
    frames: Coalescer,
}

impl Inbox {
    pub(super) fn new(device: Arc<Device>, tun: Arc<Tun>) -> Self {
        let frames = Coalescer::new(abilities(&device, &tun), PACKETS);
        Self { device, tun, buffer: vec![0; BUFFER].into(), used: 0, frames }
    }

    /// Whether a train of so many bytes can be opened.
    pub(super) fn has_room(&self, train: usize) -> bool {
        self.buffer.len() - self.used >= train
    }

    /// Room to open a message of so many bytes.
    #[inline]
    pub(super) fn room(&mut self, message: usize) -> &mut [u8] {
        &mut self.buffer[self.used..][..message]
    }

    /// Takes the packet of `length` bytes that was opened into [`room`](Self::room).
    #[inline]
    pub(super) fn push(&mut self, length: usize) {
        self.frames.push(&self.buffer, self.used, length);
        self.used += length;
    }

    /// Writes everything and is empty afterwards.
    pub(super) fn write(&mut self) {
        for frame in 0..self.frames.len() {
            self.write_frame(frame);
        }
        self.frames.clear();
        self.used = 0;
    }

    fn write_frame(&mut self, frame: usize) {
        let packets = self.frames.packets(frame);
        self.device.metrics.write_sizes.add(packets);
        let header = self.frames.finish(frame, &mut self.buffer).bytes();
        let mut pieces = [IoSlice::new(&[]); MAX_PACKETS + 1];
        let mut count = 0;
        if self.tun.vnet {
            pieces[0] = IoSlice::new(&header);
            count = 1;
        }
        for (start, length) in self.frames.pieces(frame) {
            pieces[count] = IoSlice::new(&self.buffer[start..start + length]);
            count += 1;
        }
        let Err(error) = self.tun.write(&pieces[..count]) else { return };
        if packets == 1 || error.raw_os_error() != Some(libc::EINVAL) {
            return self.failed(&error, packets);
        }
        // Some kernels (6.1, 6.6, 6.10 for a while) refuse joined frames that others take.
        tracing::warn!(%error, "the TUN device refuses joined packets: one at a time from now on");
        self.device.metrics.fallbacks.add(1);
        self.device.gso_writes.store(false, Ordering::Relaxed);
        self.frames.set_abilities(abilities(&self.device, &self.tun));
        let plain = Header::PLAIN.bytes();
        let whole = self.frames.separate(frame, &mut self.buffer);
        for (start, length) in whole {
            let packet = IoSlice::new(&self.buffer[start..start + length]);
            if let Err(error) = self.tun.write(&[IoSlice::new(&plain), packet]) {
                self.failed(&error, 1);
            }
        }
    }

    fn failed(&self, error: &io::Error, packets: usize) {
        tracing::debug!(%error, packets, "not written to the TUN device");
        self.device.metrics.drop(Reason::WriteFailed, packets as u64);
    }
}

fn abilities(device: &Device, tun: &Tun) -> Abilities {
    let able = tun.vnet && device.gso_writes.load(Ordering::Relaxed);
    debug_assert!(!able || tun.offset() == vnet::LEN, "joined packets need a header that says so");
    Abilities { tcp: able && tun.tso, udp: able && tun.uso }
}
