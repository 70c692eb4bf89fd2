//! Cutting and joining against a plain reference, packet by packet.

#![allow(clippy::unwrap_used)] // helpers of tests fail as tests do

use corax_tunnel::packet::checksum;
use corax_tunnel::packet::coalesce::{Abilities, Coalescer};
use corax_tunnel::packet::segment::{SLACK, segment};
use corax_tunnel::packet::vnet::{Gso, Header};
use proptest::prelude::*;

const BOTH: Abilities = Abilities { tcp: true, udp: true };

/// The checksum as RFC 1071 says it, word by word.
fn plain_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A packet of TCP or UDP by its fields.
#[derive(Clone, Debug)]
struct Packet {
    v6: bool,
    /// IPv6: eights of bytes of destination options; IPv4: fours of bytes of options.
    options_before: u8,
    tcp: bool,
    host: u8,
    port: u8,
    class: u8,
    ttl: u8,
    id: u16,
    dont_fragment: bool,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
    /// UDP without a checksum.
    zero_checksum: bool,
    /// Flips this bit of the payload after the checksum was made.
    broken: bool,
}

impl Packet {
    fn transport(&self) -> usize {
        let options = usize::from(self.options_before);
        if self.v6 { 40 + 8 * options } else { 20 + 4 * options }
    }

    fn headers(&self) -> usize {
        self.transport() + if self.tcp { 20 + self.options.len() } else { 8 }
    }

    fn bytes(&self) -> Vec<u8> {
        let length = self.headers() + self.payload.len();
        let inner = length - self.transport();
        let protocol = if self.tcp { 6 } else { 17 };
        let mut out = Vec::new();
        if self.v6 {
            out.extend([0x60 | self.class >> 4, self.class << 4, 0, 1]);
            out.extend(((length - 40) as u16).to_be_bytes());
            out.extend([if self.options_before > 0 { 60 } else { protocol }, self.ttl]);
            out.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.host]);
            out.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
            if self.options_before > 0 {
                // One option, padding.
                out.extend([protocol, self.options_before - 1, 1, 8 * self.options_before - 4]);
                out.resize(self.transport(), 0);
            }
        } else {
            out.extend([0x45 + self.options_before, self.class]);
            out.extend((length as u16).to_be_bytes());
            out.extend(self.id.to_be_bytes());
            out.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
            out.extend([10, 0, 0, self.host, 10, 0, 0, 9]);
            // An option of no known kind that is to be copied (RFC 791), and then no operations.
            out.extend([0x9e, 4, 0xab, 0xcd].repeat(self.options_before.min(1).into()));
            out.resize(self.transport(), 1);
            let sum = !plain_sum(&out);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        out.extend([0x10, self.port, 0x20, 1]);
        if self.tcp {
            out.extend(self.sequence.to_be_bytes());
            out.extend(self.acknowledgement.to_be_bytes());
            out.extend([(((20 + self.options.len()) / 4) << 4) as u8, self.flags]);
            out.extend(self.window.to_be_bytes());
            out.extend([0; 4]);
            out.extend(&self.options);
        } else {
            out.extend((inner as u16).to_be_bytes());
            out.extend([0; 2]);
        }
        out.extend(&self.payload);
        if self.tcp || !self.zero_checksum {
            write_checksum(&mut out);
        }
        if self.broken && !self.payload.is_empty() {
            *out.last_mut().unwrap() ^= 1;
        }
        out
    }
}

fn parts(packet: &[u8]) -> (bool, usize, bool, usize, usize) {
    let v6 = packet[0] >> 4 == 6;
    let (transport, protocol) = match (v6, packet[6]) {
        (false, _) => (usize::from(packet[0] & 15) * 4, packet[9]),
        (true, 60) => (48 + 8 * usize::from(packet[41]), packet[40]),
        (true, next) => (40, next),
    };
    let tcp = protocol == 6;
    let headers = transport + if tcp { usize::from(packet[transport + 12] >> 4) * 4 } else { 8 };
    (v6, transport, tcp, headers, transport + if tcp { 16 } else { 6 })
}

fn pseudo(packet: &[u8]) -> Vec<u8> {
    let (v6, transport, tcp, ..) = parts(packet);
    let mut bytes = packet[if v6 { 8..40 } else { 12..20 }].to_vec();
    bytes.extend([0, if tcp { 6 } else { 17 }]);
    bytes.extend(((packet.len() - transport) as u16).to_be_bytes());
    bytes
}

