//! The Internet checksum (RFC 1071).

use crate::sys;

/// Bytes from which it is worth a look at the processor: more than a header has.
const LONG: usize = 128;

/// Adds `bytes` to a running one's complement sum, as big-endian 16-bit words; an odd last byte is padded with zero.
///
/// The sum is kept unfolded in 64 bits: words are added in the machine's order and turned round once at the end, which
/// one's complement arithmetic allows.
#[inline]
#[must_use]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let own = if bytes.len() < LONG { unfolded(bytes) } else { sys::unfolded(bytes) };
    sum + u64::from(u16::from_be(fold(own)))
}

/// Sum of 32-bit words in the machine's order, the last padded with zeroes. Inlined, so that it is compiled for whatever
/// processor its caller is.
#[inline(always)]
pub(crate) fn unfolded(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks();
    // Words in pairs, as one number each; what the lower ones overflow into the upper ones shows against their own sum.
    let (mut both, mut upper) = (0_u64, 0_u64);
    for pair in pairs {
        let pair = u64::from_ne_bytes(*pair);
        both = both.wrapping_add(pair);
        upper = upper.wrapping_add(pair >> 32);
    }
    let lower = both.wrapping_sub(upper << 32);
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = u64::from_ne_bytes(last);
    lower + upper + (last >> 32) + (last & 0xffff_ffff)
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
