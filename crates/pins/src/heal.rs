//! What the log should say besides: the holds know more than it where a record was damaged, or a pinned pod came home
//! without a write. It is told with the next write that happens anyway. And the log written anew, without what is past.

use crate::book::{Book, Entry};
use crate::decide;
use crate::frame;
use crate::holds::Holds;
use crate::names::{PinId, PodName};
use crate::pods::PodList;
use crate::record::{self, Line, NONE, pin};

/// How many released pins of pods that are not on the node's list are remembered, over all networks. Beyond these the one
/// released longest ago is forgotten: a log has an end even where addresses have none (an IPv6 /64).
pub(crate) const REMEMBERED: usize = 10_000;

/// A log under this length in bytes is not worth writing anew.
const SMALL: usize = 64 << 10;

/// Records that bring the log up to the holds, and end what nobody can use: pins that lost an address to a later one.
pub(crate) fn missing(book: &Book<'_>, holds: &Holds) -> Vec<decide::Entry> {
    let mut out = Vec::new();
    if book.rest.is_none() {
        let held = holds.keys();
        let void = book.void().into_iter().filter(|key| !held.contains(*key));
        out.extend(void.map(|key| decide::Entry::End(key.to_owned())));
    }
    for hold in holds.all.values() {
        let Some(key) = hold.pin().map(|id| id.words()) else { continue };
        match book.pins.get(key.as_str()) {
            None if claimed(book, hold) => {}
            None => out.push(decide::Entry::Pin { key, addresses: hold.addresses.clone(), seen: hold.seen }),
            Some(entry) if entry.freed.is_some() => out.push(decide::Entry::Take(key)),
            Some(_) => {}
        }
    }
    out
}

/// Whether an address of a hold became another pod's pin meanwhile.
fn claimed(book: &Book<'_>, hold: &crate::holds::Hold) -> bool {
    let index = book.index(&hold.attachment.network);
    hold.addresses
        .iter()
        .any(|a| index.by_address.contains_key(a) || book.rest.is_some_and(|rest| rest.takes(*a)))
}

/// Turns entries into records, numbered on from the book and the pod list.
pub(crate) fn records(
    book: &Book<'_>,
    holds: &Holds,
    pods: Option<&PodList>,
    entries: &[decide::Entry],
    new_id: &dyn Fn() -> String,
    now: u64,
) -> Vec<u8> {
    let mut number = book.highest.max(pods.map_or(0, |list| list.highest));
    let mut out = Vec::new();
    let mut push = |kind, value: &str, subject: &str| {
        number += 1;
        frame::push(&mut out, &Line { number, kind, at: now, value, subject }.text());
    };
    if book.id.is_none() {
        push(pin::LOG, &new_id(), VERSION);
    }
    if book.epoch.is_none_or(|(epoch, _)| epoch != holds.epoch) {
        push(pin::EPOCH, &holds.epoch, NONE);
    }
    for entry in entries {
        match entry {
            decide::Entry::Pin { key, addresses, seen } => {
                let kind = if *seen { pin::SEEN } else { pin::PIN };
                push(kind, &record::addresses_text(addresses), key);
            }
            decide::Entry::Free(key) => push(pin::FREE, NONE, key),
            decide::Entry::Take(key) => push(pin::TAKE, NONE, key),
            decide::Entry::End(key) => push(pin::END, NONE, key),
        }
    }
    out
}

const VERSION: &str = "corax-pins-1";

fn crowded(book: &Book<'_>, holds: &Holds, pods: Option<&PodList>) -> bool {
    let present = holds.all.len() + pods.map_or(0, |list| list.pods.len());
    book.pins.len().saturating_sub(present) > REMEMBERED + REMEMBERED / 4
}

/// Whether the log is worth writing anew.
pub(crate) fn worth(book: &Book<'_>, holds: &Holds, pods: Option<&PodList>) -> bool {
    let wasteful = || book.length > SMALL && book.length > 2 * live(book);
    book.damaged > 0 || wasteful() || crowded(book, holds, pods)
}

/// The log written anew.
pub(crate) fn compacted(book: &Book<'_>, holds: &Holds, pods: Option<&PodList>, now: u64) -> Vec<u8> {
    let mut kept: Vec<_> = book.pins.iter().map(|(&key, entry)| (key, entry)).collect();
    if crowded(book, holds, pods) {
        forget(book, holds, pods, &mut kept);
    }
    kept.sort_unstable_by_key(|(_, entry)| entry.made);

    let mut out = Vec::with_capacity(book.length);
    let mut push = |number, kind, at, value: &str, subject: &str| {
        frame::push(&mut out, &Line { number, kind, at, value, subject }.text());
    };
    push(book.highest, pin::LOG, now, book.id.unwrap_or(NONE), VERSION);
    if let Some((epoch, number)) = book.epoch {
        push(number, pin::EPOCH, now, epoch, NONE);
    }
    for (key, entry) in kept {
        let kind = if entry.seen { pin::SEEN } else { pin::PIN };
        push(entry.made, kind, entry.made_at, entry.addresses, key);
        if entry.taken > entry.made {
            push(entry.taken, pin::TAKE, entry.taken_at, NONE, key);
        }
        if let Some((number, at)) = entry.freed {
            push(number, pin::FREE, at, NONE, key);
        }
    }
    for text in &book.foreign {
        frame::push(&mut out, text);
    }
    out
}

fn live(book: &Book<'_>) -> usize {
    let bytes = |(key, entry): (&&str, &Entry<'_>)| {
        let more = usize::from(entry.freed.is_some()) + usize::from(entry.taken > entry.made);
        key.len() + entry.addresses.len() + 40 + more * (key.len() + 40)
    };
    book.pins.iter().map(bytes).sum()
}

fn forget<'b>(
    book: &Book<'_>,
    holds: &Holds,
    pods: Option<&PodList>,
    kept: &mut Vec<(&'b str, &'b Entry<'b>)>,
) {
    let in_use = holds.keys();
    let listed = |pod: PodName| pods.is_some_and(|list| list.pods.contains(&pod));
    let (mut past, mut present): (Vec<_>, Vec<_>) = std::mem::take(kept).into_iter().partition(|(key, _)| {
        !in_use.contains(*key) && !PinId::from_words(key).is_some_and(|id| listed(id.pod))
    });
    let began = book.began(&holds.epoch);
    past.sort_unstable_by_key(|(_, entry)| std::cmp::Reverse((entry.released(began), entry.made)));
    past.truncate(REMEMBERED);
    present.append(&mut past);
    *kept = present;
}

#[cfg(test)]
mod tests;
