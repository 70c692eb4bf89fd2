//! The store as a reader sees it, without the lock: for the agent that follows, and for the command line.
//!
//! Appends are whole records and everything else is a rename, so whoever watches the two directories (inotify) and reads
//! again after an event sees each state in turn.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::book::Book;
use crate::error::Error;
use crate::holds::{Hold, Holds};
use crate::names::{ContainerId, Interface, Network, PinId, PodName};
use crate::pods::PodList;
use crate::store::{HOLDS, PINS, Store, lives};

/// What a pin is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinState {
    /// A sandbox holds it.
    Held,
    /// No sandbox holds it, and its pod may come back.
    Free,
    /// Free, and its pod is not on a list of this node's pods younger than the pin.
    Gone,
}

/// One pin, as listed and exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The network.
    pub network: Network,
    /// The pod's namespace.
    pub namespace: crate::names::Label,
    /// The pod's name.
    pub pod: crate::names::Label,
    /// The pod's interface.
    pub interface: Interface,
    /// One address of each range set.
    pub addresses: Vec<IpAddr>,
    /// What it is doing.
    pub state: PinState,
    /// Given by another IPAM, and only seen in a chain.
    #[serde(default)]
    pub seen: bool,
    /// Since when it is what it is: unix time in seconds.
    pub since: u64,
    /// The container that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerId>,
}

impl Pin {
    /// Which pin.
    pub fn id(&self) -> PinId {
        let pod = PodName { namespace: self.namespace.clone(), name: self.pod.clone() };
        PinId { network: self.network.clone(), pod, interface: self.interface.clone() }
    }
}

/// Pins and holds at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By network, namespace, pod and interface.
    pub pins: Vec<Pin>,
    /// By network, container and interface; those of dead containers included.
    pub holds: Vec<Hold>,
    /// Identity of the pins log ([`PodList::log`]).
    pub log: String,
    /// Number of its last record ([`PodList::highest`]).
    pub highest: u64,
    /// Records that damage has taken and nobody has cleared away yet.
    pub damaged: usize,
}

impl Snapshot {
    /// Reads the store. Files that are missing or unreadable are empty.
    pub fn read(store: &Store) -> Self {
        let log = std::fs::read(store.state().join(PINS)).unwrap_or_default();
        let held = std::fs::read(store.run().join(HOLDS)).unwrap_or_default();
        Self::of(store, &log, &held)
    }

    /// Reads the store for somebody who asks what is in it. Files that are missing are empty.
    ///
    /// # Errors
    /// [`Error::Io`] when the state directory is missing, or one of the files cannot be read.
    pub fn try_read(store: &Store) -> Result<Self, Error> {
        std::fs::read_dir(store.state()).map_err(Error::io(store.state()))?;
        let read = |path: PathBuf| match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(Error::io(path)),
        };
        let (log, held) = (read(store.state().join(PINS))?, read(store.run().join(HOLDS))?);
        Ok(Self::of(store, &log, &held))
    }

    fn of(store: &Store, log: &[u8], held: &[u8]) -> Self {
        let list = PodList::read(store.state()).ok().flatten();
        let book = Book::replay(log);
        let holds = Holds::replay(held, store.boot());
        let live: BTreeMap<_, _> = holds
            .all
            .values()
            .filter(|hold| lives(hold))
            .filter_map(|hold| Some((hold.pin()?, hold)))
            .collect();
        let mut pins: Vec<_> = book
            .pins
            .iter()
            .filter_map(|(key, entry)| {
                let id = PinId::from_words(key)?;
                let hold = live.get(&id).copied();
                let gone = || list.as_ref().is_some_and(|list| list.gone(book.id, entry.latest(), &id.pod));
                let state = match hold {
                    Some(_) => PinState::Held,
                    None if gone() => PinState::Gone,
                    None => PinState::Free,
                };
                let freed = entry.freed.map_or(entry.taken_at, |(_, at)| at);
                Some(Pin {
                    addresses: entry.addresses(),
                    seen: entry.seen,
                    since: hold.map_or(freed, |hold| hold.since),
                    container: hold.map(|hold| hold.attachment.container.clone()),
                    state,
                    network: id.network,
                    namespace: id.pod.namespace,
                    pod: id.pod.name,
                    interface: id.interface,
                })
            })
            .collect();
        pins.sort_by_cached_key(Pin::id);
        let log = book.id.unwrap_or_default().to_owned();
        let damaged = book.damaged + holds.damaged;
        Self { pins, holds: holds.all.into_values().collect(), log, highest: book.highest, damaged }
    }
}
