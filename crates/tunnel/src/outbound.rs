//! From the TUN device to the network: read, cut, seal, send.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use crate::device::Device;
use crate::error::Error;
use crate::metrics::Reason;
use crate::net::Socket;
use crate::net::outbox::Outbox;
use crate::packet::segment::{self, SLACK};
use crate::packet::{ip, vnet};
use crate::peer::{Peer, State};
use crate::tun::Tun;

/// Bytes read before they are sealed: uncut frames enough that each of some peers has several, which arrive together.
const BATCH: usize = 384 << 10;
/// Room one read may need: header, packet, padding.
const FRAME: usize = vnet::LEN + 65_535 + SLACK;
/// Most frames of a batch.
const FRAMES: usize = 256;
/// Sealed bytes after which is sent, so that the other end works while the rest of a batch is sealed.
const SHARE: usize = 128 << 10;
/// Sealed bytes that can wait: what a batch of uncut frames becomes, a tenth more at the smallest MTU of IPv6.
const OUTBOX: usize = (BATCH + FRAME) / 10 * 11;

/// A worker's own: buffers and what it last looked up.
pub(crate) struct Outbound {
    device: Arc<Device>,
    tun: Arc<Tun>,
    buffer: Box<[u8]>,
    frames: Vec<Frame>,
    outbox: Outbox,
}

/// A frame in the buffer.
#[derive(Clone, Copy)]
struct Frame {
    start: usize,
    length: usize,
    header: vnet::Header,
    destination: IpAddr,
}

impl Outbound {
    pub(crate) fn new(device: Arc<Device>, tun: Arc<Tun>) -> Self {
        Self {
            device,
            tun,
            buffer: vec![0; BATCH + FRAME].into(),
            frames: Vec::with_capacity(FRAMES),
            outbox: Outbox::new(OUTBOX),
        }
    }

    /// Whether a batch waits for room in the socket's buffer; meanwhile the device's queue is left to fill and to drop.
    pub(crate) fn is_stuck(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends one batch of what is there; returns at once where there is nothing, and where the last one is stuck.
    ///
    /// # Errors
    ///
    /// The device cannot be read, as when it is gone.
    pub(crate) fn turn(&mut self, socket: Option<&Socket>) -> Result<(), Error> {
        if self.is_stuck() {
            self.device.send_some(&mut self.outbox, &self.device.table(), socket);
            return Ok(());
        }
        self.read()?;
        if !self.frames.is_empty() {
            self.seal(socket);
        }
        Ok(())
    }

    /// Fills the buffer with what is there.
    fn read(&mut self) -> Result<(), Error> {
        self.frames.clear();
        let offset = self.tun.offset();
        let mut used = 0;
        for _ in 0..FRAMES {
            if used >= BATCH {
                break;
            }
            let room = &mut self.buffer[used..][..FRAME - SLACK];
            let length = match self.tun.read(room) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::system("read of the TUN device")(error)),
            };
            self.device.metrics.tun_reads.add(1);
            let header = if self.tun.vnet {
                room.first_chunk().and_then(vnet::Header::parse)
            } else {
                Some(vnet::Header::PLAIN)
            };
            let destination = room.get(offset..length).and_then(ip::destination);
            let (Some(header), Some(destination)) = (header, destination) else {
                self.device.metrics.drop(Reason::Malformed, 1);
                continue;
            };
            self.frames.push(Frame { start: used + offset, length: length - offset, header, destination });
            used += length + SLACK;
            if header.gso != vnet::Gso::None {
                self.device.metrics.tun_read_gso.add(1);
            }
        }
        Ok(())
    }

    /// Seals the frames of the buffer and sends them.
    fn seal(&mut self, socket: Option<&Socket>) {
        let Self { device, frames, buffer, outbox, .. } = self;
        let metrics = &device.metrics;
        let mtu = device.mtu.load(Ordering::Relaxed);
        let table = device.table();
        let now = Instant::now();
        // The peer of the last packet, held until the next is another's.
        let mut last: Option<(IpAddr, &Arc<Peer>)> = None;
        let mut held: Option<(u32, MutexGuard<'_, State>)> = None;
        // A peer's prefixes are mostly neighbours: what is its own comes together, and so makes long trains. Each destination's
        // packets keep their order.
        frames.sort_unstable_by_key(|frame| (frame.destination, frame.start));
        for &Frame { start, length, header, destination } in frames.iter() {
            // What the socket's buffer did not take is not offered again with every frame.
            if outbox.fresh() >= SHARE {
                held = None;
                device.send_some(outbox, &table, socket);
            }
            let buffer = &mut buffer[start..start + length + SLACK];
            if last.is_none_or(|(address, _)| address != destination) {
                last = table.route(destination).map(|peer| (destination, peer));
            }
            let Some((_, peer)) = last else {
                metrics.drop(Reason::NoPeer, 1);
                continue;
            };
            if held.as_ref().is_none_or(|(index, _)| *index != peer.index) {
                drop(held.take());
                let mut state = peer.lock();
                state.touched(now);
                held = Some((peer.index, state));
            }
            let result = segment::segment(buffer, length, &header, mtu, |packet| {
                if outbox.full() {
                    drop(held.take());
                    device.send_by(outbox, &table, socket);
                }
                let (_, state) = held.get_or_insert_with(|| (peer.index, peer.lock()));
                state.seal(packet, outbox, metrics);
            });
            if result.is_err() {
                metrics.drop(Reason::Malformed, 1);
            }
        }
        drop(held);
        device.send_some(outbox, &table, socket);
    }
}
