//! A log as a file: read, appended to, written anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::contents::Stamp;
use crate::error::Error;

/// Whether opening a file failed for want of memory or descriptors.
fn is_passing(error: &io::Error) -> bool {
    /// Too many open files: of the system, of the process (errno(3), the same on every Linux).
    const NO_DESCRIPTORS: [i32; 2] = [23, 24];
    error.kind() == io::ErrorKind::OutOfMemory
        || error.raw_os_error().is_some_and(|number| NO_DESCRIPTORS.contains(&number))
}

/// What a file is called while it is written.
pub(crate) fn beside(name: &str) -> String {
    format!(".{name}.new")
}

/// What a log that cannot be read is called when it is put aside: the first name that is free.
pub(crate) fn asides(name: &str) -> impl Iterator<Item = String> {
    (0..100u32).map(move |number| match number {
        0 => format!("{name}.unreadable"),
        _ => format!("{name}.unreadable.{number}"),
    })
}

/// Puts `bytes` at `path` so that a reader, and a crash, finds the old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let beside = path.with_file_name(beside(&name));
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
        return written;
    }
    if durable { sync_directory(path) } else { Ok(()) }
}

fn sync_directory(of: &Path) -> io::Result<()> {
    File::open(of.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
}

/// Makes a directory of ours, for root alone.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A log file.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) path: PathBuf,
    file: Option<File>,
    /// Why nothing can be appended, if so.
    refusal: Option<io::Error>,
    pub(crate) inode: u64,
    pub(crate) length: u64,
    /// What the file says, once asked for. Shared, so that a replay may look at it while the file is written.
    bytes: Option<Rc<Vec<u8>>>,
}

impl Journal {
    /// Opens a log. What cannot be opened or read is moved aside, and the log begins anew; what cannot be written is read.
    ///
    /// # Errors
    /// When the machine has no memory or descriptors for it at this moment: nothing is known of it then.
    pub(crate) fn open(path: &Path, notes: &mut Vec<String>) -> Result<Self, Error> {
        match Self::try_open(path) {
            Ok(journal) => Ok(journal),
            Err(error) if is_passing(&error) => Err(Error::io(path)(error)),
            Err(error) => Ok(Self::anew(path, &error, notes)),
        }
    }

    fn anew(path: &Path, error: &io::Error, notes: &mut Vec<String>) -> Self {
        // Whatever was put aside before stays: it may be the better one.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut names = asides(&name).map(|name| path.with_file_name(name));
        let first = path.with_file_name(format!("{name}.unreadable"));
        let aside = names.find(|name| !name.exists()).unwrap_or(first);
        let kept = match fs::rename(path, &aside) {
            Ok(()) => format!("kept as {}", aside.display()),
            Err(e) => format!("not moved aside: {e}"),
        };
        notes.push(format!("{} cannot be read ({error}), {kept}; it begins anew", path.display()));
        Self::try_open(path).unwrap_or_else(|error| Self::none(path, Some(error)))
    }

    fn none(path: &Path, refusal: Option<io::Error>) -> Self {
        Self { path: path.to_owned(), file: None, refusal, inode: 0, length: 0, bytes: None }
    }

    fn try_open(path: &Path) -> io::Result<Self> {
        let append = OpenOptions::new().read(true).append(true).mode(0o600).open(path);
        let (file, refusal) = match append {
            Ok(file) => (file, None),
            // Made by the first write, so that a read leaves no trace.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::none(path, None)),
            Err(error) => (File::open(path)?, Some(error)),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a file"));
        }
        let (inode, length) = (metadata.ino(), metadata.len());
        Ok(Self { path: path.to_owned(), file: Some(file), refusal, inode, length, bytes: None })
    }

    /// Whether there is no file, and nothing is known that would be in the way of one.
    pub(crate) fn is_missing(&self) -> bool {
        self.file.is_none() && self.refusal.is_none()
    }

    /// Whether it is on a file system that takes no writes: all that can be read is on disk, or never will be.
    pub(crate) fn is_read_only(&self) -> bool {
        self.refusal.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }

    /// The file to look at, if there is one.
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// What the file is now.
    pub(crate) fn stamp(&self) -> Option<Stamp> {
        self.file.as_ref()?.metadata().ok().map(|metadata| Stamp::of(&metadata))
    }

    /// All the file says. What cannot be read is moved aside.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn bytes(&mut self, notes: &mut Vec<String>) -> Result<Rc<Vec<u8>>, Error> {
        if let Some(bytes) = &self.bytes {
            return Ok(Rc::clone(bytes));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.length).unwrap_or(0) + 1);
        let read = self.file.as_ref().map_or(Ok(0), |mut file| {
            file.seek(io::SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)
        });
        if let Err(error) = read {
            if is_passing(&error) {
                return Err(Error::io(&self.path)(error));
            }
            *self = Self::anew(&self.path, &error, notes);
            bytes.clear();
        }
        let bytes = Rc::new(bytes);
        self.bytes = Some(Rc::clone(&bytes));
        Ok(bytes)
    }

    fn writable(&mut self) -> io::Result<&File> {
        if let Some(error) = &self.refusal {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        if self.file.is_none() {
            make_directory(self.path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
            let file =
                OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
            sync_directory(&self.path)?;
            self.inode = file.metadata()?.ino();
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Cuts a torn tail off and appends. Either all of it is in the file, and on disk if `durable`, or nothing.
    pub(crate) fn append(&mut self, records: &[u8], torn: Option<usize>, durable: bool) -> io::Result<()> {
        let keep = torn.map_or(self.length, |torn| torn as u64);
        let whole = self.length;
        let mut file = self.writable()?;
        if keep < whole {
            file.set_len(keep)?;
        }
        let written = file.write_all(records).and_then(|()| if durable { file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // A record that may not be on disk must not be found by the next reader either.
            let _ = file.set_len(keep).and_then(|()| file.sync_data());
            (self.length, self.bytes) = (keep, None);
            return Err(error);
        }
        self.length = keep + records.len() as u64;
        if let Some(bytes) = &mut self.bytes {
            let bytes = Rc::make_mut(bytes);
            bytes.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            bytes.extend_from_slice(records);
        }
        Ok(())
    }

    /// Makes sure that what was read is on disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    /// Whether a record of `size` bytes could be appended now: tried with empty lines, which mean
    /// nothing. Not whether the disk keeps it: a runtime asks every few seconds, and flash wears.
    pub(crate) fn probe(&mut self, size: usize, torn: Option<usize>) -> io::Result<()> {
        let before = torn.map_or(self.length, |torn| torn as u64);
        self.append(&vec![b'\n'; size], torn, false)?;
        (self.length, self.bytes) = (before, None);
        self.writable()?.set_len(before)
    }

    /// Puts a new log in the place of this one, on disk when this returns if `durable`.
    pub(crate) fn rewrite(&mut self, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.writable()?;
        let replaced = replace(&self.path, bytes, durable);
        // Even where it failed: the file may have its name already, and what is written to the old one is lost.
        *self = Self::try_open(&self.path)?;
        replaced
    }
}
