//! What each verb does, decided on what is known: no clock, no file, no lock.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::choose::World;
use crate::error::Error;
use crate::holds::{Change, Hold, Netns};
use crate::names::{Attachment, ContainerId, Interface, Label, PinId, PodName};
use crate::range::{RangeSet, Ranges};

/// Who asks for addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The container, network and interface.
    pub attachment: Attachment,
    /// The pod; without one the container's addresses are held, not pinned.
    pub pod: Option<PodName>,
    /// `K8S_POD_UID`.
    pub uid: Option<Label>,
    /// Where the container lives.
    pub netns: Option<Netns>,
    /// Addresses it must get (`CNI_ARGS` IP, `args.cni.ips`, the `ips` capability), at most one of a range set.
    pub requested: Vec<IpAddr>,
}

impl Request {
    pub(crate) fn pin(&self) -> Option<PinId> {
        let Attachment { network, interface, .. } = &self.attachment;
        let pod = self.pod.clone()?;
        Some(PinId { network: network.clone(), pod, interface: interface.clone() })
    }

    fn hold(&self, addresses: Vec<IpAddr>, seen: bool, now: u64) -> Change {
        let Self { attachment, pod, uid, netns, .. } = self.clone();
        Change::Hold(Hold { attachment, pod, uid, netns, addresses, since: now, seen })
    }
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// One address of each range set, in the configuration's order.
    pub addresses: Vec<IpAddr>,
    /// What the pod's pin said before, where that is something else.
    pub before: Option<Vec<IpAddr>>,
}

/// A record for the pins log; keys are [`PinId::words`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Pin { key: String, addresses: Vec<IpAddr>, seen: bool },
    Free(String),
    Take(String),
    End(String),
}

/// What has to be written before the answer counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be on disk before the answer.
    pub(crate) durable: Vec<Entry>,
    /// To be written if it can be.
    pub(crate) best_effort: Vec<Entry>,
    pub(crate) holds: Vec<Change>,
    /// Everything before this offset of the log has to be on disk before the answer.
    pub(crate) rests_on: usize,
}

impl Plan {
    pub(crate) fn writes_log(&self) -> bool {
        !(self.durable.is_empty() && self.best_effort.is_empty())
    }
}

/// IPAM ADD.
pub(crate) fn add(
    world: &World<'_>,
    ranges: &Ranges,
    request: &Request,
    now: u64,
) -> Result<(Answer, Plan), Error> {
    let own = &request.attachment;
    if world.holds.retired.get(world.network) == Some(&true) {
        return Err(Error::Retired { network: world.network.clone() });
    }
    let wanted = wanted(ranges, &request.requested)?;
    let held = world.holds.all.get(own).filter(|hold| !hold.seen && hold.pod == request.pod);
    if let Some((hold, addresses)) = held.and_then(|h| Some((h, fitting(ranges, &wanted, &h.addresses)?))) {
        let moved = hold.netns != request.netns || hold.uid != request.uid;
        let holds = moved.then(|| request.hold(addresses.clone(), false, now)).into_iter().collect();
        return Ok((Answer { addresses, before: None }, Plan { holds, ..Plan::default() }));
    }

    let key = request.pin().map(|id| id.words());
    let entry = key
        .as_deref()
        .filter(|key| !world.index().void.contains(key))
        .and_then(|key| world.book.pins.get(key));
    let pinned = entry.map(crate::book::Entry::addresses).unwrap_or_default();
    let mut plan = Plan::default();
    let mut addresses = Vec::new();
    for (set, wish) in ranges.sets().iter().zip(&wanted) {
        let home = pinned.iter().copied().find(|&address| set.range_of(address).is_some());
        let home = home.filter(|&address| !world.is_anothers(address, own, key.as_deref()));
        let address = match wish.or(home) {
            Some(address) => {
                claim(world, own, key.as_deref(), address, &mut plan)?;
                address
            }
            None => choose(world, set, own, key.as_deref(), &mut plan)?,
        };
        addresses.push(address);
    }

    let as_pinned = entry.is_some_and(|entry| !entry.seen) && addresses.iter().all(|a| pinned.contains(a));
    match (key, entry) {
        (Some(key), Some(entry)) if as_pinned => {
            plan.rests_on = entry.end;
            let pod = request.pod.as_ref();
            let gone =
                pod.is_some_and(|pod| world.pods.is_some_and(|l| l.gone(world.book.id, entry.latest(), pod)));
            // After a power cut it would count as released when it was before; where that was just now, it does anyway.
            let long_ago = entry.freed.is_some_and(|(number, _)| number < world.book.highest);
            if gone || long_ago {
                plan.best_effort.push(Entry::Take(key));
            }
        }
        (Some(key), _) => plan.durable.push(Entry::Pin { key, addresses: addresses.clone(), seen: false }),
        (None, _) => {}
    }
    plan.holds.push(request.hold(addresses.clone(), false, now));
    let before = (!as_pinned && !pinned.is_empty()).then_some(pinned);
    Ok((Answer { addresses, before }, plan))
}

