//! What Raven left where no event tells of it: chains of iptables, ipsets, a filter on the overlay. Read with everything
//! else, taken away one by one; what cannot be is told, with the line to run.

mod chains;
mod filter;
mod legacy;
mod sets;

use std::collections::{BTreeMap, BTreeSet};

use corax_core::change::Change;
use corax_core::problem::Problem;
use corax_core::raven::{Chain, Jump, Leftover, Tables};

use self::legacy::Legacy;
use super::error::{ApplyError, Error, Failure};
use super::nft::NETLINK_NETFILTER;
use super::socket::Socket;

pub(super) use self::filter::{RTM_DELTFILTER, filter_header, put_filter};

/// Reads and takes away.
pub(super) struct Leftovers {
    netfilter: Socket,
    legacy: Legacy,
    /// Whether Raven's chains may be in legacy tables, which only a program can read: it is not asked again in vain.
    look_in_legacy: bool,
    /// What could not be taken away, and why. It is not tried again by this process.
    stuck: BTreeMap<Leftover, ApplyError>,
    /// What could not be read.
    unread: Vec<Problem>,
}

/// Whether it is of the kind that is read here.
pub(super) fn is_read_here(leftover: &Leftover) -> bool {
    matches!(leftover, Leftover::Jump(_) | Leftover::Chain(..) | Leftover::Filter | Leftover::Set(_))
}

impl Leftovers {
    pub(super) fn open() -> Result<Self, Error> {
        Ok(Self {
            netfilter: Socket::open(NETLINK_NETFILTER, false)?,
            legacy: Legacy::default(),
            look_in_legacy: true,
            stuck: BTreeMap::new(),
            unread: Vec::new(),
        })
    }

    /// Everything that is there and can be taken away. `overlay` is the index of the overlay.
    pub(super) fn read(&mut self, route: &mut Socket, overlay: Option<u32>) -> BTreeSet<Leftover> {
        self.unread.clear();
        let mut found = BTreeSet::new();
        let filter = overlay.map_or(Ok(None), |index| filter::read(route, index));
        found.extend(self.known("filters of raven0", filter).flatten());
        let chains = chains::read(&mut self.netfilter);
        found.extend(self.known("chains of iptables-nft", chains).into_iter().flatten());
        let sets = sets::read(&mut self.netfilter);
        let sets = self.known("ipsets", sets).unwrap_or_default();
        if self.look_in_legacy {
            let chains = self.legacy.read();
            // Without a set of Raven's there is no chain that matters.
            let chains =
                if sets.is_empty() { chains.ok() } else { self.known("chains of iptables-legacy", chains) };
            self.look_in_legacy = chains.as_ref().is_some_and(|chains| !chains.is_empty());
            found.extend(chains.into_iter().flatten());
        }
        found.extend(sets);
        self.stuck.retain(|left, _| found.contains(left));
        found.retain(|left| !self.stuck.contains_key(left));
        found
    }

    fn known<T, E: ToString>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        result
            .inspect_err(|error| {
                let text = format!("cannot be read, so what Raven left there stays: {}", error.to_string());
                self.unread.push(Problem::new(what, text, "see whether it names raven, and remove that"));
            })
            .ok()
    }

    /// Takes away what is not rtnetlink's. What cannot be is a problem from then on, and not seen any more.
    pub(super) fn take_away(&mut self, change: &Change, leftover: &Leftover) -> Result<(), ApplyError> {
        let by_kernel =
            |result: Result<(), Failure>| result.map_err(|failure| ApplyError::of(change, &failure));
        let by_program =
            |result: Result<(), Error>| result.map_err(|error| ApplyError::new(change, error.to_string()));
        let result = match leftover {
            Leftover::Jump(jump @ Jump { tables: Tables::Nft, .. }) => {
                by_kernel(chains::delete_jump(&mut self.netfilter, jump))
            }
            Leftover::Chain(Tables::Nft, chain) => by_kernel(chains::delete(&mut self.netfilter, *chain)),
            Leftover::Jump(jump @ Jump { tables: Tables::Legacy, .. }) => {
                by_program(self.legacy.delete_jump(jump))
            }
            Leftover::Chain(Tables::Legacy, chain) => by_program(self.legacy.delete(*chain)),
            Leftover::Set(set) => sets::destroy(&mut self.netfilter, *set)
                .map_err(|failure| ApplyError::new(change, sets::meaning(&failure))),
            Leftover::MarkRule(_) | Leftover::TunnelRule(_) | Leftover::Flood(_) | Leftover::Filter => Ok(()),
        };
        if let Err(error) = &result {
            self.stuck.insert(leftover.clone(), error.clone());
        }
        result
    }

    /// What of it stays, and what a person can do about it.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let stuck = self.stuck.iter().map(|(left, error)| {
            let what = format!("is Raven's and could not be taken away: {}", error.meaning);
            Problem::new(object(left), what, left.to_string().replace('\n', "; "))
        });
        self.unread.iter().cloned().chain(stuck).collect()
    }
}

/// What a leftover is, in words.
fn object(leftover: &Leftover) -> String {
    let chain = |tables: Tables, chain: Chain| {
        let program = match tables {
            Tables::Nft => "iptables-nft",
            Tables::Legacy => "iptables-legacy",
        };
        format!("chain {} of {program}, table {}", chain.name(), chain.table())
    };
    match leftover {
        Leftover::Jump(Jump { tables, to, from, .. }) => {
            format!("the jump from {from} to {}", chain(*tables, *to))
        }
        Leftover::Chain(tables, name) => chain(*tables, *name),
        Leftover::Set(set) => format!("ipset {}", set.name()),
        Leftover::MarkRule(_) | Leftover::TunnelRule(_) => "a rule".to_owned(),
        Leftover::Flood(_) => "an entry of the FDB".to_owned(),
        Leftover::Filter => "a filter of raven0".to_owned(),
    }
}
