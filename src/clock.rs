//! A floor for the wall clock. WireGuard refuses a handshake whose time is not later than the last one's, so a box whose
//! clock is lost with its power, and begins in 1970, is locked out by every peer that stayed up.
//!
//! What the clock says is kept on disk every few minutes; at start a clock that is behind that is stepped up, before any
//! tunnel asks it. Nothing else is ever set, and never back.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use corax_core::problem::Problem;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

/// The file's name in the state directory.
const FILE: &str = "clock";

/// What it is called while it is written.
const BESIDE: &str = "clock.new";

/// Whether a file of this name in the state directory is the clock's.
pub(crate) fn makes(name: &str) -> bool {
    [FILE, BESIDE].contains(&name)
}

/// Seconds between two writings: a hundred thousand small ones a year.
const PACE: u64 = 300;

/// Seconds that a clock may be behind and be left alone: somebody corrected it.
const CORRECTION: u64 = 60;

/// A time past which nobody lives to read this: a file that says so is wrong (2200-01-01).
const END: u64 = 7_258_118_400;

/// The floor, and whether the clock stands on it. Times are seconds since the epoch.
#[derive(Debug)]
pub(crate) struct Clock {
    file: PathBuf,
    kept: Option<u64>,
    /// The clock could not be stepped up: until somebody else has set it, what it says is not kept.
    behind: bool,
    /// The last writing failed; the log knows.
    failing: bool,
}

impl Clock {
    /// Reads the floor of a state directory, and steps the clock up to it. `set` sets the clock.
    pub(crate) fn step_up(
        directory: &Path,
        now: u64,
        set: impl FnOnce(u64) -> io::Result<()>,
    ) -> (Self, Option<Problem>) {
        let file = directory.join(FILE);
        let (kept, torn) = match read(&file) {
            Ok(kept) => (kept, None),
            Err(what) => (None, Some(what)),
        };
        let mut clock = Self { file, kept, behind: false, failing: false };
        if let Some(what) = torn {
            let remedy = "none needed where the clock is right: it is written anew";
            let problem = Problem::new(clock.object(), what, remedy);
            return (clock, Some(problem));
        }
        let Some(kept) = kept.filter(|kept| now.saturating_add(CORRECTION) < *kept) else {
            return (clock, None);
        };
        // The clock was not later than this when the power went.
        let to = kept + PACE;
        match set(to) {
            Ok(()) => {
                info!(from = now, to, "the clock was behind what this node has seen, and was stepped up");
                (clock, None)
            }
            Err(error) => {
                clock.behind = true;
                let what = format!(
                    "says {now} s since 1970 and this node has seen {kept} s; it cannot be stepped up: {error}. \
                     Tunnels that other gateways still hold stay closed until it is right"
                );
                let remedy = format!(
                    "set the clock (date -s @{to}), or let the agent do it (capability SYS_TIME); where it is right, \
                     remove {}",
                    clock.file.display()
                );
                (clock, Some(Problem::new("the clock", what, remedy)))
            }
        }
    }

    /// Keeps what the clock says, where that is due. Somebody who sets it back while the agent runs is right.
    pub(crate) fn keep(&mut self, now: u64) {
        if self.behind && self.kept.is_some_and(|kept| now < kept) {
            return;
        }
        self.behind = false;
        if self.kept.is_some_and(|kept| kept.abs_diff(now) < PACE) {
            return;
        }
        match write(&self.file, now) {
            Ok(()) => (self.kept, self.failing) = (Some(now), false),
            Err(error) if !self.failing => {
                self.failing = true;
                let object = self.object();
                warn!(object, %error, "{object}: cannot be written: after a lost clock, tunnels may stay closed");
            }
            Err(_) => {}
        }
    }

    fn object(&self) -> String {
        format!("file {}", self.file.display())
    }
}

/// Sets the node's clock.
///
/// # Errors
/// Without the capability to.
pub(crate) fn set(to: u64) -> io::Result<()> {
    let to = TimeSpec::from_duration(Duration::from_secs(to));
    clock_settime(ClockId::CLOCK_REALTIME, to).map_err(io::Error::from)
}

/// The floor; none where there is no file.
fn read(file: &Path) -> Result<Option<u64>, String> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("cannot be read: {error}; the clock is taken as it is")),
    };
    let seconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
    match seconds.filter(|seconds| *seconds < END && line(*seconds) == text) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err("torn or altered; the clock is taken as it is".to_owned()),
    }
}

/// Writes beside and renames: a power cut leaves this one or the last.
fn write(file: &Path, now: u64) -> io::Result<()> {
    let new = file.with_file_name(BESIDE);
    let mut beside = File::create(&new)?;
    beside.write_all(line(now).as_bytes())?;
    beside.sync_all()?;
    fs::rename(&new, file)
}

/// Seconds since the epoch, and the begin of their SHA-256.
fn line(seconds: u64) -> String {
    let sum = Sha256::digest(seconds.to_string());
    let begin = sum.iter().take(4).fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    format!("{seconds} {begin:08x}\n")
}

#[cfg(test)]
mod tests;
