//! A directory of Gateway manifests, YAML or JSON, several Gateways in a file and several files.
//!
//! A bad file keeps its own last Gateways, and a bad Gateway in a file of several itself. A Gateway gone from a good file is
//! gone. A file gone from a directory that still has good ones is gone once the directory is quiet: it may be being filled
//! anew. An empty or unreadable directory deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use corax_core::api::{API_VERSION, Gateway, KIND};
use corax_core::name::DomainName;
use corax_core::problem::Problem;

use super::document::{Document, Piece, parse_yaml, pieces_of_json, pieces_of_yaml};
use super::watch::Heard;
use super::{Files, Known};

/// A file that changed less than this ago, with nobody having said that it is whole, may still be being written.
pub(crate) const SETTLED: Duration = Duration::from_millis(300);

/// How long nothing of the directory may have changed before a file that is missing is gone.
const QUIET: Duration = Duration::from_secs(2);

/// Largest manifest that is read, in bytes: far above the API server's own limit for an object.
const LARGEST: u64 = 64 << 20;

/// Problems of one file that are told, at most.
const PROBLEMS_TOLD: usize = 32;

/// The directory and what was last good of it.
pub(crate) struct Manifests {
    directory: PathBuf,
    files: Files,
    /// Those in which a Gateway may stand that was never good.
    partly: BTreeSet<String>,
    /// As of when the directory last told which files there are.
    known: Known,
    seen: BTreeMap<String, Seen>,
    /// When a file was last seen to come, go or change.
    stirred: Instant,
    /// A file is missing, and gone once the directory is quiet.
    missing: bool,
}

/// What was read of a file, and what was wrong with it.
#[derive(Default)]
struct Seen {
    modified: Option<SystemTime>,
    length: u64,
    /// It was read as it is; else it was too fresh to be trusted.
    read: bool,
    /// It could not be read, and may be readable without having changed.
    again: bool,
    /// What it says is in [`Manifests::files`].
    good: bool,
    problems: Vec<Problem>,
}

/// What a scan found.
#[derive(Debug)]
pub(crate) struct Scan {
    /// The Gateways are not what they were.
    pub changed: bool,
    /// What is wrong, of each file as it stands.
    pub problems: Vec<Problem>,
    /// How much of the directory is known. One that is emptied or cannot be read tells nothing of that, and takes nothing
    /// back.
    pub known: Known,
}

