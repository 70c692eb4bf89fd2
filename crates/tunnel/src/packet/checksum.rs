//! The Internet checksum (RFC 1071).

/// Adds `bytes` to a running one's complement sum, as big-endian 16-bit words; an odd last byte is padded with zero.
///
/// The sum is kept unfolded in 64 bits: words are added four bytes at a time in the machine's order and turned round once
/// at the end, which one's complement arithmetic allows.
#[inline]
#[must_use]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let word = |bytes: &[u8]| u64::from(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let mut lanes = [0; 8];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += word(bytes);
        }
    }
    let mut words = blocks.remainder().chunks_exact(4);
    let mut own: u64 = lanes.iter().sum::<u64>() + (&mut words).map(word).sum::<u64>();
    if let rest @ [_, ..] = words.remainder() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        own += word(&last);
    }
    sum + u64::from(u16::from_be(fold(own)))
}

/// Folds a running sum to 16 bits, not inverted.
#[inline]
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The field's value for a running sum: folded and inverted.
#[inline]
#[must_use]
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// Sum of the TCP or UDP pseudo-header; `addresses` is source and destination, one after the other.
#[inline]
#[must_use]
pub fn pseudo_header(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    add(u64::from(protocol) + length as u64, addresses)
}
