//! The world outside as files show it: network namespaces, host-local's directory.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use crate::choose::Outside;
use crate::holds::Hold;
use crate::hostlocal::{HostLocal, Reservation};
use crate::names::{Attachment, Network};
use crate::runtime;

/// Device and inode of what is at a path: of a network namespace, its identity.
pub fn identity(path: &str) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Whether the container of a hold may live: its namespace is where it was, or no path of it is known.
pub fn lives(hold: &Hold) -> bool {
    let Some(netns) = &hold.netns else { return true };
    match std::fs::metadata(&netns.path) {
        Ok(m) => netns.identity.is_none_or(|known| (m.dev(), m.ino()) == known),
        Err(error) => !is_gone(&error),
    }
}

/// Any other error is no evidence that it is dead.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether a path of which only the name is known leads to the network namespace of a pod. A file left over by one that is gone
/// is none, and neither is the node's own: the path names a process whose number another one has by now.
pub(crate) fn is_namespace(path: &str) -> bool {
    let node = identity("/proc/1/ns/net");
    match std::fs::metadata(path) {
        Ok(m) => node.is_none_or(|node| node.0 == m.dev() && node.1 != m.ino()),
        Err(error) => !is_gone(&error),
    }
}

pub(crate) struct Files<'h> {
    before: Option<&'h HostLocal>,
    network: &'h Network,
}

impl<'h> Files<'h> {
    pub(crate) const fn new(before: Option<&'h HostLocal>, network: &'h Network) -> Self {
        Self { before, network }
    }

    /// Whether the container of a reservation is known to be dead. What the runtime does not know may still be alive.
    pub(crate) fn is_dead(&self, r: &Reservation) -> bool {
        let attachment = || {
            let interface = r.interface.as_deref().unwrap_or("eth0").parse().ok()?;
            Some(Attachment {
                network: self.network.clone(),
                container: r.container.parse().ok()?,
                interface,
            })
        };
        let netns = || runtime::cached(&self.before?.cache, &attachment()?)?.netns;
        netns().is_some_and(|path| !is_namespace(&path))
    }
}

impl Outside for Files<'_> {
    fn alive(&self, hold: &Hold) -> bool {
        lives(hold)
    }

    fn foreign(&self, address: IpAddr) -> Option<String> {
        let reserved = self.before?.reserved(address).filter(|r| !self.is_dead(r));
        reserved.map(|r| r.container)
    }
}
