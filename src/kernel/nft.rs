//! The nftables table: made anew by the program `nft`, in one transaction; its elements changed and read by nfnetlink.
//!
//! Who made the table is told by one element of its set [`CHECKSUM_SET`], so that a restart adopts it without a write.

mod elements;
mod filter;
mod legacy;
mod making;
mod obstacle;
pub(super) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use corax_core::change::by_set;
use corax_core::nft::{CHECKSUM_SET, Ruleset, outline};
use corax_core::object::Set;
use corax_core::observed::{NftTable, Observed};
use corax_core::prefix::Prefix;
use corax_core::problem::Problem;
use corax_core::sorted::{Difference, merge};
use nix::errno::Errno;
use sha2::{Digest as _, Sha256};

use self::elements::{Raw, paired};
use self::making::{Made, Making, Steps, Turnover};
use self::wire::{Batch, ElementEvent, Event};
use super::error::{Error, Failure};
use super::facts::UdpPort;
use super::program;
use super::socket::{Received, Socket};
use super::wire::Messages;

pub(super) const NETLINK_NETFILTER: u16 = 12;
const NFNLGRP_NFTABLES: u32 = 7;

/// How often the chains of others are looked at, at most: kube-proxy has tens of thousands, and changes them all the time.
const LOOK: Duration = Duration::from_secs(3);

/// Looking at them takes no more of the time than one part in this many.
const SHARE: u32 = 50;

pub(super) struct Nft {
    program: PathBuf,
    requests: Socket,
    events: Socket,
    /// The port of `requests`, which events of our own writes carry.
    port: u32,
    /// The table by its listing, before its elements are looked at.
    table: NftTable,
    /// What it declares, by the same.
    outline: BTreeSet<String>,
    /// Sets with elements that Corax cannot have put there.
    odd: BTreeSet<Set>,
    /// Read the table anew.
    stale: bool,
    /// How many transactions there had been when all was read last.
    read_at: Option<u32>,
    /// Read the elements of these sets anew.
    stale_sets: BTreeSet<Set>,
    /// Somebody else changed something since the chains of others were last looked at, which was then.
    foreign: bool,
    looked: Option<Instant>,
    /// How long they are left alone after that.
    pause: Duration,
    obstacles: Vec<obstacle::Obstacle>,
    /// The same of iptables' old kind, of which there are no events, and why that could not be read.
    legacy: (Vec<obstacle::Obstacle>, Vec<Problem>),
    /// The table that is being made.
    making: Option<Making>,
    /// Fingerprint of the table that was made last, and the digest of its listing.
    lists_as: Option<(u64, u64)>,
    /// The listing of a table that has just been made.
    made: Option<String>,
    /// Changes of elements that have not been put together yet.
    added: BTreeMap<Set, Vec<Raw>>,
    deleted: BTreeMap<Set, Vec<Raw>>,
}

/// Why the table could not be changed.
pub(super) enum Refused {
    /// By the kernel.
    Kernel(Failure),
    /// By nft, or because it could not be read afterwards.
    Other(Error),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Kernel(failure)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn read(failure: Failure) -> Error {
    Error::Read { what: "nftables table", failure }
}

impl Nft {
    pub(super) fn open(queue: usize) -> Result<Self, Error> {
        let program = program::find("nft").ok_or(Error::NoNft)?;
        let events = Socket::listen(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES], queue)?;
        let requests = Socket::open(NETLINK_NETFILTER, false)?;
        let port = requests.port()?;
        Ok(Self {
            program,
            requests,
            events,
            port,
            table: NftTable::Absent,
            outline: BTreeSet::new(),
            odd: BTreeSet::new(),
            stale: true,
            read_at: None,
            stale_sets: BTreeSet::new(),
            foreign: true,
            looked: None,
            pause: LOOK,
            obstacles: Vec::new(),
            legacy: Default::default(),
            making: None,
            lists_as: None,
            made: None,
            added: BTreeMap::new(),
            deleted: BTreeMap::new(),
        })
    }

