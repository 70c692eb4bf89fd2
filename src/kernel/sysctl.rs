//! Settings below `/proc/sys/net`, which show the network namespace of the thread that reads them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};

use corax_core::object::{Device, Sysctl};
use nix::errno::Errno;

use super::error::Failure;

pub(super) const RTM_NEWNETCONF: u16 = 80;
pub(super) const RTM_DELNETCONF: u16 = 81;

/// Reads a number below `/proc/sys`; none where the kernel has no such setting.
pub(super) fn read_path(path: &str) -> Option<i32> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok()?.trim().parse().ok()
}

/// Every setting of some devices; those that a device has not are left out.
pub(super) fn read(devices: impl Iterator<Item = Device>) -> BTreeMap<(Device, Sysctl), i32> {
    let mut values = BTreeMap::new();
    for device in devices {
        for sysctl in Sysctl::ALL {
            if let Some(value) = read_path(&sysctl.path(device)) {
                values.insert((device, sysctl), value);
            }
        }
    }
    values
}

/// Sets one. A setting of IPv6 where there is no IPv6 is none that could be wrong.
pub(super) fn write(device: Device, sysctl: Sysctl, value: i32) -> Result<(), Failure> {
    let path = sysctl.path(device);
    match fs::write(format!("/proc/sys/{path}"), value.to_string()) {
        Err(error) if error.kind() == ErrorKind::NotFound && path.starts_with("net/ipv6/") => Ok(()),
        Err(error) => Err(failure(&error)),
        Ok(()) => Ok(()),
    }
}

fn failure(error: &io::Error) -> Failure {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let text = match errno {
        Errno::EROFS => Some("/proc/sys is read-only: run privileged, or with /proc/sys writable".into()),
        _ => None,
    };
    Failure { errno, text }
}
