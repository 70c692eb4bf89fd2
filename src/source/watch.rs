//! Waits for a change in a directory, which need not be there yet.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tracing::{debug, warn};

/// How often a directory that is not there, or cannot be watched, is looked for.
const ABSENT: Duration = Duration::from_secs(1);

/// A watched directory.
pub(super) struct Watch {
    directory: PathBuf,
    inotify: Option<Inotify>,
}

impl Watch {
    pub(super) fn new(directory: PathBuf) -> Self {
        let mut watch = Self { directory, inotify: None };
        watch.establish();
        watch
    }

    /// Waits until something changed, at most so long; gives the names of files that were written to their end.
    pub(super) fn wait(&mut self, most: Duration) -> BTreeSet<String> {
        let mut whole = BTreeSet::new();
        let Some(inotify) = &self.inotify else {
            std::thread::sleep(most.min(ABSENT));
            self.establish();
            return whole;
        };
        let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout).is_ok_and(|ready| ready > 0) {
            let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
            let gone =
                AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_IGNORED;
            let lost = match inotify.read_events() {
                Ok(events) => {
                    let written = events.iter().filter(|event| event.mask.intersects(written));
                    whole.extend(written.filter_map(|event| event.name.clone()?.into_string().ok()));
                    events.iter().any(|event| event.mask.intersects(gone))
                }
                Err(error) => {
                    warn!(%error, "watching the manifests failed; they are looked at each second");
                    true
                }
            };
            if lost {
                self.inotify = None;
                self.establish();
            }
        }
        whole
    }

    fn establish(&mut self) {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
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
