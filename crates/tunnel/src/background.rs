//! Going on in the background: the program starts itself again, detached, and waits until that one answers.

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::error::Error;
use crate::log;

/// Set for the process in the background: it reports on its standard output, then lets go of it.
const MARK: &str = "CORAX_TUNNEL_REPORT";
const READY: &str = "ready";

/// Whether this process is the one in the background.
pub(crate) fn is_child() -> bool {
    env::var_os(MARK).is_some()
}

/// Starts this program again with the same arguments; returns when it is ready, with its error when it is not.
pub(crate) fn start() -> Result<(), Error> {
    let mut arguments = env::args_os();
    let zeroth = arguments.next().unwrap_or_default();
    let log = if log::is_wanted() { Stdio::inherit() } else { Stdio::null() };
    let mut child = Command::new("/proc/self/exe")
        .arg0(zeroth)
        .args(arguments)
        .env(MARK, "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(Error::system("start in the background"))?;
    let mut report = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut report).map_err(Error::system("report from the background"))?;
    }
    match report.trim() {
        READY => Ok(()),
        "" => {
            let status = child.wait().map_err(Error::system("end of the background process"))?;
            Err(Error::Background(format!("the process in the background ended: {status}")))
        }
        error => Err(Error::Background(error.to_owned())),
    }
}

/// Leaves the session of the process that started us, and its name.
pub(crate) fn detach() {
    // Refused only to who leads a session already.
    let _ = nix::unistd::setsid();
    // It was started as /proc/self/exe, of which the kernel takes the name.
    let _ = std::fs::write("/proc/self/comm", "corax-tunnel");
}

/// Tells the waiting process how it went, and lets go of the standard output.
pub(crate) fn report(result: Result<(), &Error>) {
    let mut output = io::stdout();
    // Nobody waits any more: then nobody needs to know.
    drop(match result {
        Ok(()) => writeln!(output, "{READY}"),
        Err(error) => writeln!(output, "{error}"),
    });
    drop(output.flush());
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(null);
    }
}
