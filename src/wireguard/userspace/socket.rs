//! One exchange with a UAPI socket, within the deadline.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use corax_core::object::Device;
use corax_tunnel::secret;
use nix::errno::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use zeroize::Zeroizing;

use crate::wireguard::{DEADLINE, Error};

/// The longest answer that is read, in bytes: some 100,000 peers.
const LONGEST: usize = 64 << 20;

#[cfg(test)]
/// Who is behind a device's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// There is no socket.
    Absent,
    /// There is a socket, and its process is gone.
    Stale,
    /// Somebody accepts.
    Present,
}

/// The socket of a device.
pub(super) fn path(directory: &Path, device: Device) -> PathBuf {
    directory.join(format!("{device}.sock"))
}

#[cfg(test)]
/// Tries a socket.
pub(super) fn listener(device: Device, path: &Path) -> Result<Listener, Error> {
    match connect(path, Instant::now() + DEADLINE) {
        Ok(_) => Ok(Listener::Present),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(Listener::Absent),
            io::ErrorKind::ConnectionRefused => Ok(Listener::Stale),
            _ => Err(failure("reach", device, error)),
        },
    }
}

/// Sends a request and reads its answer, up to the empty line. None: nobody listens there.
pub(super) fn exchange(
    verb: &'static str,
    device: Device,
    path: &Path,
    request: &str,
) -> Result<Option<Zeroizing<String>>, Error> {
    let end = Instant::now() + DEADLINE;
    let mut socket = match connect(path, end) {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(failure(verb, device, error)),
    };
    let answer = send(&mut socket, request, end).and_then(|()| receive(&mut socket, end));
    answer.map(Some).map_err(|error| failure(verb, device, error))
}

/// Connects. A listener whose queue is full lets one wait, too.
fn connect(path: &Path, end: Instant) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // One that does not accept in time answers with EAGAIN.
    limit(end, |left| socket.set_write_timeout(left))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

fn send(socket: &mut Socket, request: &str, end: Instant) -> io::Result<()> {
    let mut rest = request.as_bytes();
    while !rest.is_empty() {
        limit(end, |left| socket.set_write_timeout(left))?;
        match socket.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn receive(socket: &mut Socket, end: Instant) -> io::Result<Zeroizing<String>> {
    let mut answer = Zeroizing::new(Vec::with_capacity(4096));
    let mut part = Zeroizing::new([0; 4096]);
    while !answer.ends_with(b"\n\n") {
        limit(end, |left| socket.set_read_timeout(left))?;
        match socket.read(part.as_mut()) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up in its answer")),
            Ok(more) => secret::append(&mut answer, part.get(..more).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if answer.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer has no end"));
        }
    }
    let text = String::from_utf8(std::mem::take(&mut *answer));
    text.map(Zeroizing::new).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "its answer is no text"))
}

/// Sets a time limit to what is left until the deadline.
fn limit(end: Instant, set: impl FnOnce(Option<std::time::Duration>) -> io::Result<()>) -> io::Result<()> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    set(Some(left))
}

fn failure(verb: &'static str, device: Device, source: io::Error) -> Error {
    let late = source.raw_os_error() == Some(Errno::EAGAIN as i32);
    if late || matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) {
        return Error::Deadline { verb, device };
    }
    Error::Refused { verb, device, source, detail: String::new() }
}
