//! Starting `corax tunnel`, in a process that outlives this one.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use corax_core::object::Device;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tracing::debug;

use super::Error;

/// How long a tunnel process may take until its socket answers.
const START: Duration = Duration::from_secs(10);

/// How long a log may be when a tunnel starts, in bytes: a longer one begins anew.
const LONGEST: u64 = 1 << 20;

/// What the name of the one before ends in.
const PREVIOUS: &str = ".previous";

/// The name of a tunnel's log in the state directory.
pub(crate) fn log_name(device: Device) -> String {
    format!("{device}.log")
}

/// Whether a file of this name in the state directory is a tunnel's.
pub(crate) fn makes(name: &str) -> bool {
    let device = name.strip_suffix(PREVIOUS).unwrap_or(name).strip_suffix(".log").and_then(Device::from_name);
    matches!(device, Some(Device::WireGuard(_)))
}

/// Starts `corax tunnel DEVICE` from this very binary and returns once its socket answers.
///
/// The command puts itself into the background, into a session of its own, when it is ready. What it says until then goes to
/// `log`, or nowhere where that cannot be opened; afterwards only where `LOG_LEVEL` is set, as a file that stays open keeps
/// its disk from being mounted read-only. No signal to this process or its group reaches it.
///
/// # Errors
///
/// When it cannot be started, does not get ready, or takes too long; with the last line that it printed.
pub(crate) fn spawn(device: Device, log: &Path) -> Result<(), Error> {
    start(&own_binary(), device, log, START)
}

/// The path of this binary; by way of /proc where it was replaced or removed since.
fn own_binary() -> PathBuf {
    let path = std::env::current_exe().ok().filter(|path| path.exists());
    path.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

fn start(program: &Path, device: Device, log: &Path, limit: Duration) -> Result<(), Error> {
    let mut log = Log::open(log).unwrap_or_else(|error| {
        // A disk that takes no log must not cost the tunnel.
        debug!(%error, "the tunnel starts without a log");
        Log { file: None, from: 0 }
    });
    let (output, errors) = (log.stdio(), log.stdio());
    let child = Command::new(program)
        .arg("tunnel")
        .arg(device.to_string())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn();
    let ended = child.and_then(|child| wait(child, limit)).map_err(|error| failed(device, &error, ""))?;
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(device, &status, &log.last_line())),
        None => {
            let what = format!("its socket does not answer within {} s", limit.as_secs_f32());
            Err(failed(device, &what, &log.last_line()))
        }
    }
}

fn failed(device: Device, what: &dyn Display, line: &str) -> Error {
    let between = if line.is_empty() { "" } else { ": " };
    Error::Spawn { device, what: format!("{what}{between}{line}") }
}

/// Waits until the command itself has ended. None: it had not, in time, and was killed with what it had begun.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let (ended, told) = mpsc::channel();
    // It is not reaped there, so that its number stays its own until the end of this function.
    let look = move || {
        let result = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        ended.send(result.map(drop)).ok();
    };
    let waiter = match thread::Builder::new().name("waiter".into()).spawn(look) {
        Ok(waiter) => waiter,
        Err(error) => {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
    };
    let in_time = told.recv_timeout(limit).is_ok();
    if !in_time {
        killpg(pid, Signal::SIGKILL)?;
    }
    let status = child.wait()?;
    waiter.join().map_err(|_| io::Error::other("the waiting thread panicked"))?;
    Ok(in_time.then_some(status))
}

/// Where a tunnel process says what it has to say.
struct Log {
    file: Option<File>,
    /// Where this start's lines begin.
    from: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > LONGEST) {
            let mut previous = path.as_os_str().to_owned();
            previous.push(PREVIOUS);
            fs::rename(path, previous)?;
        }
        let mut file = OpenOptions::new().append(true).create(true).read(true).open(path)?;
        let from = file.seek(SeekFrom::End(0))?;
        Ok(Self { file: Some(file), from })
    }

    fn stdio(&self) -> Stdio {
        let file = self.file.as_ref().and_then(|file| file.try_clone().ok());
        file.map_or_else(Stdio::null, Stdio::from)
    }

    /// The last line of this start.
    fn last_line(&mut self) -> String {
        let mut text = Vec::new();
        if let Some(file) = &mut self.file {
            let read =
                file.seek(SeekFrom::Start(self.from)).and_then(|_| file.take(1 << 16).read_to_end(&mut text));
            read.unwrap_or_default();
        }
        String::from_utf8_lossy(&text).trim_end().lines().last().unwrap_or_default().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    const DEVICE: Device = Device::WireGuard(0);

    fn script(directory: &Path, text: &str) -> PathBuf {
        let path = directory.join("corax");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_command_returns_when_it_is_ready() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let program = script(directory.path(), r#"echo "$@"; exit 0"#);
        start(&program, DEVICE, &log, START).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "tunnel raven-wg0\n");
    }

    #[test]
    fn a_long_log_begins_anew_and_the_one_before_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (log, previous) =
            (directory.path().join("raven-wg0.log"), directory.path().join("raven-wg0.log.previous"));
        assert!([&log, &previous].iter().all(|path| makes(path.file_name().unwrap().to_str().unwrap())));
        let program = script(directory.path(), "echo started; exit 0");
        let long = "x".repeat(usize::try_from(LONGEST).unwrap());
        for _ in 0..2 {
            fs::write(&log, &long).unwrap();
            start(&program, DEVICE, &log, START).unwrap();
            assert!(fs::read_to_string(&log).unwrap().ends_with("xstarted\n"), "it was not too long yet");
            start(&program, DEVICE, &log, START).unwrap();
            assert_eq!(fs::read_to_string(&log).unwrap(), "started\n");
            assert_eq!(fs::metadata(&previous).unwrap().len(), LONGEST + 8);
        }
    }

    #[test]
    fn a_failure_carries_the_last_line_of_this_start() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        fs::write(&log, "of a start before\n").unwrap();
        let error = start(&script(directory.path(), "exit 3"), DEVICE, &log, START).unwrap_err().to_string();
        assert_eq!(error, "cannot start `corax tunnel raven-wg0`: exit status: 3");
        let program = script(directory.path(), "echo one >&2; echo 'no /dev/net/tun' >&2; exit 1");
        let error = start(&program, DEVICE, &log, START).unwrap_err().to_string();
        assert_eq!(error, "cannot start `corax tunnel raven-wg0`: exit status: 1: no /dev/net/tun");
        let error =
            start(Path::new("/no/such"), DEVICE, Path::new("/no/such/log"), START).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn one_that_gets_nowhere_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let program =
            script(directory.path(), &format!("sleep 60 & echo $$ $! > {}; exec sleep 60", pid.display()));
        let begin = Instant::now();
        let error = start(&program, DEVICE, Path::new("/no/such/log"), Duration::from_millis(300))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "cannot start `corax tunnel raven-wg0`: its socket does not answer within 0.3 s");
        assert!(begin.elapsed() < Duration::from_secs(5));
        let pids = fs::read_to_string(&pid).unwrap();
        let [own, begun] = pids.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{pids}") };
        assert!(!Path::new("/proc").join(own).exists());
        // Whoever inherits it may take a while to bury it.
        let state = || fs::read_to_string(format!("/proc/{begun}/stat")).unwrap_or_default();
        let is_dead = || state().is_empty() || state().contains(") Z ");
        while !is_dead() {
            assert!(begin.elapsed() < Duration::from_secs(5), "{}", state());
            thread::sleep(Duration::from_millis(10));
        }
    }
}
