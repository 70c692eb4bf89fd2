//! One agent a network namespace: two would undo each other's changes for ever, and a cleanup's beside one.
//!
//! The claim is a lock (flock) on a file below the run directory, named after the namespace: only root can open it, and it
//! ends with its process, however that ends. A file that is left says nothing.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

/// Whose network is claimed.
const NAMESPACE: &str = "/proc/self/ns/net";

/// The longest name of a holder that is read, in bytes.
const LONGEST: u64 = 100;

/// Why there is no claim.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Somebody has it.
    #[error("{0} in this network namespace: stop it, or wait for its end, first")]
    Held(String),
    /// It cannot be known whether somebody has it.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// The namespace is ours as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    file: File,
    path: PathBuf,
}

impl Claim {
    /// Claims the namespace that this process is in, for `who`, which is what others are told.
    ///
    /// # Errors
    /// Where somebody has it, or where that cannot be known.
    pub(crate) fn take(run: &Path, who: &str) -> Result<Self, Error> {
        let inode = fs::metadata(NAMESPACE).map_err(at(Path::new(NAMESPACE)))?.ino();
        if !run.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(run).map_err(at(run))?;
        }
        let path = run.join(format!("agent-{inode}.lock"));
        loop {
            let file = open(&path).map_err(at(&path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(Error::Held(holder(file))),
                Err(TryLockError::Error(cause)) => return Err(at(&path)(cause)),
            }
            // Who had it may have removed the file meanwhile: nobody else would see this lock.
            if same(&file, &path) {
                let claim = Self { file, path };
                // Only said to people; a disk that is full keeps nobody out.
                let _ = claim.sign(who);
                return Ok(claim);
            }
        }
    }

    /// Whether this is still the lock that others see: somebody may have emptied the directory.
    pub(crate) fn stands(&self) -> bool {
        same(&self.file, &self.path)
    }

    fn sign(&self, who: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        (&self.file).write_all(format!("{who}, process {}, runs", std::process::id()).as_bytes())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Before the lock goes, so that it is nobody else's file.
        if same(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |cause| Error::Io { path, cause }
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

fn same(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(theirs)) = (file.metadata(), path.symlink_metadata()) else { return false };
    (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())
}

/// What the holder wrote; it may be about to.
fn holder(file: File) -> String {
    let mut text = String::new();
    match file.take(LONGEST).read_to_string(&mut text) {
        Ok(length) if length > 0 => text,
        _ => "another agent runs".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_namespace_is_claimed_once_and_a_file_that_is_left_says_nothing() {
        let above = tempfile::tempdir().unwrap();
        let run = above.path().join("run");
        let claim = Claim::take(&run, "an agent").unwrap();
        let path = claim.path.clone();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&run), mode(&path)), (0o700, 0o600));
        let error = Claim::take(&run, "a cleanup").unwrap_err().to_string();
        let who = format!("an agent, process {}, runs in this network namespace: stop", std::process::id());
        assert!(error.starts_with(&who), "{error}");
        drop(claim);
        assert!(!path.exists());
        // Of an agent that was killed.
        fs::write(&path, "an agent, process 1234567890, runs").unwrap();
        let claim = Claim::take(&run, "a cleanup").unwrap();
        let error = Claim::take(&run, "an agent").unwrap_err().to_string();
        assert!(error.starts_with("a cleanup, process") && !error.contains("1234567890"), "{error}");
        // Somebody emptied the directory; another's file is not removed.
        fs::remove_file(&path).unwrap();
        let second = Claim::take(&run, "an agent").unwrap();
        drop(claim);
        assert!(path.exists());
        drop(second);
    }

    #[test]
    fn where_it_cannot_be_known_it_says_so() {
        let above = tempfile::tempdir().unwrap();
        let run = above.path().join("file");
        fs::write(&run, "").unwrap();
        let error = Claim::take(&run, "an agent").unwrap_err();
        assert!(matches!(&error, Error::Io { .. }) && error.to_string().contains("/file"), "{error}");
    }
}
