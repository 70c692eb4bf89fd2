//! The kernel, over netlink: a mirror of what is ours in it, and changes applied to it. The only place with errno.
//!
//! Blocking, for one thread; every request has a deadline. The mirror is fed by dumps and events, those of our own
//! writes included, never by what was sent.

mod address;
mod apply;
mod connections;
mod dump;
mod error;
mod facts;
mod leftovers;
mod link;
mod mirror;
mod misled;
mod neighbour;
mod nexthop;
mod nft;
mod probes;
mod program;
mod route;
mod rule;
mod run;
mod socket;
mod sysctl;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use corax_core::change::Change;
use corax_core::desired::Desired;
use corax_core::facts::Facts;
use corax_core::object::Device;
use corax_core::observed::{Backend, Observed};
use corax_core::plan::plan;
use corax_core::prefix::Prefix;
use corax_core::problem::Problem;

pub(crate) use self::error::{ApplyError, Error, Lack, line, port_taken};
pub(crate) use self::facts::{FactsQuery, UdpPort};
pub(crate) use self::probes::Probes;

use self::connections::Connections;
use self::facts::Ways;
use self::leftovers::Leftovers;
use self::mirror::Mirror;
use self::misled::Misled;
use self::nft::Nft;
use self::socket::{Received, Socket};
use self::wire::{Messages, NLMSG_OVERRUN};

const NETLINK_ROUTE: u16 = 0;

/// Link, neighbour, IPv4 address, route, rule, IPv6 address, route, rule, IPv4 and IPv6 settings, nexthop
/// (`RTNLGRP_*`, `linux/rtnetlink.h`).
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];

/// How often what changes while it is read is read again before the next drain has to.
const ROUNDS: usize = 8;

/// What happened since the last time.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// The mirror changed, be it by writes of our own.
    pub(crate) ours: bool,
    /// Something that [`Facts`] depend on may have changed.
    pub(crate) facts: bool,
    /// Events were lost, and everything was read anew.
    pub(crate) overrun: bool,
    /// What could not be read; its part of [`Observed`] is unknown until it is.
    pub(crate) errors: Vec<Error>,
}

/// The kernel of the network namespace in which this was opened.
pub(crate) struct Kernel {
    /// Writes and single questions.
    requests: Socket,
    /// Dumps, filtered by the kernel.
    dumps: Socket,
    events: Socket,
    nft: Nft,
    leftovers: Leftovers,
    connections: Connections,
    mirror: Mirror,
    probes: Probes,
    /// Ways as they were when facts were last asked for.
    ways: facts::Known,
    misled: Misled,
    overrun: bool,
    /// Everything is to be read anew.
    lost: bool,
    errors: Vec<Error>,
    /// When the kernel took the last change.
    written: Instant,
}

/// Who carries out what is not the kernel shell's: WireGuard's settings, and devices of user-space tunnels.
pub(crate) type Elsewhere<'a> = dyn FnMut(&Change) -> Result<(), ApplyError> + 'a;

impl Kernel {
    /// Opens sockets in the calling thread's network namespace, and reads everything.
    ///
    /// # Errors
    /// Missing permission, no program nft, a kernel below the floor, with the remedy. What cannot be read later is
    /// unknown; at this first time it is an error.
    pub(crate) fn open() -> Result<Self, Error> {
        Self::open_with(Socket::QUEUE, Probes::ask)
    }

    fn open_with(
        queue: usize,
        probe: impl FnOnce(&mut Socket) -> Result<Probes, Error>,
    ) -> Result<Self, Error> {
        let mut requests = Socket::open(NETLINK_ROUTE, false)?;
        let probes = probe(&mut requests)?;
        if let Some(error) = probes.refusal() {
            return Err(error);
        }
        let mut kernel = Self {
            requests,
            dumps: Socket::open(NETLINK_ROUTE, true)?,
            events: Socket::listen(NETLINK_ROUTE, &GROUPS, queue)?,
            nft: Nft::open(queue)?,
            leftovers: Leftovers::open()?,
            connections: Connections::default(),
            mirror: Mirror::default(),
            probes,
            ways: facts::Known::new(),
            misled: Misled::default(),
            overrun: false,
            lost: false,
            errors: Vec::new(),
            written: Instant::now(),
        };
        kernel.resync()?;
        Ok(kernel)
    }

