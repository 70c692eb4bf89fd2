//! host-local's directory: one file an address, named by it, saying container ID and interface.
//!
//! Its reservations count here too: a node that changes over has pods that host-local gave their addresses.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::lock::Lock;
use crate::names::{Attachment, Network};

/// Where host-local keeps its networks unless `dataDir` says otherwise.
pub const DATA: &str = "/var/lib/cni/networks";

/// host-local's record of one network.
#[derive(Debug, Clone)]
pub struct HostLocal {
    directory: PathBuf,
    /// The runtime's cache, which knows where a container lives.
    pub(crate) cache: PathBuf,
}

/// One file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The file's name.
    pub address: IpAddr,
    /// Its first line. Written by others: any text.
    pub container: String,
    /// Its second line; host-local of old wrote none.
    pub interface: Option<String>,
}

impl HostLocal {
    /// The record of `network` below host-local's `data` directory, and the runtime's cache beside it.
    pub fn new(data: &Path, network: &Network, cache: &Path) -> Self {
        Self { directory: data.join(network.as_str()), cache: cache.to_owned() }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All reservations, by address; files that are none left out.
    pub fn reservations(&self) -> Vec<Reservation> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .filter_map(|entry| {
                let address: IpAddr = entry.file_name().to_str()?.parse().ok()?;
                let text = fs::read_to_string(entry.path()).ok()?;
                let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                let container = lines.next().unwrap_or_default().to_owned();
                Some(Reservation { address, container, interface: lines.next().map(str::to_owned) })
            })
            .collect();
        all.sort_by_key(|r| r.address);
        all
    }

    /// Removes what a container has by an interface.
    pub fn remove(&self, of: &Attachment) {
        for r in self.reservations() {
            let interface = r.interface.as_deref().is_none_or(|i| i == of.interface.as_str());
            if r.container == of.container.as_str() && interface {
                self.forget(r.address);
            }
        }
    }

    pub(crate) fn forget(&self, address: IpAddr) {
        let _ = fs::remove_file(self.directory.join(address.to_string()));
    }

    /// Writes reservations as host-local does, under its lock; an address that a file already names stays its.
    /// Answers how many were written.
    ///
    /// # Errors
    /// When the directory cannot be written, or host-local's lock is not free in time.
    pub fn write<'a>(
        &self,
        all: impl Iterator<Item = (IpAddr, &'a Attachment)>,
        deadline: Duration,
    ) -> Result<usize, Error> {
        let make = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.directory);
        make.map_err(Error::io(&self.directory))?;
        let _lock = Lock::take(&self.directory.join("lock"), deadline)?;
        let mut written = 0;
        for (address, attachment) in all {
            let path = self.directory.join(address.to_string());
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(mut file) => {
                    let text = format!("{}\r\n{}", attachment.container, attachment.interface);
                    file.write_all(text.as_bytes())
                        .and_then(|()| file.sync_all())
                        .map_err(Error::io(path))?;
                    written += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::Io { path, source: error }),
            }
        }
        Ok(written)
    }
}
