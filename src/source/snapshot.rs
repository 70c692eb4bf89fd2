//! The last good Gateways on disk, so that a node that boots with nobody to ask finds its network.
//!
//! One line of form, length and SHA-256, then JSON. Written beside and renamed; the previous generation is kept.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use corax_core::name::NodeName;
use corax_core::problem::Problem;
use corax_core::view::View;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Files;

const FORM: &str = "corax-snapshot-1";

/// The generations' names in the state directory, and what one is called while it is written.
const NEWEST: &str = "snapshot";
const PREVIOUS: &str = "snapshot.previous";
const BESIDE: &str = "snapshot.new";

/// Whether a file of this name in the state directory is the snapshot's.
pub(crate) fn makes(name: &str) -> bool {
    [NEWEST, PREVIOUS, BESIDE].contains(&name)
}

/// Why the snapshot is not written, or not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The disk says no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is there is not what was written.
    #[error("{path}: torn or altered ({what})")]
    Torn {
        /// The file.
        path: PathBuf,
        /// In which way.
        what: &'static str,
    },
    /// The Gateways do not go into JSON.
    #[error("cannot be put into JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Where the snapshot is.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    directory: PathBuf,
    writable: bool,
}

/// What is in it.
#[derive(Serialize, Deserialize)]
struct Content<F, V> {
    files: F,
    /// Every file of the directory had been good. Earlier builds did not say.
    #[serde(default)]
    complete: bool,
    /// The name by which this node was last a member. Earlier builds did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
    /// Who held what, where not all could have what they ask for: whoever did keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    view: Option<V>,
}

/// What was read, and what was lost.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The Gateways.
    pub files: Files,
    /// Every file of the directory had been good, and nothing was lost since.
    pub complete: bool,
    /// The name by which this node was last a member.
    pub node: Option<NodeName>,
    /// The view that was made of them, where the order in which they came matters.
    pub view: Option<View>,
    /// The newest generation was no good.
    pub problem: Option<Problem>,
}

impl Snapshot {
    /// The snapshot of a state directory.
    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), writable: true }
    }

    /// The same, only to be looked at: saving does nothing.
    pub(crate) fn read_only(directory: impl Into<PathBuf>) -> Self {
        Self { writable: false, ..Self::new(directory) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Reads the newest generation that is whole. None at all is an empty one.
    ///
    /// # Errors
    /// Where there are generations and neither is good.
    pub(crate) fn load(&self) -> Result<Loaded, Error> {
        let newest = match read(&self.path(NEWEST)) {
            Ok(Content { files, complete, node, view }) => {
                return Ok(Loaded { files, complete, node, view, problem: None });
            }
            Err(error) => error,
        };
        match read(&self.path(PREVIOUS)) {
            Ok(Content { files, complete, node, view }) => {
                // Between the two renames of a save there is only the previous one: nothing is lost then.
                let problem = (!is_missing(&newest)).then(|| {
                    Problem::new(
                        "the snapshot",
                        format!("{newest}; the generation before it is used"),
                        "none needed: the next view is written anew",
                    )
                });
                Ok(Loaded { files, complete: complete && problem.is_none(), node, view, problem })
            }
            Err(error) if is_missing(&error) && is_missing(&newest) => Ok(Loaded::default()),
            Err(_) => Err(newest),
        }
    }

    /// Writes a new generation and keeps the last.
    ///
    /// # Errors
    /// Those of the disk; the last generation is then as it was.
    pub(crate) fn save(
        &self,
        files: &Files,
        complete: bool,
        node: Option<&NodeName>,
        view: Option<&View>,
    ) -> Result<(), Error> {
        if !self.writable {
            return Ok(());
        }
        let view = view.filter(|view| !view.problems.is_empty());
        let json = serde_json::to_vec(&Content { files, complete, node: node.cloned(), view })?;
        let (new, newest, previous) = (self.path(BESIDE), self.path(NEWEST), self.path(PREVIOUS));
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        let write = || {
            let mut file = File::create(&new)?;
            let header = format!("{FORM} {} {}\n", json.len(), hex(&json));
            file.write_all(header.as_bytes())?;
            file.write_all(&json)?;
            file.sync_all()
        };
        write().map_err(at(&new))?;
        // A torn newest one must not push out a whole previous one.
        if read(&newest).is_ok() {
            fs::rename(&newest, &previous).map_err(at(&previous))?;
        }
        fs::rename(&new, &newest).map_err(at(&newest))?;
        // A first one stands twice: there is nothing before it to fall back on.
        if !previous.exists() {
            write().map_err(at(&new))?;
            fs::rename(&new, &previous).map_err(at(&previous))?;
        }
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(at(&self.directory))
    }
}

fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

fn read(path: &Path) -> Result<Content<Files, View>, Error> {
    let bytes = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let torn = |what| Error::Torn { path: path.to_owned(), what };
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| torn("no first line"))?;
    let (header, json) = bytes.split_at(end);
    let json = json.get(1..).unwrap_or_default();
    let header = std::str::from_utf8(header).map_err(|_| torn("no first line"))?;
    if header != format!("{FORM} {} {}", json.len(), hex(json)) {
        return Err(torn("wrong checksum"));
    }
    Ok(serde_json::from_slice(json)?)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests;