    /// What the kernel has of ours.
    pub(crate) const fn observed(&self) -> &Observed {
        &self.mirror.observed
    }

    /// The same, for who fills in the tunnels.
    pub(crate) const fn observed_mut(&mut self) -> &mut Observed {
        &mut self.mirror.observed
    }

    /// What the kernel can do.
    #[cfg(test)]
    pub(crate) const fn probes_mut(&mut self) -> &mut Probes {
        &mut self.probes
    }

    /// What the node says of itself.
    pub(crate) fn facts(&mut self, query: &FactsQuery) -> Facts {
        let mut ways = Ways::new(&mut self.requests, std::mem::take(&mut self.ways));
        let mut facts = facts::facts(&mut ways, &self.mirror, &self.probes, query);
        let failure = ways.failure.take();
        self.ways = ways.known;
        if let Some(failure) = failure {
            self.errors.push(Error::Read { what: "ways of packets", failure });
            self.mirror.facts = true;
        }
        match self.nft.obstacles(&query.ports) {
            Ok(obstacles) => facts.problems.extend(obstacles),
            Err(error) => self.errors.push(error),
        }
        facts.problems.extend(self.leftovers.problems());
        match self.misled.look(&mut self.requests, Instant::now()) {
            Ok(problem) => facts.problems.extend(problem),
            Err(error) => self.errors.push(error),
        }
        facts
    }

    /// The networks that links of others are in; see [`Facts::networks`].
    pub(crate) fn networks(&self) -> BTreeMap<Prefix, String> {
        facts::networks(&self.mirror)
    }

