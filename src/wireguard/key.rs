//! The node's WireGuard key: made once, kept in `wireguard.key`, never overwritten.

use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use corax_core::key::PublicKey;
use corax_core::problem::Problem;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The file's name in the state directory.
pub(crate) const FILE: &str = "wireguard.key";

/// What its name is followed by where it is set aside, and while it is written; then comes a number.
const ASIDE: &str = ".damaged-";
const BESIDE: &str = ".new-";

/// Whether a file of this name in the state directory is the key's: itself, a damaged one that was set aside, or one that a
/// process was writing.
pub(crate) fn makes(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(FILE) else { return false };
    let number = rest.strip_prefix(ASIDE).or_else(|| rest.strip_prefix(BESIDE));
    // "01" and "+1" are somebody else's.
    let is_number =
        |text: &str| text.parse().is_ok_and(|number: u32| number > 0 && number.to_string() == text);
    rest.is_empty() || number.is_some_and(is_number)
}

/// A Curve25519 private key, 32 bytes, clamped as `wg genkey` does (RFC 7748, section 5).
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub(crate) struct PrivateKey([u8; 32]);

impl PrivateKey {
    /// A new one, from the kernel's random numbers; waits until it has some.
    pub(crate) fn generate() -> Self {
        Self::clamped(StaticSecret::random().to_bytes())
    }

    /// A key read from a tunnel. None: 32 zeros, by which WireGuard says that there is no key.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Option<Self> {
        (bytes != [0; 32]).then(|| Self::clamped(bytes))
    }

    fn clamped(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 0xf8;
        bytes[31] = bytes[31] & 0x7f | 0x40;
        Self(bytes)
    }

    /// Its public key.
    pub(crate) fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&StaticSecret::from(self.0)).to_bytes())
    }

    /// The bytes, for the tunnel's own interface.
    pub(crate) const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The base64 of 32 bytes, with or without a line's end.
    fn parse(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 33]);
        let length = STANDARD.decode_slice(text.trim(), bytes.as_mut()).ok()?;
        let (key, []) = bytes.get(..length)?.split_first_chunk::<32>()? else { return None };
        Self::from_bytes(*key)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("(hidden)")
    }
}

/// Where a key came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The file.
    File,
    /// A tunnel that runs; the file holds it now, unless a problem says otherwise.
    Running,
    /// It is new.
    Made,
}

/// A key, and what went wrong on the way to it.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The key.
    pub(crate) key: PrivateKey,
    /// Where it came from.
    pub(crate) origin: Origin,
    /// What the operator has to know.
    pub(crate) problem: Option<Error>,
}

/// What is wrong with the key file. None of it keeps a node from starting.
#[derive(Debug)]
pub(crate) enum Error {
    /// The file is there and holds no key.
    Damaged(PathBuf),
    /// The file held no key and was set aside.
    SetAside {
        /// The key file.
        file: PathBuf,
        /// What it is called now.
        aside: PathBuf,
        /// What took its place.
        origin: Origin,
    },
    /// The file cannot be read.
    Unreadable {
        /// The key file.
        file: PathBuf,
        /// The reason.
        cause: io::Error,
    },
    /// The file cannot be written.
    NotKept {
        /// The key file.
        file: PathBuf,
        /// The reason.
        cause: io::Error,
    },
}

impl Error {
    /// The same for `corax status`.
    pub(crate) fn problem(&self) -> Problem {
        Problem::new("the WireGuard key", self.what(), self.remedy())
    }

    fn what(&self) -> String {
        match self {
            Self::Damaged(file) => {
                format!("{} holds no WireGuard key (torn or overwritten?)", file.display())
            }
            Self::SetAside { file, aside, origin } => format!(
                "{} held no WireGuard key and is now {}; this node goes on with {}",
                file.display(),
                aside.display(),
                describe(*origin)
            ),
            Self::Unreadable { file, cause } => format!("cannot read {}: {cause}", file.display()),
            Self::NotKept { file, cause } => format!(
                "cannot keep the WireGuard key in {}: {cause}; it lasts until the tunnel ends",
                file.display()
            ),
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::Damaged(_) => "put a copy of it back and restart, or remove it to have a new key made",
            Self::SetAside { .. } => "to undo, put a copy of the old key back and restart",
            Self::Unreadable { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
                "run as root"
            }
            Self::Unreadable { .. } => "make it readable for the agent and restart",
            Self::NotKept { .. } => "make the directory writable, with room: it is tried each minute",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}; {}", self.what(), self.remedy())
    }
}

impl std::error::Error for Error {}

fn describe(origin: Origin) -> &'static str {
    match origin {
        Origin::File => "the key in it",
        Origin::Running => "the key of its running tunnel",
        Origin::Made => "a new key",
    }
}

