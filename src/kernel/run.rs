//! Carrying out changes: in their order, many to a batch, a table and what may be made before it side by side.

use std::collections::BTreeSet;
use std::time::Instant;

use corax_core::change::Change;
use corax_core::object::{Device, Link, LinkKind, Rule};
use corax_core::observed::Backend;
use nix::errno::Errno;

use super::apply::{Batch, Impossible};
use super::error::{ApplyError, Error};
use super::nft::{Nft, Refused};
use super::{Elsewhere, GROUPS, Kernel, dump, facts, sysctl};

/// From so many messages in a row, reading all anew afterwards costs less than hearing of each.
const MANY: usize = 1024;

impl Kernel {
    /// Carries out changes in their order; one result each. What is true already succeeds. The mirror has seen all of
    /// it afterwards; who applied plans once more, and in the end has [the past forgotten](Self::forget_past).
    pub(crate) fn apply(
        &mut self,
        changes: &[Change],
        elsewhere: &mut Elsewhere<'_>,
    ) -> Vec<Result<(), Box<ApplyError>>> {
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
        self.connections.remember(changes, &self.mirror.observed);
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
                            run.set(number, Err(ApplyError::unguarded(change)));
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
        if changes.iter().any(|change| matches!(change, Change::TakeAway(_))) {
            self.read_leftovers();
        }
        run.results
    }

    /// Has connections forgotten whose way was another before changes were applied, once it is known what it is now.
    pub(crate) fn forget_past(&mut self) {
        self.connections.forget_past(&self.mirror);
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
            Some(change) if run.unguarded => run.set(number, Err(ApplyError::unguarded(change))),
            _ => self.link(run, number, &up),
        }
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
        let left = self.events.leave(&GROUPS).is_ok();
        if !left {
            // Some may have been left already.
            self.listen_again();
        }
        left
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
        if let Err(impossible) = run.batch.queue(&mut self.requests, &self.mirror, number, change) {
            run.set(
                number,
                Err(match impossible {
                    Impossible::Missing(device) => {
                        ApplyError::absent(change, format!("{device} is not there"))
                    }
                    Impossible::InItsPlace(what) => ApplyError::new(change, what),
                }),
            );
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
                        *result = Err(Box::new(ApplyError::of(change, &failure)));
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
    fn equal_rules(&mut self, run: &mut Run<'_>, rules: &[(usize, Rule)]) {
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
}

#[cfg(test)]
impl Kernel {
    /// Makes a rule though it is there, as no tool does.
    pub(super) fn put_copy(&mut self, rule: &Rule) {
        let mut batch = Batch::default();
        batch.queue_equal_rule(&mut self.requests, 0, rule);
        batch.send(&mut self.requests, |_, failure| panic!("{failure}"));
    }
}

/// Changes that are being applied.
struct Run<'a> {
    changes: &'a [Change],
    /// Errors are few, and there are tens of thousands of results.
    results: Vec<Result<(), Box<ApplyError>>>,
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
            *place = result.map_err(Box::new);
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
