//! The part of a large log that one call needs, without keeping the rest: what it says of the pods that matter now, and
//! which addresses it names at all.
//!
//! An undamaged log tells the same about those pods either way: whenever an address goes to another pod, the record that ends
//! the first one's pin is written with it. What a part cannot answer is asked of the whole ([`Book::replay`]).

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use crate::book::{Book, Map};
use crate::frame::{self, Frame, frames};
use crate::names::Network;
use crate::record::{Line, pin};

/// Read at a time. Small enough to stay in the cache: touching new memory costs more than reading.
const CHUNK: usize = 64 << 10;

pub(crate) type Keys = HashSet<String, foldhash::fast::RandomState>;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The records that matter, a log of their own, and the offset in the whole log behind each.
    part: Vec<u8>,
    ends: Vec<usize>,
    used: Used,
    highest: u64,
    length: usize,
    /// Records, those that make pins, and those that end one.
    records: usize,
    pins: usize,
    ended: usize,
}

impl Scan {
    /// Scans a log for the pins of `keys` and the addresses of `network`. Nothing, where it is damaged or holds records that
    /// this version does not know: that is for the whole.
    pub(crate) fn read(file: &File, network: &Network, keys: &Keys) -> io::Result<Option<Self>> {
        let mut scan = Self::default();
        let mut chunk = vec![0; CHUNK];
        let (mut held, mut at) = (0, 0);
        loop {
            let space = chunk.get_mut(held..).unwrap_or_default();
            let read = file.read_at(space, (at + held) as u64)?;
            held += read;
            let Some(bytes) = chunk.get(..held) else { return Ok(None) };
            if read == 0 {
                // Whatever is left has no newline behind it: torn.
                scan.length = at;
                return Ok((held == 0).then_some(scan));
            }
            let Some(whole) = memchr::memrchr(b'\n', bytes).map(|last| last + 1) else { return Ok(None) };
            let (lines, _) = bytes.split_at(whole);
            if !scan.lines(lines, at, network, keys) {
                return Ok(None);
            }
            chunk.copy_within(whole..held, 0);
            (at, held) = (at + whole, held - whole);
        }
    }

    fn lines(&mut self, lines: &[u8], offset: usize, network: &Network, keys: &Keys) -> bool {
        for frame in frames(lines) {
            let Frame::Record { text, end } = frame else { return false };
            let Some(line) = Line::parse(text) else { return false };
            self.records += 1;
            self.highest = self.highest.max(line.number);
            let matters = match line.kind {
                pin::PIN | pin::SEEN => {
                    self.pins += 1;
                    let rest = line.subject.strip_prefix(network.as_str());
                    if rest.is_some_and(|rest| rest.starts_with(' ')) {
                        line.value
                            .split(',')
                            .filter_map(|a| a.parse().ok())
                            .for_each(|a| self.used.insert(a));
                    }
                    keys.contains(line.subject)
                }
                pin::END => {
                    self.ended += 1;
                    keys.contains(line.subject)
                }
                pin::FREE | pin::TAKE => keys.contains(line.subject),
                pin::LOG | pin::EPOCH => true,
                _ => return false,
            };
            if matters {
                frame::push(&mut self.part, text);
                self.ends.push(offset + end);
            }
        }
        true
    }

    /// What the part says.
    pub(crate) fn book(&self) -> Book<'_> {
        let mut book = Book::replay_part(&self.part, &self.ends);
        (book.highest, book.length, book.used) = (self.highest, self.length, Some(&self.used));
        book
    }

    /// Whether most records are past: each pin that lasts needs three at most.
    pub(crate) fn is_wasteful(&self) -> bool {
        self.records > 4 * (self.pins - self.ended.min(self.pins))
    }

    /// Pins that may last, at most.
    pub(crate) fn pins(&self) -> usize {
        self.pins - self.ended.min(self.pins)
    }
}

/// A set of addresses, dense ones in little memory.
#[derive(Debug, Default)]
pub(crate) struct Used {
    /// 4,096 neighbours a block: the address without its last twelve bits, and one bit for each.
    blocks: Map<(bool, u128), Box<[u64; 64]>>,
}

impl Used {
    fn place(address: IpAddr) -> ((bool, u128), usize, u64) {
        let (v4, number) = match address {
            IpAddr::V4(v4) => (true, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (false, v6.to_bits()),
        };
        let low = usize::try_from(number & 0xfff).expect("twelve bits fit");
        ((v4, number >> 12), low / 64, 1 << (low % 64))
    }

    fn insert(&mut self, address: IpAddr) {
        let (block, word, bit) = Self::place(address);
        let block = self.blocks.entry(block).or_insert_with(|| Box::new([0; 64]));
        if let Some(word) = block.get_mut(word) {
            *word |= bit;
        }
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let (block, word, bit) = Self::place(address);
        self.blocks.get(&block).and_then(|block| block.get(word)).is_some_and(|word| word & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn log(pods: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut push = |number, kind, value: &str, subject: &str| {
            frame::push(&mut out, &Line { number, kind, at: 1, value, subject }.text());
        };
        push(1, pin::LOG, "id", "corax-pins-1");
        for n in 0..pods {
            let address = std::net::Ipv4Addr::from_bits(0x0a01_0002 + u32::try_from(n).unwrap());
            push(n + 2, pin::PIN, &address.to_string(), &format!("pods default pod-{n} eth0"));
        }
        push(pods + 2, pin::FREE, "-", "pods default pod-7 eth0");
        out
    }

    fn scanned(bytes: &[u8], key: &str) -> Option<Scan> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Scan::read(&file, &"pods".parse().unwrap(), &Keys::from_iter([key.to_owned()])).unwrap()
    }

    #[test]
    fn a_part_says_of_its_pods_what_the_whole_says() {
        let bytes = log(3_000);
        let whole = Book::replay(&bytes);
        for key in ["pods default pod-7 eth0", "pods default pod-2999 eth0", "pods default nobody eth0"] {
            let scan = scanned(&bytes, key).unwrap();
            let part = scan.book();
            assert_eq!(format!("{:?}", part.pins.get(key)), format!("{:?}", whole.pins.get(key)));
            assert_eq!((part.highest, part.id, part.length), (whole.highest, whole.id, whole.length));
            let used = part.used.unwrap();
            assert!(
                used.contains("10.1.0.2".parse().unwrap()) && used.contains("10.1.11.185".parse().unwrap())
            );
            assert!(
                !used.contains("10.1.11.186".parse().unwrap()) && !used.contains("10.1.0.1".parse().unwrap())
            );
        }
    }

    #[test]
    fn damage_is_for_the_whole() {
        let bytes = log(20);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let scan = scanned(&flipped, "x");
            // An empty line may become a short one; a record may not go unnoticed.
            assert!(scan.is_none(), "flip at {at}");
            let cut = scanned(&bytes[..at], "x");
            let whole = bytes[..at].last().is_none_or(|&last| last == b'\n');
            assert_eq!(cut.is_some(), whole, "cut at {at}");
        }
    }
}
