//! The pins log as a file: read whole, appended to, written anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Puts `bytes` at `path` so that a reader, and a crash, finds the old file or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
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

/// A log file, read whole.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) path: PathBuf,
    /// What the file says. Shared, so that a replay may look at it while the file is written.
    pub(crate) bytes: Rc<Vec<u8>>,
    file: Option<File>,
    /// Why nothing can be appended, if so.
    refusal: Option<io::Error>,
    pub(crate) inode: u64,
}

impl Journal {
    /// Reads the log. What cannot be read is moved aside, and the log begins anew; what cannot be written is read.
    pub(crate) fn open(path: &Path, notes: &mut Vec<String>) -> Self {
        match Self::try_open(path) {
            Ok(journal) => journal,
            Err(error) => {
                let aside = path.with_extension("unreadable");
                let _ = fs::remove_file(&aside);
                let kept = match fs::rename(path, &aside) {
                    Ok(()) => format!("kept as {}", aside.display()),
                    Err(e) => format!("not moved aside: {e}"),
                };
                notes.push(format!("{} cannot be read ({error}), {kept}; it begins anew", path.display()));
                Self::try_open(path).unwrap_or_else(|error| Self::none(path, error))
            }
        }
    }

    fn none(path: &Path, error: io::Error) -> Self {
        Self { path: path.to_owned(), bytes: Rc::default(), file: None, refusal: Some(error), inode: 0 }
    }

    fn try_open(path: &Path) -> io::Result<Self> {
        let append = OpenOptions::new().read(true).append(true).mode(0o600).open(path);
        let (file, refusal) = match append {
            Ok(file) => (file, None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Made by the first write, so that a read leaves no trace.
                let journal = Self::none(path, error);
                return Ok(Self { refusal: None, ..journal });
            }
            Err(error) => (File::open(path)?, Some(error)),
        };
        let metadata = file.metadata()?;
        let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1);
        (&file).read_to_end(&mut bytes)?;
        Ok(Self {
            path: path.to_owned(),
            bytes: Rc::new(bytes),
            file: Some(file),
            refusal,
            inode: metadata.ino(),
        })
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

    pub(crate) fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Cuts a torn tail off and appends. Either all of it is in the file, and on disk if `durable`, or nothing.
    pub(crate) fn append(&mut self, records: &[u8], torn: Option<usize>, durable: bool) -> io::Result<()> {
        let keep = torn.unwrap_or(self.bytes.len());
        let whole = self.bytes.len();
        let mut file = self.writable()?;
        if keep < whole {
            file.set_len(keep as u64)?;
        }
        let written = file.write_all(records).and_then(|()| if durable { file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // A record that may not be on disk must not be found by the next reader either.
            let _ = file.set_len(keep as u64).and_then(|()| file.sync_data());
            return Err(error);
        }
        let bytes = Rc::make_mut(&mut self.bytes);
        bytes.truncate(keep);
        bytes.extend_from_slice(records);
        Ok(())
    }

    /// Makes sure that what was read is on disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }

    /// Whether a record of `size` bytes could be appended now: tried with empty lines, which mean nothing.
    pub(crate) fn probe(&mut self, size: usize, torn: Option<usize>, durable: bool) -> io::Result<()> {
        let before = torn.unwrap_or(self.bytes.len());
        self.append(&vec![b'\n'; size], torn, durable)?;
        Rc::make_mut(&mut self.bytes).truncate(before);
        self.writable()?.set_len(before as u64)
    }

    /// Puts a new log in the place of this one, on disk when this returns if `durable`.
    pub(crate) fn rewrite(&mut self, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.writable()?;
        replace(&self.path, bytes, durable)?;
        *self = Self::try_open(&self.path)?;
        debug_assert_eq!(self.bytes.as_slice(), bytes, "the log is what was written");
        Ok(())
    }
}
