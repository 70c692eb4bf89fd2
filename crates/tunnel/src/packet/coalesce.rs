//! Joining packets of one flow into one frame, the reverse of [`segment`](super::segment).
//!
//! The packets stay where they are: a frame is a list of pieces of the caller's buffer, the first packet's headers, made true
//! for the whole, then payload after payload. A frame holds nothing that cutting it again would not give back bit by bit
//! (except that the identification of an IPv4 packet that may not be fragmented can be renumbered, RFC 6864).
//!
//! Packets of a flow keep their order: a packet that cannot join ends its flow's frame and comes after it, and one whose flow
//! cannot be told ends every frame.

use super::vnet::{Gso, Header};
use super::{checksum, ip};

/// Pieces a frame may have: what one write and UDP's GSO take.
pub const MAX_PACKETS: usize = 64;
/// Flows that can grow at the same time.
const OPEN: usize = 16;
/// Bytes of a frame, headers included.
const MAX_FRAME: usize = 65_535;
/// Longest headers of a packet that is joined: IPv6 and TCP with options.
const MAX_HEADERS: usize = 100;
const NONE: u32 = u32::MAX;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// The same flag in the word that holds it.
const PSH_WORD: u32 = (PSH as u32) << 16;
const ECE: u8 = 0x40;

/// What may be joined.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abilities {
    /// TCP over either version.
    pub tcp: bool,
    /// UDP over either version (USO).
    pub udp: bool,
}

/// A piece of the buffer.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    length: u32,
    /// The frame's next piece.
    next: u32,
}

/// A frame in the making.
#[derive(Clone, Copy, Debug)]
struct Frame {
    first: u32,
    last: u32,
    packets: u32,
    /// Payload bytes so far.
    payload: usize,
    shape: Option<Shape>,
    /// The first packet's own checksum was found right.
    verified: bool,
    /// No packet may follow: the last one was short or pushed.
    closed: bool,
}

/// What can be told of a packet that may be joined.
#[derive(Clone, Copy, Debug)]
struct Shape {
    tcp: bool,
    /// Where the transport header starts: 20 or 40.
    transport: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Payload bytes.
    payload: usize,
    /// For a quick look.
    flow: u32,
}

/// Collects packets of one batch; see the module.
#[derive(Debug)]
pub struct Coalescer {
    abilities: Abilities,
    frames: Vec<Frame>,
    pieces: Vec<Piece>,
    /// Frames that may still grow, by recency.
    open: [u32; OPEN],
    /// The headers that the last [`finish`](Self::finish) changed, as they were.
    before: [u8; MAX_HEADERS],
}

impl Coalescer {
    /// An empty collection; `packets` are expected a batch.
    #[must_use]
    pub fn new(abilities: Abilities, packets: usize) -> Self {
        Self {
            abilities,
            frames: Vec::with_capacity(packets),
            pieces: Vec::with_capacity(packets),
            open: [NONE; OPEN],
            before: [0; MAX_HEADERS],
        }
    }

    /// Changes what may be joined, from the next packet on.
    pub fn set_abilities(&mut self, abilities: Abilities) {
        self.abilities = abilities;
    }

