//! What the pins log says, replayed.
//!
//! Numbers, not clocks, order what happened. Every address of a network has at most one pin: of two that claim one, which
//! only damage can bring about, the later wins and the other is void.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use crate::excerpt::Rest;
use crate::frame::{self, Frame, frames};
use crate::names::{Network, PinId, PodName};
use crate::record::{self, Line, pin};

pub(crate) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// One pin. Its texts point into the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) addresses: &'a str,
    /// Given by another IPAM and only seen.
    pub(crate) seen: bool,
    /// Number of the record that made it, its time and the offset behind it.
    pub(crate) made: u64,
    pub(crate) made_at: u64,
    pub(crate) end: usize,
    /// Where the records begin that made it, that say it is taken, that say it is free; 0 where there is none.
    pub(crate) places: [usize; 3],
    /// Number and time of the last record that says a sandbox took it.
    pub(crate) taken: u64,
    pub(crate) taken_at: u64,
    /// Number and time of the release, while it is released.
    pub(crate) freed: Option<(u64, u64)>,
}

impl Entry<'_> {
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        record::addresses(self.addresses).unwrap_or_default()
    }

    /// When it was released, as long as no sandbox holds it: the number that orders releases. Where nothing was said, that is when
    /// the holds `began` ([`Book::began`]).
    pub(crate) fn released(&self, began: u64) -> u64 {
        self.freed.map_or(self.taken.max(began), |(number, _)| number)
    }

    /// Number of the last record that concerns it.
    pub(crate) fn latest(&self) -> u64 {
        self.freed.map_or(self.taken, |(number, _)| number.max(self.taken))
    }
}

/// The pins log, replayed.
#[derive(Debug, Default)]
pub(crate) struct Book<'a> {
    pub(crate) pins: Map<&'a str, Entry<'a>>,
    /// Identity of this log: a log that began anew has another.
    pub(crate) id: Option<&'a str>,
    /// The last epoch of the holds that the log knows, and the record's number.
    pub(crate) epoch: Option<(&'a str, u64)>,
    /// Where the records begin that say identity and epoch; 0 where there is none.
    pub(crate) id_at: usize,
    pub(crate) epoch_at: usize,
    /// Records of kinds this version does not know; compaction keeps them.
    pub(crate) foreign: Vec<&'a str>,
    pub(crate) highest: u64,
    /// Frames that were no record any more.
    pub(crate) damaged: usize,
    /// Offset of a tail that was cut off by a crash.
    pub(crate) torn: Option<usize>,
    pub(crate) length: usize,
    /// Of an excerpt: what is known of the whole besides.
    pub(crate) rest: Option<&'a Rest>,
}

impl<'a> Book<'a> {
    /// Replays an excerpt of a log; `ends` are the offsets in the whole behind each of its records.
    pub(crate) fn replay_excerpt(excerpt: &'a [u8], ends: &[usize]) -> Self {
        let mut book = Self::default();
        for (frame, &end) in frames(excerpt).zip(ends) {
            if let Frame::Record { text, .. } = frame
                && let Some(line) = Line::parse(text)
            {
                book.apply(line, text, end);
            }
        }
        book
    }

    /// Replays a whole log.
    pub(crate) fn replay(log: &'a [u8]) -> Self {
        let mut book = Self { length: log.len(), ..Self::default() };
        book.pins.reserve(log.len() / 128);
        for frame in frames(log) {
            match frame {
                Frame::Record { text, end } => match Line::parse(text) {
                    Some(line) => book.apply(line, text, end),
                    None => book.damaged += 1,
                },
                Frame::Damaged => book.damaged += 1,
                Frame::Torn { start } => book.torn = Some(start),
            }
        }
        book
    }

    fn apply(&mut self, line: Line<'a>, text: &'a str, end: usize) {
        self.highest = self.highest.max(line.number);
        let start = end - text.len() - frame::AROUND;
        match line.kind {
            pin::PIN | pin::SEEN => {
                let entry = Entry {
                    addresses: line.value,
                    seen: line.kind == pin::SEEN,
                    made: line.number,
                    made_at: line.at,
                    end,
                    places: [start, 0, 0],
                    taken: line.number,
                    taken_at: line.at,
                    freed: None,
                };
                self.pins.insert(line.subject, entry);
            }
            pin::FREE => {
                if let Some(entry) = self.pins.get_mut(line.subject) {
                    entry.freed = Some((line.number, line.at));
                    let [made, taken, _] = entry.places;
                    entry.places = [made, taken, start];
                }
            }
            pin::TAKE => {
                if let Some(entry) = self.pins.get_mut(line.subject) {
                    (entry.taken, entry.taken_at, entry.freed) = (line.number, line.at, None);
                    let [made, ..] = entry.places;
                    entry.places = [made, start, 0];
                }
            }
            pin::END => drop(self.pins.remove(line.subject)),
            pin::EPOCH => (self.epoch, self.epoch_at) = (Some((line.value, line.number)), start),
            pin::LOG => (self.id, self.id_at) = (Some(line.value), start),
            _ => self.foreign.push(text),
        }
    }

    /// The pins of one network by address, the losers of double claims left out.
    pub(crate) fn index<'b>(&'b self, network: &Network) -> Index<'b> {
        let prefix = network.as_str();
        let of_network = |key: &str| key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(' '));
        let mut index = Index { by_address: Map::default(), void: Vec::new() };
        index.by_address.reserve(self.pins.len());
        for (&key, entry) in self.pins.iter().filter(|(key, _)| of_network(key)) {
            for address in entry.addresses.split(',').filter_map(|a| a.parse().ok()) {
                index.claim(address, Claim { key, entry });
            }
        }
        for void in std::mem::take(&mut index.void) {
            index.by_address.retain(|_, claim| claim.key != void);
            index.void.push(void);
        }
        index
    }

    /// Keys of all pins that lost an address to a later one.
    pub(crate) fn void(&self) -> Vec<&str> {
        let networks: BTreeSet<&str> = self.pins.keys().filter_map(|key| key.split(' ').next()).collect();
        let networks = networks.into_iter().filter_map(|network| network.parse::<Network>().ok());
        networks.flat_map(|network| self.index(&network).void).collect()
    }

    /// When the holds of an epoch began: the number of the record that says so, or will.
    pub(crate) fn began(&self, epoch: &str) -> u64 {
        self.epoch.filter(|(known, _)| *known == epoch).map_or(self.highest + 1, |(_, number)| number)
    }
}

/// One address's pin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim<'b> {
    pub(crate) key: &'b str,
    pub(crate) entry: &'b Entry<'b>,
}

impl Claim<'_> {
    pub(crate) fn pod(&self) -> Option<PodName> {
        PinId::from_words(self.key).map(|id| id.pod)
    }
}

/// The pins of one network by address.
#[derive(Debug)]
pub(crate) struct Index<'b> {
    pub(crate) by_address: Map<IpAddr, Claim<'b>>,
    /// Keys whose address a later pin claims.
    pub(crate) void: Vec<&'b str>,
}

impl<'b> Index<'b> {
    fn claim(&mut self, address: IpAddr, claim: Claim<'b>) {
        let loser = match self.by_address.get(&address) {
            Some(other) if other.key != claim.key && other.entry.made > claim.entry.made => claim.key,
            Some(other) if other.key != claim.key => {
                let loser = other.key;
                self.by_address.insert(address, claim);
                loser
            }
            _ => {
                self.by_address.insert(address, claim);
                return;
            }
        };
        if !self.void.contains(&loser) {
            self.void.push(loser);
        }
    }
}
