//! The shell around the decisions: one transaction is lock, read, decide, write.

mod outside;
mod recover;
mod spool;
mod turn;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::book::Book;
use crate::contents::Contents;
use crate::decide::{self, Entry, Plan};
use crate::error::Error;
use crate::holds::{Change, Hold, Holds};
use crate::hostlocal::HostLocal;
use crate::journal::{self, Journal};
use crate::lock::Lock;
use crate::names::{Attachment, ContainerId, Interface, Network, PinId};
use crate::pods::PodList;
use crate::range::Ranges;
use crate::{Answer, Request};

pub use crate::decide::Part;
pub(crate) use outside::is_namespace;
pub use outside::{identity, lives};

/// Where pins are kept unless a configuration says otherwise.
pub const STATE: &str = "/var/lib/corax";
/// Where holds are kept unless a configuration says otherwise.
pub const RUN: &str = "/run/corax";
/// The pins log, in the state directory.
pub const PINS: &str = "pins";
/// The holds log, in the run directory.
pub const HOLDS: &str = "holds";
const LOCK: &str = "lock";

/// Whether a file of this name in the state directory is one that this crate makes: the log of pins and the list of pods,
/// each as it is and while it is written, and what was put aside of the log.
#[must_use]
pub fn makes(name: &str) -> bool {
    let written = |file: &str| name == file || name == journal::beside(file);
    let aside = || name == kept(PINS) || journal::asides(PINS).any(|aside| name == aside);
    written(PINS) || written(PodList::FILE) || aside()
}

/// What a log that was damaged is called, once another took its place.
fn kept(name: &str) -> String {
    format!("{name}.damaged")
}

/// A log over this length in bytes has a table of contents.
const LARGE: u64 = 16 << 10;
/// Bytes a STATUS tries to append: more than most records.
const PROBE: usize = 512;

/// A node's pins and holds.
#[derive(Debug, Clone)]
pub struct Store {
    state: PathBuf,
    run: PathBuf,
    boot: String,
    deadline: Duration,
    contents_from: u64,
    runtime: Option<recover::Runtime>,
}

impl Store {
    /// The store of two directories. `boot` identifies this boot (`/proc/sys/kernel/random/boot_id`): holds of another
    /// count for nothing. `deadline` is how long a transaction waits for the lock.
    pub fn new(state: &Path, run: &Path, boot: &str, deadline: Duration) -> Self {
        let boot = crate::record::escape(boot.trim());
        Self {
            state: state.to_owned(),
            run: run.to_owned(),
            boot,
            deadline,
            contents_from: LARGE,
            runtime: None,
        }
    }

    /// The same, which learns from the runtime's CNI cache who runs where the holds of this boot are lost: on the networks that
    /// have pins, and on `network`, whose addresses we give out or see.
    #[must_use]
    pub fn with_runtime(self, cache: &Path, network: Option<(Network, Part)>) -> Self {
        Self { runtime: Some(recover::Runtime { cache: cache.to_owned(), network }), ..self }
    }

    /// The same with a table of contents for logs over `length` bytes: tests have small ones.
    #[doc(hidden)]
    #[must_use]
    pub fn with_contents_from(self, length: u64) -> Self {
        Self { contents_from: length, ..self }
    }

    /// The directory of pins and pod list.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The directory of the holds.
    pub fn run(&self) -> &Path {
        &self.run
    }

    pub(crate) fn boot(&self) -> &str {
        &self.boot
    }

