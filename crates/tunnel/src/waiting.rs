//! Packets that wait for a peer's session: counted, as the engine that holds them tells nothing of its queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Packets that may wait for one session, as in the kernel's WireGuard.
const PACKETS: usize = 128;
/// Bytes that may wait for the sessions of a device.
const BYTES: usize = 1 << 20;

/// What waits for one session. It counts against the device's budget until it is taken or cleared.
pub(crate) struct Waiting {
    packets: usize,
    bytes: usize,
    /// Bytes that wait for all sessions of the device.
    total: Arc<AtomicUsize>,
}

impl Waiting {
    pub(crate) fn new(total: Arc<AtomicUsize>) -> Self {
        Self { packets: 0, bytes: 0, total }
    }

    /// Whether a packet of so many bytes may wait.
    #[inline]
    pub(crate) fn has_room(&self, length: usize) -> bool {
        self.packets < PACKETS && self.total.load(Ordering::Relaxed) + length <= BYTES
    }

    pub(crate) fn add(&mut self, length: usize) {
        self.packets += 1;
        self.bytes += length;
        self.total.fetch_add(length, Ordering::Relaxed);
    }

    /// Nothing waits any more; returns how many packets did.
    pub(crate) fn clear(&mut self) -> usize {
        self.total.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
        std::mem::take(&mut self.packets)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.clear();
    }
}
