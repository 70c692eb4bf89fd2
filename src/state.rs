//! The state directory.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use corax_core::problem::Problem;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

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
    let mode = fs::metadata(directory).map(|metadata| metadata.permissions().mode() & 0o777);
    if mode.is_ok_and(|mode| mode & 0o077 != 0)
        && let Err(error) = fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
    {
        let what = format!("is open to others, and cannot be closed: {error}");
        problems.push(Problem::new(object(), what, "chmod 0700"));
    }
    Ok(problems)
}