    /// Frames so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.pieces.clear();
        self.open = [NONE; OPEN];
    }

    /// Takes the packet `buffer[start..start + length]`, which must stay in place until [`clear`](Self::clear).
    pub fn push(&mut self, buffer: &[u8], start: usize, length: usize) {
        let packet = &buffer[start..start + length];
        let shape = match Shape::of(packet) {
            Found::Flow(shape) => shape,
            Found::Other => return self.add(None, start, length, true),
            Found::Unclear => {
                self.open = [NONE; OPEN];
                return self.add(None, start, length, true);
            }
        };
        let joinable =
            (if shape.tcp { self.abilities.tcp } else { self.abilities.udp }) && shape.joinable(packet);
        let Some(at) = self.find(buffer, packet, &shape) else {
            return self.add(Some(shape), start, length, !joinable || shape.pushed(packet));
        };
        let frame = self.open[at] as usize;
        if joinable && self.join(frame, buffer, start, &shape) {
            self.open[..=at].rotate_right(1);
            return;
        }
        self.open[at] = NONE;
        self.add(Some(shape), start, length, !joinable || shape.pushed(packet));
    }

    /// Makes frame `index` ready to be written and tells its header; the pieces follow from [`pieces`](Self::pieces).
    pub fn finish(&mut self, index: usize, buffer: &mut [u8]) -> Header {
        let frame = &self.frames[index];
        let (Some(shape), true) = (frame.shape, frame.packets > 1) else {
            return Header::PLAIN;
        };
        let head = self.pieces[frame.first as usize];
        let length = shape.headers + frame.payload;
        self.before[..shape.headers].copy_from_slice(&buffer[head.start as usize..][..shape.headers]);
        if shape.tcp && frame.closed {
            // Only a pushed or short packet closes a frame, and the last packet's push is the frame's.
            let last = self.pieces[frame.last as usize];
            let flags = buffer[last.start as usize - shape.headers + shape.transport + 13] & PSH;
            buffer[head.start as usize + shape.transport + 13] |= flags;
        }
        let headers = &mut buffer[head.start as usize..][..shape.headers];
        let transport_length = length - shape.transport;
        if shape.transport == ip::V4_HEADER {
            ip::set_u16(headers, 2, length as u16);
            ip::write_v4_checksum(headers);
        } else {
            ip::set_u16(headers, 4, transport_length as u16);
        }
        let (protocol, offset) = if shape.tcp { (ip::TCP, 16) } else { (ip::UDP, 6) };
        if !shape.tcp {
            ip::set_u16(headers, shape.transport + 4, transport_length as u16);
        }
        let sum = checksum::pseudo_header(shape.addresses(headers), protocol, transport_length);
        ip::set_u16(headers, shape.transport + offset, checksum::fold(sum));
        Header {
            gso: match (shape.tcp, shape.transport == ip::V4_HEADER) {
                (true, true) => Gso::Tcp4,
                (true, false) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            gso_size: shape.payload as u16,
            header_len: shape.headers as u16,
            checksum: Some((shape.transport as u16, offset as u16)),
        }
    }

    /// The pieces of frame `index` in order, as start and length.
    pub fn pieces(&self, index: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut next = self.frames[index].first;
        std::iter::from_fn(move || {
            let piece = self.pieces.get(next as usize)?;
            next = piece.next;
            Some((piece.start as usize, piece.length as usize))
        })
    }

    /// Packets in frame `index`.
    #[must_use]
    pub fn packets(&self, index: usize) -> usize {
        self.frames[index].packets as usize
    }

    /// Takes back what the last [`finish`](Self::finish), of frame `index`, did, and tells where its packets are, one by one.
    pub fn separate(&self, index: usize, buffer: &mut [u8]) -> impl Iterator<Item = (usize, usize)> + '_ {
        let frame = &self.frames[index];
        // A single packet was left as it was.
        let headers = frame.shape.filter(|_| frame.packets > 1).map_or(0, |shape| shape.headers);
        let head = self.pieces[frame.first as usize].start as usize;
        buffer[head..head + headers].copy_from_slice(&self.before[..headers]);
        self.pieces(index).map(move |(start, length)| {
            if start == head { (start, length) } else { (start - headers, length + headers) }
        })
    }

    fn add(&mut self, shape: Option<Shape>, start: usize, length: usize, closed: bool) {
        let piece = self.pieces.len() as u32;
        self.pieces.push(Piece { start: start as u32, length: length as u32, next: NONE });
        let payload = shape.map_or(0, |shape| shape.payload);
        self.frames.push(Frame {
            first: piece,
            last: piece,
            packets: 1,
            payload,
            shape,
            verified: false,
            closed,
        });
        if shape.is_some() && !closed {
            self.open.rotate_right(1);
            self.open[0] = self.frames.len() as u32 - 1;
        }
    }

    /// Position in `open` of the flow's frame.
    #[inline]
    fn find(&self, buffer: &[u8], packet: &[u8], shape: &Shape) -> Option<usize> {
        self.open.iter().position(|&frame| {
            let Some(frame) = self.frames.get(frame as usize) else { return false };
            let Some(have) = frame.shape else { return false };
            if have.flow != shape.flow || have.tcp != shape.tcp || have.transport != shape.transport {
                return false;
            }
            // Addresses and ports: they end where the ports do, and begin in the middle of the IP header.
            let head = &buffer[self.pieces[frame.first as usize].start as usize..];
            let from = if have.transport == ip::V4_HEADER { 12 } else { 8 };
            let to = have.transport + 4;
            head[from..to] == packet[from..to]
        })
    }

    /// Appends a packet of the same flow if that loses nothing.
    fn join(&mut self, index: usize, buffer: &[u8], start: usize, shape: &Shape) -> bool {
        let frame = self.frames[index];
        let Some(have) = frame.shape else { return false };
        let head_start = self.pieces[frame.first as usize].start as usize;
        let head = &buffer[head_start..][..have.headers + have.payload];
        let packet = &buffer[start..][..shape.headers + shape.payload];
        let fits = !frame.closed
            && shape.headers == have.headers
            && shape.payload <= have.payload
            && (frame.packets as usize) < MAX_PACKETS
            && shape.headers + frame.payload + shape.payload <= MAX_FRAME
            && same_ip(head, packet, frame.packets)
            && (!shape.tcp || same_tcp(head, packet, shape, frame.payload));
        if !fits || !shape.checksum_holds(packet) || !(frame.verified || have.checksum_holds(head)) {
            return false;
        }
        let pushed = shape.pushed(packet);
        let piece = self.pieces.len() as u32;
        self.pieces.push(Piece {
            start: (start + shape.headers) as u32,
            length: shape.payload as u32,
            next: NONE,
        });
        self.pieces[frame.last as usize].next = piece;
        let frame = &mut self.frames[index];
        frame.last = piece;
        frame.packets += 1;
        frame.payload += shape.payload;
        frame.verified = true;
        frame.closed = pushed || shape.payload < have.payload;
        true
    }
}

