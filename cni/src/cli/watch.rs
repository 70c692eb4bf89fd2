//! Who watches the configurations would put back what an uninstall takes out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent};

use super::install::BESIDE;

/// File in the run directory, locked by the process that it names, for as long as that watches.
const FILE: &str = "watch";

/// Says that this process watches, until dropped.
///
/// # Errors
/// When another does, or the run directory cannot be used.
pub(super) fn begin(run: &Path) -> anyhow::Result<File> {
    let mut file = lock(run)?;
    file.set_len(0)?;
    write!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Asks for what happens in directories. One that is not there, or was taken away, is waited for above; to be asked again after
/// every event.
///
/// # Errors
/// When the kernel has no watch left.
pub(super) fn listen(events: &Inotify, directories: &[&Path]) -> anyhow::Result<()> {
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    for directory in directories {
        // What is made while we look elsewhere is found when we look again.
        let mut first = true;
        for at in directory.ancestors() {
            match events.add_watch(at, flags) {
                Ok(_) if first => break,
                Ok(_) => match events.add_watch(*directory, flags) {
                    Err(Errno::ENOENT | Errno::ENOTDIR) | Ok(_) => break,
                    Err(error) => return Err(error).with_context(|| directory.display().to_string()),
                },
                Err(Errno::ENOENT | Errno::ENOTDIR) => first = false,
                Err(error) => return Err(error).with_context(|| at.display().to_string()),
            }
        }
    }
    Ok(())
}

/// Waits until something happened, at most so long. What an installation itself does beside a file is nothing: one that cannot
/// write there would wake itself for ever.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn await_change(events: &Inotify, most: PollTimeout) -> nix::Result<()> {
    let is_own = |event: &InotifyEvent| {
        event.name.as_ref().is_some_and(|name| name.as_bytes().ends_with(BESIDE.as_bytes()))
    };
    loop {
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], most) {
            Ok(0) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
            Ok(_) if events.read_events()?.iter().all(is_own) => {}
            Ok(_) => return Ok(()),
        }
    }
}

/// Keeps others from watching, until dropped.
///
/// # Errors
/// When somebody watches, or the run directory cannot be used.
pub(super) fn keep_out(run: &Path) -> anyhow::Result<File> {
    lock(run)
}

fn lock(run: &Path) -> anyhow::Result<File> {
    let path = run.join(FILE);
    let name = || path.display().to_string();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run)
        .with_context(|| run.display().to_string())?;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(name)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let who = fs::read_to_string(&path).unwrap_or_default();
            bail!("`corax cni install --watch`, process {who}, watches the configurations: stop it first")
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(name),
    }
}
