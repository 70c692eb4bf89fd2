//! From a decision to disk: the log first, then the holds; and the log written anew.

use std::io;

use super::Transaction;
use crate::book::Book;
use crate::decide::{Entry, Plan};
use crate::error::Error;
use crate::heal;
use crate::holds::{Change, Holds, Synced};
use crate::pods::PodList;

/// More records than this, and twice what still counts, are worth writing the holds anew: every call reads them.
const HOLDS_SMALL: usize = 32;

impl Transaction<'_> {
    pub(super) fn apply(
        &mut self,
        book: &Book<'_>,
        pods: Option<&PodList>,
        plan: &Plan,
    ) -> Result<(), Error> {
        if !self.lock.is_ours() {
            return Err(self.lock.lost());
        }
        if self.gone {
            self.write_holds(&[])?;
        }
        let mut changes = plan.holds.clone();
        if !plan.durable.is_empty() {
            self.write_log(book, pods, plan, true).map_err(|source| self.not_durable(source))?;
            changes.push(self.synced());
        } else {
            if !plan.best_effort.is_empty()
                && let Err(error) = self.write_log(book, pods, plan, false)
            {
                self.notes.push(format!("not logged in {}: {error}", self.log.path.display()));
            }
            let of_log = |s: &Synced| s.inode == self.log.inode && s.length <= self.log.length;
            let on_disk = self.holds.synced.filter(of_log).map_or(0, |s| s.length);
            if plan.rests_on as u64 > on_disk && !self.log.is_read_only() {
                self.log.sync().map_err(|source| self.not_durable(source))?;
                changes.push(self.synced());
            }
        }
        self.write_holds(&changes)
    }

    fn synced(&self) -> Change {
        Change::Synced(Synced { inode: self.log.inode, length: self.log.length })
    }

    fn write_log(
        &mut self,
        book: &Book<'_>,
        pods: Option<&PodList>,
        plan: &Plan,
        durable: bool,
    ) -> io::Result<()> {
        let mut entries = heal::missing(book, &self.holds);
        let lost = entries.iter().filter(|entry| matches!(entry, Entry::Pin { .. })).count();
        entries.extend(plan.durable.iter().chain(&plan.best_effort).cloned());
        let new_id = || {
            use std::hash::{BuildHasher, Hasher};
            format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
        };
        let records = heal::records(book, &self.holds, pods, &entries, &new_id, self.now);
        self.log.append(&records, book.torn, durable)?;
        self.stamp_contents();
        if lost > 0 {
            let path = self.log.path.display();
            self.notes.push(format!("{lost} pins that {path} had lost are written again: their pods run"));
        }
        Ok(())
    }

    pub(super) fn write_holds(&mut self, changes: &[Change]) -> Result<(), Error> {
        let changes: Vec<_> = changes.iter().filter(|change| self.holds.news(change)).cloned().collect();
        for change in &changes {
            self.holds.change(change);
        }
        let crowded = self.holds.frames > HOLDS_SMALL.max(2 * self.holds.all.len());
        let unlike = self.holds.stale || self.holds.damaged > 0 || self.recovered || self.gone;
        if unlike || (crowded && !changes.is_empty()) {
            let bytes = self.holds.rewritten(&self.store.boot, self.now);
            self.held.rewrite(&bytes, false).map_err(|source| self.not_held(source))?;
            let read = Holds::replay(&bytes, &self.store.boot);
            (self.holds.frames, self.holds.damaged) = (read.frames, 0);
            (self.holds.stale, self.holds.torn, self.recovered, self.gone) = (false, None, false, false);
            return Ok(());
        }
        if changes.is_empty() {
            return Ok(());
        }
        let mut records = Vec::new();
        changes.iter().for_each(|change| change.push(&mut records, self.now));
        self.holds.frames += changes.len();
        let torn = self.holds.torn.take();
        self.held.append(&records, torn, false).map_err(|source| self.not_held(source))
    }

    /// Writes the log anew, where that is worth its while. Not being able to is no error: the log as it is says the same.
    pub(super) fn compact(&mut self, pods: Option<&PodList>) {
        let Ok(bytes) = self.log.bytes(&mut self.notes) else { return };
        let book = Book::replay(&bytes);
        if !heal::worth(&book, &self.holds, pods) {
            return;
        }
        let anew = heal::compacted(&book, &self.holds, pods, self.now);
        if book.damaged > 0 {
            let kept = self.log.path.with_file_name(super::kept(super::PINS));
            let _ = std::fs::remove_file(&kept);
            let _ = std::fs::hard_link(&self.log.path, &kept);
            let (n, path) = (book.damaged, self.log.path.display());
            let kept = kept.display();
            self.notes.push(format!("{n} records of {path} were damaged and are lost; it is kept as {kept}"));
        }
        drop(book);
        drop(bytes);
        if self.log.rewrite(&anew, true).is_ok() {
            let synced = self.synced();
            let _ = self.write_holds(&[synced]);
        }
    }
}
