//! What can go wrong before and while a tunnel runs.

use std::io;
use std::path::PathBuf;

/// Why a tunnel could not be started, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is not one the kernel takes for a device (1 to 15 bytes, no slash, no colon, no space).
    #[error("{0:?} is not a device name: 1 to 15 characters, no slash, no colon, no space")]
    Name(String),
    /// The TUN device cannot be made.
    #[error("cannot make TUN device {name}: {source}{}", hint(.source))]
    Tun {
        /// Device asked for.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process answers on the control socket.
    #[error("{} is in use: a process already answers there; end it, or remove the file to end it", .0.display())]
    InUse(PathBuf),
    /// The control socket cannot be made.
    #[error("cannot listen on {}: {source}", .path.display())]
    Listen {
        /// The socket's file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process that was to go on in the background has ended.
    #[error("{0}")]
    Background(String),
    /// A system call of the event loop.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => " (another process holds it)",
        Some(libc::EPERM | libc::EACCES) => " (CAP_NET_ADMIN and /dev/net/tun are needed)",
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => " (is the tun module loaded, /dev/net/tun there?)",
        Some(libc::EINVAL) => " (a device of that name and another kind exists)",
        _ => "",
    }
}
