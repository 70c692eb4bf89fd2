//! Holds that are missing or damaged while containers run: somebody emptied the run directory, a bit flipped, or the network
//! is asked about for the first time. The runtime's cache knows who runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::outside::is_namespace;
use super::{Part, Transaction, identity};
use crate::book::Book;
use crate::error::Error;
use crate::holds::{Change, Hold, Netns};
use crate::names::{Network, PinId};
use crate::runtime;

/// Where to learn who runs.
#[derive(Debug, Clone)]
pub(super) struct Runtime {
    /// The runtime's CNI cache.
    pub(super) cache: PathBuf,
    /// The network that is asked about, and who gives out its addresses: it may have no pins yet.
    pub(super) network: Option<(Network, Part)>,
}

impl Transaction<'_> {
    /// Where this boot has no holds yet, or lost some, brings those back whose containers live: on the networks that have pins,
    /// and on any other once it is asked about. After a real boot that is nobody.
    ///
    /// # Errors
    /// When the log cannot be read for now.
    pub(super) fn recover(&mut self) -> Result<(), Error> {
        let missing = self.holds.stale || self.holds.damaged > 0;
        let Some(known) = &self.store.runtime else { return Ok(()) };
        let asked = known.network.as_ref().filter(|(network, _)| !self.holds.last.contains_key(network));
        if !missing && asked.is_none() {
            return Ok(());
        }
        let bytes = self.log.bytes(&mut self.notes)?;
        let book = Book::replay(&bytes);
        let of_this_boot =
            |epoch: &str| epoch.split_once('.').is_some_and(|(boot, _)| boot == self.store.boot);
        let lost = self.holds.stale && book.epoch.is_some_and(|(epoch, _)| of_this_boot(epoch));

        let mut networks = BTreeMap::new();
        let pins = book.pins.iter().filter_map(|(key, entry)| Some((PinId::from_words(key)?, entry)));
        for (id, entry) in pins.filter(|_| missing) {
            *networks.entry(id.network).or_insert(true) &= entry.seen;
        }
        if let Some((network, part)) = &known.network {
            networks.entry(network.clone()).or_insert(*part == Part::Seen);
        }
        if missing {
            // What was lost of the others comes back when they are asked about.
            self.holds.last.retain(|network, _| networks.contains_key(network));
        }
        let mut back = 0;
        for (network, seen) in networks {
            for cached in runtime::all(&known.cache, &network) {
                let Some(path) = cached.netns.filter(|path| is_namespace(path)) else { continue };
                if cached.addresses.is_empty() || self.holds.all.contains_key(&cached.attachment) {
                    continue;
                }
                back += 1;
                self.recovered = true;
                self.holds.change(&Change::Hold(Hold {
                    attachment: cached.attachment,
                    pod: cached.pod,
                    uid: cached.uid,
                    netns: Some(Netns { identity: identity(&path), path }),
                    addresses: cached.addresses,
                    since: self.now,
                    seen,
                }));
            }
        }
        let (holds, cache) = (self.held.path.display(), known.cache.display());
        if lost && back == 0 {
            self.notes.push(format!("{holds} is missing; no container lives according to {cache}"));
        } else if lost {
            self.notes.push(format!(
                "{holds} is missing while containers run: {back} that live according to {cache} hold their addresses again"
            ));
        } else if back > 0 {
            self.notes.push(format!(
                "{back} containers that ran before, according to {cache}, hold their addresses"
            ));
        }
        Ok(())
    }
}
