//! Waits for a change in a directory, which need not be there yet.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use corax_core::problem::Problem;
use nix::errno::Errno;
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
    /// Why nothing is heard of a directory that is there.
    pub deaf: Option<Problem>,
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
    deaf: Option<Problem>,
}

impl Watch {
    pub(super) fn new(directory: PathBuf) -> Self {
        let mut watch = Self { directory, writing: BTreeMap::new(), inotify: None, deaf: None };
        watch.establish();
        watch
    }

    /// Waits until something changed, at most so long.
    pub(super) fn wait(&mut self, most: Duration) -> Heard {
        let mut whole = BTreeSet::new();
        let Some(inotify) = &self.inotify else {
            std::thread::sleep(most.min(ABSENT));
            self.establish();
            return Heard { deaf: self.deaf.clone(), ..Heard::default() };
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
                    warn!(%error, directory = %self.directory.display(), "the directory could not be watched further: watched anew, or looked at each second");
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
        Heard { whole, writing: self.writing.keys().cloned().collect(), deaf: self.deaf.clone() }
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
            Ok(inotify) => (self.inotify, self.deaf) = (Some(inotify), None),
            Err(error) => {
                debug!(%error, directory = %self.directory.display(), "the directory is not watched yet");
                self.deaf = refusal(error).map(|what| self.problem(what, error));
            }
        }
    }

    fn problem(&self, lacking: &str, error: Errno) -> Problem {
        let what = format!("is looked at each second, for no inotify {lacking} are left: {error}");
        let object = format!("directory {}", self.directory.display());
        Problem::new(object, what, format!("sysctl -w fs.inotify.max_user_{lacking}=8192"))
    }
}

/// What the system has too few of; none where something else is the matter, which reading the directory will tell.
const fn refusal(error: Errno) -> Option<&'static str> {
    match error {
        Errno::EMFILE => Some("instances"),
        Errno::ENOSPC => Some("watches"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use corax_core::view::Settings;

    use super::*;
    use crate::source::{Source, snapshot::Snapshot};

    /// Set where this test runs without any inotify instance.
    const DEAF: &str = "CORAX_TEST_DEAF";

    /// The limit is lowered in a user namespace of its own, so that nobody else is deaf.
    const SCRIPT: &str =
        r#"echo 0 >/proc/sys/user/max_inotify_instances && exec "$0" --exact --nocapture "$1""#;

    #[test]
    fn without_an_inotify_instance_changes_are_seen_later_and_what_to_set_is_told() {
        if std::env::var_os(DEAF).is_none() {
            let this = std::env::current_exe().unwrap();
            let name = std::thread::current().name().unwrap().to_owned();
            let mut inside = Command::new("unshare");
            inside
                .args(["--user", "--map-root-user", "bash", "-c", SCRIPT])
                .arg(this)
                .arg(name)
                .env(DEAF, "1");
            let output = inside.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let mut watch = Watch::new(path.clone());
        let mut source = Source::open(
            path.clone(),
            Snapshot::read_only(&path),
            Settings::default(),
            "n1".parse().unwrap(),
        );
        source.refresh(&watch.wait(Duration::ZERO));
        let told = format!("{:?}", source.current().problems);
        assert!(told.contains("sysctl -w fs.inotify.max_user_instances="), "{told}");
        let gateway =
            "{ apiVersion: raven.openyurt.io/v1beta1, kind: Gateway, metadata: { name: box }, status: {} }";
        std::fs::write(path.join("box.yaml"), gateway).unwrap();
        while source.current().view.is_none() {
            source.refresh(&watch.wait(Duration::from_millis(100)));
        }
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_no_lack_of_inotify() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(directory.path().join("later"));
        assert_eq!(watch.wait(Duration::ZERO).deaf, None);
        std::fs::create_dir(directory.path().join("later")).unwrap();
        watch.wait(Duration::ZERO);
        assert!(watch.inotify.is_some());
    }
}
