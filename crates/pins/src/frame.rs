//! A checksum a record.
//!
//! A record is one line, `<crc32c> <text>`, with a newline before *and* after it. So a record torn by a power cut does not
//! swallow the next one, a flipped bit spoils only the record it hits, newlines included, and empty lines mean nothing.

use std::io::Write;

const CHECKSUM: usize = 8;
/// Bytes of a record besides its text, the newline before it left out.
pub(crate) const AROUND: usize = CHECKSUM + 2;

/// Puts one record at the end of `out`. `text` has no newline.
pub(crate) fn push(out: &mut Vec<u8>, text: &str) {
    debug_assert!(!text.contains('\n'), "a record is one line");
    writeln!(out, "\n{:08x} {text}", crc32c::crc32c(text.as_bytes()))
        .expect("writing to memory does not fail");
}

/// What stands between two newlines of a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame<'a> {
    /// A whole record, and the offset of the first byte behind it.
    Record { text: &'a str, end: usize },
    /// Bytes that are no record any more.
    Damaged,
    /// Bytes at the very end, no newline behind them, from this offset on: a write that was cut, never acknowledged.
    Torn { start: usize },
}

/// Every frame of a log, in order.
pub(crate) fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
            let start = at;
            let (line, closed) = match memchr::memchr(b'\n', rest) {
                Some(length) => (rest.get(..length)?, true),
                None => (rest, false),
            };
            at += line.len() + usize::from(closed);
            if line.is_empty() {
                continue;
            }
            return Some(match checked(line) {
                Some(text) if closed => Frame::Record { text, end: at },
                _ if closed => Frame::Damaged,
                _ => Frame::Torn { start },
            });
        }
    })
}

fn checked(line: &[u8]) -> Option<&str> {
    let (sum, rest) = line.split_at_checked(CHECKSUM)?;
    let text = rest.strip_prefix(b" ")?;
    let mut expected = 0u32;
    for &digit in sum {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        expected = expected << 4 | u32::from(value);
    }
    (crc32c::crc32c(text) == expected).then_some(())?;
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(bytes: &[u8]) -> Vec<String> {
        frames(bytes)
            .filter_map(|f| if let Frame::Record { text, .. } = f { Some(text.to_owned()) } else { None })
            .collect()
    }

    fn three() -> Vec<u8> {
        let mut out = Vec::new();
        for text in ["one 1", "two 2", "three 3"] {
            push(&mut out, text);
        }
        out
    }

    #[test]
    fn records_come_back_in_order() {
        assert_eq!(texts(&three()), ["one 1", "two 2", "three 3"]);
        assert!(frames(b"").next().is_none());
        assert!(frames(b"\n\n\n").next().is_none());
    }

    #[test]
    fn a_flipped_bit_spoils_only_the_record_it_hits() {
        let good = three();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let left = texts(&bad);
                assert!(left.len() >= 2, "bit {bit} of byte {at} spoiled more than one record");
                assert!(left.iter().all(|t| ["one 1", "two 2", "three 3"].contains(&t.as_str())));
            }
        }
    }

    #[test]
    fn a_record_cut_anywhere_leaves_those_before_and_after_it() {
        let mut one = Vec::new();
        push(&mut one, "one 1");
        for cut in 0..one.len() {
            let mut log = three();
            log.extend(&one[..cut]);
            assert_eq!(texts(&log).len(), 3, "cut at {cut}");
            push(&mut log, "four 4");
            let want = if cut + 1 == one.len() { 5 } else { 4 };
            assert_eq!(texts(&log).len(), want, "cut at {cut}");
        }
    }
}
