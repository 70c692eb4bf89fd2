//! Putting the plugin into a node's network, and taking it out, so that no address is given twice on the way.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use corax_pins::hostlocal::HostLocal;
use corax_pins::import::{self, Imported};
use corax_pins::{Network, Transaction, runtime, store};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conflist::{self, Mode};
use super::{Others, Places};
use crate::plugin;

/// Ends the name of a file that is to take the place of another.
pub(super) const BESIDE: &str = ".corax-new";

/// Where the plugin goes, and how.
#[derive(Debug, Clone)]
pub struct Installation {
    /// The runtime's plugins.
    pub bin_dir: PathBuf,
    /// The runtime's network configurations.
    pub conf_dir: PathBuf,
    /// Only this network; by default the first file's, as runtimes choose.
    pub network: Option<Network>,
    /// What to put in.
    pub mode: Mode,
    /// Pins and holds.
    pub places: Places,
    /// host-local and the runtime.
    pub others: Others,
}

/// What became of a configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Its file.
    pub file: PathBuf,
    /// Its network.
    pub network: Network,
    /// What happened, in words.
    pub outcome: &'static str,
    /// Whether anything did.
    pub changed: bool,
    /// Addresses taken over from host-local, or written back for it.
    pub imported: Vec<Imported>,
    /// Live holds written back as host-local's files.
    pub written_back: usize,
}

/// What is remembered of an edited file: in the state directory, not in the runtime's.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    original: String,
    written: String,
}

