//! The control socket: a file that must be ours alone, and that ends the tunnel when it goes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use zeroize::Zeroizing;

use super::request::Request;
use super::{apply, report};
use crate::device::Device;
use crate::error::Error;
use crate::secret;

/// Where `wg` looks for sockets.
pub(crate) const DIRECTORY: &str = "/var/run/wireguard";
/// Longest request: some hundred thousand prefixes.
const MAX_REQUEST: usize = 16 << 20;
/// How long no client is let in after one could not be.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a client may keep its thread waiting.
const PATIENCE: Duration = Duration::from_secs(30);

/// The socket and its file.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Server {
    /// Listens for device `name`. What a dead process left behind is replaced; a live one's is not.
    pub(crate) fn listen(name: &str) -> Result<Self, Error> {
        let directory = Path::new(DIRECTORY);
        let path = directory.join(format!("{name}.sock"));
        let fail = |source| Error::Listen { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(fail)?;
        // One process at a time decides whether the file is stale.
        let turn = Turn::take(directory.join(format!(".{name}.lock"))).map_err(fail)?;
        match UnixStream::connect(&path) {
            Ok(_) => return Err(Error::InUse(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::debug!(path = %path.display(), "replacing the socket of a dead process");
                fs::remove_file(&path).map_err(fail)?;
            }
            Err(error) => return Err(fail(error)),
        }
        // Bound under another name, so that nobody can connect before the mode is set.
        let hidden = directory.join(format!(".{name}.sock"));
        drop(fs::remove_file(&hidden));
        let listener = UnixListener::bind(&hidden).map_err(fail)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(fail)?;
        let inode = fs::metadata(&hidden).map_err(fail)?.ino();
        fs::rename(&hidden, &path).map_err(fail)?;
        drop(turn);
        Ok(Self { listener, path, inode })
    }

    /// Whether the file is still there and ours.
    pub(crate) fn stands(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode)
    }

    /// Removes the file, if it is still ours.
    pub(crate) fn remove(&self) {
        if self.stands() {
            drop(fs::remove_file(&self.path));
        }
    }

    /// Answers clients, each in a thread of its own, for ever.
    pub(crate) fn serve(&self, device: &Arc<Device>) {
        loop {
            if let Err(error) = self.accept(device) {
                // Out of descriptors or threads: that passes.
                tracing::warn!(%error, "a client was turned away");
                thread::sleep(PAUSE);
            }
        }
    }

    fn accept(&self, device: &Arc<Device>) -> io::Result<()> {
        let (client, _) = self.listener.accept()?;
        let device = Arc::clone(device);
        let work = move || {
            if let Err(error) = converse(&client, &device) {
                tracing::debug!(%error, "client");
            }
        };
        thread::Builder::new().name("client".into()).spawn(work).map(drop)
    }
}

/// A turn at making the socket's file. Whoever may read a file may lock it, so it is a file that nobody else may read; it goes
/// with the turn.
struct Turn {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Turn {
    fn take(path: PathBuf) -> io::Result<Self> {
        loop {
            let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            // Who had the turn before took the file along, and another may have made one since.
            let inode = lock.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|file| file.ino() == inode) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

/// Requests and answers in turn, until the client hangs up.
fn converse(client: &UnixStream, device: &Device) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut requests = Requests::new(client);
    while let Some(text) = requests.next()? {
        let (body, errno) = match Request::parse(&text) {
            Some(Request::Get) => (report::state(device), 0),
            Some(Request::Metrics) => (Zeroizing::new(report::metrics(device)), 0),
            Some(Request::Set(set)) => match apply::apply(device, &set) {
                Ok(()) => (Zeroizing::default(), 0),
                Err(error) => {
                    tracing::error!(%error, "the network side cannot be as configured");
                    (Zeroizing::default(), error.raw_os_error().unwrap_or(libc::EIO))
                }
            },
            None => {
                tracing::warn!("a request that cannot be understood was refused");
                (Zeroizing::default(), libc::EINVAL)
            }
        };
        let mut writer = client;
        writer.write_all(body.as_bytes())?;
        writer.write_all(format!("errno={errno}\n\n").as_bytes())?;
    }
    Ok(())
}

/// What a client says, request by request. There are keys in it: all that is kept of it is cleared when that is dropped.
struct Requests<R> {
    from: R,
    /// What came and is no request's yet.
    read: Zeroizing<Vec<u8>>,
}

impl<R: Read> Requests<R> {
    fn new(from: R) -> Self {
        Self { from, read: Zeroizing::default() }
    }

    /// Lines up to an empty one; none at the end of the stream.
    fn next(&mut self) -> io::Result<Option<Zeroizing<String>>> {
        let mut part = Zeroizing::new([0; 4096]);
        let mut seen = 0;
        loop {
            // Empty lines before it say nothing.
            let empty = self.read.iter().take_while(|byte| **byte == b'\n').count();
            self.read.drain(..empty);
            let end = self.read.get(seen..).and_then(|new| new.windows(2).position(|pair| pair == b"\n\n"));
            if let Some(end) = end {
                let lines = &self.read[..=seen + end];
                let text = str::from_utf8(lines).map(|text| Zeroizing::new(text.to_owned()));
                self.read.drain(..seen + end + 2);
                return text.map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
            }
            seen = self.read.len().saturating_sub(1);
            match self.from.read(part.as_mut()) {
                Ok(0) if self.read.is_empty() => return Ok(None),
                Ok(more) if more > 0 && self.read.len() + more <= MAX_REQUEST => {
                    secret::append(&mut self.read, &part[..more]);
                }
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that says one piece after another.
    struct Pieces<'a>(&'a [&'a str]);

    impl Read for Pieces<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            let Some((piece, rest)) = self.0.split_first() else { return Ok(0) };
            self.0 = rest;
            room[..piece.len()].copy_from_slice(piece.as_bytes());
            Ok(piece.len())
        }
    }

    #[test]
    fn requests_are_told_apart_however_they_come() {
        for pieces in [
            &["get=1\n\nset=1\nfwmark=1\n\n"][..],
            &["get=1\n", "\n", "set=1\nfw", "mark=1\n\n"],
            &["\n\nget", "=1\n\n\n", "\nset=1\nfwmark=1\n", "\n\n"],
        ] {
            let mut requests = Requests::new(Pieces(pieces));
            assert_eq!(
                requests.next().unwrap().as_deref().map(String::as_str),
                Some("get=1\n"),
                "{pieces:?}"
            );
            assert_eq!(
                requests.next().unwrap().as_deref().map(String::as_str),
                Some("set=1\nfwmark=1\n"),
                "{pieces:?}"
            );
            assert!(requests.next().unwrap().is_none(), "{pieces:?}");
        }
    }

    #[test]
    fn a_request_that_does_not_end_or_never_ends_is_refused() {
        let told = |pieces: &[&str]| Requests::new(Pieces(pieces)).next().unwrap_err().kind();
        assert_eq!(told(&["get=1\n"]), io::ErrorKind::UnexpectedEof);
        let line = "allowed_ip=10.0.0.0/8\n".repeat(100);
        assert_eq!(told(&vec![&*line; MAX_REQUEST / line.len() + 1]), io::ErrorKind::UnexpectedEof);
    }
}