    /// Takes the lock and reads what is there. `now` is unix time in seconds, for people to read.
    ///
    /// # Errors
    /// [`Error::Locked`] when the lock is not free in time; [`Error::Io`] when the run directory cannot be used.
    pub fn begin(&self, now: u64) -> Result<Transaction<'_>, Error> {
        journal::make_directory(&self.run).map_err(Error::io(&self.run))?;
        let lock = Lock::take(&self.run.join(LOCK), self.deadline)?;
        let mut notes = Vec::new();
        let mut held = Journal::open(&self.run.join(HOLDS), &mut notes)?;
        let mut holds = Holds::replay(&held.bytes(&mut notes)?, &self.boot);
        if holds.damaged > 0 {
            let n = holds.damaged;
            notes.push(format!("{n} records of {} were damaged and are lost", held.path.display()));
        }
        if holds.stale {
            let (boot, process) = (&self.boot, std::process::id());
            holds.epoch = format!("{boot}.{now:x}.{process:x}");
        }
        let log = Journal::open(&self.state.join(PINS), &mut notes)?;
        let gone = log.is_missing() && holds.synced.take().is_some();
        if gone && !holds.stale {
            let path = log.path.display();
            notes.push(format!("{path} was there and is gone: the pins of pods that do not run are lost"));
        }
        let mut transaction = Transaction {
            store: self,
            lock,
            log,
            gone,
            held,
            holds,
            recovered: false,
            contents: None,
            now,
            notes,
        };
        transaction.recover()?;
        transaction.absorb();
        Ok(transaction)
    }
}

/// Exclusive use of the store, until dropped.
#[derive(Debug)]
pub struct Transaction<'s> {
    store: &'s Store,
    lock: Lock,
    log: Journal,
    /// There is no log, and the holds on disk say how much of one is: of a new one, if that gets its inode.
    gone: bool,
    held: Journal,
    holds: Holds,
    /// Some of the holds were learnt from the runtime's cache, and are not in their log yet.
    recovered: bool,
    /// Of the log, if there is one that is true of it.
    contents: Option<Contents>,
    now: u64,
    notes: Vec<String>,
}

