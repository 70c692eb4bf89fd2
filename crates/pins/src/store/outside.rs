//! The world outside as files show it: network namespaces, host-local's directory.

use std::cell::OnceCell;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use crate::book::Map;
use crate::choose::Outside;
use crate::holds::Hold;
use crate::hostlocal::HostLocal;
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
        // Any other error is no evidence that it is dead.
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

/// Whether a path of which only the name is known leads to the network namespace of a pod. A file left over by one that is gone
/// is none, and neither is the node's own: the path names a process whose number another one has by now.
pub(crate) fn is_namespace(path: &str) -> bool {
    let node = identity("/proc/1/ns/net");
    match std::fs::metadata(path) {
        Ok(m) => node.is_none_or(|node| node.0 == m.dev() && node.1 != m.ino()),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

pub(crate) struct Files<'h> {
    before: Option<&'h HostLocal>,
    network: &'h Network,
    reserved: OnceCell<Map<IpAddr, String>>,
}

impl<'h> Files<'h> {
    pub(crate) fn new(before: Option<&'h HostLocal>, network: &'h Network) -> Self {
        Self { before, network, reserved: OnceCell::new() }
    }

    fn read(&self) -> Map<IpAddr, String> {
        let Some(before) = self.before else { return Map::default() };
        let live = |container: &str, interface: Option<&str>| {
            let attachment = (|| {
                let interface = interface.unwrap_or("eth0").parse().ok()?;
                let (network, container) = (self.network.clone(), container.parse().ok()?);
                Some(Attachment { network, container, interface })
            })();
            let cached = attachment.and_then(|a| runtime::cached(&before.cache, &a));
            // What the runtime does not know may still be alive.
            cached.and_then(|cached| cached.netns).is_none_or(|path| is_namespace(&path))
        };
        let all = before.reservations().into_iter();
        all.filter(|r| live(&r.container, r.interface.as_deref())).map(|r| (r.address, r.container)).collect()
    }
}

impl Outside for Files<'_> {
    fn alive(&self, hold: &Hold) -> bool {
        lives(hold)
    }

    fn foreign(&self, address: IpAddr) -> Option<String> {
        self.reserved.get_or_init(|| self.read()).get(&address).cloned()
    }
}