    /// Runs another program for nft.
    #[cfg(test)]
    pub(super) fn use_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.events.fd()
    }

    /// Leaves an answer that comes late, or a dump that is still under way, behind with its socket.
    pub(super) fn reopen(&mut self) -> Result<(), Error> {
        self.stale = true;
        self.requests = Socket::open(NETLINK_NETFILTER, false)?;
        self.port = self.requests.port()?;
        Ok(())
    }

    /// Reads everything, unless there was no transaction since it was read last: ten thousand elements take long.
    pub(super) fn resync(&mut self, observed: &mut Observed) -> Result<bool, Error> {
        self.take_events()?;
        let generation = wire::generation(&mut self.requests).map_err(read)?;
        if self.read_at != Some(generation) {
            (self.stale, self.foreign) = (true, true);
            self.read_at = None;
        }
        let changed = self.settle(observed)?;
        self.read_at = Some(generation);
        Ok(changed)
    }

    /// Takes in what happened; tells whether anything of it was new.
    pub(super) fn drain(&mut self, observed: &mut Observed) -> Result<bool, Error> {
        self.take_events()?;
        self.settle(observed)
    }

    fn settle(&mut self, observed: &mut Observed) -> Result<bool, Error> {
        let mut changed = false;
        let made = self.made.take();
        if self.stale || made.is_some() {
            changed |= self.read_table(observed, made.filter(|_| !self.stale))?;
            self.stale = false;
        } else {
            changed |= self.put_together(observed);
        }
        for set in std::mem::take(&mut self.stale_sets) {
            let result = self.read_set(observed, set);
            if result.is_err() {
                self.stale = true;
            }
            changed |= result?;
        }
        Ok(changed | self.conclude(observed))
    }

    fn conclude(&self, observed: &mut Observed) -> bool {
        let table = match self.table {
            NftTable::Intact(_) if !self.odd.is_empty() => NftTable::Altered,
            table => table,
        };
        std::mem::replace(&mut observed.nft, table) != table
    }

    /// Queues what events tell.
    fn take_events(&mut self) -> Result<(), Error> {
        loop {
            match self.events.receive_now().map_err(read)? {
                Received::Nothing => return Ok(()),
                Received::Overrun => (self.stale, self.foreign) = (true, true),
                Received::Datagram(bytes) => {
                    for message in Messages(bytes) {
                        match wire::decode_event(&message) {
                            Event::Nothing => {}
                            Event::Foreign => self.foreign = true,
                            Event::Table => self.stale = true,
                            Event::Elements(name, event) => match Set::from_name(name) {
                                Some(set) => {
                                    let (queue, elements) = match event {
                                        ElementEvent::Added(elements) => (&mut self.added, elements),
                                        ElementEvent::Deleted(elements) => (&mut self.deleted, elements),
                                    };
                                    let known = elements::decode(elements, queue.entry(set).or_default());
                                    if known.is_none() {
                                        self.stale_sets.insert(set);
                                    }
                                }
                                None => self.stale |= name == CHECKSUM_SET && message.port != self.port,
                            },
                        }
                    }
                }
            }
        }
    }

    /// Applies the queued changes of elements to the mirror; reads a set anew where they do not fit together.
    fn put_together(&mut self, observed: &mut Observed) -> bool {
        let mut changed = false;
        for (set, raw) in std::mem::take(&mut self.deleted) {
            for prefix in paired(set, raw, false).unwrap_or_else(|| {
                self.stale_sets.insert(set);
                Vec::new()
            }) {
                if observed.elements.remove(&(set, prefix)).is_some() {
                    changed = true;
                } else {
                    self.stale_sets.insert(set);
                }
            }
        }
        for (set, raw) in std::mem::take(&mut self.added) {
            let Some(prefixes) = paired(set, raw, false) else {
                self.stale_sets.insert(set);
                continue;
            };
            for prefix in prefixes {
                changed |= observed.elements.insert((set, prefix), ()).is_none();
            }
        }
        changed
    }

    /// Reads all of the table, but for its listing where that is known.
    fn read_table(&mut self, observed: &mut Observed, made: Option<String>) -> Result<bool, Error> {
        self.forget_events();
        let checksum = if wire::table_exists(&mut self.requests).map_err(read)? {
            self.read_checksum().map_err(read)?
        } else {
            self.table = NftTable::Absent;
            self.odd.clear();
            let changed = !observed.elements.is_empty();
            observed.elements.clear();
            return Ok(changed);
        };
        let listing = match made {
            None => listing(&self.program)?,
            listing => listing,
        };
        self.table = known_by(checksum, listing.as_deref());
        self.outline = listing.as_deref().map(outline).unwrap_or_default();
        self.read_sets(observed)
    }

    fn read_sets(&mut self, observed: &mut Observed) -> Result<bool, Error> {
        let mut changed = false;
        for set in Set::all() {
            changed |= self.read_set(observed, set)?;
        }
        Ok(changed)
    }

    fn forget_events(&mut self) {
        self.stale_sets.clear();
        self.added.clear();
        self.deleted.clear();
    }

    /// The value in the checksum set, if it is one.
    fn read_checksum(&mut self) -> Result<Option<u128>, Failure> {
        let raw = match wire::dump_elements(&mut self.requests, CHECKSUM_SET) {
            Err(failure) if failure.errno == Errno::ENOENT => return Ok(None),
            result => result?,
        };
        Ok(match raw.as_deref() {
            Some([Raw { key, end: false }]) => Some(*key),
            _ => None,
        })
    }

    fn read_set(&mut self, observed: &mut Observed, set: Set) -> Result<bool, Error> {
        let raw = match wire::dump_elements(&mut self.requests, &set.to_string()) {
            // The set was taken away; an event tells of it.
            Err(failure) if failure.errno == Errno::ENOENT => None,
            result => result.map_err(read)?,
        };
        let prefixes = raw.and_then(|raw| paired(set, raw, true));
        if prefixes.is_some() {
            self.odd.remove(&set);
        } else {
            self.odd.insert(set);
        }
        let mut found = prefixes.unwrap_or_default();
        found.sort_unstable();
        let mut gone = Vec::new();
        let mut new = BTreeMap::new();
        merge(
            found.iter().map(|prefix| (prefix, &())),
            elements_of(observed, set).map(|prefix| (prefix, &())),
            |difference| match difference {
                Difference::Missing(prefix, ()) => drop(new.insert((set, *prefix), ())),
                Difference::Extra(prefix, ()) => gone.push((set, *prefix)),
                Difference::Both(..) => {}
            },
        );
        let changed = !gone.is_empty() || !new.is_empty();
        for element in gone {
            observed.elements.remove(&element);
        }
        observed.elements.append(&mut new);
        Ok(changed)
    }

    /// Makes the table anew. Where there is one it holds when this returns; else that has to be [waited](Self::stand) for. It is
    /// filled with the members of a large one, and known as ours, after [`finish`](Self::finish). Meanwhile other things may be
    /// done. `in_use`: there are devices of ours, or Raven's, that packets go by already.
    pub(super) fn replace(
        &mut self,
        observed: &mut Observed,
        ruleset: &Ruleset,
        elements: &[(Set, Prefix)],
        in_use: bool,
    ) -> Result<(), Refused> {
        self.drain(observed)?;
        let steps = if self.table == NftTable::Absent {
            Steps::anew(ruleset, elements, in_use)
        } else {
            let stays = self.odd.is_empty() && ruleset.renews(&self.outline);
            let turnover = stays.then(|| Turnover::of(observed, elements));
            Steps::again(ruleset, elements, &self.outline, turnover)
        };
        let absent = self.table == NftTable::Absent;
        self.stale = true;
        // The kernel makes an event of each element.
        self.events.leave(&[NFNLGRP_NFTABLES])?;
        let generation = wire::generation(&mut self.requests)?;
        self.making = Some(Making::begin(&self.program, ruleset.fingerprint(), generation, steps)?);
        if absent { Ok(()) } else { self.stand() }
    }

    /// Whether there was no table when it was last looked at.
    pub(super) fn is_absent(&self) -> bool {
        self.table == NftTable::Absent
    }

    /// Whether no table is being made that does not hold yet.
    pub(super) fn stands(&self) -> bool {
        self.making.as_ref().is_none_or(Making::stands)
    }

    /// Waits until the table that is being made holds.
    pub(super) fn stand(&mut self) -> Result<(), Refused> {
        let stands = self.making.as_mut().map_or(Ok(()), Making::stand);
        if stands.is_err() {
            self.making = None;
        }
        stands
    }

    /// Waits for what is still being done for a table, and puts the seal on it. The next [`drain`](Self::drain) reads it.
    pub(super) fn finish(&mut self) -> Result<(), Refused> {
        let made = self.making.take().map(Making::end);
        self.events.join(&[NFNLGRP_NFTABLES])?;
        let Some(Made { fingerprint, generation, listing: mut list }) = made.transpose()? else {
            return Ok(());
        };
        let undisturbed = wire::generation(&mut self.requests)? == generation;
        if !undisturbed {
            self.foreign = true;
            // What somebody else did to the table is in this, or heard from now on.
            list = listing(&self.program)?;
        }
        let Some(list) = list else { return Ok(()) };
        // Made twice and found the same, it is as it was made, whatever others do beside it.
        let lists_as = (fingerprint, digest(&list));
        if undisturbed || self.lists_as == Some(lists_as) {
            let checksum = u128::from(fingerprint) << 64 | u128::from(lists_as.1);
            let element = Prefix::host(IpAddr::from(Ipv6Addr::from(checksum)));
            self.send(|batch| batch.add(CHECKSUM_SET, false, &[element]))?;
            self.made = Some(list);
            self.stale = false;
        }
        self.lists_as = Some(lists_as);
        Ok(())
    }

    /// Takes elements away and adds others, in one transaction.
    pub(super) fn change(
        &mut self,
        observed: &mut Observed,
        delete: &[(Set, Prefix)],
        add: &[(Set, Prefix)],
    ) -> Result<(), Refused> {
        let result = send_elements(&mut self.requests, delete, add);
        match result {
            Err(failure) if matches!(failure.errno, Errno::ENOENT | Errno::EEXIST) => {
                // The mirror was behind: leave out what is so already.
                self.take_events()?;
                self.stale_sets.extend(delete.iter().chain(add).map(|(set, _)| *set));
                self.settle(observed)?;
                let there = |element: &&(Set, Prefix)| observed.elements.contains_key(*element);
                let delete: Vec<_> = delete.iter().filter(there).copied().collect();
                let add: Vec<_> = add.iter().filter(|element| !there(element)).copied().collect();
                send_elements(&mut self.requests, &delete, &add)?;
            }
            result => result?,
        }
        self.drain(observed)?;
        Ok(())
    }

    /// Removes the table.
    pub(super) fn delete(&mut self, observed: &mut Observed) -> Result<(), Refused> {
        match self.send(Batch::delete_table) {
            Err(failure) if failure.errno == Errno::ENOENT => {}
            result => result?,
        }
        self.drain(observed)?;
        Ok(())
    }

    fn send(&mut self, fill: impl FnOnce(&mut Batch)) -> Result<(), Failure> {
        Batch::send(&mut self.requests, fill)
    }

    /// When the chains of others may be looked at, where they may have changed.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.foreign.then(|| self.looked.map_or_else(Instant::now, |at| at + self.pause))
    }

    /// Chains of others that may drop what is on its way between domains, or by these UDP ports.
    pub(super) fn obstacles(&mut self, ports: &[UdpPort]) -> Result<Vec<Problem>, Error> {
        if self.looked.is_none_or(|at| at.elapsed() >= self.pause) {
            let begun = Instant::now();
            self.looked = Some(begun);
            self.legacy = obstacle::legacy();
            if self.foreign {
                self.obstacles = obstacle::obstacles(&mut self.requests)
                    .map_err(|failure| Error::Read { what: "chains of others", failure })?;
                self.foreign = false;
            }
            self.pause = LOOK.max(begun.elapsed() * SHARE);
            self.looked = Some(Instant::now());
        }
        let (legacy, unread) = &self.legacy;
        let all = self.obstacles.iter().chain(legacy);
        Ok(all.filter_map(|obstacle| obstacle.problem(ports)).chain(unread.iter().cloned()).collect())
    }

    /// Named counters: packets and bytes.
    pub(super) fn counters(&mut self) -> Result<Vec<(String, u64, u64)>, Error> {
        match wire::dump_counters(&mut self.requests) {
            Err(failure) if failure.errno == Errno::ENOENT => Ok(Vec::new()),
            result => result.map_err(|failure| Error::Read { what: "nftables counters", failure }),
        }
    }
}

