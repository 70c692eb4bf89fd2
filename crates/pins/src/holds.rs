//! Holds: which container has which addresses now. They die with the boot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::frame::{self, Frame, frames};
use crate::names::{Attachment, Label, Network, PinId, PodName};
use crate::record::{self, Line, NONE, escape, hold, unescape};

/// The network namespace a container had when it got its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    /// `CNI_NETNS`.
    pub path: String,
    /// Device and inode of what was there, if that could be told. The namespace is dead when the path leads elsewhere now, or
    /// nowhere; without this, only when it leads nowhere.
    pub identity: Option<(u64, u64)>,
}

/// The use of addresses by one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Which container, on which network, by which interface.
    pub attachment: Attachment,
    /// The pod, where the runtime names it by namespace and name both.
    pub pod: Option<PodName>,
    /// `K8S_POD_UID`.
    pub uid: Option<Label>,
    /// Where the container lives.
    pub netns: Option<Netns>,
    /// One of each range set, in the configuration's order.
    pub addresses: Vec<IpAddr>,
    /// Unix time in seconds.
    pub since: u64,
    /// Given by another IPAM and only seen in a chain.
    pub seen: bool,
}

impl Hold {
    /// The pin it is the use of.
    pub fn pin(&self) -> Option<PinId> {
        let Attachment { network, interface, .. } = &self.attachment;
        let pod = self.pod.clone()?;
        Some(PinId { network: network.clone(), pod, interface: interface.clone() })
    }

    fn line(&self) -> String {
        let (namespace, name) =
            self.pod.as_ref().map_or((NONE, NONE), |p| (p.namespace.as_str(), p.name.as_str()));
        let uid = self.uid.as_ref().map_or(NONE, Label::as_str);
        let path = self.netns.as_ref().map_or(NONE.to_owned(), |n| escape(&n.path));
        let identity = self.netns.as_ref().and_then(|n| n.identity);
        let identity = identity.map_or(NONE.to_owned(), |(device, inode)| format!("{device}:{inode}"));
        let source = if self.seen { "seen" } else { "given" };
        let words = attachment_words(&self.attachment);
        let subject = format!("{words} {namespace} {name} {uid} {identity} {path} {source}");
        let value = record::addresses_text(&self.addresses);
        Line { number: 0, kind: hold::HOLD, at: self.since, value: &value, subject: &subject }.text()
    }

    fn parse(line: &Line<'_>) -> Option<Self> {
        let words: Vec<_> = line.subject.split(' ').collect();
        let [network, container, interface, namespace, name, uid, identity, path, source] = words[..] else {
            return None;
        };
        let pod = if name == NONE { None } else { Some(PodName::new(namespace, name).ok()?) };
        let identity = identity.split_once(':').and_then(|(d, i)| Some((d.parse().ok()?, i.parse().ok()?)));
        let netns = if path == NONE { None } else { Some(Netns { path: unescape(path)?, identity }) };
        Some(Self {
            attachment: attachment([network, container, interface])?,
            pod,
            uid: uid.parse().ok(),
            netns,
            addresses: record::addresses(line.value)?,
            since: line.at,
            seen: source == "seen",
        })
    }
}

fn attachment_words(a: &Attachment) -> String {
    format!("{} {} {}", a.network, a.container, a.interface)
}

fn attachment(words: [&str; 3]) -> Option<Attachment> {
    let [network, container, interface] = words;
    Some(Attachment {
        network: network.parse().ok()?,
        container: container.parse().ok()?,
        interface: interface.parse().ok()?,
    })
}

/// How far the pins log is known to be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) inode: u64,
    pub(crate) length: u64,
}

/// One change of the holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Hold(Hold),
    Free(Attachment),
    Synced(Synced),
    Retired(Network, bool),
}

impl Change {
    pub(crate) fn push(&self, out: &mut Vec<u8>, now: u64) {
        let line =
            |kind, value: &str, subject: &str| Line { number: 0, kind, at: now, value, subject }.text();
        let text = match self {
            Self::Hold(hold) => hold.line(),
            Self::Free(a) => line(hold::FREE, NONE, &attachment_words(a)),
            Self::Synced(s) => line(hold::SYNCED, &s.inode.to_string(), &s.length.to_string()),
            Self::Retired(network, on) => {
                line(hold::RETIRED, if *on { "on" } else { "off" }, network.as_str())
            }
        };
        frame::push(out, &text);
    }
}

/// The holds log, replayed.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    pub(crate) all: BTreeMap<Attachment, Hold>,
    /// The addresses each network gave out last.
    pub(crate) last: BTreeMap<Network, Vec<IpAddr>>,
    pub(crate) retired: BTreeMap<Network, bool>,
    /// Identifies this run of holds in the pins log.
    pub(crate) epoch: String,
    pub(crate) synced: Option<Synced>,
    /// Frames in the log, and of them, frames that were no record any more.
    pub(crate) frames: usize,
    pub(crate) damaged: usize,
    pub(crate) torn: Option<usize>,
    /// Of another boot, or without a head: the log has to be written anew.
    pub(crate) stale: bool,
}

