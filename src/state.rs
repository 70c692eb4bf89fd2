//! The state directory: making it, and which files in it are Corax's.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use corax_core::problem::Problem;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use crate::clock;
use crate::config::STATE_DIR;
use crate::source::snapshot;
use crate::wireguard::{key, process};

/// A state directory that must not be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the state directory {0} is in a container's own layer and would be gone with the container: \
     mount it from the host (hostPath {0}, type DirectoryOrCreate)"
)]
pub(crate) struct InContainerLayer(PathBuf);

/// Makes the directory, 0700, where it is not there. What is wrong with it costs no start, only what it would hold.
///
/// # Errors
/// Where it is in a container's own layer.
pub(crate) fn prepare(directory: &Path) -> Result<Vec<Problem>, InContainerLayer> {
    let object = || format!("state directory {}", directory.display());
    let mut problems = Vec::new();
    if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        let what = format!("cannot be made: {error}; nothing outlives this process");
        problems.push(Problem::new(object(), what, "make it writable, or name another with --state-dir"));
        return Ok(problems);
    }
    if statfs(directory).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC) {
        return Err(InContainerLayer(directory.to_owned()));
    }
    let mode = fs::metadata(directory).map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
    if mode & 0o077 != 0
        && let Some(what) = close(directory, mode)
    {
        problems.push(Problem::new(object(), what, format!("chmod 0700 {}", directory.display())));
    }
    Ok(problems)
}

/// Closes a directory that others can enter, if it is Corax's by its name (kubelet makes it open); what is wrong with it
/// else. Any other was there before, and may be anybody's: closed, `/var/lib` would stop the node.
fn close(directory: &Path, mode: u32) -> Option<String> {
    if is_ours_by_name(directory) {
        let closed = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
        return closed.err().map(|error| format!("is open to others, and cannot be closed: {error}"));
    }
    let sticky = mode & 0o1000 != 0;
    let what = if mode & 0o022 != 0 && !sticky { "can put another key there" } else { "can look into it" };
    Some(format!("has mode {mode:04o}, so that others {what}; it was there before, and is left as it is"))
}

/// Whether a directory is Corax's, whoever made it. What a link leads to is not.
pub(crate) fn is_ours_by_name(directory: &Path) -> bool {
    directory == Path::new(STATE_DIR) && !directory.is_symlink()
}

/// Corax's own files in its state directory, by their exact names; none where there is no directory. What is no plain file
/// is somebody else's, whatever it is called.
///
/// # Errors
/// Where the directory cannot be read.
pub(crate) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_ours) && entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Whether Corax makes a file of this name in its state directory.
fn is_ours(name: &str) -> bool {
    key::makes(name)
        || clock::makes(name)
        || snapshot::makes(name)
        || process::makes(name)
        || corax_cni::makes(name)
}

#[cfg(test)]
mod tests;
