//! A DEL that cannot get the lock still succeeds: it leaves a note, and whoever has the lock next carries it out.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{Part, Store, Transaction};
use crate::names::Attachment;
use crate::{contents, journal};

const FREED: &str = "freed";

impl Store {
    /// Leaves a note that a container holds nothing any more. Takes no lock.
    ///
    /// # Errors
    /// What the file system says.
    pub fn del_later(&self, own: &Attachment, part: Part, now: u64) -> io::Result<()> {
        let directory = self.run.join(FREED);
        journal::make_directory(&directory)?;
        let part = if part == Part::Seen { "seen" } else { "given" };
        let Attachment { network, container, interface } = own;
        let text = format!("{now} {part} {network} {container} {interface}");
        let mut bytes = Vec::new();
        crate::frame::push(&mut bytes, &text);
        let name = format!("{:016x}.{:x}", contents::hash(&text), std::process::id());
        journal::replace(&directory.join(name), &bytes, false)
    }
}

impl Transaction<'_> {
    /// Carries out what was left.
    pub(super) fn absorb(&mut self) {
        let Ok(entries) = fs::read_dir(self.store.run.join(FREED)) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.file_name().is_some_and(|n| !n.to_string_lossy().starts_with('.')));
        for path in paths {
            let Ok(bytes) = fs::read(&path) else { continue };
            if let Some((own, part)) = parse(&bytes)
                && self.del(&own, part, None).is_err()
            {
                continue;
            }
            let _ = fs::remove_file(&path);
        }
    }
}

fn parse(bytes: &[u8]) -> Option<(Attachment, Part)> {
    let crate::frame::Frame::Record { text, .. } = crate::frame::frames(bytes).next()? else { return None };
    let words: Vec<_> = text.split(' ').collect();
    let [_, part, network, container, interface] = words[..] else { return None };
    let own = Attachment {
        network: network.parse().ok()?,
        container: container.parse().ok()?,
        interface: interface.parse().ok()?,
    };
    Some((own, if part == "seen" { Part::Seen } else { Part::Given }))
}
