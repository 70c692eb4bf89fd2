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
mod neighbour;
mod nexthop;
mod nft;
mod probes;
mod program;
mod route;
mod rule;
mod socket;
mod sysctl;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use corax_core::change::Change;
use corax_core::facts::Facts;
use corax_core::object::{Device, Link, LinkKind, SetRole};
use corax_core::observed::{Backend, Observed};
use corax_core::prefix::Prefix;
use corax_core::problem::Problem;
use nix::errno::Errno;

pub(crate) use self::error::{ApplyError, Error, line, port_taken};
pub(crate) use self::facts::{FactsQuery, UdpPort};
pub(crate) use self::probes::Probes;

use self::apply::{Batch, Impossible};
use self::connections::Connections;
use self::leftovers::Leftovers;
use self::mirror::Mirror;
use self::nft::{Nft, Refused};
use self::socket::{Received, Socket};
use self::wire::{Messages, NLMSG_OVERRUN};

const NETLINK_ROUTE: u16 = 0;

/// Link, neighbour, IPv4 address, route, rule, IPv6 address, route, rule, IPv4 and IPv6 settings, nexthop
/// (`RTNLGRP_*`, `linux/rtnetlink.h`).
const GROUPS: [u32; 11] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25, 32];

/// How often what changes while it is read is read again before the next drain has to.
const ROUNDS: usize = 8;

/// From so many messages in a row, reading all anew afterwards costs less than hearing of each.
const MANY: usize = 1024;

