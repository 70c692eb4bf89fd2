//! An excerpt of a large log, what one call needs of it: the records of the pods that matter now, found by the table of contents, and
//! the tail behind it, a log of their own.
//!
//! It tells the same about those pods as the whole does. What it cannot answer is asked of the whole ([`Book::replay`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use crate::book::Book;
use crate::contents::{Contents, Row};
use crate::frame::{self, Frame, frames};
use crate::names::Network;
use crate::record::{Line, addresses, pin};

/// A tail shorter than this in bytes, or than one sixteenth of what the table covers, is worth reading.
const TAIL: u64 = 16 << 10;
/// Read where a record is. Names as long as they may be need more.
const RECORD: usize = 512;
const LONGEST: usize = 4 << 10;

/// What was found.
#[derive(Debug)]
pub(crate) struct Excerpt {
    log: Vec<u8>,
    /// The offset in the whole log behind each record.
    ends: Vec<usize>,
    highest: u64,
    length: usize,
    rest: Rest,
}

/// What is known of the whole, besides.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Addresses of the network's pins, in order, as runs of neighbours.
    taken: Vec<(IpAddr, IpAddr)>,
    /// Those of them that belong to pins of the excerpt: what became of them since is in the book.
    told: BTreeSet<IpAddr>,
    /// No pin outside the excerpt was released before this one, by number; 0 where nothing is known of that.
    pub(crate) released_from: u64,
}

impl Rest {
    /// Whether a pin outside the excerpt has an address.
    pub(crate) fn takes(&self, address: IpAddr) -> bool {
        let before = self.taken.partition_point(|(first, _)| *first <= address);
        let run = before.checked_sub(1).and_then(|at| self.taken.get(at));
        run.is_some_and(|(_, last)| address <= *last) && !self.told.contains(&address)
    }
}

impl Excerpt {
    /// The pins of `keys`, and of a network the `oldest` that were released longest ago. None, where that is for the whole: the
    /// tail is long, damaged, or of another epoch.
    pub(crate) fn read(
        log: &File,
        length: u64,
        contents: &Contents,
        network: &Network,
        mut keys: BTreeSet<String>,
        oldest: usize,
    ) -> Option<Self> {
        let behind = length.checked_sub(contents.covered)?;
        if behind > TAIL.max(contents.covered / 16) {
            return None;
        }
        let mut tail = vec![0; usize::try_from(behind).ok()?];
        log.read_exact_at(&mut tail, contents.covered).ok()?;
        let rest = Rest { taken: contents.taken(network)?, told: BTreeSet::new(), released_from: 0 };
        let mut excerpt =
            Self { log: Vec::new(), ends: Vec::new(), highest: contents.highest, length: 0, rest };
        excerpt.length = usize::try_from(length).ok()?;
        let of_network = |key: &str| key.strip_prefix(network.as_str()).is_some_and(|k| k.starts_with(' '));

        let mut late = Vec::new();
        for frame in frames(&tail) {
            let Frame::Record { text, end } = frame else { return None };
            let line = Line::parse(text)?;
            excerpt.highest = excerpt.highest.max(line.number);
            if matches!(line.kind, pin::LOG | pin::EPOCH) {
                return None;
            }
            keys.insert(line.subject.to_owned());
            late.push((text, usize::try_from(contents.covered).ok()? + end));
        }

        for head in contents.heads.into_iter().filter(|&at| at > 0) {
            record(log, head)?.push_to(&mut excerpt);
        }
        for row in keys.iter().filter_map(|key| contents.find(key)) {
            let found = records(log, &row)?;
            let subject = found.first().map_or("", Record::subject);
            if keys.contains(subject) {
                excerpt.push_pin(&found, of_network(subject));
            }
        }
        if oldest > 0 {
            excerpt.add_oldest(log, contents, &keys, of_network, oldest)?;
        }
        for (text, end) in late {
            excerpt.push(text, end);
        }
        Some(excerpt)
    }

    fn add_oldest(
        &mut self,
        log: &File,
        contents: &Contents,
        keys: &BTreeSet<String>,
        of_network: impl Fn(&str) -> bool,
        mut oldest: usize,
    ) -> Option<()> {
        for row in contents.by_release() {
            let found = records(log, &row)?;
            let subject = found.first()?.subject();
            if keys.contains(subject) || !of_network(subject) {
                continue;
            }
            if oldest == 0 {
                self.rest.released_from = row.released;
                return Some(());
            }
            oldest -= 1;
            self.push_pin(&found, true);
        }
        self.rest.released_from = u64::MAX;
        Some(())
    }

    /// The records of a pin, the one that made it first; `counts`: it is of the network that is asked about.
    fn push_pin(&mut self, found: &[Record], counts: bool) {
        let made = found.first().filter(|_| counts).and_then(|record| Line::parse(&record.text));
        self.rest.told.extend(made.and_then(|line| addresses(line.value)).into_iter().flatten());
        found.iter().for_each(|record| record.push_to(self));
    }

    fn push(&mut self, text: &str, end: usize) {
        frame::push(&mut self.log, text);
        self.ends.push(end);
    }

    /// What it says.
    pub(crate) fn book(&self) -> Book<'_> {
        let mut book = Book::replay_excerpt(&self.log, &self.ends);
        (book.highest, book.length, book.rest) = (self.highest, self.length, Some(&self.rest));
        book
    }
}

/// A record of the log, whole.
struct Record {
    text: String,
    end: usize,
}

impl Record {
    fn subject(&self) -> &str {
        Line::parse(&self.text).map_or("", |line| line.subject)
    }

    fn push_to(&self, excerpt: &mut Excerpt) {
        excerpt.push(&self.text, self.end);
    }
}

/// The records of a pin, in the order of their numbers.
fn records(log: &File, row: &Row) -> Option<Vec<Record>> {
    let places = [row.made, row.taken, row.freed];
    places.into_iter().filter(|&at| at > 0).map(|at| record(log, at.into())).collect()
}

fn record(log: &File, at: u64) -> Option<Record> {
    for size in [RECORD, LONGEST] {
        let mut bytes = vec![0; size];
        let read = log.read_at(&mut bytes, at).ok()?;
        let bytes = bytes.get(..read)?;
        if let Some(length) = memchr::memchr(b'\n', bytes) {
            let Frame::Record { text, end } = frames(bytes.get(..=length)?).next()? else { return None };
            return Some(Record { text: text.to_owned(), end: usize::try_from(at).ok()? + end });
        }
    }
    None
}

#[cfg(test)]
mod tests;
