//! A table on its way: what nft is given, in steps, and the thread that waits for it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

use corax_core::nft::Ruleset;
use corax_core::object::{Set, SetRole};
use corax_core::observed::Observed;
use corax_core::prefix::Prefix;
use corax_core::sorted::{Difference, merge};

use super::{Refused, listing, send_elements};
use crate::kernel::error::{Error, Failure};
use crate::kernel::program;
use crate::kernel::socket::Socket;

/// From so many elements on, nft is not asked to add them.
const MANY: usize = 1024;

/// One transaction.
pub(super) enum Step {
    /// Text for `nft -f -`.
    Text(String),
    /// The same, and what does instead where it is refused.
    Either(String, String),
    Elements(Vec<(Set, Prefix)>),
}

/// How a table is made.
pub(super) struct Steps {
    /// What there is to do until the table holds.
    pub(super) first: Vec<Step>,
    /// What has time after that.
    pub(super) then: Vec<Step>,
}

impl Steps {
    /// Where there is no table. `in_use`: there are devices of ours, or Raven's, that packets go by already.
    pub(super) fn anew(ruleset: &Ruleset, elements: &[(Set, Prefix)], in_use: bool) -> Self {
        // nft takes its time over ten thousand elements.
        let many = elements.len() >= MANY;
        let (members, others): (Vec<_>, Vec<_>) =
            elements.iter().partition(|(set, _)| many && set.role == SetRole::Members);
        let members = (!members.is_empty()).then_some(Step::Elements(members));
        if in_use {
            // A kernel applies new rules a moment before it finds the elements of new sets, and packets that are on their
            // way would be dropped as strangers': the sets come first.
            let sets = text(|out| ruleset.write_sets(out, &others));
            let chains = text(|out| ruleset.write_chains(out));
            let first = [Some(Step::Text(sets)), members, Some(Step::Text(chains))];
            Self { first: first.into_iter().flatten().collect(), then: Vec::new() }
        } else {
            // Nobody depends yet on who may send to the VXLAN port.
            let whole = text(|out| ruleset.write(out, &others));
            Self { first: vec![Step::Text(whole)], then: members.into_iter().collect() }
        }
    }

    /// Where there is one, of this outline. `turnover`: where its sets and counters may stay.
    pub(super) fn again(
        ruleset: &Ruleset,
        elements: &[(Set, Prefix)],
        outline: &BTreeSet<String>,
        turnover: Option<Turnover>,
    ) -> Self {
        let whole = text(|out| ruleset.write(out, elements));
        let step = match turnover {
            Some(Turnover { delete, add }) => {
                Step::Either(text(|out| ruleset.write_renewal(out, outline, &delete, &add)), whole)
            }
            None => Step::Text(whole),
        };
        Self { first: vec![step], then: Vec::new() }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.first.len() + self.then.len()).unwrap_or(u32::MAX)
    }
}

/// What sets that stay are to lose and to gain.
pub(super) struct Turnover {
    delete: Vec<(Set, Prefix)>,
    add: Vec<(Set, Prefix)>,
}

impl Turnover {
    /// From what is observed to `elements`, which are sorted.
    pub(super) fn of(observed: &Observed, elements: &[(Set, Prefix)]) -> Self {
        let (mut delete, mut add) = (Vec::new(), Vec::new());
        merge(elements.iter().map(|element| (element, &())), observed.elements.iter(), |difference| {
            match difference {
                Difference::Missing(element, ()) => add.push(*element),
                Difference::Extra(element, ()) => delete.push(*element),
                Difference::Both(..) => {}
            }
        });
        Self { delete, add }
    }
}

fn text(write: impl FnOnce(&mut String) -> std::fmt::Result) -> String {
    let mut text = String::new();
    write(&mut text).expect("writing to a string cannot fail");
    text
}

/// See the module.
pub(super) struct Making {
    fingerprint: u64,
    /// The kernel's count of transactions once all is done, if nobody else makes one.
    generation: u32,
    /// Whether it holds, as soon as that is known; none once it was asked for.
    stands: Option<Receiver<Result<(), Refused>>>,
    /// Gives the listing of the table, none where it was not made.
    worker: JoinHandle<Result<Option<String>, Refused>>,
}

/// A table that was made.
pub(super) struct Made {
    pub(super) fingerprint: u64,
    pub(super) generation: u32,
    pub(super) listing: Option<String>,
}

impl Making {
    /// Begins. `generation`: the kernel's count of transactions so far.
    pub(super) fn begin(
        program: &Path,
        fingerprint: u64,
        generation: u32,
        steps: Steps,
    ) -> Result<Self, Failure> {
        let generation = generation.wrapping_add(steps.count());
        let program = program.to_path_buf();
        let (told, stands) = mpsc::sync_channel(1);
        let make = move || {
            let made = steps.first.iter().try_for_each(|step| step.take(&program));
            let failed = made.is_err();
            let _ = told.send(made);
            if failed {
                return Ok(None);
            }
            // Some nft read every element of a table to list it without them: as long as there are few, it is quick.
            let listing = listing(&program);
            steps.then.iter().try_for_each(|step| step.take(&program))?;
            Ok(listing?)
        };
        let worker = std::thread::Builder::new().name("nft".into()).spawn(make)?;
        Ok(Self { fingerprint, generation, stands: Some(stands), worker })
    }

    /// Whether it is known to hold.
    pub(super) const fn stands(&self) -> bool {
        self.stands.is_none()
    }

    /// Waits until it holds.
    pub(super) fn stand(&mut self) -> Result<(), Refused> {
        let Some(stands) = self.stands.take() else { return Ok(()) };
        stands.recv().unwrap_or_else(|_| Err(panicked("-f -").into()))
    }

    /// Waits for what is still being done.
    pub(super) fn end(self) -> Result<Made, Refused> {
        let listing = self.worker.join().map_err(|_| panicked("list table"))??;
        Ok(Made { fingerprint: self.fingerprint, generation: self.generation, listing })
    }
}

impl Step {
    fn take(&self, program: &Path) -> Result<(), Refused> {
        let run = |text: &str| program::run(program, &["-f", "-"], text, "-f -").map(drop);
        match self {
            Self::Text(text) => Ok(run(text)?),
            Self::Either(text, instead) => Ok(run(text).or_else(|_| run(instead))?),
            Self::Elements(elements) => {
                let mut socket = Socket::open(super::NETLINK_NETFILTER, false)?;
                Ok(send_elements(&mut socket, &[], elements)?)
            }
        }
    }
}

fn panicked(what: &'static str) -> Error {
    Error::Program { program: "nft".to_owned(), what, text: "its thread panicked".to_owned() }
}
