//! The few fields of an IP header that a tunnel looks at.

use std::net::IpAddr;

/// Shortest IPv4 header, bytes.
pub const V4_HEADER: usize = 20;
/// IPv6 header, bytes.
pub const V6_HEADER: usize = 40;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Big-endian 16-bit field at `at`.
#[inline]
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut field = [0; 2];
    field.copy_from_slice(&bytes[at..at + 2]);
    u16::from_be_bytes(field)
}

/// Writes a big-endian 16-bit field.
#[inline]
pub fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Big-endian 32-bit field at `at`.
#[inline]
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(field)
}

/// Writes a big-endian 32-bit field.
#[inline]
pub fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// 4 or 6 where `packet` starts with a whole header of that version.
#[inline]
#[must_use]
pub fn version(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 if packet.len() >= V4_HEADER => Some(4),
        6 if packet.len() >= V6_HEADER => Some(6),
        _ => None,
    }
}

/// Bytes that an IPv4 packet says its header has, options included; the shortest header's where it says less.
#[inline]
#[must_use]
pub fn v4_header(packet: &[u8]) -> usize {
    (usize::from(packet[0] & 15) * 4).max(V4_HEADER)
}

/// Source address.
#[inline]
#[must_use]
pub fn source(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 12, 8)
}

/// Destination address.
#[inline]
#[must_use]
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 16, 24)
}

fn address(packet: &[u8], v4: usize, v6: usize) -> Option<IpAddr> {
    match version(packet)? {
        4 => packet[v4..].first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        _ => packet[v6..].first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
    }
}

/// The two ECN bits (RFC 3168).
#[inline]
#[must_use]
pub fn ecn(packet: &[u8]) -> u8 {
    match version(packet) {
        Some(4) => packet[1] & 3,
        Some(_) => packet[1] >> 4 & 3,
        None => 0,
    }
}

/// ECN bits of the outer header for those of the inner one (RFC 3168, full functionality, as the kernel's WireGuard does
/// it; RFC 6040 would copy them all).
#[inline]
#[must_use]
pub fn outer_ecn(inner: u8) -> u8 {
    const CE: u8 = 3;
    const ECT_0: u8 = 2;
    if inner == CE { ECT_0 } else { inner }
}

/// Marks a packet "congestion experienced" if its sender can understand that.
pub fn mark_congestion(packet: &mut [u8]) {
    if !matches!(ecn(packet), 1 | 2) {
        return;
    }
    if packet[0] >> 4 == 6 {
        packet[1] |= 3 << 4;
        return;
    }
    packet[1] |= 3;
    write_v4_checksum(packet);
}

/// Recomputes the checksum of an IPv4 header.
pub fn write_v4_checksum(packet: &mut [u8]) {
    let length = v4_header(packet).min(packet.len());
    set_u16(packet, 10, 0);
    let sum = super::checksum::finish(super::checksum::add(0, &packet[..length]));
    set_u16(packet, 10, sum);
}