/// What nft prints of the table, without elements and counters; none where there is no table.
fn listing(program: &Path) -> Result<Option<String>, Error> {
    let arguments = ["-s", "-t", "list", "table", "inet", corax_core::object::ALIAS];
    match program::run(program, &arguments, "", "list table") {
        Err(Error::Program { text, .. }) if text.starts_with("Error: No such file") => Ok(None),
        result => result.map(Some),
    }
}

/// Takes elements away and adds others, in one transaction.
fn send_elements(
    socket: &mut Socket,
    delete: &[(Set, Prefix)],
    add: &[(Set, Prefix)],
) -> Result<(), Failure> {
    if delete.is_empty() && add.is_empty() {
        return Ok(());
    }
    Batch::send(socket, |batch| {
        for (elements, deleted) in [(delete, true), (add, false)] {
            for (set, group) in by_set(elements) {
                let prefixes: Vec<Prefix> = group.iter().map(|(_, prefix)| *prefix).collect();
                let name = set.to_string();
                if deleted {
                    batch.delete(&name, set.is_interval(), &prefixes);
                } else {
                    batch.add(&name, set.is_interval(), &prefixes);
                }
            }
        }
    })
}

/// The elements of a set, in order.
pub(super) fn elements_of(observed: &Observed, set: Set) -> impl Iterator<Item = &Prefix> {
    let from = observed.elements.range((set, Prefix::least())..);
    from.map(|(element, ())| element).take_while(move |(of, _)| *of == set).map(|(_, prefix)| prefix)
}