/// Why the overlay stays down.
const UNGUARDED: &str = "without the table that says who may speak to it, the overlay stays down";

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
        Self::open_with_queue(Socket::QUEUE)
    }

    fn open_with_queue(queue: usize) -> Result<Self, Error> {
        let mut requests = Socket::open(NETLINK_ROUTE, false)?;
        let probes = Probes::ask(&mut requests)?;
        if probes.is_too_old() {
            return Err(Error::TooOld(probes.release.0, probes.release.1));
        }
        let mut kernel = Self {
            requests,
            dumps: Socket::open(NETLINK_ROUTE, true)?,
            events: Socket::listen(NETLINK_ROUTE, &GROUPS, queue)?,
            nft: Nft::open(queue)?,
            leftovers: Leftovers::open()?,
            connections: Connections::watch(),
            mirror: Mirror::default(),
            probes,
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
        let mut facts = facts::facts(&mut self.requests, &self.mirror, &self.probes, query);
        match self.nft.obstacles(&query.ports) {
            Ok(obstacles) => facts.problems.extend(obstacles),
            Err(error) => self.errors.push(error),
        }
        facts.problems.extend(self.leftovers.problems());
        facts
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

    /// Reads everything anew: at start, and from time to time against what no event tells.
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

    /// Changes that put right what [`Observed`] cannot show: rules that are there more than once.
    pub(crate) fn repairs(&self) -> Vec<Change> {
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

    /// Carries out changes in their order; one result each. What is true already succeeds. The mirror has seen all of
    /// it afterwards; who applied plans once more.
    pub(crate) fn apply(
        &mut self,
        changes: &[Change],
        elsewhere: &mut Elsewhere<'_>,
    ) -> Vec<Result<(), ApplyError>> {
        let mut run = Run {
            changes,
            results: changes.iter().map(|_| Ok(())).collect(),
            batch: Batch::default(),
            made: BTreeSet::new(),
            table: None,
            unguarded: self.nft.is_absent() && self.mirror.observed.unknown.contains(&Backend::Nft),
            low: None,
        };
        self.settle();
        let mut number = 0;
        for group in changes.chunk_by(|left, right| is_message(left) && is_message(right)) {
            let deaf = group.len() >= MANY && self.stop_listening();
            for change in group {
                if !is_inert(change) {
                    self.stand(&mut run);
                }
                match kind(change) {
                    Kind::Message => self.queue(&mut run, number, change),
                    Kind::Link => match change {
                        // It hears nobody as long as the table does not say who may speak.
                        Change::AddLink(device @ Device::Overlay, link)
                            if run.unguarded || !self.nft.stands() =>
                        {
                            let down = Change::AddLink(*device, Link { up: false, ..link.clone() });
                            self.link(&mut run, number, &down);
                            if run.is_ok(number) {
                                run.low = Some((number, Change::SetLink(*device, link.clone())));
                            }
                        }
                        Change::SetLink(device @ Device::Overlay, _)
                            if run.unguarded
                                && self.mirror.observed.links.get(device).is_some_and(|link| !link.up) =>
                        {
                            run.set(number, Err(ApplyError::new(change, UNGUARDED)));
                        }
                        _ => self.link(&mut run, number, change),
                    },
                    Kind::Alone => {
                        if change.backend() == Backend::Nft {
                            self.finish_table(&mut run);
                        }
                        let result = self.alone(change, elsewhere);
                        if matches!(change, Change::ReplaceTable(..)) {
                            run.table = Some(number);
                            run.unguarded = result.is_err() && self.nft.is_absent();
                        }
                        run.set(number, result);
                    }
                    Kind::Elsewhere => {
                        let result = elsewhere(change);
                        if let (Change::AddLink(device, _), Ok(())) = (change, &result) {
                            run.made.insert(*device);
                        }
                        run.set(number, result);
                        self.read_events();
                    }
                }
                number += 1;
            }
            self.send(&mut run);
            self.written = Instant::now();
            if deaf {
                self.stand(&mut run);
                self.finish_table(&mut run);
                self.listen_again();
            }
        }
        self.stand(&mut run);
        self.finish_table(&mut run);
        self.settle();
        let done = changes.iter().zip(&run.results).filter(|(_, result)| result.is_ok());
        let steered: Vec<Prefix> = done.flat_map(|(change, _)| steered(change)).collect();
        if !steered.is_empty() {
            let elements = self.mirror.observed.elements.keys();
            let own = elements.filter(|(set, _)| set.role == SetRole::Own).map(|(_, prefix)| *prefix);
            self.connections.forget(steered, own.collect());
        }
        if changes.iter().any(|change| matches!(change, Change::TakeAway(_))) {
            self.read_leftovers();
        }
        run.results
    }

    /// Waits until a table that is being made holds, and lets the link up that waited for that.
    fn stand(&mut self, run: &mut Run<'_>) {
        if let Some(number) = run.table.filter(|_| !self.nft.stands()) {
            self.send(run);
            let stands = self.nft.stand();
            if let (Some(change), Err(refused)) = (run.changes.get(number), stands) {
                run.set(number, Err(refuse(change, refused)));
                run.unguarded = true;
            }
            self.written = Instant::now();
        }
        let Some((number, up)) = run.low.take() else { return };
        match run.changes.get(number) {
            Some(change) if run.unguarded => run.set(number, Err(ApplyError::new(change, UNGUARDED))),
            _ => self.link(run, number, &up),
        }
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

    /// What Raven left that could not be taken away.
    pub(crate) fn stuck(&self) -> Vec<Problem> {
        self.leftovers.problems()
    }

    /// Ends what was begun with a table.
    fn finish_table(&mut self, run: &mut Run<'_>) {
        let Some(number) = run.table.take() else { return };
        let finished = self.nft.finish();
        self.written = Instant::now();
        if let (Some(change), Err(refused)) = (run.changes.get(number), finished) {
            run.set(number, Err(refuse(change, refused)));
        }
        self.settle_nft(Nft::drain);
    }

    /// Leaves the events unheard: after many messages, reading all anew costs less than hearing of each.
    fn stop_listening(&mut self) -> bool {
        self.events.leave(&GROUPS).inspect_err(|_| self.lost = true).is_ok()
    }

    fn listen_again(&mut self) {
        if let Err(failure) = self.events.join(&GROUPS) {
            self.errors.push(Error::Read { what: "events", failure });
        }
        self.lost = true;
        self.mirror.facts = true;
        self.settle();
    }

    fn queue(&mut self, run: &mut Run<'_>, number: usize, change: &Change) {
        // The kernel announces an IPv6 address some time after it has taken it.
        self.mirror.stale.addresses |= matches!(change, Change::PutAddress(put, _) if put.address.is_ipv6());
        if let Err(Impossible(meaning)) = run.batch.queue(&mut self.requests, &self.mirror, number, change) {
            run.set(number, Err(ApplyError::new(change, meaning)));
        }
        if run.batch.is_full() {
            self.send(run);
        }
    }

    /// Links are changed one by one: what follows needs their index.
    fn link(&mut self, run: &mut Run<'_>, number: usize, change: &Change) {
        if let Change::SetLink(device, _) | Change::DeleteLink(device) = change {
            let held = self.mirror.observed.links.get(device);
            let made = run.made.contains(device);
            if !made && held.is_some_and(|held| facts::is_foreign(*device, held)) {
                run.set(number, Err(ApplyError::new(change, format!("{device} is somebody else's"))));
                return;
            }
        }
        self.queue(run, number, change);
        self.send(run);
        // Only what we made gets our name: these go by the device's.
        if let (Change::AddLink(device, link), Some(Ok(()))) = (change, run.results.get(number)) {
            run.batch.finish_link(&mut self.requests, number, *device, link);
            self.send(run);
        }
        if let Change::AddLink(device, _) | Change::SetLink(device, _) = change
            && let Err(error) = dump::link(&mut self.requests, &mut self.mirror, *device)
        {
            self.unknown(error);
        }
        self.settle();
        if let (Change::AddLink(device, link), Some(Err(_))) = (change, run.results.get(number))
            && self.mirror.observed.links.get(device) == Some(link)
        {
            run.set(number, Ok(()));
        }
    }

    fn send(&mut self, run: &mut Run<'_>) {
        if run.batch.is_empty() {
            return;
        }
        let Run { changes, results, batch, .. } = run;
        let mut equal_rules = Vec::new();
        let lost = &mut self.lost;
        batch.send(&mut self.requests, |number, failure| {
            let Some(change) = changes.get(number) else { return };
            // The kernel may have done it, and the answer be lost.
            *lost |= matches!(failure.errno, Errno::ETIMEDOUT | Errno::ENOBUFS);
            match change {
                Change::PutRule(rule) if failure.errno == Errno::EEXIST => {
                    equal_rules.push((number, *rule));
                }
                _ => {
                    if let Some(result @ Ok(())) = results.get_mut(number) {
                        *result = Err(ApplyError::of(change, &failure));
                    }
                }
            }
        });
        self.read_events();
        if !equal_rules.is_empty() {
            self.equal_rules(run, &equal_rules);
        }
    }

    /// Rules that are there already, for all that the kernel compares. The protocol it does not: where the one that
    /// is there is not ours, ours is put beside it.
    fn equal_rules(&mut self, run: &mut Run<'_>, rules: &[(usize, corax_core::object::Rule)]) {
        self.mirror.stale.rules = true;
        self.settle();
        for (number, rule) in rules {
            if !self.mirror.observed.rules.contains_key(rule) {
                run.batch.queue_equal_rule(&mut self.requests, *number, rule);
            }
        }
        self.send(run);
    }

    fn alone(&mut self, change: &Change, elsewhere: &mut Elsewhere<'_>) -> Result<(), ApplyError> {
        let observed = &mut self.mirror.observed;
        let result = match change {
            Change::PutSysctl(device, sysctl, value) => {
                let result = sysctl::write(*device, *sysctl, *value);
                self.mirror.stale.sysctls = true;
                return result.map_err(|failure| ApplyError::of(change, &failure));
            }
            Change::ReplaceTable(ruleset, elements) => {
                let in_use = !observed.links.is_empty();
                self.nft.replace(observed, ruleset, elements, in_use)
            }
            Change::ChangeElements { delete, add } => self.nft.change(observed, delete, add),
            Change::DeleteTable => self.nft.delete(observed),
            Change::TakeAway(leftover) => return self.leftovers.take_away(change, leftover),
            _ => return elsewhere(change),
        };
        self.mirror.changed |= result.is_ok();
        result.map_err(|refused| refuse(change, refused))
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

#[cfg(test)]
impl Kernel {
    /// Makes a rule though it is there, as no tool does.
    fn put_copy(&mut self, rule: &corax_core::object::Rule) {
        let mut batch = Batch::default();
        batch.queue_equal_rule(&mut self.requests, 0, rule);
        batch.send(&mut self.requests, |_, failure| panic!("{failure}"));
    }
}

/// Changes that are being applied.
struct Run<'a> {
    changes: &'a [Change],
    results: Vec<Result<(), ApplyError>>,
    batch: Batch,
    /// Devices that somebody else made in this run.
    made: BTreeSet<Device>,
    /// The change whose table is still being made.
    table: Option<usize>,
    /// There is no table, and none could be made.
    unguarded: bool,
    /// What brings the link up that was made before the table stood, and the number of the change that made it.
    low: Option<(usize, Change)>,
}

impl Run<'_> {
    fn set(&mut self, number: usize, result: Result<(), ApplyError>) {
        if let Some(place) = self.results.get_mut(number) {
            *place = result;
        }
    }

    fn is_ok(&self, number: usize) -> bool {
        matches!(self.results.get(number), Some(Ok(())))
    }
}

fn refuse(change: &Change, refused: Refused) -> ApplyError {
    match refused {
        Refused::Kernel(failure) => ApplyError::of(change, &failure),
        Refused::Other(error) => ApplyError {
            text: Some(error.to_string()),
            ..ApplyError::new(change, "the table could not be made")
        },
    }
}

/// Whether a change may be made before the table holds: it lets nobody in, and sends nothing out without a route.
const fn is_inert(change: &Change) -> bool {
    match change {
        Change::AddLink(Device::Overlay, _)
        | Change::PutSysctl(..)
        | Change::PutFdb(..)
        | Change::PutNeighbour(..) => true,
        Change::PutAddress(address, _) => matches!(address.device, Device::Overlay),
        _ => false,
    }
}

/// Prefixes that are steered from a change on.
fn steered(change: &Change) -> impl Iterator<Item = Prefix> {
    let elements = match change {
        Change::ReplaceTable(_, elements) => elements.as_slice(),
        Change::ChangeElements { add, .. } => add,
        _ => &[],
    };
    elements.iter().filter(|(set, _)| set.role == SetRole::Remote).map(|(_, prefix)| *prefix)
}

fn is_message(change: &Change) -> bool {
    matches!(kind(change), Kind::Message)
}

/// How a change is carried out.
enum Kind {
    /// As one message among others.
    Message,
    /// As messages about a link.
    Link,
    /// By other means than rtnetlink.
    Alone,
    /// By somebody else.
    Elsewhere,
}

fn kind(change: &Change) -> Kind {
    match change {
        Change::AddLink(_, Link { kind: LinkKind::Tun, .. }) => Kind::Elsewhere,
        Change::AddLink(..) | Change::SetLink(..) | Change::DeleteLink(..) => Kind::Link,
        Change::PutSysctl(..) => Kind::Alone,
        _ => match change.backend() {
            Backend::Routes => Kind::Message,
            Backend::Nft => Kind::Alone,
            Backend::WireGuard => Kind::Elsewhere,
        },
    }
}
