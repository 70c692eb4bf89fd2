//! The overlay's MTU, left for the CNI plugin: pods' routes get it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use corax_core::desired::Desired;
use corax_core::object::Device;
use tracing::warn;

/// What stands in the file.
#[derive(Debug)]
pub(super) struct MtuFile {
    path: PathBuf,
    /// What this process has left there, once it has.
    left: Option<Option<u32>>,
}

impl MtuFile {
    /// The file below a run directory.
    pub(super) fn new(run: &Path) -> Self {
        Self { path: run.join(corax_cni::MTU), left: None }
    }

    /// Leaves the MTU of the overlay there, in bytes; no file where there is no overlay.
    pub(super) fn leave(&mut self, desired: &Desired) {
        self.leave_number(desired.links.get(&Device::Overlay).map(|link| link.mtu));
    }

    fn leave_number(&mut self, mtu: Option<u32>) {
        // Somebody may have emptied the directory.
        if self.left == Some(mtu) && self.path.exists() == mtu.is_some() {
            return;
        }
        let left = match mtu {
            Some(mtu) => self.write(mtu),
            None => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        match left {
            Ok(()) => self.left = Some(mtu),
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the overlay's MTU cannot be left for the CNI plugin");
            }
        }
    }

    fn write(&self, mtu: u32) -> io::Result<()> {
        let directory = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if !directory.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let beside = self.path.with_extension("new");
        fs::write(&beside, format!("{mtu}\n"))?;
        fs::rename(beside, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_the_overlays_mtu_and_goes_with_the_overlay() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("run");
        let read = || fs::read_to_string(run.join("mtu")).ok();
        let mut file = MtuFile::new(&run);
        file.leave_number(None);
        assert!(!run.exists(), "nothing to say, nothing made");
        file.leave_number(Some(1370));
        assert_eq!(read().as_deref(), Some("1370\n"));
        file.leave_number(Some(1350));
        assert_eq!(read().as_deref(), Some("1350\n"));
        fs::remove_dir_all(&run).unwrap();
        file.leave_number(Some(1350));
        assert_eq!(read().as_deref(), Some("1350\n"), "it was taken away");
        // Another process left it.
        MtuFile::new(&run).leave_number(None);
        assert_eq!(read(), None);
    }
}
