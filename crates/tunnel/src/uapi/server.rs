//! The control socket: a file that must be ours alone, and that ends the tunnel when it goes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
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

/// Where `wg` looks for sockets.
pub(crate) const DIRECTORY: &str = "/var/run/wireguard";
/// Longest request: some hundred thousand prefixes.
const MAX_REQUEST: u64 = 16 << 20;
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
        let lock = File::open(directory).map_err(fail)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| fail(error.into()))?;
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
        drop(lock);
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

    /// Answers clients, each in a thread of its own, until the listener fails.
    pub(crate) fn serve(&self, device: &Arc<Device>) -> io::Result<()> {
        loop {
            let (client, _) = self.listener.accept()?;
            let device = Arc::clone(device);
            thread::Builder::new().name("client".into()).spawn(move || {
                if let Err(error) = converse(&client, &device) {
                    tracing::debug!(%error, "client");
                }
            })?;
        }
    }
}

/// Requests and answers in turn, until the client hangs up.
fn converse(client: &UnixStream, device: &Device) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(client);
    while let Some(text) = request(&mut reader)? {
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

/// Lines up to an empty one; none at the end of the stream.
fn request(reader: &mut impl BufRead) -> io::Result<Option<Zeroizing<String>>> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    let mut reader = reader.take(MAX_REQUEST);
    loop {
        let before = text.len();
        if reader.read_line(&mut text)? == 0 {
            let ended = reader.limit() > 0 && before == 0;
            return if ended { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        if &text[before..] == "\n" {
            text.truncate(before);
            if before > 0 {
                return Ok(Some(text));
            }
        }
    }
}
