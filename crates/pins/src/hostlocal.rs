//! host-local's directory: one file an address, named by it, saying container ID and interface.
//!
//! Its reservations count here too: a node that changes over has pods that host-local gave their addresses. And ours are put
//! there, for a host-local that is asked in the same hour.

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

/// A file that names nobody for longer than this is nobody's.
const WRITING: Duration = Duration::from_secs(10);

/// The third line of a file that we wrote.
const OURS: &str = "corax-cni";

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
    /// Written by us, which a third line says: what our holds say counts, not this.
    ours: bool,
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

    /// All reservations of host-local's own, by address; files that are none left out.
    pub fn reservations(&self) -> Vec<Reservation> {
        self.all().into_iter().filter(|r| !r.ours).collect()
    }

    fn all(&self) -> Vec<Reservation> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let addresses = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut all: Vec<_> = addresses.filter_map(|address| self.at(address)).collect();
        all.sort_by_key(|r| r.address);
        all
    }

    /// The reservation of an address, ours included. A file that names nobody is about to be written; or nobody's, where its
    /// writer had no room, or was killed.
    fn at(&self, address: IpAddr) -> Option<Reservation> {
        let path = self.path(address);
        let text = fs::read_to_string(&path).ok()?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let container = lines.next().unwrap_or_default().to_owned();
        let age = || fs::metadata(&path).ok()?.modified().ok()?.elapsed().ok();
        if container.is_empty() && age().is_some_and(|age| age > WRITING) {
            return None;
        }
        let interface = lines.next().map(str::to_owned);
        Some(Reservation { address, container, interface, ours: lines.next() == Some(OURS) })
    }

    /// The reservation of an address that is host-local's own.
    pub(crate) fn reserved(&self, address: IpAddr) -> Option<Reservation> {
        self.at(address).filter(|r| !r.ours)
    }

    /// Reserves addresses that we give here too, as far as the directory is there and can be written: a host-local that is still
    /// asked, be it by a sandbox on its way, gives none of them. Of reservations that are there only those of `dead` make way.
    ///
    /// # Errors
    /// [`Error::HeldByHostLocal`] when host-local was faster.
    pub(crate) fn reserve(
        &self,
        own: &Attachment,
        addresses: &[IpAddr],
        dead: impl Fn(&Reservation) -> bool,
    ) -> Result<(), Error> {
        if !self.directory.is_dir() {
            return Ok(());
        }
        for &address in addresses {
            let Err(error) = self.put(address, own, true) else { continue };
            if error.kind() != io::ErrorKind::AlreadyExists {
                continue;
            }
            match self.at(address) {
                Some(r) if !r.ours && r.container != own.container.as_str() && !dead(&r) => {
                    return Err(Error::HeldByHostLocal { address, container: r.container });
                }
                Some(r) if r.container == own.container.as_str() => {}
                _ => {
                    self.forget(address);
                    let _ = self.put(address, own, true);
                }
            }
        }
        Ok(())
    }

    /// Writes the file of an address, whole or not at all, where there is none.
    fn put(&self, address: IpAddr, own: &Attachment, ours: bool) -> io::Result<()> {
        let beside = self.directory.join(".corax-new");
        let put =
            Self::write_beside(&beside, own, ours).and_then(|()| fs::hard_link(&beside, self.path(address)));
        let _ = fs::remove_file(&beside);
        put
    }

    fn write_beside(beside: &Path, own: &Attachment, ours: bool) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(beside)?;
        let mut text = format!("{}\r\n{}", own.container, own.interface);
        if ours {
            text = format!("{text}\r\n{OURS}");
        }
        file.write_all(text.as_bytes())?;
        // Ours are a courtesy while both run; host-local's own outlive us.
        if ours { Ok(()) } else { file.sync_all() }
    }

    /// Removes what a container has by an interface; `addresses`, where it is known which these are.
    pub fn remove(&self, of: &Attachment, addresses: Option<&[IpAddr]>) {
        let all = match addresses {
            Some(addresses) => addresses.iter().filter_map(|&address| self.at(address)).collect(),
            None => self.all(),
        };
        for r in all {
            let interface = r.interface.as_deref().is_none_or(|i| i == of.interface.as_str());
            if r.container == of.container.as_str() && interface {
                self.forget(r.address);
            }
        }
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.directory.join(address.to_string())
    }

    pub(crate) fn forget(&self, address: IpAddr) {
        let _ = fs::remove_file(self.path(address));
    }

    /// Hands the network over: writes reservations as host-local does, under its lock. What names others at these addresses is
    /// replaced, and ours go. Answers how many were written.
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
        self.all().iter().filter(|r| r.ours).for_each(|r| self.forget(r.address));
        let mut written = 0;
        for (address, attachment) in all {
            if self.at(address).is_some_and(|r| r.container == attachment.container.as_str()) {
                continue;
            }
            self.forget(address);
            self.put(address, attachment, false).map_err(Error::io(self.path(address)))?;
            written += 1;
        }
        Ok(written)
    }
}
