//! The table of contents of a large log: where each pin's records are, in the order of a hash, and which addresses are taken.
//!
//! A short cut and no more, kept in the run directory and made from the log. It is true of one file as it was when the table
//! was last stamped: an append by us stamps it anew, whatever else happens to the log makes it void. Where there is none that
//! is true, the log is read whole and the table made again. It says where to look: every record is checked where it is read.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::book::{Book, Entry};
use crate::journal;
use crate::names::Network;

/// Name of the table's file in the run directory.
pub(crate) const FILE: &str = "contents";

const MAGIC: u64 = u64::from_be_bytes(*b"contents");
const HEADER: usize = 64;
/// Header and four numbers.
const ROWS: usize = HEADER + 32;
const ROW: usize = 32;

/// The state of a log file that a table is true of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    length: u64,
    /// When it was changed last: seconds and nanoseconds.
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Self { inode: metadata.ino(), length: metadata.len(), changed }
    }
}

/// Where the records of one pin begin; 0 where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    hash: u64,
    /// [`Entry::released`].
    pub(crate) released: u64,
    pub(crate) made: u32,
    pub(crate) taken: u32,
    pub(crate) freed: u32,
}

/// What a table says; its bytes are checked.
#[derive(Debug)]
pub(crate) struct Contents {
    file: File,
    /// Of the log.
    inode: u64,
    bytes: Vec<u8>,
    sum: u32,
    /// Up to this offset of the log.
    pub(crate) covered: u64,
    pub(crate) highest: u64,
    /// Where the log's head and its last epoch begin.
    pub(crate) heads: [u64; 2],
    rows: usize,
}

/// A table that is not written yet.
pub(crate) struct Draft {
    body: Vec<u8>,
    covered: u64,
}

impl Draft {
    /// The contents of a log that was replayed whole, while the holds are of `epoch`; none where only the whole can tell: it is damaged, claims an address
    /// twice, is too large for offsets of 32 bits, or two of its pins have one hash.
    pub(crate) fn of(book: &Book<'_>, epoch: &str) -> Option<Self> {
        if book.damaged > 0 {
            return None;
        }
        let began = book.began(epoch);
        let mut rows =
            book.pins.iter().map(|(key, entry)| row(began, key, entry)).collect::<Option<Vec<_>>>()?;
        rows.sort_unstable_by_key(|row| row.hash);
        if rows.windows(2).any(|pair| matches!(pair, [a, b] if a.hash == b.hash)) {
            return None;
        }
        let mut claims: Vec<_> = book
            .pins
            .iter()
            .flat_map(|(key, entry)| {
                let network = key.split(' ').next().unwrap_or_default();
                entry.addresses.split(',').filter_map(move |a| Some((network, a.parse().ok()?)))
            })
            .collect();
        claims.sort_unstable();

        let mut body = Vec::with_capacity(rows.len() * ROW + 512);
        let mut put = |number: u64| body.extend_from_slice(&number.to_le_bytes());
        put(book.highest);
        put(book.id_at as u64);
        put(book.epoch_at as u64);
        put(rows.len() as u64);
        for row in &rows {
            put(row.hash);
            put(row.released);
            put(u64::from(row.made) << 32 | u64::from(row.taken));
            put(u64::from(row.freed));
        }
        for of_network in claims.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((network, _)) = of_network.first() else { continue };
            let addresses: Vec<_> = of_network.iter().map(|(_, address)| *address).collect();
            let runs = runs(&addresses)?;
            body.extend_from_slice(&u64::try_from(network.len()).ok()?.to_le_bytes());
            body.extend_from_slice(&(runs.len() as u64).to_le_bytes());
            body.extend_from_slice(network.as_bytes());
            runs.iter()
                .for_each(|&(first, last)| body.extend([first, last].into_iter().flat_map(address_bytes)));
        }
        Some(Self { body, covered: book.torn.unwrap_or(book.length) as u64 })
    }

    /// Writes it for the log as it is now: what [`Self::of`] was made of, and whole records behind that.
    pub(crate) fn write(&self, path: &Path, log: Stamp) -> io::Result<()> {
        let mut bytes = header(log, self.covered, crc32c::crc32c(&self.body)).to_vec();
        bytes.extend_from_slice(&self.body);
        journal::replace(path, &bytes, false)
    }
}