impl Manifests {
    /// A directory of which `files` were last good, and so much `known`.
    pub(crate) fn new(directory: PathBuf, files: Files, known: Known) -> Self {
        let partly = if known == Known::Part { files.keys().cloned().collect() } else { BTreeSet::new() };
        let (seen, stirred) = (BTreeMap::new(), Instant::now());
        Self { directory, files, partly, known, seen, stirred, missing: false }
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The last good Gateways of each file.
    pub(crate) const fn files(&self) -> &Files {
        &self.files
    }

    /// Whether the directory should be looked at again after [`SETTLED`]: a file was too fresh to be trusted, or is missing.
    pub(crate) fn unsettled(&self) -> bool {
        self.missing || self.seen.values().any(|seen| !seen.read)
    }

    /// Reads the files that are not as they were, but for those that are being written. One that was written to its end is
    /// complete, however fresh.
    pub(crate) fn scan(&mut self, heard: &Heard) -> Scan {
        let names = match list(&self.directory) {
            Ok(names) => names,
            Err(error) => return self.unusable(&format!("cannot be read: {error}; what it held last stays")),
        };
        if names.is_empty() {
            return self.unusable("holds no *.yaml, *.yml or *.json; what it held last stays");
        }
        if !self.seen.keys().eq(&names) {
            self.stirred = Instant::now();
        }
        let mut changed = false;
        for name in &names {
            changed |= self.read(name, heard.whole.contains(name), heard.writing.contains(name));
        }
        self.seen.retain(|name, _| names.contains(name));
        changed |= self.forget_missing();
        let all = names.iter().all(|name| self.files.contains_key(name) && !self.partly.contains(name));
        self.known = if all { Known::All } else { Known::Part };
        Scan {
            changed,
            problems: self.seen.values().flat_map(|seen| seen.problems.iter().cloned()).collect(),
            known: self.known,
        }
    }

    /// Lets go of files that are gone for good; true where there was one.
    fn forget_missing(&mut self) -> bool {
        let Self { files, seen, .. } = self;
        // Where no file is good, the directory tells nothing of those that are gone from it.
        let told = seen.values().any(|seen| seen.good);
        self.missing = told && files.keys().any(|name| !seen.contains_key(name));
        if !self.missing || self.stirred.elapsed() < QUIET {
            return false;
        }
        files.retain(|name, _| seen.contains_key(name));
        self.missing = false;
        true
    }

    fn unusable(&mut self, what: &str) -> Scan {
        self.seen.clear();
        self.missing = false;
        let object = format!("directory {}", self.directory.display());
        let problem = Problem::new(object, what, "put Gateway manifests there, or correct --source");
        Scan { changed: false, problems: vec![problem], known: self.known }
    }

    /// Reads one file if it changed; true where its Gateways did.
    fn read(&mut self, name: &str, whole: bool, writing: bool) -> bool {
        let path = self.directory.join(name);
        let metadata = std::fs::metadata(&path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        let length = metadata.map_or(0, |metadata| metadata.len());
        let seen = self.seen.entry(name.to_owned()).or_default();
        let same = (seen.modified, seen.length) == (modified, length);
        if !whole && seen.read && same && !seen.again {
            return false;
        }
        if !same {
            self.stirred = Instant::now();
        }
        (seen.modified, seen.length) = (modified, length);
        // A clock that went back makes a file of the future: that one has settled.
        let age = modified.and_then(|modified| modified.elapsed().ok());
        seen.read = !writing && (whole || age.is_none_or(|age| age >= SETTLED));
        if !seen.read {
            return false;
        }
        let object = format!("file {}", path.display());
        let before = self.files.get(name).map(Vec::as_slice).unwrap_or_default();
        match load(&path, &object, before) {
            Ok(Loaded { gateways, partly, problems }) => {
                (seen.good, seen.again) = (true, false);
                seen.problems = problems;
                self.partly.remove(name);
                self.partly.extend(partly.then(|| name.to_owned()));
                let changed = self.files.get(name) != Some(&gateways);
                self.files.insert(name.to_owned(), gateways);
                changed
            }
            // Gone since the directory was listed; a link that leads nowhere is still there.
            Err(_) if std::fs::symlink_metadata(&path).is_err_and(|error| is_gone(&error)) => {
                self.seen.remove(name);
                self.stirred = Instant::now();
                false
            }
            Err(Bad { what, remedy }) => {
                (seen.good, seen.again) = (false, true);
                let then = if self.files.contains_key(name) {
                    "its last good Gateways stay"
                } else {
                    "nothing of it is used"
                };
                let what = format!("{what}; {then}");
                let gone = std::fs::metadata(&path).is_err_and(|error| is_gone(&error));
                let remedy =
                    if gone { "put back what it links to, or remove the link".to_owned() } else { remedy };
                seen.problems = vec![Problem::new(object, what, remedy)];
                false
            }
        }
    }
}

/// Names of the directory's manifests, hidden ones (a ConfigMap volume's own) left out.
fn list(directory: &Path) -> std::io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let known = [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending));
        if known && !name.starts_with('.') {
            names.insert(name);
        }
    }
    Ok(names)
}

struct Loaded {
    gateways: Vec<Gateway>,
    /// A Gateway of the file was never good.
    partly: bool,
    /// What of the file is not read.
    problems: Vec<Problem>,
}

/// Why a file is no good.
struct Bad {
    what: String,
    remedy: String,
}

impl From<String> for Bad {
    fn from(what: String) -> Self {
        Self { what, remedy: "correct the file".to_owned() }
    }
}

