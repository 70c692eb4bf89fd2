//! Which address a new pod gets: one never used, else one of a pod known to be gone, else the one released longest ago.
//! Never one that is held, never one of a pod on the node's last known list.

use std::cell::OnceCell;
use std::net::IpAddr;

use crate::book::{Book, Claim, Index, Map};
use crate::holds::{Hold, Holds};
use crate::names::{Attachment, Network};
use crate::pods::PodList;
use crate::range::RangeSet;

/// What the decisions ask of the world outside.
pub(crate) trait Outside {
    /// Whether the container of a hold may still live.
    fn alive(&self, hold: &Hold) -> bool;
    /// The live container that has an address according to host-local's files.
    fn foreign(&self, address: IpAddr) -> Option<String>;
}

/// All that is known of one network.
pub(crate) struct World<'w> {
    pub(crate) network: &'w Network,
    pub(crate) book: &'w Book<'w>,
    index: OnceCell<Index<'w>>,
    pub(crate) holds: &'w Holds,
    held: Map<IpAddr, Vec<&'w Hold>>,
    pub(crate) pods: Option<&'w PodList>,
    pub(crate) outside: &'w dyn Outside,
}

/// An address for a new pod, and what has to go for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) address: IpAddr,
    /// Key of the pin that ends.
    pub(crate) victim: Option<String>,
    /// Holds of dead containers.
    pub(crate) dead: Vec<Attachment>,
}

impl<'w> World<'w> {
    pub(crate) fn new(
        network: &'w Network,
        book: &'w Book<'w>,
        holds: &'w Holds,
        pods: Option<&'w PodList>,
        outside: &'w dyn Outside,
    ) -> Self {
        let mut held: Map<IpAddr, Vec<&Hold>> = Map::default();
        for hold in holds.of_network(network) {
            for &address in &hold.addresses {
                held.entry(address).or_default().push(hold);
            }
        }
        Self { network, book, index: OnceCell::new(), holds, held, pods, outside }
    }

    /// The network's pins by address; made when first asked for.
    pub(crate) fn index(&self) -> &Index<'w> {
        self.index.get_or_init(|| self.book.index(self.network))
    }

    /// Holds of an address by others than `own`.
    pub(crate) fn holders(
        &self,
        address: IpAddr,
        own: Option<&Attachment>,
    ) -> impl Iterator<Item = &'w Hold> {
        let holders = self.held.get(&address).map_or(&[][..], Vec::as_slice);
        holders.iter().copied().filter(move |hold| Some(&hold.attachment) != own)
    }

    /// The dead holds of an address, or none where somebody may be using it.
    pub(crate) fn unused(&self, address: IpAddr, own: Option<&Attachment>) -> Option<Vec<Attachment>> {
        let mut dead = Vec::new();
        for hold in self.holders(address, own) {
            if self.outside.alive(hold) {
                return None;
            }
            dead.push(hold.attachment.clone());
        }
        let own = own.map(|own| own.container.as_str());
        let gone = |container: &str| dead.iter().any(|d| d.container.as_str() == container);
        match self.outside.foreign(address) {
            Some(container) if Some(container.as_str()) != own && !gone(&container) => None,
            _ => Some(dead),
        }
    }

    /// Whether a live container that is not of the pin `key` has an address: the log lost who that was, or got this pin from
    /// another time. It will not let go soon.
    pub(crate) fn is_anothers(&self, address: IpAddr, own: &Attachment, key: Option<&str>) -> bool {
        let same = |hold: &Hold| hold.pin().is_some_and(|id| Some(id.words().as_str()) == key);
        self.holders(address, Some(own)).any(|hold| !same(hold) && self.outside.alive(hold))
    }

    /// Whether nobody but the pin's own pod may be using its address: it is there for the pod once its old sandbox is gone.
    pub(crate) fn waits_for(&self, key: &str, address: IpAddr) -> bool {
        let own = |hold: &Hold| hold.pin().is_some_and(|id| id.words() == key);
        let known = |container: &str| {
            self.holders(address, None).any(|hold| hold.attachment.container.as_str() == container)
        };
        self.holders(address, None).all(|hold| own(hold) || !self.outside.alive(hold))
            && self.outside.foreign(address).is_none_or(|container| known(&container))
    }

    pub(crate) fn is_listed(&self, claim: &Claim<'_>) -> bool {
        self.pods.is_some_and(|list| claim.pod().is_some_and(|pod| list.pods.contains(&pod)))
    }

    pub(crate) fn is_gone(&self, claim: &Claim<'_>) -> bool {
        let latest = claim.entry.latest();
        self.pods.is_some_and(|list| claim.pod().is_some_and(|pod| list.gone(self.book.id, latest, &pod)))
    }

    /// An address of `set` for the attachment `own`, whose pin, if any, is `own_key`.
    pub(crate) fn choose(
        &self,
        set: &RangeSet,
        own: Option<&Attachment>,
        own_key: Option<&str>,
    ) -> Option<Choice> {
        self.never_used(set, own).or_else(|| self.used_before(set, own, own_key))
    }

    fn never_used(&self, set: &RangeSet, own: Option<&Attachment>) -> Option<Choice> {
        let last = self.holds.last.get(self.network).and_then(|l| l.iter().copied().find(|&a| set.spans(a)));
        let mut choice = None;
        set.walk(last, &mut |address| {
            let elsewhere = self.book.rest.is_some_and(|rest| rest.takes(address));
            if elsewhere || self.index().by_address.contains_key(&address) {
                return false;
            }
            choice = self.unused(address, own).map(|dead| Choice { address, victim: None, dead });
            choice.is_some()
        });
        choice
    }

    fn used_before(&self, set: &RangeSet, own: Option<&Attachment>, own_key: Option<&str>) -> Option<Choice> {
        let began = self.book.began(&self.holds.epoch);
        let claims = self.index().by_address.iter();
        let ran = self.holds.keys();
        let released = |claim: &Claim<'_>| {
            if ran.contains(claim.key) { self.book.highest + 1 } else { claim.entry.released(began) }
        };
        let mut candidates: Vec<_> = claims
            .filter(|(address, claim)| Some(claim.key) != own_key && set.range_of(**address).is_some())
            .filter(|(_, claim)| !self.is_listed(claim))
            .map(|(&address, claim)| {
                let rank = (!self.is_gone(claim), released(claim), claim.entry.made);
                (rank, address, claim.key)
            })
            .collect();
        candidates.sort_unstable();
        let (rank, choice) = candidates.into_iter().find_map(|(rank, address, key)| {
            let dead = self.unused(address, own)?;
            Some((rank, Choice { address, victim: Some(key.to_owned()), dead }))
        })?;
        self.is_before_the_rest(rank).then_some(choice)
    }

    /// Whether no pin outside of an excerpt could come before one of this rank.
    fn is_before_the_rest(&self, (stays, released, _): (bool, u64, u64)) -> bool {
        let Some(rest) = self.book.rest else { return true };
        // Those of pods known to be gone come first, whenever they were released.
        let may_be_gone = self.pods.is_some() && rest.released_from < u64::MAX;
        released < rest.released_from && !(stays && may_be_gone)
    }
}
