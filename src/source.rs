//! Where Gateways come from: a directory of manifests, and the snapshot of the last good ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corax_core::api::Gateway;
use corax_core::name::NodeName;
use corax_core::problem::Problem;
use corax_core::view::{Settings, View};
use tracing::info;

mod document;
pub(crate) mod manifests;
pub(crate) mod snapshot;
mod watch;

use crate::agent::epoch;
use crate::clock::Clock;
use crate::problem;
use manifests::Manifests;
use snapshot::{Loaded, Snapshot};
use watch::Heard;

/// How often the directory is read although nothing was heard of it.
const RESCAN: Duration = Duration::from_secs(30);

/// How long files that are written all the time are waited for, at most.
const SETTLING: Duration = Duration::from_secs(3);

/// Gateways by the file that they came from.
pub(crate) type Files = BTreeMap<String, Vec<Gateway>>;

/// How much of what the source says is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Every file of the directory has been good, so that a node that no Gateway names is in none.
    All,
    /// It was so when the snapshot was written, which does not tell what came since.
    Once,
    /// A file has never been good, or there is none.
    Part,
}

/// A view with what is to be told of where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sourced {
    /// Counts up with each change.
    pub revision: u64,
    /// The view; none while nothing at all is known, which deletes nothing.
    pub view: Option<Arc<View>>,
    /// What was wrong with the source itself.
    pub problems: Vec<Problem>,
    /// How much of the source it is.
    pub known: Known,
    /// The name by which this node is still a member, where its own name is in no Gateway.
    pub once: Option<NodeName>,
}

/// Reads the manifests of a directory and says when they change.
pub(crate) struct Source {
    manifests: Manifests,
    snapshot: Snapshot,
    settings: Settings,
    node: NodeName,
    /// The name by which this node was last a member.
    ran_as: Option<NodeName>,
    current: Sourced,
    /// What was lost of the snapshot.
    lost: Option<Problem>,
    /// Why the clock is not kept.
    unkept: Option<Problem>,
    /// The snapshot on disk is not what is known.
    unsaved: bool,
    /// The snapshot on disk says that it is all.
    whole: bool,
}

impl Source {
    /// A source that begins with what the snapshot knows.
    pub(crate) fn open(directory: PathBuf, snapshot: Snapshot, settings: Settings, node: NodeName) -> Self {
        let Loaded { files, complete, node: ran_as, view, problem } = snapshot
            .load()
            .unwrap_or_else(|error| Loaded { problem: Some(lost_problem(&error)), ..Loaded::default() });
        problem.iter().for_each(problem::warn);
        let view = build(&files, &settings, view.as_ref());
        let known = if complete { Known::Once } else { Known::Part };
        let manifests = Manifests::new(directory, files, known);
        let problems = problem.iter().cloned().collect();
        let once = once(view.as_deref(), &node, ran_as.as_ref());
        let current = Sourced { revision: 0, view, problems, known, once };
        Self {
            manifests,
            snapshot,
            settings,
            node,
            ran_as,
            current,
            unsaved: problem.is_some(),
            whole: complete,
            lost: problem,
            unkept: None,
        }
    }