/// The table, by its checksum and its listing.
fn known_by(checksum: Option<u128>, listing: Option<&str>) -> NftTable {
    let Some(listing) = listing else { return NftTable::Absent };
    let Some(bytes) = checksum.map(u128::to_be_bytes) else { return NftTable::Altered };
    let (upper, lower) = bytes.split_at(8);
    let number = |half: &[u8]| half.try_into().map(u64::from_be_bytes).unwrap_or_default();
    if number(lower) == digest(listing) { NftTable::Intact(number(upper)) } else { NftTable::Altered }
}

/// The first 64 bits of the SHA-256 of a listing, the checksum's own set and what nft remarks left out.
fn digest(listing: &str) -> u64 {
    let mut hash = Sha256::new();
    let mut inside = false;
    for line in listing.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        inside |= line.starts_with("set checksum ");
        if !inside && !line.is_empty() {
            hash.update(line);
            hash.update("\n");
        }
        inside &= line != "}";
    }
    let hash = hash.finalize();
    hash.first_chunk().map(|first| u64::from_be_bytes(*first)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_is_known_again_whatever_stands_in_the_checksum_set() {
        let listing = |checksum: &str, rule: &str| {
            format!(
                "table inet corax {{\n\tset checksum {{\n\t\ttype ipv6_addr{checksum}\n\t}}\n\n\tchain a {{\n\t\t{rule}\n\t}}\n}}\n"
            )
        };
        let plain = digest(&listing("", "accept"));
        assert_eq!(plain, digest(&listing("\n\t\telements = { ::1 }", "accept # handle 3")));
        assert_ne!(plain, digest(&listing("", "drop")));
    }
}
