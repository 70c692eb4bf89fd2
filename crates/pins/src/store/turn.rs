//! From what is on disk to a decision: by an excerpt of a large log where that is enough, else by the whole.

use super::Transaction;
use super::outside::Files;
use crate::book::Book;
use crate::choose::World;
use crate::contents::{self, Contents, Draft};
use crate::decide::{Entry, Plan};
use crate::error::Error;
use crate::excerpt::Excerpt;
use crate::heal;
use crate::holds::{Change, Hold};
use crate::hostlocal::HostLocal;
use crate::names::{Network, PinId};
use crate::pods::PodList;

/// How many of the pins released longest ago are looked at before the whole log is.
const OLDEST: usize = 64;

impl Transaction<'_> {
    /// Decides and makes what was decided true: by an excerpt of the log about `key` and the live holds, where that is
    /// enough, else by the whole.
    pub(super) fn run_by_excerpt<T>(
        &mut self,
        network: &Network,
        key: Option<String>,
        before: Option<&HostLocal>,
        verb: impl Fn(&World<'_>) -> Result<(T, Plan), Error>,
    ) -> Result<T, Error> {
        if self.log.length <= self.store.contents_from {
            return self.run(network, before, verb);
        }
        self.open_contents();
        let mut keys = self.holds.keys();
        keys.extend(key);
        let pods = self.pods();
        let outside = Files::new(before, network);
        for oldest in [0, OLDEST] {
            let found = self.contents.as_ref().zip(self.log.file()).and_then(|(contents, file)| {
                Excerpt::read(file, self.log.length, contents, network, keys.clone(), oldest)
            });
            let Some(excerpt) = found else { break };
            let book = excerpt.book();
            match verb(&World::new(network, &book, &self.holds, pods.as_ref(), &outside)) {
                Ok((answer, plan)) => {
                    self.carry_out(&book, pods.as_ref(), before, &plan)?;
                    return Ok(answer);
                }
                // No address that was never used: the pins released longest ago may have one.
                Err(Error::Exhausted { .. }) => {}
                Err(_) => break,
            }
        }
        // An excerpt that says no may say so only because it is one.
        self.run(network, before, verb)
    }

    /// The last known pod list. One that cannot be read, or is damaged, is said.
    fn pods(&mut self) -> Option<PodList> {
        let read = PodList::read(&self.store.state);
        let wrong = match &read {
            Ok(list) if list.as_ref().is_none_or(PodList::is_whole) => None,
            Ok(_) => Some("damaged; what can be read of it counts".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(wrong) = wrong {
            let path = self.store.state.join(PodList::FILE);
            let note = format!(
                "{}: {wrong}; which pods this node has is not known until it is written anew",
                path.display()
            );
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
        read.ok().flatten()
    }

    /// Replays the whole log, decides, and makes what was decided true.
    pub(super) fn run<T>(
        &mut self,
        network: &Network,
        before: Option<&HostLocal>,
        verb: impl FnOnce(&World<'_>) -> Result<(T, Plan), Error>,
    ) -> Result<T, Error> {
        let bytes = self.log.bytes(&mut self.notes)?;
        let book = Book::replay(&bytes);
        let pods = self.pods();
        let outside = Files::new(before, network);
        let (answer, plan) = verb(&World::new(network, &book, &self.holds, pods.as_ref(), &outside))?;
        let draft = (book.length as u64 > self.store.contents_from)
            .then(|| Draft::of(&book, &self.holds.epoch))
            .flatten();
        self.carry_out(&book, pods.as_ref(), before, &plan)?;
        let crowded = heal::worth(&book, &self.holds, pods.as_ref());
        drop(book);
        drop(bytes);
        if crowded && plan.writes_log() {
            self.compact(pods.as_ref());
        } else if let Some((draft, log)) = draft.zip(self.log.stamp()) {
            // Without it the next call reads the whole log again.
            let _ = draft.write(&self.store.run.join(contents::FILE), log);
            self.contents = None;
        }
        Ok(answer)
    }

    pub(super) fn open_contents(&mut self) {
        let log = self.log.stamp().filter(|_| self.log.length > self.store.contents_from);
        self.contents = log.and_then(|log| Contents::open(&self.store.run.join(contents::FILE), log));
    }

    /// Says that the table of contents, if it was true of the log before we changed that, is so still.
    pub(super) fn stamp_contents(&self) {
        if let Some((contents, log)) = self.contents.as_ref().zip(self.log.stamp()) {
            let _ = contents.stamp(log);
        }
    }

    fn carry_out(
        &mut self,
        book: &Book<'_>,
        pods: Option<&PodList>,
        before: Option<&HostLocal>,
        plan: &Plan,
    ) -> Result<(), Error> {
        if let Some(before) = before {
            for change in &plan.holds {
                match change {
                    Change::Free(dead) => {
                        before.remove(dead, self.holds.all.get(dead).map(|hold| &*hold.addresses));
                    }
                    Change::Hold(Hold { attachment, addresses, .. }) => {
                        if let Some(old) =
                            self.holds.all.get(attachment).filter(|old| old.addresses != *addresses)
                        {
                            before.remove(attachment, Some(&old.addresses));
                        }
                        let files = Files::new(Some(before), &attachment.network);
                        before.reserve(attachment, addresses, |r| files.is_dead(r))?;
                    }
                    _ => {}
                }
            }
        }
        self.tell_ended(plan);
        self.apply(book, pods, plan)
    }

    /// Says whose pins end for somebody else's.
    fn tell_ended(&mut self, plan: &Plan) {
        let pod = |key: &str| PinId::from_words(key).map(|id| id.pod);
        let made = |entry: &Entry| if let Entry::Pin { key, .. } = entry { pod(key) } else { None };
        let Some(by) = plan.durable.iter().find_map(made) else { return };
        for entry in &plan.durable {
            if let Entry::End(key) = entry
                && let Some(id) = PinId::from_words(key)
            {
                let (whose, network) = (id.pod, id.network);
                self.notes.push(format!(
                    "pod {whose} is pinned no more on network {network}: pod {by} has its address"
                ));
            }
        }
    }
}