impl Transaction<'_> {
    /// What was lost or put right on the way, in sentences; each is told once.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Gives a container its addresses: its pod's, or new ones. On disk, where they are pinned, when this returns.
    ///
    /// # Errors
    /// [`Error::Held`] and others that pass; [`Error::Exhausted`]; [`Error::NotDurable`] when a new pin cannot be written.
    pub fn add(
        &mut self,
        ranges: &Ranges,
        request: &Request,
        before: Option<&HostLocal>,
    ) -> Result<Answer, Error> {
        let network = request.attachment.network.clone();
        let now = self.now;
        if !request.requested.is_empty() {
            return self.run(&network, before, |world| decide::add(world, ranges, request, now));
        }
        let key = request.pin().map(|id| id.words());
        self.run_by_excerpt(&network, key, before, |world| decide::add(world, ranges, request, now))
    }

    /// Records what addresses another IPAM gave a container.
    ///
    /// # Errors
    /// [`Error::NotDurable`] when that is news and cannot be written.
    pub fn observe(&mut self, request: &Request, addresses: &[IpAddr]) -> Result<Answer, Error> {
        let now = self.now;
        let network = &request.attachment.network;
        let key = request.pin().map(|id| id.words());
        self.run_by_excerpt(network, key, None, |world| decide::observe(world, request, addresses, now))
    }

    /// Frees what a container holds by an interface. The pin stays.
    ///
    /// # Errors
    /// [`Error::NotHeld`] when the holds cannot be written. A release that cannot be logged is no error.
    pub fn del(&mut self, own: &Attachment, part: Part, before: Option<&HostLocal>) -> Result<(), Error> {
        if let Some(before) = before {
            before.remove(own, None);
        }
        self.run_by_excerpt(&own.network, None, None, |world| Ok(((), decide::del(world, own, part)?)))
    }

    /// Frees what a container holds by an interface on whatever network: for a DEL that does not say which.
    ///
    /// # Errors
    /// [`Error::NotHeld`] when the holds cannot be written.
    pub fn del_everywhere(&mut self, container: &ContainerId, interface: &Interface) -> Result<(), Error> {
        let own = |a: &&Attachment| a.container == *container && a.interface == *interface;
        let all: Vec<_> = self.holds.all.keys().filter(own).cloned().collect();
        all.iter()
            .try_for_each(|a| self.del(a, Part::Given, None).and_then(|()| self.del(a, Part::Seen, None)))
    }

    /// Frees what is held on a network by others than the valid attachments. Answers how many holds that were.
    ///
    /// # Errors
    /// [`Error::NotHeld`] when the holds cannot be written.
    pub fn gc(
        &mut self,
        network: &Network,
        valid: &BTreeSet<(ContainerId, Interface)>,
        part: Part,
        before: Option<&HostLocal>,
    ) -> Result<usize, Error> {
        if let Some(before) = before {
            let named = |r: &crate::hostlocal::Reservation| {
                valid.iter().any(|(container, interface)| {
                    r.container == container.as_str()
                        && r.interface.as_deref().is_none_or(|i| i == interface.as_str())
                })
            };
            for stale in before.reservations().iter().filter(|r| !named(r)) {
                before.forget(stale.address);
            }
        }
        self.run_by_excerpt(network, None, before, |world| {
            let plan = decide::gc(world, valid, part)?;
            Ok((plan.holds.len(), plan))
        })
    }

    /// Whether a container still holds the addresses its result says (empty: any).
    ///
    /// # Errors
    /// [`Error::NoHold`] or [`Error::Differs`].
    pub fn check(&mut self, own: &Attachment, said: &[IpAddr]) -> Result<(), Error> {
        self.run_by_excerpt(&own.network, None, None, |world| {
            Ok((decide::check(world, own, said)?, Plan::default()))
        })
    }

    /// Whether any pod could be added to a network: a new one, or one that comes home, be it after its DEL. Without ranges,
    /// whether one could be recorded.
    ///
    /// # Errors
    /// Why not.
    pub fn status(
        &mut self,
        network: &Network,
        ranges: Option<&Ranges>,
        before: Option<&HostLocal>,
    ) -> Result<(), Error> {
        if self.holds.retired.get(network) == Some(&true) && ranges.is_some() {
            return Err(Error::Retired { network: network.clone() });
        }
        if self.holds.stale || self.gone {
            self.write_holds(&[])?;
        }
        let torn = self.holds.torn.take();
        self.held.probe(PROBE, torn).map_err(|source| self.not_held(source))?;
        let torn = Book::replay(&self.log.bytes(&mut self.notes)?).torn;
        self.open_contents();
        let log = self.log.probe(PROBE, torn).map_err(|source| self.not_durable(source));
        self.stamp_contents();
        let Some(ranges) = ranges else {
            let known = !Book::replay(&self.log.bytes(&mut self.notes)?).pins.is_empty();
            return if known { Ok(()) } else { log };
        };
        self.run(network, before, |world| Ok((decide::status(world, ranges, log)?, Plan::default())))
    }

    /// Ends a pin. One whose container lives ends only by `force`; its container then keeps the address unpinned.
    ///
    /// # Errors
    /// [`Error::NoPin`], [`Error::Held`], or [`Error::NotDurable`].
    pub fn release(&mut self, id: &PinId, force: bool) -> Result<(), Error> {
        let key = id.words();
        let mut holds = Vec::new();
        for hold in self.holds.all.values().filter(|hold| hold.pin().as_ref() == Some(id)) {
            if !lives(hold) {
                holds.push(Change::Free(hold.attachment.clone()));
            } else if force {
                holds.push(Change::Hold(Hold { pod: None, uid: None, ..hold.clone() }));
            } else if let Some(&address) = hold.addresses.first() {
                let container = hold.attachment.container.clone();
                return Err(Error::Held { address, container, pod: hold.pod.clone() });
            }
        }
        if !Book::replay(&self.log.bytes(&mut self.notes)?).pins.contains_key(key.as_str()) {
            return Err(Error::NoPin(id.clone()));
        }
        // The holds first: a hold that still names the pod would bring the pin back.
        self.write_holds(&holds)?;
        let plan = Plan { durable: vec![Entry::End(key)], ..Plan::default() };
        self.run(&id.network, None, |_| Ok(((), plan)))
    }

    /// Hands a network over to another IPAM, or takes it back: while it is handed over, ADD answers [`Error::Retired`].
    ///
    /// # Errors
    /// [`Error::NotHeld`] when that cannot be written.
    pub fn retire(&mut self, network: &Network, on: bool) -> Result<(), Error> {
        self.write_holds(&[Change::Retired(network.clone(), on)])
    }

    /// Ends every hand-over: nobody is left who could be asked for an address by mistake.
    ///
    /// # Errors
    /// [`Error::NotHeld`] when that cannot be written.
    pub fn end_retirements(&mut self) -> Result<(), Error> {
        let retired = self.holds.retired.iter().filter(|(_, on)| **on);
        let changes: Vec<_> = retired.map(|(network, _)| Change::Retired(network.clone(), false)).collect();
        if changes.is_empty() { Ok(()) } else { self.write_holds(&changes) }
    }

    /// Holds whose containers may live.
    pub fn live(&self, network: &Network) -> Vec<Hold> {
        self.holds.of_network(network).filter(|hold| lives(hold)).cloned().collect()
    }

    /// Makes a pin, and a hold where its container lives, as an import says; what is known already is left alone. Answers
    /// whether anything was, and why no pin was made where it could not be: the container then has a hold without one.
    pub(crate) fn adopt(
        &mut self,
        pin: Option<(PinId, Vec<IpAddr>, bool)>,
        hold: Option<Hold>,
    ) -> Result<(bool, Option<String>), Error> {
        let network = pin.as_ref().map(|(id, ..)| id.network.clone());
        let (pinned, mut refused) = match network {
            Some(network) => self.adopt_pins(&network, pin.into_iter().collect())?,
            None => (0, Vec::new()),
        };
        let refused = refused.pop().map(|(_, why)| why);
        let hold = hold.filter(|hold| !self.holds.all.contains_key(&hold.attachment)).map(|hold| {
            // A hold that names the pod would bring the pin about all the same.
            if refused.is_some() { Hold { pod: None, uid: None, ..hold } } else { hold }
        });
        let held = hold.is_some();
        let holds: Vec<_> = hold.map(Change::Hold).into_iter().collect();
        self.write_holds(&holds)?;
        Ok((held || pinned > 0, refused))
    }

    /// Makes pins of one network, in one write; `true`: somebody else gives the addresses. Answers how many were not known before, and which could not be had and why.
    pub(crate) fn adopt_pins(
        &mut self,
        network: &Network,
        pins: Vec<(PinId, Vec<IpAddr>, bool)>,
    ) -> Result<(usize, Vec<(PinId, String)>), Error> {
        self.run(network, None, |world| {
            let mut plan = Plan::default();
            let mut given = BTreeMap::new();
            let mut refused = Vec::new();
            for (id, addresses, seen) in pins {
                let key = id.words();
                let known = world.book.pins.get(key.as_str()).map(crate::book::Entry::addresses);
                let taken = addresses.iter().find_map(|address| {
                    let claimed = || world.index().by_address.get(address)?.pod();
                    Some((address, given.get(address).cloned().or_else(claimed)?))
                });
                let why = match (known, taken) {
                    (Some(known), _) if known == addresses => continue,
                    (Some(known), _) => format!("the pod is pinned to {} already", text(&known)),
                    (None, Some((address, pod))) => format!("{address} is pinned to pod {pod}"),
                    (None, None) if addresses.is_empty() => "it has no address".to_owned(),
                    (None, None) => {
                        given.extend(addresses.iter().map(|&address| (address, id.pod.clone())));
                        plan.durable.push(Entry::Pin { key, addresses, seen });
                        continue;
                    }
                };
                refused.push((id, why));
            }
            Ok(((plan.durable.len(), refused), plan))
        })
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    fn not_durable(&self, cause: io::Error) -> Error {
        Error::NotDurable { path: self.log.path.clone(), cause }
    }

    fn not_held(&self, cause: io::Error) -> Error {
        Error::NotHeld { path: self.held.path.clone(), cause }
    }
}

fn text(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}