impl Installation {
    /// Copies the plugin, where it differs from what is there.
    ///
    /// # Errors
    /// When one cannot be read or the other not written.
    pub fn binary(&self, from: &Path) -> anyhow::Result<bool> {
        let bytes = fs::read(from).with_context(|| {
            format!("plugin {}: give its path by --plugin, or put it beside corax", from.display())
        })?;
        let to = self.bin_dir.join(crate::TYPE);
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            return Ok(false);
        }
        if let Err(why) = speaks_cni(from) {
            bail!(
                "plugin {} is none that this node can run: {why}; give corax-cni by --plugin",
                from.display()
            );
        }
        if !self.bin_dir.is_dir() {
            let directory = self.bin_dir.display();
            fs::create_dir_all(&self.bin_dir).with_context(|| directory.to_string())?;
            eprintln!("{directory} was not there and is made: is it where the runtime looks for plugins?");
        }
        replace(&to, &bytes, None, 0o755).with_context(|| to.display().to_string())?;
        Ok(true)
    }

    /// Edits the configuration, if it needs it; live pods of host-local are taken over first.
    ///
    /// # Errors
    /// When there is none, or it cannot be edited.
    pub fn configure(&self) -> anyhow::Result<Report> {
        let (file, text) = self.choose()?;
        let name = || file.display().to_string();
        let edited = conflist::edit(&text, self.mode, &self.extra()).with_context(name)?;
        let saved = self.saved(&file);
        let rewritten = saved.as_ref().is_some_and(|saved| saved.written != text);
        let mut report = Report {
            file: file.clone(),
            network: edited.network.clone(),
            outcome: "in place",
            changed: edited.changed,
            imported: Vec::new(),
            written_back: 0,
        };
        let store = self.places.store();
        let mut transaction = store.begin(plugin::now())?;
        transaction.retire(&edited.network, false)?;
        if !edited.changed {
            return Ok(report);
        }
        if edited.ipam {
            let data = edited.data_dir.as_ref().map_or(self.others.host_local_dir.as_path(), Path::new);
            let before = HostLocal::new(data, &edited.network, &self.places.cache_dir);
            // What we give from now on is reserved there too.
            fs::create_dir_all(before.directory())
                .with_context(|| before.directory().display().to_string())?;
            report.imported = import::host_local(&mut transaction, &edited.network, &before)?;
        }
        let memory = Saved { original: text, written: edited.text.clone() };
        self.save(&file, &memory).context("the original cannot be kept")?;
        let replaced = replace(&file, edited.text.as_bytes(), Some(&file), 0o644).with_context(name);
        if replaced.is_err() && saved.is_none() {
            self.forget(&file);
        }
        replaced?;
        report.outcome = if rewritten { "rewritten by another tool, edited again" } else { "edited" };
        Ok(report)
    }

    /// Takes us out of every configuration; live holds are written back as host-local's files first.
    ///
    /// # Errors
    /// When something cannot be written; what was done before stays done.
    pub fn remove(&self) -> anyhow::Result<Vec<Report>> {
        let store = self.places.store();
        let mut reports = Vec::new();
        for (file, text) in self.files()? {
            let Ok((network, true)) = conflist::inspect(&text) else { continue };
            if self.network.as_ref().is_some_and(|only| *only != network) {
                continue;
            }
            let places = conflist::places(&serde_json::from_str(&text)?);
            if places != self.extra() {
                bail!(
                    "{} keeps pins and holds elsewhere than this would look: run it with {}",
                    file.display(),
                    options(&places)
                );
            }
            let (restored, outcome) = match self.saved(&file) {
                Some(saved) if saved.written != text => (conflist::revert(&text)?, "taken out"),
                // An original that had us in it already would name a plugin that is about to go.
                Some(saved) if conflist::names_us(&saved.original) => {
                    (conflist::revert(&saved.original)?, "original restored, without corax-cni")
                }
                Some(saved) => (saved.original, "original restored"),
                None => (conflist::revert(&text)?, "taken out"),
            };
            let mut transaction = store.begin(plugin::now())?;
            // From here on, until the runtime reads the new file, ADD answers "try again".
            transaction.retire(&network, true)?;
            let done = self.data_dir(&text).and_then(|data| {
                let written = write_back(&transaction, &network, &data)?;
                replace(&file, restored.as_bytes(), Some(&file), 0o644)
                    .with_context(|| file.display().to_string())?;
                Ok(written)
            });
            let written_back = match done {
                Ok(written) => written,
                Err(error) => {
                    transaction.retire(&network, false)?;
                    return Err(error);
                }
            };
            self.forget(&file);
            reports.push(Report {
                file,
                network,
                outcome,
                changed: true,
                imported: Vec::new(),
                written_back,
            });
        }
        Ok(reports)
    }

    /// Removes the plugin, unless a sandbox may still need it for its DEL or a configuration still names it: the reason it stays.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_binary(&self) -> anyhow::Result<Option<String>> {
        let naming: Vec<_> = self.files()?.into_iter().filter(|(_, text)| conflist::names_us(text)).collect();
        if let Some((file, _)) = naming.first() {
            let file = file.display();
            return Ok(Some(format!("{file} still names it; take corax-cni out there, then run this again")));
        }
        let store = self.places.store();
        let holds = corax_pins::Snapshot::read(&store).holds;
        let live = holds.iter().filter(|hold| store::lives(hold)).count();
        if live > 0 {
            let why = "live sandboxes may need it to be deleted; run this again when they are gone";
            return Ok(Some(format!("{live} {why}")));
        }
        match fs::remove_file(self.bin_dir.join(crate::TYPE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        // Without the plugin no old configuration can ask it any more; one that is put back later begins afresh.
        store.begin(plugin::now())?.end_retirements()?;
        Ok(None)
    }

    fn extra(&self) -> Map<String, Value> {
        let differing = [
            ("stateDir", &self.places.state_dir, store::STATE),
            ("runDir", &self.places.run_dir, store::RUN),
            ("cacheDir", &self.places.cache_dir, runtime::CACHE),
        ];
        let differing = differing.into_iter().filter(|(_, is, usual)| is.as_path() != Path::new(usual));
        differing.map(|(key, is, _)| (key.to_owned(), is.display().to_string().into())).collect()
    }

    /// Configurations in the order in which runtimes read them.
    fn files(&self) -> anyhow::Result<Vec<(PathBuf, String)>> {
        let entries = fs::read_dir(&self.conf_dir).with_context(|| {
            format!("{}: give the runtime's configurations by --conf-dir", self.conf_dir.display())
        })?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        let kinds = ["conf", "conflist", "json"];
        paths.retain(|path| path.extension().and_then(|e| e.to_str()).is_some_and(|e| kinds.contains(&e)));
        paths.sort();
        Ok(paths
            .into_iter()
            .filter_map(|path| fs::read_to_string(&path).ok().map(|text| (path, text)))
            .collect())
    }

    /// The first configuration that can be read, or the first of the network that was asked for.
    fn choose(&self) -> anyhow::Result<(PathBuf, String)> {
        let mut passed_over = Vec::new();
        for (file, text) in self.files()? {
            match (conflist::inspect(&text), &self.network) {
                (Ok((network, _)), Some(only)) if network != *only => {
                    passed_over.push(format!("{} is of network {network}", file.display()));
                }
                (Ok(_), _) => {
                    for why in passed_over {
                        eprintln!("passed over: {why}");
                    }
                    return Ok((file, text));
                }
                (Err(error), _) => passed_over.push(format!("{}: {error}", file.display())),
            }
        }
        let directory = self.conf_dir.display();
        let wanted =
            self.network.as_ref().map(|network| format!(" of network {network}")).unwrap_or_default();
        if passed_over.is_empty() {
            bail!("no network configuration{wanted} in {directory}: install a CNI plugin first");
        }
        bail!("no usable network configuration{wanted} in {directory}: {}", passed_over.join("; "));
    }

    fn data_dir(&self, text: &str) -> anyhow::Result<PathBuf> {
        let named = conflist::data_dir(&serde_json::from_str(text)?);
        Ok(named.map_or(self.others.host_local_dir.clone(), PathBuf::from))
    }

    fn memory(&self, file: &Path) -> PathBuf {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        self.places.state_dir.join(crate::ORIGINALS).join(format!("{name}.saved"))
    }

    fn saved(&self, file: &Path) -> Option<Saved> {
        serde_json::from_slice(&fs::read(self.memory(file)).ok()?).ok()
    }

    /// Removes what is kept of a file, and the directory where that was the last.
    fn forget(&self, file: &Path) {
        let memory = self.memory(file);
        let _ = fs::remove_file(&memory);
        let _ = memory.parent().map(fs::remove_dir);
    }

    fn save(&self, file: &Path, saved: &Saved) -> anyhow::Result<()> {
        let path = self.memory(file);
        let directory = path.parent().context("state directory")?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(replace(&path, &serde_json::to_vec_pretty(saved)?, None, 0o600)?)
    }
}

