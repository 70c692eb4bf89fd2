//! Numbers of nexthop objects.
//!
//! The 30 bits of our range are the family, whether the number stands in for one that is somebody else's, and the 28 bits of
//! the path: of its IPv4 next hop, which no two VTEPs share and none has as zero; zero is the way to other domains, whoever the
//! gateway is. So a path has its number whatever other paths there are.

use std::collections::{BTreeMap, BTreeSet};

use crate::object::NexthopId;
use crate::prefix::Family;
use crate::topology::Vtep;

const SIX: u32 = 1 << 29;
const STAND_IN: u32 = 1 << 28;
const PATH: u32 = STAND_IN - 1;

/// The numbers of paths, where others have some.
pub(super) struct Ids {
    /// By what each that is somebody else's is replaced.
    moved: BTreeMap<NexthopId, NexthopId>,
}

impl Ids {
    pub(super) fn beside(foreign: &BTreeSet<NexthopId>) -> Self {
        let mut taken = foreign.clone();
        let stand_in = |id: &NexthopId| {
            let mut number = id.0 | STAND_IN;
            while !taken.insert(NexthopId(number)) {
                number = number & !PATH | (number + 1) & PATH;
            }
            (*id, NexthopId(number))
        };
        Self { moved: foreign.iter().map(stand_in).collect() }
    }

    /// Of the way to other domains.
    pub(super) fn gateway(&self, family: Family) -> NexthopId {
        self.of(0, family)
    }

    /// Of the way to a member's pods.
    pub(super) fn member(&self, vtep: &Vtep, family: Family) -> NexthopId {
        self.of(u32::from(vtep.next_hop) & PATH, family)
    }

    fn of(&self, path: u32, family: Family) -> NexthopId {
        let six = if family == Family::V6 { SIX } else { 0 };
        let id = NexthopId(NexthopId::FIRST | six | path);
        self.moved.get(&id).copied().unwrap_or(id)
    }
}

#[cfg(test)]
mod tests;
