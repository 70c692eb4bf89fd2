//! Cutting what the kernel hands over into packets that fit the link.
//!
//! The cut needs no second buffer. Packets are handed to the caller in order, and the caller (who seals them into a buffer of
//! its own) is done with one before the next is made; so the headers of a segment are written over the tail of the segment
//! before it, right in front of their own payload.

use super::vnet::{Gso, Header};
use super::{checksum, ip};

/// Free bytes the caller keeps after every frame: room to pad the last packet.
pub const SLACK: usize = 16;
/// WireGuard pads packets to a multiple of this, so that their length tells less.
const PADDING: usize = 16;
/// Longest headers that are cut: IPv6 with extensions and TCP with options.
const MAX_HEADERS: usize = 256;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A frame that contradicts itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Cuts the frame `buffer[..length]` as `header` says and hands each packet to `sink`, padded with zeroes to a multiple of 16
/// but not above `mtu` bytes. `buffer` is longer than `length` by [`SLACK`] at least, and is scratch afterwards.
///
/// # Errors
///
/// [`Malformed`] where `header` and the frame's own fields disagree; nothing was handed out then.
pub fn segment(
    buffer: &mut [u8],
    length: usize,
    header: &Header,
    mtu: usize,
    mut sink: impl FnMut(&[u8]),
) -> Result<(), Malformed> {
    let frame = &mut buffer[..length];
    let version = ip::version(frame).ok_or(Malformed)?;
    if header.gso == Gso::None {
        if let Some((start, offset)) = header.checksum {
            finish_checksum(frame, start.into(), offset.into())?;
        }
        hand_out(buffer, 0, length, mtu, &mut sink);
        return Ok(());
    }

    let plan = Plan::new(frame, header, version)?;
    let mut headers = [0; MAX_HEADERS];
    headers[..plan.headers].copy_from_slice(&frame[..plan.headers]);
    let headers = &mut headers[..plan.headers];

    let payload = length - plan.headers;
    let count = payload.div_ceil(plan.size).max(1);
    for index in 0..count {
        let offset = index * plan.size;
        let size = plan.size.min(payload - offset);
        let start = offset;
        let end = plan.headers + offset + size;
        buffer[start..start + plan.headers].copy_from_slice(headers);
        plan.finish(&mut buffer[start..end], index, offset, index + 1 == count);
        hand_out(buffer, start, end, mtu, &mut sink);
    }
    Ok(())
}

/// What is the same for all segments of a frame.
struct Plan {
    version: u8,
    tcp: bool,
    /// Bytes of all headers.
    headers: usize,
    /// Where the transport header starts.
    transport: usize,
    /// Where the transport checksum is.
    field: usize,
    /// Payload of every segment but the last.
    size: usize,
    /// Sum of the pseudo-header without its length, from the frame's own checksum field: with a routing header the
    /// destination that counts is not the one in the IP header.
    pseudo: u64,
    sequence: u32,
    flags: u8,
    identification: u16,
    /// Sum of the IPv4 header but for its length, identification and checksum.
    unchanged: u64,
}

impl Plan {
    fn new(frame: &[u8], header: &Header, version: u8) -> Result<Self, Malformed> {
        let tcp = match (header.gso, version) {
            (Gso::Tcp4, 4) | (Gso::Tcp6, 6) => true,
            (Gso::Udp, _) => false,
            _ => return Err(Malformed),
        };
        let (start, offset) = header.checksum.ok_or(Malformed)?;
        let (transport, offset) = (usize::from(start), usize::from(offset));
        let least = if version == 4 { ip::v4_header(frame) } else { ip::V6_HEADER };
        if transport < least || offset != if tcp { 16 } else { 6 } {
            return Err(Malformed);
        }
        if transport + if tcp { 20 } else { 8 } > frame.len() {
            return Err(Malformed);
        }
        let own = if tcp { usize::from(frame[transport + 12] >> 4) * 4 } else { 8 };
        let headers = transport + own;
        if own < 8
            || (tcp && own < 20)
            || headers > frame.len()
            || headers > MAX_HEADERS
            || header.gso_size == 0
        {
            return Err(Malformed);
        }
        let field = transport + offset;
        let whole = (frame.len() - transport) as u64;
        // Adding the one's complement of the length takes it away.
        let pseudo = u64::from(ip::u16_at(frame, field)) + u64::from(!checksum::fold(whole));
        let unchanged = if version == 4 {
            [0..2, 6..10, 12..least].into_iter().fold(0, |sum, part| checksum::add(sum, &frame[part]))
        } else {
            0
        };
        Ok(Self {
            version,
            tcp,
            headers,
            transport,
            field,
            size: header.gso_size.into(),
            pseudo,
            sequence: if tcp { ip::u32_at(frame, transport + 4) } else { 0 },
            flags: if tcp { frame[transport + 13] } else { 0 },
            identification: if version == 4 { ip::u16_at(frame, 4) } else { 0 },
            unchanged,
        })
    }

    /// Makes the copied headers true for this segment.
    #[inline]
    fn finish(&self, packet: &mut [u8], index: usize, offset: usize, last: bool) {
        let length = packet.len();
        if self.version == 4 {
            let identification = self.identification.wrapping_add(index as u16);
            ip::set_u16(packet, 2, length as u16);
            ip::set_u16(packet, 4, identification);
            let sum = self.unchanged + length as u64 + u64::from(identification);
            ip::set_u16(packet, 10, checksum::finish(sum));
        } else {
            ip::set_u16(packet, 4, (length - ip::V6_HEADER) as u16);
        }
        if self.tcp {
            ip::set_u32(packet, self.transport + 4, self.sequence.wrapping_add(offset as u32));
            let mut flags = self.flags;
            if !last {
                flags &= !(FIN | PSH);
            }
            if index > 0 {
                flags &= !CWR;
            }
            packet[self.transport + 13] = flags;
        } else {
            ip::set_u16(packet, self.transport + 4, (length - self.transport) as u16);
        }
        ip::set_u16(packet, self.field, 0);
        let start = self.pseudo + (length - self.transport) as u64;
        let sum = checksum::finish(checksum::add(start, &packet[self.transport..]));
        ip::set_u16(packet, self.field, if sum == 0 { 0xffff } else { sum });
    }
}

/// Finishes a checksum whose field holds the pseudo-header's sum; it may be that of an inner header (VXLAN), so nothing
/// about the packet is assumed. A result of zero becomes 0xffff, which means the same and never "no checksum".
fn finish_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Malformed> {
    let field = start + offset;
    if field + 2 > packet.len() {
        return Err(Malformed);
    }
    let sum = checksum::finish(checksum::add(0, &packet[start..]));
    ip::set_u16(packet, field, if sum == 0 { 0xffff } else { sum });
    Ok(())
}

/// Hands out `buffer[start..end]` with its padding; what the padding covers is the next segment's and is put back.
#[inline]
fn hand_out(buffer: &mut [u8], start: usize, end: usize, mtu: usize, sink: &mut impl FnMut(&[u8])) {
    let length = end - start;
    let padded = length.next_multiple_of(PADDING).min(mtu.max(length));
    if padded == length {
        return sink(&buffer[start..end]);
    }
    let pad = padded - length;
    let mut saved = [0; PADDING];
    saved[..pad].copy_from_slice(&buffer[end..end + pad]);
    buffer[end..end + pad].fill(0);
    sink(&buffer[start..end + pad]);
    buffer[end..end + pad].copy_from_slice(&saved[..pad]);
}
