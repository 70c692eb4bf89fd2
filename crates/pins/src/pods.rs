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
use crate::record::Line;

const HEAD: &str = "pods";

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

    /// Reads the list of a state directory; none where there is no file.
    ///
    /// # Errors
    /// What is wrong with the file. It is no list then: it protects nobody and lets nobody go.
    pub fn read(state: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(state.join(Self::FILE)) {
            Ok(bytes) => Self::parse(&bytes).map(Some).ok_or_else(|| io::Error::other("it is damaged")),
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

    pub(crate) fn gone(&self, log: Option<&str>, latest: u64, pod: &PodName) -> bool {
        log == Some(self.log.as_str()) && latest <= self.highest && !self.pods.contains(pod)
    }

    fn bytes(&self, now: u64) -> Vec<u8> {
        let mut body = String::new();
        for pod in &self.pods {
            body.push(' ');
            body.push_str(&pod.to_string());
        }
        let mut out = Vec::new();
        let subject = format!("{}{body}", self.pods.len());
        frame::push(
            &mut out,
            &Line { number: self.highest, kind: HEAD, at: now, value: &self.log, subject: &subject }.text(),
        );
        out
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let Frame::Record { text, .. } = frames(bytes).next()? else { return None };
        let line = Line::parse(text).filter(|line| line.kind == HEAD)?;
        let mut words = line.subject.split(' ');
        let count: usize = words.next()?.parse().ok()?;
        let pods: BTreeSet<_> = words.map(|w| w.parse().ok()).collect::<Option<_>>()?;
        (pods.len() == count).then(|| Self { log: line.value.to_owned(), highest: line.number, pods })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_torn_or_flipped_anywhere_is_no_list() {
        let pods = ["a/b", "kube-system/etcd-0"].iter().map(|p| p.parse().unwrap()).collect();
        let list = PodList { log: "id".to_owned(), highest: 7, pods };
        let bytes = list.bytes(1);
        assert_eq!(PodList::parse(&bytes), Some(list));
        for cut in 0..bytes.len() - 1 {
            assert_eq!(PodList::parse(&bytes[..cut]), None, "cut at {cut}");
            let mut flipped = bytes.clone();
            flipped[cut + 1] ^= 4;
            assert_eq!(PodList::parse(&flipped), None, "flip at {}", cut + 1);
        }
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