fn write_checksum(packet: &mut [u8]) {
    let (_, transport, _, _, field) = parts(packet);
    packet[field..field + 2].fill(0);
    let mut bytes = pseudo(packet);
    bytes.extend(&packet[transport..]);
    let sum = !plain_sum(&bytes);
    packet[field..field + 2].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
}

/// Cuts a frame the plain way.
fn cut(frame: &[u8], header: &Header) -> Vec<Vec<u8>> {
    if header.gso == Gso::None {
        return vec![frame.to_vec()];
    }
    let (v6, transport, tcp, headers, _) = parts(frame);
    let chunks: Vec<_> = frame[headers..].chunks(header.gso_size.into()).collect();
    let mut packets = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let mut packet = frame[..headers].to_vec();
        packet.extend(*chunk);
        let inner = (packet.len() - transport) as u16;
        if v6 {
            let length = (packet.len() - 40) as u16;
            packet[4..6].copy_from_slice(&length.to_be_bytes());
        } else {
            let length = packet.len() as u16;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            let id = u16::from_be_bytes([packet[4], packet[5]]).wrapping_add(index as u16);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
            let sum = !plain_sum(&packet[..transport]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        if tcp {
            let at = transport + 4;
            let sequence = u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
            let sequence = sequence.wrapping_add((index * usize::from(header.gso_size)) as u32);
            packet[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            if index > 0 {
                packet[transport + 13] &= !0x80;
            }
            if index + 1 < chunks.len() {
                packet[transport + 13] &= !0x09;
            }
        } else {
            packet[transport + 4..transport + 6].copy_from_slice(&inner.to_be_bytes());
        }
        write_checksum(&mut packet);
        packets.push(packet);
    }
    packets
}

/// Identification of a packet that may not be fragmented means nothing (RFC 6864).
fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Flows of few kinds that mostly go on as they should.
fn stream() -> impl Strategy<Value = Vec<Packet>> {
    let size = prop_oneof![6 => Just(100usize), 1 => Just(0), 1 => 1usize..100, 1 => 101usize..300];
    let flags = prop_oneof![8 => Just(0x10u8), 1 => Just(0x18), 1 => Just(0x50), 1 => any::<u8>()];
    let step = (0usize..6, size, flags, 0u8..40, any::<u8>());
    prop::collection::vec(step, 1..80).prop_map(|steps| {
        let mut sequences = [0xffff_ff00u32; 6];
        let mut ids = [0xfff8u16; 6];
        steps
            .into_iter()
            .map(|(flow, size, flags, odd, seed)| {
                let tcp = flow < 4;
                let packet = Packet {
                    v6: flow % 2 == 1,
                    options_before: u8::from(odd == 11),
                    tcp,
                    host: if odd == 1 { 2 } else { 1 },
                    port: (flow / 2) as u8,
                    class: u8::from(odd == 2),
                    ttl: if odd == 3 { 63 } else { 64 },
                    id: if odd == 4 { 0 } else { ids[flow] },
                    dont_fragment: odd % 2 == 0,
                    sequence: sequences[flow].wrapping_add(u32::from(odd == 5)),
                    acknowledgement: u32::from(odd == 6),
                    flags,
                    window: 500 + u16::from(odd == 7),
                    options: vec![1; if odd == 8 { 12 } else { 0 }],
                    payload: (0..size).map(|at| (at as u8).wrapping_mul(seed)).collect(),
                    zero_checksum: odd == 9,
                    broken: odd == 10,
                };
                sequences[flow] = sequences[flow].wrapping_add(size as u32);
                ids[flow] = ids[flow].wrapping_add(1);
                packet
            })
            .collect()
    })
}

/// All packets one after the other, and where each is.
fn lay_out(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<(usize, usize)>) {
    let mut buffer = Vec::new();
    let mut places = Vec::new();
    for packet in packets {
        places.push((buffer.len(), packet.len()));
        buffer.extend(packet);
    }
    (buffer, places)
}

fn join(packets: &[Vec<u8>], abilities: Abilities) -> Vec<(Header, Vec<u8>, Vec<Vec<u8>>)> {
    let (mut buffer, places) = lay_out(packets);
    let mut frames = Coalescer::new(abilities, 8);
    for (start, length) in places {
        frames.push(&buffer, start, length);
    }
    (0..frames.len())
        .map(|index| {
            let header = frames.finish(index, &mut buffer);
            let bytes: Vec<u8> =
                frames.pieces(index).flat_map(|(at, length)| buffer[at..at + length].to_vec()).collect();
            let places: Vec<_> = frames.separate(index, &mut buffer).collect();
            let single =
                places.into_iter().map(|(at, length)| buffer[at..at + length].to_vec()).collect::<Vec<_>>();
            assert_eq!(single.len(), frames.packets(index));
            (header, bytes, single)
        })
        .collect()
}

fn flow(packet: &[u8]) -> Vec<u8> {
    let (v6, transport, tcp, ..) = parts(packet);
    let mut key = packet[if v6 { 8..40 } else { 12..20 }].to_vec();
    key.extend([u8::from(tcp), packet[transport + 1]]);
    key
}

fn by_flow(packets: &[Vec<u8>]) -> std::collections::BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows = std::collections::BTreeMap::<_, Vec<_>>::new();
    for packet in packets {
        flows.entry(flow(packet)).or_default().push(without_id(packet));
    }
    flows
}

/// Hands a frame to the code under test; returns the packets without their padding, which is checked.
fn segmented(frame: &[u8], header: &Header, mtu: usize) -> Vec<Vec<u8>> {
    let mut buffer = frame.to_vec();
    buffer.extend([0xee; SLACK]);
    let mut packets = Vec::new();
    segment(&mut buffer, frame.len(), header, mtu, |packet| {
        let v6 = packet[0] >> 4 == 6;
        let at = if v6 { 4 } else { 2 };
        let length = usize::from(u16::from_be_bytes([packet[at], packet[at + 1]])) + if v6 { 40 } else { 0 };
        assert_eq!(packet.len(), length.next_multiple_of(16).min(mtu.max(length)));
        assert!(packet[length..].iter().all(|byte| *byte == 0));
        packets.push(packet[..length].to_vec());
    })
    .unwrap();
    packets
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn joining_loses_nothing_and_keeps_the_order_of_every_flow(stream in stream()) {
        let packets: Vec<_> = stream.iter().map(Packet::bytes).collect();
        for abilities in [BOTH, Abilities { tcp: true, udp: false }, Abilities { tcp: false, udp: false }] {
            let frames = join(&packets, abilities);
            let cut: Vec<_> = frames.iter().flat_map(|(header, frame, _)| cut(frame, header)).collect();
            prop_assert_eq!(by_flow(&cut), by_flow(&packets));
            let single: Vec<_> = frames.into_iter().flat_map(|(.., single)| single).collect();
            let mut exact = packets.clone();
            let mut single = single;
            exact.sort();
            single.sort();
            prop_assert_eq!(single, exact, "taken apart again, every byte is as it was");
        }
    }

    #[test]
    fn cutting_equals_the_plain_way(
        stream in stream(),
        size in 1u16..400,
        payload in 1usize..5000,
        mtu in prop_oneof![Just(1420usize), 60usize..600],
        options_before in prop_oneof![Just(0u8), 1u8..=10],
    ) {
        for mut packet in stream.into_iter().take(4) {
            packet.payload = (0..payload).map(|at| at as u8).collect();
            packet.broken = false;
            packet.zero_checksum = false;
            packet.options_before = options_before;
            let mut frame = packet.bytes();
            let (v6, transport, tcp, _, field) = parts(&frame);
            // As the kernel leaves it: the sum of the pseudo-header.
            let sum = plain_sum(&pseudo(&frame));
            frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            let gso = match (tcp, v6) { (true, false) => Gso::Tcp4, (true, true) => Gso::Tcp6, _ => Gso::Udp };
            let checksum = Some((transport as u16, (field - transport) as u16));
            let header = Header { gso, gso_size: size, header_len: 0, checksum };
            prop_assert_eq!(segmented(&frame, &header, mtu), cut(&frame, &header));
        }
    }

    #[test]
    fn an_unfinished_checksum_is_finished_wherever_it_is(stream in stream(), outer in prop::collection::vec(any::<u8>(), 0..60)) {
        for mut packet in stream.into_iter().take(4) {
            packet.broken = false;
            packet.zero_checksum = false;
            let finished = packet.bytes();
            let mut frame = finished.clone();
            let (_, transport, _, _, field) = parts(&frame);
            let sum = plain_sum(&pseudo(&frame));
            frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            // Behind the headers of an overlay.
            let mut carrier = vec![0; 28];
            carrier[0] = 0x45;
            carrier.extend(&outer);
            let start = carrier.len();
            let mut expected = carrier.clone();
            carrier.extend(&frame);
            expected.extend(&finished);
            let length = carrier.len();
            carrier.extend([0; SLACK]);
            let at = ((start + transport) as u16, (field - transport) as u16);
            let header = Header { checksum: Some(at), ..Header::PLAIN };
            let mut seen = Vec::new();
            segment(&mut carrier, length, &header, 0, |packet| seen.push(packet.to_vec())).unwrap();
            prop_assert_eq!(seen, vec![expected]);
        }
    }

    #[test]
    fn nothing_the_kernel_could_say_makes_it_panic(
        mut frame in prop::collection::vec(any::<u8>(), 0..300),
        first in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()],
        bytes in any::<[u8; 10]>(),
    ) {
        if let Some(byte) = frame.first_mut() {
            *byte = first;
        }
        if let Some(header) = Header::parse(&bytes) {
            let length = frame.len();
            frame.extend([0; SLACK]);
            let _ = segment(&mut frame, length, &header, 1420, |_| {});
        }
    }

    #[test]
    fn nothing_a_peer_could_send_makes_joining_panic(packets in prop::collection::vec(
        (prop_oneof![Just(0x45u8), Just(0x46), Just(0x60), any::<u8>()], prop::collection::vec(any::<u8>(), 0..90)), 0..20))
    {
        let packets: Vec<_> = packets.into_iter().map(|(first, mut rest)| { rest.insert(0, first); rest }).collect();
        let (mut buffer, places) = lay_out(&packets);
        let mut frames = Coalescer::new(BOTH, 8);
        for (start, length) in places {
            frames.push(&buffer, start, length);
        }
        for index in 0..frames.len() {
            frames.finish(index, &mut buffer);
        }
        prop_assert!(frames.len() <= packets.len());
    }

    #[test]
    fn the_sum_is_that_of_the_rfc(start in any::<u16>(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut whole = start.to_be_bytes().to_vec();
        whole.extend(&bytes);
        let (have, want) = (checksum::fold(checksum::add(start.into(), &bytes)), plain_sum(&whole));
        prop_assert_eq!(have % 0xffff, want % 0xffff, "zero has two forms");
    }
}

fn flow_of(count: usize, size: usize, tcp: bool, v6: bool) -> Vec<Vec<u8>> {
    (0..count)
        .map(|index| {
            Packet {
                v6,
                options_before: 0,
                tcp,
                host: 1,
                port: 1,
                class: 0,
                ttl: 64,
                id: index as u16,
                dont_fragment: true,
                sequence: (index * size) as u32,
                acknowledgement: 1,
                flags: 0x10,
                window: 9,
                options: vec![1; 12],
                payload: vec![index as u8; size],
                zero_checksum: false,
                broken: false,
            }
            .bytes()
        })
        .collect()
}

#[test]
fn a_bulk_flow_becomes_one_frame() {
    for (tcp, v6) in [(true, false), (true, true), (false, false), (false, true)] {
        let packets = flow_of(45, 1368, tcp, v6);
        let frames = join(&packets, BOTH);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].0.gso_size, 1368);
        assert_eq!(segmented(&frames[0].1, &frames[0].0, 1420), packets);
    }
}

#[test]
fn two_flows_that_alternate_become_two_frames() {
    let (one, two) = (flow_of(20, 1000, true, false), flow_of(20, 1000, false, false));
    let mixed: Vec<_> = one.into_iter().zip(two).flat_map(|(a, b)| [a, b]).collect();
    assert_eq!(join(&mixed, BOTH).len(), 2);
}

#[test]
fn what_cannot_be_told_apart_ends_every_frame() {
    let mut packets = flow_of(4, 500, false, false);
    // A fragment of the same flow in the middle: nothing after it may go before it.
    let mut fragment = packets[1].clone();
    fragment[6] |= 0x20;
    packets.insert(2, fragment);
    let frames = join(&packets, BOTH);
    assert_eq!(frames.iter().map(|(.., single)| single.len()).collect::<Vec<_>>(), [2, 1, 2]);
}