fn load(path: &Path, object: &str, before: &[Gateway]) -> Result<Loaded, Bad> {
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        let remedy = "put a regular file there, or remove it".to_owned();
        return Err(Bad { what: "is no regular file".to_owned(), remedy });
    }
    let length = metadata.len();
    if length > LARGEST {
        return Err(format!("is {length} bytes long, more than {LARGEST}").into());
    }
    // One of the kernel's has no length, and may have no end.
    let text = if length > 0 { std::fs::read_to_string(path).map_err(unreadable)? } else { String::new() };
    if text.trim().is_empty() {
        return Err("is empty".to_owned().into());
    }
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let documents: Result<Vec<Document>, String> = if is_json {
        let documents = serde_json::Deserializer::from_str(&text).into_iter();
        documents.collect::<Result<_, _>>().map_err(|error| error.to_string())
    } else {
        parse_yaml(&text, 0)
    };
    let is_bare = documents.as_ref().is_ok_and(Vec::is_empty);
    let pieces = match documents {
        Ok(documents) => documents.into_iter().flat_map(Document::pieces).collect(),
        // Who has but one Gateway in a file is told the line.
        Err(error) => if is_json { pieces_of_json(&text) } else { pieces_of_yaml(&text) }
            .filter(|pieces| pieces.iter().any(Piece::is_bad) && !pieces.iter().all(Piece::is_bad))
            .ok_or(error)?,
    };
    let mut loaded = Loaded { gateways: Vec::new(), partly: false, problems: Vec::new() };
    for piece in pieces {
        let (gateway, unknown) = match piece {
            Piece::Good(gateway, unknown) => (gateway, unknown),
            Piece::Bad { name, what } => {
                name_of(&name)?;
                let last = before.iter().find(|gateway| gateway.metadata.name == name);
                loaded.partly |= last.is_none();
                let then = if last.is_some() { "its last good form stays" } else { "it is left out" };
                loaded.gateways.extend(last.cloned());
                let object = format!("{object}, Gateway {name}");
                loaded.problems.push(Problem::new(object, format!("{what}; {then}"), "correct the file"));
                continue;
            }
        };
        let name = &gateway.metadata.name;
        if gateway.kind != KIND || gateway.api_version != API_VERSION {
            loaded.problems.push(Problem::new(object, left_out(&gateway), only_gateways("take it out")));
            continue;
        }
        name_of(name)?;
        if let Some(what) = unknown.told() {
            let remedy = "correct the name; what a newer form of the resource has may stay";
            loaded.problems.push(Problem::new(format!("{object}, Gateway {name}"), what, remedy));
        }
        loaded.gateways.push(gateway);
    }
    let more = loaded.problems.len().saturating_sub(PROBLEMS_TOLD);
    if more > 0 {
        loaded.problems.truncate(PROBLEMS_TOLD);
        let what = format!("has {more} more problems");
        loaded.problems.push(Problem::new(object, what, "correct those that are told"));
    }
    if loaded.gateways.is_empty() {
        let (what, remedy) = match loaded.problems.into_iter().next() {
            Some(Problem { what, .. }) => {
                (format!("holds no Gateway: {what}"), only_gateways("remove the file"))
            }
            None if is_bare => {
                ("holds no document".to_owned(), "write Gateways, or remove the file".to_owned())
            }
            None => {
                ("holds an empty List".to_owned(), "write Gateways into it, or remove the file".to_owned())
            }
        };
        return Err(Bad { what, remedy });
    }
    Ok(loaded)
}

/// Refuses a file with a Gateway of which it cannot be told whose it is: it may be one that is there already.
fn name_of(gateway: &str) -> Result<(), Bad> {
    gateway.parse::<DomainName>().map(drop).map_err(|error| format!("metadata.name: {error}").into())
}

/// Why a file cannot be read, which is one thing to mend, and what it says another.
fn unreadable(error: std::io::Error) -> Bad {
    use std::io::ErrorKind;
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "let the agent read the file",
        ErrorKind::InvalidData => "write it in UTF-8",
        _ => "see that the file can be read",
    };
    Bad { what: error.to_string(), remedy: remedy.to_owned() }
}

/// What is told of an object that is no Gateway.
fn left_out(Gateway { kind, api_version, metadata, .. }: &Gateway) -> String {
    let name = if metadata.name.is_empty() { String::new() } else { format!(" {}", metadata.name) };
    let object = match (kind.as_str(), api_version.as_str()) {
        ("", "") => format!("an object{name} without kind and apiVersion"),
        ("", version) => format!("an object{name} of {version:?} without kind"),
        (kind, "") => format!("{kind}{name} without apiVersion"),
        (kind, version) => format!("{kind}{name} of {version:?}"),
    };
    format!("{object} is left out")
}

/// What to do about an object that is no Gateway, `or` something else.
fn only_gateways(or: &str) -> String {
    format!("only Gateways of {API_VERSION} are read: correct kind and apiVersion, or {or}")
}

fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests;