/// The key in a state directory. None: there is no file.
///
/// # Errors
///
/// When the file cannot be read or holds no key.
pub(crate) fn load(directory: &Path) -> Result<Option<PrivateKey>, Error> {
    let file = directory.join(FILE);
    let unreadable = |cause| Error::Unreadable { file: file.clone(), cause };
    let mut opened = match File::open(&file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut text = Zeroizing::new([0; 64]);
    let length = read_up_to(&mut opened, text.as_mut()).map_err(unreadable)?;
    let key = text.get(..length).and_then(|text| str::from_utf8(text).ok()).and_then(PrivateKey::parse);
    let key = key.ok_or_else(|| Error::Damaged(file.clone()))?;
    keep_private(&file, &opened);
    Ok(Some(key))
}

/// The key of this node: the file's, else that of a tunnel that runs, else a new one; kept in the file from then on.
/// A file that holds no key is set aside, not overwritten. Never fails: what went wrong is in [`Loaded::problem`].
pub(crate) fn load_or_create(directory: &Path, running: impl FnOnce() -> Option<PrivateKey>) -> Loaded {
    let other = || match running() {
        Some(key) => (key, Origin::Running),
        None => (PrivateKey::generate(), Origin::Made),
    };
    let aside = match load(directory) {
        Ok(Some(key)) => {
            settle(directory);
            return Loaded { key, origin: Origin::File, problem: None };
        }
        Ok(None) => None,
        Err(Error::Damaged(file)) => match set_aside(&file) {
            Ok(aside) => Some(aside),
            Err(cause) => {
                let (key, origin) = other();
                return Loaded { key, origin, problem: Some(Error::NotKept { file, cause }) };
            }
        },
        Err(problem) => {
            let (key, origin) = other();
            return Loaded { key, origin, problem: Some(problem) };
        }
    };
    let (key, origin) = other();
    let file = directory.join(FILE);
    match create(directory, &file, &key) {
        Ok(()) => {
            let problem = aside.map(|aside| Error::SetAside { file, aside, origin });
            Loaded { key, origin, problem }
        }
        // Another process was faster: its key is the node's.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match load(directory) {
            Ok(Some(key)) => {
                settle(directory);
                Loaded { key, origin: Origin::File, problem: None }
            }
            Ok(None) => Loaded { key, origin, problem: Some(Error::NotKept { file, cause: error }) },
            Err(problem) => Loaded { key, origin, problem: Some(problem) },
        },
        Err(cause) => Loaded { key, origin, problem: Some(Error::NotKept { file, cause }) },
    }
}

/// Puts a key back where there is no file any more. True where that was so. A file that is there may hold another one: the
/// node's from the next start on.
///
/// # Errors
/// Where it cannot be kept.
pub(crate) fn restore(directory: &Path, key: &PrivateKey) -> Result<bool, Error> {
    let file = directory.join(FILE);
    if file.symlink_metadata().is_ok() {
        return Ok(false);
    }
    match create(directory, &file, key) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(cause) => Err(Error::NotKept { file, cause }),
    }
}

/// Sees to it that a key that was read is still there after a power cut: another process may have put it there a moment ago, and
/// whoever is told of it keeps it. A disk that takes nothing has nothing to lose.
fn settle(directory: &Path) {
    for path in [&directory.join(FILE), directory] {
        let _ = File::open(path).and_then(|opened| opened.sync_all());
    }
}

/// Reads until the end or until the buffer is full.
fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    loop {
        match file.read(buffer.get_mut(length..).unwrap_or_default())? {
            0 => return Ok(length),
            more => length += more,
        }
    }
}

/// Takes the file from everybody else where its mode lets them read it.
fn keep_private(path: &Path, file: &File) {
    let mode = file.metadata().map_or(0, |metadata| metadata.permissions().mode() & 0o777);
    if mode & 0o077 == 0 {
        return;
    }
    let file = path.display();
    match fs::set_permissions(path, Permissions::from_mode(0o600)) {
        Ok(()) => {
            tracing::warn!(%file, "the WireGuard key had mode {mode:04o}, now 0600: others may have read it");
        }
        Err(error) => tracing::warn!(%file, %error, "the WireGuard key has mode {mode:04o}: set it to 0600"),
    }
}

/// Renames a damaged file to the first free `wireguard.key.damaged-N`.
fn set_aside(file: &Path) -> io::Result<PathBuf> {
    for number in 1..1000 {
        let aside = file.with_file_name(format!("{FILE}{ASIDE}{number}"));
        if !aside.try_exists()? {
            fs::rename(file, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::Error::other("too many damaged key files beside it"))
}

/// Writes the key beside the file and links it into place, so that no moment shows a part of it and none that is
/// there is replaced.
fn create(directory: &Path, file: &Path, key: &PrivateKey) -> io::Result<()> {
    let beside = file.with_file_name(format!("{FILE}{BESIDE}{}", std::process::id()));
    let mut line = Zeroizing::new(STANDARD.encode(key.expose()));
    line.push('\n');
    let written =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside).and_then(
            |mut opened| {
                opened.write_all(line.as_bytes())?;
                opened.sync_all()
            },
        );
    let linked = written.and_then(|()| fs::hard_link(&beside, file));
    let removed = fs::remove_file(&beside);
    linked?;
    removed?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