/// What still counts of a log, as text: most of its records are past when they are read.
#[derive(Default)]
struct Lines<'l> {
    /// By network, container and interface.
    held: BTreeMap<&'l str, Line<'l>>,
    /// Addresses, by network.
    last: BTreeMap<&'l str, &'l str>,
}

impl Holds {
    /// Replays a log. One of another boot than `boot` holds nothing.
    pub(crate) fn replay(log: &[u8], boot: &str) -> Self {
        let mut holds = Self { stale: true, ..Self::default() };
        let mut lines = Lines::default();
        for frame in frames(log) {
            holds.frames += 1;
            let line = match frame {
                Frame::Record { text, .. } => Line::parse(text),
                Frame::Damaged => None,
                Frame::Torn { start } => {
                    holds.torn = Some(start);
                    continue;
                }
            };
            let Some(line) = line else {
                holds.damaged += 1;
                continue;
            };
            if holds.apply(&line, boot, &mut lines).is_none() {
                holds.damaged += 1;
            }
        }
        for line in lines.held.values() {
            match Hold::parse(line) {
                Some(hold) => drop(holds.all.insert(hold.attachment.clone(), hold)),
                None => holds.damaged += 1,
            }
        }
        for (network, addresses) in lines.last {
            match network.parse().ok().zip(record::addresses(addresses)) {
                Some((network, addresses)) => drop(holds.last.insert(network, addresses)),
                None => holds.damaged += 1,
            }
        }
        holds
    }

    fn apply<'l>(&mut self, line: &Line<'l>, boot: &str, lines: &mut Lines<'l>) -> Option<()> {
        match line.kind {
            hold::EPOCH if line.value != boot => {
                *self = Self { stale: true, ..Self::default() };
                *lines = Lines::default();
            }
            hold::EPOCH => {
                self.epoch = line.subject.to_owned();
                self.stale = false;
            }
            hold::HOLD => {
                let (key, _) = line.subject.split_at(line.subject.match_indices(' ').nth(2)?.0);
                lines.last.insert(key.split(' ').next()?, line.value);
                lines.held.insert(key, *line);
            }
            hold::FREE => drop(lines.held.remove(line.subject)),
            hold::LAST => drop(lines.last.insert(line.subject, line.value)),
            hold::RETIRED => {
                self.retired.insert(line.subject.parse().ok()?, line.value == "on");
            }
            hold::SYNCED => {
                self.synced =
                    Some(Synced { inode: line.value.parse().ok()?, length: line.subject.parse().ok()? });
            }
            _ => {}
        }
        Some(())
    }

    /// Makes a change in memory.
    pub(crate) fn change(&mut self, change: &Change) {
        match change {
            Change::Hold(hold) => {
                self.last.insert(hold.attachment.network.clone(), hold.addresses.clone());
                self.all.insert(hold.attachment.clone(), hold.clone());
            }
            Change::Free(attachment) => drop(self.all.remove(attachment)),
            Change::Synced(synced) => self.synced = Some(*synced),
            Change::Retired(network, on) => drop(self.retired.insert(network.clone(), *on)),
        }
    }

    /// Whether a change changes anything.
    pub(crate) fn news(&self, change: &Change) -> bool {
        match change {
            Change::Retired(network, on) => self.retired.get(network).copied().unwrap_or(false) != *on,
            Change::Synced(synced) => self.synced != Some(*synced),
            Change::Hold(_) | Change::Free(_) => true,
        }
    }

    /// Keys of the pins that holds are the use of ([`PinId::words`]).
    pub(crate) fn keys(&self) -> BTreeSet<String> {
        self.all.values().filter_map(|hold| Some(hold.pin()?.words())).collect()
    }

    /// The holds of one network.
    pub(crate) fn of_network<'s>(&'s self, network: &'s Network) -> impl Iterator<Item = &'s Hold> {
        self.all.values().filter(move |hold| hold.attachment.network == *network)
    }

    /// The whole log, written anew: head, then what still counts.
    pub(crate) fn rewritten(&self, boot: &str, now: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let line =
            |kind, value: &str, subject: &str| Line { number: 0, kind, at: now, value, subject }.text();
        frame::push(&mut out, &line(hold::EPOCH, boot, &self.epoch));
        if let Some(synced) = self.synced {
            Change::Synced(synced).push(&mut out, now);
        }
        for network in self.retired.iter().filter_map(|(network, on)| on.then_some(network)) {
            Change::Retired(network.clone(), true).push(&mut out, now);
        }
        for hold in self.all.values() {
            frame::push(&mut out, &hold.line());
        }
        for (network, addresses) in &self.last {
            frame::push(&mut out, &line(hold::LAST, &record::addresses_text(addresses), network.as_str()));
        }
        out
    }
}