    /// When [`facts`](Self::facts) are to be asked for anew, as others have changed their chains.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        self.nft.look_at()
    }

    /// Readable when there is something to [`drain`](Self::drain).
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.events.fd(), self.nft.fd()]
    }

    /// Takes in what happened, without waiting for more.
    pub(crate) fn drain(&mut self) -> Drained {
        self.settle();
        self.settle_nft(Nft::drain);
        self.forget_past();
        Drained {
            ours: std::mem::take(&mut self.mirror.changed),
            facts: std::mem::take(&mut self.mirror.facts),
            overrun: std::mem::take(&mut self.overrun),
            errors: std::mem::take(&mut self.errors),
        }
    }

    /// When the kernel took the last change; reading what it has comes after.
    pub(crate) const fn written(&self) -> Instant {
        self.written
    }

    /// Whether something that [`Facts`] depend on was heard and has not been told by [`drain`](Self::drain) yet.
    pub(crate) const fn has_news(&self) -> bool {
        self.mirror.facts
    }

    /// Whether the mirror changed since it was [taken in](Self::take_in), or told of by [`drain`](Self::drain).
    pub(crate) const fn has_changed(&self) -> bool {
        self.mirror.changed
    }

    /// What was seen until now is being planned for: [`drain`](Self::drain) tells of what comes after.
    pub(crate) const fn take_in(&mut self) {
        self.mirror.changed = false;
    }

    /// Reads everything anew, of nftables where there was a transaction since: at start, and from time to time against what no
    /// event tells.
    ///
    /// # Errors
    /// What could not be read first; its part of [`Observed`] is unknown.
    pub(crate) fn resync(&mut self) -> Result<(), Error> {
        self.lost = true;
        self.settle();
        self.settle_nft(Nft::resync);
        self.read_leftovers();
        match std::mem::take(&mut self.errors).into_iter().next() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What makes the kernel be as desired.
    pub(crate) fn changes(&self, desired: &Desired) -> Vec<Change> {
        let mut changes = self.repairs();
        changes.append(&mut plan(desired, &self.mirror.observed));
        changes
    }

    /// Changes that put right what [`Observed`] cannot show: rules that are there more than once.
    fn repairs(&self) -> Vec<Change> {
        let copies = self.mirror.doubled_rules.iter();
        copies.flat_map(|(rule, count)| std::iter::repeat_n(Change::DeleteRule(*rule), *count)).collect()
    }

    /// Packets and bytes of each named counter of the table.
    ///
    /// # Errors
    /// When the kernel does not answer. Without a table there are none.
    pub(crate) fn drops(&mut self) -> Result<Vec<(String, u64, u64)>, Error> {
        self.nft.counters()
    }

    /// Reads what Raven left, of which no event tells.
    fn read_leftovers(&mut self) {
        // The kernel tells of no change of where the overlay floods to.
        if let Err(error) = dump::link(&mut self.requests, &mut self.mirror, Device::Overlay) {
            self.unknown(error);
        }
        let problems = self.leftovers.problems();
        let found = self.leftovers.read(&mut self.dumps, self.mirror.overlay());
        self.mirror.set_leftovers(leftovers::is_read_here, found);
        self.mirror.facts |= problems != self.leftovers.problems();
        self.settle();
    }

    /// What Raven left that could not be taken away, and what of Corax is not known by its name.
    pub(crate) fn stuck(&self) -> Vec<Problem> {
        self.leftovers.problems().into_iter().chain(facts::renamed(&self.mirror)).collect()
    }

    /// Queues of the kernel to the mirror, until both are at rest.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            self.read_events();
            let result = if self.lost {
                self.lost = false;
                dump::all(&mut self.dumps, &mut self.mirror)
            } else if self.mirror.stale != mirror::Stale::default() {
                dump::stale(&mut self.dumps, &mut self.mirror)
            } else {
                return;
            };
            match result {
                Ok(()) => {
                    self.mirror.changed |= self.mirror.observed.unknown.remove(&Backend::Routes);
                }
                Err(error) => return self.unknown(error),
            }
        }
    }

    /// What could not be read is unknown, until a full dump succeeds.
    fn unknown(&mut self, error: Error) {
        self.mirror.changed |= self.mirror.observed.unknown.insert(Backend::Routes);
        self.errors.push(error);
        self.lost = true;
        // An answer that comes late, or a dump that is still under way, is left behind with its socket.
        match Socket::open(NETLINK_ROUTE, true) {
            Ok(socket) => self.dumps = socket,
            Err(error) => self.errors.push(error),
        }
    }

    fn settle_nft(&mut self, take: impl FnOnce(&mut Nft, &mut Observed) -> Result<bool, Error>) {
        let observed = &mut self.mirror.observed;
        match take(&mut self.nft, observed) {
            Ok(changed) => self.mirror.changed |= observed.unknown.remove(&Backend::Nft) | changed,
            Err(error) => {
                self.mirror.changed |= observed.unknown.insert(Backend::Nft);
                self.errors.push(error);
                self.errors.extend(self.nft.reopen().err());
            }
        }
    }

    /// Queued events to the mirror.
    fn read_events(&mut self) {
        loop {
            match self.events.receive_now() {
                Ok(Received::Nothing) => return,
                Ok(Received::Datagram(bytes)) => {
                    for message in Messages(bytes) {
                        if message.kind == NLMSG_OVERRUN {
                            self.overrun = true;
                            self.lost = true;
                        }
                        self.mirror.event(&message);
                    }
                }
                Ok(Received::Overrun) => {
                    self.overrun = true;
                    self.lost = true;
                }
                Err(failure) => {
                    self.lost = true;
                    self.errors.push(Error::Read { what: "events", failure });
                    return;
                }
            }
        }
    }
}
