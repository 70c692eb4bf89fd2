//! Other people's programs: `nft` for a whole table and its listing, `iptables-legacy` for what only it can reach.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::error::Error;

/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Finds one in PATH, or where distributions have it.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(known).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Runs one in the calling thread's network namespace, and gives what it printed. `what` names the call in errors.
pub(super) fn run(
    program: &Path,
    arguments: &[&str],
    input: &str,
    what: &'static str,
) -> Result<String, Error> {
    let name = || program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let refused = |text: String| Error::Program { program: name(), what, text };
    let failed = |error: std::io::Error| refused(error.to_string());
    // In memory, not a pipe: nothing waits for anybody.
    let (stdin, output) = (file(input).map_err(failed)?, file("").map_err(failed)?);
    let copy = output.try_clone().map_err(failed)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(stdin)
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut text = Vec::new();
    let ended = match child.stderr.take() {
        Some(mut stderr) => read_until(&mut stderr, &mut text),
        None => Ok(()),
    };
    if ended.is_err() {
        child.kill().map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    ended.map_err(failed)?;
    if !status.success() {
        return Err(refused(String::from_utf8_lossy(&text).trim().replace('\n', " ")));
    }
    let mut output = copy;
    let mut printed = String::new();
    output.rewind().and_then(|()| output.read_to_string(&mut printed)).map_err(failed)?;
    Ok(printed)
}

/// A file in memory.
fn file(content: &str) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("corax", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Reads to the end, which comes with the program's.
fn read_until(from: &mut std::process::ChildStderr, into: &mut Vec<u8>) -> std::io::Result<()> {
    let begin = Instant::now();
    loop {
        let left = DEADLINE.saturating_sub(begin.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(std::io::Error::other("no answer in time")),
            Err(nix::errno::Errno::EINTR) => continue,
            result => result?,
        };
        let mut bytes = [0; 4096];
        match from.read(&mut bytes)? {
            0 => return Ok(()),
            count => into.extend(bytes.iter().take(count)),
        }
    }
}