/// Which of the requested addresses is of which set.
fn wanted(ranges: &Ranges, requested: &[IpAddr]) -> Result<Vec<Option<IpAddr>>, Error> {
    let mut wanted = vec![None; ranges.sets().len()];
    for &address in requested {
        let set = ranges.sets().iter().position(|set| set.range_of(address).is_some());
        let slot = set.and_then(|at| wanted.get_mut(at)).ok_or(Error::NotInRanges { address })?;
        match *slot {
            Some(other) if other != address => return Err(Error::SameSet(other, address)),
            _ => *slot = Some(address),
        }
    }
    Ok(wanted)
}

/// These addresses, one of each set and in the sets' order, where they are that.
fn fitting(ranges: &Ranges, wanted: &[Option<IpAddr>], addresses: &[IpAddr]) -> Option<Vec<IpAddr>> {
    if addresses.len() != ranges.sets().len() {
        return None;
    }
    let one = |(set, wish): (&RangeSet, &Option<IpAddr>)| {
        let address = addresses.iter().copied().find(|&a| set.range_of(a).is_some())?;
        wish.is_none_or(|wish| wish == address).then_some(address)
    };
    ranges.sets().iter().zip(wanted).map(one).collect()
}

/// Makes way for a certain address, or says who has it.
fn claim(
    world: &World<'_>,
    own: &Attachment,
    key: Option<&str>,
    address: IpAddr,
    plan: &mut Plan,
) -> Result<(), Error> {
    if let Some(claim) = world.index().by_address.get(&address).filter(|claim| Some(claim.key) != key) {
        match claim.pod() {
            Some(pod) if world.is_listed(claim) => return Err(Error::Pinned { address, pod }),
            _ => plan.durable.push(Entry::End(claim.key.to_owned())),
        }
    }
    let Some(dead) = world.unused(address, Some(own)) else {
        return Err(match world.holders(address, Some(own)).find(|hold| world.outside.alive(hold)) {
            Some(hold) => {
                Error::Held { address, container: hold.attachment.container.clone(), pod: hold.pod.clone() }
            }
            None => {
                let container = world.outside.foreign(address).unwrap_or_default();
                Error::HeldByHostLocal { address, container }
            }
        });
    };
    plan.holds.extend(dead.into_iter().map(Change::Free));
    Ok(())
}

fn choose(
    world: &World<'_>,
    set: &RangeSet,
    own: &Attachment,
    key: Option<&str>,
    plan: &mut Plan,
) -> Result<IpAddr, Error> {
    let choice =
        world.choose(set, Some(own), key).ok_or_else(|| Error::Exhausted { set: set.to_string() })?;
    plan.durable.extend(choice.victim.map(Entry::End));
    plan.holds.extend(choice.dead.into_iter().map(Change::Free));
    Ok(choice.address)
}

/// ADD in a chain: the addresses are what they are.
pub(crate) fn observe(
    world: &World<'_>,
    request: &Request,
    addresses: &[IpAddr],
    now: u64,
) -> Result<(Answer, Plan), Error> {
    let mut plan = Plan::default();
    let mut answer = Answer { addresses: addresses.to_vec(), before: None };
    let same = |other: &[IpAddr]| other.iter().collect::<BTreeSet<_>>() == addresses.iter().collect();
    // What we gave ourselves, as IPAM of the same chain, is pinned and held already.
    if let Some(given) = world.holds.all.get(&request.attachment).filter(|hold| !hold.seen) {
        let there = given.addresses.iter().all(|address| addresses.contains(address));
        answer.before = (!there).then(|| given.addresses.clone());
        return Ok((answer, plan));
    }
    if let Some(key) = request.pin().map(|id| id.words()) {
        match world.book.pins.get(key.as_str()) {
            Some(entry) if same(&entry.addresses()) && !world.index().void.contains(&key.as_str()) => {
                plan.rests_on = entry.end;
            }
            // An excerpt does not say whose they are.
            _ if world.book.rest.is_some_and(|rest| addresses.iter().any(|&a| rest.takes(a))) => {
                return Err(Error::Incomplete);
            }
            entry => {
                let claims = addresses.iter().filter_map(|a| world.index().by_address.get(a));
                let others: BTreeSet<_> = claims.map(|c| c.key).filter(|k| *k != key).collect();
                plan.durable.extend(others.into_iter().map(|k| Entry::End(k.to_owned())));
                answer.before = entry.map(crate::book::Entry::addresses);
                plan.durable.push(Entry::Pin { key, addresses: addresses.to_vec(), seen: true });
            }
        }
    }
    // Who had the addresses before is gone, where it can be told.
    for &address in addresses {
        let others = world.holders(address, Some(&request.attachment));
        let dead = others.filter(|hold| !world.outside.alive(hold)).map(|hold| hold.attachment.clone());
        plan.holds.extend(dead.map(Change::Free));
    }
    plan.holds.push(request.hold(addresses.to_vec(), true, now));
    Ok((answer, plan))
}