enum Found {
    Flow(Shape),
    /// Belongs to no flow of TCP or UDP.
    Other,
    /// May belong to any flow.
    Unclear,
}

impl Shape {
    #[inline]
    fn of(packet: &[u8]) -> Found {
        let (protocol, transport, length) = match ip::version(packet) {
            Some(4) => {
                // Options or a fragment: ports may be elsewhere or nowhere.
                if packet[0] & 15 != 5 || ip::u16_at(packet, 6) & 0x3fff != 0 {
                    return Found::Unclear;
                }
                (packet[9], ip::V4_HEADER, usize::from(ip::u16_at(packet, 2)))
            }
            Some(_) => (packet[6], ip::V6_HEADER, usize::from(ip::u16_at(packet, 4)) + ip::V6_HEADER),
            None => return Found::Unclear,
        };
        // Extension headers of IPv6 and whatever else has no ports here.
        if !matches!(protocol, ip::TCP | ip::UDP) {
            return if transport == ip::V6_HEADER && protocol != 58 { Found::Unclear } else { Found::Other };
        }
        let tcp = protocol == ip::TCP;
        let least = transport + if tcp { 20 } else { 8 };
        if length != packet.len() || packet.len() < least {
            return Found::Unclear;
        }
        let headers = if tcp { transport + usize::from(packet[transport + 12] >> 4) * 4 } else { least };
        if headers < least || headers > packet.len() {
            return Found::Unclear;
        }
        let flow = ip::u32_at(packet, transport) ^ ip::u32_at(packet, transport - 8);
        Found::Flow(Self { tcp, transport, headers, payload: packet.len() - headers, flow })
    }

    /// Whether such a packet can stand at the start, in the middle or at the end of a frame.
    #[inline]
    fn joinable(&self, packet: &[u8]) -> bool {
        if self.payload == 0 {
            return false;
        }
        if self.tcp {
            let [reserved, flags] = [packet[self.transport + 12] & 15, packet[self.transport + 13]];
            return reserved == 0 && matches!(flags & !(PSH | ECE), ACK);
        }
        let length = usize::from(ip::u16_at(packet, self.transport + 4));
        length == packet.len() - self.transport && ip::u16_at(packet, self.transport + 6) != 0
    }

    /// Whether the receiver is asked not to wait for more.
    #[inline]
    fn pushed(&self, packet: &[u8]) -> bool {
        self.tcp && packet[self.transport + 13] & PSH != 0
    }

    /// Source and destination.
    #[inline]
    fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        if self.transport == ip::V4_HEADER { &packet[12..20] } else { &packet[8..40] }
    }

    #[inline]
    fn checksum_holds(&self, packet: &[u8]) -> bool {
        let protocol = if self.tcp { ip::TCP } else { ip::UDP };
        let header = self.transport != ip::V4_HEADER
            || checksum::finish(checksum::add(0, &packet[..ip::V4_HEADER])) == 0;
        let sum = checksum::pseudo_header(self.addresses(packet), protocol, packet.len() - self.transport);
        header && checksum::finish(checksum::add(sum, &packet[self.transport..])) == 0
    }
}

/// Everything of the IP header that cutting the frame would copy from the first packet.
#[inline]
fn same_ip(head: &[u8], packet: &[u8], index: u32) -> bool {
    if head[0] >> 4 == 6 {
        // Class, flow label and hop limit.
        return ip::u32_at(head, 0) == ip::u32_at(packet, 0) && head[7] == packet[7];
    }
    let unfragmentable = head[6] & 0x40 != 0;
    let [first, this] = [ip::u16_at(head, 4), ip::u16_at(packet, 4)];
    head[1] == packet[1]
        && ip::u16_at(head, 6) == ip::u16_at(packet, 6)
        && head[8] == packet[8]
        && (this == first.wrapping_add(index as u16) || (unfragmentable && this == first))
}

/// The same of the TCP header; the packet goes on where the frame ends.
#[inline]
fn same_tcp(head: &[u8], packet: &[u8], shape: &Shape, payload: usize) -> bool {
    let (head, packet) = (&head[shape.transport..shape.headers], &packet[shape.transport..shape.headers]);
    // Sequence; acknowledgement; header length, flags and window; urgent pointer; options.
    ip::u32_at(packet, 4) == ip::u32_at(head, 4).wrapping_add(payload as u32)
        && ip::u32_at(packet, 8) == ip::u32_at(head, 8)
        && ip::u32_at(packet, 12) & !PSH_WORD == ip::u32_at(head, 12) & !PSH_WORD
        && ip::u16_at(packet, 18) == ip::u16_at(head, 18)
        && head[20..] == packet[20..]
}
