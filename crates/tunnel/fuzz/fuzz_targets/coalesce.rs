//! Whatever a peer sends: no packet is lost, and joined ones can be told apart again, by who joined them and by cutting them.
#![no_main]

use corax_tunnel::packet::coalesce::{Abilities, Coalescer};
use corax_tunnel::packet::segment::{SLACK, segment};
use corax_tunnel::packet::{checksum, ip};
use libfuzzer_sys::fuzz_target;

/// A packet of any bytes, how many of its flow come after it, and whether lengths and checksums are made true.
type Run = (Vec<u8>, u8, bool);

fuzz_target!(|runs: Vec<Run>| {
    let mut packets = Vec::new();
    for (mut packet, more, right) in runs {
        for _ in 0..=more % 8 {
            if right {
                finish(&mut packet);
            }
            packets.push(packet.clone());
            go_on(&mut packet);
        }
    }
    let mut frames = Coalescer::new(Abilities { tcp: true, udp: true }, 8);
    let mut buffer: Vec<u8> = packets.concat();
    let mut at = 0;
    for packet in &packets {
        frames.push(&buffer, at, packet.len());
        at += packet.len();
    }
    let mut again = Vec::new();
    for index in 0..frames.len() {
        let header = frames.finish(index, &mut buffer);
        let mut frame = Vec::new();
        for (at, length) in frames.pieces(index) {
            frame.extend_from_slice(&buffer[at..at + length]);
        }
        let places: Vec<_> = frames.separate(index, &mut buffer).collect();
        let apart: Vec<_> = places.into_iter().map(|(at, length)| buffer[at..at + length].to_vec()).collect();
        assert_eq!(apart.len(), frames.packets(index));
        if apart.len() > 1 {
            let length = frame.len();
            frame.extend([0; SLACK]);
            let mut cut = Vec::new();
            segment(&mut frame, length, &header, 0, |packet| cut.push(alike(packet))).expect("it is whole");
            assert_eq!(cut, apart.iter().map(|packet| alike(packet)).collect::<Vec<_>>());
        }
        again.extend(apart);
    }
    packets.sort();
    again.sort();
    assert_eq!(again, packets);
});

/// Where the transport header is, and its protocol, if a packet has one of these.
fn transport(packet: &[u8]) -> Option<(usize, u8)> {
    let (at, protocol) = match ip::version(packet)? {
        4 => (ip::V4_HEADER, packet[9]),
        _ => (ip::V6_HEADER, packet[6]),
    };
    let least = match protocol {
        ip::TCP => 20,
        ip::UDP => 8,
        _ => return None,
    };
    (packet.len() >= at + least).then_some((at, protocol))
}

fn field(at: usize, protocol: u8) -> usize {
    at + if protocol == ip::TCP { 16 } else { 6 }
}

/// Makes lengths and checksums true.
fn finish(packet: &mut [u8]) {
    let Some((at, protocol)) = transport(packet) else { return };
    let length = packet.len() - at;
    let addresses = if at == ip::V4_HEADER {
        packet[0] = 0x45;
        ip::set_u16(packet, 2, (at + length) as u16);
        ip::write_v4_checksum(packet);
        12..20
    } else {
        ip::set_u16(packet, 4, length as u16);
        8..40
    };
    if protocol == ip::UDP {
        ip::set_u16(packet, at + 4, length as u16);
    }
    ip::set_u16(packet, field(at, protocol), 0);
    let sum = checksum::pseudo_header(&packet[addresses], protocol, length);
    let sum = checksum::finish(checksum::add(sum, &packet[at..]));
    ip::set_u16(packet, field(at, protocol), if sum == 0 { 0xffff } else { sum });
}

/// Makes a packet the next of its flow.
fn go_on(packet: &mut [u8]) {
    let Some((at, protocol)) = transport(packet) else { return };
    if at == ip::V4_HEADER {
        ip::set_u16(packet, 4, ip::u16_at(packet, 4).wrapping_add(1));
    }
    if protocol == ip::TCP {
        let headers = at + usize::from(packet[at + 12] >> 4) * 4;
        let payload = packet.len().saturating_sub(headers) as u32;
        ip::set_u32(packet, at + 4, ip::u32_at(packet, at + 4).wrapping_add(payload));
    }
}

/// What says the same looks the same: a checksum has two forms of zero, and the identification of a packet that may not be
/// fragmented means nothing (RFC 6864).
fn alike(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let (at, protocol) = transport(&packet).expect("only these are joined");
    if at == ip::V4_HEADER {
        if packet[6] & 0x40 != 0 {
            ip::set_u16(&mut packet, 4, 0);
        }
        ip::write_v4_checksum(&mut packet);
    }
    if ip::u16_at(&packet, field(at, protocol)) == 0 {
        ip::set_u16(&mut packet, field(at, protocol), 0xffff);
    }
    packet
}
