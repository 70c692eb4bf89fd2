//! A directory of Gateway manifests, YAML or JSON, several Gateways in a file and several files.
//!
//! A bad file keeps its own last Gateways. A Gateway gone from a good file is gone. A file gone from a directory that
//! still has good ones is gone; an empty or unreadable directory deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use corax_core::api::{API_VERSION, Gateway, KIND};
use corax_core::problem::Problem;
use serde::Deserialize;

use super::Files;

/// A file that changed less than this ago, with nobody having said that it is whole, may still be being written.
pub(crate) const SETTLED: Duration = Duration::from_millis(300);

/// Largest manifest that is read, in bytes: far above the API server's own limit for an object.
const LARGEST: u64 = 64 << 20;

/// The directory and what was last good of it.
pub(crate) struct Manifests {
    directory: PathBuf,
    files: Files,
    seen: BTreeMap<String, Seen>,
}

/// What was read of a file, and what was wrong with it.
#[derive(Default)]
struct Seen {
    modified: Option<SystemTime>,
    length: u64,
    /// It was read as it is; else it was too fresh to be trusted.
    read: bool,
    problems: Vec<Problem>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The Gateways are not what they were.
    pub changed: bool,
    /// What is wrong, of each file as it stands.
    pub problems: Vec<Problem>,
}

impl Manifests {
    /// A directory of which `files` were last good.
    pub(crate) const fn new(directory: PathBuf, files: Files) -> Self {
        Self { directory, files, seen: BTreeMap::new() }
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The last good Gateways of each file.
    pub(crate) const fn files(&self) -> &Files {
        &self.files
    }

    /// Whether a file was too fresh to be trusted and should be looked at again after [`SETTLED`].
    pub(crate) fn unsettled(&self) -> bool {
        self.seen.values().any(|seen| !seen.read)
    }

    /// Reads the files that are not as they were. `whole` are known to be complete, however fresh.
    pub(crate) fn scan(&mut self, whole: &BTreeSet<String>) -> Scan {
        let names = match list(&self.directory) {
            Ok(names) => names,
            Err(error) => return self.unusable(&format!("cannot be read: {error}; what it held last stays")),
        };
        if names.is_empty() {
            return self.unusable("holds no *.yaml, *.yml or *.json; what it held last stays");
        }
        let mut changed = false;
        for name in &names {
            changed |= self.read(name, whole.contains(name));
        }
        self.seen.retain(|name, _| names.contains(name));
        // Where no file is good, the directory tells nothing of those that are gone from it.
        let good = |seen: &Seen| seen.read && seen.problems.is_empty();
        if names.iter().any(|name| self.seen.get(name).is_some_and(good)) {
            let before = self.files.len();
            self.files.retain(|name, _| names.contains(name));
            changed |= self.files.len() != before;
        }
        Scan {
            changed,
            problems: self.seen.values().flat_map(|seen| seen.problems.iter().cloned()).collect(),
        }
    }

    fn unusable(&self, what: &str) -> Scan {
        let object = format!("directory {}", self.directory.display());
        let problem = Problem::new(object, what, "put Gateway manifests there, or correct --source");
        Scan { changed: false, problems: vec![problem] }
    }

    /// Reads one file if it changed; true where its Gateways did.
    fn read(&mut self, name: &str, whole: bool) -> bool {
        let path = self.directory.join(name);
        let metadata = std::fs::metadata(&path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        let length = metadata.map_or(0, |metadata| metadata.len());
        let seen = self.seen.entry(name.to_owned()).or_default();
        if !whole && seen.read && (seen.modified, seen.length) == (modified, length) {
            return false;
        }
        (seen.modified, seen.length) = (modified, length);
        // A clock that went back makes a file of the future: that one has settled.
        let age = modified.and_then(|modified| modified.elapsed().ok());
        seen.read = whole || age.is_none_or(|age| age >= SETTLED);
        if !seen.read {
            return false;
        }
        let object = format!("file {}", path.display());
        match load(&path) {
            Ok(Loaded { gateways, left_out }) => {
                let remedy = format!("only Gateways of {API_VERSION} are read");
                seen.problems =
                    left_out.into_iter().map(|what| Problem::new(&object, what, remedy.as_str())).collect();
                let changed = self.files.get(name) != Some(&gateways);
                self.files.insert(name.to_owned(), gateways);
                changed
            }
            Err(what) => {
                let what = format!("{what}; its last good Gateways stay");
                seen.problems = vec![Problem::new(object, what, "correct the file")];
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
    left_out: Vec<String>,
}

/// A document: a Gateway, or a list of them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    items: Option<Vec<Gateway>>,
    #[serde(flatten)]
    gateway: Gateway,
}

fn load(path: &Path) -> Result<Loaded, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > LARGEST {
        return Err(format!("is {length} bytes long, more than {LARGEST}"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Err("is empty".to_owned());
    }
    let documents: Vec<Document> = if path.extension().is_some_and(|extension| extension == "json") {
        let documents = serde_json::Deserializer::from_str(&text).into_iter();
        documents.collect::<Result<_, _>>().map_err(|error| error.to_string())?
    } else {
        let options = serde_saphyr::options! { budget: None };
        serde_saphyr::from_multiple_with_options(&text, options)
            .map_err(|error| first_line(&error.to_string()))?
    };
    let mut loaded = Loaded { gateways: Vec::new(), left_out: Vec::new() };
    for document in documents {
        let items = match (document.items, document.gateway.kind.as_str()) {
            (Some(items), "List" | "GatewayList") => items,
            (_, _) => vec![document.gateway],
        };
        for gateway in items {
            if gateway.kind != KIND || gateway.api_version != API_VERSION {
                let Gateway { kind, api_version, metadata, .. } = gateway;
                loaded.left_out.push(format!("{kind} {} of {api_version:?} is left out", metadata.name));
                continue;
            }
            loaded.gateways.push(gateway);
        }
    }
    if loaded.gateways.is_empty() {
        let what = loaded.left_out.into_iter().next().unwrap_or_else(|| "holds no document".to_owned());
        return Err(what);
    }
    Ok(loaded)
}

/// The first line of an error that draws pictures.
fn first_line(text: &str) -> String {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("malformed").trim().to_owned()
}

#[cfg(test)]
mod tests;