/// Options that say what keys of a configuration say.
fn options(places: &Map<String, Value>) -> String {
    let option = |key: &str, name: &str, usual: &str| {
        let is = places.get(key).and_then(Value::as_str).unwrap_or(usual);
        format!("{name} {is}")
    };
    [
        option("stateDir", "--state-dir", store::STATE),
        option("runDir", "--run-dir", store::RUN),
        option("cacheDir", "--cache-dir", runtime::CACHE),
    ]
    .join(" ")
}

/// Whether a file runs here and answers VERSION as a CNI plugin does; else why not.
fn speaks_cni(file: &Path) -> Result<(), String> {
    use std::process::{Command, Stdio};
    let path = fs::canonicalize(file).map_err(|error| error.to_string())?;
    let mut child = Command::new(path)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    if let Some(mut input) = child.stdin.take() {
        // One that answers without reading closes the pipe.
        let _ = input.write_all(br#"{"cniVersion":"1.0.0"}"#);
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let versions = answer.get("supportedVersions").and_then(Value::as_array);
    versions.map(drop).ok_or_else(|| "it does not answer VERSION as a CNI plugin does".to_owned())
}

/// Writes the live holds of a network into host-local's directory. Addresses of another IPAM are not host-local's affair.
pub(super) fn write_back(
    transaction: &Transaction<'_>,
    network: &Network,
    data: &Path,
) -> anyhow::Result<usize> {
    let live: Vec<_> = transaction.live(network).into_iter().filter(|hold| !hold.seen).collect();
    let all = live.iter().flat_map(|hold| hold.addresses.iter().map(|&address| (address, &hold.attachment)));
    let directory = HostLocal::new(data, network, Path::new(runtime::CACHE));
    if live.is_empty() && !directory.directory().is_dir() {
        return Ok(0);
    }
    let written = directory.write(all, crate::config::LOCK_TIMEOUT);
    written
        .with_context(|| format!("live holds cannot be written back to {}", directory.directory().display()))
}

/// Puts bytes at a path so that a reader, and a crash, finds the old file or the new one; mode and owner as `like` has.
fn replace(path: &Path, bytes: &[u8], like: Option<&Path>, mode: u32) -> io::Result<()> {
    // A link stays one: the file that it names is replaced.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    // A name that no runtime takes for a configuration or a plugin.
    let beside = path.with_file_name(format!(".{name}{BESIDE}"));
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        match like.and_then(|like| fs::metadata(like).ok()) {
            Some(like) => {
                file.set_permissions(fs::Permissions::from_mode(like.mode()))?;
                fchown(&file, Some(like.uid()), Some(like.gid()))?;
            }
            None => file.set_permissions(fs::Permissions::from_mode(mode))?,
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&beside, path)?;
        fs::File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}
