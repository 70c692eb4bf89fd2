//! An exclusive `flock` with a deadline.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::error::Error;

/// A held lock; it goes with this value, or with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits at most `deadline` for the lock at `path`, which is made if it is missing.
    pub(crate) fn take(path: &Path, deadline: Duration) -> Result<Self, Error> {
        loop {
            let file = wait(path, open(path).map_err(Error::io(path))?, deadline)?;
            // Whoever removed the file while we waited left us with a lock that nobody else sees.
            if same(&file, path) {
                return Ok(Self { file, path: path.to_owned() });
            }
        }
    }

    /// Whether this is still the lock that others see: somebody may have emptied the directory.
    pub(crate) fn is_ours(&self) -> bool {
        same(&self.file, &self.path)
    }

    /// The error of one that is not.
    pub(crate) fn lost(&self) -> Error {
        Error::LostLock { path: self.path.clone() }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn same(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(theirs)) = (file.metadata(), path.metadata()) else { return false };
    (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())
}

/// There is no `flock` with a timeout, and polling would be slow and unfair: a thread waits, we wait for the thread. When it
/// is late, the thread drops the lock as soon as it gets it.
fn wait(path: &Path, file: File, deadline: Duration) -> Result<File, Error> {
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::Error(cause)) => return Err(Error::Io { path: path.to_owned(), cause }),
        Err(TryLockError::WouldBlock) => {}
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    let waiter = move || {
        let outcome = file.lock().map(|()| file);
        let _ = sender.send(outcome);
    };
    std::thread::Builder::new().name("lock".into()).spawn(waiter).map_err(Error::io(path))?;
    match receiver.recv_timeout(deadline) {
        Ok(outcome) => outcome.map_err(Error::io(path)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            Err(Error::Locked { path: path.to_owned(), after: deadline })
        }
    }
}