impl Contents {
    /// The table at a path, if it is true of a log.
    pub(crate) fn open(path: &Path, log: Stamp) -> Option<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let (head, body) = bytes.split_at_checked(HEADER)?;
        let mut words = Words(head);
        let covered = words.nth(5)?;
        let sum = u32::try_from(words.next()?).ok()?;
        if head != header(log, covered, sum) || crc32c::crc32c(body) != sum || covered > log.length {
            return None;
        }
        let mut words = Words(body);
        let (highest, heads) = (words.next()?, [words.next()?, words.next()?]);
        let rows = usize::try_from(words.next()?).ok()?;
        (rows.checked_mul(ROW)? <= words.0.len()).then_some(Self {
            file,
            inode: log.inode,
            bytes,
            sum,
            covered,
            highest,
            heads,
            rows,
        })
    }

    /// Says that the table is true of its log, which has whole records more than before. Of another log it is not.
    pub(crate) fn stamp(&self, log: Stamp) -> io::Result<()> {
        if log.inode != self.inode {
            return Ok(());
        }
        self.file.write_all_at(&header(log, self.covered, self.sum), 0)
    }

    fn row(&self, at: usize) -> Option<Row> {
        let mut words = Words(self.bytes.get(ROWS + at * ROW..)?);
        let (hash, released, both) = (words.next()?, words.next()?, words.next()?);
        let made = u32::try_from(both >> 32).ok()?;
        let taken = u32::try_from(both & u64::from(u32::MAX)).ok()?;
        Some(Row { hash, released, made, taken, freed: u32::try_from(words.next()?).ok()? })
    }

    /// The pin of a key, or of another that has the same hash: then there is none of this key.
    pub(crate) fn find(&self, key: &str) -> Option<Row> {
        let hash = hash(key);
        let (mut low, mut high) = (0, self.rows);
        while low < high {
            let middle = low.midpoint(high);
            let row = self.row(middle)?;
            match row.hash.cmp(&hash) {
                std::cmp::Ordering::Equal => return Some(row),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// All pins, the one released longest ago first.
    pub(crate) fn by_release(&self) -> Vec<Row> {
        let mut all: Vec<_> = (0..self.rows).filter_map(|at| self.row(at)).collect();
        all.sort_unstable_by_key(|row| (row.released, row.made));
        all
    }

    /// The addresses that pins of a network have, as runs of neighbours, in order.
    pub(crate) fn taken(&self, network: &Network) -> Option<Vec<(IpAddr, IpAddr)>> {
        let mut rest = self.bytes.get(ROWS + self.rows * ROW..)?;
        while !rest.is_empty() {
            let mut words = Words(rest);
            let (name, runs) = (usize::try_from(words.next()?).ok()?, usize::try_from(words.next()?).ok()?);
            let (this, behind) = words.0.split_at_checked(name)?;
            let (bytes, behind) = behind.split_at_checked(runs.checked_mul(2 * ADDRESS)?)?;
            if this == network.as_str().as_bytes() {
                let pair =
                    |pair: &[u8]| Some((address(pair.get(..ADDRESS)?)?, address(pair.get(ADDRESS..)?)?));
                return bytes.chunks_exact(2 * ADDRESS).map(pair).collect();
            }
            rest = behind;
        }
        Some(Vec::new())
    }
}

fn row(began: u64, key: &str, entry: &Entry<'_>) -> Option<Row> {
    let [made, taken, freed] = entry.places.map(|place| u32::try_from(place).ok());
    Some(Row { hash: hash(key), released: entry.released(began), made: made?, taken: taken?, freed: freed? })
}

/// FNV-1a, 64 bits: the same in every version of the plugin.
pub(crate) fn hash(key: &str) -> u64 {
    key.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Runs of neighbours of sorted addresses; none where one comes twice.
fn runs(addresses: &[IpAddr]) -> Option<Vec<(IpAddr, IpAddr)>> {
    let mut runs: Vec<(IpAddr, IpAddr)> = Vec::new();
    for &address in addresses {
        match runs.last_mut() {
            Some((_, last)) if *last == address => return None,
            Some((_, last)) if next(*last) == Some(address) => *last = address,
            _ => runs.push((address, address)),
        }
    }
    Some(runs)
}

fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(Ipv4Addr::from_bits(v4.to_bits().checked_add(1)?).into()),
        IpAddr::V6(v6) => Some(Ipv6Addr::from_bits(v6.to_bits().checked_add(1)?).into()),
    }
}

/// An address: its family, then 16 bytes.
const ADDRESS: usize = 17;

fn address_bytes(address: IpAddr) -> [u8; ADDRESS] {
    let (family, number) = match address {
        IpAddr::V4(v4) => (4, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (6, v6.to_bits()),
    };
    let mut bytes = [family; ADDRESS];
    bytes.iter_mut().skip(1).zip(number.to_le_bytes()).for_each(|(at, byte)| *at = byte);
    bytes
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let (family, number) = bytes.split_first()?;
    let number = u128::from_le_bytes(number.try_into().ok()?);
    match family {
        4 => Some(Ipv4Addr::from_bits(u32::try_from(number).ok()?).into()),
        6 => Some(Ipv6Addr::from_bits(number).into()),
        _ => None,
    }
}

/// Of all that a table is true of, and of its body's checksum.
fn header(log: Stamp, covered: u64, sum: u32) -> [u8; HEADER] {
    let Stamp { inode, length, changed: (seconds, nanoseconds) } = log;
    let mut bytes = [0; HEADER];
    let words =
        [MAGIC, inode, length, seconds.cast_unsigned(), nanoseconds.cast_unsigned(), covered, sum.into()];
    let (said, check) = bytes.split_at_mut(HEADER - 8);
    said.chunks_exact_mut(8).zip(words).for_each(|(at, word)| at.copy_from_slice(&word.to_le_bytes()));
    check.copy_from_slice(&u64::from(crc32c::crc32c(said)).to_le_bytes());
    bytes
}

/// Numbers of 64 bits, one behind the other.
struct Words<'b>(&'b [u8]);

impl Iterator for Words<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*word))
    }
}
