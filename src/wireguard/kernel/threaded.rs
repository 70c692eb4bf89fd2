//! Threaded NAPI: what a peer sent is taken in by a kernel thread a peer, on any CPU, and not by the softirq of the CPU
//! that the link's packets happen to arrive on. Newer kernels do so by themselves.
//!
//! Source: `Documentation/networking/napi.rst`; a device can be set so once it has a peer.

use std::fs;
use std::io;
use std::path::PathBuf;

use corax_core::object::Device;

/// Sets a device so. Without it packets flow as well, so a refusal is only told.
pub(super) fn enable(device: Device) {
    match try_enable(device) {
        Ok(true) => tracing::debug!(%device, "the device has threaded NAPI now"),
        Ok(false) => {}
        Err(error) => tracing::debug!(%device, %error, "the device has no threaded NAPI"),
    }
}

/// Whether that changed anything.
fn try_enable(device: Device) -> io::Result<bool> {
    // This /sys may be another network namespace's, and the device in it somebody else's.
    let index = nix::net::if_::if_nametoindex(device.to_string().as_str())?;
    let directory = PathBuf::from("/sys/class/net").join(device.to_string());
    let shown: u32 =
        fs::read_to_string(directory.join("ifindex"))?.trim().parse().map_err(io::Error::other)?;
    if shown != index {
        return Err(io::Error::other("/sys shows another network namespace"));
    }
    let file = directory.join("threaded");
    if fs::read_to_string(&file)?.trim() == "1" {
        return Ok(false);
    }
    fs::write(&file, "1")?;
    Ok(true)
}
