//! The last known pod list of this node: kept by the agent, read by the plugin.
//!
//! A pod on the list keeps its address whoever asks for one. A pod that is not on it is known to be gone, but only where
//! the list is younger than all the log has of the pod: the agent notes the log's identity and highest record *before* it
//! asks the API server.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::frame::{self, Frame, frames};
use crate::names::PodName;
use crate::record::{Line, NONE};

/// The first record; value: identity of the log, number: its highest, subject: how many pods follow.
const HEAD: &str = "pods";
/// A pod.
const POD: &str = "pod";

/// Which pods this node has, and how much of the log that covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodList {
    /// Identity of the pins log when the list was asked for ([`crate::Snapshot::log`]).
    pub log: String,
    /// Its highest record then ([`crate::Snapshot::highest`]).
    pub highest: u64,
    /// The pods of this node, in any phase but finished.
    pub pods: BTreeSet<PodName>,
}

impl PodList {
    /// Name of the list's file in the state directory.
    pub const FILE: &str = "pods";

    /// Reads the list of a state directory; none where there is no file. One that is damaged is the pods that can be read, which
    /// keep their addresses, and lets nobody go ([`Self::is_whole`]).
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(state: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(state.join(Self::FILE)) {
            Ok(bytes) => Ok(Some(Self::parse(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it beside the old one and renames it, durable when this returns.
    ///
    /// # Errors
    /// What the file system says; the old list is then still there.
    pub fn write(&self, state: &Path, now: u64) -> io::Result<()> {
        crate::journal::replace(&state.join(Self::FILE), &self.bytes(now), true)
    }

    /// Whether it is as it was written.
    pub fn is_whole(&self) -> bool {
        !self.log.is_empty()
    }

    pub(crate) fn gone(&self, log: Option<&str>, latest: u64, pod: &PodName) -> bool {
        self.is_whole()
            && log == Some(self.log.as_str())
            && latest <= self.highest
            && !self.pods.contains(pod)
    }

    fn bytes(&self, now: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut push = |number, kind, value: &str, subject: &str| {
            frame::push(&mut out, &Line { number, kind, at: now, value, subject }.text());
        };
        push(self.highest, HEAD, &self.log, &self.pods.len().to_string());
        self.pods.iter().for_each(|pod| push(0, POD, NONE, &pod.to_string()));
        out
    }

    fn parse(bytes: &[u8]) -> Self {
        let (mut list, mut count) = (Self::default(), None);
        for frame in frames(bytes) {
            let Frame::Record { text, .. } = frame else { continue };
            match Line::parse(text) {
                Some(Line { kind: HEAD, number, value, subject, .. }) => {
                    (list.log, list.highest, count) = (value.to_owned(), number, subject.parse().ok());
                }
                Some(Line { kind: POD, subject, .. }) => list.pods.extend(subject.parse::<PodName>()),
                _ => {}
            }
        }
        if count == Some(list.pods.len()) { list } else { Self { pods: list.pods, ..Self::default() } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_torn_or_flipped_anywhere_keeps_the_other_pods_and_lets_nobody_go() {
        let pods: BTreeSet<PodName> =
            ["a/b", "kube-system/etcd-0"].iter().map(|p| p.parse().unwrap()).collect();
        let list = PodList { log: "id".to_owned(), highest: 7, pods: pods.clone() };
        let bytes = list.bytes(1);
        assert_eq!(PodList::parse(&bytes), list);
        for cut in 0..bytes.len() - 1 {
            assert!(!PodList::parse(&bytes[..cut]).is_whole(), "cut at {cut}");
            let mut flipped = bytes.clone();
            flipped[cut] ^= 4;
            let read = PodList::parse(&flipped);
            assert!(read.pods.is_subset(&pods) && !read.pods.is_empty(), "flip at {cut}");
            assert_eq!(read.is_whole(), read == list, "flip at {cut}");
        }
        let half = PodList::parse(&bytes[..bytes.len() - 3]);
        assert!(half.pods.contains(&"a/b".parse().unwrap()));
        assert!(!half.gone(Some(""), 0, &"a/gone".parse().unwrap()));
    }

    #[test]
    fn a_pod_is_gone_only_where_the_list_is_younger_than_the_pin() {
        let list =
            PodList { log: "id".to_owned(), highest: 7, pods: BTreeSet::from(["a/b".parse().unwrap()]) };
        let other: PodName = "a/c".parse().unwrap();
        assert!(list.gone(Some("id"), 7, &other));
        assert!(!list.gone(Some("id"), 8, &other), "started after the list was asked for");
        assert!(!list.gone(Some("else"), 7, &other), "the log began anew since");
        assert!(!list.gone(None, 7, &other));
        assert!(!list.gone(Some("id"), 7, &"a/b".parse().unwrap()));
    }
}