/// Whose holds a DEL or GC is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Addresses this plugin gave, as IPAM.
    Given,
    /// Addresses somebody else gave, seen in a chain.
    Seen,
}

impl Part {
    fn covers(self, hold: &Hold) -> bool {
        hold.seen == (self == Self::Seen)
    }
}

/// DEL, by container and interface.
pub(crate) fn del(world: &World<'_>, own: &Attachment, part: Part) -> Result<Plan, Error> {
    free(world, world.holds.all.get(own).into_iter().filter(|hold| part.covers(hold)))
}

/// GC: what is not among the valid attachments is freed.
pub(crate) fn gc(
    world: &World<'_>,
    valid: &BTreeSet<(ContainerId, Interface)>,
    part: Part,
) -> Result<Plan, Error> {
    let stale = world.holds.of_network(world.network).filter(|hold| {
        let Attachment { container, interface, .. } = &hold.attachment;
        part.covers(hold) && !valid.contains(&(container.clone(), interface.clone()))
    });
    free(world, stale)
}

fn free<'h>(world: &World<'_>, holds: impl Iterator<Item = &'h Hold>) -> Result<Plan, Error> {
    let mut plan = Plan::default();
    for hold in holds {
        plan.holds.push(Change::Free(hold.attachment.clone()));
        let Some(pin) = hold.pin() else { continue };
        let elsewhere =
            |other: &Hold| other.attachment != hold.attachment && other.pin().as_ref() == Some(&pin);
        if world.holds.of_network(world.network).any(elsewhere) {
            continue;
        }
        let key = pin.words();
        if !world.book.pins.contains_key(key.as_str()) {
            // The log has lost the pin, and this hold is the last that knows it: a release brings the log up to the holds
            // first (`heal`). Unless the address became another pod's meanwhile.
            if world.book.rest.is_some() {
                return Err(Error::Incomplete);
            }
            if hold.addresses.iter().any(|address| world.index().by_address.contains_key(address)) {
                continue;
            }
        }
        plan.best_effort.push(Entry::Free(key));
    }
    Ok(plan)
}

/// CHECK: whether the container still holds these addresses.
pub(crate) fn check(world: &World<'_>, own: &Attachment, said: &[IpAddr]) -> Result<(), Error> {
    let Some(hold) = world.holds.all.get(own) else {
        let Attachment { network, container, interface } = own.clone();
        return Err(Error::NoHold { network, container, interface: interface.to_string() });
    };
    if said.is_empty() || hold.addresses.iter().all(|address| said.contains(address)) {
        return Ok(());
    }
    let text = |list: &[IpAddr]| list.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let container = own.container.clone();
    Err(Error::Differs { container, held: text(&hold.addresses), said: text(said) })
}

/// STATUS: whether any pod could be added, a new one (which needs the log) or one that comes home (which does not). One that
/// runs counts: while STATUS fails, runtimes make no sandbox anew, so a pod that crashes would not come home.
pub(crate) fn status(world: &World<'_>, ranges: &Ranges, log: Result<(), Error>) -> Result<(), Error> {
    let full = ranges.sets().iter().find(|set| world.choose(set, None, None).is_none());
    let blocked = match (full, log) {
        (None, Ok(())) => return Ok(()),
        (Some(set), _) => Error::Exhausted { set: set.to_string() },
        (None, Err(error)) => error,
    };
    let comes_home = world.index().by_address.values().any(|claim| {
        let addresses = claim.entry.addresses();
        let free = |set: &RangeSet| {
            let home = addresses.iter().copied().find(|&a| set.range_of(a).is_some());
            home.is_some_and(|address| world.waits_for(claim.key, address))
        };
        !claim.entry.seen && ranges.sets().iter().all(free)
    });
    if comes_home { Ok(()) } else { Err(blocked) }
}