    /// Reads what changed in the directory, given what was heard of it; true where view or
    /// problems did.
    pub(crate) fn refresh(&mut self, heard: &Heard) -> bool {
        let scan = self.manifests.scan(heard);
        let mut problems = scan.problems;
        let previous = self.current.view.as_deref();
        let view = if scan.changed || self.current.revision == 0 {
            build(self.manifests.files(), &self.settings, previous)
        } else {
            self.current.view.clone()
        };
        if view.as_ref().is_some_and(|view| view.member(&self.node).is_some())
            && self.ran_as.as_ref() != Some(&self.node)
        {
            self.ran_as = Some(self.node.clone());
            self.unsaved = true;
        }
        let whole = scan.known != Known::Part;
        // A file that is being written is not known for a moment.
        let settled = !self.manifests.unsettled();
        if scan.changed || self.unsaved || (whole != self.whole && settled) {
            let files = self.manifests.files();
            let saved = self.snapshot.save(files, whole, self.ran_as.as_ref(), view.as_deref());
            self.unsaved = saved.is_err();
            self.whole = whole;
            problems.extend(saved.err().as_ref().map(snapshot_problem));
        }
        problems.extend(self.lost.iter().chain(&heard.deaf).chain(&self.unkept).cloned());
        warn_of_new(&problems, &self.current.problems);
        let Sourced { revision, .. } = self.current;
        let once = once(view.as_deref(), &self.node, self.ran_as.as_ref());
        let next = Sourced { revision, view, problems, known: scan.known, once };
        let changed = revision == 0 || next != self.current;
        if changed {
            let domains = next.view.as_ref().map_or(0, |view| view.domains.len());
            self.current = Sourced { revision: revision + 1, ..next };
            info!(revision = self.current.revision, domains, "the view was read");
        }
        changed
    }

    /// Reads the directory once, and again where a file is being written.
    pub(crate) fn read(&mut self) {
        let end = Instant::now() + SETTLING;
        self.refresh(&Heard::default());
        while self.manifests.unsettled() && Instant::now() < end {
            std::thread::sleep(manifests::SETTLED);
            self.refresh(&Heard::default());
        }
    }

    /// What is known now.
    pub(crate) const fn current(&self) -> &Sourced {
        &self.current
    }

    /// Reads and hands on every change, for ever, and keeps the clock on disk. Meant for a thread of its own.
    pub(crate) fn follow(mut self, mut clock: Clock, mut each: impl FnMut(&Sourced)) {
        let mut watch = watch::Watch::new(self.manifests.directory().to_owned());
        // A view of half the files would delete what the other half asks for; what the snapshot knows was whole once.
        self.unkept = clock.keep(epoch()).cloned();
        if self.current.view.is_none() {
            self.read();
        } else {
            self.refresh(&Heard::default());
        }
        each(&self.current);
        loop {
            self.unkept = clock.keep(epoch()).cloned();
            let heard = watch.wait(if self.manifests.unsettled() { manifests::SETTLED } else { RESCAN });
            if self.refresh(&heard) {
                each(&self.current);
            }
        }
    }
}

/// The name by which a node is still a member, where its own name is in no Gateway.
fn once(view: Option<&View>, node: &NodeName, ran_as: Option<&NodeName>) -> Option<NodeName> {
    let is_member = |name: &NodeName| view.is_some_and(|view| view.member(name).is_some());
    ran_as.filter(|name| is_member(name) && !is_member(node)).cloned()
}

/// The view of all files; none where there is no Gateway at all, which may as well be a directory not yet filled.
fn build(files: &Files, settings: &Settings, previous: Option<&View>) -> Option<Arc<View>> {
    if files.values().all(Vec::is_empty) && previous.is_none() {
        return None;
    }
    let files = files.iter().map(|(file, gateways)| (file.as_str(), gateways.as_slice()));
    let view = View::of_files(files, settings, previous);
    warn_of_new(&view.problems, previous.map(|view| view.problems.as_slice()).unwrap_or_default());
    Some(Arc::new(view))
}

fn warn_of_new(problems: &[Problem], before: &[Problem]) {
    let before: BTreeSet<&Problem> = before.iter().collect();
    problems.iter().filter(|problem| !before.contains(problem)).for_each(problem::warn);
}

fn lost_problem(error: &snapshot::Error) -> Problem {
    let remedy = "none needed where the manifests are there: it is written anew";
    Problem::new("the snapshot", format!("{error}; what it held is lost"), remedy)
}

fn snapshot_problem(error: &snapshot::Error) -> Problem {
    let remedy = "make the state directory writable; until then a restart without manifests finds nothing";
    Problem::new("the snapshot", error.to_string(), remedy)
}

#[cfg(test)]
mod tests;
