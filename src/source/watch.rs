//! Waits for a change in a directory, which need not be there yet.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tracing::{debug, warn};

/// What was heard of files, by name.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// They were written to their end.
    pub whole: BTreeSet<String>,
    /// They are being written.
    pub writing: BTreeSet<String>,
}

/// How often a directory that is not there, or cannot be watched, is looked for.
const ABSENT: Duration = Duration::from_secs(1);

/// How long a file that is being written is waited for after the last write.
const STALLED: Duration = Duration::from_secs(30);

/// A watched directory.
pub(super) struct Watch {
    directory: PathBuf,
    /// Files that were written to and not closed since, and when.
    writing: BTreeMap<String, Instant>,
    inotify: Option<Inotify>,
}

impl Watch {
    pub(super) fn new(directory: PathBuf) -> Self {
        let mut watch = Self { directory, writing: BTreeMap::new(), inotify: None };
        watch.establish();
        watch
    }

    /// Waits until something changed, at most so long.
    pub(super) fn wait(&mut self, most: Duration) -> Heard {
        let mut whole = BTreeSet::new();
        let Some(inotify) = &self.inotify else {
            std::thread::sleep(most.min(ABSENT));
            self.establish();
            return Heard::default();
        };
        let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout).is_ok_and(|ready| ready > 0) {
            let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
            let gone =
                AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_IGNORED;
            let lost = match inotify.read_events() {
                Ok(events) => {
                    for event in &events {
                        let Some(name) = event.name.clone().and_then(|name| name.into_string().ok()) else {
                            continue;
                        };
                        if event.mask.intersects(written) {
                            self.writing.remove(&name);
                            whole.insert(name);
                        } else if event.mask.contains(AddWatchFlags::IN_MODIFY) {
                            whole.remove(&name);
                            self.writing.insert(name, Instant::now());
                        } else if event.mask.contains(AddWatchFlags::IN_DELETE) {
                            self.writing.remove(&name);
                        }
                    }
                    events.iter().any(|event| event.mask.intersects(gone))
                }
                Err(error) => {
                    warn!(%error, "watching the manifests failed; they are looked at each second");
                    true
                }
            };
            if lost {
                self.inotify = None;
                self.writing.clear();
                self.establish();
            }
        }
        self.writing.retain(|_, since| since.elapsed() < STALLED);
        Heard { whole, writing: self.writing.keys().cloned().collect() }
    }

    fn establish(&mut self) {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        let watched = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .and_then(|inotify| inotify.add_watch(&self.directory, flags).map(|_| inotify));
        match watched {
            Ok(inotify) => self.inotify = Some(inotify),
            Err(error) => debug!(%error, directory = %self.directory.display(), "not watched yet"),
        }
    }
}
